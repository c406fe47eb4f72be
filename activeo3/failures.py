"""The second table of evaluate.py: where a found or missed object was won or lost (ACTIVE-O3, Table 10).

    sensing_recall   share of the true boxes that some region holds: what the sensing policy achieved
    recall_inside    of those, the share that the task model found: what the task model achieved
    recall           share of all true boxes that were found, TP / (TP + FN)
    precision        share of the detections that are right, TP / (TP + FP)
    TP, FP, FN       detections that found a true box, those that did not, true boxes not found
    missed           true boxes not even touched: no detection has an IoU of 0.1 with them; the rest of FN
                     was seen and badly localised

All are counts over all questions together, at one IoU threshold, with COCO's matching, of every detection. One
that matches nothing where not every instance is boxed (LVIS) is in no count.

Readings of what the paper leaves open: its thresholds are not said; ours are 0.5 for a match and 0.1 for a
touch. Crowds count for nothing.
"""

from dataclasses import replace
from typing import Any, Sequence

import numpy as np

from activeo3 import geometry, metrics
from activeo3.metric_rules import SIZES, UNLIMITED
from activeo3.types import Example, Region, TaskResult

COLUMNS = ("sensing_recall", "recall_inside", "recall", "precision", "TP", "FP", "FN", "missed")
MATCH, TOUCH = 0.5, 0.1  # IoU of a detection with a true box


def failures(
    examples: Sequence[Example],
    regions: Sequence[Sequence[Region]],
    outcomes: Sequence[TaskResult],
    match: float = MATCH,
) -> dict[str, Any]:
    """The columns of one row, by name; shares are NaN where there is nothing to count."""
    hits, false, asked = _counts(examples, outcomes, match)
    seen = [_inside(example, of_one) for example, of_one in zip(examples, regions, strict=True)]
    # A box outside every region is made a crowd: it is not asked for, and who found it by luck is not punished.
    inside = [replace(example, crowd=~example.asked_for | ~held) for example, held in zip(examples, seen)]
    found_inside, _, asked_inside = _counts(inside, outcomes, match)
    return {
        "sensing_recall": _share(asked_inside, asked),
        "recall_inside": _share(found_inside, asked_inside),
        "recall": _share(hits, asked),
        "precision": _share(hits, hits + false),
        "TP": hits,
        "FP": false,
        "FN": asked - hits,
        "missed": sum(_untouched(example, outcome) for example, outcome in zip(examples, outcomes)),
    }


def _counts(examples: Sequence[Example], outcomes: Sequence[TaskResult], match: float) -> tuple[int, int, int]:
    """(detections that match, detections that do not, true boxes) over all examples."""
    queries = metrics.match(examples, outcomes, (match,), {"": SIZES[""]}, UNLIMITED)[""]
    curves = [curve for (curve,) in queries]
    hits = sum(int(curve.hit.sum()) for curve in curves)
    return hits, sum(len(curve.hit) for curve in curves) - hits, sum(int(curve.truth.sum()) for curve in curves)


def _inside(example: Example, regions: Sequence[Region]) -> np.ndarray:
    """True (N,) for the boxes that some region holds."""
    return geometry.held(geometry.as_boxes(example.boxes_px), geometry.as_boxes(regions)).any(axis=1)


def _untouched(example: Example, outcome: TaskResult) -> int:
    """How many true boxes no detection comes near."""
    return int((geometry.iou(metrics.asked_boxes(example), outcome.boxes_px).max(axis=1, initial=0.0) < TOUCH).sum())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
