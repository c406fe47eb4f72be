"""The reward terms of regions and boxes (ACTIVE-O3, section 4.4, B-C).

    R = R_format + R_no-overlap + R_area + R_coverage + R_task          each times its weight (--reward_weights)

    format      1 if the answer is tagged and its JSON is a list of bbox_2d, else 0     (B.1)
    no_overlap  1 if no two regions have an IoU above 0.3, else 0                        (B.2)
    area        1 if every region has 1 % to 50 % of the picture's area, else 0          (B.3)
    coverage    share of the true boxes that a region holds                              (B.4)
    task        AP50 + AR50 of the task model's boxes, 0 to 2                            (4.4, R_detect)

Deviations from the paper, and readings of what it leaves open:
  1. An answer without regions scores 0 on every heuristic term; taken literally, no region overlaps none. An answer
     that cannot be read scores 0 on every term: it has not said that a picture is empty, or a first mask right.
  2. Coverage ``contain``: 90 % of a true box's area inside one region. An IoU between a large region and
     a small thing, the paper's B.4 b, can hardly fire; it stays selectable, as does mask purity (B.4 a).
     The paper does not say its thresholds; ours are IOU_ENOUGH and PURITY_ENOUGH.
  3. The terms are added with weight 1 each; the paper only says that they are combined.
  4. AP of one picture is the benchmark's own function on that picture (metrics.ap_ar_50), detections
     without scores ranked by their order. All of them count: the benchmarks' limits are for rankings of detectors.
     Where LVIS has not boxed every instance, a box that matches nothing is not false (metric_rules.py).
  5. A region's sides are x2 - x1 and y2 - y1, as everywhere here; the paper's area ratio adds a pixel to
     each. Crowds, which are neither asked for nor punished, count for no term.
  6. The first four terms pay in full for three strips that overlap a little, for every picture the same ones: they hold
     every box, and tau lets them pass. The task term tells them from good regions, because in crops so large a task
     model finds little. A reward without it (``--reward_weights task=0``, an ablation of the paper) can be earned
     blind.
"""

import numpy as np

from activeo3 import geometry, metrics
from activeo3.data_io import DataError
from activeo3.types import Rollout, TaskResult

MOST_OVERLAP = 0.3  # tau, paper B.2
AREA_RATIO = (0.01, 0.5)  # paper B.3
IOU_ENOUGH = 0.5
PURITY_ENOUGH = 0.1
SENSING_TERMS = ("format", "no_overlap", "area", "coverage", "task")
_ROUNDING = 1e-9  # a region exactly on a threshold must not be judged by the rounding of its pixels


def sensing_terms(rollout: Rollout, result: TaskResult, coverage: str = "contain") -> dict[str, float]:
    """The five terms of regions that a task model has worked in."""
    return region_terms(rollout) | {"coverage": covered(rollout, coverage), "task": _detected(rollout, result)}


def region_terms(rollout: Rollout) -> dict[str, float]:
    """The three terms that need no ground truth."""
    regions = geometry.as_boxes(rollout.regions)
    return {
        "format": float(rollout.action.error is None),
        "no_overlap": no_overlap(regions),
        "area": sensible_area(regions, rollout.example.size_px),
    }


def result_terms(rollout: Rollout, result: TaskResult) -> dict[str, float]:
    """The two terms of an answer that is itself the result (Direct RFT).

    An answer that was cut off has no format, even if the list in it is whole.
    """
    well_formed = rollout.finished and rollout.action.error is None
    return {"format": float(well_formed), "task": _detected(rollout, result)}


def _detected(rollout: Rollout, result: TaskResult) -> float:
    """R_detect in [0, 2] of the boxes that were found; 0 for an answer that cannot be read (deviation 1)."""
    return sum(metrics.ap_ar_50(rollout.example, result)) if rollout.action.readable else 0.0


def no_overlap(regions_px: np.ndarray) -> float:
    """1.0 if every pair of regions (K, 4) has IoU <= 0.3, 0.0 if not or if there is no region (B.2).

    >>> no_overlap(geometry.as_boxes([[0, 0, 10, 10], [0, 0, 10, 9]]))
    0.0
    """
    if not len(regions_px):
        return 0.0
    overlap = np.triu(geometry.iou(regions_px, regions_px), k=1)
    return float(overlap.max(initial=0.0) <= MOST_OVERLAP + _ROUNDING)


def sensible_area(regions_px: np.ndarray, size: tuple[int, int]) -> float:
    """1.0 if every region (K, 4) has 1 % to 50 % of the area of a picture of ``size``, else 0.0 (B.3)."""
    if not len(regions_px):
        return 0.0
    ratio = geometry.area(regions_px) / (size[0] * size[1])
    return float(((ratio >= AREA_RATIO[0] - _ROUNDING) & (ratio <= AREA_RATIO[1] + _ROUNDING)).all())


def covered(rollout: Rollout, mode: str) -> float:
    """R_coverage in [0, 1] of the rollout's regions, read as ``mode`` says (B.4, deviation 2).

    ``purity`` needs the masks of the example and raises DataError without it.
    """
    boxes_px, regions = metrics.asked_boxes(rollout.example), geometry.as_boxes(rollout.regions)
    if not len(regions) or not len(boxes_px):
        return 0.0
    match mode:
        case "contain":
            return metrics.region_recall(regions, boxes_px)
        case "iou":
            return float((geometry.iou(boxes_px, regions).max(axis=1) >= IOU_ENOUGH - _ROUNDING).mean())
        case "purity":
            return float(np.mean([share >= PURITY_ENOUGH for share in _purity(rollout)]))
    raise ValueError(f"unknown coverage mode {mode!r}: use contain, iou or purity")


def _purity(rollout: Rollout) -> list[float]:
    """Share of each region's pixels that belong to a true object."""
    if rollout.example.masks is None:
        raise DataError(
            f"--coverage purity needs masks, and example {rollout.example.id} has none; choose contain or iou."
        )
    masks = [geometry.rle_to_mask(rle) for rle in rollout.example.masks()]
    union = np.any(masks, axis=0)  # (H, W)
    shares = []
    for x1, y1, x2, y2 in rollout.regions:
        inside = union[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
        shares.append(float(inside.mean()) if inside.size else 0.0)
    return shares
