"""Where each row of the table looks: regions from a policy, or from a rule that no model proposes.

A policy answers greedily, one answer per question; ``repeat`` samples one region at a time. The budget of
regions is in the prompt (the paper's wording names the number); the tiny policy's short prompt does not
say it, and there it is enforced by reading no more than so many regions of an answer.
"""

import zlib
from dataclasses import replace
from typing import Sequence

import numpy as np
import torch

from activeo3.config import Config
from activeo3.eval_baselines import RULES, from_unit
from activeo3.model import VisionLanguageModel
from activeo3.rollout import sample_rollouts
from activeo3.task_detection import Sense
from activeo3.tasks import Task
from activeo3.types import Example, ParsedAnswer, Region, Rollout

Regions = list[tuple[Region, ...]]
ASKED = ("cot", "active", "repeat")
"""The methods in which a policy is asked where to look."""


def propose(
    method: str,
    examples: Sequence[Example],
    policy: VisionLanguageModel | None,
    config: Config,
    fixed: np.ndarray | None = None,
) -> list[Rollout]:
    """Each example's regions, in original pixels, as the answer that proposed them; a rule says nothing.

    ``policy`` is who is asked in ``cot``, ``active`` and ``repeat``. ``fixed`` (K, 4) in 0-1 is what
    ``fit_fixed`` found, for the method of that name.
    """
    if method in ASKED:
        if method == "repeat":
            return repeated_look(policy, examples, config)
        return greedy_rollouts(policy, Sense(config), examples)
    if method == "fixed":
        regions = [from_unit(fixed[: config.regions], example.size_px) for example in examples]
    else:
        regions = [RULES[method](example, config.regions) for example in examples]
    return [Rollout(example, (), "", True, ParsedAnswer(()), of_one) for example, of_one in zip(examples, regions)]


def greedy_rollouts(policy: VisionLanguageModel, task: Task, examples: Sequence[Example]) -> list[Rollout]:
    """One greedy answer per example, all in one batch."""
    _, groups = sample_rollouts(policy, task, examples)
    return [rollout for (rollout,) in groups]


def repeated_look(policy: VisionLanguageModel, examples: Sequence[Example], config: Config) -> list[Rollout]:
    """One region per answer, from K answers sampled at temperature 1, which are joined into one.

    What is drawn depends on the seed and the examples alone, not on what was sampled before.
    """
    task = Sense(replace(config, regions=1))
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(repr((config.seed, [example.id for example in examples])).encode()))
        _, groups = sample_rollouts(policy, task, examples, config.regions, task.sampling(1.0))
    return [_one_answer(group) for group in groups]


def _one_answer(answers: Sequence[Rollout]) -> Rollout:
    """Several answers about one example as a single one; their texts stand one below the other."""
    errors = [answer.action.error for answer in answers if answer.action.error]
    boxes = tuple(box for answer in answers for box in answer.action.boxes_text)
    return Rollout(
        example=answers[0].example,
        token_ids=tuple(token for answer in answers for token in answer.token_ids),
        text="\n".join(answer.text for answer in answers),
        finished=all(answer.finished for answer in answers),
        action=ParsedAnswer(boxes, error=errors[0] if errors else None),
        regions=tuple(region for answer in answers for region in answer.regions),
    )
