"""Console lines, ``metrics.jsonl`` and Markdown tables of a run.

What a model wrote, and every name and id, is untrusted here: terminal.py makes it printable. monitor.py has the row of
a step, drawing.py the pictures, html_report.py the page.
"""

import json
import math
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from activeo3.cli import ConfigError
from activeo3.config import TrainConfig
from activeo3.geometry import rle_to_mask
from activeo3.metrics import mask_iou
from activeo3.outputs import enough_room, make_folder, replace_file
from activeo3.terminal import columns as width_of
from activeo3.terminal import one_line, printable
from activeo3.types import Reward, Rollout, TaskResult

MISSING = "–"
EVALUATIONS = "evaluations.jsonl"
"""The held-out numbers of a run: a row for each step at which it was evaluated."""


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


# ---------------------------------------------------------------------- metrics.jsonl


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a half-written last line is left out.

    Raises ConfigError naming the line for any other line that is not JSON.
    """
    return [row for _, row in _whole_lines(Path(path))]


def cut(path: Path, first_step: int) -> str:
    """Drop the rows from ``first_step`` on; earlier ones stay as they are, byte for byte.

    Returns which of the steps 1, 2, ... before it have no row or several, or "" if each has one.
    Raises ConfigError for a line that is no row of a step.
    """
    kept, steps = [], []
    for line, row in _whole_lines(path) if path.exists() else []:
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ConfigError(f"{path} has a row without 'step': {line[:80]!r}; mend or delete the file.")
        if row["step"] < first_step:
            kept.append(line)
            steps.append(row["step"])
    if path.exists():
        replace_file(path, b"".join(kept))
    missing = sorted(set(range(1, first_step)) - set(steps))
    several = sorted(step for step, rows in Counter(steps).items() if rows > 1)
    wrong = [
        f"{what} {_ranges(found)}"
        for what, found in (("no row of step", missing), ("several rows of step", several))
        if found
    ]
    return (
        f"{path} has {' and '.join(wrong)}; the curves of this run have gaps or doubled steps there." if wrong else ""
    )


def _ranges(steps: Sequence[int]) -> str:
    """Ascending numbers with their runs drawn together.

    >>> _ranges([1, 2, 3, 7])
    '1–3, 7'
    """
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _whole_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The (bytes, row) of every line that ends in a newline; a torn last line is left out."""
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break  # only the last line can lack it: the run was killed while writing it
        try:
            lines.append((line, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {line[:80]!r}; mend or delete the file.") from error
    return lines


# ---------------------------------------------------------------------- the console


class Mirror(Protocol):
    """Keeps a run's numbers elsewhere as well (trackers.py)."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl or evaluations.jsonl."""

    def close(self) -> None:
        """Return when everything is kept."""


Scored = Sequence[tuple[Rollout, TaskResult, Reward]]
"""Answers with what came of them."""


class RunLog:
    """The console and the ``metrics.jsonl`` of one training run.

    Steps count from 1; step 0 is the policy before any training. ``first_step`` is the first step of this run: rows
    from there on, left by a run that died after its last checkpoint, are dropped, and earlier rows stay as they are,
    byte for byte; a warning names those that are missing. 0 starts a new file. ``speaks`` False (every rank but one)
    makes a log that neither prints nor writes.
    """

    def __init__(self, output_dir: Path | str, total_steps: int, *, first_step: int = 0, speaks: bool = True) -> None:
        self.path = Path(output_dir) / "metrics.jsonl"
        self.first_step, self.total_steps = first_step, total_steps
        self.speaks = speaks
        self._seconds: deque[float] = deque(maxlen=20)
        self._bar: tqdm | None = None
        self.mirror: Mirror | None = None
        if not speaks:
            return
        make_folder(self.path.parent)
        wrong = cut(self.path, first_step)
        if sys.stderr.isatty():
            columns, lines = shutil.get_terminal_size()  # tqdm shows nothing on a terminal that does not tell its size
            layout = "{desc}|{bar:20}| {n_fmt}/{total_fmt}{postfix}"
            place = {"initial": max(0, first_step - 1), "total": total_steps, "ncols": columns, "nrows": lines}
            self._bar = tqdm(desc="step ", bar_format=layout, **place)
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
        """Leave the cursor on a fresh line; the files need no closing, the trackers do."""
        if self._bar is not None:
            self._bar.close()
        if self.mirror:
            self.mirror.close()

    def say(self, text: str) -> None:
        """Print one plain line (or several), never broken by the progress bar."""
        if not self.speaks or not text:
            return
        if self._bar is not None:
            tqdm.write(text, file=sys.stdout)
        else:
            sys.stdout.write(text + "\n")  # in one write: other ranks print to the same pipe
        sys.stdout.flush()

    def step(self, row: Mapping[str, float | int | str | list | None], samples: Scored = ()) -> None:
        """Append the row of one step to ``metrics.jsonl`` and show it; of the first step, some of its ``samples`` as
        well.

        ``row["step"]`` is needed; the console shows ``reward``, ``reward/*``, ``kl`` and ``time/*``
        where present, and the time left by the mean ``time/step`` of the last 20 steps.
        """
        if not self.speaks:
            return
        step = int(row["step"])
        with enough_room(self.path), open(self.path, "a", encoding="ascii", newline="\n") as file:
            file.write(strict_json(row) + "\n")
        if self.mirror:
            self.mirror.row(row)
        self._seconds.extend(_seconds_of([row]))
        if step == self.first_step:
            self.say(some_rollouts(samples))
        words, left = _step_words(row), eta(self._seconds, self.total_steps - step)
        if self._bar is None:
            self.say("  ".join(filter(None, [f"step {step}/{self.total_steps}", words, left])))
        else:
            self._bar.n = step
            self._bar.set_postfix_str("  ".join(filter(None, [left, words])))  # cut at the right


def eta(seconds: Iterable[float], steps: int) -> str:
    """How long ``steps`` more take, by the ``seconds`` of the last ones; "" if there are none.

    >>> eta([1.0, 3.0], 30)
    'ETA 01:00'
    """
    known = list(seconds)
    return f"ETA {tqdm.format_interval(round(sum(known) / len(known) * max(0, steps)))}" if known else ""


def time_left(rows: Sequence[Mapping[str, Any]], steps: int) -> str:
    """``eta`` of a run of ``steps`` steps by the rows of its metrics.jsonl."""
    return eta(_seconds_of(rows[-20:]), steps - int(rows[-1]["step"])) if rows else ""


def _seconds_of(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """``time/step`` of the rows that have a finite one."""
    found = [row.get("time/step") for row in rows]
    return [float(one) for one in found if isinstance(one, (int, float)) and math.isfinite(one)]


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
    """What ``introduction`` reads of a policy."""

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
    reward = " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight) or "always 0"
    task_model = (
        f", {config.expert_name(config.task_model)} on the crops"
        if config.task_model != "mllm" or config.other_mllm
        else ""
    )
    own = f", {', '.join(config.words.own)} in the words of {config.prompt_file}" if config.words.own else ""
    every = config.samples_every
    often_drawn = f"the run as it goes, anew every {counted(every, 'step')}" if every else "the run when it ends"
    begin = f"{'continuing' if first > 1 else 'training'} {config.model}, {policy.parameters / 1e6:.1f} M parameters"
    trained = f"of which {policy.trainable_parameters / 1e6:.1f} M learn, on {counted(world, 'process', 'processes')}"
    answers = f"{pictures} pictures x {config.group} answers = {pictures * config.group} answers"
    return f"""activeo3: {begin}, {trained}
  data    {"+".join(config.data)} ({config.split}): {examples} questions, each asked {often:.2g} times on average
  task    {config.task}{task_model}{own}; the reward is {reward}
  step    {answers}; then an update at learning rate {config.lr:g}
  model   {policy.attention_summary}
  steps   {first} to {config.steps}, a checkpoint every {config.save_every}, all in {config.output_dir}
  page    {config.output_dir}/report.html: open it now, it shows {often_drawn}"""


def some_rollouts(samples: Scored, count: int = 3) -> str:
    """A few rollouts of a step with their results and rewards, as lines."""
    return "\n\n".join(rollout_lines(*sample) for sample in spread_out(samples, count))


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


def escape_markdown(text: str) -> str:
    """A text for a Markdown file, in which no name becomes a tag, an image or a link."""
    return text.replace("<", "&lt;").replace("](", "]&#40;")


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
