"""box_matching.py against COCOeval's own records, match by match, where crowds and equal numbers abound."""

import contextlib
import io
import time

import numpy as np
from coco_reference import coco_index
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.cocoeval import COCOeval

from activeo3.box_matching import Boxes, match_boxes
from activeo3.metric_rules import SIZES

THRESHOLDS = (0.1, 0.5, 0.75, 1.0)
RANGES = [(0.0, 1e10), (0.0, 36.0), (36.0, 144.0), (144.0, 1e10)]


def random_boxes(rng: np.random.Generator, count: int, scores: int) -> Boxes:
    """Boxes on a coarse grid, so that many have the same IoU with another one, and the same score."""
    xywh = np.concatenate([rng.integers(0, 4, (count, 2)) * 3, rng.integers(0, 6, (count, 2)) * 3], axis=1).astype(
        float
    )
    areas = xywh[:, 2:].prod(axis=1) * rng.choice([1.0, 1.0, 0.5], count)
    return Boxes(xywh, areas, rng.random(count) < 0.2, rng.integers(0, scores, count) / scores)


def official(true: Boxes, found: Boxes, most: int) -> list[dict | None]:
    """COCOeval's records of one picture and category, one for each size class."""
    base = {"image_id": 1, "category_id": 1}
    truth = [
        base | {"bbox": box.tolist(), "area": area, "iscrowd": int(crowd)}
        for box, area, crowd in zip(true.xywh, true.areas, true.crowd)
    ]
    said = [
        base | {"bbox": box.tolist(), "area": area, "iscrowd": 0, "score": score}
        for box, area, score in zip(found.xywh, found.areas, found.scores)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(coco_index(1, ["a"], truth), coco_index(1, ["a"], said), "bbox")
        run.params.iouThrs, run.params.areaRng, run.params.maxDets = (
            np.array(THRESHOLDS),
            [list(limits) for limits in RANGES],
            [most],
        )
        run.evaluate()
    return list(run.evalImgs)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 100_000),
    st.integers(0, 9),
    st.integers(0, 12),
    st.sampled_from([3, 5, 100]),
    st.sampled_from([1, 3, 1000]),
)
def test_every_match_is_cocos(seed: int, true_count: int, found_count: int, most: int, scores: int) -> None:
    rng = np.random.default_rng(seed)
    true, found = random_boxes(rng, true_count, 1), random_boxes(rng, found_count, scores)
    ours = match_boxes(true, found, THRESHOLDS, RANGES, most)
    for one, record in zip(ours, official(true, found, most), strict=True):
        if record is None:
            assert one.truth == 0 and one.hit.shape == one.skip.shape == (len(THRESHOLDS), 0)
            continue
        assert one.truth == np.count_nonzero(record["gtIgnore"] == 0)
        assert one.scores.tolist() == record["dtScores"]
        assert one.hit.tolist() == (record["dtMatches"] > 0).tolist()
        assert one.skip.tolist() == record["dtIgnore"].astype(bool).tolist()


def test_a_thousand_cars_take_no_time() -> None:
    """What COCOeval takes half a minute for; a wide limit for busy machines, measured 0.2 s."""
    rng = np.random.default_rng(0)
    side = rng.uniform(5, 50, (1000, 2))
    xywh, none = np.concatenate([rng.uniform(0, 4000, (1000, 2)), side], axis=1), np.zeros(1000, dtype=bool)
    cars = Boxes(xywh, side.prod(axis=1), none, rng.random(1000))
    start = time.perf_counter()
    everything, *_ = match_boxes(cars, cars, tuple(np.linspace(0.5, 0.95, 10)), list(SIZES.values()), 20_000)
    assert everything.hit.all() and everything.truth == 1000
    assert time.perf_counter() - start < 5
