"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg, in whose questions a phrase has exactly one box.

The partitions are those of papers: unc for RefCOCO and RefCOCO+, umd for RefCOCOg. Three layouts are public, and
the first one that is there is read; pictures are COCO 2014's training pictures in all of them:

    mdetr_annotations/finetune_refcoco_val.json        MDETR's: COCO files in which every expression is an image
    refcoco/data/validation-*.parquet                  the hub's jxu124/refcoco, refcocoplus, refcocog
    refcoco/refs(unc).p, refcoco/instances.json        the authors', of which one is a Python pickle

A pickle can name any function to be called when it is read. This one needs none, lists and texts alone, so
a file that names one is refused before anything of it is called.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from activeo3.annotations import Picture, by_id, checked_bbox, checked_picture
from activeo3.data_ids import id_of, numbered
from activeo3.files import DataError, LeftOut, Source, missing, needed, parsed_json, read_json, read_picture, regular, within
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
    left_out = LeftOut()
    if as_json.is_file():
        rows = _from_json(as_json, left_out)
    elif as_tables:
        rows = (row for path in as_tables for row in _from_table(path, left_out))
    elif as_pickle.is_file():
        rows = _from_pickle(as_pickle, folder / "instances.json", split, left_out)
    else:
        tables = f"{family.folder}/data/{family.splits[split]}-*.parquet"
        raise missing(root, [str(as_json.relative_to(root)), tables, str(as_pickle.relative_to(root))])
    questions: list[Referred] = []
    for row in rows:
        with left_out:
            questions += _referred(*row, images, left_out)
    numbers = numbered(question.image_id for question in questions)
    questions = [question._replace(image_id=numbers[question.image_id]) for question in questions]
    if not questions:
        raise left_out.nothing(f"{root}: {name} has no phrase of the split '{split}', download it again")
    return ReferringDataset(name, split, tuple(questions), tuple(left_out))


def _referred(
    path: Path, what: str, image: Mapping[str, Any], annotation: Mapping[str, Any], phrases: Sequence[Any], images: Path, left_out: LeftOut
) -> list[Referred]:
    """The questions about an object, one for each of its phrases; ``image_id`` is the file's. Raises DataError if
    there is none. An empty phrase among others is left out alone."""
    picture = checked_picture(path, f"the image of {what}", image, images)
    image_id = id_of(path, f"the image of {what}", image, "id")
    box = _box(path, what, annotation, picture.size)
    good = [" ".join(phrase.split()) for phrase in phrases if isinstance(phrase, str) and phrase.strip()]
    empty = DataError(f"{path}: {what} has an empty phrase, download the file again")
    if not good:
        raise empty
    left_out += [str(empty)] * (len(phrases) - len(good))
    return [Referred(image_id, picture, phrase, box) for phrase in good]


def _box(path: Path, what: str, annotation: Mapping[str, Any], size: tuple[int, int]) -> tuple[float, ...]:
    """The box of an annotation as xyxy inside the picture. Raises DataError if nothing of it is."""
    x, y, width, height = checked_bbox(path, what, annotation)
    box = clipped(as_boxes([[x, y, x + width, y + height]]), size)
    if area(box)[0] <= 0:
        raise DataError(f"{path}: {what} has a box without area in its picture, correct it")
    return tuple(box[0].tolist())


# ---------------------------------------------------------------------------- the layouts

Row = tuple[Path, str, Mapping[str, Any], Mapping[str, Any], Sequence[str]]
"""(file, what it is in a complaint, image and annotation as COCO writes them, the phrases)."""


def _from_json(path: Path, left_out: LeftOut) -> Iterator[Row]:
    """MDETR's file: an image per expression, with a caption, and one annotation for each."""
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
                raise DataError(f"{path}: {what} has {len(found.get(number, ()))} boxes and not one, download the file again")
            # Many entries are one picture, whose own number is the original one.
            yield path, what, image | {"id": image.get("original_id", number)}, found[number][0], [needed(path, what, image, "caption")]


def _from_table(path: Path, left_out: LeftOut) -> Iterator[Row]:
    """The hub's table: a row per object; image and annotation are COCO's own entries, as texts of json."""
    for number, row in enumerate(parquet_rows(path, ("raw_image_info", "raw_anns", "captions"))):
        with left_out:
            what = f"row {number}"
            image, annotation = (_parsed(row[key]) for key in ("raw_image_info", "raw_anns"))
            if not isinstance(image, dict) or not isinstance(annotation, dict) or "id" not in image:
                raise DataError(f"{path}: {what} holds no image and annotation as json, download the file again")
            yield path, what, image, annotation, row["captions"] or ()


def _from_pickle(path: Path, instances: Path, split: str, left_out: LeftOut) -> Iterator[Row]:
    """The authors' two files: objects with their sentences, and COCO's entries for them."""
    content = read_json(instances)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "annotations")):
        raise DataError(f"{instances}: the file needs lists of objects under 'images' and 'annotations', download it again")
    images, boxes = (by_id(instances, kind, content[f"{kind}s"], left_out) for kind in ("image", "annotation"))
    refs = read_pickle(path)
    if not isinstance(refs, list):
        raise DataError(f"{path}: the file holds no list of objects, download it again")
    for number, ref in enumerate(refs):
        with left_out:
            what = f"reference {number}"
            if needed(path, what, ref, "split") != split:
                continue
            image = images.get(id_of(path, what, ref, "image_id"))
            annotation = boxes.get(id_of(path, what, ref, "ann_id"))
            sentences = needed(path, what, ref, "sentences")
            if image is None or annotation is None:
                raise DataError(f"{path}: {what} is not in {instances.name}, download both files again")
            if not isinstance(sentences, list):
                raise DataError(f"{path}: {what} has no sentences, download the file again")
            phrases = [sentence.get("sent") if isinstance(sentence, dict) else None for sentence in sentences]
            yield path, what, image, annotation, phrases


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
        raise DataError(f"{path}: the pickle cannot be read as plain values ({reason}), do not trust this file") from None
