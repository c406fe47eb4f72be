"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg, in whose questions a phrase has exactly one box.

The partitions are those of papers: unc for RefCOCO and RefCOCO+, umd for RefCOCOg. Three layouts are public, and
the first one that is there is read; pictures are COCO 2014's training pictures in all of them:

    mdetr_annotations/finetune_refcoco_val.json        MDETR's: COCO files in which every expression is an image
    refcoco/data/validation-*.parquet                  the hub's jxu124/refcoco, refcocoplus, refcocog
    refcoco/refs(unc).p, refcoco/instances.json        the authors', of which one is a Python pickle

A pickle can name any function to be called when it is read. This one needs none, lists and texts alone, so
a file that names one is refused before anything of it is called.
"""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from activeo3.annotations import Picture, by_id, checked_picture
from activeo3.files import DataError, Source, is_number, needed, read_json, read_picture, within
from activeo3.geometry import area, as_boxes, clipped
from activeo3.schema import Example
from activeo3.tables import parquet_rows

PICTURES = "coco/train2014"


class Family(NamedTuple):
    """How one of the three sets is called in its files, its partition, and its splits by their names on the hub."""

    folder: str
    partition: str
    splits: Mapping[str, str]


_UNC = {"train": "train", "val": "validation", "testA": "test", "testB": "testB"}
_UMD = {"train": "train", "val": "validation", "test": "test"}
FAMILIES: dict[str, Family] = {
    "refcoco": Family("refcoco", "unc", _UNC),
    "refcoco_plus": Family("refcoco+", "unc", _UNC),
    "refcocog": Family("refcocog", "umd", _UMD),
}


class Referred(NamedTuple):
    """A phrase, its picture and the box (xyxy, pixels) that it refers to."""

    image_id: int
    picture: Picture
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
        return tuple(dict.fromkeys(question.picture.path for question in self.questions))

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the picture is missing or cannot be read."""
        index = within(index, len(self))
        image_id, picture, phrase, box = self.questions[index]
        example_id = f"{self.name}:{self.split}:{index}"
        image = read_picture(picture.path, picture.size, example_id)
        return Example(example_id, image, phrase, as_boxes([box]), image_id=image_id)


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
    family = FAMILIES[name]
    root, split = source.folder(name, ""), source.one_of(name, family.splits)
    images, folder = root / PICTURES, root / family.folder
    as_json = root / f"mdetr_annotations/finetune_{family.folder}_{split}.json"
    as_tables = sorted((folder / "data").glob(f"{family.splits[split]}-*.parquet"))
    as_pickle = folder / f"refs({family.partition}).p"
    if as_json.is_file():
        rows = _from_json(as_json)
    elif as_tables:
        rows = (row for path in as_tables for row in _from_table(path))
    elif as_pickle.is_file():
        rows = _from_pickle(as_pickle, folder / "instances.json", split)
    else:
        raise DataError(f"{as_json}: neither this nor {as_pickle} is there, see data/README.md for the layout")
    questions: list[Referred] = []
    dropped: list[str] = []
    for path, what, image, annotation, phrases in rows:
        picture = checked_picture(path, f"the image of {what}", image, images)
        if type(image.get("id")) is not int:
            raise DataError(f"{path}: the image of {what} has the id {image.get('id')!r}, give a whole number")
        box = _box(path, what, annotation, picture.size)
        if not phrases or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
            raise DataError(f"{path}: {what} has an empty phrase, download the file again")
        if box is None:
            dropped.append(f"{path}: {what} has a box without area in its picture, it is left out")
            continue
        questions += [Referred(image["id"], picture, " ".join(phrase.split()), box) for phrase in phrases]
    if not questions:
        raise DataError(f"{as_json}: {name} has no phrase of the split '{split}', download it again")
    return ReferringDataset(name, split, tuple(questions), tuple(dropped))


def _box(path: Path, what: str, annotation: Mapping[str, Any], size: tuple[int, int]) -> tuple[float, ...] | None:
    """The box of an annotation as xyxy inside the picture, or None if nothing of it is."""
    bbox = needed(path, what, annotation, "bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        raise DataError(f"{path}: {what} has the bbox {bbox!r}, give finite numbers x, y, w, h")
    x, y, width, height = bbox
    box = clipped(as_boxes([[x, y, x + width, y + height]]), size)
    return tuple(box[0].tolist()) if area(box)[0] > 0 else None


# ---------------------------------------------------------------------------- the layouts

Row = tuple[Path, str, Mapping[str, Any], Mapping[str, Any], Sequence[str]]
"""(file, what it is in a complaint, image and annotation as COCO writes them, the phrases)."""


def _from_json(path: Path) -> Iterator[Row]:
    """MDETR's file: an image per expression, with a caption, and one annotation for each."""
    content = read_json(path)
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not _objects(content.get(key)):
            raise DataError(f"{path}: the file needs a list of objects under the key '{key}', download it again")
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in content["annotations"]:
        found.setdefault(annotation.get("image_id"), []).append(annotation)
    for number, image in by_id(path, "image", content["images"]).items():
        what = f"image {number}"
        if len(found.get(number, ())) != 1:
            raise DataError(f"{path}: {what} has {len(found.get(number, ()))} boxes and not one, download the file again")
        # Many entries are one picture, whose own number is the original one.
        yield path, what, image | {"id": image.get("original_id", number)}, found[number][0], [needed(path, what, image, "caption")]


def _from_table(path: Path) -> Iterator[Row]:
    """The hub's table: a row per object; image and annotation are COCO's own entries, as texts of json."""
    for number, row in enumerate(parquet_rows(path, ("raw_image_info", "raw_anns", "captions"))):
        what = f"row {number}"
        try:
            image, annotation = json.loads(row["raw_image_info"]), json.loads(row["raw_anns"])
        except (ValueError, TypeError):
            image = annotation = None
        if not isinstance(image, dict) or not isinstance(annotation, dict) or type(image.get("id")) is not int:
            raise DataError(f"{path}: {what} holds no image and annotation as json, download the file again")
        yield path, what, image, annotation, row["captions"] or ()


def _from_pickle(path: Path, instances: Path, split: str) -> Iterator[Row]:
    """The authors' two files: objects with their sentences, and COCO's entries for them."""
    content = read_json(instances)
    if not isinstance(content, dict) or not all(_objects(content.get(key)) for key in ("images", "annotations")):
        raise DataError(f"{instances}: the file needs lists of objects under 'images' and 'annotations', download it again")
    images, boxes = (by_id(instances, kind, content[f"{kind}s"]) for kind in ("image", "annotation"))
    refs = read_pickle(path)
    if not _objects(refs):
        raise DataError(f"{path}: the file holds no list of objects, download it again")
    for number, ref in enumerate(refs):
        what = f"reference {number}"
        if needed(path, what, ref, "split") != split:
            continue
        image, annotation = images.get(needed(path, what, ref, "image_id")), boxes.get(needed(path, what, ref, "ann_id"))
        sentences = needed(path, what, ref, "sentences")
        if image is None or annotation is None:
            raise DataError(f"{path}: {what} is not in {instances.name}, download both files again")
        if not _objects(sentences):
            raise DataError(f"{path}: {what} has no sentences, download the file again")
        yield path, what, image, annotation, [sentence.get("sent") for sentence in sentences]


def _objects(rows: Any) -> bool:
    """Whether this is a list of json objects."""
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


class _Values(pickle.Unpickler):
    """Reads lists, dictionaries, texts and numbers; whatever else a pickle names is not even looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_pickle(path: Path) -> Any:
    """A pickle of plain values. Raises DataError for anything that would run code, or that is no pickle."""
    try:
        with path.open("rb") as file:
            return _Values(file, encoding="latin-1").load()  # Python 2 wrote it
    except Exception as error:  # a broken pickle raises whatever it happens to meet
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: the pickle cannot be read as plain values ({reason}), do not trust this file") from None
