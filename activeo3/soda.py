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
"""

from pathlib import Path
from typing import Any, Sequence

import numpy as np

from activeo3.annotations import Index, Picture, Question, checked_picture, group_boxes, read_coco
from activeo3.data_tiles import cut
from activeo3.data_coco import BoxDataset
from activeo3.files import DataError, LeftOut, Source, is_number, missing, needed, read_json, shortened
from activeo3.metric_rules import SODA_A, SODA_D, MetricRules

SPLITS = ("train", "val", "test")
TRAINED_ON = 1_000
"""Pictures of the training split that are asked about (ACTIVE-O3, section 5)."""

AERIAL = ("airplane", "helicopter", "small-vehicle", "large-vehicle", "ship", "container", "storage-tank",
          "swimming-pool", "windmill", "ignore")  # fmt: skip
"""SODA-A's categories, numbered from 0."""
DRIVING = ("people", "rider", "bicycle", "motor", "vehicle", "traffic-sign", "traffic-light", "traffic-camera",
           "warning-cone", "ignore")  # fmt: skip
"""SODA-D's categories, numbered from 1."""


def open_soda_a(source: Source) -> BoxDataset:
    """``SODA-A/Annotations/<split>/*.json``, one per picture, and ``SODA-A/Images``.

    Pictures are numbered from 1 in the order of their names: SODA-A has no list that numbers them.
    """
    folder = source.folder("soda_a", "SODA-A")
    split = source.one_of("soda_a", SPLITS)
    # Archives that were packed on a Mac come with a twin "._name" of every file.
    paths = sorted(p for p in (folder / "Annotations" / split).glob("*.json") if not p.name.startswith("._"))
    if not paths:
        raise missing(folder, [f"Annotations/{split}/*.json"])
    names = dict(enumerate(_words(AERIAL)))
    pictures: dict[int, Picture] = {}
    questions: list[Question] = []
    left_out = LeftOut()
    images, numbers = _images(folder, split), {number: number for number in names}
    for image_id, path in enumerate(paths, start=1):
        with left_out:
            pictures[image_id], rows = _aerial_picture(path, image_id, images, left_out)
            questions += group_boxes(path, rows, pictures, names, left_out, {image_id: image_id}, numbers)
    if not pictures:
        raise left_out.nothing(f"{folder}: soda_a has no picture in its split '{split}'")
    index = Index(pictures, tuple(questions), tuple(left_out), tuple(picture.path for picture in pictures.values()))
    return _finished("soda_a", source, index, SODA_A, ignored=AERIAL.index("ignore"), enough=0.7)


def open_soda_d(source: Source) -> BoxDataset:
    """``SODA-D/Annotations/<split>.json`` and ``SODA-D/Images``."""
    folder = source.folder("soda_d", "SODA-D")
    split = source.one_of("soda_d", SPLITS)
    names = dict(enumerate(_words(DRIVING), start=1))
    index = read_coco(folder / "Annotations" / f"{split}.json", _images(folder, split), names)
    # "More than 40 %": the next number after 0.4.
    enough = float(np.nextafter(0.4, 1))
    return _finished("soda_d", source, index, SODA_D, ignored=1 + DRIVING.index("ignore"), enough=enough)


def _images(folder: Path, split: str) -> Path:
    """The pictures lie in a folder per split or all in one, depending on how they were unpacked."""
    of_split = folder / "Images" / split
    return of_split if of_split.is_dir() else folder / "Images"


def _words(names: Sequence[str]) -> list[str]:
    """Category names as words to ask for."""
    return [name.replace("-", " ") for name in names]


def _aerial_picture(path: Path, image_id: int, images: Path, left_out: LeftOut) -> tuple[Picture, list[tuple[str, dict[str, Any]]]]:
    """One of SODA-A's files: its picture, and its polygons as COCO rows with what each is called. Raises DataError."""
    content = read_json(path)
    entry, rows = (content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations"))
    if not isinstance(entry, dict) or not isinstance(rows, list):
        raise DataError(f"{path}: a SODA-A file needs one picture under 'images' and a list under 'annotations'")
    picture, found = checked_picture(path, "its picture", entry, images), []
    for number, row in enumerate(rows):
        with left_out:
            what = f"annotation {number}"
            poly = needed(path, what, row, "poly")
            if not isinstance(poly, list) or not all(map(is_number, poly)):
                raise DataError(f"{path}: {what} has the poly {shortened(poly)}, give the x, y of its corners")
            if len(poly) < 6 or len(poly) % 2:
                raise DataError(f"{path}: {what} is no polygon ({shortened(poly)}), correct or remove it")
            x, y = poly[::2], poly[1::2]
            bbox = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
            found.append((what, row | {"image_id": image_id, "bbox": bbox}))
    return picture, found


def _finished(name: str, source: Source, index: Index, rules: MetricRules, ignored: int, enough: float) -> BoxDataset:
    """From whole pictures to what is asked: ignored areas spread, tiles cut, training pictures drawn."""
    index = spread_ignored(index, ignored)
    if source.tile:
        index = cut(index, source.tile, source.tile_overlap, enough)
    if source.split == "train":
        index = drawn(index, TRAINED_ON, source.seed)
    if not index.questions:
        raise DataError(f"{source.folder(name, '')}: {name} has no question in its split '{source.split}'")
    return BoxDataset(name, source.split, index, rules)


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
