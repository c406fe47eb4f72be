"""The page of a training run while it goes on: samples, a few held-out questions asked again, report.html rewritten.

The page is there from the beginning of a run, and is written anew with every ``--samples_every`` steps. It reads itself
again while the run goes on, and is written once more when the run ends in whatever way: at its last step, by Ctrl-C, by
an error. Only a kill -9 leaves a page behind that still waits; ``python -m activeo3.html_report RUN`` writes it anew.

The questions are answered greedily by rank 0: no random number is drawn, and nothing of a step changes.
"""

import threading
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from activeo3 import html_report, outputs, processes
from activeo3.checkpoint_files import random_states_kept, seed_everything
from activeo3.config import ConfigError, TrainConfig
from activeo3.log import RunLog, Scored
from activeo3.monitor import METRIC_GLOSSARY
from activeo3.rollout import sample_rollouts
from activeo3.samples import Card, Sample, save_samples
from activeo3.tasks import Task
from activeo3.types import Example

QUESTIONS = 6
"""How many held-out questions are asked again."""
LAST_PAGE = 3.0  # seconds that the last page may take when a run is ended


class RunPage:
    """``report.html`` of one training run. Every rank has one and calls it alike; rank 0 writes.

    Args:
        held_out: the questions of the table at the end, the first of which are asked again; without any, there is no
            filmstrip.
        models: the policy and the task model, as in ``train_step``.
        first: the next step; before step 1 the untrained policy is asked.
    """

    def __init__(
        self, config: TrainConfig, task: Task, held_out: Sequence[Example], models: tuple[Any, Any], first: int,
        run_log: RunLog,
    ) -> None:  # fmt: skip
        self.config, self.task, self.run_log, self.folder = config, task, run_log, Path(config.output_dir)
        self.policy, self.task_model = models
        self.ranks = self.policy.ranks
        self.questions = list(held_out[:QUESTIONS]) if config.samples_every else []
        if self.ranks.rank == 0:
            html_report.leave_facts(self.folder, **facts(config, task))
            processes.tell(at_end=self.close)
            self._write()
        if first == 1 and self.questions:
            cards = self._ask()
            if cards:
                save_samples(self.folder, 0, [], cards)
                self._write()

    def step(self, step: int, scored: Scored) -> None:
        """Every ``--samples_every`` steps, and at the last one: keep one group and the held-out answers, and write the
        page."""
        every = self.config.samples_every
        if not every or step % every and step != self.config.steps:
            return
        cards = self._ask()
        if self.ranks.rank == 0:
            group = most_different(scored, self.config.group)
            view = self.task.prompt(self.policy.vlm, group[0][0].example).first_view
            kept = save_samples(self.folder, step, [Sample.of(*one) for one in group], cards, view)
            self.run_log.say(f"step {step}: answers drawn in {kept}, page {self._write()}")

    def close(self) -> None:
        """Write the last page, unless the page says already that the run is over, and leave the folder to others."""
        path = self.folder / html_report.PAGE
        with suppress(OSError):
            if html_report.is_live(path.read_bytes()):
                drawing = threading.Thread(target=self._write, args=(False,), daemon=True)
                drawing.start()
                drawing.join(LAST_PAGE)
        outputs.unlock_all()

    def _write(self, live: bool = True) -> Path | None:
        """The page; one that cannot be written ends no run."""
        try:
            return html_report.write_run_page(self.folder, live, "" if live else processes.why())
        except ConfigError as error:
            self.run_log.say(f"the page was not written: {error}")
            return None

    @cached_property
    def _examples(self) -> list[Example]:
        """The held-out questions with what the task model adds to them, such as first masks, made once; the same on all
        ranks, at whatever step. A collective."""
        with random_states_kept():
            seed_everything(self.config.seed, 0)
            return self.task.prepare_batch(self.task_model, self.questions)

    def _ask(self) -> list[Card]:
        """The policy's greedy answers to the held-out questions, drawn; on the other ranks nothing. A collective."""
        if not self.questions:
            return []
        gather: Callable[[Any], list[Any]] = self.ranks.all_gather
        asks = self.ranks.rank == 0
        examples = self._examples  # on all ranks: where the task model is sharded, they gather it together
        with self.policy.gathered() as vlm, processes.together(gather):
            rollouts = [one for (one,) in sample_rollouts(vlm, self.task, examples)[1]] if asks else []
        with self.task_model.gathered() as frozen, processes.together(gather):
            results = self.task.act(frozen, rollouts) if asks else []
        samples = [Sample.of(one, result, self.task.reward(one, result)) for one, result in zip(rollouts, results)]
        return [sample.card(small=True) for sample in samples]


def most_different(scored: Scored, group: int) -> Scored:
    """The group (G) whose rewards differ most, of P*G answers: the one that the update learns most from."""
    groups = [scored[first : first + group] for first in range(0, len(scored), group)]
    spreads = [np.nan_to_num(np.std([reward.total for *_, reward in one]), posinf=0.0) for one in groups]
    return groups[int(np.argmax(spreads))]


def facts(config: TrainConfig, task: Task) -> dict[str, Any]:
    """What the page says of a run before its first step (``html_report.leave_facts``)."""
    highest = {term: _highest(f"reward/{term}", config) for term in task.weights}
    whole = sum(max(0.0, weight) * highest[term] for term, weight in task.weights.items())
    return {
        "title": f"activeo3: {config.task}",
        "steps": config.steps,
        "ceilings": {"reward": whole} | {f"reward/{term}": value for term, value in highest.items()},
        "summary": [
            f"policy: {config.model}",
            f"data: {'+'.join(config.data)} ({config.split})",
            f"answers per step: {config.prompts} images x {config.group}",
            f"seed: {config.seed}",
        ],
    }


def _highest(name: str, config: TrainConfig) -> float:
    """The largest value that a term of the reward can have, by the unit in the glossary; of a mask, an IoU is 1."""
    unit = METRIC_GLOSSARY[name].unit if name in METRIC_GLOSSARY else "0–1"
    if config.task == "segment" or "–" not in unit:
        return 0.0 if "–" not in unit else 1.0
    return float(unit.rpartition("–")[2])
