"""Step 4 of train.py (score) and every table of evaluate.py: how good are these boxes?

One metric for reward and benchmark: COCO's. Which detection finds which true box is decided in box_matching.py;
what is summed up from these matches is written here in numpy, so that one example (the reward),
a whole benchmark and a thousand bootstrap resamples of it go through the same few lines. On a whole
benchmark they give the numbers of pycocotools' COCOeval (tests/test_metrics.py compares them to 1e-9).

Choices that COCO leaves to its user:
1. Each (picture, query) question is an image of its own. A category that was not asked for can then
   never become a false positive, and one picture may be asked about twice.
2. Language models give no scores, so detections usually tie at 1.0. Ties keep COCO's order: that of
   the examples, then that in which the boxes are given.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Mapping, Sequence

import numpy as np

from activeo3.box_matching import Boxes, Matches, match_boxes
from activeo3.geometry import CONTAINED, area, as_boxes, held
from activeo3.intervals import Metric, interval, ratio, resampled
from activeo3.metric_rules import COCO, SIZES, UNLIMITED, MetricRules, Range
from activeo3.types import Example, TaskResult

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""COCO's ten thresholds, 0.50, 0.55 ... 0.95."""

RECALL_GRID = np.linspace(0.0, 1.0, 101)
"""The recalls at which COCO reads the precision-recall curve."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The ranked detections of one query, for one size class and one IoU threshold.

    Only detections that count are listed, best score first: ``hit`` (D,) is True for one that found
    a true box and False for a false positive; ``owner`` (D,) is the index of its example and ``place``
    (D,) its rank there, from 0. ``asked`` (A,) are the indices of the examples with this query,
    ``truth`` (A,) counts their true boxes.
    """

    hit: np.ndarray
    owner: np.ndarray
    place: np.ndarray
    asked: np.ndarray
    truth: np.ndarray

    def best(self, most: int) -> "Curve":
        """The same curve with at most the best ``most`` detections of every example."""
        kept = self.place < most
        return replace(self, hit=self.hit[kept], owner=self.owner[kept], place=self.place[kept])

    def ar(self, weights: np.ndarray) -> np.ndarray:
        """Final recall (R,) with example e counted weights[r, e] times; NaN where a resample has no true box."""
        return weights[:, self.owner[self.hit]].sum(axis=1) / self._total(weights)

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """Average precision (R,), likewise.

        All ones is COCO's number. An example drawn twice counts as two copies of each of its
        detections, side by side in the ranking.
        """
        total = self._total(weights)
        drawn = weights[:, self.owner]  # (R, D)
        # Only at a hit does recall grow, and the precision envelope has its corners there, so the
        # curve is read at the hits alone.
        found = np.cumsum(drawn[:, self.hit], axis=1)  # (R, H) true ones so far
        listed = np.cumsum(drawn, axis=1)[:, self.hit]  # (R, H) all so far
        recall = found / total[:, None]  # (R, H)
        precision = found / np.maximum(listed, 1)  # (R, H) 0 before anything was drawn
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # (R, H)
        reached = np.searchsorted(RECALL_GRID, recall, side="right")  # (R, H) grid points passed
        gained = np.diff(reached, axis=1, prepend=0)  # (R, H)
        missing = np.where(np.isnan(total), np.nan, 0.0)  # (R,)
        return (envelope * gained).sum(axis=1) / len(RECALL_GRID) + missing

    def _total(self, weights: np.ndarray) -> np.ndarray:
        """True boxes (R,) of every resample, NaN for none."""
        total = weights[:, self.asked] @ self.truth
        return np.where(total > 0, total, np.nan)


def rules_of(examples: Sequence[Example]) -> MetricRules:
    """The rules that all examples share; COCO's for a mixture of sets."""
    found = {example.rules for example in examples}
    return found.pop() if len(found) == 1 else COCO


def detection_metrics(
    examples: Sequence[Example],
    outcomes: Sequence[TaskResult],
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    rules: MetricRules | None = None,
) -> dict[str, float]:
    """COCO's AP and AR, averaged over queries and thresholds, without intervals.

    ``rules`` are those of the examples' data set by default (metric_rules.py).

    Keys: AP, AP_s, AP_m, AP_l, AR, AR_s, AR_m, AR_l, the same for further size classes of the rules, and AP50, AR50,
    AP75 where 0.5 and 0.75 are among the thresholds. Values are in [0, 1], or NaN where no true box of that size
    exists. The size of a true box is its area in original pixels, or ``example.areas`` (N,) if the example has them,
    because COCO measures masks.

    Raises ValueError if examples and outcomes do not pair up, and, naming the example, if there
    are not as many scores as boxes or a number is not finite.
    """
    rows = evaluate_detections(examples, outcomes, iou_thresholds, rules, resamples=0)
    return {name: metric.value for name, metric in rows.items()}


def evaluate_detections(
    examples: Sequence[Example],
    outcomes: Sequence[TaskResult],
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    rules: MetricRules | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Metric]:
    """One table row: ``detection_metrics`` with a 95 % bootstrap interval for every number.

    ``resamples`` 0 leaves the intervals NaN. The same examples and seed give the same interval.
    """
    rules = rules or rules_of(examples)
    curves = match(examples, outcomes, iou_thresholds, rules.sizes, rules)
    draws = resampled([example.image_id for example in examples], resamples, seed)
    weights = np.concatenate([np.ones((1, len(examples))), draws])  # (1 + R, E)
    rows: dict[str, Metric] = {}
    for size in rules.sizes:
        ap, ar = _pooled(curves[size], weights, rules)  # (1 + R, thresholds) each
        rows[f"AP{size}"] = interval(ap.mean(axis=1), lowest=0.0, highest=1.0)
        rows[f"AR{size}"] = interval(ar.mean(axis=1), lowest=0.0, highest=1.0)
        for name, values, threshold in (("AP50", ap, 0.5), ("AP75", ap, 0.75), ("AR50", ar, 0.5)):
            columns = np.flatnonzero(np.isclose(iou_thresholds, threshold))
            if size == "" and len(columns):
                rows[name] = interval(values[:, columns[0]], lowest=0.0, highest=1.0)
    return rows


def ap_ar_50(example: Example, outcome: TaskResult) -> tuple[float, float]:
    """AP and AR at IoU 0.5 of one example; their sum is the paper's R_detect (section 4.4).

    Every detection counts, however many there are. Where not every instance is boxed (LVIS), one that
    matches nothing is neither right nor false.

    An example without a true box (crowds apart) scores (1, 1) if nothing false was found and (0, 0)
    otherwise: a precision of nothing is undefined, and silence is the right answer.
    """
    ((curve,),) = match([example], [outcome], (0.5,), {"": SIZES[""]}, UNLIMITED)[""]
    if curve.truth.sum() == 0:
        return (1.0, 1.0) if len(curve.hit) == 0 else (0.0, 0.0)
    once = np.ones((1, 1))
    return float(curve.ap(once)[0]), float(curve.ar(once)[0])


def asked_boxes(example: Example) -> np.ndarray:
    """The true boxes (N, 4) that are asked for: all but the crowds."""
    return as_boxes(example.boxes_px)[example.asked_for]


def region_recall(regions: Sequence[Sequence[float]], boxes_px: Any, share: float = CONTAINED) -> float:
    """Share of the true boxes that have at least ``share`` of their area inside one single region.

    ``regions`` and ``boxes_px`` are xyxy in original pixels. NaN if there is no true box.

    >>> region_recall([(0, 0, 50, 50)], [[10, 10, 20, 20], [45, 0, 55, 10]])
    0.5
    """
    boxes = as_boxes(boxes_px)
    if len(boxes) == 0:
        return math.nan
    return float(held(boxes, as_boxes(regions), share).any(axis=1).mean())


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks (H, W); two empty masks agree."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def match(
    examples: Sequence[Example],
    outcomes: Sequence[TaskResult],
    iou_thresholds: Sequence[float],
    sizes: Mapping[str, Range],
    rules: MetricRules,
) -> dict[str, list[list[Curve]]]:
    """COCO's matching, as the curves [size][query][threshold], queries in order of appearance.

    A curve holds what counts for AP or AR; ``Curve.best`` tells them apart.
    """
    if len(examples) != len(outcomes) or not examples:
        raise ValueError(f"{len(examples)} examples and {len(outcomes)} outcomes do not pair up")
    listed = best_of_pictures(examples, outcomes, rules.of_picture)
    most, ranges = max(rules.for_ap, rules.for_ar), list(sizes.values())
    found = [match_boxes(*_boxes(*pair), iou_thresholds, ranges, most) for pair in zip(examples, listed)]
    asked: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        asked.setdefault(example.query, []).append(index)
    forgiven = np.array([not example.exhaustive for example in examples])
    return {
        size: [_curves([of_one[k] for of_one in found], indices, forgiven) for indices in asked.values()]
        for k, size in enumerate(sizes)
    }


def best_of_pictures(examples: Sequence[Example], outcomes: Sequence[TaskResult], most: int) -> list[TaskResult]:
    """The outcomes with at most the ``most`` best detections of a picture, over all questions about it.

    Equal scores rank in the order of examples and boxes, as in the predictions that eval_output.py writes.
    """
    of_picture: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        of_picture.setdefault(example.image_id, []).append(index)
    kept = list(outcomes)
    for indices in of_picture.values():
        sizes = [len(outcomes[index].scores) for index in indices]
        if sum(sizes) <= most:
            continue
        scores = np.concatenate([outcomes[index].scores for index in indices])
        best = np.zeros(len(scores), dtype=bool)
        best[np.argsort(-scores, kind="stable")[:most]] = True
        for index, own in zip(indices, np.split(best, np.cumsum(sizes)[:-1])):
            outcome = outcomes[index]
            kept[index] = replace(outcome, boxes_px=as_boxes(outcome.boxes_px)[own], scores=outcome.scores[own])
    return kept


def _curves(found: Sequence[Matches], asked: Sequence[int], forgiven: np.ndarray) -> list[Curve]:
    """One curve per threshold from the matches of all examples (E,) in one size class, for those that are ``asked``.

    Where ``forgiven`` (E,), a detection that matches nothing is left out, as LVIS does.
    """
    own = [found[index] for index in asked]
    score = np.concatenate([one.scores for one in own])
    order = np.argsort(-score, kind="stable")  # as COCOeval.accumulate sorts
    hit = np.concatenate([one.hit for one in own], axis=1)[:, order]
    skip = np.concatenate([one.skip | (~one.hit & forgiven[index]) for one, index in zip(own, asked)], axis=1)[:, order]
    owner = np.concatenate([np.full(len(one.scores), index) for one, index in zip(own, asked)])[order]
    place = np.concatenate([np.arange(len(one.scores)) for one in own])[order]
    truth = np.array([one.truth for one in own], dtype=np.float64)
    counts = [~of_threshold for of_threshold in skip]
    return [Curve(hit[t][kept], owner[kept], place[kept], np.array(asked), truth) for t, kept in enumerate(counts)]


def _boxes(example: Example, outcome: TaskResult) -> tuple[Boxes, Boxes]:
    """True boxes and detections, checked."""
    true, found = (
        _finite_boxes(example.boxes_px, example, "true boxes"),
        _finite_boxes(outcome.boxes_px, example, "detections"),
    )
    areas = np.asarray(area(true) if example.areas is None else example.areas, dtype=np.float64)
    crowd = np.zeros(len(true), dtype=bool) if example.crowd is None else np.asarray(example.crowd, dtype=bool)
    if not len(true) == len(areas) == len(crowd):
        raise ValueError(f"example {example.id}: boxes, areas and crowd flags differ in number")
    scores = np.asarray(outcome.scores, dtype=np.float64)
    if scores.shape != (len(found),) or not np.isfinite(scores).all():
        raise ValueError(f"example {example.id}: expected one finite score per detection")
    return _sided(true, areas, crowd, np.ones(len(true))), _sided(
        found, area(found), np.zeros(len(found), dtype=bool), scores
    )


def _sided(boxes: np.ndarray, areas: np.ndarray, crowd: np.ndarray, scores: np.ndarray) -> Boxes:
    return Boxes(np.reshape(xywh(boxes), (-1, 4)), areas, crowd, scores)


def _finite_boxes(boxes_px: np.ndarray, example: Example, what: str) -> np.ndarray:
    boxes = as_boxes(boxes_px)
    if not np.isfinite(boxes).all():
        raise ValueError(f"example {example.id}: its {what} hold numbers that are not finite")
    return boxes


def xywh(boxes: np.ndarray) -> list[list[float]]:
    """COCO's x, y, width, height; an inverted box has no width or height and finds nothing."""
    side = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return np.concatenate([boxes[:, :2], side], axis=1).tolist()


def _pooled(curves: list[list[Curve]], weights: np.ndarray, rules: MetricRules) -> tuple[np.ndarray, np.ndarray]:
    """AP and AR (R, thresholds): the mean over the queries that have a true box in the resample."""
    both = np.array([
        [(curve.best(rules.for_ap).ap(weights), curve.best(rules.for_ar).ar(weights)) for curve in row]
        for row in curves
    ])  # (Q, t, 2, R)  # fmt: skip
    there = ~np.isnan(both)
    mean = ratio(np.where(there, both, 0.0).sum(axis=0), there.sum(axis=0))  # (t, 2, R)
    return mean[:, 0].T, mean[:, 1].T
