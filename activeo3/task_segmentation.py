"""Interactive segmentation before the first zoom: a picture, its true mask, and a first mask to be corrected.

The policy is shown the picture with the first mask drawn over it and proposes regions in which that mask is
wrong (ACTIVE-O3, section 5.4, E.3 and Fig. 6); task_model_sam.py corrects it there.

Readings of what the paper leaves open:
  1. It does not say where a first mask comes from. Ours, ``coarse``, is the truth as a model of low resolution
     would see it (COARSE cells along the longer side, so that thin parts are lost), with some discs cut out of
     the object and some leaking over its border; on the embedded world it has the paper's mean IoU, 0.80. It is
     the same for the same example, wherever it is made.
     ``segment.first_masks`` makes the other kind, ``sam``.
  2. The overlay is pure green, half transparent. A pixel of the view takes as much of it as of its area lies
     in the mask, so a mask that is shrunk with its picture fades as the picture does; one that is enlarged
     keeps its pixels.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from PIL import Image

from activeo3.data_io import DataError
from activeo3.geometry import mask_to_rle, rle_to_mask
from activeo3.types import Example, Region

GREEN, ALPHA = (0, 255, 0), 0.5
COARSE = 160  # cells along the longer side of a picture
HOLES, LEAKS = 2, 2
RADII = (0.08, 0.2)  # of a hole or leak, in sides of a square as large as the object
_KIND = 1  # part of every seed: raise it when coarse masks change, so that old numbers are not mixed with new
SQUARE = 1 / 4  # side of the squares of ``error_regions``, in shorter sides of the picture


@dataclass(frozen=True, eq=False)
class Draft:
    """A picture's mask so far and the true one, both (H, W) booleans."""

    image: Image.Image
    true: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, example: Example) -> Self:
        """What ``with_mask`` packed."""
        return cls(example.image, *map(rle_to_mask, example.draft))

    @property
    def error(self) -> np.ndarray:
        """(H, W) True where the mask is wrong."""
        return self.true ^ self.mask


def true_mask(example: Example) -> np.ndarray:
    """Everything that was asked for as one mask (H, W), crowds apart. Raises DataError if there are no masks."""
    if example.masks is None:
        raise DataError(
            f"--task segment needs masks, and example {example.id} has none: choose thinobject5k or scenes", example.id
        )
    width, height = example.size_px
    union = np.zeros((height, width), dtype=bool)
    for rle, asked in zip(example.masks(), example.asked_for, strict=True):
        union |= rle_to_mask(rle) & asked
    return union


def with_mask(example: Example, true: np.ndarray, mask: np.ndarray) -> Example:
    """The example with its true mask and the one to correct, both (H, W), in its field ``draft``.

    They are packed as run lengths: a benchmark keeps them all.
    """
    return replace(example, draft=(mask_to_rle(true), mask_to_rle(mask)))


def coarse_mask(true: np.ndarray, name: str) -> np.ndarray:
    """A first mask (H, W) for a true one: coarse, with holes and leaks that follow from ``name`` (reading 1)."""
    if not true.any():
        return true.copy()
    rng = np.random.default_rng([_KIND, *name.encode()])
    height, width = true.shape
    cells = (max(1, round(width * COARSE / max(true.shape))), max(1, round(height * COARSE / max(true.shape))))
    mask = drawn_in_cells(true, cells)
    inside, border = np.flatnonzero(true), np.flatnonzero(_border(true))
    for places, value in ((inside, False),) * HOLES + ((border, True),) * LEAKS:
        y, x = divmod(int(places[rng.integers(len(places))]), width)
        _paint_disc(mask, x, y, rng.uniform(*RADII) * len(inside) ** 0.5, value)
    return mask


def drawn_in_cells(mask: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) as a model of low resolution draws it: (columns, rows) of ``cells`` hold their share of it, which is
    interpolated between them and cut at one half."""
    share = Image.fromarray(mask.astype(np.uint8) * 255).resize(cells, Image.Resampling.BOX)
    return np.asarray(share.resize(mask.shape[::-1], Image.Resampling.BILINEAR)) > 127


def _border(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (H, W) with a neighbour above, below, left or right that is not in it, or none at all."""
    padded = np.pad(mask, 1)
    return mask & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


def _paint_disc(mask: np.ndarray, x: int, y: int, radius: float, value: bool) -> None:
    """Set the pixels of ``mask`` (H, W) within ``radius`` of a pixel, in place."""
    reach = int(radius)
    low_x, low_y = max(0, x - reach), max(0, y - reach)
    part = mask[low_y : y + reach + 1, low_x : x + reach + 1]
    rows, columns = np.ogrid[low_y - y : low_y - y + part.shape[0], low_x - x : low_x - x + part.shape[1]]
    part[columns**2 + rows**2 <= radius**2] = value


def overlaid(view: Image.Image, mask: np.ndarray) -> Image.Image:
    """A view of the whole picture under a translucent green ``mask`` (H, W) of that picture (reading 2)."""
    share = Image.fromarray(mask.astype(np.uint8) * 255).resize(view.size, Image.Resampling.BOX)
    weight = ALPHA * np.asarray(share, dtype=np.float32)[..., None] / 255  # (h, w, 1)
    pixels = np.asarray(view.convert("RGB"), dtype=np.float32)
    return Image.fromarray(np.rint(pixels + weight * (np.array(GREEN, dtype=np.float32) - pixels)).astype(np.uint8))


def covered_error(error: np.ndarray, regions: Any) -> float:
    """Share of the wrong pixels of ``error`` (H, W) that lie in at least one region (K, 4); 1 if nothing is wrong.

    >>> covered_error(np.array([[1, 1, 0, 1]], dtype=bool), [(0, 0, 2, 1), (1, 0, 3, 1)])
    0.6666666666666666
    """
    total, seen = np.count_nonzero(error), np.zeros_like(error)
    for window in windows(regions, error.shape):
        seen[window] = True
    return float(np.count_nonzero(error & seen) / total) if total else 1.0


def wrong_share(error: np.ndarray, regions: Any) -> list[float]:
    """The share of every region's pixels that are wrong; 0 for a region without a pixel."""
    parts = [error[window] for window in windows(regions, error.shape)]
    return [float(part.mean()) if part.size else 0.0 for part in parts]


def windows(regions: Any, shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The (rows, columns) of a mask of ``shape`` (H, W) that each region (K, 4) touches: whole pixels, perhaps none."""
    found = []
    for region in regions:
        x1, y1 = np.clip(np.floor(region[:2]), 0, shape[::-1]).astype(int).tolist()
        x2, y2 = np.clip(np.ceil(region[2:]), 0, shape[::-1]).astype(int).tolist()
        found.append(np.s_[y1:y2, x1:x2])
    return found


def error_regions(error: np.ndarray, count: int) -> tuple[Region, ...]:
    """Up to ``count`` squares around the largest errors of a mask, each taken where most wrong pixels are left.

    A square has SQUARE of the picture's shorter side and is centred on the errors in it, as far as the
    picture's border allows. Fewer come back when nothing is left.
    """
    height, width = error.shape
    side, left, found = max(1, round(SQUARE * min(error.shape))), error.copy(), []
    while left.any() and len(found) < count:
        total = np.pad(left.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
        held = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
        y, x = np.unravel_index(np.argmax(held), held.shape)
        places = np.argwhere(left[y : y + side, x : x + side]) + (y, x)
        middle = (places.min(axis=0) + places.max(axis=0) + 1) / 2
        top, start = np.clip(np.rint(middle - side / 2), 0, (height - side, width - side)).astype(int).tolist()
        left[top : top + side, start : start + side] = False
        found.append(Region(float(start), float(top), float(start + side), float(top + side)))
    return tuple(found)
