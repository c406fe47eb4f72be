"""What an answer to a one-shot task is worth, term by term (Perception-R1, arXiv 2504.07954, section 4).

    grounding   format  iou                                IoU of the one box, or its square
    counting    format  match  count                       places under the matching; the number, exactly
    ocr         format  text                               1 - edit distance over the longer text's length
    detection   format  location  class  number  missing   the four terms of its Table 6, under the matching

Predictions are assigned to true things so that the sum of their affinities is highest (the Hungarian method,
by scipy). ``matched=False`` pairs the first with the first, the second with the second and so on: the
paper's ablation without matching, which costs 8.4 AP in detection (Table 5).

Readings of what the paper leaves open; its rewards for counting, OCR and detection are not released:
  1. IoU is the text's reward for grounding and IoU squared the code's; the power is a setting, and ours is 1.
     A box without area has IoU 0, where the released code divides by zero.
  2. Places are compared in 0-1 along both sides of the picture, 1 - distance / sqrt(2), as the released
     predecessor compares points. The sum over the pairs is divided by the larger number of things, so that
     what is missing and what is too much cost alike; the predecessor's mean over the pairs costs neither.
  3. ``inside`` gives a pair 1 if the centre of the prediction lies in the true box, or, where only true
     points are known, if the true point lies in the predicted box. The whole picture as a box holds every
     point, so this is for sets with true boxes.
  4. Detection: the affinity is IoU, doubled by the right name, and only what overlaps is a pair. ``location``
     is the mean IoU of the pairs and ``class`` the share of them with the right name; ``number`` is F1 of the
     pairs that are hits, IoU of at least 0.5 and the right name; ``missing`` is minus the share of true
     things in no pair, 0 to -1. Predictions mostly inside a crowd that are in no pair count for nothing. Nor do, on
     LVIS, those of a category that the picture was not checked for, or of which not every instance is boxed.
  5. Where nothing is to be found, silence is worth full marks, and anything said nothing. Silence is an answer that
     can be read and lists nothing; one that cannot be read is worth nothing (oneshot.py).
"""

from typing import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from activeo3 import geometry

HIT = 0.5  # IoU from which a detection has found its thing
IN_CROWD = 0.5  # share of a prediction's area in a crowd from which it belongs to the crowd

TERMS: Mapping[str, tuple[str, ...]] = {
    "grounding": ("format", "iou"),
    "counting": ("format", "match", "count"),
    "ocr": ("format", "text"),
    "detection": ("format", "location", "class", "number", "missing"),
}
"""The names of each task's reward terms."""


def pairs(affinity: np.ndarray, matched: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Which prediction goes with which truth, for affinities (A, B): two index arrays (min(A, B),).

    >>> pairs(np.array([[0.1, 0.9], [0.8, 0.7]]))[1].tolist(), pairs(np.eye(2)[::-1], matched=False)[1].tolist()
    ([1, 0], [0, 1])
    """
    if matched:
        return linear_sum_assignment(affinity, maximize=True)
    both = np.arange(min(affinity.shape))
    return both, both


def box_iou(boxes_px: np.ndarray, truth_px: np.ndarray, power: int = 1) -> float:
    """IoU of the first box with the one true box (1, 4), to the given power; 0 without a box."""
    if not len(boxes_px):
        return 0.0
    return float(geometry.iou(boxes_px[:1], truth_px)[0, 0]) ** power


def place_affinity(places_px: np.ndarray, truth_px: np.ndarray, size: tuple[int, int], by: str = "distance") -> np.ndarray:
    """How well each place (A, 4) fits each true one (B, 4), in 0-1; a point is a box without sides.

    ``by`` is distance or inside (readings 2 and 3). Raises ValueError for anything else.
    """
    if by == "distance":
        apart = (_centres(places_px)[:, None] - _centres(truth_px)[None]) / np.array(size, dtype=np.float64)  # (A, B, 2)
        return np.clip(1 - np.linalg.norm(apart, axis=2) / np.sqrt(2), 0, 1)
    if by == "inside":
        if (geometry.area(truth_px) > 0).all():
            return _holds(truth_px, _centres(places_px)).T
        return _holds(places_px, _centres(truth_px))
    raise ValueError(f"unknown way {by!r} to compare places: use distance or inside")


def place_match(
    places_px: np.ndarray, truth_px: np.ndarray, size: tuple[int, int], by: str = "distance", matched: bool = True
) -> float:
    """The match term of counting in [0, 1]: affinities of the pairs over the larger number of things."""
    most = max(len(places_px), len(truth_px))
    if not most:
        return 1.0
    affinity = place_affinity(places_px, truth_px, size, by)
    return float(affinity[pairs(affinity, matched)].sum()) / most


def detection_terms(
    boxes_px: np.ndarray,
    labels: Sequence[str],
    truth_px: np.ndarray,
    true_labels: Sequence[str],
    crowd: np.ndarray | None = None,
    matched: bool = True,
    forgiven: np.ndarray | None = None,
) -> dict[str, float]:
    """location, class, number in [0, 1] and missing in [-1, 0] of boxes (A, 4) against all things (B, 4) of a picture.

    Names are compared without case and extra spaces. ``crowd`` (B,) marks what is neither asked for nor punished,
    ``forgiven`` (A,) the predictions that are a pair with things of their own name alone, and else not false.
    """
    crowd = np.zeros(len(truth_px), dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool)
    forgiven = np.zeros(len(boxes_px), dtype=bool) if forgiven is None else forgiven
    crowds, truth = truth_px[crowd], truth_px[~crowd]
    names = np.array([plain(name) for name in labels], dtype=object)
    wanted = np.array([plain(name) for name in true_labels], dtype=object)[~crowd]
    overlap, same = geometry.iou(boxes_px, truth), names[:, None] == wanted[None]  # (A, B)
    overlap = np.where(forgiven[:, None] & ~same, 0.0, overlap)
    rows, columns = pairs(overlap * (1 + same), matched)
    touching = overlap[rows, columns] > 0
    rows, columns = rows[touching], columns[touching]
    excused = forgiven | (geometry.containment(boxes_px, crowds) >= IN_CROWD).any(axis=1)
    excused[rows] = False
    said = len(boxes_px) - int(excused.sum())
    if not len(truth):
        silent = float(said == 0)
        return {"location": silent, "class": silent, "number": silent, "missing": 0.0}
    ious, right = overlap[rows, columns], same[rows, columns]
    return {
        "location": float(ious.mean()) if len(rows) else 0.0,
        "class": float(right.mean()) if len(rows) else 0.0,
        "number": 2 * int((right & (ious >= HIT)).sum()) / (said + len(truth)),
        "missing": -(len(truth) - len(rows)) / len(truth),
    }


def plain(name: str) -> str:
    """A name without case and extra spaces.

    >>> plain(" Traffic  light")
    'traffic light'
    """
    return " ".join(name.casefold().split())


def _centres(boxes: np.ndarray) -> np.ndarray:
    """(N, 2)"""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _holds(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, M) 1.0 where a box holds a point, border included."""
    low, high = points[None] >= boxes[:, None, :2], points[None] <= boxes[:, None, 2:]
    return (low & high).all(axis=2).astype(np.float64)
