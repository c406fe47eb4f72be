"""PixMo-Count: things in pictures from the web, counted and pointed at (Molmo, arXiv 2409.17146).

The tables name pictures by url and by the SHA-256 of their content; they come without the pictures. A picture
lies under the SHA-256 of its content, with any ending, in ``pixmo-count/images``, where data_fetch.py puts it, or under
the SHA-256 of its url in ``pixmo_images``, where Molmo's own downloader does (``olmo/data/download_urls.py``). One whose
content has changed on the web since is refused, because its points would be elsewhere; Molmo's downloader keeps it, and
keeps the text of an error in place of a picture that it could not get.

Others publish the same table with the pictures inside (a column ``image``), and Perception-R1 val and test as lists
with their pictures. These are taken as they are: most have been written anew, so that no SHA-256 fits them.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, NamedTuple

import numpy as np
from PIL import Image

from activeo3.data_fetch import PART, Wanted
from activeo3.data_io import (
    DataError,
    LeftOut,
    Source,
    decode_picture,
    inside,
    is_number,
    needed,
    parsed_json,
    read_text,
    regular,
    shortened,
    within,
)  # fmt: skip
from activeo3.data_layouts import files_of
from activeo3.data_tables import PICTURE, ParquetTable, Place, column_types, parquet_rows, picture_at
from activeo3.types import Count, Example

SPLITS = {"train": "train", "val": "validation", "test": "test"}
COLUMNS = ("image_sha256", "count", "points", "label")
TABLES = (
    "pixmo-count/data/{split}-*.parquet", "pixmo_count/data/{split}-*.parquet",
    "pixmo-count-images/data/{split}-*.parquet", "pixmo-count/{split}-*.parquet",
)  # fmt: skip
FETCHED = "pixmo-count/images"
"""Where downloaded pictures go."""
LISTS = ("jsons/counting/pixmo_count_{short}540.jsonl", "eval/jsons/counting/pixmo_count_{short}540.jsonl")
"""Perception-R1's lists of val and test, whose pictures lie in ``images`` beside ``jsons``."""
PICTURES = (FETCHED, "pixmo_count/images", "pixmo_images", "torch_datasets/pixmo_images")
"""Where pictures lie; the last two are Molmo's PIXMO_IMAGE_DIR."""


class Counted(NamedTuple):
    """How many ``label`` there are in a picture, and where (pixels); () if nobody pointed.

    ``stored`` is where the picture is that came with the list, a file or the row of a table; None if it is to be found by
    its SHA-256. Perception-R1's lists have the name of a file in its place.
    """

    sha256: str
    url: str
    label: str
    count: int
    points_px: tuple[tuple[float, float], ...]
    stored: Place | None = None

    @property
    def names(self) -> tuple[str, str]:
        """What its file may be called, without an ending."""
        return self.sha256, hashlib.sha256(self.url.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class PixmoDataset:
    """Rows in the order of the files. ``query`` is the label. The points of the training split are the places of the
    ``count``; the sets to evaluate on have none."""

    split: str
    root: Path
    questions: tuple[Counted, ...]
    dropped: tuple[str, ...] = ()
    name: str = "pixmo_count"

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        """The number of every picture, by its SHA-256."""
        return {
            sha256: number
            for number, sha256 in enumerate(dict.fromkeys(asked.sha256 for asked in self.questions), start=1)
        }

    @cached_property
    def _files(self) -> Mapping[str, Path]:
        """The file of every picture that has one, by its SHA-256, with the ending that it has on this disk."""
        there: dict[str, Path] = {}
        for folder in reversed([self.root / place for place in PICTURES]):  # the first place counts most
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            there |= {path.stem: path for path in files if path.suffix != PART}
        found: dict[str, Path] = {}
        for asked in self.questions:
            if asked.stored is None and asked.sha256 not in found:
                own = (there[name] for name in asked.names if name in there)
                found[asked.sha256] = next(own, self.root / FETCHED / f"{asked.sha256}.jpg")
        return found

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The file of every picture; none if they are inside the tables."""
        own = dict.fromkeys(asked.stored for asked in self.questions if isinstance(asked.stored, Path))
        return (*self._files.values(), *own)

    @property
    def wanted(self) -> list[Wanted]:
        """Every picture with the urls that it can be had from."""
        urls: dict[str, list[str]] = {}
        for asked in self.questions:
            if asked.url and asked.stored is None:
                urls.setdefault(asked.sha256, []).append(asked.url)
        return [Wanted(sha256, tuple(dict.fromkeys(own))) for sha256, own in urls.items()]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the picture is missing, has changed or cannot be read."""
        index = within(index, len(self))
        asked = self.questions[index]
        example_id = f"{self.name}:{self.split}:{index}"
        places = np.tile(np.array(asked.points_px, dtype=np.float64), 2) if asked.points_px else None
        if asked.stored is None:
            image = _checked_picture(self._files[asked.sha256], asked, example_id)
        else:
            image = picture_at(asked.stored, example_id)
            _refuse_outside(asked, image.size, example_id)
        return Example(
            example_id, image, asked.label, image_id=self._numbers[asked.sha256], count=Count(asked.count, places)
        )


def open_pixmo_count(source: Source) -> PixmoDataset:
    """Reads the tables of TABLES (image_url, image_sha256, count, points, label, and maybe image), or one of LISTS."""
    root = source.folder("pixmo_count", "")
    split = source.one_of("pixmo_count", SPLITS)
    found = files_of(root, (*TABLES, *LISTS), split=SPLITS[split], short=split)
    if found.pattern in LISTS:
        return _of_list(root, split, found.path)
    questions: list[Counted] = []
    left_out = LeftOut()
    for path in found.paths:
        columns = column_types(path)
        table = ParquetTable(path) if PICTURE in columns else None
        named = [] if table and "image_url" not in columns else ["image_url"]
        for number, row in enumerate(parquet_rows(path, [*COLUMNS, *named])):
            with left_out:
                questions.append(
                    _checked(path, f"row {number}", row)._replace(stored=(table, number) if table else None)
                )
    if not questions:
        raise left_out.nothing(
            f"{root / TABLES[0]}: the tables of the split '{split}' hold no question, download them again"
        )
    return PixmoDataset(split, root, tuple(questions), tuple(left_out))


def _checked(path: Path, what: str, row: Mapping[str, Any]) -> Counted:
    """A row of a table. Raises DataError for the first thing that is wrong."""
    for key in ("image_sha256", "image_url", "label"):
        if key in row and (not isinstance(row[key], str) or not row[key].strip()):
            raise DataError(f"{path}: {what} has no {key}, download the file again")
    sha256 = row["image_sha256"]
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):  # it becomes the name of a file
        raise DataError(f"{path}: {what} has the image_sha256 {shortened(sha256)}, download the file again")
    if type(row["count"]) is not int or row["count"] < 0:
        raise DataError(f"{path}: {what} has the count {shortened(row['count'])}, download the file again")
    points = _points(row["points"])
    if points is None:
        raise DataError(f"{path}: {what} has points that are not numbers, download the file again")
    if points and len(points) != row["count"]:
        raise DataError(f"{path}: {what} has {len(points)} points and the count {row['count']}")
    label = " ".join(row["label"].split())
    return Counted(sha256, row.get("image_url", ""), label, row["count"], points)


def _points(stored: Any) -> tuple[tuple[float, float], ...] | None:
    """The points (x, y) of a list of them, or of two lists, as the hub stores such a list; None if they are no numbers."""
    if isinstance(stored, dict):
        xs, ys = stored.get("x") or [], stored.get("y") or []
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            return None
        stored = [{"x": x, "y": y} for x, y in zip(xs, ys)]
    points = stored or []
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        return None
    found = tuple((point.get("x"), point.get("y")) for point in points)
    return found if all(is_number(side) for point in found for side in point) else None


def _of_list(root: Path, split: str, path: Path) -> PixmoDataset:
    """Perception-R1's list: a json object per line, ``question`` (the label), ``ground_truth`` and ``image_path``."""
    questions, left_out = [], LeftOut()
    for number, line in enumerate(read_text(path).splitlines()):
        with left_out:
            what = f"line {number + 1}"
            try:
                row = parsed_json(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: {what} is not valid json ({error}), download the file again") from None
            label, count, name = (needed(path, what, row, key) for key in ("question", "ground_truth", "image_path"))
            if not isinstance(label, str) or not label.strip() or type(count) is not int or count < 0:
                raise DataError(
                    f"{path}: {what} asks for {shortened(label)} with the count {shortened(count)}, download the file again"
                )
            picture = path.parents[2] / "images" / inside(path, what, str(name))
            questions.append(Counted(str(name), "", " ".join(label.split()), count, (), picture))
    if not questions:
        raise left_out.nothing(f"{path}: the list holds no question, download it again")
    return PixmoDataset(split, root, tuple(questions), tuple(left_out))


def _checked_picture(path: Path, asked: Counted, example_id: str) -> Image.Image:
    """The picture in a file, if it is the one that was counted. Raises DataError."""
    try:
        content = regular(path).read_bytes()
    except OSError:
        raise DataError(
            f"{path}: the picture of example {example_id} is missing, get it from {asked.url}", example_id
        ) from None
    if hashlib.sha256(content).hexdigest() != asked.sha256:
        raise DataError(f"{path}: this is not the picture that example {example_id} is about, remove it", example_id)
    return decode_picture(content, str(path), example_id)


def _refuse_outside(asked: Counted, size: tuple[int, int], example_id: str) -> None:
    """Raises DataError if a picture inside a table has been made smaller than its points are."""
    if any(not (0 <= x <= size[0] and 0 <= y <= size[1]) for x, y in asked.points_px):
        raise DataError(
            f"example {example_id}: points lie outside of its picture of {size[0]}x{size[1]}, it was resized",
            example_id,
        )
