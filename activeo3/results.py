"""What an evaluation leaves behind: results.json, its tables as Markdown and LaTeX, and COCO files.

Rows come from suites.run, or from measures.compare with ``columns`` of their own and no ``failures``. ``predictions-<benchmark>-<method>.json`` is in COCO's results format and
``truth-<benchmark>.json`` holds the same questions as a COCO data set, so that pycocotools scores a row
without us and finds our number.
"""

from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from activeo3 import failures, geometry, report
from activeo3.metrics import Metric, xywh
from activeo3.schema import Example, Outcome

COLUMNS = ("method", "AP", "AP50", "AP_s", "AR", "AR_s", "region_recall", "swap_picture", "swap_query", "regions", "seconds")
BLACK = "AP50_black"
"""AP50 of the same task model on black crops: what does not come from looking."""

Row = Mapping[str, Any]


# ---------------------------------------------------------------------- rows for people


def label(row: Row, rows: Sequence[Row]) -> str:
    """A row's name among ``rows``: the method, and the task model where there is more than one."""
    several = len({other["task_model"] for other in rows}) > 1
    return f"{row['method']}-{row['task_model']}" if several else row["method"]


def first_table(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, columns) as report.table wants them: metrics with their intervals."""
    return _flat(rows, "metrics"), _columns(rows, rows[0].get("columns", COLUMNS[1:]) if rows else COLUMNS[1:])


def second_table(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, columns) as report.table wants them: sensing apart from task, and the control with black crops."""
    black = [BLACK] if any(BLACK in row["failures"] for row in rows) else []
    return _flat(rows, "failures"), _columns(rows, [*failures.COLUMNS, *black])


def _flat(rows: Sequence[Row], part: str) -> list[dict[str, Any]]:
    return [{"method": row["method"], "task_model": row["task_model"], **row[part]} for row in rows]


def _columns(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    several = len({row["task_model"] for row in rows}) > 1
    return ["method", *["task_model"] * several, *columns]


def titled(rows: Sequence[Row]) -> list[tuple[str, list[dict[str, Any]], list[str]]]:
    """(title, rows, columns) of both tables of every benchmark."""
    found = []
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        own = [row for row in rows if row["benchmark"] == name]
        found.append((f"{name}, {own[0]['n']} questions", *first_table(own)))
        if any(row["failures"] for row in own):
            found.append((f"{name}, sensing apart from task", *second_table(own)))
    return found


def latex(rows: Sequence[Row], columns: Sequence[str], title: str) -> str:
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
    sides = "".join("r" if all(report.is_number(row.get(name)) for row in rows) else "l" for name in columns)
    lines = [[escaped(name) for name in columns]]
    lines += [[escaped(report.figure(row.get(name))) for name in columns] for row in rows]
    head, *body = [" & ".join(cells) + r" \\" for cells in lines]
    return "\n".join([
        r"\begin{table}", rf"\caption{{{escaped(title)}}}", rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ])  # fmt: skip


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", report.MISSING: "--"}
    return "".join(special.get(character, character) for character in text)


# ---------------------------------------------------------------------- rows for programs


def results(rows: Sequence[Row]) -> dict[str, Any]:
    """What results.json holds: values under their names, intervals under ``intervals``."""
    written = []
    for row in rows:
        cells = {**row["metrics"], **row["failures"]}
        spans = {name: [cell.low, cell.high] for name, cell in cells.items() if isinstance(cell, Metric)}
        named = {name: row[name] for name in ("benchmark", "method", "task_model", "n")}
        written.append(named | {part: _values(row[part]) for part in ("metrics", "failures")} | {"intervals": spans})
    return {"rows": written}


def _values(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cell.value if isinstance(cell, Metric) else cell for name, cell in cells.items()}


def write_results(folder: Path, rows: Sequence[Row]) -> None:
    """``results.json``, ``results.md`` and ``results.tex``, each replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = titled(rows)
    texts = {
        "results.json": report.strict_json(results(rows)),
        "results.md": "\n\n".join(report.table(cells, columns, title) for title, cells, columns in parts),
        "results.tex": "\n\n".join(latex(cells, columns, title) for title, cells, columns in parts),
    }
    for name, text in texts.items():
        report.replace_file(folder / name, (text + "\n").encode())


# ---------------------------------------------------------------------- COCO's formats


def truth(examples: Sequence[Example]) -> dict[str, Any]:
    """The questions as a COCO data set: pictures, categories, and the true boxes that were asked about."""
    annotations = []
    for example in examples:
        boxes = geometry.as_boxes(example.boxes_px)
        areas = example.fields.get("areas", geometry.area(boxes))
        for box, area, asked in zip(xywh(boxes), np.asarray(areas).tolist(), example.asked_for.tolist(), strict=True):
            own = {"id": len(annotations) + 1, "image_id": example.image_id, "category_id": example.category_id}
            annotations.append(own | {"bbox": box, "area": area, "iscrowd": int(not asked)})
    pictures = {example.image_id: example.size_px for example in examples}
    names = {example.category_id: example.query for example in examples}
    return {
        "images": [{"id": key, "width": width, "height": height} for key, (width, height) in pictures.items()],
        "categories": [{"id": key, "name": name} for key, name in names.items()],
        "annotations": annotations,
    }


def predictions(examples: Sequence[Example], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """All detections in COCO's results format, best first.

    Equal scores rank here in the order of examples and boxes; COCO would rank them by image id. So every
    score that is not below the one before it is lowered to the next smaller number.
    """
    found = [
        {"image_id": example.image_id, "category_id": example.category_id, "bbox": box, "score": score}
        for example, outcome in zip(examples, outcomes, strict=True)
        for box, score in zip(xywh(outcome.boxes_px), outcome.scores.tolist(), strict=True)
    ]
    found.sort(key=lambda one: -one["score"])
    before = np.inf
    for one in found:
        one["score"] = before = float(min(one["score"], np.nextafter(before, -np.inf)))
    return found


def write_coco(folder: Path, name: str, content: Any) -> None:
    """One COCO file, ``<name>.json``, replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    report.replace_file(folder / f"{name}.json", (report.strict_json(content) + "\n").encode())
