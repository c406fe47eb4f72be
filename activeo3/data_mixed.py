"""The embedded world with questions of mixed difficulty: ``mixed``, of which a third each needs 0, 1 or 2 looks.

Every picture asks for the number on the plate (data_scenes.py). How many looks that takes is drawn from (split, index)
and is the category of the question:

    0 looks   the plate is so large that a first view of 96 pixels shows its figures
    1 look    the plate is a light speck in that view, and shows its figures in a crop
    2 looks   two such plates, one of them with a grey bar for a number: alike from afar, where a dot of a figure is
              half a pixel, and too far apart for one readable crop

Floors and ceilings are known by construction, besides lucky guesses (one in 90): without a look a third of the
questions can be answered right, with one look a third and a third and half of the last one, with two looks all.

>>> [looks("test", index) for index in range(6)], example("test", 0).vqa.category
([2, 2, 0, 0, 1, 2], '2 looks')
"""

from dataclasses import replace

import numpy as np
from PIL import Image

from activeo3.data_scenes import PLATE_SIDES, QUESTION, SPLITS, Scene, draw_plate, draws, figure_boxes, opener, scene
from activeo3.data_set import register
from activeo3.geometry import as_boxes
from activeo3.types import VQA, Example

LOOKS = (0, 1, 2)
LARGE = 5.2  # times as large as other plates: a dot of a figure has 3 pixels in a view of 96

Plate = tuple[int, int, int, int]


def looks(split: str, index: int) -> int:
    """How many looks the question about picture ``index`` needs."""
    return int(draws(split, index, 4).choice(LOOKS))


def example(split: str, index: int) -> Example:
    """A picture with its question; the evidence is the plate with the number."""
    picture, plates = plates_of(split, index)
    image, evidence_px = rendered(picture, plates[1:]), as_boxes(plates[:1])
    return Example(
        id=f"mixed-{split}-{index:06d}",
        image=image,
        query="text",
        boxes_px=evidence_px,
        image_id=index + 1,
        category_id=1,
        vqa=VQA(QUESTION, (picture.number,), evidence_px=evidence_px, category=f"{looks(split, index)} looks"),
        text=picture.number,
    )


def plates_of(split: str, index: int) -> tuple[Scene, list[Plate]]:
    """The picture without the plate that has no number, and all plates, xyxy in whole pixels, that one last."""
    picture, rng = scene(split, index), draws(split, index, 5)
    match looks(split, index):
        case 0:
            picture = enlarged(picture)
            return picture, [picture.plate_px]
        case 1:
            return picture, [picture.plate_px]
    plates = [picture.plate_px, _second_place(picture, rng)]
    numbered, other = (plates[i] for i in rng.permutation(2))
    return replace(picture, plate_px=numbered), [numbered, other]


def enlarged(picture: Scene) -> Scene:
    """The picture with a plate LARGE times as large at the same place, without the things that it would hide."""
    x1, y1, x2, y2 = picture.plate_px
    sides = [int((x2 - x1) * LARGE), int((y2 - y1) * LARGE)]
    corner = [
        int(np.clip((low + high - side) / 2, 0, extent - side))
        for low, high, side, extent in zip((x1, y1), (x2, y2), sides, picture.size)
    ]
    plate = (*corner, corner[0] + sides[0], corner[1] + sides[1])
    return replace(picture, things=tuple(t for t in picture.things if _apart(t.box_px, plate)), plate_px=plate)


def rendered(picture: Scene, blank: list[Plate]) -> Image.Image:
    """The picture, RGB, with plates that have a bar for a number, of the mean tone that the number has there."""
    canvas = np.array(picture.render())
    numbered = bar_of(picture.plate_px, picture.number)
    tone = round(canvas[numbered].mean())
    for plate in blank:
        draw_plate(canvas, plate, "")
        canvas[bar_of(plate, picture.number)] = tone
    return Image.fromarray(canvas)


def bar_of(plate: Plate, number: str) -> tuple[slice, slice]:
    """Rows and columns of a plate's figures, with the gaps between them."""
    boxes = figure_boxes(plate, number)
    return slice(boxes[0][1], boxes[0][3]), slice(boxes[0][0], boxes[-1][2])


def _second_place(picture: Scene, rng: np.random.Generator) -> Plate:
    """The least crowded of many places for a second plate, so far from the first that a crop of both is unreadable."""
    x1, y1, x2, y2 = picture.plate_px
    size = np.array([x2 - x1, y2 - y1])
    places = rng.uniform([0, 0], np.array(picture.size) - size, (120, 2))
    centres = np.array([thing.centre for thing in picture.things])
    free = np.abs(places[:, None] + size / 2 - centres[None]).max(-1).min(-1)  # (places,)
    far = np.abs(places - [x1, y1]).max(-1) > PLATE_SIDES[1] * min(picture.size) / 896
    x, y = places[int(np.where(far, free, -1.0).argmax())].astype(int)
    return int(x), int(y), int(x + size[0]), int(y + size[1])


def _apart(box_px: tuple[float, float, float, float], plate: Plate) -> bool:
    """Whether a thing's box and a plate share no pixel."""
    return box_px[2] <= plate[0] or plate[2] <= box_px[0] or box_px[3] <= plate[1] or plate[3] <= box_px[1]


register("mixed", SPLITS, "drawn by activeo3/data_mixed.py")(opener(example))
