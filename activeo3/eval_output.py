"""What an evaluation leaves behind: results.json, its tables as Markdown and LaTeX, and COCO files.

Rows come from suites.lines; those of other tables (eval_vqa.py, eval_perception.py) have ``columns`` of their own.
``predictions-<benchmark>-<row>.json`` is in COCO's results format and
``truth-<benchmark>.json`` holds the same questions as a COCO data set, so that pycocotools scores a row
without us and finds our number.
"""

from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

from activeo3 import failures, geometry, log, outputs
from activeo3.eval_tiles import SUFFIX
from activeo3.intervals import Metric
from activeo3.metric_rules import SIZES, SODA_SIZES
from activeo3.metrics import rules_of, xywh
from activeo3.terminal import one_line
from activeo3.types import Example, TaskResult

COLUMNS = (
    "method",
    "AP",
    "AP50",
    "AP_s",
    "AR",
    "AR_s",
    "region_recall",
    "swap_picture",
    "swap_query",
    "regions",
    "seconds",
)
BUDGET_COLUMNS = ("budget", "AP50", "region_recall", "regions", "calls", "tokens", "seconds")
BLACK = "AP50_black"
"""AP50 of the same task model on black crops: what does not come from looking."""

LOW_OVERLAP = {"AP": "AP10", "AP_s": "AP10_s", "AR": "AR10", "AR_s": "AR10_s"}
"""What stands in the first table instead, where a data set is scored from an IoU of 0.1 on (headlines.py)."""
FREQUENCIES = ("AP_r", "AP_c", "AP_f")
WHOLE = {
    f"{name}_whole": name
    for name in ("AP_s", "AP50_s", "AP75_s", "AP_eS", "AP_rS", "AP_gS", "AP_N", "AR_s", "AP10_s", "AR10_s")
}  # fmt: skip
"""Numbers of whole pictures that were cut into tiles (eval_tiles.py), and how they are shown."""
ITSELF = "itself"
"""The task model of a row in which the checkpoint itself answers."""

_SIZES = (*SIZES, *dict(SODA_SIZES))
BOX_COLUMNS = frozenset({
    *(f"{name}{of}{size}" for name in ("AP", "AR") for of in ("", "10", "10_95") for size in _SIZES), "AP50", "AP75", "AR50",
    *(f"{name}{size}{SUFFIX}" for name in ("AP", "AR") for size in (*_SIZES, "50", "75", "10", "50_s", "75_s", "10_s")),
    *FREQUENCIES, "region_recall", "swap_picture", "swap_query", "regions", "calls", "tokens", "seconds",
    "AP_strict", "AP50_strict", "lenient_only", "crops_lenient_only",
})  # fmt: skip
"""Every number that a row of boxes may have. Which of them it has, the rules of its data set say (metric_rules.py)."""

STRICT, LENIENT_ONLY, CROPS_LENIENT_ONLY = "_strict", "lenient_only", "crops_lenient_only"
"""Columns of eval_parsing.py: the end of a metric's name, and two shares."""

Row = Mapping[str, Any]
Table = tuple[list[dict[str, Any]], list[str]]
"""(rows, columns) as report.table wants them."""


class TableStyle(NamedTuple):
    """How tables of boxes are shown: the columns beside the method (none: COLUMNS), and their decimals."""

    columns: tuple[str, ...] = ()
    digits: int = 2


# ---------------------------------------------------------------------- rows for people


def shown_as(row: Row) -> str:
    """How a row's method is shown: with the checkpoint where several are compared."""
    return " ".join(filter(None, [row["method"], row["checkpoint"]]))


def label(row: Row, rows: Sequence[Row]) -> str:
    """A row's name among ``rows``, fit for a file: the method, the checkpoint, and the task model where there
    is more than one."""
    several = len({other["task_model"] for other in rows} - {ITSELF}) > 1
    return "-".join(filter(None, [row["method"], row["checkpoint"], row["task_model"] if several else ""]))


def first_table(rows: Sequence[Row], chosen: Sequence[str] = ()) -> Table:
    """Metrics with their intervals; rows of another kind than boxes bring ``columns`` of their own.

    Of the ``chosen`` columns those are shown that some row has; if none has any, the usual ones.
    """
    chosen = [name for name in chosen if any(name in row["metrics"] for row in rows)]
    if chosen:
        return _flat(rows, "metrics"), _columns(rows, chosen)
    if rows and "columns" in rows[0]:
        return _flat(rows, "metrics"), _columns(rows, [*rows[0]["columns"], *_of_readers(rows)])
    low = all("AP10" in row["metrics"] for row in rows)
    usual = [LOW_OVERLAP.get(name, name) if low else name for name in COLUMNS[1:]]
    return _flat(rows, "metrics"), _columns(rows, [*usual, *_of_readers(rows)])


def _of_readers(rows: Sequence[Row]) -> list[str]:
    """The columns of eval_parsing.py, where some row is read leniently."""
    if not any(row.get("parser") == "lenient" for row in rows):
        return []
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    return [name for name in names if name.endswith((STRICT, LENIENT_ONLY))]


def second_table(rows: Sequence[Row]) -> Table:
    """Sensing apart from task, and the control with black crops; for rows with ``columns`` of their own, what
    went wrong by its name."""
    if rows and "columns" in rows[0]:
        wrong = list(rows[0]["failures"])
        return (_flat(rows, "failures"), _columns(rows, wrong)) if wrong else ([], [])
    black = [BLACK] if any(BLACK in row["failures"] for row in rows) else []
    return _flat(rows, "failures"), _columns(rows, [*failures.COLUMNS, *black])


def frequency_table(rows: Sequence[Row]) -> Table:
    """AP of rare, common and frequent categories; no columns where categories have no frequency."""
    known = any(name in row["metrics"] for row in rows for name in FREQUENCIES)
    return _flat(rows, "metrics"), _columns(rows, FREQUENCIES) if known else []


def whole_table(rows: Sequence[Row]) -> Table:
    """Numbers of whole pictures; no columns where pictures were not cut into tiles."""
    known = any(name in row["metrics"] for row in rows for name in WHOLE)
    cells = [row | {shown: row.get(name) for name, shown in WHOLE.items()} for row in _flat(rows, "metrics")]
    return cells, _columns(rows, list(WHOLE.values())) if known else []


def _flat(rows: Sequence[Row], part: str) -> list[dict[str, Any]]:
    return [{"method": shown_as(row), "task_model": row["task_model"], **row[part]} for row in rows]


def _columns(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    names = {row["task_model"] for row in rows}
    named = len(names) > 1 or any(
        name.startswith("mllm-") for name in names
    )  # another than the start policy: say which
    return ["method", *["task_model"] * named, *columns]


def titled(
    rows: Sequence[Row], curves: Sequence[Row] = (), chosen: Sequence[str] = ()
) -> list[tuple[str, list[dict[str, Any]], list[str]]]:
    """(title, rows, columns) of the tables of every benchmark; ``curves`` are the rows of all budgets, ``chosen``
    the columns of the first table."""
    found = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        own = [row for row in rows if row["benchmark"] == benchmark]
        found.append((f"{benchmark}, {own[0]['n']} questions", *first_table(own, chosen)))
        second = "answers that cannot be read" if "columns" in own[0] else "sensing apart from task"
        found.append((f"{benchmark}, {second}", *second_table(own)))
        found.append((f"{benchmark}, AP by how often a category occurs", *frequency_table(own)))
        found.append((f"{benchmark}, tiles merged back into whole pictures", *whole_table(own)))
        of_curve = [row for row in curves if row["benchmark"] == benchmark]
        found.append((f"{benchmark}, what a budget of regions buys", *budget_table(of_curve)))
    return [(title, cells, columns) for title, cells, columns in found if cells and columns]


def budget_table(rows: Sequence[Row]) -> Table:
    """Success and cost of every method at every budget of regions."""
    cells = [
        {"method": shown_as(row), "task_model": row["task_model"], "budget": row["budget"], **row["metrics"]}
        for row in rows
    ]
    return cells, _columns(rows, BUDGET_COLUMNS)


def markdown(tables: Sequence[str]) -> str:
    """Tables as the text of a Markdown file, in which no name becomes a tag, a picture or a link.

    >>> print(markdown(["| <script> | ![a](http://b) |"]))
    | &lt;script> | ![a]&#40;http://b) |
    """
    return "\n\n".join(tables).replace("<", "&lt;").replace("](", "]&#40;")


def latex(rows: Sequence[Row], columns: Sequence[str], title: str, digits: int = 2) -> str:
    """A LaTeX table (of the package booktabs) with the same cells as report.table.

    >>> print(latex([{"method": "a_b", "AP": 0.414}], ["method", "AP"], "50 % more"))
    \\begin{table}
    \\caption{50 \\% more}
    \\begin{tabular}{lr}
    \\toprule
    method & AP \\\\
    \\midrule
    a\\_b & 0.41 \\\\
    \\bottomrule
    \\end{tabular}
    \\end{table}
    """
    sides = "".join("r" if all(log.is_number(row.get(name)) for row in rows) else "l" for name in columns)
    lines = [[escaped(name) for name in columns]]
    lines += [[escaped(log.figure(row.get(name), digits)) for name in columns] for row in rows]
    head, *body = [" & ".join(cells) + r" \\" for cells in lines]
    return "\n".join([
        r"\begin{table}", rf"\caption{{{escaped(title)}}}", rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ])  # fmt: skip


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", log.MISSING: "--"}
    return "".join(special.get(character, character) for character in one_line(text))


# ---------------------------------------------------------------------- rows for programs


def results(rows: Sequence[Row], curves: Sequence[Row] = ()) -> dict[str, Any]:
    """What results.json holds: values under their names, intervals under ``intervals``.

    ``budgets``, if several were asked for, has the rows of all of them.
    """
    return {"rows": _plain(rows)} | ({"budgets": _plain(curves)} if curves else {})


def _plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    written = []
    for row in rows:
        cells = {**row["metrics"], **row["failures"]}
        spans = {name: [cell.low, cell.high] for name, cell in cells.items() if isinstance(cell, Metric)}
        names = (
            "benchmark",
            "method",
            "checkpoint",
            "task_model",
            "budget",
            "n",
            "parser",
            "categories",
            "l2_categories",
        )
        named = {key: row[key] for key in names if key in row}
        written.append(named | {part: _values(row[part]) for part in ("metrics", "failures")} | {"intervals": spans})
    return written


def _values(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cell.value if isinstance(cell, Metric) else cell for name, cell in cells.items()}


def write_results(
    folder: Path, rows: Sequence[Row], curves: Sequence[Row] = (), style: TableStyle = TableStyle()
) -> None:
    """``results.json``, ``results.md`` and ``results.tex``, each replaced as a whole."""
    parts = titled(rows, curves, style.columns)
    texts = {
        "results.json": log.strict_json(results(rows, curves)),
        "results.md": markdown([log.table(cells, columns, title, style.digits) for title, cells, columns in parts]),
        "results.tex": "\n\n".join(latex(cells, columns, title, style.digits) for title, cells, columns in parts),
    }
    for name, text in texts.items():
        outputs.leave(folder / name, (text + "\n").encode())


# ---------------------------------------------------------------------- COCO's formats


def truth(examples: Sequence[Example]) -> dict[str, Any]:
    """The questions as a COCO data set: pictures, categories, and the true boxes that were asked about.

    Of a federated set a picture also names what it was checked for, so that LVISEval runs from these files alone.
    A tile also says where it is from: ``source_id``, the picture's id in the data set, and its ``window`` x1, y1,
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
    pictures = {example.image_id: _picture(example) for example in examples}
    categories = {_ids(example)["category_id"]: _category(example) for example in examples}
    if rules_of(examples).federated:
        pictures = {
            key: row | _checked_for([e for e in examples if e.image_id == key]) for key, row in pictures.items()
        }
    return {"images": list(pictures.values()), "categories": list(categories.values()), "annotations": annotations}


def _category(example: Example) -> dict[str, Any]:
    """An entry of the list of categories; LVIS's say how often they occur."""
    row = {"id": _ids(example)["category_id"], "name": example.query}
    return row | ({"frequency": example.frequency} if example.frequency else {})


def _checked_for(examples: Sequence[Example]) -> dict[str, list[int | str]]:
    """LVIS's two lists of a picture, of the categories that it was asked for: those that are known to be absent, and
    those of which not every instance has a box."""
    absent = (_ids(example)["category_id"] for example in examples if not len(example.boxes_px))
    partly = (_ids(example)["category_id"] for example in examples if not example.exhaustive)
    return {"neg_category_ids": sorted(absent), "not_exhaustive_category_ids": sorted(partly)}


def _ids(example: Example) -> dict[str, int | str]:
    """The ids that the picture and the category have in the user's own file (data_io.py)."""
    source = example.source
    return {
        "image_id": example.image_id if source.image_id is None else source.image_id,
        "category_id": example.category_id if source.category_id is None else source.category_id,
    }


def _picture(example: Example) -> dict[str, Any]:
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


def write_coco(folder: Path, name: str, content: Any) -> None:
    """One COCO file, ``<name>.json``, replaced as a whole."""
    outputs.leave(folder / f"{name}.json", (log.strict_json(content) + "\n").encode())
