"""The embedded world: pictures in which what matters is too small for one look.

A picture (shorter side 896 or 1024) shows a textured table with four to ten *clusters* of small things
on it. A cluster has one colour, so from afar it is a speckle of red or blue; which shapes are in it, a
star or a cross, is 45-65 pixels wide and melts away in a sensing view of 96 pixels, but is plain in a
crop. Every picture asks for one kind of thing: a colour and a shape, "red star". Its targets stand in
one or two clusters of their colour, beside others of the colour but not of the shape; now and then a
decoy cluster has the colour alone, and the other clusters have the shape in other colours. So *where*
to look can be seen in the global view (the colour), *what* is there only in a crop (the shape).

A picture follows from (split, index) alone, in numpy arithmetic that is the same on every machine.

>>> picture = scene("test", 3)
>>> picture.size, picture.colour, picture.shape, len(picture.things)
((1344, 896), 'purple', 'square', 26)
>>> question = example("test", 3)
>>> question.query, len(question.boxes_px), question.boxes_px[0].tolist()
('purple square', 5, [673.0, 618.0, 722.0, 667.0])
>>> question.count.number, question.vqa.answer
(5, '59')

Ceiling and floors are known by construction: regions cut around the true clusters (``oracle-regions``)
are the ceiling of any policy; the whole picture, random regions and a uniform grid are its floors.

Where the answer itself is the result there are no zooms, so the tiny policy is asked about pictures whose things, or
whose plate, are as large as in a crop. There are two data sets of these: ``close_ups`` with some things of a few kinds
(for --task grounding, counting and detection) and ``plates`` with a number (for --task ocr). Close-up i of a split is a
window of the world's picture i, in its own pixels, and follows from both numbers alone.

>>> example = close_up("test", 3)
>>> example.query, example.count.number, example.phrase.text, example.image.size
('purple square', 2, 'purple ring', (332, 332))
>>> plate("test", 3).text
'59'
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Callable

import numpy as np
from PIL import Image

from activeo3 import geometry
from activeo3.data_set import Dataset, Source, register
from activeo3.geometry import as_boxes, mask_to_rle
from activeo3.types import VQA, Count, Example, Objects, Phrase

SIZES: dict[str, int] = {"train": 100_000, "val": 1_000, "test": 1_000}
"""How many pictures each split has; splits never share one."""
SPLITS = dict.fromkeys(SIZES, 0)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 40, 45),
    "yellow": (245, 205, 50),
    "green": (40, 150, 65),
    "blue": (45, 85, 215),
    "purple": (150, 60, 185),
    "white": (250, 250, 250),
}
SHAPES: tuple[str, ...] = ("disc", "ring", "square", "triangle", "star", "cross")

KINDS: tuple[str, ...] = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""The names of all kinds of thing."""

QUESTION = "What number is on the plate?"
"""What every picture asks to be read."""

WORLD = 1  # part of every seed: raise it when the world changes, so that old numbers are not mixed with new
_CANVASES = ((896, 896), (1024, 1024), (1152, 896), (896, 1152), (1344, 896))
_CLUSTER_RADIUS = 105  # px at a shorter side of 896; everything scales with the shorter side
DIAMETERS = (44, 66)  # px at a shorter side of 896
_FINE = 2  # samples per pixel and axis when a shape is drawn

# A 3 x 5 pixel digit in 15 bits, top left first.
_DIGITS = (31599, 11415, 29671, 29647, 23497, 31183, 31215, 29257, 31727, 31695)


@dataclass(frozen=True)
class Thing:
    """One small object: ``centre`` and ``diameter`` in pixels, ``turn`` in radians, ``group`` its cluster."""

    colour: str
    shape: str
    centre: tuple[float, float]
    diameter: float
    turn: float
    group: int

    @cached_property
    def stamp(self) -> tuple[int, int, np.ndarray]:
        """(left, top, coverage (h, w) in 0-1): how much of each pixel the shape covers, tightly cut."""
        half = int(self.diameter / 2) + 2
        left, top = int(self.centre[0]) - half, int(self.centre[1]) - half
        side = 2 * half + 1
        ticks = (np.arange(side * _FINE, dtype=np.float32) + 0.5) / _FINE
        x = (ticks + left - self.centre[0])[None, :] / (self.diameter / 2)
        y = (ticks + top - self.centre[1])[:, None] / (self.diameter / 2)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        inside = _inside(self.shape, cos * x + sin * y, cos * y - sin * x)
        coverage = inside.reshape(side, _FINE, side, _FINE).mean(axis=(1, 3))
        rows, columns = np.flatnonzero((coverage >= 0.5).any(1)), np.flatnonzero((coverage >= 0.5).any(0))
        y1, y2, x1, x2 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        return left + int(x1), top + int(y1), coverage[y1:y2, x1:x2]

    @property
    def name(self) -> str:
        """Its kind in words."""
        return f"{self.colour} {self.shape}"

    @property
    def box_px(self) -> tuple[float, float, float, float]:
        """The tight box of the pixels that are at least half covered."""
        left, top, coverage = self.stamp
        return (float(left), float(top), float(left + coverage.shape[1]), float(top + coverage.shape[0]))

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """The thing's pixels in a picture of ``size`` (width, height): boolean (H, W)."""
        left, top, coverage = self.stamp
        full = np.zeros((size[1], size[0]), dtype=bool)
        full[top : top + coverage.shape[0], left : left + coverage.shape[1]] = coverage >= 0.5
        return full


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in the unit shape (circumscribed by the circle of radius 1, y down)."""
    match shape:
        case "disc":
            return x * x + y * y <= 0.9
        case "ring":
            return (x * x + y * y <= 1.0) & (x * x + y * y >= 0.3)
        case "square":
            return (np.abs(x) <= 0.78) & (np.abs(y) <= 0.78)
        case "triangle":
            return (y <= 0.62) & (1.9 * np.abs(x) <= y + 0.95)
        case "star":
            angle = np.abs((np.arctan2(x, -y) * 5 / (2 * np.pi) + 0.5) % 1.0 - 0.5)  # 0 at a tip
            return np.hypot(x, y) <= 1.0 / (1.0 + 3.1 * angle)
        case "cross":
            return (np.minimum(np.abs(x), np.abs(y)) <= 0.24) & (np.maximum(np.abs(x), np.abs(y)) <= 0.95)
        case _:
            raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


@dataclass(frozen=True)
class Scene:
    """A picture as things: ``colour`` and ``shape`` are the kind it asks for, ``number`` is on the plate."""

    size: tuple[int, int]
    things: tuple[Thing, ...]
    colour: str
    shape: str
    number: str
    plate_px: tuple[int, int, int, int]
    texture_seed: int

    @property
    def targets(self) -> tuple[Thing, ...]:
        """The things of the kind that is asked for."""
        return self.of_kind(self.colour, self.shape)

    def of_kind(self, colour: str, shape: str) -> tuple[Thing, ...]:
        """All things of one kind, in reading order of their cluster."""
        return tuple(thing for thing in self.things if (thing.colour, thing.shape) == (colour, shape))

    def render(self) -> Image.Image:
        """The picture, RGB."""
        rng = np.random.default_rng(self.texture_seed)
        canvas = _table(rng, self.size)
        for thing in self.things:
            left, top, coverage = thing.stamp
            shade = rng.uniform(0.88, 1.06)
            patch = canvas[top : top + coverage.shape[0], left : left + coverage.shape[1]]
            paint = np.clip(np.array(COLOURS[thing.colour]) * shade, 0, 255).astype(np.float32)
            patch += coverage[..., None].astype(np.float32) * (paint - patch)
        draw_plate(canvas, self.plate_px, self.number)
        return Image.fromarray(np.clip(canvas + 0.5, 0, 255, out=canvas).astype(np.uint8))


def scene(split: str, index: int) -> Scene:
    """The world's picture ``index`` of ``split``; raises KeyError or IndexError for one it does not have."""
    if not 0 <= index < SIZES[split]:
        raise IndexError(f"the embedded world has {SIZES[split]} {split} pictures, there is no number {index}")
    rng = np.random.default_rng([WORLD, list(SIZES).index(split), index])
    size = _CANVASES[rng.integers(len(_CANVASES))]
    unit = min(size) / 896
    colour, *others = (list(COLOURS)[i] for i in rng.permutation(len(COLOURS)))
    shape = SHAPES[rng.integers(len(SHAPES))]
    centres = _spread(rng, size, count=int(rng.integers(5, 8) * size[0] * size[1] / min(size) ** 2), unit=unit)
    wanted = int(rng.integers(1, 3))  # clusters that hold targets
    decoys = int(rng.random() < 0.4)
    things: list[Thing] = []
    for group, centre in enumerate(centres):
        if group < wanted + decoys:
            kinds = _wanted_kinds(rng, colour, shape, with_targets=group < wanted)
        else:
            other = others[rng.integers(len(others))]
            kinds = [(other, SHAPES[rng.integers(len(SHAPES))]) for _ in range(rng.integers(3, 6))]
        things += _place(rng, kinds, centre, group, unit)
    plate = _plate_place(rng, size, things, unit)
    return Scene(size, tuple(things), colour, shape, str(rng.integers(10, 100)), plate, int(rng.integers(2**31)))


def example(split: str, index: int) -> Example:
    """One question about one picture, with everything a later task may ask of it.

    The question in words is about the numbered plate. The phrase refers to the only thing of some kind (its own draw,
    which leaves the picture as it is).
    """
    picture = scene(split, index)
    query = f"{picture.colour} {picture.shape}"
    targets = picture.targets
    return Example(
        id=f"scenes-{split}-{index:06d}",
        image=picture.render(),
        query=query,
        boxes_px=np.array([thing.box_px for thing in targets]),
        image_id=index + 1,
        category_id=1 + KINDS.index(query),
        masks=lambda: [mask_to_rle(thing.mask(picture.size)) for thing in targets],
        objects=Objects(
            np.array([thing.box_px for thing in picture.things]), tuple(thing.name for thing in picture.things), KINDS
        ),
        vqa=VQA(QUESTION, (picture.number,), evidence_px=as_boxes([picture.plate_px])),
        phrase=referred(picture, np.random.default_rng([WORLD, list(SIZES).index(split), index, 1])),
        count=Count(len(targets)),
        text=picture.number,
    )


def opener(draw: Callable[[str, int], Example]) -> Callable[[Source], Dataset]:
    """What opens a data set whose examples are drawn from (split, index); the data root is not looked at."""
    return lambda source: source.dataset(range(SIZES[source.split]), lambda _, index: draw(source.split, index))


register("scenes", SPLITS, "drawn by activeo3/data_scenes.py")(opener(example))


def referred(picture: Scene, rng: np.random.Generator) -> Phrase:
    """A phrase that is true of exactly one thing: the kind of a thing that has no second of its kind.

    In a picture without any such thing the target furthest left is referred to.
    """
    names = [thing.name for thing in picture.things]
    alone = [thing for thing in picture.things if names.count(thing.name) == 1]
    if alone:
        only = alone[rng.integers(len(alone))]
        return Phrase(only.name, only.box_px)
    first = min(picture.targets, key=lambda thing: thing.box_px[0])
    return Phrase(f"leftmost {first.name}", first.box_px)


def _wanted_kinds(rng: np.random.Generator, colour: str, shape: str, with_targets: bool) -> list[tuple[str, str]]:
    """The kinds in a cluster of the target's colour: two or three targets (or none) and other shapes."""
    others = [name for name in SHAPES if name != shape]
    hits = int(rng.integers(2, 4)) if with_targets else 0
    misses = int(rng.integers(1, 3)) if with_targets else int(rng.integers(3, 5))
    kinds = [(colour, shape)] * hits + [(colour, others[rng.integers(len(others))]) for _ in range(misses)]
    return [kinds[i] for i in rng.permutation(len(kinds))]


def _spread(rng: np.random.Generator, size: tuple[int, int], count: int, unit: float) -> np.ndarray:
    """Up to ``count`` cluster centres (C, 2), away from the border and from each other."""
    margin, apart = (_CLUSTER_RADIUS + 40) * unit, (2 * _CLUSTER_RADIUS + 65) * unit
    centres: list[np.ndarray] = []
    for _ in range(400):
        point = rng.uniform([margin, margin], [size[0] - margin, size[1] - margin])
        if len(centres) < count and all(np.hypot(*(point - other)) >= apart for other in centres):
            centres.append(point)
    return np.array(centres)


def _place(
    rng: np.random.Generator, kinds: list[tuple[str, str]], centre: np.ndarray, group: int, unit: float
) -> list[Thing]:
    """Things of the given kinds inside a cluster, none touching another."""
    placed: list[Thing] = []
    for colour, shape in kinds:
        for _ in range(200):
            diameter = rng.uniform(*DIAMETERS) * unit
            radius, angle = _CLUSTER_RADIUS * unit * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
            x, y = centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)
            if all(np.hypot(x - t.centre[0], y - t.centre[1]) > 0.54 * (diameter + t.diameter) for t in placed):
                turn = rng.uniform(-0.25, 0.25)
                placed.append(Thing(colour, shape, (float(x), float(y)), float(diameter), float(turn), group))
                break
    return placed


def _plate_place(
    rng: np.random.Generator, size: tuple[int, int], things: list[Thing], unit: float
) -> tuple[int, int, int, int]:
    """A free spot for the numbered plate, xyxy in whole pixels; the least crowded of many."""
    width, height = int(60 * unit), int(44 * unit)
    spots = rng.uniform([0, 0], [size[0] - width, size[1] - height], (60, 2))
    centres = np.array([thing.centre for thing in things])
    free = np.abs(spots[:, None] + [width / 2, height / 2] - centres[None]).max(-1).min(-1)
    x, y = spots[int(free.argmax())].astype(int)
    return int(x), int(y), int(x) + width, int(y) + height


def _table(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A textured background, float32 (H, W, 3): a dull tint, soft patches and fine grain."""
    width, height = size
    tint = rng.uniform(105, 150) + rng.uniform(-14, 14, 3)
    texture = np.zeros((height, width), dtype=np.float32)
    for cells, strength in ((6, 16.0), (40, 9.0)):
        coarse = rng.integers(0, 256, (cells, cells)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
        texture += strength * (smooth / 127.5 - 1)
    grain = rng.integers(-7, 8, (128, 128)).astype(np.float32)
    texture += np.tile(grain, (height // 128 + 1, width // 128 + 1))[:height, :width]
    return texture[..., None] + tint.astype(np.float32)


def figure_boxes(plate_px: tuple[int, int, int, int], number: str) -> list[tuple[int, int, int, int]]:
    """Where the figures of a plate stand, xyxy in whole pixels, from left to right: 3 x 5 dots each."""
    x1, y1, x2, y2 = plate_px
    dot = (y2 - y1) // 8
    top = y1 + (y2 - y1 - 5 * dot) // 2
    lefts = [x1 + (x2 - x1) // 2 + dot * (4 * position - 3) - dot // 2 for position in range(len(number))]
    return [(left, top, left + 3 * dot, top + 5 * dot) for left in lefts]


def draw_plate(canvas: np.ndarray, plate_px: tuple[int, int, int, int], number: str) -> None:
    """Paint a light plate with a dark number into the canvas (H, W, 3), in place."""
    x1, y1, x2, y2 = plate_px
    canvas[y1:y2, x1:x2] = 225
    dot = (y2 - y1) // 8
    for digit, (left, top, _, _) in zip(number, figure_boxes(plate_px, number)):
        for bit in range(15):
            if _DIGITS[int(digit)] >> (14 - bit) & 1:
                row, column = top + bit // 3 * dot, left + bit % 3 * dot
                canvas[row : row + dot, column : column + dot] = 40


# ---------------------------------------------------------------------- close-ups


THING_SIDES = (200, 400)  # px at a shorter side of 896: of a window with a handful of things
PLATE_SIDES = (110, 230)  # and of one whose plate can be read in a view of 128

Window = tuple[float, float, float, float]


def things_window(scene: Scene, things: tuple[Thing, ...], rng: np.random.Generator) -> Window:
    """A square window around one of these things; of many, the first of those that cut the fewest things in two."""
    all_boxes = geometry.as_boxes([thing.box_px for thing in scene.things])
    side = int(rng.uniform(*THING_SIDES) * min(scene.size) / 896)
    centre = np.array(things[rng.integers(len(things))].centre)
    tries = [_square(centre + rng.uniform(-0.3, 0.3, 2) * side, side, scene.size) for _ in range(24)]
    inside = geometry.containment(all_boxes, geometry.as_boxes(tries))  # (things, windows)
    return tries[int(((inside > 0) & (inside < 1)).sum(axis=0).argmin())]


def plate_window(scene: Scene, rng: np.random.Generator) -> Window:
    """A square window with the plate anywhere in it."""
    box = np.array(scene.plate_px)
    side = int(rng.uniform(*PLATE_SIDES) * min(scene.size) / 896)
    room = np.maximum(side - (box[2:] - box[:2]), 0)
    return _square((box[:2] + box[2:]) / 2 + rng.uniform(-0.5, 0.5, 2) * room, side, scene.size)


def _square(centre: np.ndarray, side: int, size: tuple[int, int]) -> Window:
    """A window of whole pixels, as near to the centre as the picture allows."""
    x, y = (int(np.clip(round(c - side / 2), 0, extent - side)) for c, extent in zip(centre, size))
    return (float(x), float(y), float(x + side), float(y + side))


def within(scene: Scene, window: Window) -> Scene:
    """What a window of whole pixels shows, as a scene of its own: the things at least half of which are inside."""
    x, y = int(window[0]), int(window[1])
    inside = geometry.containment(geometry.as_boxes([t.box_px for t in scene.things]), geometry.as_boxes([window]))[
        :, 0
    ]
    things = tuple(
        replace(thing, centre=(thing.centre[0] - x, thing.centre[1] - y))
        for thing, share in zip(scene.things, inside) if share >= 0.5
    )  # fmt: skip
    x1, y1, x2, y2 = scene.plate_px
    size = (int(window[2]) - x, int(window[3]) - y)
    return replace(scene, size=size, things=things, plate_px=(x1 - x, y1 - y, x2 - x, y2 - y))


# ---------------------------------------------------------------------- examples


def close_up(split: str, index: int) -> Example:
    """A question about the things of a close-up, with count, phrase and objects.

    Boxes of things that the border cuts end there.
    """
    whole, rng = scene(split, index), draws(split, index, 2)
    window = things_window(whole, whole.targets, rng)
    picture = within(whole, window)
    boxes = lambda things: geometry.clipped(geometry.as_boxes([t.box_px for t in things]), picture.size)  # noqa: E731
    phrase = referred(picture, rng)
    phrase = phrase._replace(box_px=tuple(geometry.clipped(geometry.as_boxes([phrase.box_px]), picture.size)[0]))
    query = f"{picture.colour} {picture.shape}"
    return Example(
        id=f"close_ups-{split}-{index:06d}",
        image=_cut(whole, window),
        query=query,
        boxes_px=boxes(picture.targets),
        image_id=index + 1,
        category_id=1 + KINDS.index(query),
        objects=Objects(boxes(picture.things), tuple(thing.name for thing in picture.things), KINDS),
        phrase=phrase,
        count=Count(len(picture.targets)),
    )


def plate(split: str, index: int) -> Example:
    """A close-up of a plate, with its question in words and its text."""
    whole = scene(split, index)
    window = plate_window(whole, draws(split, index, 3))
    boxes_px = geometry.as_boxes([within(whole, window).plate_px])
    return Example(
        id=f"plates-{split}-{index:06d}",
        image=_cut(whole, window),
        query="text",
        boxes_px=boxes_px,
        image_id=index + 1,
        category_id=1,
        vqa=VQA(QUESTION, (whole.number,), evidence_px=boxes_px),
        text=whole.number,
    )


def _cut(whole: Scene, window: Window) -> Image.Image:
    return whole.render().crop(tuple(int(v) for v in window))


def draws(split: str, index: int, what: int) -> np.random.Generator:
    """Random numbers of a field of its own, which leave the world's pictures as they are."""
    return np.random.default_rng([WORLD, list(SIZES).index(split), index, what])


register("close_ups", SPLITS, "drawn by activeo3/data_scenes.py")(opener(close_up))
register("plates", SPLITS, "drawn by activeo3/data_scenes.py")(opener(plate))
