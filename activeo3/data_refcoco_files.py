"""The files that RefCOCO, RefCOCO+ and RefCOCOg are published in, each read as objects with their phrases.

    mdetr_annotations/finetune_refcoco_val.json          MDETR's: COCO files in which every expression is an image
    refcoco/data/validation-*.parquet                    the hub's jxu124/refcoco, refcocoplus, refcocog
    refcoco/refs(unc).p, refcoco/instances.json          the authors', of which one is a Python pickle
    RefCOCO/data/val-*.parquet                           the hub's lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg, pictures inside
    rec_jsons_processed/refcoco_val.json, ..._train.jsonl    VLM-R1's: image, problem, solution
    jsons/grounding/refcoco_val.json                     Perception-R1's: the same (and eval/jsons/grounding)

A pickle can name any function to be called when it is read. This one needs none, lists and texts alone, so
a file that names one is refused before anything of it is called.

lmms-lab's val of RefCOCO has 8,811 rows: the 3,811 of the partition unc and then 5,000 of google, as the sizes of its files
say (nobody has looked into them here). The first 3,811 are read; if they are those of unc, they have 1,500 pictures.
"""

import pickle
import re
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

from activeo3.data_annotations import by_id, checked_bbox, checked_picture
from activeo3.data_io import (
    DataError,
    Id,
    LeftOut,
    id_of,
    inside,
    is_number,
    needed,
    parsed_json,
    read_json,
    read_text,
    regular,
    shortened,
)
from activeo3.data_tables import PICTURE, ParquetTable, Place, column_types, parquet_rows


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


def of_mdetr(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """MDETR's file: an image per expression, with a caption, and one annotation for each."""
    (path,) = files.paths
    content = read_json(path)
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: the file needs a list of objects under the key '{key}', download it again")
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for number, annotation in enumerate(content["annotations"]):
        with left_out:
            found.setdefault(id_of(path, f"annotation {number}", annotation, "image_id"), []).append(annotation)
    for number, image in by_id(path, "image", content["images"], left_out).items():
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
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    ):
        raise DataError(
            f"{instances}: the file needs lists of objects under 'images' and 'annotations', download it again"
        )
    images, boxes = (by_id(instances, kind, content[f"{kind}s"], left_out) for kind in ("image", "annotation"))
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
    x, y, width, height = checked_bbox(path, what, annotation)
    return Object(path, what, image_id, picture.path, picture.size, (x, y, x + width, y + height), phrases)


# ---------------------------------------------------------------------------- tables


def of_tables(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """The tables of a split, by the columns that they have. Raises DataError for others."""
    columns = column_types(files.paths[0])
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
        for number, row in enumerate(parquet_rows(path, ("raw_image_info", "raw_anns", "captions"))):
            with left_out:
                what = f"row {number}"
                image, annotation = (_parsed(row[key]) for key in ("raw_image_info", "raw_anns"))
                if not isinstance(image, dict) or not isinstance(annotation, dict) or "id" not in image:
                    raise DataError(f"{path}: {what} holds no image and annotation as json, download the file again")
                yield _as_coco(path, what, image, annotation, row["captions"] or (), files.images)


def _of_lmms_lab(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """A row per object, with its picture; the sentences are the ``answer`` to the question what is in the box."""
    rows = [
        (path, number, row)
        for path in files.paths
        for number, row in enumerate(parquet_rows(path, ("answer", "bbox", "file_name")))
    ]
    if len(rows) == _UNC_AND_GOOGLE:
        left_out.append(
            f"{files.paths[0].parent}: {len(rows) - _UNC_VAL:,} rows behind the first {_UNC_VAL:,} are of the partition google"
        )
        rows = rows[:_UNC_VAL]
    tables = {path: ParquetTable(path) for path in files.paths}
    for path, number, row in rows:
        with left_out:
            what = f"row {number}"
            x, y, width, height = checked_bbox(path, what, row)
            image_id = _image_id(str(row["file_name"]), f"{path.name} {number}")
            yield Object(
                path, what, image_id, (tables[path], number), None, (x, y, x + width, y + height), row["answer"] or ()
            )


def _of_perception_r1(files: Files, left_out: LeftOut) -> Iterator[Object]:
    """A row per phrase, with its picture. Only with thousandths beside it, the solution is known to be in pixels."""
    for path in files.paths:
        table = ParquetTable(path)
        for number, row in enumerate(parquet_rows(path, ("problem", "solution"))):
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
                said = [turn.get("value") for turn in row["conversations"] if isinstance(turn, dict)]
                row = dict(zip(("problem", "solution"), said))
            own_folder = name.startswith(f"{files.images.name}/")  # train2014/COCO_train2014_000000000009.jpg
            picture = (files.images.parent if own_folder else files.images) / name
            yield _solved(path, what, row, picture, name)


def _solved(path: Path, what: str, row: Mapping[str, Any], picture: Place, name: str) -> Object:
    """An object from a problem and its solution. Raises DataError."""
    problem, box = needed(path, what, row, "problem"), needed(path, what, row, "solution")
    box = _parsed(box) if isinstance(box, str) else box
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise DataError(f"{path}: {what} has the solution {shortened(box)}, give x1, y1, x2, y2 in pixels")
    phrase = phrase_of(problem) if isinstance(problem, str) else problem
    return Object(path, what, _image_id(name, name), picture, None, tuple(map(float, box)), [phrase])


def phrase_of(problem: str) -> str:
    """The phrase in a problem, which may be a sentence that asks for its box.

    >>> phrase_of("<image>Please provide the bounding box coordinate of the region this sentence describes: the red cup.")
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
"""What reads the files of a split, by where they lie (data_set.py), in the order in which they are looked for."""
