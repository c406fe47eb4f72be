"""The small form of tests/attack/answers.py: crafted and changed answers, and how much work they make."""

import sys
from random import Random
from types import FrameType
from typing import Any, Callable

import pytest
from attack import answers
from attack.answers import PIECES, READERS, REWARDS, SHAPES, Shape, _valid, changed_answer, faults_of, main, seconds_of
from hypothesis import given, settings
from hypothesis import strategies as st

SHORT = ["", " ", "a", "B", "7", ",", "]", "}", ">", "=", '"x0"', "is", "</answer>", "</think>"]
COST_NOTHING = ("find", "rfind", "startswith", "endswith")  # where they are called, they look at a bounded part


def operations(read: Callable[[str], Any], text: str) -> int:
    """The bytecodes that reading runs, and the characters of all texts whose methods it calls."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event == "c_call" and isinstance(owner := getattr(argument, "__self__", None), str):
            count += len(owner) * (argument.__name__ not in COST_NOTHING)

    before = sys.gettrace(), sys.getprofile()
    sys.setprofile(profile)
    sys.settrace(trace)
    try:
        read(text)
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    return count


def growth(read: Callable[[str], Any], shape: Shape, characters: int) -> float:
    """How many times as much work an answer of four times the length is, beyond what an answer of no length is."""
    least, short, long = (operations(read, shape.text(length)) for length in (0, characters, 4 * characters))
    return (long - least) / max(short - least, 10 * characters)


def test_operations_see_what_is_quadratic() -> None:
    def again_and_again(text: str) -> None:
        for _ in text:
            text.lower()

    def every_pair(text: str) -> int:
        return sum(a == b for a in text for b in text)

    for read in (again_and_again, every_pair):
        assert growth(read, Shape("", "a"), 100) > 12
    assert (
        growth(lambda text: [text.find("b", place, place + 5) for place in range(len(text))], Shape("", "a"), 200) < 5
    )


@pytest.mark.parametrize("name", READERS)
def test_the_work_of_a_reader_grows_with_the_answer_and_no_faster(name: str) -> None:
    for title, shape in SHAPES.items():
        assert growth(READERS[name], shape, 300) < 6, title


pieces = st.lists(st.sampled_from(sorted({*PIECES, *SHORT})), max_size=3).map("".join)


@given(begin=pieces, piece=pieces.filter(bool), end=pieces)
@settings(max_examples=25, derandomize=True, deadline=None)
def test_no_other_shape_is_found_on_which_it_does(begin: str, piece: str, end: str) -> None:
    for name, read in READERS.items():
        assert growth(read, Shape(begin, piece, end), 300) < 6, name


@pytest.mark.parametrize("name", sorted(SHAPES)[::6])
def test_ten_million_characters_are_read_in_a_second(name: str) -> None:
    """The last net, by the clock and wide: what bytecodes do not show, in patterns and in json."""
    text = SHAPES[name].text(10_000_000)
    assert sum(seconds_of(text, READERS).values()) < 5
    assert max(seconds_of(text, dict(list(REWARDS.items())[::5])).values()) < 5


def test_no_changed_answer_is_a_fault() -> None:
    random = Random(0)
    for _ in range(300):
        text = changed_answer(random)
        assert faults_of(text, random.sample(list(REWARDS), 3)) == [], text


def test_every_reward_takes_every_shape() -> None:
    for shape in SHAPES.values():
        assert faults_of(shape.text(200)) == []


def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(answers.READERS, "int", int)
    monkeypatch.setitem(answers.REWARDS, "float", lambda text: {"value": float(text)})
    assert [fault.partition(" ")[0] for fault in faults_of("nan", ["float"])] == ["int:", "float:"]
    assert main(["--trials", "1", "--characters", "0", "--rewards", "1"]) == 1  # no answer is a whole number


def test_valid_answers_are_well_formed() -> None:
    """The changes begin with answers that count: every reward pays for some of them."""
    random = Random(0)
    texts = [_valid(random) for _ in range(2000)]
    for name, reward in REWARDS.items():
        assert any(reward(text).get("total", 1.0) > 0 and max(reward(text).values()) > 0 for text in texts), name
