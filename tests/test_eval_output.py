"""eval_output.py: other programs read the same numbers, people read the same cells in Markdown and LaTeX."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coco_reference import STATS, scored_by_pycocotools, world
from PIL import Image
from scripted import finished

from activeo3 import eval_detection, eval_output, metrics, outputs
from activeo3.config import ConfigError
from activeo3.eval_core import ITSELF, Row, Setting
from activeo3.eval_detection import headlines
from activeo3.eval_output import Table
from activeo3.geometry import as_boxes
from activeo3.intervals import Metric
from activeo3.metric_rules import LVIS, SODA_A
from activeo3.types import Example, SourceImage, TaskResult, WholeImage

NAN = float("nan")


def row(method: str = "grid", task_model: str = "mllm", policy: str = "", regions: int = 3, blind: bool = False) -> Row:
    values = {
        "AP": Metric(0.5, 0.4, 0.6),
        "AP_s": Metric(NAN, NAN, NAN),
        "swap_query": None,
        "regions": 3.0,
        "recall": 0.25,
        "TP": 2,
    }
    return Row("toys", Setting(method, policy, task_model, regions, blind), 7, values, [])


@pytest.mark.parametrize("scores", ["ties", "few", "real"])
@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_finds_our_numbers_in_our_files(tmp_path: Path, scores: str, seed: int) -> None:
    examples, outcomes = world(scores, seed)
    eval_output.write_json(tmp_path / "truth.json", eval_output.truth(examples))
    eval_output.write_json(tmp_path / "predictions.json", eval_output.predictions(examples, outcomes))
    stats = scored_by_pycocotools(tmp_path, "truth", "predictions")
    ours = metrics.detection_metrics(examples, outcomes)
    assert 0.1 < ours["AP"] < 0.9
    for name, place in STATS.items():
        assert stats[place] == pytest.approx(ours[name], abs=1e-9), name


def test_broken_ties_stay_where_they_were() -> None:
    examples, outcomes = world("ties", 0)
    written = eval_output.predictions(examples, outcomes)
    values = [one["score"] for one in written]
    assert (
        all(later < earlier for earlier, later in zip(values, values[1:]))
        and 1 - 1e-12 < min(values) <= max(values) == 1
    )
    flat = np.concatenate([outcome.boxes_px for outcome in outcomes])
    assert [one["bbox"][:2] for one in written] == flat[:, :2].tolist()
    real = eval_output.predictions(*world("real", 0))
    assert [one["score"] for one in real] == sorted((s for o in world("real", 0)[1] for s in o.scores), reverse=True)


def test_the_truth_is_the_questions() -> None:
    image = Image.new("RGB", (64, 48))
    examples = [
        Example("a", image, "cup", as_boxes([[1, 2, 4, 8], [0, 0, 64, 48]]), 7, 3, np.array([False, True])),
        Example("b", image, "dog", as_boxes([]), 7, 5),
    ]
    assert eval_output.truth(examples) == {
        "images": [{"id": 7, "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "cup"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 6], "area": 18, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 64, 48], "area": 64 * 48, "iscrowd": 1},
        ],
    }


@pytest.mark.parametrize("size", [1.0, 0.05])
def test_pycocotools_reads_predictions_without_any_detection(tmp_path: Path, size: float) -> None:
    """And finds our numbers: zeros, or nothing where no true box of the size is."""
    examples = [replace(e, boxes_px=e.boxes_px * size, areas=None) for e in world("real", 1)[0]]
    outcomes = [TaskResult(np.zeros((0, 4)), np.zeros(0))] * len(examples)
    eval_output.write_json(tmp_path / "truth.json", eval_output.truth(examples))
    eval_output.write_json(tmp_path / "predictions.json", eval_output.predictions(examples, outcomes))
    stats, ours = scored_by_pycocotools(tmp_path, "truth", "predictions"), metrics.detection_metrics(examples, outcomes)
    assert ours["AP"] == 0 and np.isnan(ours["AP_l"]) == (size < 1)
    for name, place in STATS.items():
        assert stats[place] == (-1 if np.isnan(ours[name]) else ours[name]), name
    assert eval_output.predictions([], []) == []


# ---------------------------------------------------------------------- tables


def test_results_are_plain_numbers_with_intervals_beside_them(tmp_path: Path) -> None:
    eval_output.write_results(tmp_path, [finished([row()])])
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "rows": [
            {
                "benchmark": "toys",
                "setting": {"method": "grid", "policy": "", "task_model": "mllm", "regions": 3, "blind": False},
                "n": 7,
                "parser": "strict",
                "metrics": {"AP": 0.5, "AP_s": None, "swap_query": None, "regions": 3.0, "recall": 0.25, "TP": 2},
                "intervals": {"AP": [0.4, 0.6], "AP_s": [None, None]},
            }
        ]
    }


def test_results_are_written_whole_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for rows in ([row()], [row(), row("active", policy="trained")]):
        eval_output.write_results(folder, [finished(rows)])
        assert len(json.loads((folder / "results.json").read_text())["rows"]) == len(rows)
        for name in ("results.md", "results.tex"):
            assert (folder / name).read_text().count("active") == 2 * (len(rows) - 1)  # in both tables
    assert sorted(path.name for path in folder.iterdir()) == [outputs.LIST, "results.json", "results.md", "results.tex"]


def test_a_row_is_named_by_what_tells_it_from_the_others() -> None:
    names = lambda *rows, **flags: list(eval_output.labels(finished(rows, **flags)))  # noqa: E731
    assert names(row(), row("active", policy="trained")) == ["grid", "active"]
    assert names(row(), row(task_model="oracle")) == ["grid-mllm", "grid-oracle"]
    assert names(row("active"), row("answer", task_model=ITSELF)) == ["active", "answer"]
    assert names(row("active", policy="a"), row("active", policy="b")) == ["active-a", "active-b"]
    assert names(row(), row(blind=True)) == ["grid", "grid-blind"]
    assert names(row(regions=1), row(), row(regions=5), budgets=(1, 5)) == ["grid", "grid-1", "grid-5"]


def test_a_column_of_the_setting_is_shown_where_rows_differ() -> None:
    columns = lambda *rows: eval_output.tables(finished(rows))[0].columns  # noqa: E731
    assert columns(row(), row("direct", regions=0)) == ["method", "AP", "AP_s", "swap_query", "regions"]
    assert columns(row(), row(task_model="oracle"))[:2] == ["method", "task_model"]
    assert columns(row("active", policy="a"), row("active", policy="b"))[:2] == ["method", "policy"]
    assert columns(row(), row(blind=True))[:2] == ["method", "blind"]
    assert columns(row(task_model="mllm-large"))[:2] == ["method", "task_model"]  # another than the start policy


def test_every_benchmark_has_its_tables(tmp_path: Path) -> None:
    several = [finished([row(), row("active")]), finished([row()], name="photos")]
    eval_output.write_results(tmp_path, several)
    titles = [line for line in (tmp_path / "results.md").read_text().splitlines() if line.startswith("###")]
    assert titles == [
        "### toys (test), 7 questions", "### toys, sensing apart from task",
        "### photos (test), 7 questions", "### photos, sensing apart from task",
    ]  # fmt: skip


def test_latex_is_balanced_escaped_and_has_every_cell(tmp_path: Path) -> None:
    eval_output.write_results(tmp_path, [finished([row("a_b & 50%"), row("cot")], name="toys_#1")])
    text = (tmp_path / "results.tex").read_text()
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 2
    cells = [
        [cell.strip(" \\") for cell in re.split(r"(?<!\\)&", line)] for line in text.splitlines() if "0.50 [" in line
    ]
    assert cells == [[name, "0.50 [0.40, 0.60]", "--", "--", "3.00"] for name in (r"a\_b \& 50\%", "cot")]
    assert r"\caption{toys\_\#1 (test), 7 questions}" in text and "–" not in text


def test_latex_escapes_every_special_character() -> None:
    text = eval_output.as_latex(Table("a\\b~c^d{e}$", [{"m": "a\\b~c^d{e}$"}], ["m"], 2))
    assert text.count(r"a\textbackslash{}b\textasciitilde{}c\^{}d\{e\}\$") == 2


PAPER = ("AP_s", "AR_s", "AP_m", "AR_m", "AP_l", "AR_l")


def test_the_columns_of_the_paper_are_a_choice_in_text_markdown_and_latex(tmp_path: Path) -> None:
    """The second opinion are COCOeval's twelve numbers, to the three decimals that are asked for."""
    examples, outcomes = world("real", 4)
    mine = row("active")._replace(metrics=metrics.evaluate_detections(examples, outcomes, resamples=0))
    one = finished([mine], columns=(*PAPER, "AP10_s"), digits=3)
    eval_output.write_results(tmp_path, [one])
    eval_output.write_json(tmp_path / "truth.json", eval_output.truth(examples))
    eval_output.write_json(tmp_path / "predictions.json", eval_output.predictions(examples, outcomes))
    stats = scored_by_pycocotools(tmp_path, "truth", "predictions")
    numbers = [f"{stats[STATS[name]]:.3f}" for name in PAPER]
    text, latex = (tmp_path / "results.md").read_text(), (tmp_path / "results.tex").read_text()
    assert eval_output.tables(one)[0].columns == ["method", *PAPER]  # what no row has is no column
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["method", *PAPER] in cells and ["active", *numbers] in cells
    rows = [[cell.strip(" \\") for cell in line.split("&")] for line in latex.splitlines()]
    assert ["active", *numbers] in rows and ["method", *(name.replace("_", r"\_") for name in PAPER)] in rows
    usual, other = finished([row()]), finished([row()], columns=("AR_rS",))
    assert eval_output.tables(usual) == eval_output.tables(other)  # a benchmark without any: as usual


def test_a_column_that_cannot_be_is_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match="^--columns AP_x: for toys there are AP, AP50, .* and what else results.json has.$"
    ):
        finished([], columns=("AP", "AP_x"))


def test_every_number_that_a_row_of_boxes_has_may_be_a_column() -> None:
    """Of SODA's tiles, merged and not, and of LVIS: no name is missing in the list that --columns is checked by."""
    window = (0, 0, 640, 560)
    examples, outcomes = world("real", 0)
    for rules in (SODA_A, LVIS):
        whole = WholeImage(examples[0].boxes_px, examples[0].areas, examples[0].crowd, 1)
        source = SourceImage("a", window_px=window, whole=whole)
        tiles = [
            replace(e, rules=rules, frequency="r", source=replace(source, whole_id=k)) for k, e in enumerate(examples)
        ]
        named = {**metrics.evaluate_detections(tiles, outcomes, resamples=0), **headlines(tiles, outcomes, 0)}
        assert len(named) > 30 and set(named) <= {*eval_detection.COLUMNS, *eval_detection.KNOWN_COLUMNS}
