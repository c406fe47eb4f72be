"""Close-ups: windows of the world's own pictures, in which things are where they are said to be and few are cut."""

import numpy as np
import pytest

from activeo3 import data_scenes, geometry
from activeo3.config import TrainConfig
from activeo3.data import open_dataset
from activeo3.tasks import known_tasks

SOME = range(40)


def test_a_close_up_is_a_window_of_the_worlds_picture_in_its_own_pixels() -> None:
    for index in range(4):
        whole = data_scenes.scene("val", index)
        picture = np.asarray(whole.render())
        for example, what in ((data_scenes.close_up("val", index), 2), (data_scenes.plate("val", index), 3)):
            rng = data_scenes._draws("val", index, what)
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
