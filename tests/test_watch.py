"""watch.py: a skipped update is named every time, a run that cannot learn is told once."""

from typing import Any

import pytest

from activeo3.config import ConfigError
from activeo3.watch import FLAT_STEPS, Watch


def row(step: int, **values: float) -> dict[str, Any]:
    """The row of a healthy step, but for ``values``."""
    return {"step": step, "skipped_steps": 0, "zero_spread": 0.25, "tokens/truncated": 0.0} | values


def never() -> list[str]:
    raise AssertionError("names are gathered from all ranks only when they are needed")


def test_the_watch_names_examples_and_ends_a_run_that_only_skips() -> None:
    said: list[str] = []
    watch = Watch(most=2, skipped=5)  # as after resuming a run that had skipped five
    watch.check(row(8, skipped_steps=5), never, said.append)
    watch.check(row(9, skipped_steps=6), lambda: ["b", "c"], said.append)
    watch.check(row(10, skipped_steps=6), never, said.append)
    watch.check(row(11, skipped_steps=7), lambda: ["e"], said.append)
    assert [line.partition(";")[2] for line in said] == [" examples: b, c", " examples: e"]
    assert said[0].startswith("step 9: loss or gradient not finite, update skipped")
    with pytest.raises(ConfigError, match=r"^2 updates in a row were skipped .*\.$"):
        watch.check(row(12, skipped_steps=8), lambda: ["f"], said.append)
    assert "f" in said[-1]


def test_a_run_that_skips_too_often_ends_although_never_twice_in_a_row() -> None:
    """Every 9th update is skipped: the 11th such step is more than a tenth of the last hundred, before it all was allowed."""
    watch, skipped = Watch(most=5, skipped=0), 0
    for step in range(1, 100):
        skipped += step % 9 == 0
        if skipped == 11:
            break
        watch.check(row(step, skipped_steps=skipped), lambda: ["a"], lambda said: None)
    assert step == 99
    with pytest.raises(ConfigError, match=r"^11 of the last 100 steps were skipped .*\.$"):
        watch.check(row(step, skipped_steps=skipped), lambda: ["a"], lambda said: None)


def test_what_was_skipped_long_ago_is_forgotten() -> None:
    watch, skipped = Watch(most=5, skipped=0), 0
    for step in range(1, 1000):
        skipped += step % 10 == 0  # exactly a tenth
        watch.check(row(step, skipped_steps=skipped), lambda: ["a"], lambda said: None)


def watched(values: list[dict[str, float]]) -> list[str]:
    """What is said about a run whose steps have these values."""
    said: list[str] = []
    watch = Watch(most=5, skipped=0)
    for step, changed in enumerate(values, start=1):
        watch.check(row(step, **changed), never, said.append)
    return said


def test_a_run_without_spread_is_told_once_what_to_look_at() -> None:
    flat, fine = {"zero_spread": 1.0}, {"zero_spread": 0.75}
    assert watched([flat] * (FLAT_STEPS - 1) + [fine] + [flat] * (FLAT_STEPS - 1)) == []
    (sentence,) = watched([fine] + [flat] * (3 * FLAT_STEPS) + [fine] + [flat] * (2 * FLAT_STEPS))
    assert sentence.startswith(f"step {FLAT_STEPS + 1}: for 10 steps ")
    assert all(word in sentence for word in ("format", "task model", "--max_new_tokens")) and "\n" not in sentence


def test_answers_that_are_cut_off_are_told_once() -> None:
    assert watched([{"tokens/truncated": 0.5}] * 20) == []
    (sentence,) = watched([{}, {"tokens/truncated": 0.6}, {"tokens/truncated": 0.9}, {}, {"tokens/truncated": 1.0}])
    assert sentence.startswith("step 2: more than half of the answers ") and "--max_new_tokens" in sentence
    assert len(watched([{"tokens/truncated": 1.0, "zero_spread": 1.0}] * 30)) == 2
