"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg, in whose questions a phrase has exactly one box.

The partitions are those of papers: unc for RefCOCO and RefCOCO+, umd for RefCOCOg. Images are COCO 2014's training
images, in a folder of their own or inside a table. The first of these layouts that is there is read:

    mdetr_annotations/finetune_refcoco_val.json          MDETR's: COCO files in which every expression is an image
    refcoco/data/validation-*.parquet                    the hub's jxu124/refcoco, refcocoplus, refcocog
    refcoco/refs(unc).p, refcoco/instances.json          the authors', of which one is a Python pickle
    RefCOCO/data/val-*.parquet                           the hub's lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg, images
    inside rec_jsons_processed/refcoco_val.json, ..._train.jsonl    VLM-R1's: image, problem, solution
    jsons/grounding/refcoco_val.json                     Perception-R1's: the same (and eval/jsons/grounding)

A pickle can name any function to be called when it is read. This one needs none, lists and texts alone, so
a file that names one is refused before anything of it is called.

lmms-lab's val of RefCOCO has 8,811 rows: the 3,811 of the partition unc and then 5,000 of google, as the sizes of its
files say (the files themselves were not opened here). The first 3,811 are read; if they are those of unc, they have
1,500 images.
"""

import pickle
import re
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

from pydantic import Field, field_validator

from activeo3.data_annotations import Boxed, by_id, checked_picture
from activeo3.data_files import PICTURES, files_of, folder_of
from activeo3.data_io import (
    DataError,
    FourPixels,
    Id,
    LeftOut,
    Row,
    checked,
    id_of,
    inside,
    list_under,
    needed,
    numbered,
    parsed_json,
    read_json,
    read_text,
    regular,
)
from activeo3.data_set import Dataset, Source, register
from activeo3.data_tables import PICTURE, ParquetTable, Place, picture_at
from activeo3.geometry import area, as_boxes, clipped
from activeo3.types import Example

ORIGIN = "https://github.com/lichengunc/refer, pictures https://cocodataset.org (2014 train)"
PART = "train2014"
"""The part of COCO that the pictures are from."""


class Family(NamedTuple):
    """How one of the three sets is called in its files (``short``: by VLM-R1 and Perception-R1), its partition, and its
    splits by their names on the hub, with their numbers of images."""

    folder: str
    short: str
    hub: str
    partition: str
    splits: Mapping[str, str]
    sizes: Mapping[str, int]


_UNC = {"train": "train", "val": "validation", "testA": "test", "testB": "testB"}
_UMD = {"train": "train", "val": "validation", "test": "test"}
FAMILIES: dict[str, Family] = {
    "refcoco": Family(
        "refcoco", "refcoco", "RefCOCO", "unc", _UNC, {"train": 16_994, "val": 1_500, "testA": 750, "testB": 750}
    ),
    "refcoco_plus": Family(
        "refcoco+", "refcocop", "RefCOCOplus", "unc", _UNC, {"train": 16_992, "val": 1_500, "testA": 750, "testB": 750}
    ),
    "refcocog": Family("refcocog", "refcocog", "RefCOCOg", "umd", _UMD, {"train": 21_899, "val": 1_300, "test": 2_600}),
}


class Object(NamedTuple):
    """An object that phrases refer to: ``box_px`` is xyxy, maybe reaching out of the picture, whose ``size`` is None
    where the file does not say it. ``path`` and ``what`` are what a complaint names."""

    path: Path
    what: str
    image_id: Id
    picture: Place
    size: tuple[int, int] | None
    box_px: tuple[float, float, float, float]
    phrases: Sequence[Any]


class Files(NamedTuple):
    """The files of a split in one layout, the folder of COCO 2014's training pictures, and the split."""

    paths: tuple[Path, ...]
    images: Path
    split: str


Read = Callable[[Files, LeftOut], Iterator[Object]]

_UNC_VAL, _UNC_AND_GOOGLE = 3_811, 8_811
"""Rows of RefCOCO's val in the partition unc; rows of lmms-lab's."""
_NUMBER = re.compile(r"COCO_[^\W_]++_(\d++)")


def open_refcoco(source: Source) -> Dataset[Object]:
    """The phrases of a split, in the first layout that is there; every example has exactly one box, and ``query`` is
    the phrase.

    Splits are train, val, testA (people) and testB (everything else) of RefCOCO and RefCOCO+, which is the same without
    words of place, and train, val, test of RefCOCOg with its longer phrases. Raises DataError.
    """
    family, root, split = FAMILIES[source.name], source.folder(), source.split
    names = family._asdict() | {"lower": family.hub.lower()}
    del names["splits"], names["sizes"]
    found = files_of(root, LAYOUTS, split=split, hub_split=family.splits[split], **names)
    files, left_out = Files(found.paths, folder_of(root, PICTURES, part=PART), split), LeftOut()
    asked: list[Object] = []
    for one in LAYOUTS[found.pattern](files, left_out):
        with left_out:
            asked += _referred(one, left_out)
    numbers = numbered(one.image_id for one in asked)

    def read(one: Object, index: int) -> Example:
        example_id = f"{source.name}:{split}:{index}"
        image = picture_at(one.picture, example_id, one.size)
        box = clipped(as_boxes([one.box_px]), image.size)
        if area(box)[0] <= 0:
            what = f"the box {one.box_px} lies outside of its picture of {image.size}"
            raise DataError(f"example {example_id}: {what}", example_id)
        return Example(example_id, image, one.phrases[0], box, image_id=numbers[one.image_id])

    files_there = (one.picture for one in asked if isinstance(one.picture, Path))
    return source.dataset(asked, read, left_out, files_there, found.path)


def _referred(one: Object, left_out: LeftOut) -> list[Object]:
    """The object once for each of its phrases. Raises DataError if there is none; an empty one among others is left
    out."""
    phrases = one.phrases if isinstance(one.phrases, list | tuple) else ()
    good = [" ".join(phrase.split()) for phrase in phrases if isinstance(phrase, str) and phrase.strip()]
    empty = DataError(f"{one.path}: {one.what} has an empty phrase, download the file again")
    if not good:
        raise empty
    box = clipped(as_boxes([one.box_px]), one.size) if one.size else as_boxes([one.box_px])
    if area(box)[0] <= 0:
        raise DataError(f"{one.path}: {one.what} has a box without area in its picture, correct it")
    left_out += [str(empty)] * (len(phrases) - len(good))
    return [one._replace(box_px=tuple(box[0].tolist()), phrases=(phrase,)) for phrase in good]


# ---------------------------------------------------------------------------- COCO's entries


def of_mdetr(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """MDETR's file: an image per expression, with a caption, and one annotation for each."""
    (path,) = files.paths
    content = read_json(path)
    images, annotations = (list_under(path, content, key) for key in ("images", "annotations"))
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for number, annotation in enumerate(annotations):
        with left_out:
            found.setdefault(id_of(path, f"annotation {number}", annotation, "image_id"), []).append(annotation)
    for number, image in by_id(path, "image", images, left_out).items():
        with left_out:
            what = f"image {number}"
            if len(found.get(number, ())) != 1:
                raise DataError(
                    f"{path}: {what} has {len(found.get(number, ()))} boxes and not one, download the file again"
                )
            # Many entries are one picture, whose own number is the original one.
            own = image | {"id": image.get("original_id", number)}
            yield _as_coco(path, what, own, found[number][0], [needed(path, what, image, "caption")], files.images)


def of_pickle(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """The authors' two files: objects with their sentences, and COCO's entries for them."""
    (path,) = files.paths
    instances = path.parent / "instances.json"
    content = read_json(instances)
    images, boxes = (
        by_id(instances, kind, list_under(instances, content, f"{kind}s"), left_out) for kind in ("image", "annotation")
    )
    refs = read_pickle(path)
    if not isinstance(refs, list):
        raise DataError(f"{path}: the file holds no list of objects, download it again")
    for number, ref in enumerate(refs):
        with left_out:
            what = f"reference {number}"
            if needed(path, what, ref, "split") != files.split:
                continue
            image = images.get(id_of(path, what, ref, "image_id"))
            annotation = boxes.get(id_of(path, what, ref, "ann_id"))
            sentences = needed(path, what, ref, "sentences")
            if image is None or annotation is None:
                raise DataError(f"{path}: {what} is not in {instances.name}, download both files again")
            if not isinstance(sentences, list):
                raise DataError(f"{path}: {what} has no sentences, download the file again")
            phrases = [sentence.get("sent") if isinstance(sentence, dict) else None for sentence in sentences]
            yield _as_coco(path, what, image, annotation, phrases, files.images)


def _as_coco(
    path: Path, what: str, image: Mapping[str, Any], annotation: Mapping[str, Any], phrases: Sequence[Any], images: Path
) -> Object:
    """An object from COCO's entries of its picture and its box. Raises DataError."""
    picture = checked_picture(path, f"the image of {what}", image, images)
    image_id = id_of(path, f"the image of {what}", image, "id")
    x, y, width, height = checked(Boxed, path, what, annotation).bbox
    return Object(path, what, image_id, picture.path, picture.size, (x, y, x + width, y + height), phrases)


# ---------------------------------------------------------------------------- tables


def of_tables(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """The tables of a split, by the columns that they have. Raises DataError for others."""
    columns = ParquetTable(files.paths[0], needs=()).types
    for needs, read in _COLUMNS.items():
        if all(name in columns for name in needs):
            yield from read(files, left_out)
            return
    known = "; ".join(", ".join(needs) for needs in _COLUMNS)
    raise DataError(
        f"{files.paths[0]}: the columns are {', '.join(columns)}; a table of RefCOCO has {known}: download another one"
    )


def _of_jxu124(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """A row per object; image and annotation are COCO's own entries, as texts of json."""
    for path in files.paths:
        for number, row in enumerate(ParquetTable(path, ()).values(("raw_image_info", "raw_anns", "captions"))):
            with left_out:
                what = f"row {number}"
                image, annotation = (_parsed(row[key]) for key in ("raw_image_info", "raw_anns"))
                if not isinstance(image, dict) or not isinstance(annotation, dict) or "id" not in image:
                    raise DataError(f"{path}: {what} holds no image and annotation as json, download the file again")
                yield _as_coco(path, what, image, annotation, row["captions"] or (), files.images)


def _of_lmms_lab(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """A row per object, with its picture; the sentences are the ``answer`` to the question what is in the box."""
    rows = [
        (table, number, row)
        for table in map(ParquetTable, files.paths)
        for number, row in enumerate(table.values(("answer", "bbox", "file_name")))
    ]
    if len(rows) == _UNC_AND_GOOGLE:
        others = f"{len(rows) - _UNC_VAL:,} rows behind the first {_UNC_VAL:,} are of the partition google"
        left_out.append(f"{files.paths[0].parent}: {others}")
        rows = rows[:_UNC_VAL]
    for table, number, row in rows:
        with left_out:
            what = f"row {number}"
            x, y, width, height = checked(Boxed, table.path, what, row).bbox
            image_id = _image_id(str(row["file_name"]), f"{table.path.name} {number}")
            box = (x, y, x + width, y + height)
            yield Object(table.path, what, image_id, (table, number), None, box, row["answer"] or ())


def _of_perception_r1(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """A row per phrase, with its picture. Only with thousandths beside it, the solution is known to be in pixels."""
    for path in files.paths:
        table = ParquetTable(path)
        for number, row in enumerate(table.values(("problem", "solution"))):
            with left_out:
                yield _solved(path, f"row {number}", row, (table, number), f"{path.name} {number}")


_COLUMNS: dict[tuple[str, ...], Read] = {
    ("raw_image_info", "raw_anns", "captions"): _of_jxu124,
    (PICTURE, "answer", "bbox", "file_name"): _of_lmms_lab,
    (PICTURE, "problem", "solution", "normalized_solution"): _of_perception_r1,
}
"""What reads a table, by the columns it needs."""


# ---------------------------------------------------------------------------- problems and solutions


def of_solutions(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """A list, or a json object per line: ``image``, ``problem`` and ``solution`` (x1, y1, x2, y2), or ``conversations``
    of a problem and its solution."""
    (path,) = files.paths
    rows = [_parsed(line) for line in read_text(path).splitlines()] if path.suffix == ".jsonl" else read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: the file needs a list of objects with image, problem and solution, download it again")
    for number, row in enumerate(rows):
        with left_out:
            what = f"row {number}"
            name = inside(path, what, str(needed(path, what, row, PICTURE)))
            if isinstance(row.get("conversations"), list):
                turns = [turn.get("value") for turn in row["conversations"] if isinstance(turn, dict)]
                row = dict(zip(("problem", "solution"), turns))
            own_folder = name.startswith(f"{files.images.name}/")  # train2014/COCO_train2014_000000000009.jpg
            picture = (files.images.parent if own_folder else files.images) / name
            yield _solved(path, what, row, picture, name)


class Solution(Row):
    """A problem and its solution, x1, y1, x2, y2."""

    problem: Any
    solution: FourPixels = Field(description="give x1, y1, x2, y2 in pixels")

    @field_validator("solution", mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        return _parsed(value) if isinstance(value, str) else value


def _solved(path: Path, what: str, content: Any, picture: Place, name: str) -> Object:
    """An object from a problem and its solution. Raises DataError."""
    row = checked(Solution, path, what, content)
    phrase = phrase_of(row.problem) if isinstance(row.problem, str) else row.problem
    return Object(path, what, _image_id(name, name), picture, None, row.solution, [phrase])


def phrase_of(problem: str) -> str:
    """The phrase in a problem, which may be a sentence that asks for its box.

    >>> phrase_of("<image>Please provide the bounding box coordinate of the region this sentence describes: "
    ...           "the red cup.")
    'the red cup'
    """
    text = problem.replace("<image>", "").strip()
    _, asks, phrase = text.rpartition("describes:")
    return phrase.strip().removesuffix(".") if asks else text


def _image_id(name: str, otherwise: str) -> Id:
    """COCO's number of a picture, from its file's name."""
    number = _NUMBER.search(name)
    return int(number.group(1)) if number else otherwise


def _parsed(text: Any) -> Any:
    """What a text of json says; None if it is no such text."""
    try:
        return parsed_json(text)
    except (ValueError, TypeError, RecursionError):
        return None


class _Values(pickle.Unpickler):
    """Reads lists, dictionaries, texts and numbers; whatever else a pickle names is not even looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_pickle(path: Path) -> Any:
    """A pickle of plain values. Raises DataError for anything that would run code, or that is no pickle."""
    try:
        with regular(path).open("rb") as file:
            return _Values(file, encoding="latin-1").load()  # Python 2 wrote it
    except Exception as error:  # a broken pickle raises whatever it happens to meet
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{path}: the pickle cannot be read as plain values ({reason}), do not trust this file"
        ) from None


LAYOUTS: dict[str, Read] = {
    "mdetr_annotations/finetune_{folder}_{split}.json": of_mdetr,
    "{folder}/data/{hub_split}-*.parquet": of_tables,
    "{folder}/refs({partition}).p": of_pickle,
    "{lower}/data/{hub_split}-*.parquet": of_tables,
    "{folder}/data/{split}-*.parquet": of_tables,
    "{hub}/data/{split}-*.parquet": of_tables,
    "rec_jsons_processed/{short}_{split}.json": of_solutions,
    "rec_jsons_processed/{short}_{split}.jsonl": of_solutions,
    "jsons/grounding/{short}_{split}.json": of_solutions,
    "eval/jsons/grounding/{short}_{split}.json": of_solutions,
}
"""What reads the files of a split, by where they lie (data_files.py), in the order in which they are looked for."""

for _name, _family in FAMILIES.items():
    register(_name, _family.sizes, ORIGIN, answers="grounding")(open_refcoco)
