"""SODA-A's json files, one per picture (or one per tile, as the authors' tool cuts them): checked, and kept as arrays.

There are 2,513 of them with 872,069 polygons, and some ten thousand after the authors have cut them. They are read with a
bar, once: data_cache.py keeps what was in them beside their folder, ``<folder>.index.npz``.

A picture's file has ``images`` (file_name, width, height, id) and ``annotations`` (poly, category_id, area); a tile's has
``filename``, ``width``, ``height``, where it begins (``x_start``, ``y_start``), the name of the picture it is from
(``ori_id``) and ``annotations`` (poly, cat_id).
"""

from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

from activeo3 import data_annotations, data_io
from activeo3.data_annotations import LARGEST_SIDE, Index, Picture, checked_picture, grouped
from activeo3.data_cache import Arrays, counted, remembered
from activeo3.data_io import DataError, Id, LeftOut, is_number, needed, numbered, originals, read_json, shortened
from activeo3.geometry import area, as_boxes, clipped

_CODE = [Path(__file__), Path(data_annotations.__file__), Path(data_io.__file__)]
"""The program text that decides what is read from a file."""


class Polygon(NamedTuple):
    """A polygon of a file: its category, the smallest upright box (xyxy, pixels) around it, and its area."""

    category: int
    box_px: tuple[float, float, float, float]
    area: float


def read_aerial(paths: Sequence[Path], images: Path, names: Mapping[int, str], keep: bool) -> Index:
    """The pictures and questions of all files; what is wrong is left out. ``keep`` as in ``data_cache.remembered``.

    Raises DataError if no file can be used.
    """
    folder = paths[0].parent
    store = folder.with_name(f"{folder.name}.index.npz")
    arrays = remembered(store, paths, _CODE, lambda: _read(paths, names), keep)
    if not len(arrays["names"]):
        left_out = LeftOut(arrays["dropped"].tolist())
        raise left_out.nothing(f"{folder}: there is no picture in its {len(paths):,} files")
    return _index(arrays, images, names)


def _read(paths: Sequence[Path], names: Mapping[int, str]) -> Arrays:
    """What is in the files: ``names``, ``sizes``, ``ids``, ``corners`` and ``sources`` of the pictures, and their ``places``
    among the files; ``owners`` (pictures, by their position), ``categories``, ``boxes`` and ``areas`` of the polygons."""
    pictures: list[tuple[int, Mapping[str, Any], Picture]] = []
    owners, polygons = [], []
    left_out = LeftOut()
    for place, path in enumerate(counted(paths, f"reading {paths[0].parent}")):
        with left_out:
            content = read_json(path)
            entry, picture = _picture(path, content)
            own = _polygons(path, content["annotations"], picture.size, names, left_out)
            owners += [len(pictures)] * len(own)
            polygons += own
            pictures.append((place, entry, picture))
    entries = [entry for _, entry, _ in pictures]
    return {
        "places": np.array([place for place, _, _ in pictures], dtype=np.int64),
        "names": np.array([str(picture.path) for _, _, picture in pictures], dtype=np.str_),
        "sizes": np.array([picture.size for _, _, picture in pictures], dtype=np.int64).reshape(-1, 2),
        "ids": np.array([str(entry.get("id", "")) for entry in entries], dtype=np.str_),
        "corners": np.array([entry.get("corner", (0, 0)) for entry in entries], dtype=np.int64).reshape(-1, 2),
        "sources": np.array([str(entry.get("source", "")) for entry in entries], dtype=np.str_),
        "owners": np.array(owners, dtype=np.int64),
        "categories": np.array([polygon.category for polygon in polygons], dtype=np.int64),
        "boxes": as_boxes([polygon.box_px for polygon in polygons]),
        "areas": np.array([polygon.area for polygon in polygons], dtype=np.float64),
        "dropped": np.array(left_out, dtype=np.str_),
    }


def _picture(path: Path, content: Any) -> tuple[Mapping[str, Any], Picture]:
    """The entry of a file's picture, and the picture without its folder. Raises DataError."""
    entry, rows = (content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations"))
    if isinstance(content, dict) and "x_start" in content:
        corner = [needed(path, "its tile", content, key) for key in ("x_start", "y_start")]
        if not all(type(start) is int and 0 <= start <= LARGEST_SIDE for start in corner):
            raise DataError(f"{path}: its tile begins at {shortened(corner)}, give whole pixels")
        sizes = {key: content.get(key) for key in ("width", "height")}
        entry = sizes | {
            "file_name": content.get("filename"),
            "corner": corner,
            "source": needed(path, "its tile", content, "ori_id"),
        }
    if not isinstance(entry, dict) or not isinstance(rows, list):
        raise DataError(f"{path}: a SODA-A file needs one picture under 'images' and a list under 'annotations'")
    return entry, checked_picture(path, "its picture", entry, Path())


def _polygons(
    path: Path, rows: Sequence[Any], size: tuple[int, int], names: Mapping[int, str], left_out: LeftOut
) -> list[Polygon]:
    """The polygons of a file that have an area inside of a picture of ``size``, their boxes clipped to it."""
    checked: list[tuple[int, Polygon]] = []
    for number, row in enumerate(rows):
        with left_out:
            checked.append((number, _polygon(path, f"annotation {number}", row, names)))
    raw = as_boxes([polygon.box_px for _, polygon in checked])
    inner = clipped(raw, size)
    found = []
    for (number, polygon), outer, within, box in zip(checked, area(raw).tolist(), area(inner).tolist(), inner.tolist()):
        if within > 0:
            found.append(polygon._replace(box_px=tuple(box)))
        else:
            why = "has no area" if outer <= 0 else "lies outside of its picture"
            left_out.append(f"{path}: annotation {number} {why} (box {polygon.box_px}), correct or remove it")
    return found


def _polygon(path: Path, what: str, row: Any, names: Mapping[int, str]) -> Polygon:
    """A polygon of a file. Raises DataError."""
    poly = needed(path, what, row, "poly")
    if not isinstance(poly, list) or not all(map(is_number, poly)) or max(map(abs, poly), default=0) > LARGEST_SIDE:
        raise DataError(f"{path}: {what} has the poly {shortened(poly)}, give the x, y of its corners")
    if len(poly) < 6 or len(poly) % 2:
        raise DataError(f"{path}: {what} is no polygon ({shortened(poly)}), correct or remove it")
    category = needed(path, what, row, "cat_id" if "cat_id" in row else "category_id")
    if type(category) is not int or category not in names:
        raise DataError(f"{path}: {what} names the unknown category id {shortened(category)}, correct it")
    x, y = poly[::2], poly[1::2]
    size = row.get("area")
    if size is not None and not is_number(size):
        raise DataError(f"{path}: {what} has the area {shortened(size)}, give it in square pixels")
    own = float(size) if size and size > 0 else _area(x, y)
    return Polygon(category, (float(min(x)), float(min(y)), float(max(x)), float(max(y))), own)


def _area(x: Sequence[float], y: Sequence[float]) -> float:
    """The area of a polygon, by the shoelace formula.

    >>> _area([0, 2, 2, 0], [0, 0, 3, 3])
    6.0
    """
    return abs(sum(x[k - 1] * y[k] - x[k] * y[k - 1] for k in range(len(x)))) / 2


def _index(arrays: Arrays, images: Path, names: Mapping[int, str]) -> Index:
    """The index of what was read. Pictures have the ids of their files, or, if these are not all different, their places."""
    ids = _ids(arrays)
    own = numbered(ids)
    numbers = np.array([own[one] for one in ids], dtype=np.int64)
    sources = {source: number for number, source in enumerate(sorted(set(arrays["sources"].tolist()) - {""}), start=1)}
    pictures = {}
    columns = (arrays[key].tolist() for key in ("names", "sizes", "corners", "sources"))
    for number, name, size, corner, source in zip(numbers.tolist(), *columns):
        (width, height), (left, top) = size, corner
        tile = {"window": (left, top, left + width, top + height), "source_id": sources[source]} if source else {}
        pictures[number] = Picture(images / name, (width, height), **tile)
    keys = np.stack([numbers[arrays["owners"]], arrays["categories"]], axis=1)
    crowd = np.zeros(len(keys), dtype=bool)
    questions = grouped(keys, arrays["boxes"], arrays["areas"], crowd, names)
    paths = tuple(picture.path for picture in pictures.values())
    return Index(pictures, questions, tuple(arrays["dropped"].tolist()), paths, names=names, image_ids=originals(own))


def _ids(arrays: Arrays) -> list[Id]:
    """An id for every picture: those of the files, or, if they are not all different, the places of the files from 1 on."""
    ids: list[Id] = [
        int(one) if one.isascii() and one.isdigit() and str(int(one)) == one else one for one in arrays["ids"].tolist()
    ]
    return ids if "" not in ids and len(set(ids)) == len(ids) else (arrays["places"] + 1).tolist()
