"""eval_tiles.py: tiles merged into whole pictures, held to naive merging and to COCOeval with the authors' size
classes."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from data_folders import driving_set
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scripted import finished

from activeo3 import eval_output, eval_tiles, geometry
from activeo3.data import open_dataset
from activeo3.eval_core import Row, Setting
from activeo3.eval_detection import WHOLE, headlines
from activeo3.eval_tiles import merged_tiles, on_whole_pictures
from activeo3.types import Example, TaskResult

SIZE = (230, 170)
RANGES = {"_s": (0, 1024), "_eS": (0, 144), "_rS": (144, 400), "_gS": (400, 1024), "_N": (1024, 2000), "": (0, 1e10)}
"""Size classes as the authors' SODADeval has them (Small, eS, rS, gS, Normal), and all."""


def tiles_of(root: Path, seed: int) -> tuple[list[dict], list[Example]]:
    """The annotations of one picture with things of every size in three categories, and the questions of its tiles."""
    rng = np.random.default_rng(seed)
    corner, side = rng.integers(0, (190, 130), (30, 2)), rng.choice([6, 11, 15, 19, 26, 36, 39], (30, 2))
    rows = [
        {"category_id": int(rng.integers(1, 4)), "bbox": [*map(int, corner[k]), *map(int, np.minimum(side[k], SIZE - corner[k]))]}
        for k in range(30)
    ] + [{"category_id": 10, "bbox": [0, 0, 20, 20]}]  # fmt: skip
    data = open_dataset("soda_d", "val", driving_set(root, "val", rows, SIZE), tile=100, tile_overlap=40)
    return rows, list(data)


def perturbed(examples: list[Example], seed: int) -> list[TaskResult]:
    """Detections near most true boxes of every tile, and false ones, in no order."""
    rng = np.random.default_rng(seed)
    found = []
    for example in examples:
        boxes = example.boxes_px[rng.random(len(example.boxes_px)) < 0.8]
        boxes = np.concatenate([boxes + rng.normal(0, 1, boxes.shape), rng.uniform(0, 40, (2, 4)) + [0, 0, 40, 40]])
        found.append(TaskResult(boxes, rng.integers(1, 9, len(boxes)) / 8, calls=2, tokens=5))
    return found


def naive_merge(boxes: list[list[float]], scores: list[float]) -> list[int]:
    """Non-maximum suppression, one pair at a time."""
    areas = [(x2 - x1) * (y2 - y1) if x2 > x1 and y2 > y1 else 0 for x1, y1, x2, y2 in boxes]
    left, kept = sorted(range(len(boxes)), key=lambda k: (-scores[k], -areas[k])), []
    while left:
        best, *left = left
        kept.append(best)
        left = [k for k in left if geometry.iou(np.array([boxes[best]]), np.array([boxes[k]]))[0, 0] <= 0.5]
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_whole_pictures_by_cocoeval_with_the_authors_classes(tmp_path: Path, seed: int) -> None:
    rows, examples = tiles_of(tmp_path, seed)
    outcomes = perturbed(examples, seed)
    detections = []
    for category in (1, 2, 3):
        boxes, scores = [], []
        for example, outcome in zip(examples, outcomes):
            if example.category_id == category:
                x, y = example.source.window_px[:2]
                boxes += [[x1 + x, y1 + y, x2 + x, y2 + y] for x1, y1, x2, y2 in outcome.boxes_px.tolist()]
                scores += outcome.scores.tolist()
        for k in naive_merge(boxes, scores):
            (x1, y1, x2, y2), own = boxes[k], {"image_id": 1, "category_id": category, "score": scores[k]}
            detections.append(own | {"bbox": [x1, y1, max(x2 - x1, 0), max(y2 - y1, 0)]})
    # The ignored area is a crowd of every category.
    crowds = [{"category_id": category, "bbox": rows[-1]["bbox"], "iscrowd": 1} for category in (1, 2, 3)]
    annotations = [
        {"id": k, "image_id": 1, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]} | row
        for k, row in enumerate([*rows[:-1], *crowds], start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 1}],
            "categories": [{"id": c} for c in (1, 2, 3)],
            "annotations": annotations,
        }
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(detections), "bbox")
        run.params.areaRng = [list(limits) for limits in RANGES.values()]
        run.params.areaRngLbl, run.params.maxDets = list(RANGES), [100, 1000]
        run.evaluate(), run.accumulate()
    ours = on_whole_pictures(examples, outcomes, resamples=0)
    compared = 0
    for k, size in enumerate(RANGES):
        precision, recall = (
            run.eval["precision"][:, :, :, k, 0],
            run.eval["recall"][:, :, k, 1],
        )  # AP of 100, AR of 1,000
        if (precision > -1).any():
            assert ours[f"AP{size}_whole"].value == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
            assert ours[f"AR{size}_whole"].value == pytest.approx(recall[recall > -1].mean(), abs=1e-9)
            compared += 1
        if size == "_s":  # the authors' AP50 and AP75
            for name, t in (("50", 0), ("75", 5)):
                assert ours[f"AP{name}_s_whole"].value == pytest.approx(
                    precision[t][precision[t] > -1].mean(), abs=1e-9
                )
    assert compared >= 5 and 0.05 < ours["AP_s_whole"].value < 0.95


def test_what_two_tiles_have_found_counts_once(tmp_path: Path) -> None:
    """The tiles' own true boxes, found in every tile that has them, are the whole truth, and nothing is found twice."""
    _, examples = tiles_of(tmp_path, 0)
    perfect = [TaskResult(e.boxes_px[e.asked_for], np.ones(e.asked_for.sum()), calls=2, tokens=5) for e in examples]
    wholes, merged = merged_tiles(examples, perfect)
    assert [(e.query, e.image_id) for e in wholes] == [("people", 1), ("rider", 1), ("bicycle", 1)]
    for whole, outcome in zip(wholes, merged):
        tiles = [e for e in examples if e.category_id == whole.category_id]
        assert sum(e.asked_for.sum() for e in tiles) > whole.asked_for.sum()  # many lie in two tiles
        assert outcome.calls == 2 * len(tiles) and outcome.tokens == 5 * len(tiles)
        inside = geometry.iou(whole.boxes_px[whole.asked_for], outcome.boxes_px).max(axis=1)
        assert (inside > 0.999).all()  # the whole box, not what a border has left of it
    found = on_whole_pictures(examples, perfect, resamples=20)
    assert found["AP_eS_whole"].value > 0.8 and found["AP_eS_whole"].low <= found["AP_eS_whole"].value
    assert found["AP10_s_whole"].value >= found["AP_s_whole"].value - 1e-9


def test_a_picture_counts_with_all_of_its_tiles(tmp_path: Path) -> None:
    _, examples = tiles_of(tmp_path, 1)
    outcomes = perturbed(examples, 1)
    last = examples[-1].category_id
    wholes, _ = merged_tiles(examples[:-1], outcomes[:-1])
    assert {e.category_id for e in wholes} == {1, 2, 3} - {last}
    assert on_whole_pictures(examples[:1], outcomes[:1], 0) == {}  # not one picture is complete
    plain = open_dataset("soda_d", "val", str(tmp_path), tile=0)
    assert on_whole_pictures(list(plain), [TaskResult(np.zeros((0, 4)), np.zeros(0))] * len(plain), 0) == {}
    assert "AP_eS_whole" in headlines(examples, outcomes, 0)


def test_the_table_of_whole_images(tmp_path: Path) -> None:
    _, examples = tiles_of(tmp_path, 2)
    metrics = headlines(examples, perturbed(examples, 2), 0)
    one = finished([Row("soda_d", Setting("grid"), 1, metrics, [])], name="soda_d")
    (part,) = [part for part in eval_output.tables(one) if part.title == "soda_d, tiles merged back into whole images"]
    assert part.columns == ["method", *WHOLE] and part.cells[0]["AP_eS_whole"] == metrics["AP_eS_whole"]
    said = re.findall(r"\w+_whole", eval_tiles.__doc__ or "")
    assert set(said) <= set(metrics) and set(WHOLE) <= set(metrics)
