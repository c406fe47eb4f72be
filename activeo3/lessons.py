"""What the tiny policy is taught from: views of the embedded world with their questions and answers.

Two kinds of view. A **crop**, at the size of the task role, with up to a handful of kinds to find in it;
its answers are the truth. A **whole picture**, at the size of the sensing role, whose answers have the
form of the truth only: three mediocre regions, around things chosen at random, jittered, some anywhere,
and never chosen by the query. Which regions are good for a query is in no lesson.
"""

import math
from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
from PIL import Image

from activeo3 import geometry, prompts, scenes

PATCH, MERGE = 8, 2  # of the tiny vision tower: a visual token sees 16 x 16 pixels
SENSING_SIDE = 96  # shorter side of the sensing view, pixels
CROP_VIEW = (128, 128)  # every crop is seen at this size


@dataclass(frozen=True, eq=False)
class Lesson:
    """One view with what is in it. ``boxes`` (M, 4) are thousandths of the view, ``kinds`` their (colour,
    shape) names, in reading order of the visual tokens that hold their centres; ``hidden`` (H, 4) are
    things that the border cuts too much to be asked for; ``dialogue`` are (question, answer, found), where
    ``found`` are the rows of ``boxes`` that the answer lists, in its order (none for a sensing answer)."""

    view: Image.Image
    boxes: np.ndarray
    kinds: tuple[tuple[str, str], ...]
    hidden: np.ndarray
    dialogue: tuple[tuple[str, str, tuple[int, ...]], ...]


class Pool:
    """A sliding window over rendered pictures: rendering is dear, cropping is cheap.

    Which pictures step s may use, and which it does, follows from the step and its random numbers alone.
    ``source`` maps a picture's number to its scene.
    """

    def __init__(self, source: Callable[[int], scenes.Scene], fresh: int = 1, depth: int = 64) -> None:
        self.source, self.fresh, self.depth = source, fresh, depth
        self._rendered: dict[int, tuple[scenes.Scene, Image.Image]] = {}

    def draw(self, step: int, count: int, rng: np.random.Generator) -> list[tuple[scenes.Scene, Image.Image]]:
        """``count`` (scene, picture) pairs of the window of ``step``."""
        last = self.depth + step * self.fresh
        self._rendered = {i: pair for i, pair in self._rendered.items() if i > last - self.depth}
        return [self._picture(int(i)) for i in rng.integers(last - self.depth + 1, last + 1, count)]

    def _picture(self, index: int) -> tuple[scenes.Scene, Image.Image]:
        if index not in self._rendered:
            scene = self.source(index)
            self._rendered[index] = (scene, scene.render())
        return self._rendered[index]


def practice_sheet(seed: int, index: int) -> scenes.Scene:
    """A table packed with things of every kind: many lessons for the price of one picture."""
    rng = np.random.default_rng([seed, 1, index])
    size = (640, 640)
    centres, diameters = np.zeros((0, 2)), np.zeros(0)
    for _ in range(500):
        point, diameter = rng.uniform(40, 600, 2), rng.uniform(*scenes.DIAMETERS)
        if (np.hypot(*(centres - point).T) > 0.54 * (diameters + diameter)).all():
            centres, diameters = np.vstack([centres, point]), np.append(diameters, diameter)
    things = tuple(
        scenes.Thing(
            *_any_kind(rng),
            (float(x), float(y)), float(diameter), float(rng.uniform(-0.25, 0.25)), 0,
        )
        for (x, y), diameter in zip(centres, diameters)
    )
    return scenes.Scene(size, things, things[0].colour, things[0].shape, "", (0, 0, 0, 0), int(rng.integers(2**31)))


def crop_lesson(scene: scenes.Scene, picture: Image.Image, rng: np.random.Generator, most: int) -> Lesson:
    """A random crop and questions about it: kinds that are there, and kinds that are almost there."""
    width, height = picture.size
    w, h = rng.uniform(190, 460, 2) * max(1.0, min(picture.size) / 896)
    thing = scene.things[rng.integers(len(scene.things))]
    x = np.clip(thing.centre[0] + w * rng.uniform(-0.5, 0.5), w / 2, width - w / 2)
    y = np.clip(thing.centre[1] + h * rng.uniform(-0.5, 0.5), h / 2, height - h / 2)
    window = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    view = geometry.crop(picture, window, CROP_VIEW)
    boxes, kinds, hidden = _seen(scene, window)
    asked = _questions(kinds, rng, most)
    dialogue = []
    for kind in asked:
        found = tuple(row for row, other in enumerate(kinds) if other == kind)
        answer = prompts.boxes_answer([rounded(boxes[row]) for row in found])
        dialogue.append((prompts.task_prompt(" ".join(kind), "short"), answer, found))
    return Lesson(view, boxes, kinds, hidden, tuple(dialogue))


def sensing_lesson(scene: scenes.Scene, picture: Image.Image, rng: np.random.Generator) -> Lesson:
    """The whole picture at sensing size, and the form of a sensing answer with mediocre regions."""
    size = geometry.fitted(geometry.with_shorter_side(picture.size, SENSING_SIDE), PATCH * MERGE, 1, 2**30)
    window = (0.0, 0.0, float(picture.width), float(picture.height))
    boxes, kinds, hidden = _seen(scene, window)
    dialogue = []
    for _ in range(3):
        # Any kind may be asked for, and the regions do not listen to it.
        query = " ".join(_any_kind(rng))
        answer = prompts.sensing_answer(mediocre_regions(scene, rng), f" {query}")
        dialogue.append((prompts.sensing_prompt(query, "short"), answer, ()))
    return Lesson(geometry.crop(picture, window, size), boxes, kinds, hidden, tuple(dialogue))


def mediocre_regions(scene: scenes.Scene, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Three regions in thousandths: around things of any kind, jittered; every fourth anywhere."""
    width, height = scene.size
    groups = list(rng.permutation(1 + max(thing.group for thing in scene.things)))[:3]
    regions = []
    for group in groups:
        members = [thing for thing in scene.things if thing.group == group]
        w, h = rng.uniform(0.2, 0.45, 2) * min(scene.size)
        centre = np.array(members[rng.integers(len(members))].centre) + rng.uniform(-0.3, 0.3, 2) * (w, h)
        if rng.random() < 0.25:
            centre = rng.uniform((0, 0), scene.size)
        x, y = np.clip(centre, (w / 2, h / 2), (width - w / 2, height - h / 2))
        box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * 1000 / np.array([width, height] * 2)
        regions.append(rounded(box))
    return regions


def rounded(box: np.ndarray) -> tuple[int, ...]:
    """A box in thousandths as the tiny policy writes it: whole hundredths, at most 990.

    The last digit is always 0, which costs half a percent of the view and saves the policy a digit of noise.
    """
    return tuple(int(v) for v in np.clip(np.round(box / 10) * 10, 0, 990))


def _seen(scene: scenes.Scene, window: Sequence[float]) -> tuple[np.ndarray, tuple, np.ndarray]:
    """Things in a window: (boxes in thousandths, kinds) of the ones at least half inside, boxes of the rest."""
    frame = geometry.Frame(tuple(window), (1000, 1000))
    boxes_px = geometry.as_boxes([thing.box_px for thing in scene.things])
    inside = geometry.containment(boxes_px, geometry.as_boxes([window]))[:, 0]
    boxes = np.clip(frame.to_text(boxes_px), 0, 1000)
    columns, rows = (side // (PATCH * MERGE) for side in CROP_VIEW)
    order = sorted(np.flatnonzero(inside >= 0.5), key=lambda i: cell_of(boxes[i], rows, columns))
    hidden = boxes[(inside > 0.02) & (inside < 0.5)]
    return boxes[order], tuple((scene.things[i].colour, scene.things[i].shape) for i in order), hidden


def cell_of(box: np.ndarray, rows: int, columns: int) -> int:
    """The visual token, in reading order, that holds the centre of a box in thousandths."""
    row = min(rows - 1, int((box[1] + box[3]) / 2000 * rows))
    return row * columns + min(columns - 1, int((box[0] + box[2]) / 2000 * columns))


def _any_kind(rng: np.random.Generator) -> tuple[str, str]:
    """A (colour, shape) that the embedded world knows."""
    return list(scenes.COLOURS)[rng.integers(len(scenes.COLOURS))], scenes.SHAPES[rng.integers(len(scenes.SHAPES))]


def _questions(kinds: Sequence[tuple[str, str]], rng: np.random.Generator, most: int) -> list[tuple[str, str]]:
    """Up to ``most`` different kinds to ask for: about two thirds are there, the others share a trait."""
    there = sorted(set(kinds))
    there = [there[i] for i in rng.permutation(len(there))][: max(1, math.ceil(most * 2 / 3))]
    asked = list(there)
    while len(asked) < most:
        colour, shape = _any_kind(rng)
        if there and rng.random() < 0.8:
            near = kinds[rng.integers(len(kinds))]
            colour, shape = (near[0], shape) if rng.random() < 0.6 else (colour, near[1])
        if (colour, shape) not in asked and (colour, shape) not in kinds:
            asked.append((colour, shape))
    return asked


def lessons_of(
    sheets: Pool,
    pictures: Pool,
    step: int,
    rng: np.random.Generator,
    crops: int,
    views: int,
    questions: int,
    sheet_share: float,
) -> tuple[list[Lesson], list[Lesson]]:
    """The (crop, whole-picture) lessons of a step; ``sheet_share`` of the crops come from practice sheets."""
    packed = round(crops * sheet_share)
    pairs = sheets.draw(step, packed, rng) + pictures.draw(step, crops - packed, rng)
    return (
        [crop_lesson(*pair, rng, questions) for pair in pairs],
        [sensing_lesson(*pair, rng) for pair in pictures.draw(step, views, rng)],
    )
