"""What the lessons of the shipped policies are made of: pictures of the embedded world, and views of them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Sequence

import numpy as np
from PIL import Image

from activeo3 import data_scenes, geometry
from activeo3.data_scenes import Scene, Thing, Window

PATCH, MERGE = 8, 2  # of the tiny vision tower: a visual token sees 16 x 16 pixels
SENSING_SIDE = 96  # shorter side of the sensing view, pixels
CROP_VIEW = (128, 128)  # every crop is seen at this size

Rng = np.random.Generator
Picture = tuple[Scene, Image.Image]
Plate = tuple[tuple[int, int, int, int], str]  # box in pixels, number


@dataclass(frozen=True)
class BoxLabel:
    """What one box of an answer is about, as rows of the lesson's ``boxes``: the ``things`` inside it, and
    ``same_query``, all things that its words fit. ``word`` counts which word of the thought names them, or is None
    where the question does; ``named`` is False where nothing does."""

    things: tuple[int, ...]
    same_query: tuple[int, ...]
    word: int | None = None
    named: bool = True


@dataclass(frozen=True)
class Turn:
    """A question and its answer, with one label for every box of the answer, in its order. ``digits`` is the row of
    the lesson's ``boxes`` that holds the first of two digits which the answer repeats; the other is the next row."""

    question: str
    answer: str
    labels: tuple[BoxLabel, ...] = ()
    digits: int | None = None


@dataclass(frozen=True)
class PastTurn:
    """An earlier turn of an episode: the images it showed, the text beside them, and the policy's answer."""

    views: tuple[Image.Image, ...]
    text: str
    answer: str


@dataclass(frozen=True, eq=False)
class Lesson:
    """One view with what is in it, and questions that are asked about it side by side.

    ``boxes`` (M, 4) are thousandths of the view: things in reading order of the visual tokens that hold their
    centres, with (colour, shape) in ``kinds``, and behind them the three boxes of ``plate``. ``truncated`` (H, 4) are
    things that the border cuts too much to be asked for. ``past`` turns come before the view; ``beside`` are images
    shown together with it, and before it. ``plates`` are all that can be read: (boxes (3, 4) of the plate and of its
    two digits, number); ``plate`` is the only one in view, if there is just one.
    """

    view: Image.Image
    boxes: np.ndarray
    kinds: tuple[tuple[str, str], ...]
    truncated: np.ndarray
    turns: tuple[Turn, ...]
    past: tuple[PastTurn, ...] = ()
    beside: tuple[Image.Image, ...] = ()
    plate: tuple[np.ndarray, str] | None = None
    plates: tuple[tuple[np.ndarray, str], ...] = ()


# ---------------------------------------------------------------------- pictures


@lru_cache(maxsize=256)
def rendered(make: Callable[[int, int], Scene], seed: int, index: int) -> Picture:
    """A scene and its picture."""
    scene = make(seed, index)
    return scene, scene.render()


def sample_pictures(make: Callable[[int, int], Scene], seed: int, step: int, count: int, rng: Rng) -> list[Picture]:
    """``count`` pictures of the 64 that a step may use. The next step may use one new one: rendering is slow, cropping
    is not."""
    return [rendered(make, seed, int(index)) for index in rng.integers(step + 1, step + 65, count)]


def training_scene(seed: int, index: int) -> Scene:
    """A training picture; each seed walks through them from another place."""
    return data_scenes.scene("train", (index + seed * 7919) % data_scenes.SIZES["train"])


def practice_sheet(seed: int, index: int) -> Scene:
    """A table packed with things of every kind: many lessons for the price of one picture."""
    rng = np.random.default_rng([seed, 1, index])
    centres, diameters = np.zeros((0, 2)), np.zeros(0)
    for _ in range(500):
        point, diameter = rng.uniform(40, 600, 2), rng.uniform(*data_scenes.DIAMETERS)
        if (np.hypot(*(centres - point).T) > 0.54 * (diameters + diameter)).all():
            centres, diameters = np.vstack([centres, point]), np.append(diameters, diameter)
    things = tuple(
        Thing(*any_kind(rng), (float(x), float(y)), float(diameter), float(rng.uniform(-0.25, 0.25)), 0)
        for (x, y), diameter in zip(centres, diameters)
    )
    texture = int(rng.integers(2**31))
    return Scene((640, 640), things, things[0].colour, things[0].shape, "", (0, 0, 0, 0), texture)


@dataclass(frozen=True)
class PlateSheet(Scene):
    """A table with things and many plates."""

    plates: tuple[Plate, ...] = ()

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
            x, y = (np.array([column * 106 + 23, row * 91 + 23]) + rng.uniform(-20, 20, 2)).astype(int).tolist()
            plates.append(((x, y, x + 60, y + 44), any_number(rng)))
    room = geometry.as_boxes([box for box, _ in plates]) + [-4, -4, 4, 4]
    free = lambda thing: not geometry.containment(geometry.as_boxes([thing.box_px]), room).any()  # noqa: E731
    things = tuple(thing for thing in sheet.things if free(thing))
    return PlateSheet(
        sheet.size, things, sheet.colour, sheet.shape, "", (0, 0, 0, 0), sheet.texture_seed, tuple(plates)
    )


def plates_of(scene: Scene) -> tuple[Plate, ...]:
    """(box in pixels, number) of every plate."""
    if isinstance(scene, PlateSheet):
        return scene.plates
    return ((scene.plate_px, scene.number),) if scene.number else ()


# ---------------------------------------------------------------------- a view and what is in it


@dataclass
class View:
    """A window of a scene, seen at ``size`` pixels. Things are in view if half of their box is."""

    scene: Scene
    picture: Image.Image
    window: Window
    size: tuple[int, int]

    def __post_init__(self) -> None:
        self.frame = geometry.Frame(self.window, (1000, 1000))
        self.image = geometry.crop(self.picture, self.window, self.size)
        boxes_px = geometry.as_boxes([thing.box_px for thing in self.scene.things])
        inside = geometry.containment(boxes_px, geometry.as_boxes([self.window]))[:, 0]
        boxes = np.clip(self.frame.to_text(boxes_px), 0, 1000)
        columns, rows = (side // (PATCH * MERGE) for side in self.size)
        order = sorted(np.flatnonzero(inside >= 0.5), key=lambda i: cell_of(boxes[i], rows, columns))
        self.boxes, self.truncated = boxes[order], boxes[(inside > 0.02) & (inside < 0.5)]
        self.things = [self.scene.things[i] for i in order]
        self.kinds = tuple((thing.colour, thing.shape) for thing in self.things)
        self._find_plates()

    def _find_plates(self) -> None:
        plates = plates_of(self.scene)
        plates_px = geometry.as_boxes([box_px for box_px, _ in plates])
        inside = geometry.containment(plates_px, geometry.as_boxes([self.window]))[:, 0]
        self.plates = tuple(
            (self._digit_boxes(*plate), plate[1]) for plate, share in zip(plates, inside) if share > 0.97
        )
        self.plate = self.plates[0] if self.plates and (inside > 0.05).sum() == 1 else None

    def _digit_boxes(self, plate_px: tuple[int, int, int, int], number: str) -> np.ndarray:
        """Boxes (3, 4) of a plate and of its digits, in thousandths of the view."""
        boxes = geometry.as_boxes([plate_px, *data_scenes.figure_boxes(plate_px, number)])
        return np.clip(self.frame.to_text(boxes), 0, 1000)

    def rows(self, colour: str) -> tuple[int, ...]:
        """Rows of ``boxes`` of all things of a colour."""
        return tuple(row for row, kind in enumerate(self.kinds) if kind[0] == colour)

    def text_box(self, window: Window) -> tuple[int, ...]:
        """A window in pixels as the policy writes it."""
        return rounded(self.frame.to_text(geometry.as_boxes([window]))[0])

    def text_boxes(self, rows: Sequence[int]) -> list[tuple[int, ...]]:
        """The boxes of things as the policy writes them."""
        return [rounded(self.boxes[row]) for row in rows]

    def lesson(
        self, turns: Sequence[Turn], past: tuple[PastTurn, ...] = (), beside: tuple[Image.Image, ...] = ()
    ) -> Lesson:
        """A lesson of these turns about the view."""
        boxes = self.boxes if self.plate is None else np.vstack([self.boxes, self.plate[0]])
        return Lesson(
            self.image, boxes, self.kinds, self.truncated, tuple(turns), past, beside, self.plate, self.plates
        )

    def number(self, question: str, answer: str) -> Turn:
        """A question that is answered with the plate's number, if there is one in view."""
        return Turn(question, answer, digits=None if self.plate is None else len(self.things) + 1)


def whole_view(scene: Scene, picture: Image.Image, side: int = SENSING_SIDE) -> View:
    """All of a picture in whole visual tokens, its shorter side near ``side`` pixels."""
    size = geometry.fitted(geometry.with_shorter_side(picture.size, side), PATCH * MERGE, 1, 2**30)
    return View(scene, picture, all_of(picture), size)


def all_of(picture: Image.Image) -> Window:
    """The window that shows all of a picture, xyxy in pixels."""
    return (0.0, 0.0, float(picture.width), float(picture.height))


def window_around(centre: Sequence[float], sides: Sequence[float], within: Window) -> Window:
    """A window of these sides (width, height), shifted so that it lies inside another one."""
    w, h = (min(side, within[2 + i] - within[i]) for i, side in enumerate(sides))
    x = float(np.clip(centre[0], within[0] + w / 2, within[2] - w / 2))
    y = float(np.clip(centre[1], within[1] + h / 2, within[3] - h / 2))
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def clusters_of(things: Sequence[Thing]) -> list[list[Thing]]:
    """The things of each cluster, clusters from top to bottom."""
    groups = sorted({thing.group for thing in things})
    members = [[thing for thing in things if thing.group == group] for group in groups]
    return sorted(members, key=lambda things: np.mean([thing.centre[1] for thing in things]))


def rounded(box: np.ndarray) -> tuple[int, ...]:
    """A box in thousandths as the tiny policy writes it: whole hundredths, at most 990.

    The last digit is always 0, which costs half a percent of the view and saves the policy a digit of noise.
    """
    return tuple(int(v) for v in np.clip(np.round(box / 10) * 10, 0, 990))


def cell_of(box: np.ndarray, rows: int, columns: int) -> int:
    """The visual token, in reading order, that holds the centre of a box in thousandths."""
    row = min(rows - 1, int((box[1] + box[3]) / 2000 * rows))
    return row * columns + min(columns - 1, int((box[0] + box[2]) / 2000 * columns))


def any_kind(rng: Rng) -> tuple[str, str]:
    """A (colour, shape) that the embedded world knows."""
    colours, shapes = list(data_scenes.COLOURS), data_scenes.SHAPES
    return colours[rng.integers(len(colours))], shapes[rng.integers(len(shapes))]


def any_number(rng: Rng) -> str:
    """A number that a plate can have."""
    return str(rng.integers(10, 100))
