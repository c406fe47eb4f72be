"""data_docvqa.py: DocVQA in every public layout, where an answer stands on a page, and broken files."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import PAGE, ROWS, box_of, docvqa_json, docvqa_parquet, ocr, page_words

from activeo3 import task_zoom_qa
from activeo3.data import open_dataset
from activeo3.data_docvqa import Word, padded, plain, spelled
from activeo3.data_io import DataError
from activeo3.geometry import as_boxes

# ---------------------------------------------------------------------- layouts


def check(data: Any, with_ocr: bool) -> None:
    first, second, third = data
    assert [example.id for example in data] == ["docvqa:1", "docvqa:2", "docvqa:3"] and [e.image_id for e in data] == [
        1,
        1,
        2,
    ]
    assert [example.image.getpixel((0, 0))[0] for example in data] == [90, 90, 91]
    asked = task_zoom_qa.asked_of(first)
    assert (asked.question, asked.answers, asked.kind) == ("What is the total?", ("$1,284.50", "1,284.50"), "anls")
    assert second.query == "Which city?" and second.vqa.category == "form, layout" and second.vqa.options == ()
    assert third.boxes_px.shape == (0, 4) == task_zoom_qa.asked_of(third).evidence_px.shape
    wanted = [padded(as_boxes(box_of("$", "1,284.50")), PAGE), padded(as_boxes(box_of("New", "York,")), PAGE)]
    for example, boxes in zip((first, second), wanted):
        assert np.allclose(example.boxes_px, boxes if with_ocr else np.zeros((0, 4)))
        assert np.array_equal(example.boxes_px, example.vqa.evidence_px)
    assert task_zoom_qa.rightness("$1,284.5", asked) == pytest.approx(8 / 9)


@pytest.mark.parametrize("layout", [0, 1])
def test_the_tasks_own_files(tmp_path: Path, layout: int) -> None:
    root = docvqa_json(tmp_path, layout)
    check(open_dataset("docvqa", "val", root), with_ocr=True)
    data = open_dataset("docvqa", "test", root)  # whose answers are not public
    assert (data.name, data.split, len(data.paths)) == ("docvqa", "val", 2)
    docvqa_json(tmp_path, layout, ROWS[:1], "train")
    assert [example.id for example in open_dataset("docvqa", "train", root)] == ["docvqa:1"]


@pytest.mark.parametrize("name", ["DocVQA/validation-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"])
def test_the_hubs_files_with_and_without_ocr_beside_them(tmp_path: Path, name: str) -> None:
    root = docvqa_parquet(tmp_path, name)
    check(open_dataset("docvqa", "val", root), with_ocr=False)
    read = tmp_path / "DocVQA" / "spdocvqa_ocr"
    read.mkdir()
    (read / "ab_1.json").write_text(json.dumps(ocr()))
    check(open_dataset("docvqa", "dev", root), with_ocr=True)


def test_ocr_of_another_size_is_scaled(tmp_path: Path) -> None:
    """The OCR's page has its own width and height; a picture may have been made smaller since."""
    root = docvqa_json(tmp_path)
    (tmp_path / "DocVQA" / "spdocvqa_ocr" / "ab_1.json").write_text(json.dumps(ocr((1700, 2200))))
    check(open_dataset("docvqa", "val", root), with_ocr=True)


# ---------------------------------------------------------------------- where an answer stands

PLACES: dict[str, tuple[str, ...]] = {
    # answer: the words that spell it
    "1968": ("1968",), "NEW  YORK": ("New", "York,"), "New York, May 1968": ("New", "York,", "May", "1968"),
    "$1,284.50": ("$", "1,284.50"), "1,284.50": ("1,284.50",), "due": ("due:",), "total due": ("Total", "due:"),
    "4711": ("4711",),  # twice on the page: both places
    "New Yorc": ("New", "York,"),  # nearly
    "Invoice Number": (), "York New": (), "84": (), "": (), "a word that is not there": (),
}  # fmt: skip


@pytest.mark.parametrize("answer", PLACES)
def test_the_words_that_spell_an_answer(answer: str) -> None:
    assert spelled(page_words(), [answer or " "]).tolist() == box_of(*PLACES[answer])


def test_an_exact_place_of_any_answer_goes_before_a_similar_one() -> None:
    assert spelled(page_words(), ["1,284.51", "1968"]).tolist() == box_of("1968")
    assert spelled(page_words(), ["1,284.51", "1986x"]).tolist() == box_of("1,284.50")  # the more similar one
    assert spelled([], ["1968"]).shape == (0, 4)


def test_exact_places_are_those_of_a_naive_search() -> None:
    """Every run of words that reads as the answer, tried one by one."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        texts = rng.choice(["a", "b", "ab", "a,", "(b)", "-"], size=rng.integers(1, 12)).tolist()
        words = [Word(text, (float(k), 0.0, k + 1.0, 1.0)) for k, text in enumerate(texts)]
        answer = str(rng.choice(["ab", "a b", "aab", "b", "a-b"]))
        runs = [range(i, j) for i in range(len(texts)) for j in range(i + 1, len(texts) + 1)]
        exact = [run for run in runs if plain(" ".join(texts[k] for k in run)) == plain(answer)]
        if exact:
            wanted = {float(k) for run in exact for k in run if texts[k] not in "-" or "-" in answer}
            found = set(spelled(words, [answer])[:, 0].tolist())
            assert wanted <= found <= {float(k) for run in exact for k in run}


def test_boxes_are_padded_inside_the_page() -> None:
    boxes = padded(as_boxes([[0, 0, 10, 8], [190, 90, 200, 100], [250, 0, 260, 10]]), PAGE)
    assert boxes.tolist() == [[0, 0, 12, 10], [187.5, 87.5, 200, 100]]


# ---------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (
            [ROWS[0] | {"answers": None}],
            "question 1 has no answer, and nothing to compare with; use the split val or train",
        ),
        ([ROWS[0] | {"answers": [" "]}], "question 1 has no answer"),
        ([ROWS[0] | {"image": "../ab_1.png"}], "question 1 has a file_name outside of its folder"),
        ([{key: value for key, value in ROWS[0].items() if key != "question"}], "question 1 has no 'question'"),
        ([{key: value for key, value in ROWS[0].items() if key != "answers"}], "question 1 has no 'answers'"),
        ([], "docvqa has no question in its split 'val'"),
    ],
)
def test_broken_questions_are_refused(tmp_path: Path, rows: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        open_dataset("docvqa", "val", docvqa_json(tmp_path, rows=rows))
    assert "val_v1.0_withQT.json" in str(caught.value) and "\n" not in str(caught.value)


def test_broken_ocr_is_one_examples_matter(tmp_path: Path) -> None:
    data = open_dataset("docvqa", "val", docvqa_json(tmp_path))
    path = tmp_path / "DocVQA" / "spdocvqa_ocr" / "ab_1.json"
    short = ocr()
    short["recognitionResults"][0]["lines"][0]["words"][2]["boundingBox"] = [1, 2, 3, 4]
    for content, what in (
        (short, "'4711' has the boundingBox"),
        ([], "no OCR of a page"),
        ({"recognitionResults": [{}]}, "no OCR"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=what) as caught:
            data[1]
        assert caught.value.example_id == "docvqa:2" and "ab_1.json" in str(caught.value)
    path.write_text("{}")
    assert data[1].boxes_px.shape == (0, 4)  # nothing was read on the page


def test_a_folder_without_questions_says_what_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "DocVQA").mkdir()
    with pytest.raises(
        DataError,
        match="neither spdocvqa_qas/val_v1.0_withQT.json nor val/val_v1.0.json nor validation-.*parquet in DocVQA or data",
    ):
        open_dataset("docvqa", "val", str(tmp_path))
    with pytest.raises(DataError, match="docvqa: there is no split 'all', choose one of dev, test, train, val"):
        open_dataset("docvqa", "all", str(tmp_path))


def test_a_torn_picture_in_parquet_is_one_examples_matter(tmp_path: Path) -> None:
    root = docvqa_parquet(tmp_path)
    data = open_dataset("docvqa", "val", root)
    table, row = data.items[0].picture
    table.picture = lambda row: b"PNG"
    with pytest.raises(DataError, match="row 0: the picture of example docvqa:1 cannot be read") as caught:
        data[0]
    assert caught.value.example_id == "docvqa:1"
