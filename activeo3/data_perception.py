"""PixMo-Count (things in images from the web, counted and pointed at) and pages with their text: your own, and Fox's.

PixMo-Count (Molmo, arXiv 2409.17146). The tables name images by url and by the SHA-256 of their content; they come
without the images. An image lies under the SHA-256 of its content, with any ending, in ``pixmo-count/images``, where
data_fetch.py puts it, or under the SHA-256 of its url in ``pixmo_images``, where Molmo's own downloader does
(``olmo/data/download_urls.py``). One whose content has changed on the web since is refused, because its points would be
elsewhere; Molmo's downloader keeps it, and keeps the text of an error in place of an image that it could not get.
Others publish the same table with the images inside (a column ``image``), and Perception-R1 val and test as lists with
their images. These are taken as they are: most have been written anew, so that no SHA-256 fits them.

Pages: your own to train on, and Fox's to evaluate on (arXiv 2405.14295). A json file is a list of pages in the form
that the reference and Fox use, or shorter:

    [{"image": "en_1.png", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "the text"}]},
     {"image": "a/2.png", "text": "the text"}]
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Mapping, NamedTuple, Sequence

import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field, field_validator

from activeo3.data_fetch import PART, Wanted
from activeo3.data_files import files_of, folder_of
from activeo3.data_io import (
    DataError,
    Finite,
    LeftOut,
    Row,
    checked,
    decode_picture,
    inside,
    parsed_line,
    read_json,
    read_picture,
    read_text,
    regular,
)
from activeo3.data_set import ONE_SPLIT, Dataset, Source, register
from activeo3.data_tables import PICTURE, ParquetTable, Place, picture_at
from activeo3.types import Count, Example

SPLITS = {"train": "train", "val": "validation", "test": "test"}
TABLES = (
    "pixmo-count/data/{split}-*.parquet", "pixmo_count/data/{split}-*.parquet",
    "pixmo-count-images/data/{split}-*.parquet", "pixmo-count/{split}-*.parquet",
)  # fmt: skip
FETCHED = "pixmo-count/images"
"""Where downloaded images go."""
LISTS = ("jsons/counting/pixmo_count_{short}540.jsonl", "eval/jsons/counting/pixmo_count_{short}540.jsonl")
"""Perception-R1's lists of val and test, whose images lie in ``images`` beside ``jsons``."""
FOLDERS = (FETCHED, "pixmo_count/images", "pixmo_images", "torch_datasets/pixmo_images")
"""Where images lie; the last two are Molmo's PIXMO_IMAGE_DIR."""
FOX = {"focus_benchmark_test": "focus_benchmark_test", "jsons/ocr": "images/ocr", "eval/jsons/ocr": "eval/images/ocr"}
"""Where Fox's lists lie, and the folders of its pages: as it is published, and as Perception-R1 has it."""


def _spaced(text: str) -> str:
    """A text with single spaces. Raises ValueError if there is nothing in it."""
    return " ".join(text.split())


Words = Annotated[str, Field(pattern=r"\S", description="give a text"), AfterValidator(_spaced)]


class Point(Row):
    """A point in pixels."""

    x: Finite
    y: Finite


class PixmoRow(Row):
    """A row of a table. The points are a list of them, or two lists, as the hub stores such a list."""

    image_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="download the file again")  # the name of a file
    count: int = Field(ge=0, description="download the file again")
    label: Words
    image_url: str = ""
    points: list[Point] = Field(description="give a list of x and y in pixels")

    @field_validator("points", mode="before")
    @classmethod
    def _listed(cls, stored: Any) -> Any:
        if isinstance(stored, dict):
            xs, ys = stored.get("x") or [], stored.get("y") or []
            return [{"x": x, "y": y} for x, y in zip(xs, ys, strict=True)]
        return [] if stored is None else stored


class ListedRow(Row):
    """A line of Perception-R1's lists."""

    question: Words
    ground_truth: int = Field(ge=0, description="give a count")
    image_path: str


class Counted(NamedTuple):
    """How many ``label`` there are in an image, and where (pixels); () if that is not known.

    ``image`` is the file, or the row of a table. ``sha256`` is that of its content, empty if it came with the list;
    ``name`` identifies the image.
    """

    name: str
    label: str
    count: int
    points_px: tuple[tuple[float, float], ...]
    image: Place
    sha256: str = ""
    url: str = ""


@register(
    "pixmo_count",
    dict.fromkeys(SPLITS, 0),
    "https://huggingface.co/datasets/allenai/pixmo-count",
    answers="counting",
    fetched=FETCHED,
)
def open_pixmo_count(source: Source) -> Dataset[Counted]:
    """Reads the tables of TABLES (image_url, image_sha256, count, points, label, and maybe image), or one of LISTS.

    ``query`` is the label. The points of the training split are the places of the ``count``; the sets to evaluate on
    have none.
    """
    root, split, left_out = source.folder(), source.split, LeftOut()
    found = files_of(root, (*TABLES, *LISTS), split=SPLITS[split], short=split)
    if found.pattern in LISTS:
        asked = _of_list(found.path, left_out)
    else:
        files = _stored(root)
        asked = [one for path in found.paths for one in _of_table(path, root, files, left_out)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(one.name for one in asked), start=1)}

    def read(one: Counted, index: int) -> Example:
        example_id = f"{source.name}:{split}:{index}"
        image = _checked_picture(one, example_id) if one.sha256 else picture_at(one.image, example_id)
        if any(not (0 <= x <= image.width and 0 <= y <= image.height) for x, y in one.points_px) and not one.sha256:
            size = f"{image.width}x{image.height}"
            raise DataError(
                f"example {example_id}: points lie outside of its picture of {size}, it was resized", example_id
            )
        places = np.tile(np.array(one.points_px, dtype=np.float64), 2) if one.points_px else None
        return Example(example_id, image, one.label, image_id=numbers[one.name], count=Count(one.count, places))

    return source.dataset(
        asked, read, left_out, (one.image for one in asked if isinstance(one.image, Path)), found.path
    )


def wanted(dataset: Dataset[Counted]) -> list[Wanted]:
    """Every image that is named by urls, with the urls that it can be had from."""
    urls: dict[str, list[str]] = {}
    for one in dataset.items:
        if one.url and one.sha256:
            urls.setdefault(one.sha256, []).append(one.url)
    return [Wanted(sha256, tuple(dict.fromkeys(own))) for sha256, own in urls.items()]


def _of_table(path: Path, root: Path, files: Mapping[str, Path], left_out: LeftOut) -> list[Counted]:
    """The rows of a table; those that are wrong are left out."""
    table = ParquetTable(path, needs=())
    whole = PICTURE in table.types
    named = [] if whole and "image_url" not in table.types else ["image_url"]

    def counted(number: int, content: Mapping[str, Any]) -> Counted:
        row = checked(PixmoRow, path, f"row {number}", content)
        if row.points and len(row.points) != row.count:
            raise DataError(f"{path}: row {number} has {len(row.points)} points and the count {row.count}")
        if named and not row.image_url.strip():
            raise DataError(f"{path}: row {number} has no image_url, download the file again")
        points = tuple((point.x, point.y) for point in row.points)
        if whole:
            return Counted(row.image_sha256, row.label, row.count, points, (table, number))
        names = (row.image_sha256, hashlib.sha256(row.image_url.encode()).hexdigest())
        image = next((files[name] for name in names if name in files), root / FETCHED / f"{row.image_sha256}.jpg")
        return Counted(row.image_sha256, row.label, row.count, points, image, row.image_sha256, row.image_url)

    return left_out.each(table.values(["image_sha256", "count", "points", "label", *named]), counted)


def _stored(root: Path) -> dict[str, Path]:
    """Every image on this disk by the name of its file, without the ending."""
    there: dict[str, Path] = {}
    for folder in reversed([root / place for place in FOLDERS]):  # the first place counts most
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        there |= {path.stem: path for path in files if path.suffix != PART}
    return there


def _of_list(path: Path, left_out: LeftOut) -> list[Counted]:
    """Perception-R1's list, a json object per line; lines that are wrong are left out."""

    def counted(number: int, line: str) -> Counted:
        what = f"line {number + 1}"
        row = checked(ListedRow, path, what, parsed_line(path, what, line))
        image = path.parents[2] / "images" / inside(path, what, row.image_path)
        return Counted(row.image_path, row.question, row.ground_truth, (), image)

    return left_out.each(read_text(path).splitlines(), counted)


def _checked_picture(asked: Counted, example_id: str) -> Image.Image:
    """The image in a file, if it is the one that was counted. Raises DataError."""
    try:
        content = regular(asked.image).read_bytes()
    except OSError:
        where = f"get it from {asked.url}"
        raise DataError(f"{asked.image}: the picture of example {example_id} is missing, {where}", example_id) from None
    if hashlib.sha256(content).hexdigest() != asked.sha256:
        what = f"this is not the picture that example {example_id} is about, remove it"
        raise DataError(f"{asked.image}: {what}", example_id)
    return decode_picture(content, str(asked.image), example_id)


# ---------------------------------------------------------------------------- pages


class PageRow(Row):
    """A page in a list: its image, and its text or the turns of a conversation of which the second is the text."""

    image: str = Field(min_length=1, description="give a file name")
    text: Any = None
    conversations: Any = ()


class Page(NamedTuple):
    """An image of a page and its text."""

    image: Path
    text: str


@register("pageocr", {"train": 0, "val": 0}, "your own pages, see data/README.md", answers="ocr", any_split=True)
def open_pageocr(source: Source) -> Dataset[Page]:
    """``pageocr/<split>.json`` with the images in ``pageocr/images``."""
    folder = source.folder("pageocr")
    return _open_pages(source, folder / f"{source.split}.json", folder / "images")


@register("fox_en", {"test": 112}, "https://github.com/ucaslcl/Fox", answers="ocr", aliases=ONE_SPLIT)
@register("fox_cn", {"test": 0}, "https://github.com/ucaslcl/Fox", answers="ocr", aliases=ONE_SPLIT)
def open_fox(source: Source) -> Dataset[Page]:
    """Fox's 112 English pages, or its Chinese ones."""
    root, language = source.folder(), source.name.removeprefix("fox_")
    path = files_of(root, [f"{folder}/{{language}}_page_ocr.json" for folder in FOX], language=language).path
    images = folder_of(root, [f"{folder}/{{language}}_pdf_png" for folder in FOX.values()], language=language)
    return _open_pages(source, path, images)


def _open_pages(source: Source, path: Path, images: Path) -> Dataset[Page]:
    rows, left_out = read_json(path), LeftOut()
    if not isinstance(rows, list):
        raise DataError(f"{path}: the file needs a list of pages, see data/README.md for their form")
    pages = left_out.each(rows, lambda number, row: _page(path, f"page {number}", row, images))

    def read(page: Page, index: int) -> Example:
        example_id = f"{source.name}:{page.image.stem}"
        return Example(
            example_id, read_picture(page.image, None, example_id), "page", image_id=index + 1, text=page.text
        )

    return source.dataset(pages, read, left_out, (page.image for page in pages), path)


def _page(path: Path, what: str, content: Any, images: Path) -> Page:
    """A page of a list. Raises DataError."""
    row = checked(PageRow, path, what, content)
    turns = row.conversations if isinstance(row.conversations, Sequence) else ()
    values = [turn.get("value") for turn in turns if isinstance(turn, dict)]
    text = row.text if "text" in content else values[1] if len(values) > 1 else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{path}: {what} has no text, add it or remove the entry")
    return Page(images / inside(path, what, row.image), text)
