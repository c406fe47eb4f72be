"""What the tiny policy is taught from: views of the embedded world with their questions and answers.

Two kinds of view. A **crop**, at the size of the task role, with up to a handful of kinds to find in it;
its answers are the truth. A **whole picture**, at the size of the sensing role, whose answers have the
form of the truth only: one to three mediocre regions around clusters chosen at random, jittered, some
anywhere, after a thought that names the colour of each. Neither colours nor regions are ever chosen by
the query: which regions are good for it is in no lesson. What the policy does learn on whole pictures is to
point: told to look at red, it names red and looks there. That a red star is to be sought where it is red, and
how many regions that takes, is left to reinforcement.
"""

import math
from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
from PIL import Image

from activeo3 import data_scenes, geometry, prompts

PATCH, MERGE = 8, 2  # of the tiny vision tower: a visual token sees 16 x 16 pixels
SENSING_SIDE = 96  # shorter side of the sensing view, pixels
CROP_VIEW = (128, 128)  # every crop is seen at this size


@dataclass(frozen=True)
class Written:
    """What one box of an answer is about, as rows of the lesson's ``boxes``: the ``things`` inside it and
    their ``kin``, all things that its words fit. ``said`` counts which word of the thought named them, or
    is None where the question did; ``named`` is False where nothing did."""

    things: tuple[int, ...]
    kin: tuple[int, ...]
    said: int | None = None
    named: bool = True


@dataclass(frozen=True)
class Turn:
    """A question and its answer; ``about`` has one entry for every box of the answer, in its order. ``read`` is
    the row of the lesson's ``boxes`` that holds the first of two figures which the answer repeats; the other follows."""

    question: str
    answer: str
    about: tuple[Written, ...]
    read: int | None = None


@dataclass(frozen=True, eq=False)
class Lesson:
    """One view with what is in it. ``boxes`` (M, 4) are thousandths of the view, ``kinds`` their (colour,
    shape) names, in reading order of the visual tokens that hold their centres; ``hidden`` (H, 4) are
    things that the border cuts too much to be asked for."""

    view: Image.Image
    boxes: np.ndarray
    kinds: tuple[tuple[str, str], ...]
    hidden: np.ndarray
    dialogue: tuple[Turn, ...]


class Pool:
    """A sliding window over rendered pictures: rendering is dear, cropping is cheap.

    Which pictures step s may use, and which it does, follows from the step and its random numbers alone.
    ``source`` maps a picture's number to its scene.
    """

    def __init__(self, source: Callable[[int], data_scenes.Scene], fresh: int = 1, depth: int = 64) -> None:
        self.source, self.fresh, self.depth = source, fresh, depth
        self._rendered: dict[int, tuple[data_scenes.Scene, Image.Image]] = {}

    def draw(self, step: int, count: int, rng: np.random.Generator) -> list[tuple[data_scenes.Scene, Image.Image]]:
        """``count`` (scene, picture) pairs of the window of ``step``."""
        last = self.depth + step * self.fresh
        self._rendered = {i: pair for i, pair in self._rendered.items() if i > last - self.depth}
        return [self._picture(int(i)) for i in rng.integers(last - self.depth + 1, last + 1, count)]

    def _picture(self, index: int) -> tuple[data_scenes.Scene, Image.Image]:
        if index not in self._rendered:
            scene = self.source(index)
            self._rendered[index] = (scene, scene.render())
        return self._rendered[index]


def practice_sheet(seed: int, index: int) -> data_scenes.Scene:
    """A table packed with things of every kind: many lessons for the price of one picture."""
    rng = np.random.default_rng([seed, 1, index])
    size = (640, 640)
    centres, diameters = np.zeros((0, 2)), np.zeros(0)
    for _ in range(500):
        point, diameter = rng.uniform(40, 600, 2), rng.uniform(*data_scenes.DIAMETERS)
        if (np.hypot(*(centres - point).T) > 0.54 * (diameters + diameter)).all():
            centres, diameters = np.vstack([centres, point]), np.append(diameters, diameter)
    things = tuple(
        data_scenes.Thing(
            *any_kind(rng),
            (float(x), float(y)),
            float(diameter),
            float(rng.uniform(-0.25, 0.25)),
            0,
        )
        for (x, y), diameter in zip(centres, diameters)
    )
    return data_scenes.Scene(
        size, things, things[0].colour, things[0].shape, "", (0, 0, 0, 0), int(rng.integers(2**31))
    )


def crop_lesson(scene: data_scenes.Scene, picture: Image.Image, rng: np.random.Generator, most: int) -> Lesson:
    """A random crop and questions about it: kinds that are there, and kinds that are almost there."""
    width, height = picture.size
    w, h = rng.uniform(190, 460, 2) * max(1.0, min(picture.size) / 896)
    thing = scene.things[rng.integers(len(scene.things))]
    x = np.clip(thing.centre[0] + w * rng.uniform(-0.5, 0.5), w / 2, width - w / 2)
    y = np.clip(thing.centre[1] + h * rng.uniform(-0.5, 0.5), h / 2, height - h / 2)
    window = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    view = geometry.crop(picture, window, CROP_VIEW)
    boxes, seen, hidden = seen_in(scene, window, CROP_VIEW)
    kinds = tuple((thing.colour, thing.shape) for thing in seen)
    dialogue = []
    for kind in _questions(kinds, rng, most):
        found = tuple(row for row, other in enumerate(kinds) if other == kind)
        answer = prompts.boxes_answer([rounded(boxes[row]) for row in found])
        about = tuple(Written((row,), found) for row in found)
        dialogue.append(Turn(prompts.task_prompt(" ".join(kind), "short"), answer, about))
    if rng.random() < 0.2:  # nobody has ever seen one of these
        dialogue[-1] = Turn(prompts.task_prompt(_nonsense(rng), "short"), prompts.boxes_answer([]), ())
    return Lesson(view, boxes, kinds, hidden, tuple(dialogue))


def view_lesson(scene: data_scenes.Scene, picture: Image.Image, rng: np.random.Generator) -> Lesson:
    """The whole picture at sensing size: the form of a sensing answer with mediocre regions, and pointing."""
    window, size = all_of(picture), whole_size(picture, SENSING_SIDE)
    boxes, seen, hidden = seen_in(scene, window, size)
    clusters = clusters_of(scene.things)
    dialogue = []
    for _ in range(4):
        # Anything may be asked for, and neither thought nor regions listen to it.
        query = " ".join(any_kind(rng)) if rng.random() < 0.75 else _nonsense(rng)
        count = rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3])
        chosen = sorted(rng.permutation(len(clusters))[:count])
        dialogue.append(
            _regions_turn(prompts.sensing_prompt(query, "short"), [clusters[i] for i in chosen], scene, seen, rng)
        )
    for _ in range(2):
        colour = clusters[rng.integers(len(clusters))][0].colour
        chosen = [cluster for cluster in clusters if cluster[0].colour == colour][:3]
        dialogue.append(_regions_turn(prompts.pointing_prompt(colour), chosen, scene, seen, rng))
    return Lesson(
        geometry.crop(picture, window, size), boxes, tuple((t.colour, t.shape) for t in seen), hidden, tuple(dialogue)
    )


def all_of(picture: Image.Image) -> tuple[float, float, float, float]:
    """The window that shows all of a picture, xyxy in pixels."""
    return (0.0, 0.0, float(picture.width), float(picture.height))


def whole_size(picture: Image.Image, side: int) -> tuple[int, int]:
    """The (width, height) at which all of a picture is seen: whole visual tokens, its shorter side near ``side``."""
    return geometry.fitted(geometry.with_shorter_side(picture.size, side), PATCH * MERGE, 1, 2**30)


def clusters_of(things: Sequence[data_scenes.Thing]) -> list[list[data_scenes.Thing]]:
    """The things of each cluster, clusters from top to bottom."""
    groups = sorted({thing.group for thing in things})
    members = [[thing for thing in things if thing.group == group] for group in groups]
    return sorted(members, key=lambda things: np.mean([thing.centre[1] for thing in things]))


def _regions_turn(
    question: str, clusters: Sequence[Sequence[data_scenes.Thing]], scene: data_scenes.Scene, seen: Sequence[data_scenes.Thing],
    rng: np.random.Generator,
) -> Turn:  # fmt: skip
    """A question answered with a thought that names each cluster's colour, and a mediocre region around each:
    jittered, and every twentieth anywhere."""
    regions, about = [], []
    for said, cluster in enumerate(clusters):
        w, h = rng.uniform(0.32, 0.5, 2) * min(scene.size)
        centre, there = np.mean([thing.centre for thing in cluster], axis=0), bool(rng.random() >= 0.05)
        centre = centre + rng.uniform(-0.1, 0.1, 2) * (w, h) if there else rng.uniform((0, 0), scene.size)
        x, y = np.clip(centre, (w / 2, h / 2), (scene.size[0] - w / 2, scene.size[1] - h / 2))
        regions.append(
            rounded(np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * 1000 / np.array([*scene.size] * 2))
        )
        things = tuple(row for row, thing in enumerate(seen) if thing.group == cluster[0].group and there)
        kin = tuple(row for row, thing in enumerate(seen) if thing.colour == cluster[0].colour)
        about.append(Written(things, kin, said))
    thought = " " + ", ".join(cluster[0].colour for cluster in clusters)
    return Turn(question, prompts.sensing_answer(regions, thought), tuple(about))


def rounded(box: np.ndarray) -> tuple[int, ...]:
    """A box in thousandths as the tiny policy writes it: whole hundredths, at most 990.

    The last digit is always 0, which costs half a percent of the view and saves the policy a digit of noise.
    """
    return tuple(int(v) for v in np.clip(np.round(box / 10) * 10, 0, 990))


def seen_in(
    scene: data_scenes.Scene, window: Sequence[float], view: tuple[int, int]
) -> tuple[np.ndarray, list[data_scenes.Thing], np.ndarray]:
    """Things in a window that is seen at ``view`` pixels: (boxes in thousandths, things) of the ones at least
    half inside, boxes of the rest."""
    frame = geometry.Frame(tuple(window), (1000, 1000))
    boxes_px = geometry.as_boxes([thing.box_px for thing in scene.things])
    inside = geometry.containment(boxes_px, geometry.as_boxes([window]))[:, 0]
    boxes = np.clip(frame.to_text(boxes_px), 0, 1000)
    columns, rows = (side // (PATCH * MERGE) for side in view)
    order = sorted(np.flatnonzero(inside >= 0.5), key=lambda i: cell_of(boxes[i], rows, columns))
    hidden = boxes[(inside > 0.02) & (inside < 0.5)]
    return boxes[order], [scene.things[i] for i in order], hidden


def cell_of(box: np.ndarray, rows: int, columns: int) -> int:
    """The visual token, in reading order, that holds the centre of a box in thousandths."""
    row = min(rows - 1, int((box[1] + box[3]) / 2000 * rows))
    return row * columns + min(columns - 1, int((box[0] + box[2]) / 2000 * columns))


def any_kind(rng: np.random.Generator) -> tuple[str, str]:
    """A (colour, shape) that the embedded world knows."""
    return list(data_scenes.COLOURS)[rng.integers(len(data_scenes.COLOURS))], data_scenes.SHAPES[
        rng.integers(len(data_scenes.SHAPES))
    ]


def _nonsense(rng: np.random.Generator) -> str:
    """One or two made-up words: what a name is like that the policy has never learned."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return " ".join("".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(rng.integers(1, 3)))


def _questions(kinds: Sequence[tuple[str, str]], rng: np.random.Generator, most: int) -> list[tuple[str, str]]:
    """Up to ``most`` different kinds to ask for: about two thirds are there, the others share a trait."""
    there = sorted(set(kinds))
    there = [there[i] for i in rng.permutation(len(there))][: max(1, math.ceil(most * 2 / 3))]
    asked = list(there)
    while len(asked) < most:
        colour, shape = any_kind(rng)
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
        [view_lesson(*pair, rng) for pair in pictures.draw(step, views, rng)],
    )
