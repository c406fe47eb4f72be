"""The last lines of a run of episodes: how policies do on held-out questions, answer and way apart.

A right answer alone does not say that a policy looked; so every row also says what its turns came to.
"""

from collections import Counter
from itertools import chain
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from activeo3.config import TrainConfig
from activeo3.models import VisionLanguageModel
from activeo3.sampler import look
from activeo3.schema import Example, Sampling, Score
from activeo3.tasks import Task
from activeo3.zooms import STATUSES


def exam(
    policies: Mapping[str, VisionLanguageModel],
    blocks: Sequence[Sequence[Example]],
    task: Task,
    config: TrainConfig,
    share: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, columns) as report.table wants them: one greedy episode of every policy about every example.

    A row is a policy, by its title: the mean reward and its terms, and the share of all turns that came to
    each of zooms.STATUSES. ``share(work, parts)`` does the work on all ranks together.
    """
    rows = []
    for title, policy in policies.items():

        def marks(block: Sequence[Example]) -> list[tuple[Score, tuple[str, ...]]]:
            _, groups = look(policy, block, 1, Sampling(0.0, task.longest(config)), config, task)
            told = [rollout for (rollout,) in groups]
            outcomes = task.act(policy, told, config)
            return [(task.score(one, outcome, config), one.episode.statuses) for one, outcome in zip(told, outcomes)]

        scores, statuses = zip(*chain(*share(marks, blocks)))
        turns = Counter(chain(*statuses))
        means = {"reward": float(np.mean([score.total for score in scores]))}
        means |= {term: float(np.mean([score.terms[term] for score in scores])) for term in task.terms}
        rows.append({"policy": title} | means | {name: turns[name] / turns.total() for name in STATUSES})
    seen = [name for name in STATUSES if any(row[name] for row in rows)]
    return rows, ["policy", "reward", *task.terms, *seen]
