"""Which detection finds which true box: COCO's matching of one question, for all size classes and IoU thresholds.

The rule is that of pycocotools' COCOeval. Detections take their turn, the best score first. Each takes the true box
with which it has the highest IoU, if that reaches the threshold, among those that are not taken yet; of equals the last
one. A true box that is not to be counted, because it is a crowd or of another size, is taken only if there is no other,
and a crowd may be taken again and again. A detection that has taken such a box is not counted either, nor is one
without any box whose own area is outside of the size class.

COCOeval compares every detection with every true box in Python, 30 s for a picture of SODA with a thousand cars. Here a
detection looks only at the boxes that it overlaps enough, a tenth of a second. The IoU is pycocotools' own, and so are
the results (tests/test_box_matching.py).
"""

from typing import NamedTuple, Sequence

import numpy as np
from pycocotools import mask

from activeo3.metric_rules import Range


class Boxes(NamedTuple):
    """Boxes (N, 4) as x, y, width, height, with the area, crowd mark and score (N,) of each. Detections are no crowds;
    the scores of true boxes are not looked at."""

    xywh: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    scores: np.ndarray


class Matches(NamedTuple):
    """A question in one size class: ``truth`` true boxes count. Of its detections (D,), best first, ``hit`` (T, D)
    found a true box at each threshold, ``skip`` (T, D) are not counted."""

    truth: int
    scores: np.ndarray
    hit: np.ndarray
    skip: np.ndarray


def match_boxes(
    true: Boxes, found: Boxes, thresholds: Sequence[float], sizes: Sequence[Range], most: int
) -> list[Matches]:
    """The matches in every size class, of the ``most`` best detections."""
    ranked = np.argsort(-found.scores, kind="stable")[:most]
    found = Boxes(*(column[ranked] for column in found))
    limits = [min(threshold, 1 - 1e-10) for threshold in thresholds]  # as COCOeval: an IoU of 1 may be rounded
    overlap = overlaps(found.xywh, true.xywh, true.crowd)
    near = [np.flatnonzero(row >= min(limits)).tolist() for row in overlap]
    matches = []
    for low, high in sizes:
        ignored = true.crowd | (true.areas < low) | (true.areas > high)
        taken = assigned(overlap, near, limits, ignored, true.crowd)
        hit = taken >= 0
        other = (found.areas < low) | (found.areas > high)  # of another size
        skip = np.where(hit, np.append(ignored, False)[taken], other)  # -1 reads what is appended
        matches.append(Matches(int((~ignored).sum()), found.scores, hit, skip))
    return matches


def overlaps(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (D, G) of boxes in x, y, width, height; with a crowd, the share of the detection inside it."""
    if not len(found) or not len(true):
        return np.zeros((len(found), len(true)))
    return np.asarray(mask.iou(found.tolist(), true.tolist(), crowd.astype(int).tolist()))


def assigned(
    overlap: np.ndarray, near: Sequence[Sequence[int]], limits: Sequence[float], ignored: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """The true box (T, D) that each detection takes at each threshold, or -1; ``near`` are those that it may take."""
    chosen = np.full((len(limits), len(overlap)), -1)
    for row, limit in enumerate(limits):
        gone: set[int] = set()
        for place, close in enumerate(near):
            free = [k for k in close if k not in gone and overlap[place, k] >= limit]
            wanted = [k for k in free if not ignored[k]] or free
            if wanted:
                best = max(reversed(wanted), key=lambda k: overlap[place, k])
                chosen[row, place] = best
                if not crowd[best]:
                    gone.add(best)
    return chosen
