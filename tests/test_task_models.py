"""task_models.py under a task model that sees colours: crop, view and way back must fit together.

The scripted expert reads its answer off the pixels of the crop, so a box that comes back at the right
place in the original picture went through the real crop, the real view size and the real frame.
"""

from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scripted import COLOURS, END, PATCH, USUAL, Scripted, finds, painted

from activeo3 import prompts
from activeo3.answer_parsing import read_boxes
from activeo3.config import ConfigError, TrainConfig
from activeo3.generate import in_batches
from activeo3.geometry import area, as_boxes, iou
from activeo3.task_models import UserFunction, act, crop_view
from activeo3.types import Example, Region, Sampling, TaskResult

CONFIG = TrainConfig(crop_side=448)  # most crops below are smaller, so a view has at least the picture's pixels


@pytest.fixture(params=USUAL)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def task_model(family: str, tokenizer) -> Scripted:
    return Scripted(family, tokenizer, finds)


def question(image: Image.Image, query: str = "red", name: str = "a") -> Example:
    return Example(name, image, query, np.zeros((0, 4)))


def found(
    task_model: Scripted, image: Image.Image, *regions: tuple, query: str = "red", config: TrainConfig = CONFIG
) -> TaskResult:
    """The outcome of one example; checks what is true of every outcome."""
    (outcome,) = act(task_model, [question(image, query)], [[Region(*region) for region in regions]], config)
    assert outcome.boxes_px.shape == (len(outcome.scores), 4) and (outcome.scores == 1).all()
    return outcome


def says(answer: str, family: str, tokenizer) -> Scripted:
    return Scripted(family, tokenizer, lambda *_: answer)


# ---------------------------------------------------------------------- the way back to original pixels

THINGS = {
    # name: (size of the picture, region, thing)
    "far from the origin": ((2000, 1500), (1500.0, 1100.0, 1900.0, 1450.0), (1640, 1200, 1690, 1260)),
    "at fractions of pixels": ((2000, 1500), (1500.4, 1100.7, 1833.3, 1450.2), (1640, 1200, 1690, 1260)),
    "wide": ((2000, 400), (900.0, 150.0, 1300.0, 230.0), (1000, 170, 1080, 200)),
    "tall": ((400, 2000), (150.0, 900.0, 230.0, 1300.0), (170, 1000, 200, 1080)),
    "the whole picture": ((400, 300), (0.0, 0.0, 400.0, 300.0), (350, 10, 390, 50)),
    "the last corner": ((1000, 700), (700.0, 500.0, 1000.0, 700.0), (940, 650, 1000, 700)),
    "all of the region": ((600, 600), (100.0, 200.0, 300.0, 280.0), (100, 200, 300, 280)),
}


@pytest.mark.parametrize("shape", ["square", "aspect"])
@pytest.mark.parametrize("size, region, thing", THINGS.values(), ids=THINGS.keys())
def test_what_is_seen_in_a_crop_comes_back_where_it_is(task_model, size, region, thing, shape: str) -> None:
    config = TrainConfig(crop_side=448, crop_shape=shape)
    outcome = found(task_model, painted(size, [("red", thing)]), region, config=config)
    assert outcome.boxes_px.shape == (1, 4)
    assert np.abs(outcome.boxes_px[0] - thing).max() < 1.5


def test_a_small_view_is_coarse_but_not_shifted(task_model) -> None:
    thing, region = (1640, 1200, 1690, 1260), (1500.0, 1100.0, 1900.0, 1450.0)
    outcome = found(task_model, painted((2000, 1500), [("red", thing)]), region, config=TrainConfig(crop_side=128))
    assert np.abs(outcome.boxes_px[0] - thing).max() < 400 / 112  # one pixel of the view


def test_a_window_between_pixels_is_cut_exactly_there(task_model) -> None:
    """Rounded to whole pixels it would shift what is seen, here by a sixteenth of the crop."""
    thing, region = (112, 112, 115, 115), (110.5, 110.5, 118.5, 118.5)
    outcome = found(task_model, painted((300, 300), [("red", thing)]), region)
    assert np.abs(outcome.boxes_px - [thing]).max() < 0.25


def test_a_thing_that_the_border_of_the_crop_cuts_ends_there(task_model) -> None:
    image = painted((800, 600), [("red", (380, 300, 460, 360))])
    outcome = found(task_model, image, (200.0, 200.0, 400.0, 400.0))
    assert np.abs(outcome.boxes_px - [[380, 300, 400, 360]]).max() < 1.5


def test_only_what_is_asked_for_is_found(task_model) -> None:
    image = painted((800, 600), [("red", (300, 300, 340, 340)), ("green", (360, 310, 390, 350))])
    for query, thing in (("red", (300, 300, 340, 340)), ("green", (360, 310, 390, 350))):
        outcome = found(task_model, image, (250.0, 250.0, 450.0, 450.0), query=query)
        assert np.abs(outcome.boxes_px - [thing]).max() < 1.5


def test_an_answer_cannot_reach_beyond_its_crop(family: str, tokenizer) -> None:
    image = painted((900, 700), [])
    for box in ([-400, -400, 5000, 5000], [5000, 5000, -400, -400]):
        outcome = found(says(prompts.boxes_answer([box]) + END, family, tokenizer), image, (100.0, 200.0, 400.0, 500.0))
        assert outcome.boxes_px == pytest.approx(np.array([[100, 200, 400, 500]]))


def test_a_box_without_area_is_no_detection(family: str, tokenizer) -> None:
    image = painted((900, 700), [])
    boxes = [[10, 10, 10, 90], [10, 90, 90, 90], [2000, 10, 2100, 90], [-9, -9, -1, -1]]
    outcome = found(says(prompts.boxes_answer(boxes) + END, family, tokenizer), image, (100.0, 200.0, 400.0, 500.0))
    assert len(outcome.boxes_px) == 0 and len(outcome.texts) == 1


ANSWERS = {
    # name: (answer, how many boxes)
    "nothing there": ("[]" + END, 0),
    "empty": (END, 0),
    "no tokens": ("", 0),
    "words": ("I see none." + END, 0),
    "half a list": ('[{"bbox_2d":[10,10,90,90]},{"bbox_2d":[20,', 1),
    "fenced": ('```json\n[{"bbox_2d":[10,10,90,90]}]\n```' + END, 1),
    "swapped corners": ('[{"bbox_2d":[90,90,10,10]}]' + END, 1),
    "no numbers": ('[{"bbox_2d":["a",1,2,3]}]' + END, 0),
}


@pytest.mark.parametrize("answer, boxes", ANSWERS.values(), ids=ANSWERS.keys())
def test_an_odd_answer_is_data(family: str, tokenizer, answer: str, boxes: int) -> None:
    outcome = found(says(answer, family, tokenizer), painted((900, 700), []), (100.0, 200.0, 400.0, 500.0))
    assert len(outcome.boxes_px) == boxes
    assert outcome.texts == (answer.removesuffix(END),)
    if boxes:
        x, y = 300 * np.array([10, 90]) / (448 if family == "qwen2_5_vl" else 1000)
        assert outcome.boxes_px == pytest.approx(np.array([[100 + x, 200 + x, 100 + y, 200 + y]]))


# ---------------------------------------------------------------------- merging


def test_a_thing_seen_in_two_crops_is_one_thing_unless_all_are_wanted(task_model) -> None:
    thing = (300, 300, 340, 340)
    image = painted((800, 600), [("red", thing)])
    regions = [(250.0, 250.0, 450.0, 450.0), (200.0, 280.0, 400.0, 380.0)]
    merge_crops = found(task_model, image, *regions)
    assert len(merge_crops.boxes_px) == 1 and np.abs(merge_crops.boxes_px - [thing]).max() < 1.5
    listed = found(task_model, image, *regions, config=TrainConfig(crop_side=448, merge="concat"))
    assert len(listed.boxes_px) == 2 and np.abs(listed.boxes_px - [thing]).max() < 1.5


def test_neighbours_are_not_merged(task_model) -> None:
    things = [(300, 300, 340, 340), (345, 300, 385, 340)]
    outcome = found(task_model, painted((800, 600), [("red", t) for t in things]), (250.0, 250.0, 450.0, 450.0))
    assert len(outcome.boxes_px) == 2 and np.abs(outcome.boxes_px - things).max() < 1.5


@pytest.mark.parametrize("merge", ["nms", "concat"])
def test_boxes_rank_by_region_and_then_as_written(task_model, merge: str) -> None:
    left, middle, right = (100, 300, 140, 340), (300, 300, 340, 340), (600, 300, 640, 340)
    image = painted((800, 600), [("red", t) for t in (left, middle, right)])
    config = TrainConfig(crop_side=448, merge=merge)
    outcome = found(task_model, image, (550.0, 250.0, 700.0, 400.0), (50.0, 250.0, 400.0, 400.0), config=config)
    assert np.abs(outcome.boxes_px - [right, left, middle]).max() < 1.5


def test_of_two_boxes_for_one_thing_the_first_stays(family: str, tokenizer) -> None:
    boxes = [[100, 100, 300, 300], [100, 100, 300, 280], [100, 100, 300, 190]]  # IoU 0.9 and 0.45 with the first
    scale = 448 if family == "qwen2_5_vl" else 1000
    answer = prompts.boxes_answer(boxes) + END
    outcome = found(
        says(answer, family, tokenizer), painted((scale, scale), []), (0.0, 0.0, float(scale), float(scale))
    )
    assert outcome.boxes_px == pytest.approx(np.array([boxes[0], boxes[2]]))


# ---------------------------------------------------------------------- the work as one batch


def test_the_same_crop_is_worked_on_once(task_model) -> None:
    first, second = (
        painted((800, 600), [("red", (300, 300, 340, 340))]),
        painted((800, 600), [("red", (10, 10, 50, 50))]),
    )
    here, there = Region(250.0, 250.0, 450.0, 450.0), Region(0.0, 0.0, 200.0, 200.0)
    red, green, other = question(first), question(first, "green"), question(second)
    examples = [red, red, green, other, red]
    regions = [[here, there], [there, here, here], [here], [here, there], []]
    outcomes = act(task_model, examples, regions, CONFIG)
    assert len(task_model.shown) == 5  # two windows of red, one of green, two of the other picture
    assert [len(outcome.boxes_px) for outcome in outcomes] == [1, 1, 0, 1, 0]
    assert [len(outcome.texts) for outcome in outcomes] == [2, 3, 1, 2, 0]
    assert np.abs(outcomes[0].boxes_px - [[300, 300, 340, 340]]).max() < 1.5
    assert np.abs(outcomes[3].boxes_px - [[10, 10, 50, 50]]).max() < 1.5


def test_two_questions_with_one_picture_do_not_share_an_answer(task_model) -> None:
    """Equal in id and picture, different in query: an answer must not be looked up by less than all."""
    image = painted((800, 600), [("green", (300, 300, 340, 340))])
    here = [Region(250.0, 250.0, 450.0, 450.0)]
    outcomes = act(task_model, [question(image, "red"), question(image, "green")], [here, here], CONFIG)
    assert [len(outcome.boxes_px) for outcome in outcomes] == [0, 1]


@pytest.mark.parametrize(
    "region, seen",
    [
        ((100.0, 100.0, 102.0, 300.0), True),
        ((100.0, 100.0, 101.9, 300.0), False),
        ((100.0, 100.0, 300.0, 101.9), False),
        ((800.0, 100.0, 800.0, 300.0), False),
        ((300.0, 300.0, 100.0, 100.0), False),
        ((0.0, 0.0, 0.0, 0.0), False),
    ],
)
def test_a_region_thinner_than_two_pixels_is_not_looked_at(task_model, region: tuple, seen: bool) -> None:
    outcome = found(task_model, painted((800, 600), [("red", (0, 0, 800, 600))]), region)
    assert len(task_model.shown) == len(outcome.texts) == len(outcome.boxes_px) == seen


def test_nothing_to_look_at_needs_no_model(task_model) -> None:
    image = painted((800, 600), [])
    outcomes = act(task_model, [question(image), question(image)], [[], [Region(5.0, 5.0, 5.0, 90.0)]], CONFIG)
    assert task_model.batches == []
    assert [outcome.boxes_px.shape for outcome in outcomes] == [(0, 4), (0, 4)]
    assert act(task_model, [], [], CONFIG) == []


def many(count: int) -> tuple[list[Example], list[list[Region]]]:
    """Pictures with one thing each at a place of its own, and 0 to 3 regions that show it or do not."""
    rng = np.random.default_rng(3)
    examples, regions = [], []
    for k in range(count):
        x, y = (int(v) for v in rng.integers(20, 340, 2))
        examples.append(question(painted((400, 400), [("red", (x, y, x + 30, y + 20))]), name=f"e{k}"))
        corners = rng.integers(0, 200, (k % 4, 2)).astype(float)
        regions.append([Region(x1, y1, x1 + 200, y1 + 150) for x1, y1 in corners])
    return examples, regions


def test_what_does_not_fit_into_memory_is_done_in_smaller_parts() -> None:
    sizes: list[int] = []

    def work(part: list[int]) -> list[int]:
        sizes.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [10 * item for item in part]

    assert in_batches(work, list(range(14)), 12) == [10 * item for item in range(14)]
    assert sizes == [12, 6, 3, 3, 3, 3, 2]
    with pytest.raises(torch.OutOfMemoryError):
        in_batches(lambda part: work([0] * 4), [1, 2], 2)


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_splitting_the_work_changes_nothing(task_model, batch: int) -> None:
    examples, regions = many(12)
    whole = act(task_model, examples, regions, TrainConfig(crop_side=112, task_batch=128))
    assert [count for count, _, _ in task_model.batches] == [18]
    task_model.batches.clear()
    split = act(task_model, examples, regions, TrainConfig(crop_side=112, task_batch=batch))
    assert [count for count, _, _ in task_model.batches] == [batch] * (18 // batch) + [18 % batch] * (18 % batch > 0)
    assert any(len(outcome.boxes_px) for outcome in whole)
    for one, other in zip(whole, split, strict=True):
        assert one.texts == other.texts and np.array_equal(one.boxes_px, other.boxes_px)


def test_the_expert_is_asked_greedily_and_in_the_wanted_words(task_model) -> None:
    config = TrainConfig(crop_side=112, wording="paper", task_max_new_tokens=33)
    found(task_model, painted((300, 300), []), (0.0, 0.0, 100.0, 100.0), config=config)
    assert task_model.batches == [(1, 1, Sampling(temperature=0.0, max_new_tokens=33))]
    assert task_model.shown[0][1] == prompts.task_prompt("red", "paper")


def test_every_example_needs_its_regions(task_model) -> None:
    with pytest.raises(ValueError):
        act(task_model, [question(painted((300, 300), []))], [], CONFIG)


# ---------------------------------------------------------------------- the view of a crop


def test_a_square_crop_has_the_side_of_the_config(task_model) -> None:
    config = TrainConfig(crop_side=840)
    factor = 2 * PATCH[task_model.family]
    for window in (Region(0.0, 0.0, 300.0, 20.0), Region(7.5, 9.0, 200.0, 900.0)):
        view, frame = crop_view(task_model, Image.new("RGB", (1000, 1000)), window, config)
        assert view.width == view.height and abs(view.width - 840) <= factor / 2
        assert frame.window_px == window and frame.scale == task_model.text_scale(view.size)
    assert task_model.family != "qwen2_5_vl" or view.size == (840, 840)  # the paper's own


WINDOWS = [(300, 200), (200, 300), (37, 36), (40, 900), (1000, 50), (999, 999), (2, 2), (2, 300)]


@pytest.mark.parametrize("width, height", WINDOWS)
@pytest.mark.parametrize("side", [56, 448])
def test_an_aspect_crop_keeps_its_shape_and_is_large_enough(task_model, width: int, height: int, side: int) -> None:
    config = TrainConfig(crop_side=side, crop_shape="aspect")
    window = Region(0.0, 100.0, float(width), 100.0 + height)
    view, frame = crop_view(task_model, Image.new("RGB", (1100, 1100)), window, config)
    factor = 2 * PATCH[task_model.family]
    assert [edge % factor for edge in view.size] == [0, 0]
    assert view.width * view.height >= side * side
    # Up to a visual token on each axis, the view is the window times one number.
    low = max((view.width - factor) / width, (view.height - factor) / height)
    high = min((view.width + factor) / width, (view.height + factor) / height)
    assert low <= high
    assert frame.to_px(as_boxes([[0, 0, *frame.scale]]))[0] == pytest.approx(window)


@pytest.mark.parametrize("shape", ["square", "aspect"])
@pytest.mark.parametrize("region", [(100.0, 0.0, 102.0, 900.0), (0.0, 100.0, 1200.0, 102.0)])
def test_a_sliver_is_a_bad_region_and_no_exception(task_model, region: tuple, shape: str) -> None:
    """More than 200 times longer than wide, which the image processor would refuse."""
    config = TrainConfig(crop_side=56, crop_shape=shape)
    outcome = found(task_model, painted((1200, 900), [("red", (0, 0, 1200, 900))]), region, config=config)
    assert outcome.boxes_px == pytest.approx(np.array([region]))


# ---------------------------------------------------------------------- with a real model


def test_with_a_real_model_all_of_it_fits_together(vlm, picture, biased) -> None:
    image = picture(160, 120, seed=4)
    examples = [Example(name, image, query, np.zeros((0, 4))) for name, query in (("a", "red star"), ("b", "ring"))]
    regions = [[Region(0.0, 0.0, 80.0, 60.0), Region(33.3, 20.5, 150.0, 118.0)], [Region(80.0, 60.0, 160.0, 120.0)]]
    config = TrainConfig(crop_side=32, task_max_new_tokens=6)
    outcomes = act(vlm, examples, regions, config)
    again = act(vlm, examples, regions, config)
    for outcome, other, of_example in zip(outcomes, again, regions):
        assert isinstance(outcome, TaskResult) and outcome.boxes_px.shape == (len(outcome.scores), 4)
        assert len(outcome.texts) == len(of_example)
        assert outcome.texts == other.texts  # greedy
    with biased(vlm, {vlm.end_token: 1e4}):
        assert [outcome.texts for outcome in act(vlm, examples, regions, config)] == [("", ""), ("",)]


def test_the_colours_of_these_tests_can_be_told_apart(task_model) -> None:
    """The scripted expert itself: it sees its colour, all of it and nothing else."""
    things = [("red", (10, 20, 40, 50)), ("green", (60, 5, 90, 95))]
    image = painted((112, 112), things)
    for colour in COLOURS:
        boxes = read_boxes(finds(task_model, image, f"Find every {colour}.").removesuffix(END)).boxes_text
        scale = task_model.text_scale((112, 112))[0] / 112
        (wanted,) = [box for name, box in things if name == colour]
        assert iou(as_boxes(boxes) / scale, as_boxes([wanted]))[0, 0] > 0.97
        assert area(as_boxes(boxes)).shape == (1,)


# ---------------------------------------------------------------------- a function of the user's

DARK = """
import numpy as np
def find(crops, queries):
    found = []
    for crop, query in zip(crops, queries):
        rows, columns = np.nonzero(np.asarray(crop.convert("L")) < 128)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) and query == "dark" else None
        found.append(([box], [0.75]) if box else ([], []))
    return found
"""


@pytest.fixture
def user_function(tmp_path: Path) -> Callable[[str], UserFunction]:
    """``user_function(text)``: the function ``find`` of a file with this text."""

    def write(text: str) -> UserFunction:
        (tmp_path / "mine.py").write_text(text)
        return UserFunction(f"{tmp_path / 'mine.py'}:find")

    return write


def test_a_users_function_gets_crops_and_queries_and_its_boxes_come_back(user_function) -> None:
    """Of a dark square on white, in windows that begin and end inside pixels, at the crop's own size."""
    image = painted((300, 200), [])
    image.paste((255, 255, 255), (0, 0, 300, 200))
    image.paste((0, 0, 0), (120, 80, 150, 100))
    task_model = user_function(DARK)
    windows = [Region(100.0, 50.0, 200.0, 150.0), Region(110.4, 70.3, 180.8, 119.6), Region(0.0, 0.0, 50.0, 50.0)]
    result, none = act(task_model, [question(image, "dark"), question(image, "light")], [windows, windows], CONFIG)
    (box,) = result.boxes_px
    assert box == pytest.approx([120, 80, 150, 100], abs=1.0) and result.scores.tolist() == [0.75] and result.calls == 3
    assert none.boxes_px.shape == (0, 4) and result.texts[0] == "0.75" and task_model.identity.startswith("mine.py ")


@pytest.mark.parametrize(
    "body, said",
    [
        (
            "return [([[1, 2, 3]], [0.5])] * len(crops)",
            r"returns boxes of shape \(1, 3\) and scores of shape \(1,\), which must be \(M, 4\) and \(M,\)\.$",
        ),
        ("return [([[1, 2, 3, 4]], [0.5, 0.1])] * len(crops)", r"boxes of shape \(1, 4\) and scores of shape \(2,\)"),
        ("return [([[1, 2, 3, 4]], 0.5)] * len(crops)", r"scores of shape \(\)"),
        (
            "return [([[1, 2, 3, float('nan')]], [0.5])] * len(crops)",
            "returns boxes or scores that are not finite",
        ),
        ("return [([['a', 2, 3, 4]], [0.5])] * len(crops)", "returns no pair of boxes and scores"),
        ("return [[1, 2, 3]] * len(crops)", "returns no pair of boxes and scores"),
        ("return []", "for example a and 1 more crops, returns 0 results for 2 crops"),
        ("return None", r"fails \(TypeError: "),
        (
            "return crops[9]",
            r"--task_model .*mine.py:find, for example a and 1 more crops, fails \(IndexError: list index out of range, line 2\)\.$",
        ),
    ],
)
def test_what_a_users_function_does_wrong_is_named(body: str, said: str, user_function) -> None:
    task_model = user_function(f"def find(crops, queries):\n    {body}")
    windows = [Region(0.0, 0.0, 50.0, 50.0), Region(10.0, 0.0, 50.0, 50.0)]
    with pytest.raises(ConfigError, match=said):
        act(task_model, [question(painted((60, 60), []))], [windows], CONFIG)


def test_tensors_with_a_graph_are_read_and_a_full_gpu_is_left_to_smaller_batches(user_function) -> None:
    body = """import torch
def find(crops, queries):
    if len(crops) > 2:
        raise torch.OutOfMemoryError("full")
    return [(torch.ones(1, 4, requires_grad=True) * torch.tensor([0, 0, 9, 8]), torch.tensor([0.5], requires_grad=True))] * len(crops)
"""
    windows = [Region(10.0 * k, 0.0, 10.0 * k + 50, 50.0) for k in range(5)]
    (result,) = act(user_function(body), [question(painted((200, 60), []))], [windows], replace(CONFIG, merge="concat"))
    assert result.boxes_px.tolist() == [[10.0 * k, 0.0, 10.0 * k + 9, 8.0] for k in range(5)]
