"""The held-out table during a run (``--eval_every``) and at its end, and ``best``, the best checkpoint of the run.

evaluations.jsonl                 one row per evaluation: held_out/<row>/<metric>, values as in results.json
evaluations/step-000040/          results.json, results.md, results.tex of the table at step 40
best                              a link to the checkpoint with the best --best_metric, the oldest of equals; --keep
                                  does not remove it

An evaluation reads the policy and changes nothing: every random generator is put back behind it, so a run with
--eval_every makes the same steps as one without, bit for bit. It comes behind the checkpoint of its step. So a run that
is killed in the middle of one makes it when it goes on.
"""

import math
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Mapping, Protocol, Sequence

from activeo3 import checkpoint_files, eval_output, eval_setup, log, model_card, outputs
from activeo3.checkpoint_files import random_states_kept
from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_core import Benchmark, Row
from activeo3.eval_runner import Runner
from activeo3.intervals import value_of
from activeo3.model import VisionLanguageModel
from activeo3.types import Example

LOWER_IS_BETTER = frozenset(
    {"MAE", "edit_distance", "missed", "FP", "FN", "tokens", "seconds", "regions", "asked", "zooms"}
)
"""Metrics of which the smallest value is the best; of all others it is the largest."""
BEST = "best"


class Sharded(Protocol):
    """A model under ZeRO-3 (engine.Zero3Model)."""

    vlm: VisionLanguageModel
    ranks: Any

    def gathered(self) -> AbstractContextManager[VisionLanguageModel]:
        """The model with whole weights on every rank."""


class HeldOut:
    """The held-out table of a run. A collective: all ranks call its methods at the same steps.

    Args:
        examples: the held-out questions; none: nothing is evaluated.
        models: policy, reference and task model of the run.
        run_log: where the numbers are kept and said, on one rank.
        first: the first step of this run; rows of evaluations from there on are dropped.
    """

    def __init__(
        self, examples: Sequence[Example], config: TrainConfig, models: tuple[Sharded, Sharded, Any],
        run_log: log.RunLog, first: int,
    ) -> None:  # fmt: skip
        self.examples, self.config, self.run_log = examples, config, run_log
        self.policy, self.reference, self.task_model = models
        self.folder = Path(config.output_dir)
        self.runner = Runner(self.policy.ranks)
        evaluated = {row["step"] for row in self._drop(first)}
        if first - 1 not in self.policy.ranks.all_gather(evaluated)[0]:
            self.step(first - 1)  # the run was killed between this checkpoint and its table

    def step(self, step: int) -> None:
        """Evaluate the policy if step 1, 2, ... is one of ``--eval_every``. The last step is left to ``end``."""
        every = self.config.eval_every
        if every and 0 < step < self.config.steps and step % every == 0:
            self._evaluate(step, self.folder / "evaluations" / f"step-{step:06d}")

    def end(self) -> None:
        """The table of the run's end, with its page."""
        if self.examples:
            self._evaluate(self.config.steps, None)

    def _evaluate(self, step: int, folder: Path | None) -> None:
        """The table of a step, in a ``folder`` or, if that is None, as the run's own."""
        ranks = self.policy.ranks
        self.runner.forget(self.policy.vlm)
        with random_states_kept(), self.policy.gathered() as vlm, self.reference.gathered() as start:
            with self.task_model.gathered() as frozen:
                one, examples = eval_setup.compare_start_and_trained(
                    vlm, start, frozen, self.examples, self.config, self.runner
                )
        if ranks.rank == 0:
            if folder:
                eval_output.write_results(folder, [one])
            self._keep(step, one)
            if not folder:
                eval_setup.write_end(one, examples, self.config, self.runner.say)
        ranks.barrier()

    def _keep(self, step: int, one: eval_output.Finished) -> None:
        """Write the row of an evaluation, send it to the trackers, and point ``best`` to the best checkpoint so far."""
        values = {
            f"held_out/{name}/{metric}": value_of(cell)
            for name, row in eval_output.labels(one).items()
            for metric, cell in row.metrics.items()
        }
        metric, row = best_metric(self.config, one.benchmark, one.rows), trained_row(one.rows)
        value = row.metrics.get(metric) if row else None
        value = value_of(value)
        columns = [name for name in eval_output.tables(one)[0].columns if any(name in row.metrics for row in one.rows)]
        new = {"step": step, "best_metric": metric, "trained": value, "columns": columns} | values
        rows = sorted([*(old for old in self._rows() if old["step"] != step), new], key=lambda row: row["step"])
        self._write(rows)
        add_to_card(self.folder / f"checkpoint-{step}", eval_output.as_markdown(eval_output.tables(one)[:1]))
        if self.run_log.mirror:
            self.run_log.mirror.row(new)
        if self.config.eval_every:
            best = best_step(rows, metric, lambda step: (self.folder / f"checkpoint-{step}").is_dir())
            point(self.folder, best)
            shown = log.figure(value, digits=3)
            where = f"; the best checkpoint is checkpoint-{best}, see {self.folder / BEST}" if best else ""
            self.run_log.say(f"step {step}: held-out {metric} {shown}{where}")

    def _rows(self) -> list[dict[str, Any]]:
        """The rows of evaluations.jsonl; none on the other ranks."""
        path = self.folder / log.EVALUATIONS
        return log.read_rows(path) if self.run_log.speaks and path.exists() else []

    def _drop(self, first: int) -> list[dict[str, Any]]:
        """Drop the rows of steps from ``first`` on, which this run makes anew; returns the others."""
        rows = self._rows()
        kept = [row for row in rows if row["step"] < first]
        if kept != rows:
            self._write(kept)
        return kept

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        outputs.leave(self.folder / log.EVALUATIONS, "".join(log.strict_json(row) + "\n" for row in rows).encode())


def add_to_card(checkpoint: Path, table: str) -> None:
    """Write a table into the model card of a checkpoint that has one."""
    path = checkpoint / checkpoint_files.CARD
    if path.is_file() and checkpoint_files.is_sealed(checkpoint):
        text = model_card.with_table(path.read_text(), table)
        checkpoint_files.replace_sealed(checkpoint, path.name, text.encode())


def trained_row(rows: Sequence[Row]) -> Row | None:
    """The first row of the policy that is trained; None without one."""
    return next((row for row in rows if "trained" in (row.setting.policy, row.setting.task_model)), None)


def best_metric(config: TrainConfig, benchmark: Benchmark, rows: Sequence[Row]) -> str:
    """What decides ``best``: ``--best_metric``, or the benchmark's own.

    Raises ConfigError if the row of the trained policy has no such metric.
    """
    row, name = trained_row(rows), config.best_metric or benchmark.main_metric
    if row is not None and name not in row.metrics:
        there = ", ".join(row.metrics)
        raise ConfigError(f"--best_metric {name}: the table of --task {config.task} has {there}.")
    return name


def best_step(rows: Sequence[Mapping[str, Any]], metric: str, is_there: Any = lambda step: True) -> int:
    """The step of the best row, of those whose checkpoint is there; 0 if there is none.

    >>> best_step([{"step": 2, "trained": 0.4}, {"step": 4, "trained": 0.5}, {"step": 6, "trained": 0.5}], "AP")
    4
    >>> best_step([{"step": 2, "trained": 0.4}, {"step": 4, "trained": None}], "MAE")
    2
    """
    sign = -1 if metric in LOWER_IS_BETTER else 1
    known = [row for row in rows if row.get("best_metric", metric) == metric and row["trained"] is not None]
    there = [row for row in known if math.isfinite(row["trained"]) and is_there(row["step"])]
    return max(there, key=lambda row: (sign * row["trained"], -row["step"]))["step"] if there else 0


def point(folder: Path, step: int) -> None:
    """Make ``best`` a link to the checkpoint of a step, in place of an earlier link; 0: no link."""
    link, new = folder / BEST, folder / f".{BEST}.tmp"
    outputs.claim(folder, BEST)
    with outputs.enough_room(link):
        new.unlink(missing_ok=True)
        if step:
            os.symlink(f"checkpoint-{step}", new)
            os.replace(new, link)
        else:
            link.unlink(missing_ok=True)
