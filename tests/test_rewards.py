"""rewards.py: a golden table worked out by hand, and what must not change a reward."""

from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from hypothesis import example as also
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from activeo3 import geometry, task_segmentation
from activeo3.config import ConfigError, TrainConfig
from activeo3.data_io import DataError
from activeo3.geometry import Frame, as_boxes, mask_to_rle
from activeo3.rewards import covered, no_overlap, sensible_area
from activeo3.task_detection import Sense
from activeo3.task_segmentation import Segment, covered_mask
from activeo3.task_segmentation import with_mask as with_two_masks
from activeo3.tasks import UserTerm
from activeo3.types import Example, ParsedAnswer, Region, Reward, Rollout, TaskResult

SIZE = (100, 100)
EQUAL = {"format": 1.0, "no_overlap": 1.0, "area": 1.0, "coverage": 1.0, "task": 1.0}
A, B = (10, 10, 20, 20), (60, 60, 70, 70)  # true boxes of 1 % of the picture each
AROUND_A, AROUND_B = (5, 5, 45, 45), (55, 55, 95, 95)
HALF_AP = 51 / 101  # recall stops at 0.5: 51 of COCO's 101 recalls are reached, all at precision 1


def example(true: list, size: tuple[int, int] = SIZE, **more) -> Example:
    return Example("picture-7", Image.new("RGB", size), "dot", as_boxes(true), **more)


def proposed(regions: list, true: list, error: str | None = None, **more) -> Rollout:
    action = ParsedAnswer(tuple(regions), error=error)
    return Rollout(example(true, **more), (), "", True, action, tuple(Region(*region) for region in regions))


def detected(boxes: list) -> TaskResult:
    return TaskResult(as_boxes(boxes), np.ones(len(boxes)))


def score(rollout: Rollout, found: TaskResult, weights: dict[str, float], coverage: str = "contain") -> Reward:
    given = tuple(f"{name}={weight}" for name, weight in weights.items())
    return Sense(TrainConfig(reward_weights=given, coverage=coverage)).reward(rollout, found)


# ---------------------------------------------------------------------- the golden table

GOLDEN = {
    # name: regions, true boxes, detections, (format, no_overlap, area, coverage, task)
    "perfect": ([AROUND_A, AROUND_B], [A, B], [A, B], (1, 1, 1, 1, 2)),
    "one region": ([AROUND_A], [A, B], [A], (1, 1, 1, 0.5, HALF_AP + 0.5)),
    "one region, nothing found": ([AROUND_A], [A], [], (1, 1, 1, 1, 0)),
    "wrong place": ([(50, 5, 90, 45)], [A], [], (1, 1, 1, 0, 0)),
    "inverted": ([(45, 45, 5, 5)], [A], [], (1, 1, 0, 0, 0)),
    "outside, cut off to nothing": ([(100, 20, 100, 60)], [A], [], (1, 1, 0, 0, 0)),
    "a line": ([(5, 5, 45, 5)], [A], [], (1, 1, 0, 0, 0)),
    "whole picture": ([(0, 0, 100, 100)], [A, B], [A, B], (1, 1, 0, 1, 2)),
    "the same twice": ([AROUND_A, AROUND_A], [A, B], [A], (1, 0, 1, 0.5, HALF_AP + 0.5)),
    "IoU 0.3": ([(0, 5, 65, 25), (35, 5, 100, 25)], [A], [A], (1, 1, 1, 1, 2)),
    "IoU 0.31": ([(0, 5, 66, 25), (35, 5, 100, 25)], [A], [A], (1, 0, 1, 1, 2)),
    "only the third pair overlaps": ([AROUND_A, AROUND_B, AROUND_B], [A, B], [A, B], (1, 0, 1, 1, 2)),
    "one inside another, IoU 0.25": ([(0, 0, 40, 40), (0, 0, 20, 20)], [A], [A], (1, 1, 1, 1, 2)),
    "area 1 %": ([(10, 10, 20, 20)], [A], [A], (1, 1, 1, 1, 2)),
    "area 0.99 %": ([(10, 10, 19.9, 20)], [A], [A], (1, 1, 0, 1, 2)),
    "area 50 %": ([(0, 0, 100, 50)], [A], [A], (1, 1, 1, 1, 2)),
    "area 50.1 %": ([(0, 0, 100, 50.1)], [A], [A], (1, 1, 0, 1, 2)),
    "one good area, one speck": ([AROUND_A, (60, 60, 65, 65)], [A], [A], (1, 1, 0, 1, 2)),
    "90 % inside": ([(11, 0, 50, 50)], [A], [A], (1, 1, 1, 1, 2)),
    "89 % inside": ([(11.1, 0, 50, 50)], [A], [A], (1, 1, 1, 0, 2)),
    "half in each region": ([(0, 0, 15, 50), (15, 0, 50, 50)], [A], [A], (1, 1, 1, 0, 2)),
    "one true box of three": ([AROUND_A], [A, B, (80, 0, 90, 10)], [], (1, 1, 1, 1 / 3, 0)),
    "nothing is there, nothing found": ([AROUND_A], [], [], (1, 1, 1, 0, 2)),
    "nothing is there, one found": ([AROUND_A], [], [A], (1, 1, 1, 0, 0)),
    "false one ranked last": ([AROUND_A], [A], [A, B], (1, 1, 1, 1, 2)),
    "false one ranked first": ([AROUND_A], [A], [B, A], (1, 1, 1, 1, 0.5 + 1)),
    "found twice": ([AROUND_A], [A], [A, A], (1, 1, 1, 1, 2)),
    "found at IoU 0.5": ([AROUND_A], [A], [(10, 10, 20, 15)], (1, 1, 1, 1, 2)),
    "found at IoU 0.49": ([AROUND_A], [A], [(10, 10, 20, 14.9)], (1, 1, 1, 1, 0)),
}


@pytest.mark.parametrize("regions, true, found, wanted", GOLDEN.values(), ids=GOLDEN.keys())
def test_golden(regions: list, true: list, found: list, wanted: tuple) -> None:
    result = score(proposed(regions, true), detected(found), EQUAL)
    assert dict(result.terms) == pytest.approx(dict(zip(EQUAL, wanted)), abs=1e-12)
    assert result.total == pytest.approx(sum(wanted), abs=1e-12)


@pytest.mark.parametrize("true", [[A], []])
def test_no_region_at_all_is_worth_nothing(true: list) -> None:
    """Taken literally, no region overlaps none and all have a sensible area: that must not pay.

    In a picture without things, a list without regions is right; what cannot be read has not said so.
    """
    for error in ("empty", "tags", "json", "unfinished"):
        result = score(proposed([], true, error), detected([]), EQUAL)
        task = 2.0 if error == "empty" and not true else 0.0
        assert result.terms == {"format": 0, "no_overlap": 0, "area": 0, "coverage": 0, "task": task}
        assert result.total == task


@pytest.mark.parametrize("error", ["tags", "too_many", "unfinished"])
def test_a_wrong_format_costs_the_format_reward_alone(error: str) -> None:
    result = score(proposed([AROUND_A], [A], error), detected([A]), EQUAL)
    assert result.terms == {"format": 0, "no_overlap": 1, "area": 1, "coverage": 1, "task": 2}


def test_crowds_count_for_nothing() -> None:
    crowd = np.array([False, True])
    assert covered(proposed([AROUND_A], [A, B], crowd=crowd), "contain") == 1.0
    assert covered(proposed([AROUND_B], [A, B], crowd=crowd), "contain") == 0.0
    assert covered(proposed([A], [A, B], crowd=crowd), "iou") == 1.0
    assert covered(proposed([AROUND_A], [A, B], crowd=np.array([False, False])), "contain") == 0.5
    only_crowd = proposed([AROUND_A], [A], crowd=np.array([True]))
    assert score(only_crowd, detected([A]), EQUAL).terms["coverage"] == 0.0
    assert score(only_crowd, detected([A]), EQUAL).terms["task"] == 2.0  # found a crowd: neither right nor wrong


# ---------------------------------------------------------------------- the three readings of coverage


def with_mask(*boxes: tuple[int, int, int, int]) -> Callable[[], list]:
    """One mask per box, as the embedded world gives them: made when asked for."""

    def masks() -> list:
        full = np.zeros((len(boxes), SIZE[1], SIZE[0]), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(full, boxes):
            mask[y1:y2, x1:x2] = True
        return [mask_to_rle(mask) for mask in full]

    return masks


COVERAGE = {
    # name: regions, true boxes (their masks are full), (contain, iou, purity)
    "a good fit": ([(0, 0, 50, 50)], [(0, 0, 40, 40)], (1, 1, 1)),
    "part of a large thing": ([(0, 0, 20, 20)], [(0, 0, 40, 40)], (0, 0, 1)),
    "a small thing in much room": ([(0, 0, 50, 50)], [A], (1, 0, 0)),
    "one fitted region for two things": ([(0, 0, 40, 40)], [(0, 0, 40, 40), B], (0.5, 0.5, 1)),
    "IoU 0.5": ([(0, 0, 40, 80)], [(0, 0, 40, 40)], (1, 1, 1)),
    "IoU 0.494": ([(0, 0, 40, 81)], [(0, 0, 40, 40)], (1, 0, 1)),
    "purity 10 %": ([(0, 0, 25, 40)], [A], (1, 0, 1)),
    "purity 9.8 %": ([(0, 0, 25, 41)], [A], (1, 0, 0)),
    "one region of two, one thing of two": ([(0, 0, 25, 25), (0, 50, 25, 75)], [A, B], (0.5, 0, 0.5)),
    "two things make one region pure": ([(0, 0, 50, 30)], [A, (30, 10, 40, 20)], (1, 0, 1)),
    "the same thing twice is not purer": ([(0, 0, 50, 30)], [A, A], (1, 0, 0)),
    "a region without area": ([(30, 30, 30, 60)], [A], (0, 0, 0)),
    "no region": ([], [A], (0, 0, 0)),
    "nothing is there": ([(0, 0, 50, 50)], [], (0, 0, 0)),
}


@pytest.mark.parametrize("regions, true, wanted", COVERAGE.values(), ids=COVERAGE.keys())
def test_coverage_has_three_readings(regions: list, true: list, wanted: tuple) -> None:
    rollout = proposed(regions, true, masks=with_mask(*true))
    assert [covered(rollout, mode) for mode in ("contain", "iou", "purity")] == pytest.approx(list(wanted))
    for mode, share in zip(("contain", "iou", "purity"), wanted):
        assert score(rollout, detected([]), EQUAL, mode).terms["coverage"] == pytest.approx(share)


def test_purity_without_masks_names_the_example() -> None:
    with pytest.raises(DataError, match="^--coverage purity .*picture-7"):
        covered(proposed([AROUND_A], [A]), "purity")


def test_an_unknown_coverage_is_an_error() -> None:
    with pytest.raises(ValueError, match="'dice'"):
        covered(proposed([AROUND_A], [A]), "dice")


# ---------------------------------------------------------------------- weights


def test_the_config_weighs_every_term_and_no_other() -> None:
    terms = score(proposed([AROUND_A], [A]), detected([A]), EQUAL).terms
    assert Sense.terms == Segment.terms == EQUAL
    assert list(terms) == list(EQUAL)


@pytest.mark.parametrize("without", EQUAL)
def test_a_weight_of_zero_is_an_ablation_and_the_term_is_still_reported(without: str) -> None:
    rollout, outcome = proposed([AROUND_A], [A]), detected([A])
    whole = score(rollout, outcome, EQUAL)
    ablated = score(rollout, outcome, EQUAL | {without: 0.0})
    assert ablated.terms == whole.terms
    assert ablated.total == whole.total - whole.terms[without]


def test_weights_multiply_terms() -> None:
    weights = {"format": 0.5, "no_overlap": 3, "area": 0.25, "coverage": 2, "task": 10}
    result = score(proposed([AROUND_A, (0, 0, 2, 2)], [A, B]), detected([A, B]), weights)
    assert result.total == pytest.approx(0.5 * 1 + 3 * 1 + 0.25 * 0 + 2 * 0.5 + 10 * 2)


# ---------------------------------------------------------------------- what must not matter

thousandths = st.integers(0, 50).map(lambda value: 20 * value)  # coarse, so that thresholds are met exactly
some_boxes = st.lists(st.tuples(thousandths, thousandths, thousandths, thousandths), min_size=1, max_size=3)


@settings(deadline=None)
@given(some_boxes, st.sampled_from([(1344, 896), (640, 427), (333, 1000), (97, 89)]))
@also([(300, 200, 400, 300)], (1344, 896))  # area 1 %
@also([(0, 50, 650, 250), (350, 50, 1000, 250)], (640, 427))  # IoU 0.3
@also([(300, 100, 365, 200), (335, 100, 400, 200)], (97, 89))
def test_the_size_of_the_picture_does_not_matter(boxes: list, size: tuple[int, int]) -> None:
    """The same answer earns the same in every picture, exactly on a threshold too."""

    def terms(size: tuple[int, int]) -> tuple[float, ...]:
        frame = Frame((0.0, 0.0, *map(float, size)), (1000, 1000))
        regions = geometry.ordered(frame.to_px(as_boxes(boxes)))
        true = frame.to_px(as_boxes([(200, 200, 300, 300), (600, 100, 640, 900)]))
        rollout = proposed(regions.tolist(), true.tolist(), size=size)
        return no_overlap(regions), sensible_area(regions, size), covered(rollout, "contain"), covered(rollout, "iou")

    assert terms(size) == terms((1000, 1000))


@settings(deadline=None)
@given(some_boxes, st.randoms())
def test_the_order_of_regions_does_not_matter(boxes: list, random) -> None:
    def terms(boxes: list) -> dict[str, float]:
        regions = (geometry.ordered(as_boxes(boxes)) / 10).tolist()
        return dict(score(proposed(regions, [A, B]), detected([A]), EQUAL).terms)

    assert terms(random.sample(boxes, len(boxes))) == terms(boxes)


@settings(deadline=None)
@given(some_boxes, some_boxes)
def test_every_term_stays_in_its_range(regions: list, found: list) -> None:
    regions, found = ((geometry.ordered(as_boxes(boxes)) / 10).tolist() for boxes in (regions, found))
    result = score(proposed(regions, [A, B]), detected(found), EQUAL)
    assert all(0 <= result.terms[name] <= (2 if name == "task" else 1) for name in EQUAL)
    assert 0 <= result.total <= 6


# ---------------------------------------------------------------------- masks that are corrected

TRUE_MASK, FIRST_MASK, CORRECTED = (np.zeros((100, 100), dtype=bool) for _ in range(3))
TRUE_MASK[20:40, 20:40] = True  # 400 pixels
FIRST_MASK[20:40, 30:40] = True  # the left half is missing
FIRST_MASK[20:30, 40:60] = True  # 200 pixels too many, to the right
CORRECTED[:, :40], CORRECTED[:, 40:] = TRUE_MASK[:, :40], FIRST_MASK[:, 40:]  # the left half of the errors is right now

MASKS = {
    # name: regions, mask afterwards, (format, no_overlap, area, coverage, task)
    "nothing": ([], FIRST_MASK, (1, 0, 0, 0, 200 / 600)),
    "one kind of error": ([(10, 10, 40, 50)], CORRECTED, (1, 1, 1, 0.5 * 0.88, 400 / 600)),
    "both": ([(10, 10, 40, 50), (40, 10, 70, 40)], TRUE_MASK, (1, 1, 1, 0.79, 1)),
    "twice the same counts once": ([(10, 10, 40, 50)] * 2, CORRECTED, (1, 0, 1, 0.5 * 0.88, 400 / 600)),
    "elsewhere": ([(60, 60, 90, 90)], FIRST_MASK, (1, 1, 1, 0, 200 / 600)),
    "the whole picture": ([(0, 0, 100, 100)], TRUE_MASK, (1, 1, 0, 0, 1)),
    "tiles": ([(0, 0, 34, 100), (34, 0, 67, 100), (67, 0, 100, 100)], TRUE_MASK, (1, 1, 1, 0, 1)),
}


@pytest.mark.parametrize("regions, after, terms", MASKS.values(), ids=MASKS.keys())
def test_the_golden_table_of_masks(regions: list, after: np.ndarray, terms: tuple) -> None:
    result, rollout = TaskResult(as_boxes([]), np.zeros(0), mask=after), proposed(regions, [])
    with_masks = replace(rollout, example=with_two_masks(rollout.example, TRUE_MASK, FIRST_MASK))
    found = Segment(TrainConfig()).reward(with_masks, result)
    assert found.terms == pytest.approx(dict(zip(EQUAL, terms))) and list(found.terms) == list(EQUAL)
    assert found.total == pytest.approx(sum(terms))
    wrong = replace(with_masks, action=replace(rollout.action, error="too_few" if regions else "empty"))
    weighed = Segment(TrainConfig(reward_weights=("task=3", "coverage=0"))).reward(wrong, result)
    assert weighed.total == pytest.approx(terms[1] + terms[2] + 3 * terms[4]) and weighed.terms["format"] == 0.0


def test_purity_of_a_masks_errors_is_a_share_of_regions() -> None:
    error = TRUE_MASK ^ FIRST_MASK
    one_percent = (21, 11, 41, 21)  # 20 x 10 pixels, of which the topmost row of the missing part: 9
    assert error[11:21, 21:41].sum() / 200 > task_segmentation.ERROR_ENOUGH
    for regions, wanted in (
        ([one_percent, (60, 60, 90, 90)], 0.5),
        ([(0, 0, 100, 100)], 1.0),
        ([], 0.0),
        ([(5, 5, 5, 9)], 0.0),
    ):
        assert covered_mask(proposed(regions, []), error, "purity") == wanted
    tiles = MASKS["tiles"][0]
    assert (
        covered_mask(proposed(tiles, []), error, "recall") == 1.0
        and covered_mask(proposed(tiles[:1], []), error, "recall") < 1.0
    )
    with pytest.raises(ValueError, match="unknown coverage mode 'iou'"):
        covered_mask(proposed([one_percent], []), error, "iou")


# ---------------------------------------------------------------------- a term of the user's


@pytest.fixture
def term(tmp_path: Path):
    """``term(body)``: the function ``score`` of a file of the user's."""

    def write(body: str) -> UserTerm:
        (tmp_path / "mine.py").write_text(f"import numpy as np\ndef score(attempt):\n    {body}")
        return UserTerm(f"{tmp_path / 'mine.py'}:score")

    return write


def test_a_users_term_sees_question_answer_regions_and_results(term) -> None:
    rollout = proposed([(0, 0, 50, 50)], [(1, 2, 3, 4)])
    result = TaskResult(as_boxes([(1, 2, 3, 5)]), np.array([0.5]), ("found it",))
    body = (
        "return (attempt.question, attempt.text, attempt.finished, attempt.error, attempt.answer, attempt.crop_texts) == "
        "('cup', {text!r}, True, None, None, ('found it',)) and attempt.regions[0].x2 + 100 * attempt.boxes[0, 3] + "
        "1000 * attempt.scores[0] + 10000 * attempt.true_boxes[0, 1] + attempt.image.width + len(attempt.example.id)"
    )
    body = body.replace("'cup'", repr(rollout.example.query)).format(text=rollout.text)
    assert term(body)(rollout, result) == 50 + 500 + 500 + 20000 + rollout.example.image.width + len(rollout.example.id)


@pytest.mark.parametrize("body, value", [("return True", 1.0), ("return np.float32(0.5)", 0.5), ("return np.array(2)", 2.0),
                                         ("import torch; return torch.tensor(3.0)", 3.0), ("return -1", -1.0)])  # fmt: skip
def test_a_users_term_is_a_number(body: str, value: float, term) -> None:
    assert term(body)(proposed([], []), TaskResult(as_boxes([]), np.zeros(0))) == value


@pytest.mark.parametrize(
    "body, said",
    [
        ("pass", "returns None; it must return a number"),
        ("return '1'", "returns '1'; it must return a number"),
        ("return [0.5]", "returns .0.5.; it must return a number"),
        ("return np.zeros(2)", "returns array.*; it must return a number"),
        ("return 1 / 0", r"fails \(ZeroDivisionError: division by zero, line 3\)"),
        ("return attempt.boxes[9]", r"fails \(IndexError: .*, line 3\)"),
    ],
)
def test_what_a_users_term_does_wrong_is_named_with_its_example(body: str, said: str, term) -> None:
    rollout = proposed([], [])
    with pytest.raises(ConfigError, match=f"^--reward .*mine.py:score, for example {rollout.example.id}, {said}\\.$"):
        term(body)(rollout, TaskResult(as_boxes([]), np.zeros(0)))


def test_terms_are_weighted_under_their_names(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(a): return 2.0\ndef odd(a): return float('nan')\ndef task(a): return 0"
    )
    named = lambda name: f"{tmp_path / 'mine.py'}:{name}"
    task = Sense(TrainConfig(reward=(named("score"),), reward_weights=("score=0.5", "format=0")))
    task.check()
    rollout, result = proposed([(0, 0, 50, 50)], [(1, 2, 3, 4)]), TaskResult(as_boxes([]), np.zeros(0))
    plain, reward = (
        Sense(TrainConfig(reward_weights=("format=0",))).reward(rollout, result),
        task.reward(rollout, result),
    )
    assert reward.terms == plain.terms | {"score": 2.0} and reward.total == pytest.approx(plain.total + 1.0)
    assert Sense(TrainConfig(reward=(named("odd"),))).reward(rollout, result).faults == ("odd",)
    with pytest.raises(ConfigError, match="--task sense has a term 'task' already"):
        Sense(TrainConfig(reward=(named("task"),))).check()
    with pytest.raises(ConfigError, match="--reward names two functions 'score'"):
        TrainConfig(reward=(named("score"), named("score")))
    with pytest.raises(
        ConfigError, match=r"--reward_weights scores is no term of --task sense \(did you mean score\?\)"
    ):
        Sense(TrainConfig(reward=(named("score"),), reward_weights=("scores=1",))).check()
