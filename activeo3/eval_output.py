"""What an evaluation leaves behind: results.json, tables as text, Markdown and LaTeX, a file with the records of every
row, and a page.

results.json                        {"rows": [...]}: benchmark, setting, n, parser, metrics, and their 95 % intervals;
                                    "prompts": the templates of the user's, if any (--prompt_file)
results.md, results.tex             the tables of all benchmarks
answers-<benchmark>-<row>.json      the records of a row: what was asked, answered, found, and what it cost
<benchmark>.html                    its tables, and the answers of several rows about the same images side by side
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from tabulate import tabulate

from activeo3 import eval_glossary, geometry, log, outputs
from activeo3.eval_core import ITSELF, Benchmark, Row
from activeo3.intervals import Metric, value_of
from activeo3.metrics import rules_of, xywh
from activeo3.terminal import columns as width_of
from activeo3.terminal import one_line
from activeo3.types import Example, TaskResult

WIDTH, OF_ONE_SIZE = 80, ("_s", "_m", "_l")  # columns of a terminal; ends of metrics of a size class
BUDGET_COLUMNS = ("region_recall", "regions", "calls", "tokens", "seconds")


class Finished(NamedTuple):
    """A benchmark with its rows."""

    benchmark: Benchmark
    split: str
    rows: list[Row]

    @property
    def main(self) -> list[Row]:
        """The rows of the tables: those of the main budget."""
        return [row for row in self.rows if row.setting.regions in (0, self.benchmark.main_budget)]


class Table(NamedTuple):
    """A table as log.table takes it; ``chosen``: its columns are those of ``--columns``."""

    title: str
    cells: list[dict[str, Any]]
    columns: list[str]
    digits: int
    chosen: bool = False


# ---------------------------------------------------------------------- rows for people


def label(row: Row, rows: Sequence[Row]) -> str:
    """A row's name among ``rows``, fit for a file: its method, and what tells it from the others of that method."""
    setting = row.setting
    policies = {other.setting.policy for other in rows if other.setting.method == setting.method}
    task_models = {other.setting.task_model for other in rows} - {ITSELF}
    parts = [setting.method, setting.policy * (len(policies) > 1), setting.task_model * (len(task_models) > 1)]
    return "-".join(filter(None, [*parts, "blind" * setting.blind]))


def labels(one: Finished) -> dict[str, Row]:
    """All rows by their names; those of another budget than the main one end in it."""
    main = {label(row, one.rows): row for row in one.main}
    others = [row for row in one.rows if row.setting not in {row.setting for row in one.main}]
    return main | {f"{label(row, one.rows)}-{row.setting.regions}": row for row in others}


def table(title: str, rows: Sequence[Row], columns: Sequence[str], digits: int) -> Table:
    """The settings as far as they differ, and those of the metrics that some row has; no columns if there are none."""
    settings = [asdict(row.setting) | {"blind": "yes" * row.setting.blind} for row in rows]
    cells = [{("budget" if name == "regions" else name): value for name, value in one.items()} for one in settings]
    differ = {name: {one[name] for one in cells} for name in ("policy", "task_model", "budget", "blind")}
    differ["budget"] -= {0}
    names = [name for name, values in differ.items() if len(values) > 1]
    if "task_model" not in names and any(one["task_model"].startswith("mllm-") for one in cells):
        names.append("task_model")  # another than the start policy: say which
    known = [name for name in dict.fromkeys(columns) if any(name in row.metrics for row in rows)]
    cells = [{name: one[name] for name in ("method", *names)} | row.metrics for one, row in zip(cells, rows)]
    return Table(title, cells, ["method", *names, *known] if known else [], digits)


def tables(one: Finished) -> list[Table]:
    """All tables of a benchmark that have columns, the headline table first."""
    name, digits = one.benchmark.name, one.benchmark.digits
    titles = one.benchmark.tables(one.main)
    found = [table(f"{name}, {title}", one.main, columns, digits) for title, columns in titles.items()]
    found[0] = found[0]._replace(
        title=f"{name} ({one.split}), {max(row.n for row in one.rows)} questions",
        chosen=not {*one.benchmark.config.columns}.isdisjoint(found[0].columns),
    )
    if len(one.rows) > len(one.main):
        columns = (one.benchmark.columns[0], *BUDGET_COLUMNS)
        found.append(table(f"{name}, what a budget of regions buys", one.rows, columns, digits))
    return [part for part in found if part.columns]


def as_text(one: Table) -> str:
    return log.table(one.cells, one.columns, one.title, one.digits)


def as_console(one: Table, explained: bool = False) -> str:
    """The table for a terminal of WIDTH columns: an interval only at the first metric, and what does not fit left out,
    single sizes first. Columns that the user chose are all there.

    ``explained``: with a line below for each kind of row that says what it is.
    """
    metrics = [name for name in one.columns if any(isinstance(row.get(name), Metric) for row in one.cells)]
    cells = [{name: _short(cell, name in metrics[:1]) for name, cell in row.items()} for row in one.cells]
    shown = [name for name in one.columns if any(log.figure(row.get(name)) not in ("", log.MISSING) for row in cells)]
    columns = one.columns if one.chosen else shown
    text = log.table(cells, columns, one.title, one.digits)
    while not one.chosen and len(columns) > 2 and max(map(width_of, text.splitlines())) > WIDTH:
        spare = next((name for name in reversed(columns) if name.endswith(OF_ONE_SIZE)), columns[-1])
        columns = [name for name in columns if name != spare]
        text = log.table(cells, columns, one.title, one.digits)
    lines = [text, ""] if explained else [text]
    methods = dict.fromkeys(str(row.get("method")) for row in one.cells) if explained else ()
    room = max(map(len, methods), default=0)
    lines += [f"  {name:<{room}}  {words}" for name in methods if (words := eval_glossary.meaning(name))]
    return "\n".join(lines + (["  all columns, with their intervals: results.md"] if explained else []))


def say_tables(one: Finished, say: Callable[[str], None]) -> None:
    """The tables of a benchmark on the console; the first one explains its rows."""
    for place, part in enumerate(tables(one)):
        say("\n" + as_console(part, explained=place == 0))


def _short(cell: Any, whole: bool) -> Any:
    """A cell without its interval."""
    return cell if whole else value_of(cell)


def as_markdown(parts: Sequence[Table]) -> str:
    """Tables as the text of a Markdown file, in which no name becomes a tag, an image or a link."""
    return log.escape_markdown("\n\n".join(map(as_text, parts)))


def as_latex(one: Table) -> str:
    """A LaTeX table (of the package booktabs) with the same cells."""
    numbers = [all(log.is_number(row.get(name)) for row in one.cells) for name in one.columns]
    body = [[one_line(log.figure(row.get(name), one.digits)) for name in one.columns] for row in one.cells]
    text = tabulate(
        [[cell.replace(log.MISSING, "--") for cell in row] for row in body], one.columns, "latex_booktabs",
        disable_numparse=True,
        colalign=["right" if number else "left" for number in numbers],
    )  # fmt: skip
    caption = tabulate([[one_line(one.title)]], tablefmt="latex").splitlines()[2].removesuffix(r"\\").strip()
    return f"\\begin{{table}}\n\\caption{{{caption}}}\n{text}\n\\end{{table}}"


# ---------------------------------------------------------------------- files


def results(rows: Sequence[Row]) -> dict[str, Any]:
    """What results.json holds: values under their names, intervals under ``intervals``."""
    return {
        "rows": [
            {"benchmark": row.benchmark, "setting": asdict(row.setting), "n": row.n, "parser": row.parser}
            | {"metrics": {name: value_of(cell) for name, cell in row.metrics.items()}}
            | {
                "intervals": {
                    name: [cell.low, cell.high] for name, cell in row.metrics.items() if isinstance(cell, Metric)
                }
            }
            for row in rows
        ]
    }


def write_results(folder: Path, finished: Sequence[Finished]) -> None:
    """``results.json``, ``results.md`` and ``results.tex`` of all benchmarks so far, each replaced as a whole."""
    parts = [part for one in finished for part in tables(one)]
    own = finished[0].benchmark.config.words.own if finished else {}
    found = results([row for one in finished for row in one.rows]) | ({"prompts": dict(own)} if own else {})
    texts = {
        "results.json": log.strict_json(found),
        "results.md": as_markdown(parts),
        "results.tex": "\n\n".join(map(as_latex, parts)),
    }
    for name, text in texts.items():
        outputs.leave(folder / name, (text + "\n").encode())


def write_json(path: Path, content: Any) -> None:
    """One JSON file, replaced as a whole."""
    outputs.leave(path, (log.strict_json(content) + "\n").encode())


def write_records(folder: Path, one: Finished, examples: Sequence[Example]) -> str:
    """Write the records of every row, and the files of the benchmark's own; returns what is to be said of those."""
    for name, row in labels(one).items():
        write_json(folder / f"answers-{one.benchmark.name}-{name}.json", row.records)
    return one.benchmark.write(folder, examples, labels(one))


# ---------------------------------------------------------------------- COCO's formats


def truth(examples: Sequence[Example]) -> dict[str, Any]:
    """The questions as a COCO data set: images, categories, and the true boxes that were asked about.

    Of a federated set a image also names what it was checked for, so that LVISEval runs from these files alone.
    A tile also says where it is from: ``source_id``, the image's id in the data set, and its ``window`` x1, y1,
    x2, y2 in it; boxes are in pixels of the tile.
    """
    annotations = []
    for example in examples:
        boxes = geometry.as_boxes(example.boxes_px)
        areas = geometry.area(boxes) if example.areas is None else example.areas
        for box, area, asked in zip(xywh(boxes), np.asarray(areas).tolist(), example.asked_for.tolist(), strict=True):
            annotations.append(
                {"id": len(annotations) + 1} | _ids(example) | {"bbox": box, "area": area, "iscrowd": int(not asked)}
            )
    images = {example.image_id: _coco_image(example) for example in examples}
    categories = {_ids(example)["category_id"]: _category(example) for example in examples}
    if rules_of(examples).federated:
        images = {key: row | _checked_for([e for e in examples if e.image_id == key]) for key, row in images.items()}
    return {"images": list(images.values()), "categories": list(categories.values()), "annotations": annotations}


def _category(example: Example) -> dict[str, Any]:
    """An entry of the list of categories; LVIS's say how often they occur."""
    row = {"id": _ids(example)["category_id"], "name": example.query}
    return row | ({"frequency": example.frequency} if example.frequency else {})


def _checked_for(examples: Sequence[Example]) -> dict[str, list[int | str]]:
    """LVIS's two lists of a image, of the categories that it was asked for: those that are known to be absent, and
    those of which not every instance has a box."""
    absent = (_ids(example)["category_id"] for example in examples if not len(example.boxes_px))
    partly = (_ids(example)["category_id"] for example in examples if not example.exhaustive)
    return {"neg_category_ids": sorted(absent), "not_exhaustive_category_ids": sorted(partly)}


def _ids(example: Example) -> dict[str, int | str]:
    """The ids that the image and the category have in the user's own file (data_io.py)."""
    source = example.source
    return {
        "image_id": example.image_id if source.image_id is None else source.image_id,
        "category_id": example.category_id if source.category_id is None else source.category_id,
    }


def _coco_image(example: Example) -> dict[str, Any]:
    """An entry of the list of images."""
    width, height = example.size_px
    row: dict[str, Any] = {"id": _ids(example)["image_id"], "width": width, "height": height}
    if example.source.file_name:
        row["file_name"] = example.source.file_name
    if example.source.window_px:
        row |= {"source_id": example.source.whole_id, "window": list(example.source.window_px)}
    return row


def predictions(examples: Sequence[Example], outcomes: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """All detections in COCO's results format, best first.

    Equal scores rank here in the order of examples and boxes; COCO would rank them by image id. So every
    score that is not below the one before it is lowered to the next smaller number.

    COCO's tools cannot read an empty list. Where nothing at all was found it therefore holds one box without sides
    and with score 0, which finds nothing and changes no number.
    """
    found = [
        _ids(example) | {"bbox": box, "score": score}
        for example, outcome in zip(examples, outcomes, strict=True)
        for box, score in zip(xywh(outcome.boxes_px), outcome.scores.tolist(), strict=True)
    ]
    if examples and not found:
        return [_ids(examples[0]) | {"bbox": [0.0] * 4, "score": 0.0}]
    found.sort(key=lambda one: -one["score"])
    before = np.inf
    for one in found:
        one["score"] = before = float(min(one["score"], np.nextafter(before, -np.inf)))
    return found
