"""The reward terms of the one-shot tasks (Perception-R1, arXiv 2504.07954, section 4).

    grounding   format  iou                                IoU of the one box, or its square
    counting    format  match  count                       places under the matching; the number, exactly
    ocr         format  text                               1 - edit distance over the longer text's length
    detection   format  location  class  number  missing   the four terms of its Table 6, under the matching

Predictions are assigned to true things, each to one, so that the sum of their affinities is highest (the Hungarian
method, by scipy). ``matched=False`` pairs the first with the first, the second with the second and so on: the paper's
ablation without matching, which costs 8.4 AP in detection (Table 5).

``--reward_options perception_reward=f1`` is ours, and ``paper`` the terms as we read them in the paper. Blind answers
earn much by the latter (tests/attack/rewards.py finds them); ours takes F1, so that every false prediction costs:

                f1 (the default)                                    paper
    location    sum of the pairs' IoU, as F1                        mean IoU of the pairs
    class       sum of the IoU of pairs with the right name, as F1  share of pairs with the right name
    number      F1 of the hits: IoU of at least 0.5, right name     the same
    missing     minus the share of true things without a hit        minus the share of true things in no pair
    match       sum of the pairs' affinities, as F1                 the sum over the larger number of things
    count       the right number, times match                       the right number

A sum as F1 is twice the sum over the number of predictions and true things. The hacks that ``paper`` allows: a box
under every name there is has always the right one, and what is too much costs in ``number`` alone; one thing that is
right has full ``location`` and ``class``; a few fixed points are never far from a thing, and their number is often
right.

Readings of what the paper leaves open; its rewards for counting, OCR and detection are not released:
  1. IoU is the text's reward for grounding and IoU squared the code's; the power is a setting, and ours is 1.
     A box without area has IoU 0, where the released code divides by zero.
  2. ``distance`` compares places in 0-1 along both sides of the picture, 1 - distance / sqrt(2), as the released
     predecessor compares points: two places drawn at random earn 0.6. The predecessor takes the mean over the
     pairs, which makes neither what is missing nor what is too much cost anything; here both cost alike. ``near``,
     ours, is 1 - distance / reach and 0 beyond it: the reach of a thing is the longer side of its box, or REACH of the
     picture's diagonal where only its point is known. A place on one thing then earns nothing for its neighbour.
  3. ``inside`` gives a pair 1 if the centre of the prediction lies in the true box, or, where only true
     points are known, if the true point lies in the predicted box. The whole picture as a box holds every
     point, so this is for sets with true boxes.
  4. Detection: only what overlaps is a pair. The affinity is IoU, and of boxes that fit alike the right name decides;
     in ``paper`` it is IoU doubled by the right name. Predictions mostly inside a crowd that are in no pair count for
     nothing. Nor do, on LVIS, those of a category that the picture was not checked for, or of which not every instance
     is boxed.
  5. Where nothing is to be found, an empty list has full reward, and any prediction has none. An answer that
     cannot be read has none either (task_perception.py).
  6. ``count`` of ours is paid as far as the places are right, so that no answer earns more by counting than by
     pointing: a blind one earns at most twice its ``match`` beside its format.
"""

from typing import NamedTuple, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from activeo3 import geometry

HIT = 0.5  # IoU from which a detection has found its thing
REACH = 0.1  # share of the picture's diagonal from which on a place has nothing to do with a true point
_TIE = 1e-6  # what the right name adds to a box's affinity where location comes first
IN_CROWD = 0.5  # share of a prediction's area in a crowd from which it belongs to the crowd


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


def place_affinity(places_px: np.ndarray, truth_px: np.ndarray, size: tuple[int, int], by: str = "near") -> np.ndarray:
    """How well each place (A, 4) fits each true one (B, 4), in 0-1; a point is a box without sides.

    ``by`` is near, distance or inside (readings 2 and 3). Raises ValueError for anything else.
    """
    apart = _centres(places_px)[:, None] - _centres(truth_px)[None]  # (A, B, 2)
    match by:
        case "near":
            sides = (truth_px[:, 2:] - truth_px[:, :2]).max(axis=1)  # (B,)
            reach = np.where(geometry.area(truth_px) > 0, sides, REACH * np.linalg.norm(size))
            return np.clip(1 - np.linalg.norm(apart, axis=2) / reach, 0, 1)
        case "distance":
            return np.clip(1 - np.linalg.norm(apart / np.array(size, dtype=np.float64), axis=2) / np.sqrt(2), 0, 1)
        case "inside":
            if (geometry.area(truth_px) > 0).all():
                return _holds(truth_px, _centres(places_px)).T
            return _holds(places_px, _centres(truth_px))
    raise ValueError(f"unknown way {by!r} to compare places: use near, distance or inside")


def counting_terms(affinity: np.ndarray, right: bool, matched: bool = True, reward: str = "f1") -> dict[str, float]:
    """match and count in [0, 1] of places and true ones with these affinities (A, B); ``right`` is the stated number.

    >>> counting_terms(np.eye(2)[:1], right=False), counting_terms(np.eye(2)[:1], right=False, reward="paper")
    ({'match': 0.6666666666666666, 'count': 0.0}, {'match': 0.5, 'count': 0.0})
    """
    fit = float(affinity[pairs(affinity, matched)].sum())
    predicted, true = affinity.shape
    if not predicted and not true:
        match = 1.0
    else:
        match = as_f1(fit, predicted, true) if reward == "f1" else fit / max(predicted, true)
    return {"match": match, "count": right * (match if reward == "f1" else 1.0)}


def as_f1(right: float, predicted: int, true: int) -> float:
    """F1 of ``right`` of ``predicted`` predictions and ``true`` things, of which one is there at least."""
    return 2 * right / (predicted + true)


class Truth(NamedTuple):
    """All things of a picture: boxes (B, 4) and their names; ``crowd`` (B,) marks what is neither asked for nor
    punished."""

    boxes_px: np.ndarray
    labels: Sequence[str]
    crowd: np.ndarray | None = None


def detection_terms(
    boxes_px: np.ndarray,
    labels: Sequence[str],
    truth: Truth,
    matched: bool = True,
    forgiven: np.ndarray | None = None,
    reward: str = "f1",
) -> dict[str, float]:
    """location, class, number in [0, 1] and missing in [-1, 0] of predicted boxes (A, 4) against the truth.

    Names are compared without case and extra spaces. ``forgiven`` (A,) marks predictions that can only be paired with
    things of their own name, and are not false without a pair.
    """
    crowd = np.zeros(len(truth.boxes_px), dtype=bool) if truth.crowd is None else np.asarray(truth.crowd, dtype=bool)
    forgiven = np.zeros(len(boxes_px), dtype=bool) if forgiven is None else forgiven
    crowds, true = truth.boxes_px[crowd], truth.boxes_px[~crowd]
    names = np.array([plain(name) for name in labels], dtype=object)
    wanted = np.array([plain(name) for name in truth.labels], dtype=object)[~crowd]
    overlap, same = geometry.iou(boxes_px, true), names[:, None] == wanted[None]  # (A, B)
    overlap = np.where(forgiven[:, None] & ~same, 0.0, overlap)
    rows, columns = pairs(overlap * (1 + same * (_TIE if reward == "f1" else 1.0)), matched)
    touching = overlap[rows, columns] > 0
    rows, columns = rows[touching], columns[touching]
    excused = forgiven | (geometry.containment(boxes_px, crowds) >= IN_CROWD).any(axis=1)
    excused[rows] = False
    predicted = len(boxes_px) - int(excused.sum())
    if not len(true):
        silent = float(predicted == 0)
        return {"location": silent, "class": silent, "number": silent, "missing": 0.0}
    terms = _f1_terms if reward == "f1" else _paper_terms
    return terms(overlap[rows, columns], same[rows, columns], predicted, len(true))


def _f1_terms(ious: np.ndarray, right: np.ndarray, predicted: int, true: int) -> dict[str, float]:
    """The terms of pairs with these IoUs and right names (K,), of ``predicted`` predictions and ``true`` things."""
    hits = int((right & (ious >= HIT)).sum())
    return {
        "location": as_f1(float(ious.sum()), predicted, true),
        "class": as_f1(float(ious[right].sum()), predicted, true),
        "number": as_f1(hits, predicted, true),
        "missing": hits / true - 1,
    }


def _paper_terms(ious: np.ndarray, right: np.ndarray, predicted: int, true: int) -> dict[str, float]:
    """The paper's terms, likewise. The hack: all names for every box, or one thing that is right and no other."""
    return {
        "location": float(ious.mean()) if len(ious) else 0.0,
        "class": float(right.mean()) if len(ious) else 0.0,
        "number": as_f1(int((right & (ious >= HIT)).sum()), predicted, true),
        "missing": len(ious) / true - 1,
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
