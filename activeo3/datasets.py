"""Before step 1 of train.py: where the questions come from. Their order is stream.py's.

A data set is one line in ``READERS``: its name and the function that opens it. Adding one means
writing a class with ``name``, ``split``, ``__len__`` and ``__getitem__`` and that line.

Everything that can be wrong with an index file is found when it is opened, before any model is
loaded; pictures are read only when asked for. What is wrong is said in one sentence, a DataError.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Mapping, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps

from activeo3.geometry import area, clipped, refuse_elongated
from activeo3.schema import Example

DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a damaged file, depending on its format."""


class DataError(Exception):
    """The data on disk cannot be used: one sentence that names file and id and says what to do.

    ``example_id`` is set if a single example is unusable, so that a stream can pass over it.
    """

    def __init__(self, sentence: str, example_id: str | None = None) -> None:
        super().__init__(sentence)
        self.example_id = example_id


class Dataset(Protocol):
    """A fixed, ordered collection of questions. ``__getitem__`` reads the picture, lazily."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


# ---------------------------------------------------------------------------- the embedded world


@dataclass(frozen=True)
class SceneDataset:
    """The procedural pictures of ``activeo3.scenes``; no files, the index is the seed."""

    split: str
    size: int
    name: str = "scenes"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        from activeo3 import scenes

        return scenes.example(self.split, _within(index, self.size))


def open_scenes(split: str, data_root: str | None) -> SceneDataset:
    """The embedded world; ``data_root`` is not needed and not looked at."""
    from activeo3 import scenes

    if split not in scenes.SIZES:
        raise DataError(f"scenes: there is no split '{split}', choose one of {_list(scenes.SIZES)}")
    return SceneDataset(split, scenes.SIZES[split])


# ---------------------------------------------------------------------------- COCO-format folders


class Picture(NamedTuple):
    """What the json says of a picture: its file below ``images/`` and its size in pixels."""

    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Question:
    """All boxes of one category in one picture: ``boxes_px`` (N, 4), ``areas``, ``crowd`` (N,)."""

    image_id: int
    category_id: int
    query: str
    boxes_px: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """A folder with ``instances_<split>.json`` and ``images/``, one question per present category.

    Questions are ordered by (image id, category id). A category is present if it has at least one
    box that is not a crowd. ``dropped`` boxes had no area left after clipping to the picture.
    """

    split: str
    folder: Path
    pictures: Mapping[int, Picture]
    questions: tuple[Question, ...]
    dropped: int
    name: str = "coco"

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming file and id, if the picture is missing or cannot be read."""
        question = self.questions[_within(index, len(self))]
        example_id = f"{question.image_id}:{question.query}"
        file_name, size = self.pictures[question.image_id]
        return Example(
            id=example_id,
            image=read_picture(self.folder / "images" / file_name, size, example_id),
            query=question.query,
            boxes_px=question.boxes_px,
            image_id=question.image_id,
            category_id=question.category_id,
            crowd=question.crowd,
            fields={"areas": question.areas},
        )


def open_coco(split: str, data_root: str | None) -> CocoDataset:
    """Reads and checks ``<data_root>/instances_<split>.json``; pictures are not opened yet.

    Boxes are clipped to the picture. ``_`` in a category name becomes a space, as LVIS writes
    ``red_blood_cell``. Raises DataError for the first thing that is wrong.
    """
    if data_root is None:
        raise DataError("coco: no data root was given, name the folder that holds the json files")
    folder = Path(data_root)
    path = folder / f"instances_{split}.json"
    for needed in (folder, folder / "images"):
        if not needed.is_dir():
            raise DataError(f"{needed}: there is no such folder, see data/README.md for the layout")
    index = _parsed(path)
    rows = _by_id(path, "image", index["images"])
    pictures = {number: _picture(path, number, row) for number, row in rows.items()}
    names = _category_names(path, _by_id(path, "category", index["categories"]))
    questions, dropped = _questions(path, index["annotations"], pictures, names)
    if not questions:
        raise DataError(f"{path}: split '{split}' holds no usable box, check its 'annotations'")
    return CocoDataset(split, folder, pictures, questions, dropped)


def _parsed(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The json file as three lists of objects."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file, check data root and split") from None
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise DataError(f"{path}: this is not valid json ({where}), write it again") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: this is not a UTF-8 text file, write it again") from None
    for key in ("images", "annotations", "categories"):
        rows = index.get(key) if isinstance(index, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: a COCO file needs a list of objects under the key '{key}'")
    return index


def _by_id(path: Path, kind: str, rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The rows by their id, which must be a whole number and unique."""
    found: dict[int, dict[str, Any]] = {}
    for position, row in enumerate(rows):
        number = _needed(path, f"{kind} number {position} of the list", row, "id")
        if type(number) is not int:
            raise DataError(f"{path}: {kind} id {number!r} is not a whole number, renumber it")
        if number in found:
            raise DataError(f"{path}: {kind} id {number} is used twice, renumber it")
        found[number] = row
    return found


def _needed(path: Path, what: str, row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise DataError(f"{path}: {what} has no '{key}', add it or remove the entry")
    return row[key]


def _picture(path: Path, image_id: int, row: Mapping[str, Any]) -> Picture:
    what = f"image {image_id}"
    size = (_needed(path, what, row, "width"), _needed(path, what, row, "height"))
    if not all(type(side) is int and side > 0 for side in size):
        raise DataError(f"{path}: {what} has the size {size}, give whole pixels")
    # LVIS v1 gives only a coco_url; its last part is the name of the file.
    name = str(row.get("file_name") or PurePosixPath(str(row.get("coco_url", ""))).name)
    if not name:
        raise DataError(f"{path}: {what} has no 'file_name', add it or remove the entry")
    # A json file from elsewhere must not make us read outside its own folder.
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{path}: {what} has a file_name outside of images/, correct {name!r}")
    return Picture(name, size)


def _category_names(path: Path, categories: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Category id -> the words asked for; two ids with the same words would be one question."""
    names: dict[int, str] = {}
    for number, row in categories.items():
        name = str(_needed(path, f"category {number}", row, "name"))
        words = " ".join(name.replace("_", " ").split())
        if not words or words in names.values():
            raise DataError(f"{path}: category {number} has an empty or repeated name, rename it")
        names[number] = words
    return names


def _questions(
    path: Path,
    annotations: list[dict[str, Any]],
    pictures: Mapping[int, Picture],
    names: Mapping[int, str],
) -> tuple[tuple[Question, ...], int]:
    """Groups the checked annotations by (image, category); also how many boxes were dropped."""
    groups: dict[tuple[int, int], list[tuple[np.ndarray, float, bool]]] = {}
    dropped = 0
    for number, row in _by_id(path, "annotation", annotations).items():
        what = f"annotation {number}"
        image_id = _needed(path, what, row, "image_id")
        category_id = _needed(path, what, row, "category_id")
        for kind, key, known in (("image", image_id, pictures), ("category", category_id, names)):
            if type(key) is not int or key not in known:
                raise DataError(f"{path}: {what} names the unknown {kind} id {key!r}, correct it")
        box = _xyxy(path, what, row, pictures[image_id].size)
        if area(box)[0] <= 0:
            dropped += 1
            continue
        size = row.get("area", float(area(box)[0]))
        if not _is_number(size) or size < 0:
            raise DataError(f"{path}: {what} has the area {size!r}, give it in square pixels")
        entry = (box[0], float(size), bool(row.get("iscrowd", 0)))
        groups.setdefault((image_id, category_id), []).append(entry)
    found = [_question(key, names, groups[key]) for key in sorted(groups)]
    return tuple(question for question in found if not question.crowd.all()), dropped


def _question(
    key: tuple[int, int], names: Mapping[int, str], entries: list[tuple[np.ndarray, float, bool]]
) -> Question:
    boxes, areas, crowd = zip(*entries)
    image_id, category_id = key
    return Question(
        image_id, category_id, names[category_id], np.stack(boxes), np.array(areas), np.array(crowd)
    )


def _xyxy(path: Path, what: str, row: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """COCO's x, y, width, height as one clipped xyxy box (1, 4)."""
    bbox = _needed(path, what, row, "bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise DataError(f"{path}: {what} has the bbox {bbox!r}, give finite numbers x, y, w, h")
    x, y, width, height = bbox
    return clipped(np.array([[x, y, x + width, y + height]], dtype=np.float64), size)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# ---------------------------------------------------------------------------- pictures


def read_picture(path: Path, size: tuple[int, int] | None = None, example_id: str | None = None) -> Image.Image:
    """The picture as 8-bit RGB, turned so that it has the (width, height) of the annotations.

    Cameras store a picture lying on its side with an EXIF note to turn it. Annotation tools show it
    upright, so that way up is tried first; files whose boxes were made without turning exist as
    well, and there the stored size fits. A picture without annotations (``size`` None) is upright.

    Raises DataError if neither size fits, the file is broken or no model takes its shape.
    """
    what = f"{path}: the picture" + (f" of example {example_id}" if example_id else "")
    try:
        with Image.open(path) as stored:
            stored.load()
            for image in (ImageOps.exif_transpose(stored), stored):
                if size in (None, image.size):
                    refuse_elongated(image.size)
                    return _rgb(image)
            found = stored.size
    except FileNotFoundError:
        raise DataError(f"{what} is missing, add it", example_id) from None
    except DAMAGED as error:
        raise DataError(f"{what} cannot be read, replace it ({error})", example_id) from None
    sizes = f"is {found[0]}x{found[1]} but {size[0]}x{size[1]} in the json file"
    raise DataError(f"{what} {sizes}, correct the one that is wrong", example_id)


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; transparent parts become white. Raises ValueError for values of unknown range."""
    if image.mode in ("I", "F"):
        raise ValueError(f"pixel format {image.mode} has no fixed range, convert to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts off at 255 and would return a white picture.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


# ---------------------------------------------------------------------------- opening by name

READERS: dict[str, Callable[[str, str | None], Dataset]] = {
    "scenes": open_scenes,
    "coco": open_coco,
}


@dataclass(frozen=True)
class Head:
    """The first ``size`` questions of a data set."""

    dataset: Dataset
    size: int

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def split(self) -> str:
        return self.dataset.split

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        return self.dataset[_within(index, self.size)]


def open_dataset(
    name: str, split: str, data_root: str | None = None, limit: int | None = None
) -> Dataset:
    """Opens a data set of ``READERS`` by name; ``limit`` keeps only its first questions.

    Raises DataError if the name or split is unknown or the files are not in order.
    """
    if name not in READERS:
        raise DataError(f"there is no data set '{name}', choose one of {_list(READERS)}")
    if limit is not None and limit < 1:
        raise DataError(f"{name}: a limit of {limit} leaves no question, give at least 1")
    dataset = READERS[name](split, data_root)
    return dataset if limit is None or limit >= len(dataset) else Head(dataset, limit)


def _within(index: int, size: int) -> int:
    """Python's own rule for an index, so that a loop over a data set ends."""
    if not -size <= index < size:
        raise IndexError(f"question {index} of {size}")
    return index % size


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names))
