"""eval_detection.py: a row of failures against counting by hand: sensing and task must each be blamed for their own."""

import math

import numpy as np
import pytest
from PIL import Image

from activeo3.eval_detection import FAILURES as COLUMNS
from activeo3.eval_detection import failures
from activeo3.geometry import as_boxes
from activeo3.types import Example, Region, TaskResult

IMAGE = Image.new("RGB", (400, 400))
LEFT = (Region(0.0, 0.0, 200.0, 400.0),)


def example(boxes: list, name: str = "a", crowd: list | None = None) -> Example:
    return Example(name, IMAGE, "dot", as_boxes(boxes), crowd=None if crowd is None else np.array(crowd))


def outcome(*boxes: tuple) -> TaskResult:
    return TaskResult(as_boxes(boxes), np.ones(len(boxes)))


def test_every_box_is_counted_where_it_was_won_or_lost() -> None:
    seen_found, seen_missed, seen_blurred = (10, 10, 30, 30), (50, 50, 70, 70), (100, 100, 120, 120)
    unseen_found, unseen_missed = (300, 10, 320, 30), (300, 300, 320, 320)
    truth = example([seen_found, seen_missed, seen_blurred, unseen_found, unseen_missed])
    blurred = (110, 100, 130, 120)  # IoU 1/3: touched and not found
    elsewhere = (150, 350, 170, 370)
    row = failures([truth], [LEFT], [outcome(seen_found, blurred, unseen_found, elsewhere)])
    assert row == {
        "sensing_recall": 3 / 5, "recall_inside": 1 / 3, "recall": 2 / 5, "precision": 2 / 4,
        "TP": 2, "FP": 2, "FN": 3, "missed": 2,
    }  # fmt: skip
    assert tuple(row) == COLUMNS


def test_a_looser_threshold_finds_more() -> None:
    truth, found = example([(100, 100, 120, 120)]), outcome((110, 100, 130, 120))
    assert failures([truth], [LEFT], [found], match=0.3)["TP"] == 1
    assert failures([truth], [LEFT], [found], match=0.34)["TP"] == 0


def test_touching_starts_at_a_tenth() -> None:
    truth = example([(0, 0, 10, 10)])
    for width, missed in ((1.0, 0), (0.9, 1)):
        assert failures([truth], [LEFT], [outcome((0, 0, width, 10))])["missed"] == missed


def test_two_detections_of_one_thing_are_one_right_and_one_wrong() -> None:
    truth = example([(0, 0, 10, 10)])
    row = failures([truth], [LEFT], [outcome((0, 0, 10, 10), (0, 0, 10, 9))])
    assert (row["TP"], row["FP"], row["FN"]) == (1, 1, 0)


def test_crowds_are_neither_asked_for_nor_punished() -> None:
    truth = example([(0, 0, 10, 10), (20, 20, 90, 90)], crowd=[False, True])
    row = failures([truth], [LEFT], [outcome((25, 25, 60, 60))])
    assert (row["TP"], row["FP"], row["FN"], row["missed"]) == (0, 0, 1, 1)
    assert row["sensing_recall"] == 1.0 and row["recall_inside"] == 0.0
    assert math.isnan(row["precision"])


def test_counts_add_up_over_questions() -> None:
    examples = [example([(0, 0, 10, 10)], "a"), example([(300, 0, 310, 10), (350, 0, 360, 10)], "b"), example([], "c")]
    outcomes = [outcome((0, 0, 10, 10)), outcome(), outcome((5, 5, 9, 9))]
    row = failures(examples, [LEFT, LEFT, ()], outcomes)
    assert (row["TP"], row["FP"], row["FN"], row["missed"]) == (1, 1, 2, 2)
    assert row["sensing_recall"] == pytest.approx(1 / 3) and row["recall_inside"] == 1.0


def test_nothing_to_count_is_not_a_number() -> None:
    row = failures([example([])], [()], [outcome()])
    assert all(math.isnan(row[name]) for name in ("sensing_recall", "recall_inside", "recall", "precision"))
    assert [row[name] for name in ("TP", "FP", "FN", "missed")] == [0, 0, 0, 0]
