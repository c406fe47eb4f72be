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
"""

from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np

from activeo3.data_annotations import Index, Question, read_coco
from activeo3.data_coco import box_questions
from activeo3.data_io import DataError
from activeo3.data_set import Dataset, Source, files_of, folder_of, look_for, register
from activeo3.data_soda_a import read_aerial
from activeo3.data_tiles import cut
from activeo3.metric_rules import SODA_A, SODA_D, MetricRules

SPLITS = {"train": 0, "val": 0, "test": 0}
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
    """Where annotations lie, and the folders that the pictures may be in; ``tiles`` that the authors' tools have cut."""

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
    """From pictures to what is asked: ignored areas spread, tiles cut unless they are ``tiles``, training pictures drawn."""
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
