"""Large pictures as tiles that overlap, each a picture of its own with the boxes that reach into it.

The tiles lie as the authors of SODA lay them (arXiv 2207.14096; ``sodaa_split.py``, ``sodad_split.py``): a step is the
side less the overlap, and the last tile is moved back to end at the border. What is left of a box at the border of a
tile counts there if it is enough of the box, and is a crowd otherwise.
"""

import os
import sys
from typing import Iterator, Mapping, Sequence, TypeVar

import numpy as np
from tqdm import tqdm

from activeo3.data_annotations import Index, Picture, Question
from activeo3.geometry import as_boxes, containment
from activeo3.types import WholeImage

T = TypeVar("T")
TILES = 10_000
"""A tile's image id is its picture's times TILES plus its number; no picture has more tiles."""

Window = tuple[int, int, int, int]
"""xyxy in whole pixels of the whole picture."""


def windows(size: tuple[int, int], tile: int, overlap: int) -> list[Window]:
    """The tiles of a picture of ``size``, column by column.

    Neighbours share ``overlap`` pixels; the last ones are moved back to end at the border, so they
    share more. Whatever is at most ``overlap`` wide and high is whole in at least one tile.

    >>> windows((1500, 600), tile=800, overlap=150)
    [(0, 0, 800, 600), (650, 0, 1450, 600), (700, 0, 1500, 600)]
    """
    across, down = (_starts(side, tile, overlap) for side in size)
    return [(x, y, min(x + tile, size[0]), min(y + tile, size[1])) for x in across for y in down]


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side."""
    return [*range(0, max(1, side - tile), tile - overlap), *([side - tile] if side > tile else [])]


def cut(index: Index, tile: int, overlap: int, enough: float) -> Index:
    """Every picture as its tiles.

    A box of which a share of less than ``enough`` is inside becomes a crowd, and so does what was one.
    Tiles without a question are left out. ``Picture.source_id`` keeps the id of the whole picture, and
    ``Index.wholes`` its questions.
    """
    pictures: dict[int, Picture] = {}
    questions: list[Question] = []
    wholes: dict[tuple[int, int], WholeImage] = {}
    for image_id, of_picture in counted(
        list(by_picture(index.questions).items()), "cutting pictures into tiles", "picture"
    ):
        whole = index.pictures[image_id]
        tiles = windows(whole.size, tile, overlap)
        parts = [_parts(question, tiles, enough) for question in of_picture]
        for number, window in enumerate(tiles):
            inside = [own[number] for own in parts if number in own]
            if inside:
                pictures[image_id * TILES + number] = whole._replace(window=window, source_id=image_id)
                questions += inside
        for question, own in zip(of_picture, parts):
            wholes[image_id, question.category_id] = WholeImage(
                question.boxes_px, question.areas, question.crowd, len(own)
            )
    return index._replace(pictures=pictures, questions=tuple(questions), wholes=wholes)


def by_picture(questions: Sequence[Question]) -> Mapping[int, list[Question]]:
    """The questions of every picture, by its id."""
    found: dict[int, list[Question]] = {}
    for question in questions:
        found.setdefault(question.image_id, []).append(question)
    return found


def _parts(question: Question, tiles: Sequence[Window], enough: float) -> dict[int, Question]:
    """A question in the frame of every tile, by its number, in which a box of it counts."""
    share = containment(question.boxes_px, as_boxes(tiles))  # (N, tiles)
    reach = share > 0
    crowd = question.crowd[:, None] | (share < enough)
    found = {}
    for number in np.flatnonzero((reach & ~crowd).any(axis=0)).tolist():
        window, own = tiles[number], reach[:, number]
        boxes = np.clip(question.boxes_px[own], window[:2] * 2, window[2:] * 2) - np.array(window[:2] * 2)
        areas = question.areas[own] * share[own, number]
        key = question.image_id * TILES + number, question.category_id
        found[number] = Question(*key, question.query, boxes, areas, crowd[own, number])
    return found


def counted(items: Sequence[T], what: str, unit: str = "file") -> Iterator[T]:
    """The items, with a bar on the first rank's stderr when it takes longer than two seconds."""
    quiet = os.environ.get("RANK", "0") != "0"
    every = 0.5 if sys.stderr.isatty() else 30.0
    return iter(tqdm(items, desc=what, unit=unit, delay=2.0, mininterval=every, disable=quiet))
