"""YOLO folders, as Ultralytics lays them out and Roboflow exports them: data.yaml, images/ and labels/.

    data.yaml                      path: .   train: images/train   val: images/val   names: {0: cat, 1: red_dog}
    images/train/1.jpg             or train/images/1.jpg
    labels/train/1.txt             a line per thing: class, then centre x, centre y, width, height from 0 to 1

More numbers behind the class are the corners of a polygon, of which the box counts; with ``kpt_shape`` in data.yaml the
first four are the box. A picture without a file of labels shows nothing, and nothing is asked about it. A folder that
data.yaml names is looked for below the data root, wherever its author had it.
"""

import os
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from activeo3.data_annotations import Checked, Index, Picture, distinct, group_boxes
from activeo3.data_coco import box_questions, image_questions
from activeo3.data_files import look_for
from activeo3.data_io import DataError, LeftOut, as_words, picture_size, read_text, shortened
from activeo3.data_set import SPELLINGS, Dataset, Source, register
from activeo3.data_tiles import counted
from activeo3.metric_rules import COCO

YAML = ("data.yaml", "data.yml", "dataset.yaml", "*.yaml", "*.yml")
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".gif", ".jp2", ".ppm", ".pgm"}


@register("yolo", {}, "your own pictures, see docs/own-data.md", any_split=True)
def open_yolo(source: Source) -> Dataset:
    """One question per picture and class."""
    return box_questions(source, read_yolo(source), COCO)


@register("yolo_det", {}, "your own pictures, see docs/own-data.md", answers="detection", any_split=True)
def open_yolo_det(source: Source) -> Dataset:
    """One question per picture, about everything in it."""
    return image_questions(source, read_yolo(source, crowds=True), COCO)


def read_yolo(source: Source, crowds: bool = False) -> Index:
    """The pictures and labels of a split, checked. Raises DataError if data.yaml or all labels cannot be used."""
    root = source.folder()
    found = look_for(root, YAML)
    if not found:
        raise source.no_split(root, (), YAML[0])
    path, left_out = found.path, LeftOut()
    about = _settings(path)
    names = {number: as_words(name) for number, name in _names(path, about).items()}
    files = [file for folder in _places(source, path, about) for file in _pictures(path, root, folder)]
    pictures: dict[int, Picture] = {}
    for file in counted(files, f"{source.name}: reading picture sizes"):
        with left_out:
            pictures[len(pictures) + 1] = Picture(file, picture_size(file))
    if not pictures:
        raise left_out.nothing(f"{path}: there is no picture in the folders of its split '{source.split}'")
    rows = [row for number in pictures for row in _labels(number, pictures[number], "kpt_shape" in about, left_out)]
    rows = [(os.path.relpath(what, root), row) for what, row in rows]
    ids = {number: number for number in pictures}
    file = Checked(path, left_out, pictures, names, ids, {number: number for number in names})
    questions = group_boxes(file, rows, crowds)
    if not questions:
        raise left_out.nothing(f"{path}: no picture of its split '{source.split}' has a label beside it, add labels/")
    used = distinct(path, names, {question.category_id for question in questions})
    return Index(pictures, questions, tuple(left_out), tuple(picture.path for picture in pictures.values()), names=used)


# ---------------------------------------------------------------------- data.yaml


def _settings(path: Path) -> Mapping[str, Any]:
    """What data.yaml says. Raises DataError."""
    import yaml  # comes with transformers

    try:
        about = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: this is not valid yaml ({shortened(reason, 200)}), write it again") from None
    if not isinstance(about, dict):
        raise DataError(f"{path}: this holds no names and folders, write 'names:' and 'train:' as Ultralytics does")
    return about


def _names(path: Path, about: Mapping[str, Any]) -> dict[int, str]:
    """Class number -> name, of a list or a dictionary. Raises DataError."""
    names = about.get("names")
    pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else ()
    found = {int(number): str(name) for number, name in pairs if str(number).isdecimal() and str(name).strip()}
    if not found:
        raise DataError(f"{path}: 'names' is {shortened(names)}, give the classes as a list or as numbers with names")
    return found


def _places(source: Source, path: Path, about: Mapping[str, Any]) -> list[str]:
    """The folders, or lists of pictures, of the split. Raises DataError if it has none."""
    there = {split: about[key] for split in ("train", "val", "test") for key in SPELLINGS.get(split, (split,))
             if about.get(key)}  # fmt: skip
    wanted = there.get(source.split)
    if not wanted:
        raise source.no_split(source.folder(), there, f"'train:' in {path.name}")
    return [str(one) for one in (wanted if isinstance(wanted, list) else [wanted])]


def _pictures(path: Path, root: Path, place: str) -> list[Path]:
    """The pictures of a folder and the folders in it, or of a text file with a name on each line. Raises DataError."""
    found = _below(path, root, place)
    if found.is_dir():
        return sorted(file for file in found.rglob("*") if file.suffix.lower() in ENDINGS and file.name[0] != ".")
    return [_below(path, root, line.strip(), found.parent) for line in read_text(found).splitlines() if line.strip()]


def _below(path: Path, root: Path, name: str, beside: Path | None = None) -> Path:
    """What a name of data.yaml means below the data root: relative to it, to data.yaml or to ``path:``.

    Names begin where their author had the folder, ``../train/images`` or ``/home/me/set/images/train``: the longest
    end that is there counts. Raises DataError if none is.
    """
    parts = [part for part in Path(name.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    folders = dict.fromkeys(filter(None, [beside, path.parent, root]))
    for first in range(len(parts)):
        for folder in folders:
            if (found := folder.joinpath(*parts[first:])).exists():
                return found
    raise DataError(f"{path}: {shortened(name)} is not below the data root {root}, move it there or correct the name")


# ---------------------------------------------------------------------- labels


def _labels(number: int, picture: Picture, keypoints: bool, left_out: LeftOut) -> Iterator[tuple[str, Any]]:
    """The lines of a picture's file of labels as annotations in COCO's form, with what a sentence calls them."""
    file = _labels_of(picture.path)
    if not file.is_file():
        return
    for place, line in enumerate(read_text(file).splitlines(), start=1):
        with left_out:
            if line.strip():
                category, box = _box(file, place, line.split(), keypoints)
                sides = np.multiply(box, np.tile(picture.size, 2)).tolist()
                row = {"image_id": number, "category_id": category, "bbox": sides}
                yield f"{file}, line {place}", row


def _labels_of(picture: Path) -> Path:
    """The file of labels of a picture: the last folder images/ is labels/; beside the picture if there is none."""
    parts = list(picture.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _box(file: Path, place: int, words: Sequence[str], keypoints: bool) -> tuple[int, list[float]]:
    """A line's class, and its box x, y, width, height from 0 to 1. Raises DataError."""
    what = f"{file}: line {place}"
    try:
        category, values = int(float(words[0])), np.array([float(word) for word in words[1:]])
    except (ValueError, OverflowError):
        raise DataError(f"{what} holds no numbers ({shortened(' '.join(words))}), correct or remove it") from None
    box = values[:4] if len(values) == 4 or keypoints and len(values) > 4 else None
    if box is None and len(values) >= 6 and len(values) % 2 == 0:
        corners = values.reshape(-1, 2)
        (x1, y1), (x2, y2) = corners.min(axis=0), corners.max(axis=0)
        box = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    if box is None or len(box) < 4:
        raise DataError(f"{what} has {len(words)} numbers, give a class and x y w h, or a polygon")
    if not ((box >= 0) & (box <= 1)).all():  # also of what is not finite
        raise DataError(f"{what} has {shortened(box.tolist())}, give shares of the picture from 0 to 1")
    return category, [box[0] - box[2] / 2, box[1] - box[3] / 2, box[2], box[3]]
