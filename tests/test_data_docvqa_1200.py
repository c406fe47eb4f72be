"""docvqa_1200: the hub's table, in the order and with the answers of Active-Perception-R1's benchmark."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import PAGE, box_of, row, written
from refcoco_folders import complaint

from activeo3.data import open_dataset
from activeo3.data_docvqa import padded
from activeo3.geometry import as_boxes
from activeo3.task_zoom_qa import asked_of, rightness

SHUFFLED_29 = [137, 16, 179, 73, 108, 35, 194, 80, 192, 112, 81, 20, 181, 148, 40, 29]
"""What datasets.Dataset.shuffle(seed=29).select(range(16)) takes of 200 rows (datasets 4.4, run once)."""


@pytest.mark.parametrize("unit", [True, False])
def test_a_question_with_its_answers_and_where_they_stand(tmp_path: Path, unit: bool) -> None:
    (example,) = open_dataset("docvqa_1200", "test", written(tmp_path, [row(unit=unit)]))
    assert (example.id, example.query, example.size_px) == ("docvqa_1200:test_0", "What is the total?", PAGE)
    asked = asked_of(example)
    assert asked.answers == ("1,284.50", "$1,284.50") and asked.scored_by == "exact"
    wanted = padded(as_boxes(box_of("1,284.50", "$")), PAGE)  # "$ 1,284.50" spells one of them, too
    assert np.allclose(np.sort(example.boxes_px, axis=0), np.sort(wanted, axis=0), atol=1e-3)
    # As that system's reward counts: exactly, up to case, quotation marks, white space and a full stop.
    assert [rightness(said, asked) for said in ('"1,284.50". ', "$1,284.50", "1284.50", "1,284.5")] == [
        1.0,
        1.0,
        0.0,
        0.0,
    ]


def test_the_order_is_that_of_the_published_benchmark(tmp_path: Path) -> None:
    rows = [row(k, words=[], bounding_boxes=[]) for k in range(200)]
    data = open_dataset("docvqa_1200", "test", written(tmp_path, rows), limit=16, seed=29)
    assert [asked.id.removeprefix("docvqa_1200:test_") for asked in data.items] == list(map(str, SHUFFLED_29))
    assert [data[k].image_id for k in range(2)] == [138, 17] and data[0].boxes_px.shape == (0, 4)
    other = open_dataset("docvqa_1200", "val", str(tmp_path), seed=30)
    assert len(other) == 200 and other.split == "test" and other.items[0].id != data.items[0].id


BROKEN = [
    ({"query": {"en": " "}}, "row 1 has no question in English or no answer"),
    ({"answers": [], "answer": None}, "row 1 has no question in English or no answer"),
    ({"words": ["one"]}, "row 1 has 1 words and 14 boxes of four numbers"),
    ({"bounding_boxes": [[0.1, 0.2]] * 14}, "row 1 has the bounding_boxes [0.1"),
    ({"bounding_boxes": [[0.1, 0.2, 0.3, float("nan")]] * 14}, "nan], give four numbers for each word"),
]


@pytest.mark.parametrize("change, sentence", BROKEN)
def test_a_broken_row_is_left_out(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    data = open_dataset("docvqa_1200", "test", written(tmp_path, [row(0), row(1, **change), row(2)]))
    assert len(data) == 2 and len(data.dropped) == 1 and sentence in data.dropped[0]


def test_what_is_not_there(tmp_path: Path) -> None:
    said = complaint(lambda: open_dataset("docvqa_1200", "train", str(tmp_path)))
    assert "no train-*.parquet in docvqa_1200_examples/data or docvqa_1200_examples or docvqa_1200/data" in said
    assert "docvqa_1200 has no question in its split 'test'" in complaint(
        lambda: open_dataset("docvqa_1200", "test", written(tmp_path, [row(answers=None, answer=None)]))
    )
