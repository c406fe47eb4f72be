"""The last line of every step in train.py: what a run leaves for a person to read and look at.

Console lines, ``metrics.jsonl``, Markdown tables and the glossary of every logged metric. Pictures are
drawn in drawing.py, and html_report.py makes the HTML page of it all. Whatever a model wrote, and every name and id, is
untrusted here: terminal.py makes it printable.
"""

import collections
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from activeo3.config import TrainConfig
from activeo3.geometry import rle_to_mask
from activeo3.metrics import mask_iou
from activeo3.metrics_file import cut, read_rows  # noqa: F401  what is written here is read there
from activeo3.outputs import enough_room, make_folder
from activeo3.terminal import columns as width_of
from activeo3.terminal import one_line, printable
from activeo3.types import Reward, Rollout, TaskResult

MISSING = "–"


class Metric(NamedTuple):
    """What a logged number is: its unit, what it says, and what it looks like in a good run."""

    unit: str
    meaning: str
    healthy: str


METRIC_GLOSSARY: dict[str, Metric] = {
    "reward": Metric(
        "points",
        "weighted sum of the reward terms, mean over all answers",
        "rises, fast at first; at most 6 with the default weights",
    ),
    "reward/format": Metric(
        "0–1",
        "the answer can be read as the boxes that were asked for",
        "above 0.9 after the first tens of steps, then stays there",
    ),
    "reward/no_overlap": Metric(
        "0–1",
        "the proposed regions do not cover each other",
        "high; falling while coverage rises means repeated regions",
    ),
    "reward/area": Metric(
        "0–1",
        "the regions have a sensible size, neither specks nor everything",
        "high; 0 means that the policy asks for the whole picture",
    ),
    "reward/coverage": Metric(
        "0–1",
        "share of true boxes inside a region; of wrong pixels, less for large regions",
        "rises slowly: this is looking in the right place",
    ),
    "reward/task": Metric(
        "0–2",
        "AP50 + AR50 of crops or answer, or a corrected mask's IoU",
        "rises with coverage; its ceiling is the task model on perfect regions",
    ),
    "reward/iou": Metric(
        "0–1", "grounding: IoU of the box, or its square", "rises; the table's mIoU is its greedy twin"
    ),
    "reward/match": Metric(
        "0–1", "counting: where the things are, F1 under the matching", "rises with the right number of places"
    ),
    "reward/count": Metric(
        "0–1", "counting: right numbers, each paid as far as its places are right", "rises, later than match"
    ),
    "reward/text": Metric("0–1", "ocr: 1 - edit distance to the true text", "rises; near 1 for a model that reads"),
    "reward/location": Metric("0–1", "detection: F1 of the boxes, each worth its IoU", "rises first"),
    "reward/class": Metric(
        "0–1",
        "detection: the same of those with the right name",
        "close to location; behind it where only boxes are learned",
    ),
    "reward/number": Metric("0–1", "detection: F1 of the hits", "rises slowly: this is what AP measures"),
    "reward/missing": Metric(
        "-1–0",
        "detection: minus the share of true things that no hit finds",
        "rises towards 0 while number does not fall",
    ),
    "reward/answer": Metric("0–1", "the episode's answer in words is right", "rises: with the looks, if it must look"),
    "reward/evidence": Metric(
        "0–1",
        "the evidence was looked at, and little else, for a right answer",
        "rises after the answers do; high answers without it are guesses",
    ),
    "reward/calls": Metric(
        "zooms", "minus the number of zooms that were asked for", "settles where a look still pays for itself"
    ),
    "reward_spread": Metric(
        "points",
        "standard deviation of the reward inside a group, mean",
        "clearly above 0; at 0 there is nothing to compare and to learn",
    ),
    "zero_spread": Metric(
        "0–1",
        "share of groups with no spread: all rewards equal, advantage 0",
        "below 0.5; near 1 the step teaches nothing",
    ),
    "rewards_left_out": Metric(
        "answers",
        "rewards that were NaN or infinite, left out of their group and of all means",
        "0; the examples are named, and the run stops as it does for skipped_steps",
    ),
    "kl": Metric(
        "nats/token",
        "k3 estimate of the distance to the frozen reference",
        "grows slowly from 0 and levels off; a jump is a policy running away",
    ),
    "clip_fraction": Metric(
        "0–1",
        "share of sampled tokens whose ratio the clip holds back",
        "exactly 0 with one update per rollout, else below 0.2",
    ),
    "ratio_max": Metric(
        "×",
        "largest new / old probability of a sampled token",
        "exactly 1 with one update per rollout, else below about 3",
    ),
    "logp_difference/mean": Metric(
        "nats/token",
        "how far a token's log-probability when scored is from that when sampled, mean",
        "below 1e-5 in float32, about 0.01 in bfloat16; more means a wrong mask or kernel",
    ),
    "logp_difference/max": Metric(
        "nats",
        "the same, of the token where it is largest",
        "below 1e-3 in float32, below about 1 in bfloat16; jumps mean a wrong mask or kernel",
    ),
    "entropy": Metric(
        "nats/token",
        "how undecided the policy is, mean over sampled tokens",
        "falls slowly; near 0 early means that it has stopped exploring",
    ),
    "grad_norm": Metric(
        "–", "length of the gradient before it is clipped", "steady; spikes now and then are fine, growth is not"
    ),
    "loss": Metric(
        "–",
        "clipped surrogate plus KL penalty",
        "hovers around beta x kl: advantages have mean 0, so it shows no progress",
    ),
    "lr": Metric("–", "learning rate of this step", "the schedule you asked for"),
    "skipped_steps": Metric(
        "steps",
        "updates dropped because a loss or gradient was not finite, in total",
        "0; the run stops after --max_skipped in a row, or at more than 10 of the last 100 steps",
    ),
    "tokens/mean": Metric(
        "tokens", "mean length of an answer, end token included", "settles; steady growth without reward is rambling"
    ),
    "tokens/truncated": Metric("0–1", "share of answers that hit the length limit", "near 0"),
    "time/rollout": Metric("s", "sampling the answers", "steady, follows tokens/mean"),
    "time/task_model": Metric("s", "cropping, and the task model on all crops", "follows the regions"),
    "time/update": Metric("s", "reference, loss, backward and update", "steady"),
    "time/step": Metric("s", "one whole step by the clock", "a little more than its parts"),
    "memory_gb": Metric("GB", "most memory that rank 0 has held, of its GPU if it has one", "flat after a few steps"),
}


def glossary_table() -> str:
    """METRIC_GLOSSARY as a Markdown table, as the README quotes it."""
    rows = [
        {"metric": f"`{name}`", "unit": metric.unit, "what it says": metric.meaning, "a healthy run": metric.healthy}
        for name, metric in METRIC_GLOSSARY.items()
    ]
    return table(rows, ["metric", "unit", "what it says", "a healthy run"])


def where(folder: Path) -> str:
    """Where a run has left what a person looks at; a short run has no samples."""
    samples = f"; samples: {folder / 'samples'}" if (folder / "samples").is_dir() else ""
    return f"curves and pictures: {folder / 'report.html'}{samples}; numbers: {folder / 'results.json'}"


# ----------------------------------------------------------------------------------- files and JSON


def strict_json(value: Any) -> str:
    """One line of JSON that every reader takes: NaN and infinity become null, text is ASCII.

    Order is kept and floats are written by ``repr``, so equal values give equal bytes.

    >>> strict_json({"kl": float("nan"), "reward": np.float32(0.5)})
    '{"kl": null, "reward": 0.5}'
    """
    return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _without_nan(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -------------------------------------------------------------------- the console and metrics.jsonl


class RunLog:
    """The console and the ``metrics.jsonl`` of one training run.

    Steps count from 1; step 0 is the policy before any training. ``first_step`` is the first step
    this run will make: rows from there on, left by a run that died after its last checkpoint, are
    dropped, and all earlier rows stay as they are, byte for byte; if some are missing, that is said. 0 starts a new file.
    ``speaks`` False (every rank but one) makes a log that neither prints nor writes.
    """

    def __init__(self, output_dir: Path | str, total_steps: int, *, first_step: int = 0, speaks: bool = True) -> None:
        self.path = Path(output_dir) / "metrics.jsonl"
        self.total_steps = total_steps
        self.speaks = speaks
        self._seconds: collections.deque[float] = collections.deque(maxlen=20)
        self._bar: tqdm | None = None
        if not speaks:
            return
        make_folder(self.path.parent)
        wrong = cut(self.path, first_step)
        if sys.stderr.isatty():
            # Measured here, because tqdm shows nothing on a terminal that does not tell its size.
            columns, lines = shutil.get_terminal_size()
            layout = "{desc}|{bar:20}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(
                total=total_steps,
                initial=max(0, first_step - 1),
                bar_format=layout,
                desc="step ",
                ncols=columns,
                nrows=lines,
            )
        if wrong:
            self.say(wrong)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self) -> list[dict[str, Any]]:
        """The rows so far; none on a rank that does not write them."""
        return read_rows(self.path) if self.speaks and self.path.exists() else []

    def close(self) -> None:
        """Leave the cursor on a fresh line; the file needs no closing."""
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Print one plain line (or several), never broken by the progress bar."""
        if not self.speaks:
            return
        if self._bar is not None:
            tqdm.write(text, file=sys.stdout)
        else:
            sys.stdout.write(text + "\n")  # in one write: other ranks print to the same pipe
        sys.stdout.flush()

    def step(self, row: Mapping[str, float | int | str | list | None]) -> None:
        """Append the row of one step to ``metrics.jsonl`` and show it.

        ``row["step"]`` is needed; the console shows ``reward``, ``reward/*``, ``kl`` and ``time/*``
        where present, and the time left by the mean ``time/step`` of the last 20 steps.
        """
        if not self.speaks:
            return
        step = int(row["step"])
        with enough_room(self.path), open(self.path, "a", encoding="ascii", newline="\n") as file:
            file.write(strict_json(row) + "\n")
        if isinstance(seconds := row.get("time/step"), (int, float)) and math.isfinite(seconds):
            self._seconds.append(float(seconds))
        words, left = _step_words(row), self._time_left(step)
        if self._bar is None:
            self.say("  ".join(filter(None, [f"step {step}/{self.total_steps}", words, left])))
        else:
            self._bar.n = step
            self._bar.set_postfix_str("  ".join(filter(None, [left, words])))  # cut at the right

    def _time_left(self, step: int) -> str:
        if not self._seconds:
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        minutes, seconds = divmod(round(mean * max(0, self.total_steps - step)), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        return f"ETA {clock}"


class Timer:
    """Seconds by phase of one step: ``with clock("sample_rollouts"): ...``, then ``times()``."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._phases[f"time/{phase}"] = time.perf_counter() - began

    def times(self) -> dict[str, float]:
        """``time/<phase>`` of every phase, and ``time/step`` so far."""
        return self._phases | {"time/step": time.perf_counter() - self._began}


class Model(Protocol):
    """What an introduction says of a policy: parameters, how many of them are trained, how it works."""

    parameters: int
    trainable_parameters: int
    attention_summary: str


def introduction(
    config: TrainConfig, weights: Mapping[str, float], policy: Model, world: int, examples: int, first: int
) -> str:
    """What a run is about to do, in a few lines; ``weights`` are those of its reward terms."""
    if first > config.steps:
        return f"activeo3: all {config.steps} steps of {config.output_dir} are done; comparing again"
    pictures = world * config.prompts
    often = config.steps * pictures / examples
    weighted = [f"{weight:g} {name}" for name, weight in weights.items() if weight]
    return "\n".join(
        [
            f"activeo3: {'continuing' if first > 1 else 'training'} {config.model}, "
            f"{policy.parameters / 1e6:.1f} M parameters, of which {policy.trainable_parameters / 1e6:.1f} M learn, on {counted(world, 'process', 'processes')}",
            f"  data    {'+'.join(config.data)} ({config.split}): {examples} questions, each asked {often:.2g} times on average",
            f"  task    {config.task}{f', {config.expert_name(config.task_model)} on the crops' if config.other_mllm else ''}; the reward is {' + '.join(weighted) or 'always 0'}",
            f"  step    {pictures} pictures x {config.group} answers = {pictures * config.group} answers; "
            f"then an update at learning rate {config.lr:g}",
            f"  model   {policy.attention_summary}",
            f"  steps   {first} to {config.steps}, a checkpoint every {config.save_every}, all in {config.output_dir}",
        ]
    )


def spread_out(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` of the items, evenly spaced, so that they come from different groups."""
    return list(items[:: max(1, len(items) // count)][:count])


def _step_words(row: Mapping[str, Any]) -> str:
    """One step on one line: reward and its terms, KL, seconds and their phases."""
    terms = _parts(row, "reward/", digits=2)
    phases = _parts({name: row[name] for name in row if name != "time/step"}, "time/", digits=1)
    words = []
    if "reward" in row:
        words.append(f"reward {figure(row['reward'])}" + (f" ({terms})" if terms else ""))
    if "kl" in row:
        words.append(f"kl {figure(row['kl'], digits=3)}")
    if "time/step" in row:
        words.append(f"{figure(row['time/step'], digits=1)} s" + (f" ({phases})" if phases else ""))
    return "  ".join(words)


def _parts(row: Mapping[str, Any], prefix: str, digits: int) -> str:
    return " ".join(
        f"{name.removeprefix(prefix)} {figure(value, digits)}" for name, value in row.items() if name.startswith(prefix)
    )


# --------------------------------------------------------------------------------- words and tables


def figure(value: Any, digits: int = 2) -> str:
    """A value as people read it: a number, an interval (value, low, high), a word, or a dash.

    >>> figure(0.4138), figure((0.41, 0.36, 0.47)), figure(None), figure(float("nan")), figure(-0.001)
    ('0.41', '0.41 [0.36, 0.47]', '–', '–', '0.00')
    """
    if isinstance(value, tuple):
        middle, low, high = (figure(part, digits) for part in value)
        return middle if MISSING in (middle, low, high) else f"{middle} [{low}, {high}]"
    if isinstance(value, (float, np.floating)):
        return f"{round(value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else MISSING  # -0.00 is 0.00
    return MISSING if value is None else str(value)


def is_number(value: Any) -> bool:
    """Whether a cell is read as a number: then its column stands to the right."""
    kinds = (int, float, np.integer, np.floating, tuple, type(None))
    return isinstance(value, kinds) and not isinstance(value, bool)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str = "", digits: int = 2) -> str:
    """A Markdown table whose columns also line up on a terminal; a missing cell is a dash.

    >>> print(table([{"method": "ours", "AP": 0.414}, {"method": "uniform"}], ["method", "AP"]))
    | method  |   AP |
    | :------ | ---: |
    | ours    | 0.41 |
    | uniform |    – |
    """
    right = [bool(rows) and all(is_number(row.get(name)) for row in rows) for name in columns]
    cells = [[_cell(name) for name in columns]]
    cells += [[_cell(figure(row.get(name), digits)) for name in columns] for row in rows]
    widths = [max(4, *(width_of(line[i]) for line in cells)) for i in range(len(columns))]
    rule = ["-" * (w - 1) + ":" if r else ":" + "-" * (w - 1) for w, r in zip(widths, right)]
    lines = [
        "| " + " | ".join(_padded(text, w, r) for text, w, r in zip(line, widths, right)) + " |"
        for line in [cells[0], rule, *cells[1:]]
    ]
    return "\n".join([f"### {one_line(title)}", "", *lines] if title else lines)


def _cell(text: str) -> str:
    return " ".join(one_line(text).split()).replace("|", "\\|")


def _padded(text: str, width: int, right: bool) -> str:
    """A cell as wide as its column, by what a terminal shows."""
    space = " " * (width - width_of(text))
    return space + text if right else text + space


def rollout_lines(rollout: Rollout, outcome: TaskResult, score: Reward) -> str:
    """One answer and what it earned, as lines for the console; regions in original pixels."""
    width, height = rollout.example.size_px
    answer = printable(rollout.text.strip(), limit=400).splitlines() or ["(empty)"]
    if not rollout.finished:
        answer.append("(cut off at the length limit)")
    # An answer that is itself the result has no regions to speak of.
    nowhere = ["none"] if rollout.result is None else []
    regions = [
        f"{i}  ({x1:.0f}, {y1:.0f}) to ({x2:.0f}, {y2:.0f}), {x2 - x1:.0f} x {y2 - y1:.0f} px"
        for i, (x1, y1, x2, y2) in enumerate(rollout.regions, start=1)
    ]
    found, true = len(outcome.boxes_px), int(rollout.example.asked_for.sum())
    result = {"found": [f"{counted(found, 'detection')} for {counted(true, 'true box', 'true boxes')}"]}
    if outcome.mask is not None:
        true, first = map(rle_to_mask, rollout.example.draft)
        before, after = (figure(mask_iou(mask, true)) for mask in (first, outcome.mask))
        result = {"mask": [f"IoU {before} before, {after} after"]}
    if rollout.episode:
        result = {"turns": [", ".join(rollout.episode.statuses)]}
    terms = "  ".join(f"{name} {figure(float(term))}" for name, term in score.terms.items())
    query = one_line(rollout.example.query, limit=200)
    blocks = {
        "answer": answer,
        "error": [one_line(rollout.action.error, limit=200)] if rollout.action.error else [],
        "regions": regions or nowhere,
        **result,
        "reward": [f"{figure(float(score.total))}  ({terms})"],
    }
    lines = [f"example {one_line(rollout.example.id, limit=200)} ({width} x {height} px), query: {query}"]
    for name, block in blocks.items():
        lines += [f"  {name if i == 0 else '':<9}{line}" for i, line in enumerate(block)]
    return "\n".join(lines)


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> counted(0, "region"), counted(1, "box", "boxes"), counted(2, "box", "boxes")
    ('0 regions', '1 box', '2 boxes')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"
