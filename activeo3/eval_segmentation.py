"""Masks corrected zoom by zoom: mean IoU after 0, 1, 2, ... zooms, one row per way of choosing regions.

The benchmark of --task segment (ACTIVE-O3, section 5.4, its Fig. 3). All rows start from the same first masks,
and the same task model works in their regions, in the order in which they were proposed:

    random           K random regions of sensible size
    grid             K uniform tiles that cover the picture
    cot              the start policy, prompted and untrained
    active           the checkpoint
    oracle-regions   K squares around the largest errors of the mask (drafts.error_regions)

Where an answer has fewer regions than the budget, its mask stays as it is. Beside mean IoU stand the gain over
the first mask, with an interval of its own because the pictures are the same, and how many of the wrong pixels
the regions hold. Both correctors see a crop at a size of their own, so a large region is drawn coarsely: the tiles
of ``grid``, which leave nothing out, end below the first mask. With ``--task_options least_seen=0`` they end at 1.
"""

import time
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np
from PIL import Image, ImageDraw

from activeo3 import eval_output, intervals, log, metrics, outputs
from activeo3.config import Config, ConfigError, TrainConfig
from activeo3.data_loader import readable
from activeo3.data_set import Dataset
from activeo3.drawing import FAINT, FOUND, INK, LACKING, PAPER, REGION, TRUE, Sample
from activeo3.eval_baselines import RULES
from activeo3.eval_config import METHODS, OF_A_CHECKPOINT, EvalConfig
from activeo3.eval_core import Record, Runner, trained_of
from activeo3.eval_parsing import parser_of, shares, strict_columns, strictly_read
from activeo3.eval_rollouts import rollout_of, rollout_record
from activeo3.geometry import as_boxes, mask_to_rle, rle_to_mask
from activeo3.html_report import write_page
from activeo3.model import VisionLanguageModel
from activeo3.monitor import lost
from activeo3.rollout import sample_rollouts
from activeo3.task_model_sam import Corrector
from activeo3.task_segmentation import Draft, Segment, covered_error, error_regions, with_first_masks
from activeo3.tasks import task_of
from activeo3.types import Example, ParsedAnswer, Rollout, TaskResult

ROWS = ("random", "grid", "cot", "active", "oracle-regions")
COLOURS = (FAINT, FOUND, REGION, TRUE, LACKING)  # of the rows in the plot


class Corrected(NamedTuple):
    """One picture of a row: the answer, the IoU after 0, 1, ... K zooms, and the mask at the end in run lengths."""

    rollout: Rollout
    ious: tuple[float, ...]
    mask: dict[str, Any]


def run(
    benchmark: str,
    methods: Sequence[str],
    examples: Sequence[Example],
    policy: VisionLanguageModel,
    start: VisionLanguageModel,
    task_models: Mapping[str, Corrector],
    config: Config,
    resamples: int = 1000,
    say: Callable[[str], None] = print,
    runner: Runner | None = None,
    checkpoint: str = "",
) -> tuple[list[dict[str, Any]], dict[str, list[Corrected]]]:
    """Every method with every task model on the examples: (table rows, {label of the row: its pictures}).

    Arguments and rows are those of ``suites.run``, with the columns of ``measured``.
    """
    runner = runner or Runner()
    examples = first_masks(task_models, examples, config)
    rows: list[dict[str, Any]] = []
    kept: list[list[Corrected]] = []
    for method in methods:
        for name, task_model in task_models.items():
            began = time.perf_counter()
            found = corrected(method, examples, policy, start, task_model, config, runner)
            seconds = (time.perf_counter() - began) / len(examples)
            values = measured(found, config.regions, resamples) | {"seconds": seconds}
            policies = {"cot": start, "active": policy}
            if parser_of(config, [policies.get(method)]) == "lenient":
                values |= both_readings(found, config.regions, resamples)
            row = {"benchmark": benchmark, "method": method, "checkpoint": checkpoint, "task_model": name}
            row |= {"budget": config.regions, "n": len(examples)}
            rows.append(row | {"metrics": values, "failures": {}})
            kept.append(found)
            first, last = (values[f"mIoU@{k}"].value for k in (0, config.regions))
            say(
                f"{' '.join(filter(None, [benchmark, method, checkpoint]))} with {name}: mIoU {first:.3f} before, {last:.3f} after {config.regions} zooms"
            )
    return rows, {eval_output.label(row, rows): found for row, found in zip(rows, kept)}


def first_masks(task_models: Mapping[str, Corrector], examples: Sequence[Example], config: Config) -> list[Example]:
    """The examples with their first masks, which SAM makes if it is there and ``config.first_mask`` says so."""
    return with_first_masks(task_models.get("sam") or next(iter(task_models.values())), examples, config)


def corrected(
    method: str,
    examples: Sequence[Example],
    policy: VisionLanguageModel,
    start: VisionLanguageModel,
    task_model: Corrector,
    config: Config,
    runner: Runner,
) -> list[Corrected]:
    """What a method proposes for every prepared example, and what becomes of its mask."""

    def work(block: Sequence[Example]) -> list[Record]:
        records = []
        rollouts = proposed(method, block, policy, start, config)
        for rollout, steps in zip(rollouts, Segment(config).zoom(task_model, rollouts), strict=True):
            true = Draft.of(rollout.example).true
            ious = [metrics.mask_iou(mask, true) for mask in steps]
            ious += ious[-1:] * (config.regions + 1 - len(ious))
            records.append({"rollout": rollout_record(rollout), "ious": ious, "mask": mask_to_rle(steps[-1])})
        return records

    policy = {"cot": start, "active": policy}.get(method)
    records = runner.map(work, examples, ("correct", "greedy" if policy else method, policy, task_model, config))
    return [
        Corrected(rollout_of(example, r["rollout"]), tuple(r["ious"]), r["mask"])
        for example, r in zip(examples, records, strict=True)
    ]


def proposed(
    method: str, examples: Sequence[Example], policy: VisionLanguageModel, start: VisionLanguageModel, config: Config
) -> list[Rollout]:
    """Each prepared example's regions, at most K, as the answer that proposed them; a rule says nothing."""
    if method in ("cot", "active"):
        policy = policy if method == "active" else start
        return [answer for (answer,) in sample_rollouts(policy, Segment(config), examples)[1]]
    if method == "oracle-regions":
        regions = [error_regions(Draft.of(example).error, config.regions) for example in examples]
    else:
        regions = [RULES[method](example, config.regions) for example in examples]
    return [Rollout(example, (), "", True, ParsedAnswer(()), of_one) for example, of_one in zip(examples, regions)]


def measured(found: Sequence[Corrected], budget: int, resamples: int) -> dict[str, Any]:
    """Mean IoU by zooms, gain and covered errors with their 95 % intervals over pictures, and regions per answer."""
    pictures = [one.rollout.example.image_id for one in found]
    ious = np.array([one.ious for one in found])  # (E, K + 1)
    held = [covered_error(Draft.of(one.rollout.example).error, one.rollout.regions) for one in found]
    columns = {f"mIoU@{k}": ious[:, k] for k in range(budget + 1)} | {"gain": ious[:, -1] - ious[:, 0], "covered": held}
    values: dict[str, Any] = {
        name: intervals.bootstrap_interval(column, pictures, resamples) for name, column in columns.items()
    }
    return values | {"regions": float(np.mean([len(one.rollout.regions) for one in found]))}


def both_readings(found: Sequence[Corrected], budget: int, resamples: int) -> dict[str, Any]:
    """Mean IoU after all zooms had only the strict reader been there, and the share of answers that only the lenient one read."""
    strict = [
        one._replace(rollout=strictly_read(one.rollout), ious=one.ious[:1] * (budget + 1))
        if one.rollout.action.strict
        else one
        for one in found
    ]
    return strict_columns(measured(strict, budget, resamples), [f"mIoU@{budget}"]) | shares(
        [one.rollout for one in found]
    )


# ---------------------------------------------------------------------- results for people


def table(rows: Sequence[eval_output.Row]) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, columns) as report.table wants them."""
    several = len({row["task_model"] for row in rows}) > 1
    cells = [{"method": eval_output.shown_as(row), "task_model": row["task_model"], **row["metrics"]} for row in rows]
    columns = dict.fromkeys(name for row in rows for name in row["metrics"])
    return cells, ["method", *["task_model"] * several, *columns]


def plot(rows: Sequence[eval_output.Row], size: tuple[int, int] = (640, 400)) -> Image.Image:
    """Mean IoU over zooms, a line with its 95 % intervals per row, as the paper's Fig. 3."""
    curves = {
        eval_output.label(row, rows): [
            cell
            for name, cell in row["metrics"].items()
            if name.startswith("mIoU@") and not name.endswith(eval_output.STRICT)
        ]
        for row in rows
    }
    numbers = np.array([list(curve) for curve in curves.values()])  # (rows, K + 1, 3)
    low, high = np.floor(20 * np.nanmin(numbers)) / 20, min(1.0, np.ceil(20 * np.nanmax(numbers)) / 20)
    low, budget = min(low, high - 0.05), numbers.shape[1] - 1
    left, right, top, bottom = 60, size[0] - 170, 30, size[1] - 45
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)

    def place(zooms: int, value: float) -> tuple[float, float]:
        along, up = zooms / max(1, budget), (value - low) / (high - low)
        return left + 20 + along * (right - left - 40), bottom - up * (bottom - top)

    for tick in np.arange(low, high + 1e-9, 0.05):
        y = place(0, tick)[1]
        pen.line((left, y, right, y), fill=tuple(channel + 24 for channel in PAPER))
        pen.text((left - 8, y), f"{tick:.2f}", fill=FAINT, anchor="rm")
    for zooms in range(budget + 1):
        pen.text((place(zooms, low)[0], bottom + 14), str(zooms), fill=FAINT, anchor="mm")
    pen.text(((left + right) / 2, bottom + 32), "zooms", fill=FAINT, anchor="mm")
    pen.text((left, top - 16), "mean IoU", fill=FAINT, anchor="mm")
    for number, (name, cells) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        aside = 3 * (number - len(curves) / 2)  # so that no interval hides another
        points = [(x + aside, y) for x, y in (place(k, cell.value) for k, cell in enumerate(cells))]
        pen.line(points, fill=colour, width=2)
        for k, (cell, (x, y)) in enumerate(zip(cells, points)):
            if np.isfinite(cell.low):
                pen.line((x, place(k, cell.low)[1], x, place(k, cell.high)[1]), fill=colour)
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        y = top + 20 * number + 6
        pen.line((right + 12, y, right + 32, y), fill=colour, width=3)
        pen.text((right + 38, y), name, fill=INK, anchor="lm")
    return sheet


def gallery(
    shown: Mapping[str, Sequence[Corrected]], titles: Mapping[str, str], task: Segment, count: int = 12
) -> list[tuple[Sample, ...]]:
    """The same picture in several rows (their labels with a title each), for ``count`` examples."""
    columns = []
    for label, title in titles.items():
        column = []
        for one in shown[label][:count]:
            outcome = TaskResult(as_boxes([]), np.zeros(0), mask=rle_to_mask(one.mask))
            column.append(Sample.of(one.rollout, outcome, task.reward(one.rollout, outcome), title))
        columns.append(column)
    return list(zip(*columns))


def write(folder: Path, rows: Sequence[eval_output.Row]) -> None:
    """``results.json``, ``results.md``, ``results.tex`` and a plot per benchmark, each replaced as a whole."""
    parts = []
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        own = [row for row in rows if row["benchmark"] == name]
        parts.append((*table(own), f"{name}, masks of {own[0]['n']} pictures"))
        outputs.leave_picture(folder / f"{name}-zooms.png", plot(own))
    texts = {
        "results.json": log.strict_json(eval_output.results(rows)),
        "results.md": eval_output.markdown([log.table(*part, digits=3) for part in parts]),
        "results.tex": "\n\n".join(eval_output.latex(*part) for part in parts),
    }
    for name, text in texts.items():
        outputs.leave(folder / name, (text + "\n").encode())


# ---------------------------------------------------------------------- for the two scripts


def rows_of(config: EvalConfig) -> tuple[str, ...]:
    """The rows of an evaluation. Raises ConfigError for flags that do not go with --task segment."""
    task_of(config)
    if config.methods == METHODS:
        return ROWS
    unknown = " ".join(name for name in config.methods if name not in ROWS)
    if unknown:
        raise ConfigError(f"--methods {unknown} not known with --task segment; there are: {', '.join(ROWS)}.")
    return config.methods


def passes(config: EvalConfig, policies: int) -> int:
    """How often ``evaluate`` works on every picture."""
    rows = rows_of(config)
    return len(config.task_model) * (
        len(rows) + (max(1, policies - 1) - 1) * sum(method in OF_A_CHECKPOINT for method in rows)
    )


def evaluate(
    opened: Mapping[str, Dataset],
    sources: Mapping[str, str],
    load: Callable[[str], VisionLanguageModel],
    task_models: Mapping[str, Corrector],
    config: EvalConfig,
    folder: Path,
    runner: Runner,
) -> None:
    """Every benchmark: a printed table, files in ``folder``, and a page with masks before and after.

    Checkpoints, given by title and source, are loaded one after the other.
    """
    rows: list[dict[str, Any]] = []
    start, trained = load(sources["start"]), trained_of(sources)
    for name, dataset in opened.items():
        examples = readable(dataset, folder, runner.ranks.all_gather, runner.writes)
        examples = first_masks(task_models, examples, config)  # once for all rows: a mask by SAM takes time
        made: list[tuple[dict[str, Any], list[Corrected]]] = []
        for title in trained:
            methods = [method for method in rows_of(config) if title == trained[0] or method in OF_A_CHECKPOINT]
            for method in methods:
                whose = title if len(trained) > 1 and method in OF_A_CHECKPOINT else ""
                policy = load(sources[title]) if method in OF_A_CHECKPOINT else start
                one, of_one = run(
                    name,
                    [method],
                    examples,
                    policy,
                    start,
                    task_models,
                    config,
                    config.resamples,
                    runner.say,
                    runner,
                    whose,
                )
                made += zip(one, of_one.values(), strict=True)
        made.sort(key=lambda pair: rows_of(config).index(pair[0]["method"]))  # of equals the order stays
        rows += (found := [row for row, _ in made])
        if not runner.writes:
            continue
        shown = {eval_output.label(row, found): pictures for row, pictures in made}
        write(folder, rows)
        runner.say(log.table(*table(found), f"{name} ({config.split}), masks of {found[0]['n']} pictures", digits=3))
        titles = {label: label for row, label in zip(found, shown) if row["method"] in ("cot", "active")}
        summary = [f"checkpoint: {source}" for source in config.checkpoint] + [f"data: {name} ({config.split})"]
        pairs = gallery(shown, titles, Segment(config))
        write_page(folder / f"{name}.html", f"activeo3: masks of {name}", summary, (), *table(found), pairs)
    runner.say(f"numbers: {folder / 'results.json'}; plots and pictures lie beside it")


def compare_start_and_trained(
    policy: VisionLanguageModel,
    start: VisionLanguageModel,
    examples: Sequence[Example],
    config: TrainConfig,
    say: Callable[[str], None],
    runner: Runner,
    task_model: Corrector,
) -> None:
    """The end of a run, as ``suites.compare_start_and_trained``; ``task_model`` corrects the masks."""
    folder, data = Path(config.output_dir), "+".join(config.data)
    say(f"evaluating on {len(examples)} held-out pictures ({data}, {config.eval_split})")
    rows, shown = run(
        data, ROWS, examples, policy, start, {config.task_model: task_model}, config, say=say, runner=runner
    )
    if not runner.writes:
        return
    write(folder, rows)
    summary = [
        f"policy: {config.model}",
        f"data: {data} ({config.split})",
        f"steps: {config.steps}",
        f"seed: {config.seed}",
    ]
    pairs = gallery(shown, {"cot": "before", "active": "after"}, Segment(config))
    curves = log.read_rows(folder / "metrics.jsonl")
    summary += filter(None, [lost(curves)])
    write_page(folder / "report.html", "activeo3: learning where a mask is wrong", summary, curves, *table(rows), pairs)
    say(log.table(*table(rows), f"{data}, masks of {len(examples)} pictures", digits=3))
    say(log.where(folder))
