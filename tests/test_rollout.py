"""rollout.py under a scripted policy: ids are the record, and an answer's regions are where it says."""

import json
from typing import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scripted import END, PATCH, USUAL, Scripted, blobs, painted

from activeo3 import prompts
from activeo3.config import TrainConfig
from activeo3.geometry import Frame, as_boxes
from activeo3.rollout import sample_rollouts
from activeo3.task_detection import Sense
from activeo3.tasks import regions_of, sensing_view
from activeo3.types import Example, ParsedAnswer, Rollout, Sampling

SIZE = (1344, 896)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=96)
CONFIG = TrainConfig()  # sensing_side 96

# What each family writes for the same region of a 1344 x 896 picture whose sensing view has a shorter
# side of about 96: with visual tokens of 28 pixels that view is 140 x 84, and 140 / 1344 * 336 = 35.
REGION = (336.0, 224.0, 672.0, 448.0)
WRITTEN = {"qwen2_5_vl": [35, 21, 70, 42], "qwen3_vl": [250, 250, 500, 500]}


@pytest.fixture(params=USUAL)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def question(size: tuple[int, int] = SIZE, name: str = "a", query: str = "red star") -> Example:
    return Example(name, Image.new("RGB", size), query, np.zeros((0, 4)))


def tagged(boxes: list[list[float]], thought: str = "there") -> str:
    return f"<think>{thought}</think><answer>{json.dumps([{'bbox_2d': box} for box in boxes])}</answer>"


def same(regions: Sequence, wanted: Sequence) -> bool:
    """As many regions, in the same order, with the same numbers up to rounding."""
    return len(regions) == len(wanted) and np.allclose(as_boxes(regions), as_boxes(wanted))


def one_rollout(family: str, tokenizer, answer, size: tuple[int, int] = SIZE) -> Rollout:
    """The rollout of a single scripted answer."""
    policy = Scripted(family, tokenizer, lambda model, view, asked: answer)
    _, ((rollout,),) = sample_rollouts(policy, Sense(CONFIG), [question(size)], 1, SAMPLING)
    return rollout


# ---------------------------------------------------------------------- the ids are the record


def test_sampled_ids_are_kept_as_they_are(family: str, tokenizer) -> None:
    """One token per character: the same text, but not the ids that the tokenizer would choose."""
    text = tagged([WRITTEN[family]])
    spelled = [token for letter in text for token in tokenizer(letter, add_special_tokens=False).input_ids]
    assert tokenizer(text, add_special_tokens=False).input_ids != spelled
    end = tokenizer.convert_tokens_to_ids(END)
    rollout = one_rollout(family, tokenizer, [*spelled, end])
    assert rollout.token_ids == (*spelled, end)
    assert rollout.text == text
    assert rollout.finished and rollout.action.error is None


def test_the_text_is_exactly_what_the_ids_say(family: str, tokenizer) -> None:
    for text in ("don 't , [ 1 , 2 ] .  end", "  two  spaces\n\n", "Größe 漢字 🙂", "<|im_start|>user\n"):
        assert one_rollout(family, tokenizer, text + END).text == text


ANSWERS = {
    # name: (answer, finished, error, how many regions); BOX stands for a good box of the family
    "well-formed": ("<think>a</think><answer>[BOX]</answer>" + END, True, None, 1),
    "three": ("<think>a</think><answer>[BOX,BOX,BOX]</answer>" + END, True, None, 3),
    "four": ("<think>a</think><answer>[BOX,BOX,BOX,BOX]</answer>" + END, True, "too_many", 3),
    "empty list": ("<think>a</think><answer>[]</answer>" + END, True, "empty", 0),
    "without tags": ("[BOX]" + END, True, "tags", 0),
    "only an end": (END, True, "tags", 0),
    "garbage": ("{]]&%<<answer>" + END, True, "tags", 0),
    "special tokens": ("<|im_start|><|vision_start|>" + END, True, "tags", 0),
    "a special token inside": ("<think>a</think><answer>[BOX]<|im_start|></answer>" + END, True, "json", 0),
    "cut off before the end": ("<think>a</think><answer>[BOX]</answer>", False, "unfinished", 1),
    "cut off in the list": ("<think>a</think><answer>[BOX,", False, "unfinished", 0),
    "cut off in the thought": ("<think>so", False, "unfinished", 0),
    "nothing at all": ("", False, "unfinished", 0),
}


@pytest.mark.parametrize("answer, finished, error, regions", ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_of_every_kind(
    family: str, tokenizer, answer: str, finished: bool, error: str | None, regions: int
) -> None:
    answer = answer.replace("BOX", json.dumps({"bbox_2d": WRITTEN[family]}))
    rollout = one_rollout(family, tokenizer, answer)
    end = tokenizer.convert_tokens_to_ids(END)
    assert rollout.token_ids == tuple(tokenizer(answer, add_special_tokens=False).input_ids)
    assert rollout.text == answer.removesuffix(END)
    assert rollout.finished == finished == (rollout.token_ids[-1:] == (end,))
    assert rollout.action.error == error
    assert same(rollout.regions, [REGION] * regions)


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(0, 511), max_size=40))
def test_no_sequence_of_tokens_is_an_exception(tokenizer, ids: list[int]) -> None:
    rollout = one_rollout("qwen3_vl", tokenizer, ids, (50, 30))
    assert rollout.token_ids == tuple(ids)
    assert len(rollout.regions) <= 3


# ---------------------------------------------------------------------- regions in original pixels


def test_both_conventions_name_the_same_pixels(tokenizer) -> None:
    for family, numbers in WRITTEN.items():
        rollout = one_rollout(family, tokenizer, tagged([numbers]) + END)
        assert rollout.action.boxes_text == (tuple(numbers),)
        assert same(rollout.regions, [REGION]), family


@pytest.mark.parametrize("size", [(2000, 40), (40, 2000), (97, 61), (1333, 1000)])
def test_both_conventions_agree_in_every_picture(size: tuple[int, int], tokenizer) -> None:
    wanted = np.array([0.1, 0.2, 0.55, 0.9]) * [*size, *size]
    for family in USUAL:
        policy = Scripted(family, tokenizer, None)
        view, frame = sensing_view(policy, Image.new("RGB", size), 64)
        scale = {"qwen2_5_vl": view.size, "qwen3_vl": (1000, 1000)}[family]
        numbers = wanted / [*size, *size] * [*scale, *scale]
        (region,) = regions_of(ParsedAnswer((tuple(numbers),)), frame, size)
        assert region == pytest.approx(wanted)


@pytest.mark.parametrize(
    "box, wanted",
    [
        ([500, 500, 250, 250], REGION),  # corners swapped
        ([250, 500, 500, 250], REGION),  # one axis swapped
        ([-100, -7, 500, 2000], (0, 0, 672, 896)),  # cut off at the border
        ([0, 0, 1000, 1000], (0, 0, 1344, 896)),
        ([1500, 0, 2000, 500], (1344, 0, 1344, 448)),  # outside: kept, without area
        ([250, 250, 250, 500], (336, 224, 336, 448)),  # a line
    ],
)
def test_odd_boxes_become_regions_inside_the_picture(box: list[int], wanted: tuple, tokenizer) -> None:
    rollout = one_rollout("qwen3_vl", tokenizer, tagged([box]) + END)
    assert same(rollout.regions, [wanted])
    assert rollout.action.error is None


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-1e9, 1e9)] * 4), max_size=3), st.tuples(st.integers(1, 5000), st.integers(1, 5000))
)
def test_regions_are_ordered_and_inside_whatever_was_written(boxes: list, size: tuple[int, int]) -> None:
    regions = regions_of(ParsedAnswer(tuple(boxes)), Frame((0.0, 0.0, *map(float, size)), (1000, 1000)), size)
    assert len(regions) == len(boxes)
    for x1, y1, x2, y2 in regions:
        assert 0 <= x1 <= x2 <= size[0] and 0 <= y1 <= y2 <= size[1]


# ---------------------------------------------------------------------- the view


SHAPES = [(1344, 896), (896, 1152), (640, 480), (3000, 100), (100, 3000), (37, 41), (1, 150), (60, 1), (1, 1)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("side", [40, 96, 200])
def test_the_view_has_whole_visual_tokens_and_the_wanted_shorter_side(family: str, tokenizer, size, side) -> None:
    policy = Scripted(family, tokenizer, None)
    factor = 2 * PATCH[family]
    view, frame = sensing_view(policy, Image.new("RGB", size), side)
    assert [edge % factor for edge in view.size] == [0, 0]
    assert abs(min(view.size) - side) <= factor / 2
    wanted = side * max(size) / min(size)  # the longer side, were there no rounding
    assert abs(max(view.size) - wanted) <= factor / 2 + 0.5
    assert (view.width >= view.height) == (size[0] >= size[1]) or view.width == view.height
    whole = frame.to_px(as_boxes([[0, 0, *policy.text_scale(view.size)]]))[0]
    assert whole == pytest.approx([0, 0, *size])


@pytest.mark.parametrize("size, thing", [((1200, 900), (300, 450, 420, 540)), ((1600, 80), (1200, 20, 1360, 60)),
                                         ((80, 1600), (20, 1200, 60, 1360)), ((60, 40), (9, 12, 24, 30))])  # fmt: skip
def test_what_stands_in_the_view_stands_there_in_the_picture(family: str, tokenizer, size, thing) -> None:
    policy = Scripted(family, tokenizer, None)
    view, frame = sensing_view(policy, painted(size, [("red", thing)]), 96)
    (box,) = blobs(view, "red")
    scale = np.array(policy.text_scale(view.size)) / np.array(view.size)
    found = frame.to_px(as_boxes([box]) * np.tile(scale, 2))[0]
    pixel = max(size[0] / view.width, size[1] / view.height)  # one pixel of the view, in original pixels
    assert np.abs(found - thing).max() <= pixel


def test_the_view_of_an_elongated_picture_is_bounded_and_keeps_its_aspect(family: str, tokenizer) -> None:
    config = TrainConfig(sensing_side=280, max_view_pixels=4 * 280 * 280)
    bounded = []
    for size in ((4000, 20), (1600, 200), (400, 300)):
        policy = Scripted(family, tokenizer, lambda *_: END)
        sample_rollouts(policy, Sense(config), [question(size)], 1, SAMPLING)
        view, unbounded = policy.shown[0][0].size, sensing_view(policy, Image.new("RGB", size), 280)[0].size
        assert config.max_view_pixels / 2 < view[0] * view[1] <= config.max_view_pixels or view == unbounded
        assert abs(view[0] * size[1] / size[0] - view[1]) <= policy.factor  # the aspect, to a visual token
        bounded += [size] if view != unbounded else []
    assert bounded == [(4000, 20), (1600, 200)]  # those that are more elongated than 4:1


def test_a_picture_that_no_model_takes_is_refused(family: str, tokenizer) -> None:
    with pytest.raises(ValueError, match="too elongated"):
        sensing_view(Scripted(family, tokenizer, None), Image.new("RGB", (5000, 20)), 96)


# ---------------------------------------------------------------------- groups


def test_every_example_gets_its_own_group_in_order(family: str, tokenizer) -> None:
    """Every answer is different, so that one at a wrong place shows."""
    count = iter(range(100))
    policy = Scripted(family, tokenizer, lambda *_: tagged([WRITTEN[family]], f"thought {next(count)}") + END)
    examples = [question(name="a"), question((640, 480), "b", "blue ring"), question((480, 640), "c", "boat")]
    encoded, rollouts = sample_rollouts(policy, Sense(CONFIG), examples, 4, SAMPLING)
    assert [(seen.view, seen.words) for seen in encoded] == policy.shown and policy.batches == [(3, 4, SAMPLING)]
    assert [len(group) for group in rollouts] == [4, 4, 4]
    for p, (example, group) in enumerate(zip(examples, rollouts)):
        for g, rollout in enumerate(group):
            assert rollout.example is example
            assert f"thought {4 * p + g}<" in rollout.text
    asked = [prompts.sensing_prompt(example.query, "short") for example in examples]
    assert [seen.words for seen in encoded] == asked


def test_two_identical_prompts_stay_two_groups(family: str, tokenizer) -> None:
    count = iter(range(100))
    policy = Scripted(family, tokenizer, lambda *_: f"{next(count)}{END}")
    same = question()
    encoded, rollouts = sample_rollouts(policy, Sense(CONFIG), [same, same], 3, SAMPLING)
    assert len(encoded) == 2
    assert [[rollout.text for rollout in group] for group in rollouts] == [["0", "1", "2"], ["3", "4", "5"]]


def test_the_config_decides_on_words_regions_and_view(tokenizer) -> None:
    policy = Scripted("qwen3_vl", tokenizer, lambda *_: tagged([WRITTEN["qwen3_vl"]] * 5) + END)
    config = TrainConfig(wording="paper", regions=4, sensing_side=160)
    _, ((rollout,),) = sample_rollouts(policy, Sense(config), [question()], 1, SAMPLING)
    ((view, asked),) = policy.shown
    assert asked == prompts.sensing_prompt("red star", "paper", 4) and "up to 4 regions" in asked
    assert min(view.size) == 160
    assert rollout.action.error == "too_many" and len(rollout.regions) == 4


# ---------------------------------------------------------------------- with a real model


def test_with_a_real_model_the_ids_are_those_it_generated(vlm, picture) -> None:
    examples = [
        Example("a", picture(96, 64, seed=1), "red star", np.zeros((0, 4))),
        Example("b", picture(64, 96, seed=2), "ring", np.zeros((0, 4))),
    ]
    config, sampling = TrainConfig(sensing_side=32), Sampling(1.0, 6)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoded, rollouts = sample_rollouts(vlm, Sense(config), examples, 3, sampling)
        torch.manual_seed(5)
        answers = vlm.generate(encoded, 3, sampling)
    assert [[rollout.token_ids for rollout in group] for group in rollouts] == answers
    assert len({rollout.token_ids for group in rollouts for rollout in group}) > 1
    for rollout in rollouts[0] + rollouts[1]:
        assert rollout.finished == (rollout.token_ids[-1] == vlm.end_token)
        assert rollout.text == vlm.tokenizer.decode([i for i in rollout.token_ids if i != vlm.end_token])
