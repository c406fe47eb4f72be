"""Floors and ceiling of the table: regions that no model proposes.

Each rule takes an example and a number of regions and returns them in pixels of the original picture.
"""

from typing import Sequence

import numpy as np

from activeo3 import geometry
from activeo3.metrics import asked_boxes
from activeo3.types import Example, Region


def whole_picture(example: Example, regions: int) -> tuple[Region, ...]:
    """The picture as its own single crop."""
    return (Region(0.0, 0.0, *map(float, example.size_px)),)


def random_regions(example: Example, regions: int) -> tuple[Region, ...]:
    """Regions with sides of 20 % to 50 % of the picture's, anywhere; the same ones for the same example."""
    rng = np.random.default_rng(list(example.id.encode()))
    sides = rng.uniform(0.2, 0.5, (regions, 2))
    corners = rng.uniform(0, 1, (regions, 2)) * (1 - sides)
    return from_unit(np.concatenate([corners, corners + sides], axis=1), example.size_px)


def grid_regions(example: Example, regions: int) -> tuple[Region, ...]:
    """``regions`` equal tiles that cover the picture, as square as that number allows."""
    width, height = example.size_px
    shapes = [(rows, regions // rows) for rows in range(1, regions + 1) if regions % rows == 0]
    rows, columns = min(shapes, key=lambda shape: abs(np.log((width / shape[1]) / (height / shape[0]))))
    tiles = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    return from_unit(geometry.as_boxes(tiles), example.size_px)


def oracle_regions(example: Example, regions: int) -> tuple[Region, ...]:
    """At most ``regions`` rectangles around the true boxes, with some of their surroundings.

    Boxes are joined pair by pair, always the pair whose common rectangle is smallest, until few enough
    are left and no two would fit into one region of a third of the picture's shorter side.
    """
    width, height = example.size_px
    side = min(width, height)
    groups = list(asked_boxes(example))
    while len(groups) > 1:
        joined = {
            (i, j): np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])])
            for i, a in enumerate(groups)
            for j, b in enumerate(groups[:i])
        }
        (i, j), box = min(joined.items(), key=lambda item: float(np.prod(item[1][2:] - item[1][:2])))
        if len(groups) <= regions and max(box[2:] - box[:2]) > side / 3:
            break
        groups = [group for k, group in enumerate(groups) if k not in (i, j)] + [box]
    found = []
    for box in groups:
        size = np.maximum(1.3 * (box[2:] - box[:2]), side / 4)
        low = np.clip((box[:2] + box[2:] - size) / 2, 0, np.maximum(0, (width, height) - size))
        found.append(Region(*map(float, (*low, *np.minimum(low + size, (width, height))))))
    return tuple(found)


RULES = {
    "direct": whole_picture,
    "direct-native": whole_picture,
    "answer": whole_picture,
    "random": random_regions,
    "grid": grid_regions,
    "oracle-regions": oracle_regions,
}
"""Every rule by the name of its row."""
NO_ZOOM = ("direct", "direct-native", "answer")
"""The rows that see the whole picture once, whatever the budget of regions is."""


def fixed_candidates() -> np.ndarray:
    """Rectangles (C, 4) in 0-1 that ``fixed`` chooses from: three sizes on lattices, and thirds."""
    boxes = []
    for side, places in ((0.34, 4), (0.5, 3), (0.66, 2)):
        for x in np.linspace(0, 1 - side, places):
            boxes += [(x, y, x + side, y + side) for y in np.linspace(0, 1 - side, places)]
    boxes += [(k / 3, 0, (k + 1) / 3, 1) for k in range(3)] + [(0, k / 3, 1, (k + 1) / 3) for k in range(3)]
    return geometry.as_boxes(boxes)


def to_unit(regions: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """Regions in pixels of a picture of ``size`` -> boxes (K, 4) in 0-1."""
    return geometry.as_boxes(regions) / np.array([*size, *size])


def from_unit(boxes: np.ndarray, size: tuple[int, int]) -> tuple[Region, ...]:
    """Boxes (K, 4) in 0-1 -> regions in pixels of a picture of ``size``."""
    return tuple(Region(*map(float, box)) for box in boxes * np.array([*size, *size]))
