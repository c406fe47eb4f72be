"""prompts.py: what is rendered is read back, and whatever else a model writes is a value with a reason."""

import ast
import doctest
import inspect
import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activeo3 import prompts
from activeo3.prompts import boxes_answer, read_boxes, read_regions, segmentation_prompt, sensing_answer, sensing_prompt, task_prompt
from activeo3.schema import Action

BOX = '{"bbox_2d": [1, 2, 30, 40]}'
ONE = ((1.0, 2.0, 30.0, 40.0),)
NONE: tuple = ()


def tagged(body: str, thought: str = "left") -> str:
    return f"<think>{thought}</think><answer>{body}</answer>"


def test_the_examples_in_the_docstrings_hold() -> None:
    results = doctest.testmod(prompts)
    assert results.attempted > 0 and results.failed == 0


# ---------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("wording", prompts.WORDINGS)
@pytest.mark.parametrize("query", ["red star", "person's {hat}", 'the "big" one', "Größe 漢字"])
def test_a_prompt_names_what_is_looked_for(wording: str, query: str) -> None:
    assert query in sensing_prompt(query, wording)
    assert query in task_prompt(query, wording)
    assert query in segmentation_prompt(query, wording)
    assert len({ask(query, wording) for ask in (sensing_prompt, task_prompt, segmentation_prompt)}) == 3


def test_the_paper_wording_asks_for_everything_that_is_scored() -> None:
    text = sensing_prompt("boat", "paper", regions=5)
    for wanted in ("up to 5 regions", '{"bbox_2d": [x1, y1, x2, y2], "label"', "JSON", "overlap"):
        assert wanted in text
    layout = text[text.rindex("<think>") :]  # the layout it shows has the tags of an answer that is accepted
    shown = layout.replace("the JSON list", f"[{BOX}]")
    assert read_regions(shown) == Action(ONE, ("",))


@pytest.mark.parametrize("wording", prompts.WORDINGS)
def test_errors_of_a_mask_are_asked_for_in_an_exact_number(wording: str) -> None:
    assert "3 regions" in segmentation_prompt("boat", wording) and "up to" not in segmentation_prompt("boat", wording)
    assert "one region" in segmentation_prompt("boat", wording, regions=1)
    text = segmentation_prompt("boat", "paper")
    for wanted in ("exactly 3 regions", "translucent green mask", '{"bbox_2d": [x1, y1, x2, y2], "label": "boat segmentation error"}'):
        assert wanted in text


def test_an_unknown_wording_is_an_error() -> None:
    for ask in (sensing_prompt, task_prompt, segmentation_prompt):
        with pytest.raises(KeyError):
            ask("boat", "long")


# ---------------------------------------------------------------------- rendered, then read

numbers = st.integers(-2000, 2000)
many_boxes = st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=3)


@given(many_boxes, st.text().filter(lambda text: "<" not in text))
def test_a_rendered_sensing_answer_is_read_back(boxes: list[tuple[int, ...]], thought: str) -> None:
    action = read_regions(sensing_answer(boxes, thought))
    assert action == Action(tuple(boxes), ("",) * len(boxes))
    assert all(type(value) is float for box in action.boxes_text for value in box)


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=12))
def test_a_rendered_task_answer_is_read_back(boxes: list[tuple[int, ...]]) -> None:
    assert read_boxes(boxes_answer(boxes)) == Action(tuple(boxes), ("",) * len(boxes))


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
    "deep and closed": ("[" * 100_000 + "]" * 100_000, NONE, "json"),
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


@pytest.mark.parametrize("text, boxes, error", LISTS.values(), ids=LISTS.keys())
def test_lists_in_both_roles(text: str, boxes: tuple, error: str | None) -> None:
    action = read_regions(tagged(text))
    assert (action.boxes_text, action.error) == (boxes, error)
    if error != "json":  # the task role also gives up whole objects of a broken list, see below
        assert read_boxes(text) == action
    cut_off = read_regions(tagged(text), finished=False)
    assert (cut_off.boxes_text, cut_off.error) == (boxes, "unfinished")


def test_no_regions_is_an_error_and_no_objects_is_an_answer() -> None:
    assert read_regions(tagged("[]")) == Action((), (), "empty")
    assert read_boxes("[]") == Action((), ())


def test_labels_are_kept_as_text() -> None:
    text = '[{"bbox_2d": [1, 2, 3, 4], "label": "böat"}, {"bbox_2d": [1, 2, 3, 4], "label": 7}, ' + BOX + "]"
    assert read_boxes(text).labels == read_regions(tagged(text)).labels == ("böat", "7", "")


def test_regions_beyond_the_allowed_number_are_dropped_and_are_an_error() -> None:
    boxes = [(i, 0, i + 10, 10) for i in range(4)]
    assert read_regions(sensing_answer(boxes, "")) == Action(tuple(boxes[:3]), ("",) * 3, "too_many")
    assert read_regions(sensing_answer(boxes, ""), most=4) == Action(tuple(boxes), ("",) * 4)
    assert read_regions(sensing_answer(boxes[:2], ""), most=1) == Action((boxes[0],), ("",), "too_many")


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
    assert read_regions(text, finished=False) == Action(boxes, action.labels, "unfinished")


def test_every_error_is_reached_and_named() -> None:
    reached = {error for *_, error in (*LISTS.values(), *LAYOUTS.values())} | {"empty", "too_many", "too_few", "unfinished"}
    assert reached - {None} == set(prompts.ERRORS)


# ---------------------------------------------------------------------- broken lists of the task role


@pytest.mark.parametrize(
    "text, boxes",
    [
        (f'[{BOX}, {{"bbox_2d": [5, 6, 7', ONE),
        (f"[{BOX},", ONE),
        (f"[{BOX}", ONE),
        (f'[{{"bbox_2d": [1, 2, 3]}}, {BOX}, {{"bbox_2d": [0, 0, NaN, 1]}}, {{', ONE),
        (f"```json\n[{BOX}, {BOX}, {{", ONE * 2),
        (f"Here they are: [{BOX}]", ONE),
        ('[{"bbox_2d": [5, 6, 7', NONE),
        ("", NONE),
        ("{" * 50_000, NONE),
    ],
)
def test_a_broken_list_gives_up_its_whole_boxes(text: str, boxes: tuple) -> None:
    assert read_boxes(text, finished=False) == Action(boxes, ("",) * len(boxes), "unfinished")
    assert read_boxes(text, finished=True) == Action(boxes, ("",) * len(boxes), "json")


def test_a_list_that_was_whole_when_the_limit_came_is_whole() -> None:
    assert read_boxes(f"[{BOX}]", finished=False) == Action(ONE, ("",))


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
        assert action.error is None or action.error in prompts.ERRORS
        assert len(action.labels) == len(action.boxes_text)
        assert all(math.isfinite(value) for box in action.boxes_text for value in box)
    assert all(len(action.boxes_text) <= most for action in sensing)
    assert finished or all(action.error == "unfinished" for action in sensing)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([1, 2, 30, 40]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["bbox_2d", "label", "x"]), inner),
    max_leaves=12,
)


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
    assert len(action.boxes_text) == (len(value) if well_formed else 0)


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


def test_no_answer_is_ever_run() -> None:
    tree = ast.parse(inspect.getsource(prompts))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names.isdisjoint({"eval", "exec", "compile", "__import__"})
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"json", "re"}
