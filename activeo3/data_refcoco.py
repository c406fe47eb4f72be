"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg, in whose questions a phrase has exactly one box.

The partitions are those of papers: unc for RefCOCO and RefCOCO+, umd for RefCOCOg. Six layouts are public
(data_refcoco_files.py), and the first one that is there is read. Pictures are COCO 2014's training pictures, in a folder
of their own or inside a table.
"""

from pathlib import Path
from typing import Mapping, NamedTuple

from activeo3.data_io import DataError, Id, LeftOut, numbered
from activeo3.data_refcoco_files import LAYOUTS, Files, Object
from activeo3.data_set import PICTURES, Dataset, Source, files_of, folder_of, register
from activeo3.data_tables import Place, picture_at
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


class Referred(NamedTuple):
    """A phrase, its picture, the picture's size where the file says it, and the box (xyxy, pixels) that it refers to."""

    image_id: Id
    picture: Place
    size: tuple[int, int] | None
    phrase: str
    box_px: tuple[float, float, float, float]


def open_refcoco(source: Source) -> Dataset[Referred]:
    """The phrases of a split, in the first layout that is there; every example has exactly one box, and ``query`` is the phrase.

    Splits are train, val, testA (people) and testB (everything else) of RefCOCO and RefCOCO+, which is the same without words
    of place, and train, val, test of RefCOCOg with its longer phrases. Raises DataError.
    """
    family, root, split = FAMILIES[source.name], source.folder(), source.split
    names = family._asdict() | {"lower": family.hub.lower()}
    del names["splits"], names["sizes"]
    found = files_of(root, LAYOUTS, split=split, hub_split=family.splits[split], **names)
    files, left_out = Files(found.paths, folder_of(root, PICTURES, part=PART), split), LeftOut()
    asked: list[Referred] = []
    for one in LAYOUTS[found.pattern](files, left_out):
        with left_out:
            asked += _referred(one, left_out)
    numbers = numbered(one.image_id for one in asked)

    def read(one: Referred, index: int) -> Example:
        example_id = f"{source.name}:{split}:{index}"
        image = picture_at(one.picture, example_id, one.size)
        box = clipped(as_boxes([one.box_px]), image.size)
        if area(box)[0] <= 0:
            what = f"the box {one.box_px} lies outside of its picture of {image.size}"
            raise DataError(f"example {example_id}: {what}", example_id)
        return Example(example_id, image, one.phrase, box, image_id=numbers[one.image_id])

    files_there = (one.picture for one in asked if isinstance(one.picture, Path))
    return source.dataset(asked, read, left_out, files_there, found.path)


for _name, _family in FAMILIES.items():
    register(_name, _family.sizes, ORIGIN)(open_refcoco)


def _referred(one: Object, left_out: LeftOut) -> list[Referred]:
    """The questions about an object, one for each of its phrases; ``image_id`` is the file's. Raises DataError if
    there is none. An empty phrase among others is left out alone."""
    phrases = one.phrases if isinstance(one.phrases, list | tuple) else ()
    good = [" ".join(phrase.split()) for phrase in phrases if isinstance(phrase, str) and phrase.strip()]
    empty = DataError(f"{one.path}: {one.what} has an empty phrase, download the file again")
    if not good:
        raise empty
    box = clipped(as_boxes([one.box_px]), one.size) if one.size else as_boxes([one.box_px])
    if area(box)[0] <= 0:
        raise DataError(f"{one.path}: {one.what} has a box without area in its picture, correct it")
    left_out += [str(empty)] * (len(phrases) - len(good))
    return [Referred(one.image_id, one.picture, one.size, phrase, tuple(box[0].tolist())) for phrase in good]
