"""What the tiny policy is taught for episodes and one-shot tasks: their forms, and how to read a plate.

As in lessons.py, such a lesson has the form of a good answer and not its choice; what is to be chosen for a question
is in none of them, and is left to reinforcement:

    zoom_qa     zooms to things and to the plate, whatever is asked; now and then an answer without a look
    grounding   the box of *some* thing of the colour that is asked for
    counting    three in four of all things of the colour, from left to right, and how many these are
    detection   the first few things from the left, with their right names
    ocr         a part of what can be read, or more than that

Two answers are the truth, because nothing else can be learned from them: what number a plate has, for an episode
that has come to see it, and where every thing of a kind is in a crop (``lessons.crop_lesson``). So the policy knows
how to read, and not where to look before it does.
"""

from dataclasses import dataclass
from typing import Sequence

import numpy as np
from PIL import Image

from activeo3 import data_scene_crops, data_scenes, geometry, prompts, task_perception_words
from activeo3.data_scene_crops import Window
from activeo3.lessons import (
    CROP_VIEW,
    MERGE,
    PATCH,
    SENSING_SIDE,
    Lesson,
    Pool,
    Turn,
    Written,
    all_of,
    any_kind,
    clusters_of,
    practice_sheet,
    rounded,
    seen_in,
    whole_size,
)  # fmt: skip

QUESTION, READ = data_scenes.QUESTION, task_perception_words.perception_prompt("ocr", "text", "short")


@dataclass(frozen=True)
class Past:
    """A turn that lies behind: what was shown, the words beside it, and what the policy said to them."""

    views: tuple[Image.Image, ...]
    words: str
    said: str


@dataclass(frozen=True, eq=False)
class Drill(Lesson):
    """A lesson at some point of an episode: ``past`` turns first, then ``beside``, pictures shown together with
    ``view`` and before it.

    ``plates`` are all that can be read: (boxes (3, 4) in thousandths of the view, of the plate and of its two
    figures, and the number). ``plate`` is the only one that is in view, if there is just one. Its boxes are also
    rows of ``boxes``, behind those of the things, which alone have ``kinds``.
    """

    past: tuple[Past, ...] = ()
    beside: tuple[Image.Image, ...] = ()
    plate: tuple[np.ndarray, str] | None = None
    plates: tuple[tuple[np.ndarray, str], ...] = ()


# ---------------------------------------------------------------------- pictures with plates


@dataclass(frozen=True)
class PlateSheet(data_scenes.Scene):
    """A table with things and many plates: many lessons for the price of one picture."""

    plates: tuple[tuple[tuple[int, int, int, int], str], ...] = ()

    def render(self) -> Image.Image:
        """The picture, RGB."""
        canvas = np.asarray(super().render(), dtype=np.float32).copy()
        for box_px, number in self.plates:
            data_scenes.draw_plate(canvas, box_px, number)
        return Image.fromarray(canvas.astype(np.uint8))


def plate_sheet(seed: int, index: int) -> PlateSheet:
    """Forty-two plates, and things wherever there is room for them."""
    rng = np.random.default_rng([seed, 2, index])
    sheet = practice_sheet(seed, index)
    plates = []
    for row in range(7):
        for column in range(6):
            x, y = (np.array([column * 106 + 23, row * 91 + 23]) + rng.uniform(-20, 20, 2)).astype(int)
            plates.append(((int(x), int(y), int(x) + 60, int(y) + 44), str(rng.integers(10, 100))))
    room = geometry.as_boxes([box for box, _ in plates]) + [-4, -4, 4, 4]
    free = lambda thing: not geometry.containment(geometry.as_boxes([thing.box_px]), room).any()  # noqa: E731
    things = tuple(thing for thing in sheet.things if free(thing))
    return PlateSheet(
        sheet.size, things, sheet.colour, sheet.shape, "", (0, 0, 0, 0), sheet.texture_seed, tuple(plates)
    )


def plates_of(scene: data_scenes.Scene) -> tuple[tuple[tuple[int, int, int, int], str], ...]:
    """(box in pixels, number) of every plate."""
    return scene.plates if isinstance(scene, PlateSheet) else ((scene.plate_px, scene.number),)


# ---------------------------------------------------------------------- a view and what is in it


@dataclass
class Sighting:
    """A window of a scene, seen at ``size`` pixels: the arguments of a ``Drill``."""

    scene: data_scenes.Scene
    picture: Image.Image
    window: Window
    size: tuple[int, int]

    def __post_init__(self) -> None:
        self.frame = geometry.Frame(self.window, (1000, 1000))
        self.view = geometry.crop(self.picture, self.window, self.size)
        self.boxes, self.things, self.hidden = seen_in(self.scene, self.window, self.size)
        plates, numbers = zip(*plates_of(self.scene))
        plates_px = geometry.as_boxes(plates)
        inside = geometry.containment(plates_px, geometry.as_boxes([self.window]))[:, 0]
        self.plates = tuple((self._places(plates[i], numbers[i]), numbers[i]) for i in np.flatnonzero(inside > 0.97))
        self.plate = self.plates[0] if self.plates and (inside > 0.05).sum() == 1 else None

    def _places(self, plate_px: tuple[int, int, int, int], number: str) -> np.ndarray:
        """Boxes (3, 4) of a plate and of its figures, in thousandths of the view."""
        boxes = geometry.as_boxes([plate_px, *data_scenes.figure_boxes(plate_px, number)])
        return np.clip(self.frame.to_text(boxes), 0, 1000)

    @property
    def colours(self) -> tuple[str, ...]:
        """The colour of each thing."""
        return tuple(thing.colour for thing in self.things)

    def drill(self, turns: Sequence[Turn], past: tuple[Past, ...] = (), beside: tuple[Image.Image, ...] = ()) -> Drill:
        """A lesson of these turns about the view."""
        boxes = self.boxes if self.plate is None else np.vstack([self.boxes, self.plate[0]])
        kinds = tuple((thing.colour, thing.shape) for thing in self.things)
        return Drill(self.view, boxes, kinds, self.hidden, tuple(turns), past, beside, self.plate, self.plates)

    def number(self, question: str, answer: str) -> Turn:
        """A question that is answered with what the plate says, if there is one in view."""
        return Turn(question, answer, (), None if self.plate is None else len(self.things) + 1)


def whole(scene: data_scenes.Scene, picture: Image.Image, side: int) -> Sighting:
    """All of a picture, its shorter side ``side`` pixels."""
    return Sighting(scene, picture, all_of(picture), whole_size(picture, side))


def window_around(centre: Sequence[float], sides: Sequence[float], within: Window) -> Window:
    """A window of these sides (width, height), shifted so that it lies inside another one."""
    w, h = (min(side, within[2 + i] - within[i]) for i, side in enumerate(sides))
    x = float(np.clip(centre[0], within[0] + w / 2, within[2] - w / 2))
    y = float(np.clip(centre[1], within[1] + h / 2, within[3] - h / 2))
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


# ---------------------------------------------------------------------- reading


def reading_drill(scene: data_scenes.Scene, picture: Image.Image, rng: np.random.Generator) -> Drill:
    """A close-up of the plate: for an episode the number that it shows, for ocr the form of a transcript."""
    sighting = Sighting(scene, picture, data_scene_crops.plate_window(scene, rng), CROP_VIEW)
    answer = sighting.number(QUESTION, prompts.final_answer(scene.number))
    return sighting.drill([answer, *(_transcript(sighting, rng) for _ in range(2))])


def _transcript(sighting: Sighting, rng: np.random.Generator) -> Turn:
    number, extra = sighting.scene.number, _any_number(rng)
    forms = (number[0], number, number + extra[0], number + extra)
    return sighting.number(READ, forms[rng.choice(4, p=[0.5, 0.25, 0.15, 0.1])])


def sheet_drill(scene: data_scenes.Scene, picture: Image.Image, rng: np.random.Generator) -> Drill:
    """Many plates at the sizes that they have in a crop, for the eye alone: nothing is asked."""
    side = rng.uniform(240, 420)
    window = window_around(rng.uniform(0, 640, 2), (side, side), all_of(picture))
    return Sighting(scene, picture, window, (int(rng.integers(12, 17)) * PATCH * MERGE,) * 2).drill(())


def _nearly_square(rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """(width, height), as a policy's regions are: between two sizes, and a little longer one way or the other."""
    return rng.uniform(least, most) * rng.uniform(0.88, 1.12, 2)


def _any_number(rng: np.random.Generator) -> str:
    return str(rng.integers(10, 100))


# ---------------------------------------------------------------------- episodes


@dataclass(frozen=True)
class Aim:
    """Something to zoom to: the centre of it in pixels, its name, rows of a sighting's boxes that it is."""

    centre: tuple[float, float]
    name: str
    rows: tuple[int, ...]


def _aims(sighting: Sighting) -> list[Aim]:
    """What can be zoomed to in a view: every cluster, and the plate (last)."""
    aims = []
    for cluster in clusters_of(sighting.things):
        centre = np.mean([thing.centre for thing in cluster], axis=0)
        rows = tuple(row for row, thing in enumerate(sighting.things) if thing.group == cluster[0].group)
        aims.append(Aim(tuple(centre), cluster[0].colour, rows))
    if sighting.plate is not None:
        box = sighting.frame.to_px(sighting.plate[0][:1])[0]
        aims.append(Aim(tuple((box[:2] + box[2:]) / 2), "plate", (len(sighting.things),)))
    return aims


def _zoom(
    sighting: Sighting, aims: Sequence[Aim], question: str, rng: np.random.Generator, wording: str, listed: bool = False
) -> tuple[Turn, list[Window]]:
    """A turn that zooms to these aims, mediocrely, and what it is to be shown. The thought names them."""
    shorter = min(sighting.window[2] - sighting.window[0], sighting.window[3] - sighting.window[1])
    boxes, windows, about = [], [], []
    for said, aim in enumerate(aims):
        sides = _nearly_square(rng, 0.14, 0.26) * shorter
        centre = np.array(aim.centre) + rng.uniform(-0.2, 0.2, 2) * sides
        window = window_around(centre, sides, sighting.window)
        boxes.append(rounded(sighting.frame.to_text(geometry.as_boxes([window]))[0]))
        windows.append(tuple(sighting.frame.to_px(geometry.as_boxes([boxes[-1]]))[0].tolist()))
        kin = tuple(row for row, colour in enumerate(sighting.colours) if colour == aim.name) or aim.rows
        about.append(Written(aim.rows, kin, said))
    thought = " " + ", ".join(aim.name for aim in aims)
    return Turn(question, prompts.zooms_turn(thought, boxes, wording, listed=listed), tuple(about)), windows


def _chosen(aims: Sequence[Aim], most: int, rng: np.random.Generator) -> list[Aim]:
    """One to ``most`` aims at random, in their order."""
    count = int(rng.integers(1, most + 1))
    return [aims[i] for i in sorted(rng.permutation(len(aims))[:count])]


def first_turn_drill(
    scene: data_scenes.Scene, picture: Image.Image, rng: np.random.Generator, wording: str = "short"
) -> Drill:
    """The whole picture at sensing size: zooms to anything, one at a time or several at once, and guesses."""
    sighting = whole(scene, picture, SENSING_SIDE)
    aims, turns = _aims(sighting), []
    for at_once in (1, 1, 1, 3, 3):
        asked = prompts.episode_prompt(QUESTION, wording, 3, at_once=at_once)
        if rng.random() < 0.15:
            turns.append(Turn(asked, prompts.final_answer(_any_number(rng)), ()))
        else:
            turns.append(_zoom(sighting, _chosen(aims, at_once, rng), asked, rng, wording, at_once > 1)[0])
    return sighting.drill(turns)


def next_turn_drill(
    scene: data_scenes.Scene, picture: Image.Image, rng: np.random.Generator, wording: str = "short"
) -> Drill:
    """After one look or two: the number if its plate was shown, else a guess or a look at something."""
    at_once = 3 if rng.random() < 0.3 else 1
    sighting = whole(scene, picture, SENSING_SIDE)
    words, past, beside = prompts.episode_prompt(QUESTION, wording, 3, at_once=at_once), (), ()
    deep, readable = at_once == 1 and rng.random() < 0.3, []
    for _ in range(1 + deep):
        aims = _aims(sighting)
        to_plate = aims[-1].name == "plate" and rng.random() < 0.6
        chosen = aims[-1:] if to_plate and at_once == 1 else _chosen(aims, at_once, rng)
        if to_plate and chosen[-1] is not aims[-1]:
            chosen = [*chosen[: at_once - 1], aims[-1]]
        turn, windows = _zoom(sighting, chosen, words, rng, wording, at_once > 1)
        shown = [Sighting(scene, picture, window, CROP_VIEW) for window in windows]
        past += (Past((*beside, sighting.view), words, turn.answer),)
        readable += [one.plate[1] for one in shown if one.plate is not None]
        closer = prompts.shown("zooms_executed" if len(shown) > 1 else "zoom_executed", wording)
        beside, sighting, words = tuple(one.view for one in shown[:-1]), shown[-1], closer
        if not sighting.things and sighting.plate is None:
            break
    aims = _aims(sighting)
    if readable:
        turns = [sighting.number(words, prompts.final_answer(readable[-1]))]
    elif aims and at_once == 1 and len(past) == 1 and rng.random() < 0.5:
        turns = [_zoom(sighting, _chosen(aims, 1, rng), words, rng, wording)[0]]
    else:
        turns = [Turn(words, prompts.final_answer(_any_number(rng)), ())]
    return sighting.drill(turns, past, beside)


# ---------------------------------------------------------------------- one-shot tasks


def close_up_drill(scene: data_scenes.Scene, picture: Image.Image, rng: np.random.Generator) -> Drill:
    """A close-up of some things, and the form of an answer to each task that is about things."""
    sighting = Sighting(scene, picture, data_scene_crops.things_window(scene, scene.things, rng), CROP_VIEW)
    writers = (_one_thing, _one_thing, _some_things, _some_things, _names, _names, _names, _names)  # to name is hardest
    return sighting.drill([write(sighting, rng) for write in writers])


def _asked_kind(sighting: Sighting, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A kind that is there in colour at least, and the rows of all things of the colour."""
    thing = sighting.things[rng.integers(len(sighting.things))]
    shape = thing.shape if rng.random() < 0.7 else any_kind(rng)[1]
    return f"{thing.colour} {shape}", tuple(
        row for row, other in enumerate(sighting.things) if other.colour == thing.colour
    )


def _listed(sighting: Sighting, rows: Sequence[int]) -> list[tuple[int, ...]]:
    return [rounded(sighting.boxes[row]) for row in rows]


def _from_left(sighting: Sighting, rows: Sequence[int]) -> list[int]:
    """Rows in the order in which they are listed: what was listed lies behind, and so nothing is listed twice."""
    return sorted(rows, key=lambda row: sighting.boxes[row][0])


def _one_thing(sighting: Sighting, rng: np.random.Generator) -> Turn:
    kind, alike = _asked_kind(sighting, rng)
    row = alike[rng.integers(len(alike))]
    question = task_perception_words.perception_prompt("grounding", kind, "short")
    return Turn(question, prompts.boxes_answer(_listed(sighting, [row])), (Written((row,), alike),))


def _some_things(sighting: Sighting, rng: np.random.Generator) -> Turn:
    kind, alike = _asked_kind(sighting, rng)
    rows = _from_left(sighting, [row for row in alike if rng.random() < 0.75][:5] or [alike[0]])
    question = task_perception_words.perception_prompt("counting", kind, "short")
    return Turn(
        question,
        f"{prompts.boxes_answer(_listed(sighting, rows))} {len(rows)}",
        tuple(Written((row,), alike) for row in rows),
    )


def _names(sighting: Sighting, rng: np.random.Generator) -> Turn:
    rows = _from_left(sighting, range(len(sighting.things)))[: min(int(rng.geometric(0.5)), 7)]
    question = task_perception_words.perception_prompt("detection", data_scenes.KINDS, "short")
    answer = task_perception_words.labelled_answer(_listed(sighting, rows), [sighting.things[row].name for row in rows])
    return Turn(question, answer, tuple(Written((row,), (row,), named=False) for row in rows))


def drills_of(
    sheets: Pool,
    pictures: Pool,
    step: int,
    rng: np.random.Generator,
    dense: int,
    reading: int,
    turns: int,
    close: int,
    wording: str = "short",
) -> list[list[Drill]]:
    """The lessons of a step: (many plates, close-ups of one, whole pictures before a look, after a look, close-ups of things).

    ``wording`` is that of episodes, in whose notation they zoom (prompts.EPISODE_WORDINGS)."""
    return [
        [sheet_drill(*pair, rng) for pair in sheets.draw(step, dense, rng)],
        [reading_drill(*pair, rng) for pair in pictures.draw(step, reading, rng)],
        [first_turn_drill(*pair, rng, wording) for pair in pictures.draw(step, turns // 2, rng)],
        [next_turn_drill(*pair, rng, wording) for pair in pictures.draw(step, turns, rng)],
        [close_up_drill(*pair, rng) for pair in pictures.draw(step, close, rng)],
    ]
