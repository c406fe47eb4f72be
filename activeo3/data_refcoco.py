"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg, in whose questions a phrase has exactly one box.

The partitions are those of papers: unc for RefCOCO and RefCOCO+, umd for RefCOCOg. Six layouts are public
(data_refcoco_files.py), and the first one that is there is read. Pictures are COCO 2014's training pictures, in a folder
of their own or inside a table.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, NamedTuple

from activeo3.data_ids import Id, numbered
from activeo3.data_io import DataError, LeftOut, Source, within
from activeo3.data_layouts import PICTURES, files_of, folder_of
from activeo3.data_refcoco_files import LAYOUTS, Files, Object
from activeo3.data_tables import Place, picture_at
from activeo3.geometry import area, as_boxes, clipped
from activeo3.types import Example

PART = "train2014"
"""The part of COCO that the pictures are from."""


class Family(NamedTuple):
    """How one of the three sets is called in its files (``short``: by VLM-R1 and Perception-R1), its partition, and its
    splits by their names on the hub."""

    folder: str
    short: str
    hub: str
    partition: str
    splits: Mapping[str, str]


_UNC = {"train": "train", "val": "validation", "testA": "test", "testB": "testB"}
_UMD = {"train": "train", "val": "validation", "test": "test"}
FAMILIES: dict[str, Family] = {
    "refcoco": Family("refcoco", "refcoco", "RefCOCO", "unc", _UNC),
    "refcoco_plus": Family("refcoco+", "refcocop", "RefCOCOplus", "unc", _UNC),
    "refcocog": Family("refcocog", "refcocog", "RefCOCOg", "umd", _UMD),
}


class Referred(NamedTuple):
    """A phrase, its picture, the picture's size where the file says it, and the box (xyxy, pixels) that it refers to."""

    image_id: Id
    picture: Place
    size: tuple[int, int] | None
    phrase: str
    box_px: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class ReferringDataset:
    """Phrases in the order of the file; every example has exactly one box, and ``query`` is the phrase."""

    name: str
    split: str
    questions: tuple[Referred, ...]
    dropped: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The picture files; none if the pictures are inside tables."""
        places = (question.picture for question in self.questions)
        return tuple(dict.fromkeys(place for place in places if isinstance(place, Path)))

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the picture is missing or cannot be read, or the box lies outside of it."""
        index = within(index, len(self))
        asked = self.questions[index]
        example_id = f"{self.name}:{self.split}:{index}"
        image = picture_at(asked.picture, example_id, asked.size)
        box = clipped(as_boxes([asked.box_px]), image.size)
        if area(box)[0] <= 0:
            raise DataError(
                f"example {example_id}: the box {asked.box_px} lies outside of its picture of {image.size}", example_id
            )
        return Example(example_id, image, asked.phrase, box, image_id=asked.image_id)


def open_refcoco(source: Source) -> ReferringDataset:
    """RefCOCO: train, val, testA (people), testB (everything else)."""
    return _open("refcoco", source)


def open_refcoco_plus(source: Source) -> ReferringDataset:
    """RefCOCO+: the same, without words of place."""
    return _open("refcoco_plus", source)


def open_refcocog(source: Source) -> ReferringDataset:
    """RefCOCOg: train, val, test; longer phrases."""
    return _open("refcocog", source)


def _open(name: str, source: Source) -> ReferringDataset:
    """The phrases of a split, in the first layout that is there. Raises DataError."""
    family = FAMILIES[name]
    root, split = source.folder(name, ""), source.one_of(name, family.splits)
    parts = {
        "folder": family.folder,
        "partition": family.partition,
        "short": family.short,
        "hub": family.hub,
        "lower": family.hub.lower(),
    }
    found = files_of(root, LAYOUTS, split=split, hub_split=family.splits[split], **parts)
    left_out = LeftOut()
    questions: list[Referred] = []
    for one in LAYOUTS[found.pattern](Files(found.paths, folder_of(root, PICTURES, part=PART), split), left_out):
        with left_out:
            questions += _referred(one, left_out)
    if not questions:
        raise left_out.nothing(f"{root}: {name} has no phrase of the split '{split}', download it again")
    numbers = numbered(question.image_id for question in questions)
    questions = [question._replace(image_id=numbers[question.image_id]) for question in questions]
    return ReferringDataset(name, split, tuple(questions), tuple(left_out))


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
