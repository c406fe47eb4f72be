"""Boxes, frames, crops and masks. Everything here is plain numpy and exactly testable.

Boxes are float arrays (N, 4), ``xyxy``, with x to the right and y down. A box covers the half-open
area from (x1, y1) to (x2, y2), so its width is x2 - x1 and a picture is the box (0, 0, W, H).
"""

import math
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
from PIL import Image

MOST_ELONGATED = 200  # longer over shorter side of a picture, the most that Qwen-VL's processor takes
CONTAINED = 0.9  # share of a box's area from which a region holds the box


def as_boxes(boxes: Any) -> np.ndarray:
    """Any sequence of xyxy boxes as a float64 array (N, 4); an empty one becomes (0, 4)."""
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas (N,) of boxes (N, 4); inverted boxes have area 0.

    >>> area(as_boxes([[0, 0, 2, 3], [2, 2, 1, 1]])).tolist()
    [6.0, 0.0]
    """
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas (A, B) of the overlap of every box in ``a`` with every box in ``b``."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # (A, B, 2)
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (A, B, 2)
    side = np.clip(high - low, 0, None)
    return side[..., 0] * side[..., 1]


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (A, B), 0 where both boxes are empty.

    >>> iou(as_boxes([[0, 0, 2, 2]]), as_boxes([[1, 0, 3, 2], [5, 5, 6, 6]])).round(3).tolist()
    [[0.333, 0.0]]
    """
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def union_area(boxes: np.ndarray) -> float:
    """Area that boxes (N, 4) cover together, what several cover counted once; 0 for none.

    >>> union_area(as_boxes([[0, 0, 2, 2], [1, 0, 3, 2], [0, 0, 2, 2]]))
    6.0
    """
    xs, ys = np.unique(boxes[:, 0::2]), np.unique(boxes[:, 1::2])  # the edges cut the plane into cells
    covered = np.zeros((max(0, len(ys) - 1), max(0, len(xs) - 1)), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        covered[(ys[:-1] >= y1)[:, None] & (ys[1:] <= y2)[:, None] & (xs[:-1] >= x1) & (xs[1:] <= x2)] = True
    return float(np.diff(ys) @ covered @ np.diff(xs)) if covered.size else 0.0


def containment(inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Share (I, O) of each inner box's area that lies inside each outer box, 0 for an empty inner box.

    >>> containment(as_boxes([[0, 0, 2, 2]]), as_boxes([[1, 0, 9, 9]])).tolist()
    [[0.5]]
    """
    shared, whole = intersection(inner, outer), area(inner)[:, None]
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def held(boxes: np.ndarray, regions: np.ndarray, share: float = CONTAINED) -> np.ndarray:
    """(N, K) True where a region (K, 4) has at least ``share`` of the area of a box (N, 4).

    >>> held(as_boxes([[0, 0, 10, 10]]), as_boxes([[1, 0, 50, 50], [2, 0, 50, 50]])).tolist()
    [[True, False]]
    """
    return containment(boxes, regions) >= share - 1e-9  # the slack is for the rounding of areas


def ordered(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) with swapped corners put right."""
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


def clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) cut off at the border of a picture of ``size`` (width, height)."""
    width, height = size
    return np.clip(boxes, 0, [width, height, width, height])


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Indices of the boxes that survive non-maximum suppression, best first; ties keep their order.

    A box goes when its IoU with a better one that stays is above ``threshold``.
    """
    order = np.argsort(-scores, kind="stable")
    overlap = iou(boxes, boxes)
    kept: list[int] = []
    for index in order:
        if not kept or overlap[index, kept].max() <= threshold:
            kept.append(int(index))
    return np.array(kept, dtype=np.int64)


@dataclass(frozen=True)
class Frame:
    """The one mapping between original pixels and the numbers a model reads and writes.

    ``window_px`` is the rectangle of the original picture that the view shows (the whole picture for
    a global look, a region for a crop). ``scale`` is the (width, height) of the coordinate system of
    the text: the view's own pixels for Qwen2.5-VL, (1000, 1000) for Qwen3-VL. Both directions are
    affine and undo each other exactly up to float rounding.

    >>> frame = Frame(window_px=(100, 50, 300, 150), scale=(1000, 1000))
    >>> frame.to_px(as_boxes([[0, 0, 500, 1000]])).tolist()
    [[100.0, 50.0, 200.0, 150.0]]
    >>> frame.to_text(as_boxes([[100, 50, 200, 150]])).tolist()
    [[0.0, 0.0, 500.0, 1000.0]]
    """

    window_px: tuple[float, float, float, float]
    scale: tuple[int, int]

    def __post_init__(self) -> None:
        x1, y1, x2, y2 = self.window_px
        if not (x2 > x1 and y2 > y1 and min(self.scale) > 0):
            raise ValueError(f"a frame needs a window and a scale with positive sides, got {self}")

    def _factor(self) -> np.ndarray:
        x1, y1, x2, y2 = self.window_px
        return np.array([(x2 - x1) / self.scale[0], (y2 - y1) / self.scale[1]] * 2)

    def _origin(self) -> np.ndarray:
        return np.array(self.window_px[:2] * 2, dtype=np.float64)

    def to_px(self, boxes_text: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in the model's numbers -> pixels of the original picture."""
        return boxes_text * self._factor() + self._origin()

    def to_text(self, boxes_px: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in pixels of the original picture -> the model's numbers."""
        return (boxes_px - self._origin()) / self._factor()


def crop(image: Image.Image, window_px: Sequence[float], size: tuple[int, int]) -> Image.Image:
    """The window of the original picture, resampled straight to ``size`` (width, height).

    One resampling from the original pixels with a sub-pixel window, so nothing is rounded and nothing
    is resized twice; downscaling averages (Lanczos with its support widened), so small things fade
    rather than flicker.
    """
    width, height = image.size
    x1, y1, x2, y2 = window_px
    box = (max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
    return image.resize(size, Image.Resampling.LANCZOS, box=box)


def refuse_elongated(size: tuple[int, int]) -> None:
    """Raise ValueError for a picture of (width, height) with an aspect ratio above 200, as the processor does."""
    if max(size) > MOST_ELONGATED * min(size):
        width, height = size
        raise ValueError(f"{width}x{height} is too elongated: Qwen-VL takes aspect ratios up to {MOST_ELONGATED}")


def fitted(size: tuple[int, int], factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(width, height) in multiples of ``factor`` with the aspect kept and the area within limits.

    Qwen-VL's ``smart_resize``; ``factor`` is patch size x merge size (28 for Qwen2.5-VL). The rounding
    is the processor's own, so a picture of this size passes through it unchanged.

    Raises ValueError as ``refuse_elongated`` does.

    >>> fitted((1000, 500), factor=28, min_pixels=3136, max_pixels=1003520)
    (1008, 504)
    """
    refuse_elongated(size)
    width, height = size
    fit_w, fit_h = round(width / factor) * factor, round(height / factor) * factor
    if fit_w * fit_h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        fit_w = max(factor, math.floor(width / shrink / factor) * factor)
        fit_h = max(factor, math.floor(height / shrink / factor) * factor)
    elif fit_w * fit_h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        fit_w, fit_h = math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
    return fit_w, fit_h


def with_shorter_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) scaled so that the shorter side is ``side``, aspect kept.

    >>> with_shorter_side((1920, 1080), 540)
    (960, 540)
    """
    scale = side / min(size)
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """A boolean mask (H, W) as COCO run-length encoding with a text ``counts`` field."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """COCO run-length encoding -> boolean mask (H, W)."""
    from pycocotools import mask as coco_mask

    return coco_mask.decode(rle).astype(bool)
