"""Annotation files in COCO's format, of which LVIS's and SODA-D's are dialects: checked, then questions.

Every pair of a picture and a category with a box in it becomes one question; data_coco.py makes data sets of them.
Everything that can be wrong with the file is found here, with file and id, before a picture is opened: an entry that
cannot be used is left out and named, and so are the boxes of a picture that is left out; only a file that is wrong as a
whole is an error. Ids are of any kind (data_io.py).
"""

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Collection, Iterable, Iterator, Mapping, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field, Strict

from activeo3.data_io import (
    LARGEST_SIDE,
    DataError,
    FourPixels,
    Id,
    LeftOut,
    Row,
    as_words,
    checked,
    id_of,
    inside,
    list_under,
    needed,
    numbered,
    originals,
    read_json,
    shortened,
)
from activeo3.geometry import area
from activeo3.types import SourceImage, WholeImage


class Picture(NamedTuple):
    """A picture of the annotations: its file and its size (width, height) in pixels.

    Of LVIS: ``partly`` holds the categories of which not every instance was boxed, ``absent`` those that are known
    not to be there; the picture was checked for these and for those with boxes, and no others. A tile of a larger
    picture has its ``window`` in it, xyxy in whole pixels, and its ``source_id``.
    """

    path: Path
    size: tuple[int, int]
    partly: frozenset[int] = frozenset()
    absent: frozenset[int] = frozenset()
    window: tuple[int, int, int, int] | None = None
    source_id: int = 0


@dataclass(frozen=True, eq=False)
class Question:
    """All boxes of one category in one picture: ``boxes_px`` (N, 4), ``areas``, ``crowd`` (N,)."""

    image_id: int
    category_id: int
    query: str
    boxes_px: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


class Index(NamedTuple):
    """Checked annotations: pictures by id, questions in order, what was left out.

    ``paths`` are the files of all pictures, also of those that nothing is asked about. ``frequency`` says of
    LVIS's categories, by id, how often they occur: r(are), c(ommon) or f(requent). ``names`` are the words for
    every category of the file, by its id. Of pictures in tiles, ``wholes`` are the questions about the whole ones, by
    (id of the whole picture, category id). Ids are numbers of ours;
    ``image_ids`` and ``category_ids`` have the file's own id for those that are another one (data_io.py).
    """

    pictures: Mapping[int, Picture]
    questions: tuple[Question, ...]
    dropped: tuple[str, ...]
    paths: tuple[Path, ...]
    frequency: Mapping[int, str] = {}
    names: Mapping[int, str] = {}
    wholes: Mapping[tuple[int, int], WholeImage] = {}
    image_ids: Mapping[int, Id] = {}
    category_ids: Mapping[int, Id] = {}

    @property
    def federated(self) -> bool:
        """Whether the file names the categories that its pictures were checked for, as LVIS does."""
        return any(picture.partly or picture.absent for picture in self.pictures.values())

    def source(self, image_id: int, category_id: int | None = None) -> SourceImage:
        """Where a picture is from, with the file's ids of it and of a category where they differ from the numbers.

        A tile is no picture of the file: it has its number alone.
        """
        picture = self.pictures[image_id]
        own = SourceImage(picture.path.name, category_id=self.category_ids.get(category_id))
        if not picture.window:
            return replace(own, image_id=self.image_ids.get(image_id))
        whole_id = self.image_ids.get(picture.source_id, picture.source_id)
        whole = self.wholes.get((picture.source_id, category_id))
        return replace(own, window_px=picture.window, whole_id=whole_id, whole=whole)


def read_coco(
    path: Path, images: Path, names: Mapping[int, str] | None = None, url_parts: int = 0, crowds: bool = False
) -> Index:
    """Reads and checks a json file in COCO's format; the pictures lie in ``images``.

    Boxes are clipped to the picture. ``_`` in a category name becomes a space, as LVIS writes
    ``red_blood_cell``; ``names`` stand in for the file's categories. A picture's file is its
    ``file_name``, or the last part of its ``coco_url``; with ``url_parts`` the last so many parts
    of the url come first. ``crowds`` as in ``group_boxes``. Raises DataError if no box can be used, or if two
    categories with boxes have the same name.
    """
    content, left_out = read_json(path), LeftOut()
    categories = {} if names else by_id(path, "category", list_under(path, content, "categories"), left_out)
    rows = by_id(path, "image", list_under(path, content, "images"), left_out)
    annotations = list_under(path, content, "annotations")
    category_numbers, image_numbers = numbered(names or categories), numbered(rows)
    names = names or category_names(path, categories, category_numbers, left_out)
    pictures: dict[int, Picture] = {}
    for one, row in rows.items():
        with left_out:
            picture = checked_picture(path, f"image {one}", row, images, url_parts, category_numbers)
            pictures[image_numbers[one]] = picture
    file = Checked(path, left_out, pictures, names, image_numbers, category_numbers)
    questions = group_boxes(file, named(path, annotations, left_out), crowds)
    if not questions:
        raise left_out.nothing(f"{path}: the file holds no usable box, check its 'annotations'")
    return Index(
        pictures,
        questions,
        tuple(left_out),
        tuple(picture.path for picture in pictures.values()),
        {
            category_numbers[one]: row["frequency"]
            for one, row in categories.items()
            if row.get("frequency") in ("r", "c", "f")
        },
        distinct(path, names, {question.category_id for question in questions}),
        image_ids=originals(image_numbers),
        category_ids=originals(category_numbers),
    )


class Checked(NamedTuple):
    """What a file has beside its boxes: pictures and category names by number, and the number of every id."""

    path: Path
    left_out: LeftOut
    pictures: Mapping[int, Picture]
    names: Mapping[int, str]
    image_numbers: Mapping[Id, int]
    category_numbers: Mapping[Id, int]


def by_id(path: Path, kind: str, rows: Iterable[Any], left_out: LeftOut) -> dict[Id, Mapping[str, Any]]:
    """The rows by their id. Several rows with one id are left out, unless they say the same."""
    found: dict[Id, Mapping[str, Any]] = {}
    twice: dict[Id, None] = {}
    for position, row in enumerate(rows):
        with left_out:
            one = id_of(path, f"{kind} number {position} of the list", row, "id")
            if found.setdefault(one, row) != row:
                twice[one] = None
    for one in twice:
        del found[one]
        left_out.append(f"{path}: {kind} id {one} is used twice, for different entries: renumber them")
    return found


def named(path: Path, rows: Iterable[Any], left_out: LeftOut) -> Iterator[tuple[str, Any]]:
    """Annotations with what they are called in a sentence. An id may be used twice, but the same entry counts once."""
    seen: dict[Id, Any] = {}
    for position, row in enumerate(rows):
        own = row.get("id") if isinstance(row, dict) else None
        if type(own) not in (int, str):
            yield f"annotation number {position} of the list", row
        elif seen.setdefault(own, row) is not row and seen[own] == row:
            left_out.append(f"{path}: annotation {shortened(own)} is there twice, remove one")
        else:
            yield f"annotation {shortened(own)}", row


Side = Annotated[float, Field(gt=0, le=LARGEST_SIDE, multiple_of=1, allow_inf_nan=False)]
Start = Annotated[int, Field(ge=0, le=LARGEST_SIDE)]
_IDS = Field(None, description="give a list of ids")


class ImageRow(Row):
    """An entry of the list of images. One of a tile that SODA-D's tool has cut says where it begins, ``start_coord``,
    and in which picture, ``ori_id``."""

    width: Side = Field(description="give whole pixels")
    height: Side = Field(description="give whole pixels")
    file_name: Any = None
    coco_url: Any = ""
    not_exhaustive_category_ids: list[Any] | None = _IDS
    neg_category_ids: list[Any] | None = _IDS
    start_coord: Annotated[tuple[Start, Start], Strict(False)] | None = Field(None, description="give whole numbers")
    ori_id: int | None = Field(None, description="give a whole number")


def checked_picture(
    path: Path,
    what: str,
    content: Mapping[str, Any],
    images: Path,
    url_parts: int = 0,
    categories: Mapping[Id, int] = {},
) -> Picture:
    """A checked entry of the list of images; ``categories`` has the number of every category id."""
    row = checked(ImageRow, path, what, content)
    url = PurePosixPath(str(row.coco_url)).parts
    name = "/".join(url[-url_parts:]) if url_parts and url else str(row.file_name or "") or "".join(url[-1:])
    if not name:
        raise DataError(f"{path}: {what} has no 'file_name', add it or remove the entry")

    def numbers(key: str) -> frozenset[int]:
        """The numbers of a list of category ids; categories that the file does not have are passed over."""
        known = (id_of(path, what, {key: one}, key) for one in getattr(row, key) or ())
        return frozenset(categories[one] for one in known if one in categories)

    size = int(row.width), int(row.height)
    federated = numbers("not_exhaustive_category_ids"), numbers("neg_category_ids")
    picture = Picture(images / inside(path, what, name), size, *federated)
    if row.start_coord is None:
        return picture
    if row.ori_id is None:
        raise DataError(f"{path}: {what} has no 'ori_id', add it or remove the entry")
    left, top = row.start_coord
    return picture._replace(window=(left, top, left + size[0], top + size[1]), source_id=row.ori_id)


def category_names(
    path: Path, categories: Mapping[Id, Mapping[str, Any]], numbers: Mapping[Id, int], left_out: LeftOut
) -> dict[int, str]:
    """Category number -> the words asked for."""
    names: dict[int, str] = {}
    for one, row in categories.items():
        with left_out:
            words = as_words(str(needed(path, f"category {one}", row, "name")))
            if not words:
                raise DataError(f"{path}: category {one} has an empty name, rename it")
            names[numbers[one]] = words
    return names


def distinct(path: Path, names: Mapping[int, str], used: Collection[int]) -> dict[int, str]:
    """The names without unused categories that repeat one. Raises DataError if two of the ``used`` ones have the same:
    they would be one question with half of its answer."""
    numbers = {}
    for number in sorted(names, key=lambda number: number not in used):  # the used ones first
        other = numbers.setdefault(names[number], number)
        if other != number and number in used:
            raise DataError(f"{path}: two categories with boxes have the name {shortened(names[number])}, rename one")
    return {number: words for number, words in names.items() if numbers[words] == number}


def group_boxes(file: Checked, rows: Iterable[tuple[str, Any]], crowds: bool = False) -> tuple[Question, ...]:
    """Checks annotations, each with what it is called, and groups them by (image, category).

    A category with nothing but crowds in a picture is no question, unless ``crowds`` asks for it.
    """
    return grouped(*checked_boxes(file, rows), file.names, crowds)


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Of A boxes: keys (A, 2), which are (image, category), corners (A, 4), clipped to the pictures, areas and crowd marks
(A,)."""


def checked_boxes(file: Checked, rows: Iterable[tuple[str, Any]]) -> Arrays:
    """Annotations that can be used, each with what it is called.

    What cannot be used is left out; so are boxes without any area inside their picture, of which published files have a
    few.
    """
    usable = file.left_out.each(rows, lambda _, row: (row[0], *_checked_box(file, *row)))
    if not usable:
        return np.zeros((0, 2), dtype=np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=bool)
    whats, keys, sides, sizes, marks = zip(*usable)
    keys, sides, sizes, marks = map(np.array, (keys, sides, sizes, marks))
    raw = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)  # (A, 4) xyxy
    limits = np.array([file.pictures[image_id].size * 2 for image_id in keys[:, 0]])
    boxes = np.clip(raw, 0, limits)  # one call for all pictures: files have a million boxes
    inner = area(boxes)
    sizes = np.where(np.isnan(sizes), inner, sizes)
    for k in np.flatnonzero(inner <= 0):
        why = "has no area" if area(raw[k : k + 1])[0] <= 0 else "lies outside of its picture"
        file.left_out.append(f"{file.path}: {whats[k]} {why} (bbox {sides[k].tolist()}), correct or remove it")
    kept = inner > 0
    return keys[kept], boxes[kept], sizes[kept], marks[kept]


def grouped(
    keys: np.ndarray,
    boxes: np.ndarray,
    areas: np.ndarray,
    crowd: np.ndarray,
    names: Mapping[int, str],
    crowds: bool = False,
) -> tuple[Question, ...]:
    """The questions of boxes (A, 4) with ``keys`` (A, 2), (image, category), in the order of their keys; ``crowds`` as
    in ``group_boxes``."""
    order = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))
    starts = np.flatnonzero(np.any(np.diff(keys[order], axis=0) != 0, axis=1)) + 1
    questions = []
    for part in np.split(order, starts):
        if len(part) and (crowds or not crowd[part].all()):
            image_id, category_id = map(int, keys[part[0]])
            questions.append(Question(image_id, category_id, names[category_id], boxes[part], areas[part], crowd[part]))
    return tuple(questions)


_MARKS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "none": False, "": False}
Mark = Annotated[bool, BeforeValidator(lambda value: _MARKS.get(str(value).lower(), value))]
"""A mark of 0 or 1, which some programs write as a text or leave empty."""


class Boxed(Row):
    """An entry with a box: x, y, width, height."""

    bbox: FourPixels = Field(description="give finite numbers x, y, w, h in pixels")


class BoxRow(Boxed):
    """An annotation, apart from its ids."""

    area: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="give it in square pixels"
    )
    iscrowd: Mark = Field(False, description="give 0 or 1")
    ignore: Mark = Field(False, description="give 0 or 1")


def _checked_box(file: Checked, what: str, row: Any) -> tuple[tuple[int, int], tuple[float, ...], float, bool]:
    """An annotation's (image, category) numbers, bbox x y w h, area (NaN: not given) and crowd mark."""
    keys = []
    for kind, numbers, usable in (
        ("image", file.image_numbers, file.pictures), ("category", file.category_numbers, file.names),
    ):  # fmt: skip
        one = id_of(file.path, what, row, f"{kind}_id")
        if one not in numbers:
            raise DataError(f"{file.path}: {what} names the unknown {kind} id {shortened(one)}, correct it")
        if numbers[one] not in usable:
            raise DataError(f"{file.path}: {what} belongs to {kind} {shortened(one)}, which is left out")
        keys.append(numbers[one])
    box = checked(BoxRow, file.path, what, row)
    return (keys[0], keys[1]), box.bbox, float("nan") if box.area is None else box.area, box.iscrowd or box.ignore
