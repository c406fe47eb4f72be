"""The oracle of interactive segmentation: where a patient person would click next.

The next click goes to the point of an error that is farthest from the error's border. Of the two kinds of
error, missing object (false negative) and surplus mask (false positive), the one with the farther such point
is corrected first: a positive click on missing object, a negative one on surplus mask.

The paper (ACTIVE-O3, E.3) says "an oracle that simulates perfect click feedback" and no rule. This one is the
usual rule of interactive segmentation. Our readings: the border of the window counts as an error's border; a
tie goes to the missing object, and among equal points to the first in reading order.
"""

from typing import NamedTuple, Sequence

import numpy as np


class Click(NamedTuple):
    """A pixel of a mask, and whether it belongs to the object."""

    x: int
    y: int
    positive: bool


def next_click(true: np.ndarray, mask: np.ndarray, before: Sequence[Click] = ()) -> Click | None:
    """The click that corrects ``mask`` (H, W) towards ``true`` (H, W), or None if nothing is left to correct.

    A pixel is never clicked twice: those of ``before`` are passed over.

    >>> next_click(np.array([[1, 1, 1, 0]], dtype=bool), np.array([[0, 0, 0, 1]], dtype=bool))
    Click(x=0, y=0, positive=True)
    """
    depths = []
    for error in (true & ~mask, mask & ~true):
        depth = depth_inside(error)
        for click in before:
            depth[click.y, click.x] = 0
        depths.append(depth)
    missing, surplus = depths
    deepest = max(missing.max(initial=0), surplus.max(initial=0))
    if deepest == 0:
        return None
    positive = bool(missing.max() == deepest)
    y, x = np.unravel_index(np.argmax(missing if positive else surplus), true.shape)
    return Click(int(x), int(y), positive)


def depth_inside(region: np.ndarray) -> np.ndarray:
    """How deep each pixel lies inside ``region`` (H, W): the distance of its centre to that of the nearest
    pixel outside, 0 for a pixel that is outside itself. Beyond the array everything is outside.

    Exact and Euclidean. The squared distance splits into columns and rows: first the distance within a
    column, then, for one step to the side after the other, what a neighbouring column offers; steps longer
    than the largest depth so far can offer nothing. The work is pixels x largest depth.
    """
    depth = np.zeros(region.shape)
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not len(rows):
        return depth
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = np.pad(region[box], 1)  # whatever surrounds the box is outside
    place = np.arange(len(padded))[:, None]
    above = np.maximum.accumulate(np.where(padded, 0, place), axis=0)  # nearest row outside, at or above
    below = np.minimum.accumulate(np.where(padded, len(padded), place)[::-1], axis=0)[::-1]
    own = np.minimum(place - above, below - place).astype(np.int64) ** 2  # within the column
    squared, step = own.copy(), 1
    while step * step < squared.max() and step < own.shape[1]:
        offered = own + step * step
        np.minimum(squared[:, step:], offered[:, :-step], out=squared[:, step:])
        np.minimum(squared[:, :-step], offered[:, step:], out=squared[:, :-step])
        step += 1
    depth[box] = np.sqrt(squared[1:-1, 1:-1])
    return depth
