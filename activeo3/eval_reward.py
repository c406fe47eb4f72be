"""The benchmark of a task of the user's: what greedy answers earn, the reward and its terms, for every policy.

python evaluate.py --checkpoint DIR --task my_task.py:MyTask
"""

from typing import Any, Sequence

import numpy as np

from activeo3 import intervals
from activeo3.config import TrainConfig
from activeo3.eval_baselines import greedy_rollouts
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import (
    Benchmark,
    Map,
    Method,
    Models,
    Setting,
    blackened,
    result_of,
    result_record,
    rollout_of,
    rollout_record,
)
from activeo3.eval_runner import Record
from activeo3.samples import Sample
from activeo3.task_models import TaskModel
from activeo3.types import Example, Reward


class RewardBenchmark(Benchmark):
    """One greedy answer about every example, of every policy; ``--black`` shows black images."""

    methods = {"answer": Method(policy="every", zooms=False)}
    default_methods = ("answer",)

    def __init__(self, name: str, config: EvalConfig, rewards: TrainConfig | None = None) -> None:
        super().__init__(name, config, rewards)
        self.columns = ("reward", *self.task.weights, "tokens", "seconds")  # type: ignore[misc]

    def task_models(self, method: str, policy: str, models: Models) -> list[str]:
        return list(models.task_models) if self.task.crops else [""]

    def predict(self, setting: Setting, examples: Sequence[Example], models: Models, map: Map) -> list[Record]:
        policy, task_model = models[setting.policy], models.task_models.get(setting.task_model) or TaskModel()

        def work(block: Sequence[Example]) -> list[Record]:
            shown = self.task.prepare_batch(task_model, blackened(block) if setting.blind else block)
            rollouts = greedy_rollouts(policy, self.task, shown)
            results = self.task.act(task_model, rollouts)
            rewards = [self.task.reward(*pair) for pair in zip(rollouts, results)]
            return [
                rollout_record(one)
                | {"found": result_record(result)}
                | {"reward": reward.total, "terms": dict(reward.terms)}
                for one, result, reward in zip(rollouts, results, rewards)
            ]

        weights = sorted(self.task.weights.items())
        return map(work, examples, ("reward", policy, task_model, self.task.config, setting.blind, weights))

    def metrics(self, setting: Setting, examples: Sequence[Example], records: Sequence[Record]) -> dict[str, Any]:
        """Means of the reward, its terms and the answers' lengths, with intervals over images."""
        images, resamples = [example.image_id for example in examples], self.config.resamples
        values = {"reward": [record["reward"] for record in records]}
        values |= {name: [record["terms"][name] for record in records] for name in self.task.weights}
        values |= {"tokens": [float(len(record["token_ids"])) for record in records]}
        found = {name: intervals.bootstrap_interval(column, images, resamples) for name, column in values.items()}
        return found | {"seconds": float(np.mean([record["seconds"] for record in records]))}

    def sample(self, example: Example, record: Record, title: str) -> Sample:
        reward = Reward(record["terms"], record["reward"])
        return Sample.of(rollout_of(example, record), result_of(record["found"]), reward, title)
