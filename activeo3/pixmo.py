"""PixMo-Count: things in pictures from the web, counted and pointed at (Molmo, arXiv 2409.17146).

The tables name pictures by url and by the SHA-256 of their content; they come without the pictures. A picture
lies under its SHA-256, with any ending, in ``pixmo-count/images``. One whose content has changed on the web since
is refused, because its points would be elsewhere.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from activeo3.files import DAMAGED, DataError, Source, decode_picture, is_number, within
from activeo3.schema import Example
from activeo3.tables import parquet_rows

SPLITS = {"train": "train", "val": "validation", "test": "test"}
COLUMNS = ("image_url", "image_sha256", "count", "points", "label")


class Counted(NamedTuple):
    """How many ``label`` there are in a picture, and where (pixels); () if nobody pointed."""

    sha256: str
    url: str
    label: str
    count: int
    points_px: tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class PixmoDataset:
    """Rows in the order of the files. ``query`` is the label; the fields are ``count`` and, for the training
    split, ``points_px`` (N, 2). The sets to evaluate on have no points."""

    split: str
    folder: Path
    questions: tuple[Counted, ...]
    dropped: tuple[str, ...] = ()
    name: str = "pixmo_count"

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The file of every picture, with the ending that it has on this disk."""
        there = {path.stem: path for path in sorted(self.folder.iterdir())} if self.folder.is_dir() else {}
        names = dict.fromkeys(question.sha256 for question in self.questions)
        return tuple(there.get(name, self.folder / f"{name}.jpg") for name in names)

    @cached_property
    def _numbers(self) -> dict[str, tuple[int, Path]]:
        return {path.stem: (number, path) for number, path in enumerate(self.paths, start=1)}

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the picture is missing, has changed or cannot be read."""
        index = within(index, len(self))
        asked = self.questions[index]
        number, path = self._numbers[asked.sha256]
        example_id = f"{self.name}:{self.split}:{index}"
        try:
            content = path.read_bytes()
        except DAMAGED:
            raise DataError(f"{path}: the picture of example {example_id} is missing, get it from {asked.url}", example_id) from None
        if hashlib.sha256(content).hexdigest() != asked.sha256:
            raise DataError(f"{path}: this is not the picture that example {example_id} is about, remove it", example_id)
        fields: dict[str, Any] = {"count": asked.count}
        if asked.points_px:
            fields["points_px"] = np.array(asked.points_px)
        image = decode_picture(content, str(path), example_id)
        return Example(example_id, image, asked.label, np.zeros((0, 4)), image_id=number, fields=fields)


def open_pixmo_count(source: Source) -> PixmoDataset:
    """Reads ``pixmo-count/data/<split>-*.parquet`` (image_url, image_sha256, count, points, label)."""
    folder = source.folder("pixmo_count", "pixmo-count")
    split = source.one_of("pixmo_count", SPLITS)
    questions: list[Counted] = []
    dropped: list[str] = []
    for path in sorted((folder / "data").glob(f"{SPLITS[split]}-*.parquet")):
        for number, row in enumerate(parquet_rows(path, COLUMNS)):
            counted = _checked(path, f"row {number}", row)
            if counted.points_px and len(counted.points_px) != counted.count:
                dropped.append(f"{path}: row {number} has {len(counted.points_px)} points and the count {counted.count}, it is left out")
            else:
                questions.append(counted)
    if not questions:
        raise DataError(f"{folder / 'data'}: there is no table of the split '{split}', see data/README.md")
    return PixmoDataset(split, folder / "images", tuple(questions), tuple(dropped))


def _checked(path: Path, what: str, row: dict[str, Any]) -> Counted:
    """A row of a table. Raises DataError for the first thing that is wrong."""
    for key in ("image_sha256", "image_url", "label"):
        if not isinstance(row[key], str) or not row[key].strip():
            raise DataError(f"{path}: {what} has no {key}, download the file again")
    sha256 = row["image_sha256"]
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):  # it becomes the name of a file
        raise DataError(f"{path}: {what} has the image_sha256 {sha256!r}, download the file again")
    if type(row["count"]) is not int or row["count"] < 0:
        raise DataError(f"{path}: {what} has the count {row['count']!r}, download the file again")
    points = row["points"] or []
    if isinstance(points, dict):  # the hub stores a list of points as two lists
        points = [{"x": x, "y": y} for x, y in zip(points.get("x") or (), points.get("y") or (), strict=False)]
    if not all(isinstance(point, dict) and is_number(point.get("x")) and is_number(point.get("y")) for point in points):
        raise DataError(f"{path}: {what} has points that are not numbers, download the file again")
    label = " ".join(row["label"].split())
    return Counted(sha256, row["image_url"], label, row["count"], tuple((point["x"], point["y"]) for point in points))
