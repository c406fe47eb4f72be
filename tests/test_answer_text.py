"""answer_text.py, and what keeps all readers of answers linear: their patterns, against rules and against simpler
ones."""

import ast
import importlib
import json
import re
import sys
import unicodedata
from pathlib import Path
from random import Random
from typing import Any, Iterator, Sequence

import pytest
from attack.answers import changed_answer
from hypothesis import given
from hypothesis import strategies as st
from regex_rules import Rules

from activeo3 import answer_parsing, answer_text, families, task_zoom_qa, zoom_calls
from activeo3.answer_text import (
    MAX_BOXES,
    MAX_CHARACTERS,
    NO_JSON,
    boxes_in,
    decoded,
    limited,
    normalised,
    unfenced,
    without_thoughts,
)
from activeo3.prompts import boxes_answer
from activeo3.zoom_calls import read_turn

ROOMS = Path(answer_text.__file__).parent
READERS = (
    "answer_text", "answer_parsing", "task_perception", "zoom_calls", "families", "task_zoom_qa", "text_metrics",
)  # fmt: skip
"""The rooms that read what a model wrote."""
OUR_OWN_TEXTS = {"processes"}
"""Rooms whose patterns read error messages of our libraries, and nothing that a model or a stranger wrote."""


# ---------------------------------------------------------------------- patterns

LINEAR = [
    r"\w+", r'"[^"]*"', r"x\s*+y", r"<a>(?:[^<]++|<(?!/?a>))*+</a>", r"\{[^{}]*+\}", r"^[^\w\n]*+([A-Z])", r"\d{1,10}x", r"\A\s*+x",
    r"x\s*+(?::\s*+)?+y", r"x\s{0,20}+[,;]?\s{0,20}+y", r"(?:a\s++b)*+", r"(?<=a)b{3,9}",
]  # fmt: skip
NOT_LINEAR = {
    # pattern: the rule that it breaks
    r"a*a*b": "goes back", r"x\s*:?\s*y": "goes back", r"\d+\.?\d*x": "goes back", r"a.*b": "goes back", r"a\w+?_b": "goes back",
    r"x\s{0,20}[,;]?\s{0,20}y": "goes back", r"<a>((?:(?!</a>).)*)</a>": "goes back",
    r"(a*)*b": "stands inside", r"x(?:a{0,5}){0,5}b": "stands inside", r"x(?:a*+)*+b": "repeat nothing",
    r"x(?:\w++!|\w)*+:": "begin alike", r"x(?:(?:a++b)?a)*+c": "left out",
    r"\s*+x": "runs over", r"(\w++ )x": "runs over", r"a.*+": None, r"a[^b]*+b": "runs over", r"^\s*+x": "runs over", r"(?:a++b)?a": "runs over",
}  # fmt: skip


@pytest.mark.parametrize("pattern", LINEAR)
def test_patterns_that_keep_the_rules(pattern: str) -> None:
    assert Rules(re.compile(pattern, re.MULTILINE)).broken() == []


@pytest.mark.parametrize("pattern", NOT_LINEAR)
def test_patterns_that_break_a_rule(pattern: str) -> None:
    broken = Rules(re.compile(pattern, re.MULTILINE)).broken()
    assert broken == [] if NOT_LINEAR[pattern] is None else any(NOT_LINEAR[pattern] in sentence for sentence in broken)


def test_what_is_never_searched_for_may_begin_with_a_run() -> None:
    assert Rules(re.compile(r"\s*+x"), anchored=True).broken() == [] != Rules(re.compile(r"\s*+x")).broken()


def is_anchored(name: str, trees: Sequence[ast.Module]) -> bool:
    """Is a pattern of this name only ever matched from a given place, in these rooms?"""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    loads = [
        node for node in nodes if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
    ]
    methods = [node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == name]
    return 0 < len(loads) == len(methods) and set(methods) <= {"match", "fullmatch"}


def patterns() -> Iterator[tuple[str, Rules]]:
    """Every compiled pattern of the package, by room and name."""
    trees = {path.stem: ast.parse(path.read_text()) for path in sorted(ROOMS.glob("*.py"))}
    for room in [
        room for room in trees if room not in OUR_OWN_TEXTS and "re.compile(" in (ROOMS / f"{room}.py").read_text()
    ]:
        for name, value in vars(importlib.import_module(f"activeo3.{room}")).items():
            if isinstance(value, re.Pattern):
                own = (
                    [trees[room]]
                    if name.startswith("_")
                    else [tree for tree in trees.values() if name in ast.dump(tree)]
                )
                yield f"{room}.{name}", Rules(value, is_anchored(name, own))


def test_every_pattern_of_the_package_is_linear() -> None:
    found = dict(patterns())
    assert len(found) > 40 and found["answer_text.LAYOUT"].anchored and not found["zoom_calls._THINK"].anchored
    assert {name: broken for name, rules in found.items() if (broken := rules.broken())} == {}


@pytest.mark.parametrize("room", READERS)
def test_readers_have_no_pattern_but_those(room: str) -> None:
    """``re.sub`` and its like would hide one from the test above; nor does any of them run what it reads."""
    tree = ast.parse((ROOMS / f"{room}.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "re"}
    assert used <= {"compile", "escape", "Match", "Pattern", "IGNORECASE", "MULTILINE", "DOTALL"}
    inside = [
        node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    ]
    assert not [node for node in inside if isinstance(node, ast.Call) and ast.unparse(node.func) == "re.compile"]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names.isdisjoint({"eval", "exec", "compile", "__import__"}) and "ast" not in vars(
        sys.modules[f"activeo3.{room}"]
    )


# ---------------------------------------------------------------------- against simpler patterns, which go back

BODY, TAGGED = r"((?:(?!</?answer>).)*)", r"((?:(?!</?(?:think|answer)>).)*)"
TWINS: dict[str, tuple[re.Pattern[str], str, int]] = {
    # name: (a pattern, one that says the same, its flags)
    "layout": (answer_text.LAYOUT, rf"\s*<think>{TAGGED}</think>\s*<answer>{TAGGED}</answer>\s*", re.DOTALL),
    "answers": (answer_text.ANSWERS, f"<answer>{BODY}</answer>", re.DOTALL),
    "open answers": (answer_parsing._OPEN_BODY, f"<answer>{BODY}", re.DOTALL | re.IGNORECASE),
    "said": (answer_parsing._BODY, f"<answer>{BODY}(?:</answer>|$)", re.DOTALL),
    "objects": (answer_parsing._OBJECT, r"\{[^{}]*\}", 0),
    "stated in Chinese": (answer_parsing._STATED_IN_CHINESE, r"(?:答案|选项|选择|选)(?:应该|应当|应)?(?:是|为|选)?\s*:?\s*(?:选项)?\s*[(\[]?([A-Z])" + answer_parsing._AFTER, 0),
    "stated": (
        answer_parsing._STATED,
        r"(?:answer|option|choice)(?: is)?\s*:?\s*(?:option |choice )?[(\[]?([B-HJ-Z]|[AI]" + answer_parsing._NO_ARTICLE + r")(?!['’])" + answer_parsing._AFTER,
        re.IGNORECASE,
    ),
    "lines": (answer_parsing._LINE, r"^[^\w\n]*([A-Z])(?:[).:,、\]]|[^\w\n]*$)", re.MULTILINE),
    "thoughts": (zoom_calls._THINK, r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE),
    "zoom tags": (zoom_calls._TAG, r"<zoom_roi\b([^<>]*)>?", re.IGNORECASE),
    "numbers in tags": (zoom_calls._NUMBER, r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", 0),
    "quantities": (task_zoom_qa._QUANTITY, r"([$€£¥]?)\s*([+-]?)\s*([$€£¥]?)\s*(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)\s*(%?)", 0),
    "listed": (answer_parsing._LISTED_OPTION, r"\b[A-Z]\.\s+([^\n]*)", 0),
    "answer lines": (answer_text._ANSWER_LINE, r"^[^\w\n]{0,10}(?:final )?answer(?: is)?\s{0,5}:(.*)$", re.IGNORECASE | re.MULTILINE),
    "names": (re.compile(families._NAME), r"<\|object_ref_start\|>((?:(?!<\|)[\s\S])*)<\|object_ref_end\|>", 0),
}  # fmt: skip
SCRAPS = [
    "$",
    "-",
    "1",
    ",000",
    ".5",
    " ",
    "%",
    "+",
    "12",
    "€",
    "²",
    "answer",
    " is",
    ":",
    "A",
    "B",
    "(",
    "选",
    "项",
    "答案",
    "\n",
    "\t",
    "I",
    "a ",
    "option ",
]
SCRAPS += [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<ANSWER>",
    "<",
    ">",
    "<zoom_roi",
    "{",
    "}",
    "A. ",
    "<|",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "1e",
    ".",
]


WHOLE = {"layout", "numbers in tags", "quantities"}
"""Those that must match a text from end to end."""


def test_patterns_match_what_simpler_ones_do() -> None:
    random = Random(0)
    for trial in range(4000):
        text = (
            changed_answer(random)[:500]
            if trial % 4 == 0
            else "".join(random.choice(SCRAPS) for _ in range(random.randint(1, 9)))
        )
        for name, (pattern, simple, flags) in TWINS.items():
            words, twin = task_zoom_qa.normal(text) if name == "quantities" else text, re.compile(simple, flags)
            if name in WHOLE:
                found, wanted = ((match := one.fullmatch(words)) and match.groups() for one in (pattern, twin))
            else:
                found, wanted = (one.findall(words) for one in (pattern, twin))
            assert found == wanted, (name, text)


@given(st.lists(st.sampled_from(["```", "json", "`", " ", "\n", "[1]", "a"])).map("".join))
def test_fences_are_those_that_a_pattern_finds(text: str) -> None:
    fence = re.compile(r"```(?:json)?(.*)```", re.DOTALL).fullmatch(text.strip())
    assert unfenced(text) == (fence.group(1) if fence else text)


@given(st.lists(st.sampled_from(["]", "`", " ", "\n", "1", "23", "456789", "x", "٣"])).map("".join))
def test_the_count_is_what_a_pattern_finds(text: str) -> None:
    """The number behind a list, which task_perception.py looks for from the end."""
    from activeo3.task_perception import _COUNT

    simple = re.compile(r"(.*[\]`])?\s*(\d{1,6})\s*", re.DOTALL).fullmatch(text)
    end = max(text.rfind("]"), text.rfind("`")) + 1
    said = _COUNT.fullmatch(text, end)
    assert (said and (text[:end], said.group(1))) == (simple and (simple.group(1) or "", simple.group(2)))


# ---------------------------------------------------------------------- limits


def test_what_is_beyond_the_limit_is_not_read() -> None:
    filler = "x" * MAX_CHARACTERS
    assert limited(filler + "y") == filler and without_thoughts(filler + "y") == filler
    assert read_turn(filler + "<answer>42</answer>").answer is None
    assert (
        answer_parsing.read_regions(f"<think>{filler}</think><answer>{boxes_answer([(1, 2, 3, 4)])}</answer>").error
        == "tags"
    )
    assert answer_parsing.final_text(filler + "B") == filler


def test_boxes_beyond_the_limit_are_not_read() -> None:
    many = [(1, 2, 3, 4)] * (MAX_BOXES + 5)
    for text in (boxes_answer(many), boxes_answer(many) + "]"):  # a list, and objects one by one
        assert len(answer_parsing.read_boxes(text).boxes_text) == MAX_BOXES
    assert len(boxes_in("[1,2,3,4]" * len(many))) == len(read_turn(boxes_answer(many)).calls) == MAX_BOXES


# ---------------------------------------------------------------------- JSON and Unicode


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)))
def test_what_is_decoded_is_json_or_nothing(value: Any) -> None:
    assert decoded(json.dumps(value)) == value and decoded(f" ```json\n{json.dumps(value)}``` ") == value
    for broken in (f"{json.dumps(value)}]", "[" * 100_000, f"[{'9' * 5000}]", ""):
        assert decoded(broken) is NO_JSON


def test_a_line_break_in_a_string_is_a_matter_of_strictness() -> None:
    assert decoded('["a\nb"]') is NO_JSON and decoded('["a\nb"]', strict=False) == ["a\nb"]


@given(st.text() | st.text("aeＢﬁ\u0301\u0327\u0308ﾞﾟｶ가 —").filter(bool))
def test_text_is_normalised_as_unicode_says(text: str) -> None:
    assert normalised(text) == unicodedata.normalize("NFKC", text)


def test_marks_that_pile_up_are_cut_apart() -> None:
    """Every character that can stand in such a pile is seen: one that is a mark, or turns into one."""
    marks = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.combining(unicodedata.normalize("NFKD", chr(code))[0])
    ]
    assert len(marks) > 900 and all(re.fullmatch(answer_text._MARK, mark) for mark in marks)
    pile = "e" + "\u0301\u0327" * 5000
    assert normalised(pile).startswith("\u0229\u0327") and len(normalised(pile)) == len(pile) - 1
    cuts = [0, *(match.end() for match in answer_text._PILE.finditer(pile)), len(pile)]
    assert max(b - a for a, b in zip(cuts, cuts[1:])) < 62
    assert normalised("e" + "\u0301\u0327" * 14) == unicodedata.normalize("NFKC", "e" + "\u0301\u0327" * 14)
