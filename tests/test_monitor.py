"""monitor.py: what is not finite is counted, left out of every mean and named; a run that cannot learn is told once."""

import json
import math
from typing import Any, Sequence

import numpy as np
import pytest
from PIL import Image

from activeo3.config import ConfigError
from activeo3.log import strict_json
from activeo3.monitor import ZERO_SPREAD_STEPS, TrainingMonitor, faults, lost, step_row
from activeo3.types import Example, ParsedAnswer, Reward, Rollout


def row(step: int, **values: float) -> dict[str, Any]:
    """The row of a healthy step, but for ``values``."""
    return {
        "step": step,
        "skipped_steps": 0,
        "rewards_left_out": 0.0,
        "zero_spread": 0.25,
        "tokens/truncated": 0.0,
    } | values


def never() -> list[str]:
    raise AssertionError("names are gathered from all ranks only when they are needed")


def test_the_watch_names_examples_and_ends_a_run_that_only_skips() -> None:
    said: list[str] = []
    watch = TrainingMonitor(most=2, skipped=5)  # as after resuming a run that had skipped five
    watch.check(row(8, skipped_steps=5), never, never, said.append)
    watch.check(row(9, skipped_steps=6), lambda: ["b", "c"], never, said.append)
    watch.check(row(10, skipped_steps=6), never, never, said.append)
    watch.check(row(11, skipped_steps=7), lambda: ["e"], never, said.append)
    assert [line.partition(";")[2] for line in said] == [" examples: b, c", " examples: e"]
    assert said[0].startswith("step 9: loss or gradient not finite, update skipped")
    with pytest.raises(
        ConfigError, match=r"^2 steps in a row skipped an update because a loss or gradient was not finite; .*\.$"
    ):
        watch.check(row(12, skipped_steps=8), lambda: ["f"], never, said.append)
    assert "f" in said[-1]


def test_a_run_that_skips_too_often_ends_although_never_twice_in_a_row() -> None:
    """Every 9th update is skipped: the 11th such step is more than a tenth of the last hundred, before it all was
    allowed."""
    watch, skipped = TrainingMonitor(most=5, skipped=0), 0
    for step in range(1, 100):
        skipped += step % 9 == 0
        if skipped == 11:
            break
        watch.check(row(step, skipped_steps=skipped), lambda: ["a"], never, lambda said: None)
    assert step == 99
    with pytest.raises(ConfigError, match=r"^11 of the last 100 steps skipped an update .*\.$"):
        watch.check(row(step, skipped_steps=skipped), lambda: ["a"], never, lambda said: None)


@pytest.mark.parametrize("wrong", ["skipped_steps", "rewards_left_out"])
@pytest.mark.parametrize("cut", [1, 50, 98])
def test_an_interruption_forgives_nothing(cut: int, wrong: str) -> None:
    """As above, but the run is continued after step ``cut``, from rows that went through the file."""
    counts = [float(step // 9 if wrong == "skipped_steps" else step % 9 == 0) for step in range(1, 100)]
    rows = [json.loads(strict_json(row(step, **{wrong: count}))) for step, count in enumerate(counts, start=1)]
    watch = TrainingMonitor(most=5, skipped=int(rows[cut - 1]["skipped_steps"]))
    watch.recall(rows[:cut])
    for later in rows[cut:98]:
        watch.check(later, lambda: ["a"], lambda: ["a"], lambda said: None)
    with pytest.raises(ConfigError, match=r"^11 of the last 100 steps "):
        watch.check(rows[98], lambda: ["a"], lambda: ["a"], lambda said: None)


def test_what_was_skipped_long_ago_is_forgotten() -> None:
    watch, skipped = TrainingMonitor(most=5, skipped=0), 0
    for step in range(1, 1000):
        skipped += step % 10 == 0  # exactly a tenth
        watch.check(row(step, skipped_steps=skipped), lambda: ["a"], never, lambda said: None)


def watched(values: list[dict[str, float]]) -> list[str]:
    """What is said about a run whose steps have these values."""
    said: list[str] = []
    watch = TrainingMonitor(most=5, skipped=0)
    for step, changed in enumerate(values, start=1):
        watch.check(row(step, **changed), never, never, said.append)
    return said


def test_a_run_without_spread_is_told_once_what_to_look_at() -> None:
    flat, fine = {"zero_spread": 1.0}, {"zero_spread": 0.75}
    assert watched([flat] * (ZERO_SPREAD_STEPS - 1) + [fine] + [flat] * (ZERO_SPREAD_STEPS - 1)) == []
    (sentence,) = watched([fine] + [flat] * (3 * ZERO_SPREAD_STEPS) + [fine] + [flat] * (2 * ZERO_SPREAD_STEPS))
    assert sentence.startswith(f"step {ZERO_SPREAD_STEPS + 1}: for 10 steps ")
    assert all(word in sentence for word in ("format", "task model", "--max_new_tokens")) and "\n" not in sentence


def test_answers_that_are_cut_off_are_told_once() -> None:
    assert watched([{"tokens/truncated": 0.5}] * 20) == []
    (sentence,) = watched([{}, {"tokens/truncated": 0.6}, {"tokens/truncated": 0.9}, {}, {"tokens/truncated": 1.0}])
    assert sentence.startswith("step 2: more than half of the answers ") and "--max_new_tokens" in sentence
    assert len(watched([{"tokens/truncated": 1.0, "zero_spread": 1.0}] * 30)) == 2


# ---------------------------------------------------------------------- rewards that are no numbers


def answer(name: str, tokens: int = 3, finished: bool = True) -> Rollout:
    example = Example(name, Image.new("RGB", (8, 8)), "star", np.zeros((0, 4)))
    return Rollout(example, (7,) * tokens, "text", finished, ParsedAnswer((), (), None), ())


def scores_of(*totals: float) -> list[Reward]:
    """Rewards that are twice their task term, and half of it in format."""
    return [Reward({"format": total / 2, "task": total / 2}, total) for total in totals]


def row_of(scores: Sequence[Reward], scored: list[list[bool]]) -> dict[str, float]:
    answers = [answer(f"e/{i // len(scored[0])}", 3 + i) for i in range(len(scores))]
    return step_row(4, answers, scores, np.array(scored), 0, dict)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e31])
def test_a_reward_that_is_no_number_is_in_no_mean(bad: float) -> None:
    """As if its answer were not there; but its tokens were written, and count."""
    honest = [1.0, 2.0, 4.0, 0.5]
    scores = [
        *scores_of(*honest[:2]),
        Reward({"format": 1.0, "task": bad}, bad),
        *scores_of(*honest[2:]),
        Reward({"format": bad, "task": 0.0}, 0.0),
    ]
    row = row_of(scores, [[True, True, False], [True, True, False]])
    assert row["rewards_left_out"] == 2 and row["reward"] == sum(honest) / 4
    assert row["reward/format"] == row["reward/task"] == sum(honest) / 8
    assert row["reward_spread"] == (np.std(honest[:2]) + np.std(honest[2:])) / 2
    assert row["tokens/mean"] == 5.5


def test_a_step_without_any_number_is_a_row_of_valid_json() -> None:
    row = row_of([Reward({"task": math.nan}, math.nan)] * 4, [[False, False], [False, False]])
    assert row["rewards_left_out"] == 4 and row["reward_spread"] == 0
    line = json.loads(strict_json(row), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert line["reward"] is None and line["reward/task"] is None and line["tokens/mean"] == 4.5


def test_means_over_ranks_are_those_of_all_their_answers() -> None:
    """Two ranks, one of which has a reward that is no number: their sums are added, and then divided."""
    scores = [*scores_of(1.0, 2.0), *scores_of(5.0), Reward({"format": 0.0, "task": math.nan}, math.nan)]
    asked: list[dict[str, float]] = []
    for part in (scores[:2], scores[2:]):
        step_row(
            4,
            [answer("e")] * 2,
            part,
            np.array([[not score.faults for score in part]]),
            0,
            lambda sums: asked.append(sums) or sums,
        )
    both = {name: asked[0][name] + asked[1][name] for name in asked[0]}
    row = step_row(4, [answer("e")] * 2, scores[:2], np.array([[True, True]]), 0, lambda sums: both)
    assert (row["reward"], row["reward/task"], row["rewards_left_out"]) == (8 / 3, 4 / 3, 1)
    assert row["reward_spread"] == 0.25


def test_what_was_cut_off_is_not_compared_but_its_reward_is_reported() -> None:
    row = row_of(scores_of(1.0, 3.0, 9.0), [[True, True, False]])
    assert row["reward"] == 13 / 3 and row["reward_spread"] == 1.0 and row["rewards_left_out"] == 0


def test_a_reward_says_which_terms_are_no_numbers() -> None:
    wrong = [
        Reward({"format": 1.0, "task": math.nan}, math.nan),
        Reward({"format": 1.0, "task": 1e20}, math.inf),
        *scores_of(2.0),
    ]
    judged = [(answer(name), None, score) for name, score in zip("abca", [*wrong, wrong[0]])]
    assert faults(judged) == ["a (task nan)", "b (total inf)"]


def test_rewards_that_are_no_numbers_are_named_and_end_a_run() -> None:
    said: list[str] = []
    watch = TrainingMonitor(most=2, skipped=0)
    watch.check(row(1, rewards_left_out=2.0), never, lambda: ["a (task nan)", "b (task inf)"], said.append)
    watch.check(row(2), never, never, said.append)
    watch.check(row(3, rewards_left_out=1.0), never, lambda: ["c (task nan)"], said.append)
    assert said == [
        "step 1: 2 rewards not finite, left out of the group: a (task nan), b (task inf)",
        "step 3: 1 reward not finite, left out of the group: c (task nan)",
    ]
    with pytest.raises(
        ConfigError, match=r"^2 steps in a row had a reward that was not finite, the last one of d \(task nan\); .*\.$"
    ):
        watch.check(row(4, rewards_left_out=1.0), never, lambda: ["d (task nan)"], said.append)
    assert len(said) == 3


def test_a_run_says_at_its_end_what_it_has_lost() -> None:
    rows = [
        row(1),
        row(2, skipped_steps=1, rewards_left_out=2.0),
        row(3, skipped_steps=1, rewards_left_out=1.0),
        {"step": 4, "skipped_steps": 4},
    ]
    assert lost(rows) == "in 4 steps: 4 updates skipped and 3 rewards left out, because not finite"
    assert lost(rows[:1]) == lost([]) == "" and lost(rows[3:]) == "in 1 step: 4 updates skipped, because not finite"
