"""The embedded world: what a picture shows is what its boxes, masks, counts and answers say."""

import hashlib
import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from activeo3 import data_scenes, geometry
from activeo3.config import TrainConfig
from activeo3.data import open_dataset
from activeo3.data_scenes import COLOURS, SHAPES, SIZES, Scene, Thing, example, scene
from activeo3.geometry import rle_to_mask
from activeo3.tasks import known_tasks

INDICES = range(41)


@lru_cache(maxsize=None)
def known(split: str, index: int) -> Scene:
    return scene(split, index)


def some() -> list[Scene]:
    return [known(split, index) for split in SIZES for index in INDICES]


def union(things: tuple[Thing, ...], size: tuple[int, int]) -> np.ndarray:
    """How many things cover each pixel (H, W)."""
    return sum((thing.mask(size).astype(int) for thing in things), np.zeros(size[::-1], dtype=int))


# ---------------------------------------------------------------------- the same everywhere, another each time


def test_a_picture_follows_from_its_split_and_index() -> None:
    assert scene("val", 7) == scene("val", 7)
    first, second = example("val", 7), example("val", 7)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.boxes_px.tolist() == second.boxes_px.tolist()
    np.random.seed(0)  # no global state takes part
    assert scene("val", 7) == known("val", 7)


def test_no_two_pictures_are_alike_within_or_across_splits() -> None:
    far = [known("train", index) for index in (999, 1_000, 1_001, 99_999)]
    all_of_them = some() + far
    assert len({picture.things for picture in all_of_them}) == len(all_of_them)
    assert len({picture.texture_seed for picture in all_of_them}) == len(all_of_them)


def test_the_geometry_of_one_picture_is_the_one_it_always_was() -> None:
    """Fails when the world changes: then raise ``scenes.WORLD``, and this checksum with it."""
    picture = known("test", 3)
    lines = [f"{picture.size} {picture.colour} {picture.shape} {picture.number} {picture.plate_px}"]
    for thing in picture.things:
        x, y = thing.centre
        lines.append(
            f"{thing.group} {thing.colour} {thing.shape} {x:.3f} {y:.3f} {thing.diameter:.3f} {thing.turn:.3f}"
        )
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "3008aaef6d53fa1c"


@pytest.mark.parametrize("split", SIZES)
def test_pictures_that_do_not_exist_are_refused(split: str) -> None:
    for index in (-1, SIZES[split], SIZES[split] + 5):
        with pytest.raises(IndexError, match=rf"{SIZES[split]} {split} pictures.*{index}"):
            scene(split, index)
    assert scene(split, SIZES[split] - 1).targets
    with pytest.raises(KeyError):
        scene("training", 0)


# ---------------------------------------------------------------------- what is in a picture


def test_every_picture_asks_for_something_it_has() -> None:
    for picture in some():
        assert min(picture.size) >= 896
        assert 1 <= len(picture.targets) < len(picture.things)
        kinds = {(thing.colour, thing.shape) for thing in picture.things}
        assert (picture.colour, picture.shape) in kinds
        assert all(colour in COLOURS and shape in SHAPES for colour, shape in kinds)
        # Something of the colour only, or the answer would be plain from afar.
        assert any(colour == picture.colour and shape != picture.shape for colour, shape in kinds)


def test_targets_stand_in_one_or_two_clusters_of_one_colour_and_nowhere_else() -> None:
    decoys = 0
    for picture in some():
        colours: dict[int, set[str]] = {}
        shapes: dict[int, set[str]] = {}
        for thing in picture.things:
            colours.setdefault(thing.group, set()).add(thing.colour)
            shapes.setdefault(thing.group, set()).add(thing.shape)
        own_colour = {group for group, found in colours.items() if picture.colour in found}
        with_targets = {group for group in own_colour if picture.shape in shapes[group]}
        assert all(len(found) == 1 for found in colours.values())
        assert {thing.group for thing in picture.targets} == with_targets
        assert 1 <= len(with_targets) <= 2 and len(own_colour - with_targets) <= 1
        decoys += len(own_colour) > len(with_targets)
        assert len(colours) > len(own_colour)
    assert 0.2 < decoys / len(some()) < 0.6  # "now and then"


def test_all_canvases_colours_shapes_and_counts_occur() -> None:
    pictures = some()
    assert {picture.size for picture in pictures} == set(data_scenes._CANVASES)
    assert {picture.colour for picture in pictures} == set(COLOURS)
    assert {picture.shape for picture in pictures} == set(SHAPES)
    assert {2, 3, 4, 5, 6} <= {len(picture.targets) for picture in pictures}
    clusters = {len({thing.group for thing in picture.things}) for picture in pictures}
    assert {4, 5, 6, 7, 8, 9} <= clusters <= set(range(4, 11))


def test_things_lie_inside_the_picture_and_do_not_touch() -> None:
    for picture in some():
        width, height = picture.size
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box_px
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        for i, one in enumerate(picture.things):
            for other in picture.things[:i]:
                apart = math.dist(one.centre, other.centre)
                assert apart > (one.diameter + other.diameter) / 2, (picture.texture_seed, one, other)


def test_the_plate_lies_inside_the_picture_on_free_table() -> None:
    for picture in some():
        x1, y1, x2, y2 = picture.plate_px
        assert 0 <= x1 < x2 <= picture.size[0] and 0 <= y1 < y2 <= picture.size[1]
        for thing in picture.things:
            left, top, right, bottom = thing.box_px
            apart = right <= x1 or x2 <= left or bottom <= y1 or y2 <= top
            assert apart, (picture.texture_seed, picture.plate_px, thing)


# ---------------------------------------------------------------------- boxes, masks and pixels


def test_boxes_are_tight_on_masks_and_masks_are_apart() -> None:
    for index in range(12):
        picture = known("test", index)
        for thing in picture.things:
            rows, columns = np.nonzero(thing.mask(picture.size))
            assert thing.box_px == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert union(picture.things, picture.size).max() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_drawn_where_and_as_large_as_its_thing_says(shape: str) -> None:
    areas = {"disc": 0.9 * math.pi, "ring": 0.7 * math.pi, "square": 1.56**2, "triangle": 1.57**2 / 1.9}
    areas["cross"] = 4 * 0.95 * 0.48 - 0.48**2
    for turn in (0.0, 0.2):
        thing = Thing("red", shape, (101.3, 88.6), 60.0, turn, 0)
        mask = thing.mask((200, 180))
        rows, columns = np.nonzero(mask)
        assert mask.shape == (180, 200)
        assert max(abs(columns + 0.5 - 101.3).max(), abs(rows + 0.5 - 88.6).max()) <= 31
        if shape in areas:
            assert mask.sum() == pytest.approx(areas[shape] * 30**2, rel=0.05)  # pixels are whole
        assert min(np.ptp(rows), np.ptp(columns)) > 40  # never a sliver
        if shape != "triangle":
            assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((101.3, 88.6), abs=0.7)


def test_shapes_differ_from_each_other() -> None:
    masks = [Thing("red", shape, (50.0, 50.0), 60.0, 0.0, 0).mask((100, 100)) for shape in SHAPES]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one & other).sum() / (one | other).sum() < 0.85
    with pytest.raises(ValueError, match="'heart'.*disc, ring"):
        Thing("red", "heart", (50.0, 50.0), 60.0, 0.0, 0).mask((100, 100))


@pytest.mark.parametrize("index", [0, 3, 11])
def test_masks_are_the_pixels_that_were_painted(index: int) -> None:
    picture = known("test", index)
    shown = np.asarray(picture.render()).astype(int)
    table = np.asarray(replace(picture, things=()).render()).astype(int)
    assert shown.shape == (picture.size[1], picture.size[0], 3)
    painted = (shown != table).any(-1)
    masked = union(picture.things, picture.size) > 0
    assert painted[masked].mean() > 0.999
    assert masked[painted].mean() > 0.9  # the rest are rims that are less than half covered
    for thing in picture.things:
        left, top, coverage = thing.stamp
        patch = shown[top : top + coverage.shape[0], left : left + coverage.shape[1]]
        core = patch[coverage == 1]  # one shade of the thing's colour throughout
        assert len(core) > 100 and np.ptp(core, axis=0).max() == 0
        colour = np.array(COLOURS[thing.colour])
        assert ((core[0] >= 0.88 * colour - 1) & (core[0] <= np.minimum(1.06 * colour + 1, 255))).all()


def test_the_plate_shows_its_number() -> None:
    glyphs = {
        "1": ".#. ##. .#. .#. ###",
        "4": "#.# #.# ### ..# ..#",
        "7": "### ..# ..# ..# ..#",
        "0": "### #.# #.# #.# ###",
    }
    for number in ("14", "70", "41", "07"):
        picture = replace(known("test", 0), number=number, things=(), plate_px=(300, 200, 360, 244))
        plate = np.asarray(picture.render())[200:244, 300:360, 0]
        rows, columns = np.nonzero(plate < 100)
        assert (plate[plate >= 100] == 225).all()
        dot = (rows.max() + 1 - rows.min()) // 5
        for place, digit in enumerate(number):
            cells = "".join(glyphs[digit].split())
            drawn = ""
            for cell in range(15):
                # The digits are four dots apart; a narrow one still stands in a field of three.
                left = 30 + dot * (4 * place - 3) - dot // 2 + cell % 3 * dot
                top = rows.min() + cell // 3 * dot
                square = plate[top : top + dot, left : left + dot]
                assert np.ptp(square) == 0
                drawn += "#" if square[0, 0] < 100 else "."
            assert drawn == cells, (number, digit)
    digits = {bits: digit for digit, bits in enumerate(data_scenes._DIGITS)}
    assert len(digits) == 10


# ---------------------------------------------------------------------- the question about it


@pytest.mark.parametrize("split, index", [("train", 0), ("val", 5), ("test", 3), ("test", 12)])
def test_an_example_says_what_its_scene_shows(split: str, index: int) -> None:
    question, picture = example(split, index), known(split, index)
    targets = [thing for thing in picture.things if f"{thing.colour} {thing.shape}" == question.query]
    assert question.image.tobytes() == picture.render().tobytes()
    assert question.image.mode == "RGB" and question.size_px == picture.size
    assert question.boxes_px.tolist() == [list(thing.box_px) for thing in targets]
    assert question.count.number == len(targets) == len(question.boxes_px)
    assert question.id == f"scenes-{split}-{index:06d}" and question.image_id == index + 1

    masks = [rle_to_mask(rle) for rle in question.masks()]
    assert len(masks) == len(targets)
    for mask, thing in zip(masks, targets):
        assert np.array_equal(mask, thing.mask(picture.size))

    reading = question.vqa
    assert reading.answer == picture.number and 10 <= int(reading.answer) <= 99
    assert reading.evidence_px.tolist() == [list(picture.plate_px)]


def test_category_ids_name_kinds_from_1_on() -> None:
    ids: dict[str, int] = {}
    for index in range(6):
        for split in SIZES:
            question = example(split, index)
            assert ids.setdefault(question.query, question.category_id) == question.category_id
    assert len(set(ids.values())) == len(ids) > 5
    assert all(1 <= number <= len(COLOURS) * len(SHAPES) for number in ids.values())


def test_targets_are_a_handful_of_pixels_in_a_sensing_view_of_128() -> None:
    for picture in some():
        for thing in picture.targets:
            x1, _, x2, _ = thing.box_px
            assert 3 < (x2 - x1) * 128 / min(picture.size) < 10


# ---------------------------------------------------------------------- close-ups

SOME = range(40)


def test_a_close_up_is_a_window_of_the_worlds_picture_in_its_own_pixels() -> None:
    for index in range(4):
        whole = data_scenes.scene("val", index)
        picture = np.asarray(whole.render())
        for example, what in ((data_scenes.close_up("val", index), 2), (data_scenes.plate("val", index), 3)):
            rng = data_scenes.draws("val", index, what)
            window = (
                data_scenes.things_window(whole, whole.targets, rng)
                if what == 2
                else data_scenes.plate_window(whole, rng)
            )
            x1, y1, x2, y2 = map(int, window)
            assert (0 <= x1 < x2 <= whole.size[0]) and (0 <= y1 < y2 <= whole.size[1]) and x2 - x1 == y2 - y1
            assert np.array_equal(np.asarray(example.image), picture[y1:y2, x1:x2])


def test_things_are_those_of_the_picture_and_moved_with_the_window() -> None:
    """Against the pixels: the mask of a thing in the close-up is the window of its mask in the picture."""
    for index in range(6):
        whole = data_scenes.scene("train", index)
        window = data_scenes.things_window(whole, whole.things, np.random.default_rng(index))
        x1, y1, x2, y2 = map(int, window)
        here = data_scenes.within(whole, window)
        cut = [thing.mask(whole.size)[y1:y2, x1:x2] for thing in whole.things]
        held = [mask for thing, mask in zip(whole.things, cut) if mask.sum() > 0.5 * thing.mask(whole.size).sum()]
        assert 1 <= len(here.things) == len(held)
        for thing, mask in zip(here.things, held):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            tight = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert tuple(geometry.clipped(geometry.as_boxes([thing.box_px]), here.size)[0]) == tight


def test_questions_have_one_true_answer_and_most_things_are_whole() -> None:
    whole = cut = 0
    for index in SOME:
        example = data_scenes.close_up("test", index)
        names, boxes = example.objects.labels, example.objects.boxes_px
        own = [box.tolist() for box, name in zip(boxes, names) if name == example.query]
        assert own == example.boxes_px.tolist() and example.count.number == len(own) >= 1
        referred = example.phrase
        fits = [box.tolist() for box, name in zip(boxes, names) if name == referred.text.removeprefix("leftmost ")]
        assert list(referred.box_px) in fits and (len(fits) == 1 or referred.text.startswith("leftmost "))
        at_border = [min(box) == 0 or max(box) == example.image.width for box in boxes]
        whole, cut = whole + len(boxes) - sum(at_border), cut + sum(at_border)
    assert whole > 10 * cut


def test_a_plate_shows_its_number_dot_by_dot() -> None:
    for index in SOME:
        example = data_scenes.plate("test", index)
        reading, picture = example.vqa, np.asarray(example.image)
        assert example.text == reading.answer == data_scenes.scene("test", index).number
        for figure, (x1, y1, x2, y2) in zip(
            reading.answer, data_scenes.figure_boxes(tuple(map(int, reading.evidence_px[0])), reading.answer)
        ):
            dots = picture[y1:y2, x1:x2, 0].reshape(5, (y2 - y1) // 5, 3, (x2 - x1) // 3).mean(axis=(1, 3)) < 128
            assert int("".join("01"[int(dot)] for dot in dots.ravel()), 2) == data_scenes._DIGITS[int(figure)]


@pytest.mark.parametrize(
    ("data", "tasks"), [("close_ups", ("grounding", "counting", "detection")), ("plates", ("ocr",))]
)
def test_every_example_is_a_question_of_its_tasks(data: str, tasks: tuple[str, ...]) -> None:
    dataset = open_dataset(data, "val", limit=10)
    assert (dataset.name, dataset.split, len(dataset), dataset[0].id) == (data, "val", 10, f"{data}-val-000000")
    for task in tasks:
        posed = [known_tasks()[task](TrainConfig()).prepare(dataset[index]) for index in range(10)]
        assert all(len(example.boxes_px) for example in posed)
