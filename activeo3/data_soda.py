"""SODA-A (aerial) and SODA-D (driving): small objects in very large pictures, cut into tiles.

The sets of "Towards Large-Scale Small Object Detection" (arXiv 2207.14096). SODA-D has one json file per
split in COCO's format, SODA-A one json file per picture with polygons. Category ``ignore`` marks areas in
which nothing was labelled: what is found there is neither asked for nor punished.

Their authors cut the pictures into tiles of 800 x 800 pixels that share 150 (their README calls the 150 a
stride, their code uses it as the overlap). An object at the border of a tile counts there if enough of it
is inside: more than 40 % in SODA-D, at least 70 % in SODA-A; less is treated as a crowd.

The tables of an evaluation have both: what is found in each tile, and what the tiles of a picture have found together,
as the authors score it (eval_tiles.py).

Deviations from the authors' tools:

1. Ignored areas stay in the picture, as crowds. They paint them black, apart from labelled objects in them.
2. A picture smaller than a tile is not padded.
3. A polygon becomes the smallest upright box around it. SODA-A's authors use rotated boxes, and leave out
   polygons with more than four corners.
4. ACTIVE-O3 trains on 1,000 random pictures of each set, and does not say whether it cut them. Here they
   are 1,000 of the tiles that have a question in them, or 1,000 whole pictures without tiling.
5. In training, their SODA-D tool lays tiles only as far to the right and down as there are objects.

Pictures that their tools have cut already (``divData``) are read as the tiles they are, if the whole pictures are not
there. Then nothing says what is in a whole picture, and there is no table of whole pictures.

SODA-A has 2,513 json files with 872,069 polygons, and some ten thousand after the authors have cut them. They are read
once: what was in them is kept as arrays beside their folder, ``<folder>.index.npz``. A picture's file has ``images``
(file_name, width, height, id) and ``annotations`` (poly, category_id, area); a tile's has ``filename``, ``width``,
``height``, where it begins (``x_start``, ``y_start``), the name of the picture it is from (``ori_id``) and
``annotations`` (poly, cat_id). The kept file belongs to exactly the files that it was read from, their sizes and times
of change, and to the program text that read them.
"""

import hashlib
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Self, Sequence

import numpy as np
from pydantic import Field, model_validator

from activeo3 import data_annotations, data_io
from activeo3.data_annotations import (
    Checked,
    Index,
    Picture,
    Question,
    Start,
    checked_boxes,
    checked_picture,
    grouped,
    read_coco,
)
from activeo3.data_coco import box_questions
from activeo3.data_files import files_of, folder_of, look_for
from activeo3.data_io import (
    DataError,
    Finite,
    Id,
    LeftOut,
    Pixels,
    Row,
    checked,
    needed,
    numbered,
    originals,
    read_json,
    shortened,
)
from activeo3.data_set import Dataset, Source, register
from activeo3.data_tiles import counted, cut
from activeo3.metric_rules import SODA_A, SODA_D, MetricRules

SPLITS = {"train": 0, "val": 0, "test": 0}
Arrays = Mapping[str, np.ndarray]
ORIGIN = "https://shaunyuan22.github.io/SODA"
TRAINED_ON = 1_000
"""Pictures of the training split that are asked about (ACTIVE-O3, section 5)."""

AERIAL = ("airplane", "helicopter", "small-vehicle", "large-vehicle", "ship", "container", "storage-tank",
          "swimming-pool", "windmill", "ignore")  # fmt: skip
"""SODA-A's categories, numbered from 0."""
DRIVING = ("people", "rider", "bicycle", "motor", "vehicle", "traffic-sign", "traffic-light", "traffic-camera",
           "warning-cone", "ignore")  # fmt: skip
"""SODA-D's categories, numbered from 1."""


class Layout(NamedTuple):
    """Where annotations lie, and the folders that the pictures may be in; ``tiles`` that the authors' tools have
    cut."""

    annotations: str
    images: tuple[str, ...]
    tiles: bool = False


def _layouts(homes: Sequence[str], below: Sequence[Layout]) -> tuple[Layout, ...]:
    """The layouts below each of the folders that a set may be in."""
    return tuple(
        Layout(f"{home}/{one.annotations}", tuple(f"{home}/{folder}" for folder in one.images), one.tiles)
        for one in below for home in homes
    )  # fmt: skip


AERIAL_LAYOUTS = _layouts(("SODA-A", "SODA/SODA-A"), (
    Layout("Annotations/{split}/*.json", ("Images/{split}", "Images/Images/{split}", "Images/Images", "Images")),
    Layout("rawData/{split}/Annotations/*.json", ("rawData/{split}/Images",)),
    Layout("divData/{split}/Annotations/*.json", ("divData/{split}/Images",), tiles=True),
))  # fmt: skip
"""As SODA-A's archives unpack, and the trees of SODA-mmrotate."""
DRIVING_LAYOUTS = _layouts(("SODA-D", "SODA/SODA-D"), (
    Layout("Annotations/{split}.json", ("Images/{split}", "Images/Images/{split}", "Images/Images", "Images")),
    Layout("rawData/Annotations/{split}.json", ("rawData/Images/{split}", "rawData/Images/Images", "rawData/Images")),
    Layout("divData/Annotations/{split}.json", ("divData/Images/{split}", "divData/Images"), tiles=True),
))  # fmt: skip
"""As SODA-D's archives unpack, and the trees of SODA-mmdetection."""


@register("soda_a", SPLITS, ORIGIN, images=2_513)
def open_soda_a(source: Source) -> Dataset:
    """The first of AERIAL_LAYOUTS that is there: a json file per picture. Pictures have the ids of their files."""
    paths, images, tiles = _files(source, AERIAL_LAYOUTS)
    index = read_aerial(paths, images, dict(enumerate(_words(AERIAL))), source.keep)
    return _finished(source, index, tiles, SODA_A, ignored=AERIAL.index("ignore"), enough=0.7)


@register("soda_d", SPLITS, ORIGIN, images=24_828)
def open_soda_d(source: Source) -> Dataset:
    """The first of DRIVING_LAYOUTS that is there: a json file per split."""
    (path,), images, tiles = _files(source, DRIVING_LAYOUTS)
    index = read_coco(path, images, dict(enumerate(_words(DRIVING), start=1)))
    # "More than 40 %": the next number after 0.4.
    enough = float(np.nextafter(0.4, 1))
    return _finished(source, index, tiles, SODA_D, ignored=1 + DRIVING.index("ignore"), enough=enough)


def _files(source: Source, layouts: Sequence[Layout]) -> tuple[tuple[Path, ...], Path, bool]:
    """The annotations of the first layout that is there, with its pictures if there is one, the folder of the pictures,
    and whether they are tiles. Raises DataError."""
    root, split = source.folder(), source.split
    known = {layout.annotations: layout for layout in layouts}
    whole = [
        pattern
        for pattern, layout in known.items()
        if any((root / folder.format(split=split)).is_dir() for folder in layout.images)
    ]
    found = look_for(root, whole, split=split) or files_of(root, known, split=split)
    layout = known[found.pattern]
    return found.paths, folder_of(root, layout.images, split=split), layout.tiles


def _words(names: Sequence[str]) -> list[str]:
    """Category names as words to ask for."""
    return [name.replace("-", " ") for name in names]


def _finished(source: Source, index: Index, tiles: bool, rules: MetricRules, ignored: int, enough: float) -> Dataset:
    """From pictures to what is asked: ignored areas spread, tiles cut unless they are ``tiles``, training pictures
    drawn."""
    index = spread_ignored(index, ignored)
    if tiles and (source.tile, source.tile_overlap) != (Source.tile, Source.tile_overlap):
        raise DataError(
            f"{source.root}: {source.name} is there in tiles of {Source.tile} that share {Source.tile_overlap} pixels: "
            f"give --data_options tile={Source.tile} tile_overlap={Source.tile_overlap}, or add the whole pictures"
        )
    if source.tile and not tiles:
        index = cut(index, source.tile, source.tile_overlap, enough)
    if source.split == "train":
        index = drawn(index, TRAINED_ON, source.seed)
    return box_questions(source, index, rules)


def spread_ignored(index: Index, ignored: int) -> Index:
    """Without category ``ignored``: its boxes become crowds of every other question of their picture."""
    areas = {question.image_id: question for question in index.questions if question.category_id == ignored}
    questions = []
    for question in index.questions:
        if question.category_id == ignored:
            continue
        if question.image_id in areas:
            blank = areas[question.image_id]
            question = Question(
                question.image_id, question.category_id, question.query,
                np.concatenate([question.boxes_px, blank.boxes_px]),
                np.concatenate([question.areas, blank.areas]),
                np.concatenate([question.crowd, np.ones(len(blank.crowd), dtype=bool)]),
            )  # fmt: skip
        questions.append(question)
    return index._replace(questions=tuple(questions))


def drawn(index: Index, count: int, seed: int) -> Index:
    """The questions of ``count`` pictures, drawn from those that have any."""
    asked = sorted({question.image_id for question in index.questions})
    taken = set(np.random.default_rng(seed).permutation(asked)[:count].tolist())
    return index._replace(questions=tuple(q for q in index.questions if q.image_id in taken))


# ---------------------------------------------------------------------- SODA-A's json files


_CODE = [Path(__file__), Path(data_annotations.__file__), Path(data_io.__file__)]
"""The program text that decides what is read from a file."""


def read_aerial(paths: Sequence[Path], images: Path, names: Mapping[int, str], keep: bool) -> Index:
    """The pictures and questions of all files; what is wrong is left out. ``keep`` as in ``remembered``.

    Raises DataError if no file can be used.
    """
    folder = paths[0].parent
    store = folder.with_name(f"{folder.name}.index.npz")
    arrays = remembered(store, paths, _CODE, lambda: _read_files(paths, names), keep)
    if not len(arrays["names"]):
        left_out = LeftOut(arrays["dropped"].tolist())
        raise left_out.nothing(f"{folder}: there is no picture in its {len(paths):,} files")
    return _aerial_index(arrays, images, names)


def _read_files(paths: Sequence[Path], names: Mapping[int, str]) -> Arrays:
    """What is in the files: ``names``, ``sizes``, ``ids``, ``corners`` and ``sources`` of the pictures, and their
    ``places`` among the files; ``owners`` (pictures, by their position), ``categories``, ``boxes`` and ``areas`` of the
    polygons."""
    pictures: list[tuple[int, Mapping[str, Any], Picture]] = []
    found: list[tuple[np.ndarray, ...]] = []
    left_out, own = LeftOut(), {number: number for number in names}
    for place, path in enumerate(counted(paths, f"reading {paths[0].parent}")):
        with left_out:
            content = read_json(path)
            entry, picture = _picture(path, content)
            rows = left_out.each(content["annotations"], lambda number, row: _as_box(path, f"annotation {number}", row))
            found.append(checked_boxes(Checked(path, left_out, {0: picture}, names, {0: 0}, own), rows))
            pictures.append((place, entry, picture))
    keys, boxes, areas, _ = map(np.concatenate, zip(*found)) if found else (np.zeros((0, 4)),) * 4
    entries = [entry for _, entry, _ in pictures]
    return {
        "places": np.array([place for place, _, _ in pictures], dtype=np.int64),
        "names": np.array([str(picture.path) for _, _, picture in pictures], dtype=np.str_),
        "sizes": np.array([picture.size for _, _, picture in pictures], dtype=np.int64).reshape(-1, 2),
        "ids": np.array([str(entry.get("id", "")) for entry in entries], dtype=np.str_),
        "corners": np.array([entry.get("corner", (0, 0)) for entry in entries], dtype=np.int64).reshape(-1, 2),
        "sources": np.array([str(entry.get("source", "")) for entry in entries], dtype=np.str_),
        "owners": np.repeat(np.arange(len(found)), [len(own[0]) for own in found]),
        "categories": keys[:, 1].astype(np.int64),
        "boxes": boxes,
        "areas": areas,
        "dropped": np.array(left_out, dtype=np.str_),
    }


class TileRow(Row):
    """A file of a tile: where it begins, and the picture it is from."""

    x_start: Start = Field(description="give whole pixels")
    y_start: Start = Field(description="give whole pixels")
    ori_id: str | int


class PolygonRow(Row):
    """An annotation: x and y of the corners in turn."""

    poly: list[Pixels] = Field(description="give the x, y of its corners")
    category_id: Any = None
    cat_id: Any = None
    area: Finite | None = Field(None, description="give it in square pixels")

    @model_validator(mode="after")
    def _is_polygon(self) -> Self:
        if len(self.poly) < 6 or len(self.poly) % 2:
            raise ValueError(f"is no polygon ({shortened(self.poly)}), correct or remove it")
        return self


def _picture(path: Path, content: Any) -> tuple[Mapping[str, Any], Picture]:
    """The entry of a file's picture, and the picture without its folder. Raises DataError."""
    entry, rows = (content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations"))
    if isinstance(content, dict) and "x_start" in content:
        tile = checked(TileRow, path, "its tile", content)
        entry = {key: content.get(key) for key in ("width", "height")}
        entry |= {"file_name": content.get("filename"), "corner": (tile.x_start, tile.y_start), "source": tile.ori_id}
    if not isinstance(entry, dict) or not isinstance(rows, list):
        raise DataError(f"{path}: a SODA-A file needs one picture under 'images' and a list under 'annotations'")
    return entry, checked_picture(path, "its picture", entry, Path())


def _as_box(path: Path, what: str, content: Any) -> tuple[str, dict[str, Any]]:
    """A polygon as an annotation in COCO's form, with what it is called: the smallest upright box around it. Raises
    DataError."""
    row = checked(PolygonRow, path, what, content)
    x, y = row.poly[::2], row.poly[1::2]
    own = row.area if row.area and row.area > 0 else _area(x, y)
    category = needed(path, what, content, "cat_id" if "cat_id" in content else "category_id")
    sides = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return what, {"image_id": 0, "category_id": category, "bbox": sides, "area": own}


def _area(x: Sequence[float], y: Sequence[float]) -> float:
    """The area of a polygon, by the shoelace formula.

    >>> _area([0, 2, 2, 0], [0, 0, 3, 3])
    6.0
    """
    return abs(sum(x[k - 1] * y[k] - x[k] * y[k - 1] for k in range(len(x)))) / 2


def _aerial_index(arrays: Arrays, images: Path, names: Mapping[int, str]) -> Index:
    """The index of what was read. Pictures have the ids of their files, or, if these are not all different, their
    places."""
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
    """An id for every picture: those of the files, or, if they are not all different, the places of the files from 1
    on."""
    ids: list[Id] = [
        int(one) if one.isascii() and one.isdigit() and str(int(one)) == one else one for one in arrays["ids"].tolist()
    ]
    return ids if "" not in ids and len(set(ids)) == len(ids) else (arrays["places"] + 1).tolist()


# ---------------------------------------------------------------------- what was read, kept as arrays


VERSION = "version"


def remembered(
    store: Path, sources: Sequence[Path], code: Iterable[Path], read: Callable[[], Arrays], keep: bool = True
) -> Arrays:
    """``read()``, or what it returned when it last read the same ``sources`` with the same ``code``.

    ``store`` is an ``.npz`` file. A folder that cannot be written to is no error, and ``keep`` False writes nothing:
    then it is read again next time.
    """
    version = _version(sources, code)
    arrays = _load(store, version)
    if arrays is None:
        arrays = read()
        if keep:
            _save(store, version, arrays)
    return arrays


def _version(sources: Sequence[Path], code: Iterable[Path]) -> str:
    """A digest of names, sizes and times of change, and of the program text."""
    found = hashlib.blake2b(digest_size=20)
    for path in sources:
        state = path.stat()
        found.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    for path in code:
        found.update(path.read_bytes())
    return found.hexdigest()


def _load(store: Path, version: str) -> Arrays | None:
    """What is kept, or None: a file that is torn, or of another version, counts for nothing."""
    try:
        with np.load(store, allow_pickle=False) as kept:
            return (
                {name: kept[name] for name in kept.files if name != VERSION} if str(kept[VERSION]) == version else None
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(store: Path, version: str, arrays: Arrays) -> None:
    part = store.with_suffix(f".part{os.getpid()}")  # ranks may write at once, each its own
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays, **{VERSION: np.array(version)})
        part.replace(store)
    except OSError:
        with suppress(OSError):
            part.unlink()
