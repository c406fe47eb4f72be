"""answer_text.py and its use: every form that a model may give its boxes, what is none, and time linear in the text."""

import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import END, Scripted, blobs, finds, finished, painted, table, written

from activeo3 import eval_output
from activeo3.answer_parsing import read_boxes, read_letter, read_regions, read_word, read_yes_or_no
from activeo3.answer_text import boxes_in, last_number, last_words
from activeo3.config import TrainConfig
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import Row
from activeo3.eval_detection import COLUMNS, KNOWN_COLUMNS, DetectionBenchmark
from activeo3.eval_perception import PerceptionBenchmark
from activeo3.eval_setup import announced
from activeo3.rollout import sample_rollouts
from activeo3.task_perception import TASKS as ONE_SHOT
from activeo3.task_perception import read_answer
from activeo3.tasks import known_tasks
from activeo3.types import VQA, Example, Objects, ParsedAnswer, Phrase, Rollout
from activeo3.zoom_calls import Call, ParsedTurn, read_turn

TASKS = known_tasks()

BOX, CUP = '{"bbox_2d": [1, 2, 30, 40]}', '{"bbox_2d": [5, 6, 70, 80], "label": "cup"}'
ONE, OTHER = (1.0, 2.0, 30.0, 40.0), (5.0, 6.0, 70.0, 80.0)


# ---------------------------------------------------------------------- forms

FORMS: dict[str, tuple[str, tuple, tuple[str, ...]]] = {
    # name: (what stands in an answer, the boxes, their labels)
    "objects without a list": (f"{BOX}, {CUP}", (ONE, OTHER), ("", "cup")),
    "one a line": (f"{BOX}\n{CUP}", (ONE, OTHER), ("", "cup")),
    "one object": (CUP, (OTHER,), ("cup",)),
    "a trailing comma": (f"[{BOX}, {CUP},]", (ONE, OTHER), ("", "cup")),
    "trailing commas inside": ('[{"bbox_2d": [1, 2, 30, 40,], "label": "cup",},]', (ONE,), ("cup",)),
    "single quotes": ("[{'bbox_2d': [1, 2, 30, 40], 'label': 'cup'}]", (ONE,), ("cup",)),
    "an apostrophe": (
        """{'bbox_2d': [1, 2, 30, 40], 'label': "it's"} and {'bbox_2d': [5, 6, 70, 80]}""",
        (ONE, OTHER),
        ("it's", ""),
    ),
    "python": ("[dict(bbox_2d=(1, 2, 30, 40), label='cup')]", (ONE,), ("",)),
    "prose around": (f"I think that it's here: [{BOX}]. Let me know!", (ONE,), ("",)),
    "a fence and prose": (f"Here:\n```json\n[{CUP}]\n```\nThat's all.", (OTHER,), ("cup",)),
    "a fence that is not closed": (f"```json\n[{CUP}]", (OTHER,), ("cup",)),
    "a broken one among good ones": (f'[{BOX}, {{"bbox_2d": [1, 2, 3}}, {CUP}]', (ONE, OTHER), ("", "cup")),
    "bbox": ('[{"bbox": [1, 2, 30, 40], "label": "cup"}]', (ONE,), ("cup",)),
    "box": ('[{"box": [1, 2, 30, 40]}]', (ONE,), ("",)),
    "another key": ('[{"coordinates": [1, 2, 30, 40], "name": "cup"}]', (ONE,), ("cup",)),
    "no key": ("[1, 2, 30, 40]", (ONE,), ("",)),
    "a list of lists": ("[[1, 2, 30, 40], [5, 6, 70, 80]]", (ONE, OTHER), ("", "")),
    "the numbers inside the key": ('{"bbox_2d [1, 2, 30, 40]": "cup"}', (ONE,), ("",)),
    "the numbers inside the key, without brackets": ('[{"bbox_2d: 1, 2, 30, 40"}]', (ONE,), ("",)),
    "words for numbers": ('[{"bbox_2d": ["1", "2", "30", "40"], "label": "cup"}]', (ONE,), ("cup",)),
    "one word for all": ('[{"bbox_2d": "1, 2, 30, 40"}]', (ONE,), ("",)),
    "a list in a word": ('[{"bbox_2d": "[1, 2, 30, 40]"}]', (ONE,), ("",)),
    "swapped corners": (
        '{"bbox_2d": [30, 40, 1, 2]}',
        ((30.0, 40.0, 1.0, 2.0),),
        ("",),
    ),  # put in order as all boxes are
    "signs, points, exponents": ("[-1, +2.5, .5, 3e1]", ((-1.0, 2.5, 0.5, 30.0),), ("",)),
    "spaces for commas": ("[1 2 30 40]", (ONE,), ("",)),
    "named corners": ('{"x1": 1, "y1": 2, "x2": 30, "y2": 40, "label": "cup"}', (ONE,), ("cup",)),
    "named sides": ('{"bbox_2d": {"left": 1, "top": 2, "right": 30, "bottom": 40}}', (ONE,), ("",)),
    "named ends": ("xmin=1, ymin=2, xmax=30, ymax=40", (ONE,), ("",)),
    "two corners": ("from (1, 2) to (30, 40)", (ONE,), ("",)),
    "Qwen2-VL's tokens": (
        "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>",
        (ONE,),
        ("",),
    ),
    "the label first": ('{"label": "cup", "bbox_2d": [1, 2, 30, 40]}', (ONE,), ("cup",)),
    "several boxes of one label": (
        '{"label": "cup", "bbox_2d": [[1, 2, 30, 40], [5, 6, 70, 80]]}',
        (ONE, OTHER),
        ("cup", "cup"),
    ),
    "an escape in a label": ('{"bbox": [1, 2, 30, 40], "label": "b\\u00f6at"}', (ONE,), ("böat",)),
    "a bracket that is missing": ('{"bbox_2d": [1, 2, 30, 40}', (ONE,), ("",)),
    "cut off": (f'[{BOX}, {{"bbox_2d": [5, 6, 7', (ONE,), ("",)),
}
NO_BOXES = (
    "", "[]", "I see none.", "[1, 2, 30]", "[1, 2, 30, 40, 50]", '{"bbox_2d": [1, 2, 30, 40, 50]}', "1, 2, 30, 40", "[1, 2, 30, NaN]",
    "[1, 2, 30, 10000000000]", "[1, 2, 30, 999999999999]", "[true, false, true, true]", "2 cups and 3 plates, 4 forks, 5 knives",
    '{"bbox_2d": [1, 2', "[1, 2], [3]", "x1 = 1", "on page (1), (2), (3), (4)",
)  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_boxes(name: str) -> None:
    text, boxes, labels = FORMS[name]
    assert [(item.box, item.label) for item in boxes_in(text)] == list(zip(boxes, labels, strict=True))
    for wrapped in (
        text,
        f"<think>left</think><answer>{text}</answer>",
        f"<answer>{text}",
        f"<think>[9, 9, 9, 9]</think>{text}",
    ):
        strict, kind = (read_regions(wrapped, parser=parser) for parser in ("strict", "lenient"))
        assert (kind.boxes_text, kind.error) == (
            boxes,
            strict.error,
        ) and strict.error is not None  # the format stays strict
        assert kind.strict == strict and strict.boxes_text == () or kind == strict
    strict, kind = (read_boxes(text, parser=parser) for parser in ("strict", "lenient"))
    assert (kind.boxes_text, kind.error) == (boxes, strict.error)
    assert (kind.strict is None) == (strict.boxes_text == boxes)


@pytest.mark.parametrize("text", NO_BOXES)
def test_what_is_no_box(text: str) -> None:
    assert boxes_in(text) == []
    assert read_regions(text, parser="lenient") == read_regions(text)
    assert read_boxes(text, parser="lenient") == read_boxes(text)


def test_what_the_strict_reader_reads_is_left_alone() -> None:
    odd = '[{"bbox_2d": [1, 2, 30, 40], "label": "[5, 6, 70, 80]"}]'
    for text in (f"<think>[5, 6, 7, 8]</think><answer>{odd}</answer>", f"<answer>{odd}</answer>"):
        assert read_regions(text, parser="lenient") == read_regions(text)
    assert read_boxes(odd, parser="lenient") == read_boxes(odd) == ParsedAnswer((ONE,), ("[5, 6, 70, 80]",))
    assert read_boxes("[]", parser="lenient") == ParsedAnswer((), ())


def test_a_thought_is_read_for_regions_and_only_without_an_answer() -> None:
    thought = f"<think>It is at {BOX}, I am sure"
    for text in (
        thought,
        thought + ".</think>",
        thought + ".</think>\n<answer></answer>",
        thought.removeprefix("<think>") + "</think>",
    ):
        kind = read_regions(text, parser="lenient")
        assert (kind.boxes_text, kind.error, kind.strict) == (
            (ONE,),
            "tags" if "<answer>" not in text else "json",
            read_regions(text),
        )
        assert read_boxes(text, parser="lenient").boxes_text == ()  # what is thought about is not found
    for answer in ("<answer>[]</answer>", "There is none.", "<answer>none"):
        assert read_regions(f"{thought}.</think>{answer}", parser="lenient").boxes_text == ()
    assert read_regions(f"{thought}.</think>{CUP}", parser="lenient").boxes_text == (OTHER,)
    assert read_regions(f"<answer>{BOX}</answer> or <answer>{CUP}</answer>", parser="lenient").boxes_text == (OTHER,)


def test_no_more_regions_than_were_allowed() -> None:
    text = " ".join([BOX] * 5)
    assert (
        len(read_regions(text, most=3, parser="lenient").boxes_text) == 3
        and len(read_boxes(text, parser="lenient").boxes_text) == 5
    )


def test_points_are_boxes_without_sides_and_each_thing_has_one_place() -> None:
    both = '[{"point_2d": [2, 3], "bbox_2d": [1, 2, 30, 40], "label": "cup"}, {"bbox_2d": [5, 6, 70, 80], "point_2d": [7, 8]}, {"point": [9, 9]}]'
    assert [item.box for item in boxes_in(both, points=True)] == [ONE, OTHER, (9.0,) * 4]
    for text in (
        "[[5, 6], [7, 8]]",
        "(5, 6) and (7, 8)",
        '{"x": 5, "y": 6}, {"x": 7, "y": 8}',
        '<point x="5" y="6"> <point x="7" y="8">',
    ):
        assert [item.box for item in boxes_in(text, points=True)] == [(5.0, 6.0, 5.0, 6.0), (7.0, 8.0, 7.0, 8.0)]


@pytest.mark.parametrize(
    "task, text, wanted",
    [
        ("grounding", "It is at [1, 2, 30, 40].", {"boxes_text": (ONE,)}),
        ("grounding", "1, 2, 30, 40", {"boxes_text": (ONE,)}),
        ("grounding", "[[1, 2, 30, 40]]", {"boxes_text": (ONE,)}),
        ("grounding", f"{CUP} or {BOX}", {"boxes_text": (OTHER,)}),
        ("grounding", "nowhere", {"boxes_text": ()}),
        ("counting", "There are 3 cups.", {"boxes_text": (), "count": 3}),
        ("counting", "I see two cups.", {"boxes_text": (), "count": 2}),
        ("counting", '{"bbox": [1, 2, 30, 40]}, {"bbox": [5, 6, 70, 80]}', {"boxes_text": (ONE, OTHER), "count": 2}),
        ("counting", f"[{BOX}] so there are 2 of them", {"boxes_text": (ONE,), "count": 2}),
        ("counting", f"[{BOX}]", {"boxes_text": (ONE,), "count": 1}),
        ("counting", '{"count": 4}', {"boxes_text": (), "count": 4}),
        ("counting", "none that I know", {"boxes_text": (), "count": -1}),
        ("counting", f"[{BOX}] 2", {"boxes_text": (ONE,), "count": 2}),
        ("ocr", "<think>it says</think>No. 7", {"text": "No. 7"}),
        ("ocr", "<answer>No. 7", {"text": "No. 7"}),
        ("detection", "{'bbox': [5, 6, 70, 80], 'label': 'cup'}", {"boxes_text": (OTHER,), "labels": ("cup",)}),
        ("detection", f"{CUP} {CUP.replace('cup', 'mug')}", {"boxes_text": (OTHER, OTHER), "labels": ("cup", "mug")}),
    ],
)
def test_answers_to_one_shot_tasks(task: str, text: str, wanted: dict[str, Any]) -> None:
    strict, kind = (read_answer(task, text, parser=parser) for parser in ("strict", "lenient"))
    assert {name: getattr(kind, name) for name in wanted} == wanted and kind.error == strict.error is not None
    more = any(getattr(kind, name) != getattr(strict, name) for name in ("boxes_text", "labels", "count", "text"))
    assert (kind.strict == strict) if more else (kind == strict and kind.strict is None)


PIECES = (
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        '"bbox_2d":',
        "'bbox':",
        '"label":',
        "```json",
        "x1:",
    ),
    *(
        "1",
        "2.5",
        "-3",
        "1e309",
        "NaN",
        '"x"',
        "'it's'",
        "\\ud800",
        '"',
        "'",
        ",",
        ":",
        " ",
        "\n",
        "answer:",
        BOX,
        CUP,
        "1, 2",
        "point",
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)), st.booleans(), st.booleans())
def test_any_text_is_read_and_nothing_that_was_strictly_read_is_lost(text: str, finished: bool, points: bool) -> None:
    pairs = [
        [read_regions(text, finished, parser=parser) for parser in ("strict", "lenient")],
        [read_boxes(text, finished, points, parser=parser) for parser in ("strict", "lenient")],
        *(
            [read_answer(task, text, finished, points, parser=parser) for parser in ("strict", "lenient")]
            for task in ONE_SHOT
        ),
    ]
    for strict, kind in pairs:
        assert (
            kind.error == strict.error
            and len(kind.boxes_text) >= len(strict.boxes_text)
            and len(kind.labels) == len(kind.boxes_text)
        )
        assert all(math.isfinite(value) for box in kind.boxes_text for value in box)
        assert kind == strict if kind.strict is None else kind.strict == strict != replace(kind, strict=None)
    said, kinder = read_turn(text), read_turn(text, "lenient")
    assert kinder.lenient_only or kinder == said


# ---------------------------------------------------------------------- time


HOSTILE = (
    *(
        "{",
        "[",
        "(",
        "1",
        "1,",
        "[1,",
        "[1 ",
        "[ ",
        "[[1,2],",
        "(1,2)",
        "-",
        ".",
        "1.",
        '"',
        "'",
        "\\",
        "\n",
        " ",
        "\t",
        "bbox",
        '"bbox_2d":',
    ),
    *(
        "bbox[",
        "x1=1,",
        "label:",
        '"label":"',
        "point",
        "answer:",
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<answer><think>",
        "```",
    ),
    *(
        BOX,
        CUP,
        '{"a":',
        '{"a":[',
        '{"bbox_2d":',
        '[{"bbox_2d":[1,2,3,4],',
        '[{"bbox_2d":[1,2,3,4]},',
        "<zoom_roi ",
        "<zoom_roi x='",
        'x="1" ',
        "0",
        "½",
        "a",
    ),
)


def read_in_every_way(text: str) -> None:
    for parser in ("strict", "lenient"):
        read_regions(text, parser=parser), read_boxes(text, points=True, parser=parser), read_turn(text, parser)
    read_answer("counting", text, parser="lenient"), read_answer("grounding", text, thinking=True, parser="lenient")
    read_letter(text, ["cat", "dog"]), read_word(text, "What?"), read_yes_or_no(text)


@pytest.mark.parametrize("piece", HOSTILE)
def test_an_answer_that_repeats_itself_is_read_in_linear_time(piece: str) -> None:
    """By all readers together: twice the text may take about twice the time, where backtracking would take four
    times."""
    spent = []
    for size in (15_000, 30_000):
        text, began = (piece * size)[:size] + '"bbox_2d"', time.process_time()
        read_in_every_way(text)
        spent.append(time.process_time() - began)
    assert spent[1] < 3 * spent[0] + 0.3, spent


@pytest.mark.parametrize("piece", ["{", "[", "1"])
def test_a_megabyte_is_read_at_once(piece: str) -> None:
    for read in (read_boxes, lambda text, parser: read_turn(text, parser)):
        for parser in ("strict", "lenient"):
            began = time.process_time()
            read(piece * 2**20, parser=parser)
            assert time.process_time() - began < 5  # a tenth of a second to one, on a slow machine


# ---------------------------------------------------------------------- words and zooms


def test_the_last_number_and_the_last_words() -> None:
    for text, number in (
        ("3", 3),
        ("[1] and 2.", 2),
        ("3.5", None),
        ("50 %", 50),
        ("50%", None),
        ("x2", None),
        ("1,284", None),
        ("", None),
    ):
        assert last_number(text, []) == number, text
    for text, words in (
        ("Answer: 42", "42"),
        ("**Final answer:** 42", "** 42"),
        ("answer: 1\nanswer: 2\nDone.", "2"),
        ("a\n\nb \n", "b"),
    ):
        assert last_words(text) == words, text


SAID: dict[str, ParsedTurn] = {
    # a turn that the strict reader makes nothing of, or a zoom that cannot be read: what the lenient one makes of it
    "I look at {'bbox': [20, 10, 50, 40]}.": ParsedTurn((Call((20.0, 10.0, 50.0, 40.0), False),), None, True),
    '<think>so</think>{"bbox_2d": "20, 10, 50, 40"}': ParsedTurn((Call((20.0, 10.0, 50.0, 40.0), False),), None, True),
    "<zoom_roi x0=0.2 y0=0.1 x1=0.5 y1=0.4 />": ParsedTurn((Call((0.2, 0.1, 0.5, 0.4), True),), None, True),
    "<think>[1, 2, 3, 4]</think>It is 42.": ParsedTurn((), "It is 42.", True),
    "Let me see.\nAnswer: 42": ParsedTurn((), "42", True),
    "<answer>42": ParsedTurn((), "42", True),
    "<think>only a thought [1, 2, 3, 4]": ParsedTurn(),
    "": ParsedTurn(),
    '{"bbox_2d": [20, 10]}': ParsedTurn((None,)),
}


@pytest.mark.parametrize("text", SAID, ids=range(len(SAID)))
def test_turns_of_an_episode(text: str) -> None:
    strict = read_turn(text)
    assert strict.answer is None and not any(strict.calls)
    assert read_turn(text, "lenient") == SAID[text]


def test_a_turn_that_is_strictly_read_is_left_alone() -> None:
    for text in (
        '{"bbox_2d": [20, 10, 50, 40]} [1, 2, 3, 4]',
        "<answer>42</answer> [1, 2, 3, 4]",
        '<zoom_roi x0="0" y0="0" x1="1" y1="1"/>',
    ):
        assert read_turn(text, "lenient") == read_turn(text)


# ---------------------------------------------------------------------- policies in their own form

CONFIG = EvalConfig(checkpoint=("x",), crop_side=256, sensing_side=256, task_max_new_tokens=96)
THINGS = [("red", (40, 60, 120, 140)), ("red", (300, 200, 360, 260))]


def question(**fields: Any) -> Example:
    boxes = np.array([box for _, box in THINGS], dtype=float)
    return Example("a", painted((480, 320), THINGS), "red", boxes, **fields)


def in_own_words(model: Scripted, view: Any, asked: str) -> str:
    """A policy that is right in both roles, in another form than was asked for."""
    if asked.startswith("Where"):
        return "I would look at {'bbox': [0, 0, 1000, 1000]}." + END
    return "".join(f"- red at [{', '.join(map(str, box))}]\n" for box in written(model, view, blobs(view, "red"))) + END


def strange(tokenizer: Any, says: Any = in_own_words, ours: bool = False) -> Scripted:
    model = Scripted("qwen3_vl", tokenizer, says)
    model.trained_here = ours
    return model


def rows_of(start: Scripted, config: Any) -> dict[str, Row]:
    methods = ("direct", "cot", "oracle-regions")
    rows = table(
        DetectionBenchmark, [question()], {"start": start}, config, {"mllm": start}, methods=methods, resamples=0
    )
    return {row.setting.method: row for row in rows}


def headline(rows: Any) -> list[str]:
    """The columns of the headline table."""
    return eval_output.tables(finished(rows))[0].columns


def test_a_prompted_policy_does_not_lose_by_its_form(tokenizer: Any) -> None:
    """--parser auto: a model that was not trained here is read leniently, and the table has both readings."""
    rows = rows_of(strange(tokenizer), CONFIG)
    for method, row in rows.items():
        seen = row.metrics
        assert (
            row.parser == "lenient"
            and seen["AP50"].value == 1.0
            and seen["AP50_strict"].value == seen["AP_strict"].value == 0.0
        )
        assert (seen["lenient_only"], seen["crops_lenient_only"]) == (float(method == "cot"), 1.0)
    columns = headline(rows.values())
    assert columns[-4:] == ["AP_strict", "AP50_strict", "lenient_only", "crops_lenient_only"]
    assert set(columns[1:]) <= {"policy", *COLUMNS, *KNOWN_COLUMNS}
    plain = eval_output.results(list(rows.values()))["rows"][1]
    assert plain["parser"] == "lenient" and plain["metrics"]["AP50_strict"] == 0.0


def test_a_policy_of_ours_is_read_strictly_unless_told_otherwise(tokenizer: Any) -> None:
    for start, config, parser in (
        (strange(tokenizer, ours=True), CONFIG, "strict"),
        (strange(tokenizer), replace(CONFIG, parser="strict"), "strict"),
        (strange(tokenizer), TrainConfig(crop_side=256, sensing_side=256), "strict"),
        (strange(tokenizer, ours=True), replace(CONFIG, parser="lenient"), "lenient"),
    ):
        rows = list(rows_of(start, config).values())
        assert {row.parser for row in rows} == {parser}
        assert {row.metrics["AP50"].value for row in rows} == {float(parser == "lenient")}
        assert any(name.endswith("strict") for name in headline(rows)) == (parser == "lenient")


def test_what_both_readers_read_is_the_same_in_both_columns(tokenizer: Any) -> None:
    says = lambda m, v, q: (
        '<think></think><answer>[{"bbox_2d":[0,0,1000,1000]}]</answer>' + END
        if q.startswith("Where")
        else finds(m, v, q)
    )  # noqa: E731
    for row in rows_of(strange(tokenizer, says), CONFIG).values():
        seen = row.metrics
        assert seen["AP50"] == seen["AP50_strict"] and seen["AP"] == seen["AP_strict"]
        assert seen["lenient_only"] == seen["crops_lenient_only"] == 0.0


def answered(name: str, says: Any, tokenizer: Any, config: Any, example: Example) -> Rollout:
    task = TASKS[name](config)
    example = task.prepare(example)
    _, ((rollout,),) = sample_rollouts(strange(tokenizer, says), task, [example])
    return rollout


@pytest.mark.parametrize("name, said", [
    ("sense", "{'bbox': [0, 0, 1000, 1000]}"), ("direct", "[83, 187, 250, 437]"), ("grounding", "([83, 187, 250, 437])"),
    ("counting", "[83, 187, 250, 437] [625, 625, 750, 812]: 2"), ("detection", "{'bbox': [83, 187, 250, 437], 'label': 'red'}"),
])  # fmt: skip
def test_the_format_reward_stays_strict(name: str, said: str, tokenizer: Any) -> None:
    """In training, --parser lenient pays for what was found, and not for the form."""
    boxes = np.array([box for _, box in THINGS], dtype=float)
    fields = {"objects": Objects(boxes, ("red", "red"), ("red",)), "phrase": Phrase("the first", THINGS[0][1])}
    earned = {}
    for parser in ("strict", "lenient"):
        config = TrainConfig(parser=parser, crop_side=256, sensing_side=256)  # type: ignore[arg-type]
        rollout = answered(name, lambda *_: said + END, tokenizer, config, question(**fields))
        outcome = rollout.result or TASKS[name](config).act(strange(tokenizer, finds, ours=True), [rollout])[0]
        earned[parser] = TASKS[name](config).reward(rollout, outcome).terms
    assert earned["strict"]["format"] == earned["lenient"]["format"] == 0.0
    assert max(earned["strict"].values()) <= 0.0 < max(earned["lenient"].values())


def test_the_tables_of_one_shot_tasks_have_both_readings(tokenizer: Any) -> None:
    example = TASKS["counting"](CONFIG).prepare(question())
    model, flags = strange(tokenizer, lambda *_: "I see two." + END), {"task": "counting", "resamples": 0}
    (row,) = table(PerceptionBenchmark, [example], {"start": model}, CONFIG, **flags)
    assert row.parser == "lenient" and row.metrics["exact"].value == 1.0 and row.metrics["form"].value == 0.0
    assert row.metrics["exact_strict"].value == 0.0 and row.metrics["lenient_only"] == 1.0
    columns = eval_output.tables(finished([row], PerceptionBenchmark, **flags))[0].columns
    assert columns == ["method", "exact", "MAE", "form", "exact_strict", "lenient_only"]


def test_an_episode_that_only_the_lenient_reader_could_read_says_so(tokenizer: Any) -> None:
    example = question(vqa=VQA("What colour is it?", ("red",), evidence_px=np.array([THINGS[0][1]])))
    turns = {"strict": ("missing_zoom",), "lenient": ("zoom_executed", "answered")}
    for parser, statuses in turns.items():
        left = ["I zoom into {'bbox': [50, 100, 400, 600]}" + END, "Answer: red" + END]
        rollout = answered("zoom_qa", lambda *_: left.pop(0), tokenizer, replace(CONFIG, parser=parser), example)
        assert rollout.episode.statuses == statuses and (rollout.action.strict is not None) == (parser == "lenient")


def test_the_choice_is_announced(tmp_path: Any) -> None:
    (tmp_path / "activeo3.json").write_text(json.dumps({"step": 3, "world": 1, "config": {}}))
    said = announced(CONFIG, ["hub/model", str(tmp_path), "hub/model"])
    assert said == (
        "answers of hub/model are read by the lenient reader: not trained here, no activeo3.json (--parser)\n"
        f"answers of {tmp_path} are read by the strict reader: trained here"
    )
    assert (
        announced(replace(CONFIG, parser="lenient"), ["hub/model"])
        == "answers are read by the lenient reader (--parser)"
    )
    assert (
        announced(CONFIG, ["data/tiny", "data/tiny-tasks"])
        == "answers of data/tiny, data/tiny-tasks are read by the strict reader: trained here"
    )
