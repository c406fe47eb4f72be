"""task_perception.py: what is rendered is read back, and a near miss of every form is an error with a name."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeo3 import prompts
from activeo3.task_perception import ERRORS, TASKS, perception_answer, perception_prompt, read_answer

ONE = ((1.0, 2.0, 30.0, 40.0),)
BOX = '{"bbox_2d": [1, 2, 30, 40]}'
CUP = '{"bbox_2d": [1, 2, 30, 40], "label": "cup"}'
POINT = '{"point_2d": [5, 6]}'
GOOD = {
    "grounding": "[1, 2, 30, 40]",
    "counting": f"[{BOX}, {POINT}] 2",
    "ocr": "No. 7\nSmith",
    "detection": f"[{CUP}]",
}


# ---------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("wording", prompts.WORDINGS)
def test_every_task_asks_something_of_its_own(wording: str, thinking: bool) -> None:
    asked = [perception_prompt(task, "red {cup}", wording, thinking) for task in TASKS]
    assert len(set(asked)) == len(TASKS) == 4
    for task, text in zip(TASKS, asked):
        assert ("red {cup}" in text) == (task in ("grounding", "counting") or (task, wording) == ("detection", "paper"))
        assert text.startswith(perception_prompt(task, "red {cup}", wording))
    others = {prompts.sensing_prompt("red {cup}", wording), prompts.task_prompt("red {cup}", wording)}
    assert others.isdisjoint(asked)


def test_detection_names_all_categories() -> None:
    assert "cup, traffic light, dog." in perception_prompt("detection", ("cup", "traffic light", "dog"), "paper")


@pytest.mark.parametrize("task", TASKS)
def test_the_layout_that_the_paper_wording_shows_is_accepted(task: str) -> None:
    text = perception_prompt(task, "cup", "paper", thinking=True)
    shown = text[text.rindex("<think>") :].replace("the answer", GOOD[task])
    assert read_answer(task, shown, thinking=True).error is None


# ---------------------------------------------------------------------- what is read


@pytest.mark.parametrize("task", TASKS)
def test_thinking_is_a_flag(task: str) -> None:
    bare, tagged = GOOD[task], perception_answer(GOOD[task], "left")
    plain, thought = read_answer(task, bare), read_answer(task, tagged, thinking=True)
    assert plain == thought and plain.error is None
    wrong = read_answer(task, tagged)  # nobody asked it to think: the answer is used, the form is wrong
    assert (wrong.error, wrong.boxes_text, wrong.text, wrong.count) == (
        "tags",
        plain.boxes_text,
        plain.text,
        plain.count,
    )
    missing = read_answer(task, bare, thinking=True)
    assert (missing.error, missing.boxes_text, missing.text) == ("tags", (), "")


NEAR_MISSES = {
    # The released regular expression accepts the first eight: it has an unescaped "|", and they begin with "<".
    "begins with <": ("grounding", "<", "json"),
    "a tag": ("grounding", "<box>", "json"),
    "html": ("detection", "<html></html>", "json"),
    "special tokens": ("grounding", "<|box_start|>(1,2),(30,40)<|box_end|>", "json"),
    "half a special token": ("counting", "<|box_start", "json"),
    "< before a box": ("grounding", "<[1, 2, 30, 40]", "json"),
    "an answer that is not closed": ("grounding", "<answer>[1, 2, 30, 40]", "tags"),
    "a thought alone": ("counting", "<think>two</think>", "tags"),
    "three numbers": ("grounding", "[1, 2, 30]", "not_four_numbers"),
    "five numbers": ("grounding", "[1, 2, 30, 40, 50]", "not_four_numbers"),
    "a box in a list": ("grounding", "[[1, 2, 30, 40]]", "not_four_numbers"),
    "words": ("grounding", '["1", "2", "30", "40"]', "not_four_numbers"),
    "endless": ("grounding", "[1, 2, 30, 1e999]", "not_finite"),
    "NaN": ("grounding", "[1, 2, 30, NaN]", "not_finite"),
    "round brackets": ("grounding", "(1, 2, 30, 40)", "json"),
    "no brackets": ("grounding", "1, 2, 30, 40", "json"),
    "text around it": ("grounding", "It is at [1, 2, 30, 40].", "json"),
    "two boxes": ("grounding", f"[{BOX}, {BOX}]", "not_one"),
    "no box": ("grounding", "[]", "empty"),
    "a point is no box": ("grounding", f"[{POINT}]", "no_bbox_2d"),
    "one object": ("grounding", BOX, "not_a_list"),
    "no number": ("counting", f"[{BOX}]", "no_count"),
    "another number": ("counting", f"[{BOX}] 2", "count_differs"),
    "a number alone": ("counting", "3", "json"),
    "a number in words": ("counting", f"[{BOX}] one", "json"),
    "the number first": ("counting", f"1 [{BOX}]", "json"),
    "half a thing": ("counting", f"[{BOX}] 1.5", "json"),
    "fewer than none": ("counting", "[] -1", "json"),
    "a point of three": ("counting", '[{"point_2d": [1, 2, 3]}] 1', "not_four_numbers"),
    "a point of none": ("counting", '[{"point_2d": null}] 1', "not_four_numbers"),
    "no name": ("detection", f"[{CUP}, {BOX}]", "no_label"),
    "an empty name": ("detection", '[{"bbox_2d": [1, 2, 30, 40], "label": ""}]', "no_label"),
    "a point with a name": ("detection", '[{"point_2d": [1, 2], "label": "cup"}]', "no_bbox_2d"),
    "nothing read": ("ocr", " \n ", "empty"),
    "nothing": ("detection", "", "json"),
}


@pytest.mark.parametrize("task, text, error", NEAR_MISSES.values(), ids=NEAR_MISSES.keys())
def test_a_near_miss_is_an_error(task: str, text: str, error: str) -> None:
    assert error in ERRORS
    assert read_answer(task, text).error == error
    if error != "tags":
        assert read_answer(task, perception_answer(text, "so"), thinking=True).error == error


@pytest.mark.parametrize(
    "text, error",
    [
        (f"<think>a</think><answer>{GOOD['grounding']}</answer>", None),
        (f" <think>a\nb</think>\n<answer>\n{GOOD['grounding']} </answer>\n", None),
        (f"<think></think><answer>{GOOD['grounding']}</answer>", None),
        (f"<answer>{GOOD['grounding']}</answer><think>a</think>", "tags"),
        (f"<answer>{GOOD['grounding']}</answer>", "tags"),
        (f"<think>a</think>{GOOD['grounding']}", "tags"),
        (f"<think>a<answer>{GOOD['grounding']}</answer>", "tags"),
        (f"<think>a</think><answer>{GOOD['grounding']}</answer> so", "tags"),
        (f"<think>a</think><think>b</think><answer>{GOOD['grounding']}</answer>", "tags"),
        (f"<think>a</think><answer>{GOOD['grounding']}", "tags"),
        (f"<think>a</think><answer><answer>{GOOD['grounding']}</answer></answer>", "tags"),
        (f"<THINK>a</THINK><ANSWER>{GOOD['grounding']}</ANSWER>", "tags"),
    ],
)
def test_the_tags_of_a_thinking_answer(text: str, error: str | None) -> None:
    assert read_answer("grounding", text, thinking=True).error == error


def test_what_can_be_used_of_a_wrong_answer_is_kept() -> None:
    assert read_answer("grounding", f"[{BOX}, {BOX}]").boxes_text == ONE
    assert read_answer("detection", f"[{CUP}, {BOX}]").labels == ("cup", "")
    cut = read_answer("detection", f'[{CUP}, {{"bbox_2d": [5, 6', finished=False)
    assert (cut.boxes_text, cut.labels, cut.error) == (ONE, ("cup",), "unfinished")
    cut = read_answer("counting", f'[{BOX}, {{"point_2d": [5, 6', finished=False)
    assert (cut.boxes_text, cut.count, cut.error) == (ONE, 1, "unfinished")  # 6 is a coordinate and no number
    assert read_answer("counting", f"[{BOX}, {POINT}]").count == 2
    assert read_answer("ocr", "half a pa", finished=False).text == "half a pa"


def test_thoughts_are_not_read() -> None:
    """Nobody asked for a thought: the form is wrong, and what follows it is the answer."""
    for thought in (f"<think>[{BOX}, {BOX}] 2?</think>", f"[{BOX}, {BOX}] 2?</think>"):
        counted = read_answer("counting", f"{thought}[{BOX}] 1")
        assert (counted.boxes_text, counted.count, counted.error) == (ONE, 1, "tags")
        assert read_answer("ocr", thought + "7").text == "7"
    rejected = read_answer("grounding", f"<think><answer>[{BOX}]</answer>?</think>", thinking=True)
    assert (rejected.boxes_text, rejected.error) == ((), "tags")


def test_objects_are_read_one_by_one_whatever_the_container() -> None:
    assert read_answer("grounding", f'{{"cup": {BOX}}}').boxes_text == ONE
    found = read_answer("detection", f'{{"things": [{CUP}, {{"label": "cup"}}, null]}}')
    assert (found.boxes_text, found.labels, found.error) == (ONE, ("cup",), "not_a_list")


def test_a_number_that_cannot_be_read_is_none() -> None:
    for text in ("", "nonsense", "[", "<answer>", "<think>[] 0</think>", '[{"bbox_2d": [1]}]', '{"count": 0}'):
        answer = read_answer("counting", text)
        assert (answer.count, answer.readable) == (-1, False)
    for text in ("[] 0", "[]"):  # nothing is listed, in words that can be read
        assert read_answer("counting", text).count == 0
    assert read_answer("counting", "0").count == 0 and not read_answer("counting", "0").readable


def test_forms_that_are_right() -> None:
    for text in ("[1, 2, 30, 40]", " [1,2,30.0,4e1] ", f"[{BOX}]", f"```json\n[{BOX}]\n```", "```\n[1, 2, 30, 40]```"):
        answer = read_answer("grounding", text)
        assert (answer.boxes_text, answer.error) == (ONE, None), text
    for text in (f"[{BOX}] 1", f"[{BOX}]1", f"```json\n[{BOX}]\n```\n1\n", f"[{BOX}]\n\n1"):
        answer = read_answer("counting", text)
        assert (answer.boxes_text, answer.count, answer.error) == (ONE, 1, None), text
    assert read_answer("counting", "[] 0").error is read_answer("detection", "[]").error is None
    assert read_answer("ocr", " 5 < 7 \n").text == "5 < 7"


numbers = st.integers(-2000, 2000)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=6), st.booleans())
def test_a_rendered_answer_is_read_back(boxes: list[tuple[int, ...]], thinking: bool) -> None:
    thought = "so" if thinking else None
    body = json.dumps([{"bbox_2d": list(box), "label": f"thing {k}"} for k, box in enumerate(boxes)])
    found = read_answer("detection", perception_answer(body, thought), thinking=thinking)
    assert (found.boxes_text, found.labels, found.error) == (
        tuple(boxes),
        tuple(f"thing {k}" for k in range(len(boxes))),
        None,
    )
    counted = read_answer("counting", perception_answer(f"{body} {len(boxes)}", thought), thinking=thinking)
    assert (counted.boxes_text, counted.count, counted.error) == (tuple(boxes), len(boxes), None)


@given(st.text(), st.booleans(), st.booleans())
def test_whatever_is_written_is_a_value(text: str, finished: bool, thinking: bool) -> None:
    for task in TASKS:
        answer = read_answer(task, text, finished, thinking)
        assert answer.error is None or answer.error in ERRORS
        assert finished or answer.error == "unfinished"


def test_a_long_answer_is_read_in_no_time() -> None:
    began = time.perf_counter()
    for hostile in (
        "[" * 20_000,
        "] " * 20_000,
        "<think>" * 5_000,
        " " * 50_000,
        "1" * 50_000,
        "]" + "9" * 20_000 + "x",
    ):
        for task in TASKS:
            read_answer(task, hostile), read_answer(task, hostile, thinking=True)
    assert time.perf_counter() - began < 20
