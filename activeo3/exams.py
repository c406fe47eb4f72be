"""The table of episodes: how policies do on questions in words, answer and way apart.

A right answer alone does not say that a policy looked; so every row also says what its turns came to.
"""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from activeo3 import report
from activeo3.config import EvalConfig, TrainConfig, _Config
from activeo3.files import Dataset
from activeo3.jobs import blocks
from activeo3.ledger import alone
from activeo3.models import VisionLanguageModel
from activeo3.sampler import look
from activeo3.schema import Example, Sampling, Score
from activeo3.stream import readable
from activeo3.tasks import Task, task_of
from activeo3.zooms import STATUSES


def exam(
    policies: Mapping[str, VisionLanguageModel],
    parts: Sequence[Sequence[Example]],
    task: Task,
    config: _Config,
    share: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]],
    worth: TrainConfig,
) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, columns) as report.table wants them: one greedy episode of every policy about every example.

    A row is a policy, by its title: the mean reward and its terms, and the share of all turns that came to
    each of zooms.STATUSES. ``share(work, parts)`` does the work on all ranks together; ``worth`` says what the
    reward is made of.
    """
    rows = []
    for title, policy in policies.items():

        def marks(block: Sequence[Example]) -> list[tuple[Score, tuple[str, ...]]]:
            _, groups = look(policy, block, 1, Sampling(0.0, task.longest(config)), config, task)
            told = [rollout for (rollout,) in groups]
            outcomes = task.act(policy, told, config)
            return [(task.score(one, outcome, worth), one.episode.statuses) for one, outcome in zip(told, outcomes)]

        scores, statuses = zip(*chain(*share(marks, parts)))
        turns = Counter(chain(*statuses))
        means = {"reward": float(np.mean([score.total for score in scores]))}
        means |= {term: float(np.mean([score.terms[term] for score in scores])) for term in task.terms}
        rows.append({"policy": title} | means | {name: turns[name] / turns.total() for name in STATUSES})
    seen = [name for name in STATUSES if any(row[name] for row in rows)]
    return rows, ["policy", "reward", *task.terms, *seen]


def evaluate(
    opened: Mapping[str, Dataset],
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    experts: Mapping[str, Any],
    config: EvalConfig,
    folder: Path,
) -> None:
    """Every benchmark: start policy and checkpoint, by the default reward; they look for themselves, not ``experts``."""
    policies = {"start": start, "trained": actor} if actor is not start else {"start": start}
    task, found, texts = task_of(config), [], []
    for name, dataset in opened.items():
        examples = readable(dataset)
        rows, columns = exam(policies, blocks(examples), task, config, alone, TrainConfig())
        found += [{"benchmark": name, "n": len(examples)} | row for row in rows]
        texts.append(report.table(rows, columns, f"{name} ({config.split}), {len(examples)} questions"))
        print(texts[-1])
    report.replace_file(folder / "results.json", (report.strict_json({"rows": found}) + "\n").encode())
    report.replace_file(folder / "results.md", ("\n\n".join(texts) + "\n").encode())
    print(f"numbers: {folder / 'results.json'}")
