"""Annotation files in COCO's format, of which LVIS's and SODA-D's are dialects: checked, then questions.

Every pair of a picture and a category with a box in it becomes one question, or every picture does, with
boxes of all categories (detection). Everything that can be
wrong with the file is found here, with file and id, before a picture is opened.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

import numpy as np

from activeo3.files import DataError, Source, inside, is_number, needed, read_json, read_picture, within
from activeo3.geometry import area
from activeo3.metric_rules import COCO, MetricRules
from activeo3.schema import Example


class Picture(NamedTuple):
    """A picture of the annotations: its file and its size (width, height) in pixels.

    ``partly`` holds the categories of which not every instance was boxed (LVIS). A tile of a larger
    picture has its ``window`` in it, xyxy in whole pixels, and its ``source_id``.
    """

    path: Path
    size: tuple[int, int]
    partly: frozenset[int] = frozenset()
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


class Whole(NamedTuple):
    """A question about a whole picture, of which each tile asks a part.

    ``boxes_px`` (N, 4), ``areas`` and ``crowd`` (N,) are in the whole picture's frame; ``tiles`` says in how many tiles
    the question is asked.
    """

    boxes_px: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    tiles: int


class Index(NamedTuple):
    """Checked annotations: pictures by id, questions in order, what was left out.

    ``paths`` are the files of all pictures, also of those that nothing is asked about. ``frequency`` says of
    LVIS's categories, by id, how often they occur: r(are), c(ommon) or f(requent). ``names`` are the words for
    every category of the file, by its id. Of pictures in tiles, ``wholes`` are the questions about the whole ones, by
    (id of the whole picture, category id).
    """

    pictures: Mapping[int, Picture]
    questions: tuple[Question, ...]
    dropped: tuple[str, ...]
    paths: tuple[Path, ...]
    frequency: Mapping[int, str] = {}
    names: Mapping[int, str] = {}
    wholes: Mapping[tuple[int, int], Whole] = {}


@dataclass(frozen=True, eq=False)
class BoxDataset:
    """Questions that are answered with boxes, ordered by (image id, category id).

    An example keeps both ids of the file, so that predictions can be written as COCO results. Its
    fields: ``file_name``; ``areas`` (N,) in square pixels; ``exhaustive``, False if more instances may be in the
    picture than have boxes, and the category's ``frequency`` (both LVIS); for a tile ``window_px``,
    ``source_id``, the picture it is from, and ``whole``, the question about all of it (eval_tiles.py); and how the set is scored, ``rules``.
    """

    name: str
    split: str
    index: Index
    rules: MetricRules = COCO

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.index.paths

    @property
    def dropped(self) -> tuple[str, ...]:
        return self.index.dropped

    def __len__(self) -> int:
        return len(self.index.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming file and id, if the picture is missing or cannot be read."""
        question = self.index.questions[within(index, len(self))]
        picture = self.index.pictures[question.image_id]
        example_id = f"{question.image_id}:{question.query}"
        image = read_picture(picture.path, picture.size, example_id)
        fields = {"file_name": picture.path.name, "areas": question.areas, "rules": self.rules}
        fields |= {"exhaustive": question.category_id not in picture.partly}
        if question.category_id in self.index.frequency:
            fields["frequency"] = self.index.frequency[question.category_id]
        if picture.window:
            image = image.crop(picture.window)
            fields |= {"window_px": picture.window, "source_id": picture.source_id}
            fields |= {"whole": self.index.wholes[picture.source_id, question.category_id]}
        return Example(
            id=example_id,
            image=image,
            query=question.query,
            boxes_px=question.boxes_px,
            image_id=question.image_id,
            category_id=question.category_id,
            crowd=question.crowd,
            fields=fields,
        )


@dataclass(frozen=True, eq=False)
class PictureDataset:
    """Every picture as one question: where is everything, and what is it?

    A picture without boxes is a question as well, whose answer is an empty list. The example's fields:
    ``labels``, the name of every box; ``categories``, all names of the file; ``areas`` (N,) in square pixels.
    """

    name: str
    split: str
    index: Index

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The ids of all pictures, in order."""
        return tuple(sorted(self.index.pictures))

    @cached_property
    def boxes(self) -> Mapping[int, Sequence[Question]]:
        """The boxes of every picture that has some, category by category."""
        found: dict[int, list[Question]] = {}
        for question in self.index.questions:
            found.setdefault(question.image_id, []).append(question)
        return found

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.index.paths

    @property
    def dropped(self) -> tuple[str, ...]:
        return self.index.dropped

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming file and id, if the picture is missing or cannot be read."""
        number = self.numbers[within(index, len(self))]
        picture, parts = self.index.pictures[number], self.boxes.get(number, ())
        fields = {
            "labels": tuple(part.query for part in parts for _ in part.boxes_px),
            "categories": tuple(self.index.names.values()),
            "areas": np.concatenate([np.zeros(0), *(part.areas for part in parts)]),
        }
        return Example(
            id=str(number),
            image=read_picture(picture.path, picture.size, str(number)),
            query="everything",
            boxes_px=np.concatenate([np.zeros((0, 4)), *(part.boxes_px for part in parts)]),
            image_id=number,
            crowd=np.concatenate([np.zeros(0, dtype=bool), *(part.crowd for part in parts)]),
            fields=fields,
        )


def open_coco_det(source: Source) -> PictureDataset:
    """COCO 2017 in the published layout, or else any folder as ``open_coco`` takes it; one question per picture."""
    root = source.folder("coco_det", "")
    path, images = root / f"coco/annotations/instances_{source.split}2017.json", root / f"coco/{source.split}2017"
    if not path.is_file() and (root / f"instances_{source.split}.json").is_file():
        path, images = root / f"instances_{source.split}.json", root / "images"
    return PictureDataset("coco_det", source.split, read_coco(path, images, crowds=True))


def open_coco(source: Source) -> BoxDataset:
    """Any folder with ``instances_<split>.json`` and ``images/``, which is the data root itself."""
    folder = source.folder("coco", "")
    path = folder / f"instances_{source.split}.json"
    return BoxDataset("coco", source.split, read_coco(path, folder / "images"))


def read_coco(
    path: Path, images: Path, names: Mapping[int, str] | None = None, url_parts: int = 0, crowds: bool = False
) -> Index:
    """Reads and checks a json file in COCO's format; the pictures lie in ``images``.

    Boxes are clipped to the picture. ``_`` in a category name becomes a space, as LVIS writes
    ``red_blood_cell``; ``names`` stand in for the file's categories. A picture's file is its
    ``file_name``, or the last part of its ``coco_url``; with ``url_parts`` the last so many parts
    of the url come first. ``crowds`` as in ``group_boxes``. Raises DataError for the first thing that is wrong.
    """
    index = read_json(path)
    for key in ("images", "annotations") if names else ("images", "annotations", "categories"):
        rows = index.get(key) if isinstance(index, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: a COCO file needs a list of objects under the key '{key}'")
    categories = {} if names else by_id(path, "category", index["categories"])
    names = names or category_names(path, categories)
    frequency = {number: row["frequency"] for number, row in categories.items() if row.get("frequency") in ("r", "c", "f")}
    pictures = {
        number: checked_picture(path, f"image {number}", row, images, url_parts)
        for number, row in by_id(path, "image", index["images"]).items()
    }
    rows = by_id(path, "annotation", index["annotations"])
    questions, dropped = group_boxes(path, rows, pictures, names, crowds)
    if not questions:
        raise DataError(f"{path}: the file holds no usable box, check its 'annotations'")
    paths = tuple(picture.path for picture in pictures.values())
    return Index(pictures, questions, dropped, paths, frequency, names)


def by_id(path: Path, kind: str, rows: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The rows by their id, which must be a whole number and unique."""
    found: dict[int, dict[str, Any]] = {}
    for position, row in enumerate(rows):
        number = needed(path, f"{kind} number {position} of the list", row, "id")
        if type(number) is not int:
            raise DataError(f"{path}: {kind} id {number!r} is not a whole number, renumber it")
        if number in found:
            raise DataError(f"{path}: {kind} id {number} is used twice, renumber it")
        found[number] = row
    return found


def checked_picture(
    path: Path, what: str, row: Mapping[str, Any], images: Path, url_parts: int = 0
) -> Picture:
    """A checked entry of the list of images."""
    size = (needed(path, what, row, "width"), needed(path, what, row, "height"))
    if not all(type(side) is int and side > 0 for side in size):
        raise DataError(f"{path}: {what} has the size {size}, give whole pixels")
    url = PurePosixPath(str(row.get("coco_url", ""))).parts
    stored = str(row.get("file_name") or "")
    name = "/".join(url[-url_parts:]) if url_parts and url else stored or "".join(url[-1:])
    if not name:
        raise DataError(f"{path}: {what} has no 'file_name', add it or remove the entry")
    partly = row.get("not_exhaustive_category_ids", [])
    if not isinstance(partly, list) or not all(type(number) is int for number in partly):
        raise DataError(f"{path}: {what} has not_exhaustive_category_ids {partly!r}, give a list of ids")
    return Picture(images / inside(path, what, name), size, frozenset(partly))


def category_names(path: Path, categories: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Category id -> the words asked for; two ids with the same words would be one question."""
    names: dict[int, str] = {}
    for number, row in categories.items():
        name = str(needed(path, f"category {number}", row, "name"))
        words = " ".join(name.replace("_", " ").split())
        if not words or words in names.values():
            raise DataError(f"{path}: category {number} has an empty or repeated name, rename it")
        names[number] = words
    return names


def group_boxes(
    path: Path,
    rows: Mapping[int, Mapping[str, Any]],
    pictures: Mapping[int, Picture],
    names: Mapping[int, str],
    crowds: bool = False,
) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """Checks annotations (by id) and groups them by (image, category): questions, what was left out.

    A category with nothing but crowds in a picture is no question, unless ``crowds`` asks for it. Boxes without any area inside
    their picture are left out, each with a sentence: published files have a few of them.
    """
    if not rows:
        return (), ()
    checked = [_checked(path, number, row, pictures, names) for number, row in rows.items()]
    keys, sides, stored, sizes, marks = map(np.array, zip(*checked))
    raw = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)  # (A, 4) xyxy
    limits = np.array([pictures[image_id].size * 2 for image_id in keys[:, 0]])
    boxes = np.clip(raw, 0, limits)  # one call for all pictures: files have a million boxes
    inner = area(boxes)
    sizes = np.where(np.isnan(sizes), inner, sizes)
    dropped = tuple(
        f"{path}: annotation {stored[k]} {'has no area' if area(raw[k : k + 1])[0] <= 0 else 'lies outside'} "
        f"(bbox {sides[k].tolist()} in image {keys[k, 0]}), it is left out"
        for k in np.flatnonzero(inner <= 0)
    )
    kept = np.flatnonzero(inner > 0)
    kept = kept[np.lexsort((kept, keys[kept, 1], keys[kept, 0]))]
    starts = np.flatnonzero(np.any(np.diff(keys[kept], axis=0) != 0, axis=1)) + 1
    questions = []
    for part in np.split(kept, starts):
        if len(part) and (crowds or not marks[part].all()):
            image_id, category_id = map(int, keys[part[0]])
            question = (names[category_id], boxes[part], sizes[part], marks[part])
            questions.append(Question(image_id, category_id, *question))
    return tuple(questions), dropped


def _checked(
    path: Path,
    number: int,
    row: Mapping[str, Any],
    pictures: Mapping[int, Picture],
    names: Mapping[int, str],
) -> tuple[tuple[int, int], tuple[float, ...], int, float, bool]:
    """An annotation's (image, category), bbox x y w h, id, area (NaN: not given) and crowd mark."""
    what = f"annotation {number}"
    keys = (needed(path, what, row, "image_id"), needed(path, what, row, "category_id"))
    for kind, key, known in zip(("image", "category"), keys, (pictures, names)):
        if type(key) is not int or key not in known:
            raise DataError(f"{path}: {what} names the unknown {kind} id {key!r}, correct it")
    bbox = needed(path, what, row, "bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        raise DataError(f"{path}: {what} has the bbox {bbox!r}, give finite numbers x, y, w, h")
    size = row.get("area")
    if size is not None and (not is_number(size) or size < 0):
        raise DataError(f"{path}: {what} has the area {size!r}, give it in square pixels")
    crowd = bool(row.get("iscrowd", 0)) or bool(row.get("ignore", 0))
    return keys, tuple(map(float, bbox)), number, float("nan") if size is None else float(size), crowd
