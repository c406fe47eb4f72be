"""Data sets of annotated boxes: a question for every category in an image, or one about everything in it.

COCO itself, any folder in its format, and what LVIS and SODA make of their files (data_lvis.py, data_soda.py).

Questions about absent categories. LVIS is federated: each image was checked for some categories only. Those found have
boxes; those known to be absent are listed (``neg_category_ids``), and of some that were found not every instance has a
box (``not_exhaustive_category_ids``). What a model invents costs nothing as long as it is only asked for what is there.
So a share of the questions, ``--data_options absent``, is about absent categories: LVISEval counts what is found there
as false, and so do we.

1. They are about images and categories that are asked about anyway. A category without any box has no AP, so inventing
   it would cost nothing.
2. They are drawn from a seed, one after the other: a larger share has all questions of a smaller one.
3. ACTIVE-O3 does not say whether it asks them. In training there are none by default.
"""

from pathlib import Path
from typing import Collection, Sequence

import numpy as np

from activeo3.data_annotations import Index, Question, read_coco
from activeo3.data_files import PICTURES, fullest
from activeo3.data_io import read_picture
from activeo3.data_set import Dataset, Source, register
from activeo3.metric_rules import COCO, LVIS, MetricRules
from activeo3.types import Count, Example, Objects


def box_questions(source: Source, index: Index, rules: MetricRules) -> Dataset[Question]:
    """Questions that are answered with boxes, ordered by (image id, category id).

    An example keeps both ids of the file, so that predictions can be written as COCO results: ``image_id`` and
    ``category_id``, or those of its ``source`` where the file's ids are no numbers of 64 bits. ``count`` is 0 where
    there is nothing.
    """
    if source.absent and rules.federated:
        index = with_absent(index, source.absent, source.seed)

    def read(question: Question, _: int) -> Example:
        picture = index.pictures[question.image_id]
        origin = index.source(question.image_id, question.category_id)
        example_id = f"{question.image_id if origin.image_id is None else origin.image_id}:{question.query}"
        image = read_picture(picture.path, picture.size, example_id)
        if picture.window:
            left, top, right, bottom = picture.window
            if picture.size != (right - left, bottom - top):  # a tile that was cut beforehand is as large as its window
                image = image.crop(picture.window)
        return Example(
            id=example_id,
            image=image,
            query=question.query,
            boxes_px=question.boxes_px,
            image_id=question.image_id,
            category_id=question.category_id,
            crowd=question.crowd,
            areas=question.areas,
            rules=rules,
            exhaustive=question.category_id not in picture.partly,
            frequency=index.frequency.get(question.category_id, ""),
            count=None if len(question.boxes_px) else Count(0),
            source=origin,
        )

    picture = lambda question: index.pictures[question.image_id].path  # noqa: E731
    return source.dataset(index.questions, read, index.dropped, index.paths, picture=picture)


def image_questions(source: Source, index: Index, rules: MetricRules) -> Dataset[int]:
    """Every image as one question: where is everything, and what is it? Its ``objects`` are its boxes.

    An image without boxes is a question as well, whose answer is an empty list.
    """
    of_image: dict[int, list[Question]] = {}
    for question in index.questions:
        of_image.setdefault(question.image_id, []).append(question)

    def named(categories: Collection[int]) -> frozenset[str]:
        return frozenset(index.names[number] for number in categories if number in index.names)

    def read(number: int, _: int) -> Example:
        picture, parts = index.pictures[number], of_image.get(number, ())
        origin = index.source(number)
        example_id = str(number if origin.image_id is None else origin.image_id)
        objects = Objects(
            np.concatenate([np.zeros((0, 4)), *(part.boxes_px for part in parts)]),
            tuple(part.query for part in parts for _ in part.boxes_px),
            tuple(index.names.values()),
            np.concatenate([np.zeros(0, dtype=bool), *(part.crowd for part in parts)]),
            np.concatenate([np.zeros(0), *(part.areas for part in parts)]),
            named({part.category_id for part in parts} | picture.absent) if rules.federated else None,
            named(picture.partly),
        )
        return Example(
            id=example_id,
            image=read_picture(picture.path, picture.size, example_id),
            query="everything",
            boxes_px=objects.boxes_px,
            image_id=number,
            crowd=objects.crowd,
            areas=objects.areas,
            rules=rules,
            objects=objects,
            source=origin,
        )

    picture = lambda number: index.pictures[number].path  # noqa: E731
    return source.dataset(sorted(index.pictures), read, index.dropped, index.paths, picture=picture)


# ---------------------------------------------------------------------- questions about absent categories


def with_absent(index: Index, share: float, seed: int) -> Index:
    """The index with so many questions about absent categories that they are ``share`` of all.

    There are fewer if the file does not know so many, and none if it is not federated.
    """
    candidates = absent_pairs(index)
    wanted = round(share / (1 - share) * len(index.questions))
    order = np.random.default_rng(seed).permutation(len(candidates))[:wanted]
    none = np.zeros(0)
    absent = [
        Question(*candidates[k], index.names[candidates[k][1]], np.zeros((0, 4)), none, none.astype(bool))
        for k in order
    ]
    together = sorted([*index.questions, *absent], key=lambda question: (question.image_id, question.category_id))
    return index._replace(questions=tuple(together))


def absent_pairs(index: Index) -> Sequence[tuple[int, int]]:
    """(image id, category id) that are known to be absent, of images and categories that are asked about."""
    asked = {question.category_id for question in index.questions}
    there = {(question.image_id, question.category_id) for question in index.questions}
    pairs = [
        (image_id, category_id)
        for image_id in sorted({image_id for image_id, _ in there})
        for category_id in sorted(index.pictures[image_id].absent & asked)
    ]
    return [pair for pair in pairs if pair not in there]


# ---------------------------------------------------------------------- files

COCO_FILES = (
    "instances_{split}.json", "annotations/instances_{split}.json",
    *(f"{folder}annotations/instances_{{split}}{year}.json" for folder in ("coco/", "") for year in (2017, 2014)),
    "jsons/detection/coco_{split}2017.json", "eval/jsons/detection/coco_{split}2017.json",
    "annotations/{split}.json", "{split}.json", "{split}/_annotations.coco.json", "{split}/annotations.json",
    "{split}/labels.json",
)  # fmt: skip
"""Where annotations lie: our own form; COCO's as it is published, also with its own folder as the data root;
Perception-R1's; what Roboflow, FiftyOne and others write."""
IMAGE_FOLDERS = (
    "images", "images/{split}", *(folder.format(part="{split}" + year) for year in ("2017", "2014", "")
    for folder in PICTURES), "images/default", "{split}/images", "{split}/data", "data", ".",
)  # fmt: skip
"""Where pictures may lie: the folder that has most of them counts."""


@register("coco", {}, "your own pictures, see docs/own-data.md", any_split=True)
def open_coco(source: Source) -> Dataset:
    """Any folder in COCO's format; one question per picture and category."""
    index = own_index(source)
    return box_questions(source, index, rules_of_file(index))


@register("coco_det", {"train": 118_287, "val": 5_000}, "https://cocodataset.org", answers="detection", any_split=True)
def open_coco_det(source: Source) -> Dataset:
    """The same; one question per picture."""
    index = own_index(source, crowds=True)
    return image_questions(source, index, rules_of_file(index))


def own_index(source: Source, crowds: bool = False) -> Index:
    """The annotations of a split, the first of COCO_FILES that is there, and the pictures in one of IMAGE_FOLDERS."""
    path, split = source.own_file(COCO_FILES)
    index = read_coco(path, Path(), crowds=crowds)
    names = [picture.path for picture in index.pictures.values()]
    folder = fullest(source.folder(), IMAGE_FOLDERS, names, split=split)
    pictures = {number: picture._replace(path=folder / picture.path) for number, picture in index.pictures.items()}
    return index._replace(pictures=pictures, paths=tuple(picture.path for picture in pictures.values()))


def rules_of_file(index: Index) -> MetricRules:
    """LVIS's rules for a file that is federated as LVIS is, else COCO's."""
    return LVIS if index.federated else COCO
