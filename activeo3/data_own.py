"""Your own pictures with a row for each question: JSON Lines here, the rows of a table in data_hub.py.

    {"image": "street/1.jpg", "query": "red car", "boxes": [[10, 20, 60, 80]]}
    {"image": "street/1.jpg", "query": "What does the sign say?", "answer": "STOP"}

``boxes`` are all things that the query fits, ``[]`` if there is none. Without ``boxes`` it is not known what is there:
such a row is left out of the training of tasks that learn from boxes, and an evaluation ignores what is found. A row
may have an ``answer`` in words (with ``options``, one of them), a ``count``, the ``text`` that can be read, an ``id``.
"""

from pathlib import Path
from typing import Annotated, Any, Callable, Iterable, Iterator, NamedTuple, Self

import numpy as np
from PIL import Image
from pydantic import BeforeValidator, Field, model_validator

from activeo3.data_files import fullest
from activeo3.data_io import (
    DataError,
    FourPixels,
    LeftOut,
    Row,
    checked,
    inside,
    needed,
    parsed_line,
    read_picture,
    read_text,
    shortened,
)
from activeo3.data_set import Dataset, Source, register
from activeo3.geometry import area, as_boxes, clipped
from activeo3.types import VQA, Count, Example, SourceImage

FILES = ("{split}.jsonl", "annotations/{split}.jsonl", "{split}/annotations.jsonl", "{split}/metadata.jsonl")
IMAGE_FOLDERS = (".", "images", "images/{split}", "{split}", "{split}/images", "data")

Words = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value)]


class Asked(Row):
    """A question about a picture, and what is known of its answer."""

    query: str = Field("", description="give a text")
    boxes: list[FourPixels] | None = Field(None, description="give lists of four finite numbers")
    bbox: list[FourPixels] | None = Field(None, description="give lists of four finite numbers")
    answer: Words | None = Field(None, description="give a text")
    options: list[str] = Field([], description="give 2 to 26 texts", max_length=26)
    count: Annotated[int, Field(ge=0)] | None = Field(None, description="give a whole number")
    text: str = Field("", description="give a text")
    id: Words = Field("", description="give a text or a number")

    @model_validator(mode="after")
    def _is_question(self) -> Self:
        if not self.query.strip() and not self.text:
            raise ValueError("has no 'query', add what is asked")
        if self.options and self.answer not in (*self.options, *self._letters, None):
            raise ValueError(f"has the answer {shortened(self.answer)}, which is none of its options, correct one")
        return self

    @property
    def _letters(self) -> str:
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(self.options)]

    def vqa(self, evidence_px: np.ndarray) -> VQA | None:
        """The question in words, which boxes (E, 4) show the answer of; None if no answer is known."""
        if self.answer is None:
            return None
        given = self.options.index(self.answer) if self.answer in self.options else None
        answer = self.answer if given is None else self._letters[given]
        return VQA(self.query, (answer,), options=tuple(self.options), evidence_px=evidence_px)


class Item(NamedTuple):
    """A checked row: how a sentence calls it, its picture (a file name, or a row of a table), and the numbers of
    picture and query."""

    what: str
    picture: str | int
    asked: Asked
    image_id: int
    category_id: int

    @property
    def id(self) -> str:
        """Its own, or its picture and query."""
        return self.asked.id or f"{self.picture}:{self.asked.query}"


class Table(NamedTuple):
    """Where rows are from: ``path`` as sentences name it, ``read(picture, example id)``, which decodes a picture, and
    what ``names`` pictures to --holdout, by default what the rows call them."""

    path: Path
    read: Callable[[Any, str], Image.Image]
    paths: tuple[Path, ...] = ()
    names: Callable[[Any], Any] = lambda picture: picture  # noqa: E731


def row_questions(
    source: Source, table: Table, rows: Iterable[tuple[str, str | int, Any]], left_out: LeftOut
) -> Dataset[Item]:
    """The data set of rows (what a sentence calls it, picture, content)."""
    images: dict[str | int, int] = {}
    queries: dict[str, int] = {}
    seen: dict[str, str] = {}

    def item(_: int, row: tuple[str, str | int, Any]) -> Item:
        what, picture, content = row
        asked = checked_row(table.path, what, content, source)
        numbers = images.setdefault(picture, len(images) + 1), queries.setdefault(asked.query, len(queries) + 1)
        made = Item(what, picture, asked, *numbers)
        if (other := seen.setdefault(made.id, what)) != what:
            raise DataError(f"{table.path}: {what} asks the same as {other}, put all boxes into one row or give ids")
        return made

    def read(item: Item, _: int) -> Example:
        return example_of(item, table.read(item.picture, item.id), table.path, source.box_format)

    items = left_out.each(rows, item)
    return source.dataset(items, read, left_out, table.paths, table.path, lambda item: table.names(item.picture))


def checked_row(path: Path, what: str, content: Any, source: Source) -> Asked:
    """A row's question. Raises DataError if it is none, or if its boxes are none whatever the picture's size is."""
    given = {name: value for name, value in needed(path, what, content).items() if value is not None}
    asked = checked(Asked, path, what, given)
    if source.boxed and asked.boxes is None and asked.bbox is None:
        raise DataError(f"{path}: {what} has no 'boxes', from which this task learns, add them ([] if there is none)")
    boxes, form = _boxes(asked, source.box_format)
    if form == "xyxy" and len(boxes) and boxes.max() <= 1:
        raise _wrong(path, what, boxes, "has boxes below 1 pixel", "xyxy_unit")
    if (area(as_xyxy(boxes, form, (1, 1))) <= 0).any():
        raise _wrong(path, what, boxes, f"has a box without area as {form}", "xywh" if form == "xyxy" else "xyxy")
    return asked


def _wrong(path: Path, what: str, boxes: np.ndarray, why: str, form: str) -> DataError:
    hint = f"correct it, or say what the numbers are, as --data_options box_format={form}"
    return DataError(f"{path}: {what} {why} ({shortened(boxes.tolist())}), {hint}")


def _boxes(asked: Asked, form: str) -> tuple[np.ndarray, str]:
    """The boxes (N, 4) of a row as they are written, and their form."""
    auto = "xyxy" if asked.boxes is not None else "xywh"
    return as_boxes(asked.boxes if asked.boxes is not None else asked.bbox or []), auto if form == "auto" else form


def as_xyxy(boxes: np.ndarray, form: str, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) of any form of --data_options box_format as corners in pixels of a picture of ``size``.

    >>> as_xyxy(as_boxes([[0.5, 0.5, 0.2, 1.0]]), "cxcywh_unit", (100, 50)).tolist()
    [[40.0, 0.0, 60.0, 50.0]]
    """
    form, _, unit = form.partition("_")
    first, second = np.split(boxes * np.tile(size, 2) if unit else boxes, 2, axis=1)
    if form == "cxcywh":
        first = first - second / 2
    return np.concatenate([first, second if form == "xyxy" else first + second], axis=1)


def example_of(item: Item, image: Image.Image, path: Path, box_format: str) -> Example:
    """The example of a row and its picture. Raises DataError if a box lies outside of the picture."""
    asked = item.asked
    raw = as_xyxy(*_boxes(asked, box_format), image.size)
    boxes = clipped(raw, image.size)
    for wrong in raw[area(boxes) <= 0]:
        size = "{}x{}".format(*image.size)
        raise DataError(f"{path}: {item.what} has the box {wrong.tolist()} outside of its picture of {size}", item.id)
    known = asked.boxes is not None or asked.bbox is not None
    count = len(boxes) if asked.count is None and known and not len(boxes) else asked.count
    return Example(
        id=item.id,
        image=image,
        query=asked.query,
        boxes_px=boxes,
        image_id=item.image_id,
        category_id=item.category_id,
        exhaustive=known or count is not None,
        vqa=asked.vqa(boxes),
        count=None if count is None else Count(count),
        text=asked.text,
        source=SourceImage(str(item.picture)),
    )


# ---------------------------------------------------------------------- JSON Lines


@register("jsonl", {}, "your own pictures, see docs/own-data.md", any_split=True)
def open_jsonl(source: Source) -> Dataset:
    """A file of FILES, or the only one that names no split; pictures in one of IMAGE_FOLDERS."""
    path, split = source.own_file(FILES)
    root, left_out = source.folder(), LeftOut()
    rows = left_out.each(_lines(path), lambda _, line: _row(path, root, *line))
    names = [Path(picture) for _, picture, _ in rows]
    folder = fullest(root, IMAGE_FOLDERS, names, split=split)
    paths = tuple(dict.fromkeys(folder / name for name in names))
    read = lambda name, example_id: read_picture(folder / name, None, example_id)  # noqa: E731
    return row_questions(source, Table(path, read, paths), rows, left_out)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not empty, with what a sentence calls them. Raises DataError for one of another
    form."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        raise DataError(f"{path}: this is one list of json, write every object of it on a line of its own")
    yield from ((f"line {number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _row(path: Path, root: Path, what: str, line: str) -> tuple[str, str, Any]:
    """A line's picture, a path below the data root, and its content. Raises DataError."""
    content = parsed_line(path, what, line, "correct it")
    name = needed(path, what, content, "file_name" if "image" not in content and "file_name" in content else "image")
    if not isinstance(name, str) or not name:
        raise DataError(f"{path}: {what} has the image {shortened(name)}, give the name of a file")
    if Path(name).is_relative_to(root.resolve()):
        name = str(Path(name).relative_to(root.resolve()))
    return what, inside(path, what, name), content
