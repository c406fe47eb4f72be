"""answer_parsing.py: what is rendered is read back, and whatever else a model writes is a value with a reason.

Letters and words: what models write when one is asked for, with near misses of every rule.
"""

import json
import math
import re
import string
import time
from typing import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activeo3.answer_parsing import (
    LETTERS,
    REGION_ERRORS,
    WORD_ERRORS,
    listed_options,
    lmms_eval_word,
    mme_script,
    plain,
    read_boxes,
    read_letter,
    read_regions,
    read_word,
    read_yes_or_no,
    without_thoughts,
)  # fmt: skip
from activeo3.prompts import boxes_answer, question_prompt, sensing_answer
from activeo3.types import ParsedAnswer

BOX = '{"bbox_2d": [1, 2, 30, 40]}'
ONE = ((1.0, 2.0, 30.0, 40.0),)
NONE: tuple = ()
OPTIONS = ("The cat", "dark red", "red", "vitamin C")


def tagged(body: str, thought: str = "left") -> str:
    return f"<think>{thought}</think><answer>{body}</answer>"


# ---------------------------------------------------------------------- rendered, then read

numbers = st.integers(-2000, 2000)
many_boxes = st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=3)


@given(many_boxes, st.text().filter(lambda text: "<" not in text))
def test_a_rendered_sensing_answer_is_read_back(boxes: list[tuple[int, ...]], thought: str) -> None:
    action = read_regions(sensing_answer(boxes, thought))
    assert action == ParsedAnswer(tuple(boxes), ("",) * len(boxes))
    assert all(type(value) is float for box in action.boxes_text for value in box)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=12))
def test_a_rendered_task_answer_is_read_back(boxes: list[tuple[int, ...]]) -> None:
    assert read_boxes(boxes_answer(boxes)) == ParsedAnswer(tuple(boxes), ("",) * len(boxes))


# ---------------------------------------------------------------------- malformed lists

LISTS = {
    # name: (text of the list, boxes, error); the same table for both roles
    "one": (f"[{BOX}]", ONE, None),
    "labelled": ('[{"bbox_2d": [1, 2, 30, 40], "label": "boat"}]', ONE, None),
    "floats": ('[{"bbox_2d": [1.0, 2e0, 30.0, 4.0E1]}]', ONE, None),
    "spread over lines": ('\n[\n  {"bbox_2d":\t[1,\n2, 30, 40]}\n]\n', ONE, None),
    "inverted": ('[{"bbox_2d": [30, 40, 1, 2]}]', ((30.0, 40.0, 1.0, 2.0),), None),
    "negative": ('[{"bbox_2d": [-5, -0.5, 3, 4]}]', ((-5.0, -0.5, 3.0, 4.0),), None),
    "fenced": (f"```json\n[{BOX}]\n```", ONE, None),
    "fenced without language": (f"\n```\n[{BOX}]```\n", ONE, None),
    "odd label": ('[{"bbox_2d": [1, 2, 30, 40], "label": {"a": [1]}}]', ONE, None),
    "key twice": ('[{"bbox_2d": "x", "bbox_2d": [1, 2, 30, 40]}]', ONE, None),
    "integer at the limit": ('[{"bbox_2d": [0, 0, 1, 999999999]}]', ((0.0, 0.0, 1.0, 999999999.0),), None),
    "nothing": ("", NONE, "json"),
    "words": ("I see none", NONE, "json"),
    "python literal": ("[{'bbox_2d': (1, 2, 30, 40)}]", NONE, "json"),
    "python call": ("__import__('os').system('false')", NONE, "json"),
    "deep": ("[" * 100_000, NONE, "json"),
    "deep and closed": ("[" * 50_000 + "]" * 50_000, NONE, "json"),
    "five thousand digits": (f'[{{"bbox_2d": [1, 2, 3, {"9" * 5000}]}}]', NONE, "json"),
    "single object": (BOX, NONE, "not_a_list"),
    "number": ("7", NONE, "not_a_list"),
    "null": ("null", NONE, "not_a_list"),
    "text": ('"[1, 2, 30, 40]"', NONE, "not_a_list"),
    "list inside an object": (f'{{"boxes": [{BOX}]}}', NONE, "not_a_list"),
    "bare lists": ("[[1, 2, 30, 40]]", NONE, "no_bbox_2d"),
    "bare numbers": ("[1, 2, 30, 40]", NONE, "no_bbox_2d"),
    "list in a list": (f"[[{BOX}]]", NONE, "no_bbox_2d"),
    "other key": ('[{"bbox": [1, 2, 30, 40]}]', NONE, "no_bbox_2d"),
    "good, then bad": (f"[{BOX}, null]", NONE, "no_bbox_2d"),
    "three numbers": ('[{"bbox_2d": [1, 2, 30]}]', NONE, "not_four_numbers"),
    "five numbers": ('[{"bbox_2d": [1, 2, 30, 40, 50]}]', NONE, "not_four_numbers"),
    "booleans": ('[{"bbox_2d": [true, false, true, true]}]', NONE, "not_four_numbers"),
    "strings": ('[{"bbox_2d": ["1", "2", "30", "40"]}]', NONE, "not_four_numbers"),
    "one string": ('[{"bbox_2d": "1234"}]', NONE, "not_four_numbers"),
    "nulls": ('[{"bbox_2d": [null, null, null, null]}]', NONE, "not_four_numbers"),
    "corners": ('[{"bbox_2d": [[1, 2], [30, 40]]}]', NONE, "not_four_numbers"),
    "nested": ('[{"bbox_2d": [[1], [2], [30], [40]]}]', NONE, "not_four_numbers"),
    "object": ('[{"bbox_2d": {"x1": 1, "y1": 2, "x2": 30, "y2": 40}}]', NONE, "not_four_numbers"),
    "NaN": ('[{"bbox_2d": [NaN, 2, 30, 40]}]', NONE, "not_finite"),
    "Infinity": ('[{"bbox_2d": [1, 2, Infinity, 40]}]', NONE, "not_finite"),
    "-Infinity": ('[{"bbox_2d": [1, -Infinity, 30, 40]}]', NONE, "not_finite"),
    "1e309": ('[{"bbox_2d": [1, 2, 30, 1e309]}]', NONE, "not_finite"),
    "huge integer": (f'[{{"bbox_2d": [1, 2, 30, 1{"0" * 400}]}}]', NONE, "not_finite"),
    "beyond any picture": ('[{"bbox_2d": [1, 2, 30, 1000000000]}]', NONE, "not_finite"),
}


IN_CONTAINERS = ("single object", "list inside an object", "list in a list", "good, then bad")
"""No lists of objects, and yet the task role finds a whole object in them."""


@pytest.mark.parametrize("name", LISTS)
def test_lists_in_both_roles(name: str) -> None:
    text, boxes, error = LISTS[name]
    action = read_regions(tagged(text))
    assert (action.boxes_text, action.error) == (boxes, error)
    if error != "json":  # the task role also gives up whole objects of a broken list, see below
        assert read_boxes(text) == (ParsedAnswer(ONE, ("",), error) if name in IN_CONTAINERS else action)
    cut_off = read_regions(tagged(text), finished=False)
    assert (cut_off.boxes_text, cut_off.error) == (boxes, "unfinished")


def test_no_regions_is_an_error_and_no_objects_is_an_answer() -> None:
    assert read_regions(tagged("[]")) == ParsedAnswer((), (), "empty")
    assert read_boxes("[]") == ParsedAnswer((), ())


def test_labels_are_kept_as_text() -> None:
    text = '[{"bbox_2d": [1, 2, 3, 4], "label": "böat"}, {"bbox_2d": [1, 2, 3, 4], "label": 7}, ' + BOX + "]"
    assert read_boxes(text).labels == read_regions(tagged(text)).labels == ("böat", "7", "")


def test_regions_beyond_the_allowed_number_are_dropped_and_are_an_error() -> None:
    boxes = [(i, 0, i + 10, 10) for i in range(4)]
    assert read_regions(sensing_answer(boxes, "")) == ParsedAnswer(tuple(boxes[:3]), ("",) * 3, "too_many")
    assert read_regions(sensing_answer(boxes, ""), most=4) == ParsedAnswer(tuple(boxes), ("",) * 4)
    assert read_regions(sensing_answer(boxes[:2], ""), most=1) == ParsedAnswer((boxes[0],), ("",), "too_many")


def test_fewer_regions_than_were_asked_for_are_looked_at_and_are_an_error() -> None:
    boxes = [(i, 0, i + 10, 10) for i in range(4)]
    for count, error in ((1, "too_few"), (2, "too_few"), (3, None), (4, "too_many")):
        action = read_regions(sensing_answer(boxes[:count], ""), most=3, least=3)
        assert (action.boxes_text, action.error) == (tuple(boxes[: min(count, 3)]), error)
    assert read_regions(sensing_answer([], ""), least=3).error == "empty"
    assert read_regions(boxes_answer(boxes[:2]), least=3).error == "tags"


# ---------------------------------------------------------------------- malformed tags

LAYOUTS = {
    # name: (answer, boxes, error)
    "white space around": (f" \n<think>\na\n</think>\n\n<answer> [{BOX}]\n</answer> ", ONE, None),
    "empty thought": (f"<think></think><answer>[{BOX}]</answer>", ONE, None),
    "comparison in the thought": (tagged(f"[{BOX}]", "1 < 2 <b>"), ONE, None),
    "empty": ("", NONE, "tags"),
    "bare list": (f"[{BOX}]", NONE, "tags"),
    "answer only": (f"<answer>[{BOX}]</answer>", ONE, "tags"),
    "wrong order": (f"<answer>[{BOX}]</answer><think>a</think>", ONE, "tags"),
    "prose before": (f"Sure: {tagged(f'[{BOX}]')}", ONE, "tags"),
    "prose after": (f"{tagged(f'[{BOX}]')} Done.", ONE, "tags"),
    "prose between": (f"<think>a</think> so <answer>[{BOX}]</answer>", ONE, "tags"),
    "answer twice": (f"<think>a</think><answer>[]</answer><answer>[{BOX}]</answer>", ONE, "tags"),
    "thought twice": (f"<think>a</think><think>b</think><answer>[{BOX}]</answer>", ONE, "tags"),
    "thought not closed": (f"<think>a<answer>[{BOX}]</answer>", ONE, "tags"),
    "thought closed twice": (f"<think>a</think></think><answer>[{BOX}]</answer>", ONE, "tags"),
    "answer not closed": (f"<think>a</think><answer>[{BOX}]", NONE, "tags"),
    "answer opened twice": (f"<think>a</think><answer><answer>[{BOX}]</answer>", ONE, "tags"),
    "thought inside the answer": (f"<think>a</think><answer><think>[{BOX}]</answer>", NONE, "tags"),
    "box in the thought only": (f"<think>[{BOX}]</think><answer></answer>", NONE, "json"),
    "box in the thought, no answer": (f"<think>[{BOX}]</think>", NONE, "tags"),
    "other box in the thought": (tagged(f"[{BOX}]", '[{"bbox_2d": [9, 9, 99, 99]}]'), ONE, None),
    "capital tags": (f"<THINK>a</THINK><ANSWER>[{BOX}]</ANSWER>", NONE, "tags"),
    "list not closed": (tagged(f"[{BOX}"), NONE, "json"),
    "tags before json": ("<answer>[nothing</answer>", NONE, "tags"),
    "prose in the answer": (tagged(f"Here: [{BOX}]"), NONE, "json"),
}


@pytest.mark.parametrize("text, boxes, error", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_of_the_sensing_role(text: str, boxes: tuple, error: str | None) -> None:
    action = read_regions(text)
    assert (action.boxes_text, action.error) == (boxes, error)
    assert read_regions(text, finished=False) == ParsedAnswer(boxes, action.labels, "unfinished")


def test_every_error_is_reached_and_named() -> None:
    reached = {error for *_, error in (*LISTS.values(), *LAYOUTS.values())} | {
        "empty",
        "too_many",
        "too_few",
        "unfinished",
    }
    assert reached - {None} == set(REGION_ERRORS)


# ---------------------------------------------------------------------- broken lists of the task role

CUP = '{"bbox_2d": [5, 6, 70, 80], "label": "cup"}'
CONTAINERS = {
    # name: (text, error); each holds BOX and CUP, in this order
    "list inside an object": (f'{{"things": [{BOX}, {CUP}]}}', "not_a_list"),
    "objects inside an object": (f'{{"a": {BOX}, "b": {{"c": {CUP}}}}}', "not_a_list"),
    "list of lists": (f"[[{BOX}], [[{CUP}]]]", "no_bbox_2d"),
    "a bad one among good ones": (f'[{BOX}, {{"bbox_2d": [1, 2, 3]}}, {CUP}]', "not_four_numbers"),
    "words among good ones": (f'["two", {BOX}, 3, {CUP}, null]', "no_bbox_2d"),
    "another key among good ones": (f'[{BOX}, {{"box": [1, 2, 3, 4]}}, {CUP}]', "no_bbox_2d"),
    "one without end": (f'[{BOX}, {{"bbox_2d": [1, 2, 3, Infinity]}}, {CUP}]', "not_finite"),
    "one object after the other": (f"{BOX}\n{CUP}", "json"),
    "fenced, in words": (f"Here they are:\n```json\n[{BOX}, {CUP}]\n```\nTwo.", "json"),
    "a box inside a box": (f'[{BOX}, {{"bbox_2d": [5, 6, 70, 80], "label": "cup", "part": {BOX}}}, 1]', "no_bbox_2d"),
}


@pytest.mark.parametrize("text, error", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_the_task_role_reads_object_by_object_whatever_the_container(text: str, error: str) -> None:
    wanted = ParsedAnswer((*ONE, (5.0, 6.0, 70.0, 80.0)), ("", "cup"), error)
    assert read_boxes(text) == read_boxes(f"<think>no: {BOX}</think>{text}") == wanted
    if "part" not in text:  # made unreadable as a whole, it keeps the same
        assert read_boxes(text + "]").boxes_text == wanted.boxes_text


def test_a_label_may_have_a_line_break() -> None:
    text = '[{"bbox_2d": [1, 2, 30, 40], "label": "a\nboat"}, {"bbox_2d": [1, 2, 30, 40], "label": "x\ty"}]'
    assert read_boxes(text) == ParsedAnswer(ONE * 2, ("a\nboat", "x\ty"), "json")


def test_points_are_read_object_by_object_too() -> None:
    text = f'{{"points": [{{"point_2d": [5, 6]}}, {{"point_2d": [5]}}, {BOX}]}}'
    assert read_boxes(text, points=True).boxes_text == ((5.0, 6.0, 5.0, 6.0), *ONE)
    assert read_boxes(text).boxes_text == ONE


# ---------------------------------------------------------------------- thoughts

OUTSIDE = {
    # text: what of it is no thought
    "": "",
    "[1]": "[1]",
    "<think>a</think>b": "b",
    "a<think>b</think>c<think>d</think>e": "ace",
    "<think>a": "",
    "a <think>b": "a ",
    "<think>a<answer>b</answer>": "<answer>b</answer>",  # the thought ends where it is answered
    "<think>a<answer>b</answer> c <answer>d": "<answer>b</answer> c <answer>d",
    "<think>a<answer>b</answer>c</think>d": "d",  # an answer that was merely thought about
    "<think>a<answer>b</answer></think><think>c<answer>d</answer>": "<answer>d</answer>",
    "a</think>b": "b",  # the template had begun the thought
    "a</think>b<think>c</think>d": "bd",
    "<think>a</think>b</think>c": "c",
    "<think><think>a</think>b": "b",
    "<THINK>a</Think>b": "b",
    "<thinking>a</thinking>": "<thinking>a</thinking>",
    "<answer>b</answer><think>a</think>": "<answer>b</answer>",
}


@pytest.mark.parametrize("text", OUTSIDE, ids=range(len(OUTSIDE)))
def test_what_is_outside_of_thoughts(text: str) -> None:
    assert without_thoughts(text) == OUTSIDE[text]


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a", "é "])).map("".join))
def test_thoughts_are_those_that_a_walk_finds(text: str) -> None:
    """The second opinion walks through the pieces with the rules as the docstring has them."""
    pieces, kept, thought = re.findall(r"</?think>|<answer>|.", text), "", None
    for piece in pieces:
        if piece == "</think>":
            kept, thought = (kept, None) if thought is not None else ("", None)
        elif thought is not None:
            thought += piece
        elif piece == "<think>":
            thought = ""
        else:
            kept += piece
    kept += "<answer>" + thought.partition("<answer>")[2] if thought and "<answer>" in thought else ""
    assert without_thoughts(text) == kept


def test_the_task_role_reads_no_thoughts() -> None:
    other = '[{"bbox_2d": [9, 9, 99, 99]}]'
    for thought in (f"<think>{other}</think>", f"{other} no.</think>\n", "<think>\n\n</think>"):
        assert read_boxes(f"{thought}[{BOX}]") == ParsedAnswer(ONE, ("",))
        assert read_boxes(f"{thought}[]") == ParsedAnswer((), ())
    assert read_boxes(f"<think>{other}") == read_boxes(f"<think>{other}</think>") == ParsedAnswer((), (), "json")


def test_a_thought_that_the_template_began_belongs_to_the_answer() -> None:
    """Its words are in front of what was sampled when that is read (``Encoder.decode``)."""
    sampled = f"it is red</think><answer>[{BOX}]</answer>"
    assert read_regions(sampled).error == "tags"
    for begun in ("<think>", "<think>\n"):
        assert read_regions(begun + sampled) == ParsedAnswer(ONE, ("",))
    empty = "<think>\n\n</think>\n\n"  # as templates of models that may think write it when they shall not
    assert (
        read_regions(empty + f"<answer>[{BOX}]</answer>")
        == read_regions(f"<think></think><answer>[{BOX}]</answer>")
        == ParsedAnswer(ONE, ("",))
    )


# ---------------------------------------------------------------------- never an exception, never code

PIECES = (
    *("<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", '"bbox_2d":', '"label":', "```json", "```"),
    *("1", "2.5", "-3", "1e309", "NaN", "Infinity", "true", "null", '"x"', "\\ud800", '"', ",", ":", " ", "\n", BOX),
)


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)), st.booleans(), st.integers(1, 4))
@settings(max_examples=400)
def test_any_text_is_read(text: str, finished: bool, most: int) -> None:
    sensing = [read_regions(wrapped, finished, most) for wrapped in (text, tagged(text), tagged(f"[{BOX},{text}]"))]
    task = [read_boxes(wrapped, finished) for wrapped in (text, f"[{BOX},{text}]", f'[{{"bbox_2d":[{text}]}}]')]
    for action in sensing + task:
        assert action.error is None or action.error in REGION_ERRORS
        assert len(action.labels) == len(action.boxes_text)
        assert all(math.isfinite(value) for box in action.boxes_text for value in box)
    assert all(len(action.boxes_text) <= most for action in sensing)
    assert finished or all(action.error == "unfinished" for action in sensing)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([1, 2, 30, 40]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["bbox_2d", "label", "x"]), inner),
    max_leaves=12,
)


def boxes_anywhere(value: object) -> Iterator[tuple[float, ...]]:
    """The whole boxes of a JSON value, by recursion."""
    if isinstance(value, dict) and "bbox_2d" in value:
        box = value["bbox_2d"]
        if isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and -1e9 < v < 1e9 for v in box):
            yield tuple(map(float, box))
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from boxes_anywhere(part)


@given(json_values)
@settings(max_examples=300)
def test_any_json_is_read(value: object) -> None:
    action = read_boxes(json.dumps(value))
    well_formed = isinstance(value, list) and all(
        isinstance(item, dict)
        and isinstance(box := item.get("bbox_2d"), list)
        and len(box) == 4
        and all(type(v) in (int, float) and -1e9 < v < 1e9 for v in box)
        for item in value
    )
    assert (action.error is None) == well_formed
    assert action.boxes_text == tuple(boxes_anywhere(value))


def test_nesting_near_the_recursion_limit_is_read() -> None:
    for depth in [*range(850, 1020), 10_000]:
        nested = "[" * depth + "]" * depth
        for text in (f'[{{"bbox_2d": [1, 2, 30, 40], "label": {nested}}}]', f'[{{"bbox_2d": {nested}}}]', nested):
            assert read_boxes(text).error in (None, "json", "no_bbox_2d", "not_four_numbers")
            assert read_regions(tagged(text)).error in (None, "json", "no_bbox_2d", "not_four_numbers")


def test_an_answer_that_repeats_itself_is_read_in_linear_time() -> None:
    """A policy that fell into a loop writes pages of one token; backtracking over them would take minutes."""
    began = time.process_time()
    for piece in (" ", "\n", "```", "```json \n", "<think>", "<answer>", "</answer>", "{", "{a", "[", "<", BOX):
        for start in ("", "```json", "<think></think>", "<think></think><answer>", "<answer>["):
            read_regions(start + piece * 2500 + "x")
            read_boxes(start + piece * 2500 + "x")
    assert time.process_time() - began < 10


# ---------------------------------------------------------------------- letters and words


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("[b]", "B"), ("**B**", "B"), ("`B`\n", "B"), (r"\boxed{B}", "B"),
        ("B) dark red", "B"), ("B: dark red", "B"), ("(B) the cat.", "B"), ("B. vitamin C", "B"), ("B\n\nBecause A is wrong.", "B"),
        ("The answer is B", "B"), ("the answer is (b).", "B"), ("Answer: B", "B"), ("Option B is right", "B"),
        ("The correct answer is B, not A.", "B"), ("The answer is A because it purrs.", "A"), ("The choice: C. red", "C"),
        ("I think it is B.", "B"), ("It must be D!", "D"), ("B, because (A) is wrong", "B"),
        ("The cat", "A"), ("the cat.", "A"), ("It is the cat!", "A"), ("red", "C"), ("It's dark red.", "B"),
        ("It is vitamin C.", "D"), ("vitamin c", "D"), ("The answer is a red thing", "C"),
        ("<think>A or C?</think><answer>B</answer>", "B"), ("<think>A</think> B", "B"), ("<answer>B", "B"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
    ],
)  # fmt: skip
def test_letters_that_are_read(text: str, letter: str) -> None:
    assert read_letter(text, OPTIONS) == (letter, None)


@pytest.mark.parametrize(
    "text, error",
    [
        ("", "empty"), (" .", "no_letter"), ("<answer></answer>", "empty"), ("E", "no_such_option"), ("(z)", "no_such_option"),
        ("A or B", "several_letters"), ("Both A and B", "several_letters"), ("(A) or (B)?", "several_letters"),
        ("A. The cat\nB. dark red\nC. red", "several_letters"), ("The cat is red", "several_letters"),
        ("A cat", "no_letter"), ("A dog and a bird", "no_letter"), ("I don't know", "no_letter"), ("U.S.", "no_letter"),
        ("It's not B", "no_letter"), ("Cat", "no_letter"), ("infrared", "no_letter"), ("I can see it", "no_letter"),
    ],
)  # fmt: skip
def test_letters_that_are_not_there(text: str, error: str) -> None:
    assert read_letter(text, OPTIONS) == (None, error)


def test_a_thought_is_no_answer_in_words() -> None:
    assert read_letter("<think>The answer is B", OPTIONS, finished=False).error == "unfinished"
    assert read_letter("<think>maybe <answer>A</answer></think> B", OPTIONS).value == "B"
    assert read_letter("The answer is A. No.</think>\n\nB", OPTIONS).value == "B"
    assert (
        read_yes_or_no("<think>yes").error == "empty" and read_word("<think>two</think>", "How many?").error == "empty"
    )
    assert read_letter("<think>A or<answer>B</answer>", OPTIONS).value == "B"


def test_an_answer_that_was_cut_off_is_read_if_it_had_begun() -> None:
    assert read_letter("B. The ca", OPTIONS, finished=False).value == "B"
    assert read_letter("Let me look at", OPTIONS, finished=False).error == "unfinished"
    assert read_yes_or_no("Let me look", finished=False).error == "unfinished"
    assert read_yes_or_no("Yes, I can", finished=False).value == "yes"
    assert read_word("a long wor", "What?", finished=False).error == "unfinished"
    assert read_letter("", OPTIONS, finished=False).error == read_yes_or_no("", False).error == "unfinished"


def test_every_letter_is_read_and_only_those_that_were_offered() -> None:
    options = [f"thing number {word}" for word in string.ascii_lowercase]
    for letter in LETTERS:
        for form in ("{}", "({})", "{}.", "The answer is {}.", "{}) thing"):
            assert read_letter(form.format(letter), options) == (letter, None), form
        if letter > "D":
            assert read_letter(f"({letter})", options[:4]).error == "no_such_option"


@pytest.mark.parametrize(
    "text, value",
    [
        ("Yes", "yes"), ("no.", "no"), ("NO", "no"), ("y", "yes"), ("N", "no"), ("Yes, there is no dog.", "yes"),
        ("No, yes is wrong", "no"), ("The answer is yes.", "yes"), ("There is no car", "no"), ("**Yes**", "yes"),
        ("<think>yes?</think>No", "no"), ("<answer>no</answer>", "no"),
    ],
)  # fmt: skip
def test_yes_and_no(text: str, value: str) -> None:
    assert read_yes_or_no(text) == (value, None)


@pytest.mark.parametrize(
    "text, error",
    [("", "empty"), ("!", "empty"), ("Not sure", "no_yes_or_no"), ("Nothing", "no_yes_or_no"), ("yesterday", "no_yes_or_no"),
     ("y is it", "no_yes_or_no"), ("It is yes or no", "yes_and_no")],
)  # fmt: skip
def test_neither_yes_nor_no(text: str, error: str) -> None:
    assert read_yes_or_no(text) == (None, error)


def test_words_are_equal_but_for_case_punctuation_and_written_numbers() -> None:
    for text in ("2", "Two", "two.", " 2 ", "The answer is 2", "Answer: two"):
        assert read_word(text, "How many cars?").value == "2" == plain("2")
    for text in ("22", "2 cars", "twofold", "1", "2.5"):
        assert read_word(text, "How many cars?").value != "2"
    assert read_word("Speed limit: 55 MPH", "What?").value == "speed limit 55 mph"
    assert read_word("answering", "What?").value == "answering"
    assert read_word(" ... ", "What?").error == "empty"


REAL = "In which direction is the front wheel?\n\nA. Straight.\nB. Left.\nC. Right.\nPlease answer directly with only the letter of the correct option and nothing else."


def test_options_that_the_question_lists() -> None:
    assert listed_options(REAL) == ("Straight.", "Left.", "Right.")
    assert listed_options("How many?\nPlease answer directly with a single word or number.") == ()
    assert listed_options("A. is one\nC. is missing B") == () == listed_options("A. only one")
    assert listed_options("B. begins\nC. late") == ()
    assert read_word("Left", REAL).value == read_word("b", REAL).value == read_word("B. Left.", REAL).value == "B"
    assert read_word("D", REAL).error == "no_such_option"


def test_options_that_our_prompt_lists_are_found_in_it() -> None:
    prompt = question_prompt("Which?", OPTIONS, hint="A. is no option here")
    assert listed_options(prompt.split("\n", 1)[1]) == OPTIONS


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=5), st.booleans())
def test_no_text_raises_and_every_failure_has_a_name(text: str, options: list[str], finished: bool) -> None:
    for reading in (
        read_letter(text, options, finished),
        read_yes_or_no(text, finished),
        read_word(text, "What?", finished),
    ):
        assert (reading.value is None) == (reading.error is not None) and reading.error in (None, *WORD_ERRORS)
    letter = read_letter(text, options, finished).value
    assert letter is None or letter in LETTERS[: len(options)]


ANIMALS = ("狗", "黑猫", "猫", "鸟 类")


@pytest.mark.parametrize(
    "text, value, error",
    [
        ("答案是B。", "B", None), ("答案：C", "C", None), ("正确答案应该是 （D）。", "D", None), ("我选Ａ", "A", None), ("选项B正确", "B", None),
        ("B、黑猫", "B", None), ("C。", "C", None), ("图中的动物是黑猫。", "B", None), ("图中是鸟类", "D", None), ("应选B，因为它是黑的", "B", None),
        ("A或B", None, "several_letters"), ("图中没有动物", None, "no_letter"), ("不是A，是C。", "C", None), ("选E", None, "no_letter"),
        ("图中的A是猫和狗", None, "several_letters"),
    ],
)  # fmt: skip
def test_letters_in_chinese(text: str, value: str | None, error: str | None) -> None:
    assert read_letter(text, ANIMALS) == (value, error)


# ---------------------------------------------------------------------- published rules, against what their programs say


@pytest.mark.parametrize(
    "text, value",
    [("Yes", "yes"), ("no.", "no"), ("NO!", "no"), ("Not sure", "no"), ("Eyes", "yes"), ("know", "no"), ("I know", None),
     ("The answer is yes", None), ("y", None), ("It's", None), ("", None), ("no, yes", "no"), ("<think>no</think>**Yes**", "yes")],
)  # fmt: skip
def test_mme_looks_at_four_letters(text: str, value: str | None) -> None:
    assert mme_script(text).value == value and (mme_script(text).error is None) == (value is not None)


WAY = "Which way?\n\nA. Left\nB. Right\nC. Left turn\nD. 3.5 m"


@pytest.mark.parametrize(
    "text, question, value",
    [
        ("Two", "How many?", "2"), ("ten", "How many?", "10"), ("two.", "How many?", "two"), ("Two cars", "How many?", "two cars"),
        ("3.5", "How long?", "35"),  # punctuation goes from the answer, and not from the right one
        ("The answer is Two", "How many?", "the answer is two"),
        ("B", WAY, "b"), ("(B)", WAY, "b"), ("b.", WAY, "b"), ("B.", WAY, "b"), ("B. Right", WAY, "b"), ("It is Right.", WAY, "b"),
        ("right", WAY, "right"),  # the words of an option count in their own case only
        ("Left turn", WAY, "a"),  # the first option whose words begin there
        ("3.5 m", WAY, "35 m"),  # an option with punctuation is never found
        ("The answer is B", WAY, "the answer is b"), ("", WAY, None), ("...", "Which?", None),
    ],
)  # fmt: skip
def test_realworldqa_by_lmms_evals_rule(text: str, question: str, value: str | None) -> None:
    """Values of lmms-eval 0.6.1, its filters run by hand."""
    assert lmms_eval_word(text, question).value == value


def test_what_is_cut_off_has_that_name() -> None:
    assert mme_script("The", finished=False).error == lmms_eval_word("", "?", finished=False).error == "unfinished"
    assert mme_script("").error == lmms_eval_word("", "?").error == "empty" and mme_script("x").error == "no_yes_or_no"
