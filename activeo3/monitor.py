"""The row of a step: what its numbers mean, and warnings when a run goes wrong."""

import math
import re
from collections import deque
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

import numpy as np

from activeo3.answer_text import repeats
from activeo3.config import ConfigError
from activeo3.log import counted, table
from activeo3.terminal import one_line
from activeo3.types import Reward, Rollout, TaskResult

RECENT = 100  # steps over which bad steps are counted
MAX_WRONG = 0.1  # share of them that may be bad
ZERO_SPREAD_STEPS = 10  # steps in a row without any spread in a group, after which a run is warned
TOO_MANY_CUT = 0.5  # share of answers that hit the length limit
LOOP = 4  # copies of one piece
NOTHING_TO_LEARN = (
    f"for {ZERO_SPREAD_STEPS} steps all answers of every group earned the same, so there was nothing to learn; "
    f"look at the answers' format, at what the task model finds, and at --max_new_tokens"
)
CUT_OFF = (
    "more than half of the answers hit the length limit and were cut off; "
    "raise --max_new_tokens, or look at what they ramble about"
)

Names = Callable[[], Sequence[str]]
"""Names of all ranks, a collective."""


class Metric(NamedTuple):
    """What a logged number is: its unit, what it says, and what it looks like in a good run."""

    unit: str
    meaning: str
    healthy: str


_GLOSSARY = """
reward [points] weighted sum of the reward terms, mean over all answers
    rises, fast at first; at most 6 with the default weights
reward/format [0–1] the answer can be read as the boxes that were asked for
    above 0.9 after the first tens of steps, then stays there
reward/no_overlap [0–1] the proposed regions do not cover each other
    high; falling while coverage rises means repeated regions
reward/area [0–1] the regions have a sensible size, neither specks nor everything
    high; 0 means that the policy asks for the whole picture
reward/coverage [0–1] share of true boxes inside a region; of wrong pixels, less for large regions
    rises slowly: the regions are in the right place
reward/task [0–2] AP50 + AR50 of crops or answer, or a corrected mask's IoU
    rises with coverage; its ceiling is the task model on perfect regions
reward/iou [0–1] grounding: IoU of the box, or its square
    rises; the table's mIoU is its greedy twin
reward/match [0–1] counting: where the things are, F1 under the matching
    rises with the right number of places
reward/count [0–1] counting: right numbers, each paid as far as its places are right
    rises, later than match
reward/text [0–1] ocr: 1 - edit distance to the true text
    rises; near 1 for a model that reads
reward/location [0–1] detection: F1 of the boxes, each worth its IoU
    rises first
reward/class [0–1] detection: the same of those with the right name
    close to location; behind it where only boxes are learned
reward/number [0–1] detection: F1 of the hits
    rises slowly: this is what AP measures
reward/missing [-1–0] detection: minus the share of true things that no hit finds
    rises towards 0 while number does not fall
reward/answer [0–1] the episode's answer in words is right
    increases together with the zooms on tasks where zooming is required
reward/evidence [0–1] a zoom shows the evidence, and little else, for a right answer
    rises after the answers do; high answers without it are guesses
reward/calls [zooms] minus the number of zooms that were asked for
    settles where a zoom still pays for itself
price [points] with a target of zooms: what a zoom costs in this step
    rises while there are too many zooms, then levels off
reward_spread [points] standard deviation of the reward inside a group, mean
    clearly above 0; at 0 there is nothing to compare and to learn
zero_spread [0–1] share of groups with no spread: all rewards equal, advantage 0
    below 0.5; near 1 the step teaches nothing
rewards_left_out [answers] rewards that were NaN or infinite, left out of their group and of all means
    0; the log names the examples, and the run stops as for skipped_steps
kl [nats/token] k3 estimate of the distance to the frozen reference
    grows slowly from 0 and levels off; a jump is a policy running away
clip_fraction [0–1] share of sampled tokens whose ratio the clip holds back
    exactly 0 with one update per rollout, else below 0.2
ratio_max [×] largest new / old probability of a sampled token
    exactly 1 with one update per rollout, else below about 3
logp_difference/mean [nats/token] how far a token's log-probability when scored is from that when sampled, mean
    below 1e-5 in float32, about 0.01 in bfloat16; more means a wrong mask or kernel
logp_difference/max [nats] the same, of the token where it is largest
    below 1e-3 in float32, below about 1 in bfloat16; jumps mean a wrong mask or kernel
entropy [nats/token] how undecided the policy is, mean over sampled tokens
    falls slowly; near 0 early means that it has stopped exploring
grad_norm [–] length of the gradient before it is clipped
    steady; spikes now and then are fine, growth is not
loss [–] clipped surrogate plus KL penalty
    hovers around beta x kl: advantages have mean 0, so it shows no progress
lr [–] learning rate of this step
    the schedule you asked for
skipped_steps [steps] updates dropped because a loss or gradient was not finite, in total
    0; the run stops after --max_skipped in a row, or at more than 10 of the last 100 steps
tokens/mean [tokens] mean length of an answer, end token included
    settles; steady growth without reward is rambling
tokens/truncated [0–1] share of answers that were cut off, by the length limit or --stop_repeats
    near 0
tokens/repeating [0–1] share of answers that were cut off and end in four copies of one piece or more
    near 0; a model that has lost its way repeats itself to the limit
time/rollout [s] sampling the answers
    steady, follows tokens/mean
time/task_model [s] cropping, and the task model on all crops
    follows the regions
time/update [s] reference, loss, backward and update
    steady
time/step [s] one whole step by the clock
    a little more than its parts
memory_gb [GB] most memory that rank 0 has held, of its GPU if it has one
    flat after a few steps
"""
METRIC_GLOSSARY = {
    name: Metric(*words) for name, *words in re.findall(r"^(\S+) \[(.*?)\] (.*)\n    (.*)$", _GLOSSARY, re.MULTILINE)
}


def glossary_table() -> str:
    """METRIC_GLOSSARY as a Markdown table, as docs/metrics.md quotes it."""
    rows = [
        {"metric": f"`{name}`", "unit": metric.unit, "what it says": metric.meaning, "a healthy run": metric.healthy}
        for name, metric in METRIC_GLOSSARY.items()
    ]
    return table(rows, ["metric", "unit", "what it says", "a healthy run"])


# ---------------------------------------------------------------------- the row of a step


def step_row(
    step: int,
    answers: Sequence[Rollout],
    scores: Sequence[Reward],
    scored: np.ndarray,
    zero_std_groups: int,
    totals: Callable[[dict[str, float]], dict[str, float]],
) -> dict[str, float]:
    """The rewards and lengths of one step as a row, over all ranks.

    ``scores`` (P*G) lie group after group; ``scored`` (P, G) is True where a reward counts in its group;
    ``zero_std_groups`` is how many groups of this rank have no spread; ``totals`` sums values over ranks. Means of
    rewards are over finite ones, and NaN without any; ``rewards_left_out`` is the number of the others.
    """
    sound = [score for score in scores if not score.faults]
    rewards = np.array([0.0 if score.faults else score.total for score in scores]).reshape(scored.shape)  # (P, G)
    spreads = [float(group[kept].std()) if kept.any() else 0.0 for group, kept in zip(rewards, scored)]
    earned = {"reward": float(rewards.sum())}
    earned |= {f"reward/{name}": sum(score.terms[name] for score in sound) for name in scores[0].terms}
    others = {
        "tokens/mean": float(sum(len(answer.token_ids) for answer in answers)),
        "tokens/truncated": float(sum(not answer.finished for answer in answers)),
        "tokens/repeating": float(sum(not one.finished and repeats(one.token_ids, LOOP) for one in answers)),
        "reward_spread": float(np.array(spreads).sum()) * scored.shape[1],
        "zero_spread": float(zero_std_groups * scored.shape[1] * (scored.shape[1] > 1)),
    }
    sums = totals(earned | others | {"sound": float(len(sound)), "answers": float(len(answers))})
    means = {name: sums[name] / sums["sound"] if sums["sound"] else math.nan for name in earned}
    means |= {name: sums[name] / sums["answers"] for name in others}
    return {"step": step} | means | {"rewards_left_out": sums["answers"] - sums["sound"]}


def faults(scored: Iterable[tuple[Rollout, TaskResult, Reward]]) -> list[str]:
    """Every example with a reward that is no finite number, and the terms that are not: ``"scenes/7 (task nan)"``."""
    wrong = [(rollout.example.id, score) for rollout, _, score in scored if score.faults]
    parts = [
        (name, ", ".join(f"{term} {score.terms.get(term, score.total)}" for term in score.faults))
        for name, score in wrong
    ]
    return list(dict.fromkeys(f"{name} ({terms})" for name, terms in parts))


def lost(rows: Iterable[Mapping[str, float]]) -> str:
    """How many updates were skipped and rewards left out, by all rows of a run, in words; "" if none."""
    rows = list(rows)
    skipped, left_out = (
        max((row.get("skipped_steps", 0) for row in rows), default=0),
        sum(row.get("rewards_left_out", 0) for row in rows),
    )
    parts = [
        (skipped, f"{counted(int(skipped), 'update')} skipped"),
        (left_out, f"{counted(int(left_out), 'reward')} left out"),
    ]
    found = " and ".join(words for number, words in parts if number)
    return f"in {counted(len(rows), 'step')}: {found}, because not finite" if found else ""


class BadSteps:
    """Counts bad steps of one kind: ``most`` in a row are too many, or MAX_WRONG of the last RECENT."""

    def __init__(self, most: int) -> None:
        self.most, self.in_a_row = most, 0
        self.recent: deque[bool] = deque(maxlen=RECENT)

    def too_much(self, wrong: bool) -> str:
        """Count a step. Returns how many were bad, in words, if these are too many; else ""."""
        self.in_a_row = self.in_a_row + 1 if wrong else 0
        self.recent.append(wrong)
        if self.in_a_row >= self.most:
            return f"{self.most} steps in a row"
        return f"{sum(self.recent)} of the last {RECENT} steps" if sum(self.recent) > MAX_WRONG * RECENT else ""


class TrainingMonitor:
    """Checks every step's row: names what was not finite, and warns, once each, of what keeps a run from learning.

    A run ends after too many steps with a skipped update, or with a reward that is not finite (see ``BadSteps``);
    ``skipped`` is how many updates were skipped before it began.
    """

    def __init__(self, most: int, skipped: int) -> None:
        self.skipped = skipped
        self.updates, self.rewards = BadSteps(most), BadSteps(most)
        self.zero_spread_in_a_row = 0
        self.warned: set[str] = set()

    def recall(self, rows: Iterable[Mapping[str, Any]], settle: Callable[[Mapping[str, Any]], Any] = dict) -> None:
        """Count the steps of a run that is continued, by its rows, so that an interruption forgives nothing; ``settle``
        is what else has to see each of them again, tasks.Task.settle."""
        before = 0.0
        for row in rows:
            skipped = row.get("skipped_steps") or 0.0
            self.updates.too_much(skipped > before)
            self.rewards.too_much(bool(row.get("rewards_left_out")))
            self.zero_spread_in_a_row = self.zero_spread_in_a_row + 1 if row.get("zero_spread") == 1 else 0
            before = skipped
            settle(row)

    def check(self, row: dict[str, float], ids: Names, faults: Names, say: Callable[[str], None]) -> None:
        """Look at a step's row; raises ConfigError after too many skipped updates, or rewards that are not finite.

        ``ids`` names the examples of all ranks, ``faults`` those with such a reward. Each is called only when it is
        needed: the row is the same on every rank, so all of them call it or none.
        """
        new, self.skipped = row["skipped_steps"] > self.skipped, row["skipped_steps"]
        if new:
            named = ", ".join(map(one_line, ids()))
            say(f"step {row['step']}: loss or gradient not finite, update skipped; examples: {named}")
        if many := self.updates.too_much(new):
            raise ConfigError(
                f"{many} skipped an update because a loss or gradient was not finite; "
                f"lower --lr, or continue from the last checkpoint with another --seed in a new --output_dir."
            )
        named = ", ".join(map(one_line, faults())) if row["rewards_left_out"] else ""
        if named:
            count = counted(int(row["rewards_left_out"]), "reward")
            say(f"step {row['step']}: {count} not finite, left out of the group: {named}")
        if many := self.rewards.too_much(bool(named)):
            raise ConfigError(
                f"{many} had a reward that was not finite, the last one of {named}; look at what gives these terms: "
                f"the task model's answers about these examples, or the examples' own numbers."
            )
        self.zero_spread_in_a_row = self.zero_spread_in_a_row + 1 if row["zero_spread"] == 1 else 0
        if self.zero_spread_in_a_row >= ZERO_SPREAD_STEPS:
            self._warn(row, NOTHING_TO_LEARN, say)
        if row["tokens/truncated"] > TOO_MANY_CUT:
            self._warn(row, CUT_OFF, say)

    def watch(
        self,
        row: dict[str, float],
        samples: Sequence[tuple[Rollout, TaskResult, Reward]],
        gather: Callable[[list[str]], list[list[str]]],
        say: Callable[[str], None],
    ) -> None:
        """``check``, with the names taken from this rank's samples; ``gather`` is engine.Distributed.all_gather."""
        ids = list(dict.fromkeys(rollout.example.id for rollout, _, _ in samples))
        self.check(row, lambda: sum(gather(ids), []), lambda: sum(gather(faults(samples)), []), say)

    def _warn(self, row: dict[str, float], sentence: str, say: Callable[[str], None]) -> None:
        """Print a sentence, but only the first time."""
        if sentence not in self.warned:
            self.warned.add(sentence)
            say(f"step {row['step']}: {sentence}")
