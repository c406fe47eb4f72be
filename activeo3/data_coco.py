"""Data sets of annotated boxes: a question for every category in a picture, or one about everything in it.

COCO itself, any folder in its format, and what LVIS and SODA make of their files (data_lvis.py, data_soda.py).
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Collection, Mapping, Sequence

import numpy as np

from activeo3.data_annotations import Index, Question, read_coco
from activeo3.data_io import Source, read_picture, within
from activeo3.data_layouts import PICTURES, files_of, folder_of
from activeo3.metric_rules import COCO, LVIS, MetricRules
from activeo3.types import Count, Example, Objects


@dataclass(frozen=True, eq=False)
class _Indexed:
    """A data set that is read from the index of an annotation file, and how it is scored."""

    name: str
    split: str
    index: Index
    rules: MetricRules = COCO

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.index.paths

    @property
    def dropped(self) -> tuple[str, ...]:
        return self.index.dropped


@dataclass(frozen=True, eq=False)
class BoxDataset(_Indexed):
    """Questions that are answered with boxes, ordered by (image id, category id).

    An example keeps both ids of the file, so that predictions can be written as COCO results: ``image_id`` and
    ``category_id``, or those of its ``source`` where the file's ids are no numbers of 64 bits. ``count`` is 0 where there
    is nothing (data_absent.py).
    """

    def __len__(self) -> int:
        return len(self.index.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming file and id, if the picture is missing or cannot be read."""
        question = self.index.questions[within(index, len(self))]
        picture = self.index.pictures[question.image_id]
        source = self.index.source(question.image_id, question.category_id)
        example_id = f"{question.image_id if source.image_id is None else source.image_id}:{question.query}"
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
            rules=self.rules,
            exhaustive=question.category_id not in picture.partly,
            frequency=self.index.frequency.get(question.category_id, ""),
            count=None if len(question.boxes_px) else Count(0),
            source=source,
        )


@dataclass(frozen=True, eq=False)
class PictureDataset(_Indexed):
    """Every picture as one question: where is everything, and what is it?

    A picture without boxes is a question as well, whose answer is an empty list. The example's ``objects`` are its boxes.
    """

    def _names(self, categories: Collection[int]) -> frozenset[str]:
        return frozenset(self.index.names[number] for number in categories if number in self.index.names)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The ids of all pictures, in order."""
        return tuple(sorted(self.index.pictures))

    @cached_property
    def boxes(self) -> Mapping[int, Sequence[Question]]:
        """The boxes of every picture that has some, category by category."""
        found: dict[int, list[Question]] = {}
        for question in self.index.questions:
            found.setdefault(question.image_id, []).append(question)
        return found

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError, naming file and id, if the picture is missing or cannot be read."""
        number = self.numbers[within(index, len(self))]
        picture, parts = self.index.pictures[number], self.boxes.get(number, ())
        source = self.index.source(number)
        example_id = str(number if source.image_id is None else source.image_id)
        there = {part.category_id for part in parts} | picture.absent
        objects = Objects(
            np.concatenate([np.zeros((0, 4)), *(part.boxes_px for part in parts)]),
            tuple(part.query for part in parts for _ in part.boxes_px),
            tuple(self.index.names.values()),
            np.concatenate([np.zeros(0, dtype=bool), *(part.crowd for part in parts)]),
            np.concatenate([np.zeros(0), *(part.areas for part in parts)]),
            self._names(there) if self.rules.federated else None,
            self._names(picture.partly),
        )
        return Example(
            id=example_id,
            image=read_picture(picture.path, picture.size, example_id),
            query="everything",
            boxes_px=objects.boxes_px,
            image_id=number,
            crowd=objects.crowd,
            areas=objects.areas,
            rules=self.rules,
            objects=objects,
            source=source,
        )


def rules_of_file(index: Index) -> MetricRules:
    """LVIS's rules for a file that is federated as LVIS is, else COCO's."""
    return LVIS if index.federated else COCO


COCO_FILES = {
    "coco/annotations/instances_{split}2017.json": PICTURES,
    "annotations/instances_{split}2017.json": PICTURES,
    "jsons/detection/coco_{split}2017.json": PICTURES,
    "eval/jsons/detection/coco_{split}2017.json": PICTURES,
    "instances_{split}.json": ("images",),
}  # fmt: skip
"""COCO 2017 as it is published, the same with COCO's own folder as the data root, as Perception-R1 has it, and any folder as
``open_coco`` takes it; and where the pictures of each lie."""


def open_coco_det(source: Source) -> PictureDataset:
    """The first of COCO_FILES that is there; one question per picture."""
    root = source.folder("coco_det", "")
    found = files_of(root, COCO_FILES, split=source.split)
    images = folder_of(root, COCO_FILES[found.pattern], part=f"{source.split}2017")
    index = read_coco(found.path, images, crowds=True)
    return PictureDataset("coco_det", source.split, index, rules_of_file(index))


def open_coco(source: Source) -> BoxDataset:
    """Any folder with ``instances_<split>.json`` and ``images/``, which is the data root itself."""
    folder = source.folder("coco", "")
    index = read_coco(folder / f"instances_{source.split}.json", folder / "images")
    return BoxDataset("coco", source.split, index, rules_of_file(index))
