"""task_zoom_qa.py: right is right however it is written, and no way of zooming is worth more than a right answer."""

import math
import random
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from activeo3 import geometry
from activeo3 import task_zoom_qa as room
from activeo3.config import TrainConfig
from activeo3.data_io import DataError
from activeo3.data_scenes import example, scene
from activeo3.drawing import NOTHING
from activeo3.geometry import Frame, as_boxes
from activeo3.monitor import TrainingMonitor
from activeo3.task_zoom_qa import asked_of, evidence, likeness, quantity, rightness, terms
from activeo3.types import VQA, Episode, Example, ParsedAnswer, Region, Rollout, Zoom
from activeo3.zoom_calls import Limits, check_zoom, read_turn

SIZE = (1000, 1000)
FRAME = Frame((0, 0, 1000, 1000), (1000, 1000))
EVIDENCE = as_boxes([[700, 80, 940, 280]])  # the region on which the reference system was measured
QUESTION = VQA("What number?", ("42",), evidence_px=EVIDENCE)
WEIGHTS = {"answer": 1.0, "evidence": 0.35, "calls": 0.05}


# ---------------------------------------------------------------------- is the answer right?

EXACT = {
    "42": 1, " 42 ": 1, "42.": 1, '"42"': 1, "`42`.": 1, "４２": 1, "forty  Two": 1, "FORTY TWO": 1,
    "42.0": 0, "4 2": 0, "": 0, "142": 0, "42 43": 0, "-42": 0, ".": 0,
}  # fmt: skip


@pytest.mark.parametrize("said", EXACT)
def test_exact_answers_and_their_aliases(said: str) -> None:
    assert rightness(said, VQA("?", ("42", "forty two"))) == EXACT[said]
    assert rightness(None, VQA("?", ("42",))) == 0.0


NUMBERS = {
    # (said, right, tolerance): is it?
    ("42.0", "42", 0.0): True, ("$1,284.50", "1284.5", 0.0): True, ("1,284", "$1284", 0.0): True,
    ("12%", "12", 0.0): True, ("12 %", "$12", 0.0): False, ("-3", "3", 0.0): False, ("€ 5", "$5", 0.0): False,
    ("105", "100", 0.05): True, ("105.1", "100", 0.05): False, ("0.01", "0", 0.5): False, ("-95", "-100", 0.05): True,
    ("twelve", "12", 0.0): False, ("12 apples", "12", 0.0): False, ("1,28", "128", 0.0): False, ("1e3", "1000", 0.0): False,
    ("nan", "12", 0.0): False, ("", "0", 0.0): False, ("1" * 400, "1", 0.5): False,
}  # fmt: skip


@pytest.mark.parametrize("said, right, tolerance", NUMBERS)
def test_numbers(said: str, right: str, tolerance: float) -> None:
    asked = VQA("?", (right,), "number", tolerance=tolerance)
    assert rightness(said, asked) == float(NUMBERS[said, right, tolerance])


@given(st.floats(0.01, 1e9, allow_nan=False))
def test_a_number_is_itself_in_every_notation(value: float) -> None:
    for text in (f"{value:.2f}", f"{value:,.2f}", f"${value:,.2f}", f" {value:.2f} %"):
        assert quantity(text)[0] == pytest.approx(float(f"{value:.2f}"))


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_likeness_follows_the_recursive_definition_of_edits(a: str, b: str) -> None:
    def recursive(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(recursive(i - 1, j) + 1, recursive(i, j - 1) + 1, recursive(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    alike = 1 - recursive(len(a), len(b)) / max(len(a), len(b), 1)
    assert likeness(a, b) == pytest.approx(alike if alike >= 0.5 else 0.0) == likeness(b, a)


def anls_of_the_script(said: str, answers: list[str]) -> float:
    """DocVQA's own script, written again: the least normalised distance, and nothing below a likeness of 0.5."""

    def distance(a: str, b: str) -> int:
        row = list(range(len(b) + 1))
        for i, letter in enumerate(a, 1):
            row, above = [i], row
            for j, other in enumerate(b, 1):
                row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != other)))
        return row[-1]

    tidy = [" ".join(text.strip().lower().split()) for text in (said, *answers)]
    shares = [
        distance(text, tidy[0]) / max(len(answer.upper()), len(said.upper())) for text, answer in zip(tidy[1:], answers)
    ]
    return 1 - min(shares) if 1 - min(shares) >= 0.5 else 0.0


def test_anls_is_that_of_docvqas_script() -> None:
    drawn = random.Random(0)
    for _ in range(200):
        said, *answers = ("".join(drawn.choices("aAbB1$ ", k=drawn.randint(1, 7))).strip() or "x" for _ in range(3))
        said, answers = (
            " ".join(said.split()),
            [" ".join(answer.split()) for answer in answers],
        )  # else see the deviation
        assert rightness(said, VQA("?", tuple(answers), "anls")) == pytest.approx(anls_of_the_script(said, answers))


def test_anls_as_docvqa_defines_it() -> None:
    assert likeness("ITC  Limited", "itc limited") == 1.0
    assert likeness("abcd", "abxy") == 0.5 and likeness("abcd", "axyz") == 0.0  # tau itself counts
    assert likeness("", "") == 1.0 and likeness("", "a") == 0.0
    assert rightness("abcde", VQA("?", ("x", "abcdx", "abcd"), "anls")) == pytest.approx(0.8)  # the best of the aliases


def test_a_choice_is_read_as_the_benchmarks_read_it() -> None:
    asked = VQA("?", ("B",), "choice", ("The dog is red.", "blue", "green", "dark blue"))
    assert [rightness(text, asked) for text in ("b", "(B)", "B) blue", "B - blue", "BLUE", "The answer is B.")] == [
        1.0
    ] * 6
    assert [rightness(text, asked) for text in ("", "E", "red", "dark blue", "A or B", "green")] == [0.0] * 6


@given(st.text(max_size=30), st.sampled_from(room.KINDS))
def test_no_answer_is_an_exception(said: str, kind: str) -> None:
    assert 0.0 <= rightness(said, VQA("?", ("42",), kind, ("red", "blue"))) <= 1.0


def test_examples_ask_their_reading_question() -> None:
    asked = asked_of(picture := example("test", 3))
    assert (asked.question, asked.answers, asked.scored_by) == ("What number is on the plate?", ("59",), "exact")
    assert asked.evidence_px.tolist() == picture.vqa.evidence_px.tolist() == [list(scene("test", 3).plate_px)]


def test_an_example_that_asks_nothing_is_one_sentence() -> None:
    picture = example("test", 3)
    mute = type(picture)("a", picture.image, "red star", picture.boxes_px)
    with pytest.raises(DataError, match="^example a asks nothing that is answered in words"):
        asked_of(mute)
    odd = type(picture)("a", picture.image, "?", vqa=VQA("?", ("1",), "poem"))
    with pytest.raises(DataError, match="example a has an answer of kind 'poem'; known are exact, number"):
        asked_of(odd)


# ---------------------------------------------------------------------- did it look where the evidence is?

boxes = st.lists(
    st.tuples(*[st.integers(0, 30)] * 4).map(
        lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1]
    ),
    max_size=4,
)


def raster(drawn: list[list[int]]) -> np.ndarray:
    canvas = np.zeros((32, 32), dtype=bool)
    for x1, y1, x2, y2 in drawn:
        canvas[y1:y2, x1:x2] = True
    return canvas


@given(boxes, boxes)
def test_evidence_counts_pixels_once(regions: list, truth: list) -> None:
    """Against pictures of the boxes, pixel by pixel."""
    seen, wanted = raster(regions), raster(truth)
    assert geometry.union_area(as_boxes(regions)) == seen.sum()
    expected = (seen & wanted).sum() / wanted.sum() * (1 - seen.mean()) if wanted.any() else 0.0
    assert evidence(as_boxes(regions), as_boxes(truth), (32, 32)) == pytest.approx(expected, abs=1e-12)


@given(boxes, boxes, st.randoms())
def test_neither_repeats_nor_order_earn_anything(regions: list, truth: list, chance: random.Random) -> None:
    once = evidence(as_boxes(regions), as_boxes(truth), (32, 32))
    again = regions * 3
    chance.shuffle(again)
    assert evidence(as_boxes(again), as_boxes(truth), (32, 32)) == once
    assert evidence(as_boxes([*regions, [0, 0, 32, 32]]), as_boxes(truth), (32, 32)) == 0.0


@given(boxes, boxes)
def test_a_look_at_nothing_new_never_earns(regions: list, truth: list) -> None:
    for extra in regions:
        beside = [box for box in truth if geometry.intersection(as_boxes([box]), as_boxes([extra]))[0, 0] == 0]
        with_extra, without = (
            evidence(as_boxes(part), as_boxes(beside), (32, 32))
            for part in (regions, [r for r in regions if r != extra])
        )
        assert with_extra <= without + 1e-12


# ---------------------------------------------------------------------- the hacks, measured on the reference system

TARGETED = '<zoom_roi x0="0.7" y0="0.08" x1="0.94" y1="0.28" />'
WHOLE = '<zoom_roi x0="0" y0="0" x1="1" y1="1" />'
TRACES: dict[str, tuple[bool, str, float]] = {
    # name: (is the answer right, what was zoomed, the reference system's score)
    "right, targeted": (True, TARGETED, 1.385),
    "right, no zoom": (True, "", 0.9475),
    "right, whole picture": (True, WHOLE, 1.357),
    "right, irrelevant": (True, '<zoom_roi x0="0.1" y0="0.5" x1="0.4" y1="0.9" />', 1.035),
    "right, tiny": (True, '<zoom_roi x0="0.7" y0="0.08" x1="0.71" y1="0.09" />', 0.9125),
    "right, reversed": (True, '<zoom_roi x0="0.94" y0="0.28" x1="0.7" y1="0.08" />', 0.8775),
    "right, malformed": (True, '<zoom_roi x0="left" y0="0.1" x1="0.5" y1="0.4" />', 0.8775),
    "wrong, targeted": (False, TARGETED, 0.385),
    "wrong, targeted x3": (False, TARGETED * 3, 1.155),
    "wrong, whole picture x3": (False, WHOLE * 3, 1.071),
    "wrong, no zoom": (False, "", -0.0525),
}


def zooms_of(trace: str) -> list[Zoom]:
    """What the calls of a trace come to on the whole picture, each in a turn of its own."""
    said = [read_turn(part + ">") for part in trace.split(">") if part]
    return [check_zoom(turn.call, FRAME, Limits(most=1.0)) if turn.call else Zoom("malformed_zoom") for turn in said]


def total(name: str, **how: bool) -> float:
    right, trace, _ = TRACES[name]
    parts = terms("42" if right else "41", zooms_of(trace), QUESTION, SIZE, **how)
    return sum(WEIGHTS[term] * value for term, value in parts.items())


@pytest.mark.parametrize("name", TRACES)
def test_the_formula_of_the_reference_gives_its_measured_values(name: str) -> None:
    assert total(name, per_call=True) == pytest.approx(TRACES[name][2], abs=1e-12)


def test_the_reference_can_be_farmed_and_ours_cannot() -> None:
    assert (
        total("wrong, targeted x3", per_call=True)
        > total("wrong, whole picture x3", per_call=True)
        > total("right, no zoom", per_call=True)
    )
    ours = {name: total(name) for name in TRACES}
    right, wrong = ([ours[name] for name in TRACES if name.startswith(side)] for side in ("right", "wrong"))
    assert min(right) > max(wrong)
    assert ours["right, targeted"] > ours["right, no zoom"]  # looking pays,
    assert ours["right, no zoom"] > max(
        ours[name] for name in TRACES if name.startswith("right") and name.split(", ")[1] not in ("targeted", "no zoom")
    )  # but only in the right place
    assert (
        ours["wrong, no zoom"] > ours["wrong, targeted"] > ours["wrong, targeted x3"] == ours["wrong, whole picture x3"]
    )
    assert ours["right, targeted"] == pytest.approx(1 + 0.35 * (1 - 0.24 * 0.2) - 0.05)


def test_even_without_the_gate_no_wrong_answer_beats_a_right_one() -> None:
    ungated = {name: total(name, gated=False) for name in TRACES}
    assert max(ungated[name] for name in TRACES if name.startswith("wrong")) < min(
        ungated[name] for name in TRACES if name.startswith("right")
    )
    assert ungated["wrong, targeted"] > ungated["wrong, targeted x3"] > ungated["wrong, whole picture x3"]


def test_a_cost_among_right_answers_only_and_one_that_is_not_divided() -> None:
    """Whatever is not asked for stays: answer and evidence, and the total."""
    for right, calls in product((True, False), (0, 2)):
        episode = Episode(("answered",), tuple(zooms_of(TARGETED * calls)), "42" if right else "41")
        picture = Example("x", Image.new("RGB", SIZE), "?", vqa=QUESTION)
        rollout = Rollout(picture, (), "", True, ParsedAnswer(()), (), episode=episode)
        plain, gated, apart = (
            room.ZoomQA(TrainConfig(task="zoom_qa", **how)).reward(rollout, NOTHING)
            for how in ({}, {"cost_gate": True}, {"divide_costs": False})
        )
        assert plain.terms["calls"] == -calls and gated.terms == plain.terms | {"calls": -calls * right}
        assert gated.total == pytest.approx(plain.total + (0 if right else 0.05 * calls))
        assert plain.parts == (plain.total, 0.0) and gated.parts == (gated.total, 0.0)
        assert apart.total == plain.total and apart.cost == pytest.approx(-0.05 * calls)
        assert apart.parts == (pytest.approx(plain.total + 0.05 * calls), apart.cost)


def test_the_price_of_a_zoom_follows_the_target_and_a_continued_run_finds_it_again() -> None:
    looks = [2.0, 1.5, 0.5, 0.0, 0.0, 3.0, math.nan]
    task = room.ZoomQA(TrainConfig(task="zoom_qa", reward_weights=("calls=0.02",), zooms_target=1.0, price_rate=0.03))
    rows = [task.settle({"step": step, "reward/calls": -paid}) for step, paid in enumerate(looks)]
    assert [row["price"] for row in rows] == pytest.approx([0.02, 0.05, 0.065, 0.05, 0.02, 0.0, 0.06])
    again = room.ZoomQA(task.config)
    TrainingMonitor(5, 0).recall(rows, again.settle)
    assert again.weights == task.weights and task.weights["calls"] == pytest.approx(0.06)
    fixed = room.ZoomQA(TrainConfig(task="zoom_qa"))
    assert fixed.settle(rows[0]) == rows[0] and fixed.weights["calls"] == 0.05


def test_a_call_beyond_the_third_costs_the_reference_a_tenth() -> None:
    three, four = (terms("41", zooms_of(TARGETED * n), QUESTION, SIZE, per_call=True)["evidence"] for n in (3, 4))
    assert four - three == pytest.approx(-0.10)


def test_the_weights_of_a_run_keep_the_order() -> None:
    """With the defaults, a right answer after every zoom that a run allows is worth more than any wrong one."""
    config, weights = TrainConfig(), room.ZoomQA.terms
    assert {name: weights[name] for name in WEIGHTS} == WEIGHTS
    assert weights["answer"] - config.max_turns * weights["calls"] > weights["evidence"]


def test_a_region_that_was_refused_was_not_looked_at() -> None:
    for status in ("too_small", "too_large", "zoom_limit"):
        zooms = [Zoom(status, Region(700, 80, 940, 280), 0.048)]
        assert terms("42", zooms, QUESTION, SIZE) == {"answer": 1.0, "evidence": 0.0, "calls": -1.0}


def test_evidence_does_not_depend_on_the_order_of_nested_looks() -> None:
    looks = [
        Zoom("zoom_executed", Region(*box)) for box in ((600, 0, 1000, 400), (700, 80, 940, 280), (0, 0, 100, 100))
    ]
    values = {terms("42", order, QUESTION, SIZE)["evidence"] for order in permutations(looks)}
    assert len(values) == 1 and values.pop() == pytest.approx(1 - 0.17)
