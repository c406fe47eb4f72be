"""After every step of train.py: its rewards as a row of numbers, and what goes wrong in a run, said in a sentence when it begins."""

import math
from collections import deque
from typing import Any, Callable, Iterable, Mapping, Sequence

import numpy as np

from activeo3.config import ConfigError
from activeo3.log import counted
from activeo3.terminal import one_line
from activeo3.types import Reward, Rollout, TaskResult

RECENT = 100  # steps over which what went wrong is counted
MOST_WRONG = 0.1  # share of them at which it may go wrong
FLAT_STEPS = 10  # steps in a row without any spread before a run is told that it does not learn
TOO_MANY_CUT = 0.5  # share of answers that hit the length limit
NOTHING_TO_LEARN = (
    f"for {FLAT_STEPS} steps all answers of every group earned the same, so there was nothing to learn; "
    f"look at the answers' format, at what the task model finds, and at --max_new_tokens"
)
CUT_OFF = (
    "more than half of the answers hit the length limit and were cut off; "
    "raise --max_new_tokens, or look at what they ramble about"
)

Names = Callable[[], Sequence[str]]
"""Names of all ranks, a collective."""


def step_row(
    step: int,
    answers: Sequence[Rollout],
    scores: Sequence[Reward],
    scored: np.ndarray,
    flat: int,
    totals: Callable[[dict[str, float]], dict[str, float]],
) -> dict[str, float]:
    """The rewards and lengths of one step as a row, over all ranks.

    ``scores`` (P*G) lie group after group; ``scored`` (P, G) is True where a reward is compared with its siblings'; ``flat``
    groups of this rank have no spread; ``totals`` sums values over ranks. Means of rewards are over those that are finite
    numbers, and NaN if none is; ``rewards_left_out`` is how many are not.
    """
    sound = [score for score in scores if not score.faults]
    rewards = np.array([0.0 if score.faults else score.total for score in scores]).reshape(scored.shape)  # (P, G)
    spreads = [float(group[kept].std()) if kept.any() else 0.0 for group, kept in zip(rewards, scored)]
    earned = {"reward": float(rewards.sum())}
    earned |= {f"reward/{name}": sum(score.terms[name] for score in sound) for name in scores[0].terms}
    others = {
        "tokens/mean": float(sum(len(answer.token_ids) for answer in answers)),
        "tokens/truncated": float(sum(not answer.finished for answer in answers)),
        "reward_spread": float(np.array(spreads).sum()) * scored.shape[1],
        "zero_spread": float(flat * scored.shape[1]),
    }
    sums = totals(earned | others | {"sound": float(len(sound)), "answers": float(len(answers))})
    means = {name: sums[name] / sums["sound"] if sums["sound"] else math.nan for name in earned}
    means |= {name: sums[name] / sums["answers"] for name in others}
    return {"step": step} | means | {"rewards_left_out": sums["answers"] - sums["sound"]}


def faults(judged: Iterable[tuple[Rollout, TaskResult, Reward]]) -> list[str]:
    """Every example with a reward that is no finite number, and the terms that are not: ``"scenes/7 (task nan)"``."""
    wrong = [(rollout.example.id, score) for rollout, _, score in judged if score.faults]
    parts = [
        (name, ", ".join(f"{term} {score.terms.get(term, score.total)}" for term in score.faults))
        for name, score in wrong
    ]
    return list(dict.fromkeys(f"{name} ({terms})" for name, terms in parts))


def lost(rows: Iterable[Mapping[str, float]]) -> str:
    """How many updates a run has skipped and how many rewards it has left out, by all of its rows; "" if there are none."""
    rows = list(rows)
    skipped, left_out = (
        max((row.get("skipped_steps", 0) for row in rows), default=0),
        sum(row.get("rewards_left_out", 0) for row in rows),
    )
    parts = [
        (skipped, f"{counted(int(skipped), 'update')} skipped"),
        (left_out, f"{counted(int(left_out), 'reward')} left out"),
    ]
    said = " and ".join(words for number, words in parts if number)
    return f"in {counted(len(rows), 'step')}: {said}, because not finite" if said else ""


class Trouble:
    """Counts the steps at which one thing went wrong: ``most`` in a row are too many, or MOST_WRONG of the last RECENT."""

    def __init__(self, most: int) -> None:
        self.most, self.in_a_row = most, 0
        self.recent: deque[bool] = deque(maxlen=RECENT)

    def too_much(self, wrong: bool) -> str:
        """Take in a step. Returns how many went wrong, in words, if these are too many; else ""."""
        self.in_a_row = self.in_a_row + 1 if wrong else 0
        self.recent.append(wrong)
        if self.in_a_row >= self.most:
            return f"{self.most} steps in a row"
        return f"{sum(self.recent)} of the last {RECENT} steps" if sum(self.recent) > MOST_WRONG * RECENT else ""


class TrainingMonitor:
    """Looks at every step's row: names what was not finite, and warns, once each, of what keeps a run from learning.

    A run ends after too many steps with a skipped update, or with a reward that is not finite (see ``Trouble``);
    ``skipped`` is how many updates were skipped before it began.
    """

    def __init__(self, most: int, skipped: int) -> None:
        self.skipped = skipped
        self.updates, self.rewards = Trouble(most), Trouble(most)
        self.flat_in_a_row = 0
        self.warned: set[str] = set()

    def recall(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count the steps of a run that is continued, by its rows, so that an interruption forgives nothing."""
        before = 0.0
        for row in rows:
            skipped = row.get("skipped_steps") or 0.0
            self.updates.too_much(skipped > before)
            self.rewards.too_much(bool(row.get("rewards_left_out")))
            self.flat_in_a_row = self.flat_in_a_row + 1 if row.get("zero_spread") == 1 else 0
            before = skipped

    def check(self, row: dict[str, float], ids: Names, faults: Names, say: Callable[[str], None]) -> None:
        """Look at a step's row; raises ConfigError after too many skipped updates, or rewards that are not finite.

        ``ids`` names the examples of all ranks, ``faults`` those with such a reward. Each is called only when it is needed:
        the row is the same on every rank, so all of them call it or none.
        """
        new, self.skipped = row["skipped_steps"] > self.skipped, row["skipped_steps"]
        if new:
            say(
                f"step {row['step']}: loss or gradient not finite, update skipped; examples: {', '.join(map(one_line, ids()))}"
            )
        if many := self.updates.too_much(new):
            raise ConfigError(
                f"{many} skipped an update because a loss or gradient was not finite; "
                f"lower --lr, or continue from the last checkpoint with another --seed in a new --output_dir."
            )
        named = ", ".join(map(one_line, faults())) if row["rewards_left_out"] else ""
        if named:
            say(
                f"step {row['step']}: {counted(int(row['rewards_left_out']), 'reward')} not finite, left out of the group: {named}"
            )
        if many := self.rewards.too_much(bool(named)):
            raise ConfigError(
                f"{many} had a reward that was not finite, the last one of {named}; look at what gives these terms: "
                f"the task model's answers about these examples, or the examples' own numbers."
            )
        self.flat_in_a_row = self.flat_in_a_row + 1 if row["zero_spread"] == 1 else 0
        if self.flat_in_a_row >= FLAT_STEPS:
            self._warn(row, NOTHING_TO_LEARN, say)
        if row["tokens/truncated"] > TOO_MANY_CUT:
            self._warn(row, CUT_OFF, say)

    def _warn(self, row: dict[str, float], sentence: str, say: Callable[[str], None]) -> None:
        """Say a sentence, but only the first time."""
        if sentence not in self.warned:
            self.warned.add(sentence)
            say(f"step {row['step']}: {sentence}")
