"""Close-ups of the embedded world: windows of its pictures in which one look is enough.

Where the answer itself is the result nobody zooms, so the tiny policy is asked about pictures whose things, or whose
plate, are as large as in a crop. There are two data sets of these: ``close_ups`` with some things of a few kinds (for
--task grounding, counting and detection) and ``plates`` with a number (for --task ocr). Close-up i of a split is a
window of the world's picture i, in its own pixels, and follows from both numbers alone.

>>> example = close_up("test", 3)
>>> example.query, example.count.number, example.phrase.text, example.image.size
('purple square', 2, 'purple ring', (332, 332))
>>> plate("test", 3).text
'59'
"""

from dataclasses import replace

import numpy as np
from PIL import Image

from activeo3 import data_scenes, geometry
from activeo3.data_set import register
from activeo3.types import VQA, Count, Example, Objects

THING_SIDES = (200, 400)  # px at a shorter side of 896: of a window with a handful of things
PLATE_SIDES = (110, 230)  # and of one whose plate can be read in a view of 128

Window = tuple[float, float, float, float]


def things_window(scene: data_scenes.Scene, things: tuple[data_scenes.Thing, ...], rng: np.random.Generator) -> Window:
    """A square window around one of these things; of many, the first of those that cut the fewest things in two."""
    all_boxes = geometry.as_boxes([thing.box_px for thing in scene.things])
    side = int(rng.uniform(*THING_SIDES) * min(scene.size) / 896)
    centre = np.array(things[rng.integers(len(things))].centre)
    tries = [_square(centre + rng.uniform(-0.3, 0.3, 2) * side, side, scene.size) for _ in range(24)]
    inside = geometry.containment(all_boxes, geometry.as_boxes(tries))  # (things, windows)
    return tries[int(((inside > 0) & (inside < 1)).sum(axis=0).argmin())]


def plate_window(scene: data_scenes.Scene, rng: np.random.Generator) -> Window:
    """A square window with the plate anywhere in it."""
    box = np.array(scene.plate_px)
    side = int(rng.uniform(*PLATE_SIDES) * min(scene.size) / 896)
    room = np.maximum(side - (box[2:] - box[:2]), 0)
    return _square((box[:2] + box[2:]) / 2 + rng.uniform(-0.5, 0.5, 2) * room, side, scene.size)


def _square(centre: np.ndarray, side: int, size: tuple[int, int]) -> Window:
    """A window of whole pixels, as near to the centre as the picture allows."""
    x, y = (int(np.clip(round(c - side / 2), 0, extent - side)) for c, extent in zip(centre, size))
    return (float(x), float(y), float(x + side), float(y + side))


def within(scene: data_scenes.Scene, window: Window) -> data_scenes.Scene:
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
    whole, rng = data_scenes.scene(split, index), _draws(split, index, 2)
    window = things_window(whole, whole.targets, rng)
    picture = within(whole, window)
    boxes = lambda things: geometry.clipped(geometry.as_boxes([t.box_px for t in things]), picture.size)  # noqa: E731
    phrase = data_scenes.referred(picture, rng)
    phrase = phrase._replace(box_px=tuple(geometry.clipped(geometry.as_boxes([phrase.box_px]), picture.size)[0]))
    query = f"{picture.colour} {picture.shape}"
    return Example(
        id=f"close_ups-{split}-{index:06d}",
        image=_cut(whole, window),
        query=query,
        boxes_px=boxes(picture.targets),
        image_id=index + 1,
        category_id=1 + data_scenes.KINDS.index(query),
        objects=Objects(boxes(picture.things), tuple(thing.name for thing in picture.things), data_scenes.KINDS),
        phrase=phrase,
        count=Count(len(picture.targets)),
    )


def plate(split: str, index: int) -> Example:
    """A close-up of a plate, with its question in words and its text."""
    whole = data_scenes.scene(split, index)
    window = plate_window(whole, _draws(split, index, 3))
    boxes_px = geometry.as_boxes([within(whole, window).plate_px])
    return Example(
        id=f"plates-{split}-{index:06d}",
        image=_cut(whole, window),
        query="text",
        boxes_px=boxes_px,
        image_id=index + 1,
        category_id=1,
        vqa=VQA(data_scenes.QUESTION, (whole.number,), evidence_px=boxes_px),
        text=whole.number,
    )


def _cut(whole: data_scenes.Scene, window: Window) -> Image.Image:
    return whole.render().crop(tuple(int(v) for v in window))


def _draws(split: str, index: int, what: int) -> np.random.Generator:
    """Random numbers of a field of its own, which leave the world's pictures as they are."""
    return np.random.default_rng([data_scenes.WORLD, list(data_scenes.SIZES).index(split), index, what])


register("close_ups", data_scenes.SPLITS, "drawn by activeo3/data_scene_crops.py")(data_scenes.opener(close_up))
register("plates", data_scenes.SPLITS, "drawn by activeo3/data_scene_crops.py")(data_scenes.opener(plate))
