"""Benchmark suites: one table whose rows are ways of choosing regions, with everything else equal.

    direct           no zoom: the task model sees the whole picture as one crop, squeezed to a square
    direct-native    no zoom, and the picture keeps its shape and its size (a language model only: a
                     detector always keeps the shape)
    random           K random regions of sensible size
    grid             K uniform tiles that cover the picture
    fixed            the best K regions that ignore the picture, fitted on training pictures
    repeat           the checkpoint is asked for one region, K times, by sampling (paper, Table 13)
    cot              the start policy, prompted and untrained (the paper's Qwen2.5-VL-CoT)
    active           the checkpoint
    answer           no zoom: the checkpoint itself is the task model, on the whole picture as one crop.
                     What a checkpoint of Direct RFT (paper, Table 6) was trained for: its ``active`` is this
    oracle-regions   K regions cut around the true boxes: the ceiling of any sensing policy

The same frozen task model works on the crops of all of them, greedily. With several task models, each
method has a row for each, on the same regions.

The second table (failures.py) tells sensing from task, and may add a control: how much the task model
scores on black crops. What it scores there does not come from looking. Two swap columns (swaps.py) tell a
policy that looks from one that has learned good average regions.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

from activeo3 import eval_output, eval_parsing, eval_perception, eval_zoom_qa, log, metrics, outputs
from activeo3.config import Config, TrainConfig
from activeo3.data import open_dataset
from activeo3.data_loader import Gather, one_rank, readable
from activeo3.drawing import Sample
from activeo3.eval_baselines import NO_ZOOM
from activeo3.eval_config import ABSENT
from activeo3.eval_core import Runner
from activeo3.eval_rollouts import Expert, found, proposed
from activeo3.failures import failures
from activeo3.fixed import fit_fixed
from activeo3.headlines import headlines
from activeo3.html_report import write_page
from activeo3.model import VisionLanguageModel
from activeo3.monitor import lost
from activeo3.proposals import ASKED, greedy_rollouts
from activeo3.swaps import sensing_metrics
from activeo3.tasks import Task, prepared, task_of
from activeo3.types import Example, Rollout, TaskResult

Shows = dict[str, tuple[list[Rollout], list[TaskResult]]]
"""What was proposed and what was found there, by the label of the row."""


class Line(NamedTuple):
    """A row of the tables, with what was proposed for every example and what was found there."""

    row: dict[str, Any]
    rollouts: list[Rollout]
    outcomes: list[TaskResult]


class Acted(NamedTuple):
    """What one task model found in the regions of a method, the seconds of proposing and finding, and
    what it found in black crops (nothing unless asked for)."""

    outcomes: list[TaskResult]
    seconds: float
    blind: list[TaskResult]


def run(
    benchmark: str,
    methods: Sequence[str],
    examples: Sequence[Example],
    policy: VisionLanguageModel,
    start: VisionLanguageModel,
    config: Config,
    training: Sequence[Example] = (),
    resamples: int = 1000,
    say: Callable[[str], None] = print,
    task_models: Mapping[str, Expert] | None = None,
    black: bool = False,
    runner: Runner | None = None,
) -> tuple[list[dict[str, Any]], Shows]:
    """Evaluate every method on the examples: (table rows, {label of the row: (rollouts, outcomes)}).

    Args:
        actor, start: the checkpoint, and the start policy.
        training: pictures that ``fixed`` may be fitted on, with the first task model.
        say: told about each row as soon as it is there.
        experts: the task models by name; by default the start policy is the only one.
        black: also score the task models on black crops.
        runner: divides and keeps the models' work; by default one process that keeps nothing.
    """
    task_models, runner = task_models or {"mllm": start}, runner or Runner()
    fixed = fit_fixed(next(iter(task_models.values())), training, config, runner) if "fixed" in methods else None
    made = lines(benchmark, methods, examples, policy, start, config, task_models, runner, fixed, resamples, say, black)
    return [line.row for line in made], shown(made)


def shown(made: Sequence[Line]) -> Shows:
    """Rollouts and outcomes by the label of their row."""
    rows = [line.row for line in made]
    return {eval_output.label(line.row, rows): (line.rollouts, line.outcomes) for line in made}


def lines(
    benchmark: str,
    methods: Sequence[str],
    examples: Sequence[Example],
    policy: VisionLanguageModel | None,
    start: VisionLanguageModel,
    config: Config,
    task_models: Mapping[str, Expert],
    runner: Runner,
    fixed: np.ndarray | None = None,
    resamples: int = 1000,
    say: Callable[[str], None] = print,
    black: bool = False,
    checkpoint: str = "",
    answers: bool = False,
    swaps: bool = True,
) -> list[Line]:
    """The rows of ``run`` for one checkpoint and one budget of regions.

    ``checkpoint`` is its name among several, and ``answers`` says that it was trained to answer without a
    zoom. A row holds ``benchmark``, ``method``, ``checkpoint``, ``task_model``, ``budget`` (of regions; 0
    without a zoom), ``n``, ``parser`` (lenient if any of its models is read so), and two mappings from column to ``intervals.Metric`` (value, low, high) or a plain
    number: ``metrics`` and ``failures``.
    """
    made = []
    for method in methods:
        way = "answer" if answers and method == "active" else method
        policy = start if way == "cot" else policy
        rollouts, acted = judged(way, examples, policy, task_models, config, runner, fixed, black)
        regions = [rollout.regions for rollout in rollouts]
        sensing = sensing_metrics(way, examples, regions, policy, config, resamples, runner, swaps)
        for name, (outcomes, seconds, blind) in acted.items():
            values: dict[str, Any] = {**metrics.evaluate_detections(examples, outcomes, resamples=resamples), **sensing}
            values |= headlines(examples, outcomes, resamples)
            if config.parser != "strict":
                values |= _both_readings(examples, rollouts, outcomes, values, config, resamples)
            values |= costs(rollouts, outcomes, seconds)
            lost = failures(examples, regions, outcomes)
            if black:
                lost[eval_output.BLACK] = metrics.evaluate_detections(examples, blind, resamples=resamples)["AP50"]
            row = {"benchmark": benchmark, "method": method, "checkpoint": checkpoint, "task_model": name}
            row |= {"budget": 0 if way in NO_ZOOM else config.regions, "n": len(examples)}
            row |= {
                "parser": eval_parsing.parser_of(
                    config, [policy if way in ASKED else None, task_models.get(name, policy)]
                )
            }
            made.append(Line(row | {"metrics": values, "failures": lost}, rollouts, outcomes))
            with_whom = f" with {name}" if len(task_models) > 1 else ""
            whose = " ".join(filter(None, [method, checkpoint]))
            recall = values["region_recall"].value
            say(f"{benchmark} {whose}{with_whom}: AP50 {values['AP50'].value:.3f}, region recall {recall:.3f}")
    return made


def _both_readings(
    examples: Sequence[Example], rollouts: Sequence[Rollout], outcomes: Sequence[TaskResult], values: Mapping[str, Any],
    config: Config, resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """AP and AP50 had only the strict reader been there, and what share of the answers only the lenient one could read."""
    found, strict = eval_parsing.strictly_found(rollouts, outcomes, config.merge), values
    if any(own is not other for own, other in zip(found, outcomes)):
        strict = metrics.evaluate_detections(examples, found, resamples=resamples)
    return eval_parsing.strict_columns(strict, ("AP", "AP50")) | eval_parsing.shares(rollouts, outcomes)


def costs(rollouts: Sequence[Rollout], outcomes: Sequence[TaskResult], seconds: float) -> dict[str, float]:
    """What a picture costs on average: regions read, crops that the task model worked on, tokens that policy
    and task model wrote, seconds."""
    sums = {
        "regions": sum(len(rollout.regions) for rollout in rollouts),
        "calls": sum(outcome.calls for outcome in outcomes),
        "tokens": sum(len(rollout.token_ids) for rollout in rollouts) + sum(outcome.tokens for outcome in outcomes),
        "seconds": seconds,
    }
    return {name: value / len(rollouts) for name, value in sums.items()}


def as_seen(method: str, config: Config) -> Config:
    """How the task model sees the crops of a method: the two readings of ``direct`` fix the shape."""
    shapes: dict[str, Any] = {"direct": "square", "direct-native": "aspect"}
    return replace(config, crop_shape=shapes.get(method, config.crop_shape))


def judged(
    method: str,
    examples: Sequence[Example],
    policy: VisionLanguageModel | None,
    task_models: Mapping[str, Expert],
    config: Config,
    runner: Runner,
    fixed: np.ndarray | None = None,
    black: bool = False,
) -> tuple[list[Rollout], dict[str, Acted]]:
    """What a method proposes for every example, and what each task model finds there."""
    if method == "direct-native":  # the others see the same as in ``direct``
        task_models = {
            name: task_model for name, task_model in task_models.items() if isinstance(task_model, VisionLanguageModel)
        }
    if method == "answer":
        task_models = {eval_output.ITSELF: policy}
    seen_as = as_seen(method, config)
    rollouts, proposing = proposed(method, examples, policy, config, runner, fixed)
    regions = [rollout.regions for rollout in rollouts]
    acted = {}
    for name, task_model in task_models.items():
        outcomes, acting = found(task_model, examples, regions, seen_as, runner)
        blind = found(task_model, examples, regions, seen_as, runner, black=True)[0] if black else []
        acted[name] = Acted(outcomes, proposing + acting, blind)
    return rollouts, acted


# ---------------------------------------------------------------------- results for people


def gallery(shown: Shows, titles: Mapping[str, str], task: Task, count: int = 12) -> list[tuple[Sample, ...]]:
    """The same picture in several rows (their labels with a title each), for ``count`` examples; none without a row."""
    columns = [
        [
            Sample.of(rollout, outcome, task.reward(rollout, outcome), title)
            for rollout, outcome in zip(*(items[:count] for items in shown[label]))
        ]
        for label, title in titles.items()
    ]
    return list(zip(*columns))


def answered(
    policies: Mapping[str, VisionLanguageModel],
    examples: Sequence[Example],
    task: Task,
    count: int = 12,
) -> list[tuple[Sample, ...]]:
    """The same for a task whose answers are the results: what policies (by a title each) say of ``count`` examples."""
    columns = []
    for title, policy in policies.items():
        answers = greedy_rollouts(policy, task, examples[:count])
        outcomes = task.act(policy, answers)
        columns.append([Sample.of(a, found, task.reward(a, found), title) for a, found in zip(answers, outcomes)])
    return list(zip(*columns))


def held_out(config: TrainConfig, gather: Gather = one_rank, speaks: bool = True) -> list[Example]:
    """The pictures of the table at the end of a run: the first ones of the held-out split, the same on all ranks.

    ``gather`` and ``speaks`` as in ``stream.readable``.
    """
    if not config.eval_examples:
        return []
    eval_perception.ready(config.task)
    options = replace(config, absent=max(config.absent, ABSENT)).dataset_options
    dataset = open_dataset(config.data, config.eval_split, config.data_root, config.eval_examples, *options)
    return readable(prepared(dataset, task_of(config)), Path(config.output_dir), gather, speaks)


def compare_start_and_trained(
    policy: VisionLanguageModel,
    start: VisionLanguageModel,
    examples: Sequence[Example],
    config: TrainConfig,
    say: Callable[[str], None],
    runner: Runner | None = None,
    task_model: Expert | None = None,
) -> None:
    """The end of a run: the start policy and the trained one on held-out pictures, as table and page.

    All ranks come here and share the work; one of them writes. ``task_model`` works on the crops; by
    default the start policy does. A policy that has learned to answer without a zoom is put in the place of
    the task model, beside the start policy: on the whole picture, and on the best crops.
    """
    folder, task, runner = Path(config.output_dir), task_of(config), runner or Runner()
    data = "+".join(config.data)
    say(f"evaluating on {len(examples)} held-out pictures ({data}, {config.eval_split})")
    policies = {"before": start, "after": policy}
    if task.turns:
        rows = eval_zoom_qa.exam(policies, examples, task, runner, say=say)
        if not runner.writes:
            return
        outputs.leave(folder / "results.json", (log.strict_json({"rows": rows}) + "\n").encode())
        table, turns = eval_zoom_qa.tables(rows)
        say(log.table(*turns, "what the turns came to"))
        _finish(
            folder,
            config,
            say,
            "to zoom, look again and answer",
            table,
            answered(policies, examples, task),
            len(examples),
        )
        return
    if task.crops:
        methods = ("direct", "random", "grid", "cot", "active", "oracle-regions")
        task_models = {config.expert_name(config.task_model): task_model or start}
    else:
        methods = ("direct" if config.crop_shape == "square" else "direct-native", "oracle-regions")
        task_models = {"start": start, "trained": policy}
    if task.benchmark == "perception":  # in a table of its own
        rows, _ = eval_perception.compare(task, task_models, data, examples, runner, say=say)
    else:
        rows, shown = run(
            data, methods, examples, policy, start, config, say=say, task_models=task_models, runner=runner
        )
    if not runner.writes:
        return
    eval_output.write_results(folder, rows)
    table = eval_output.first_table(rows)
    if task.crops:
        pairs = gallery(shown, {"cot": "before", "active": "after"}, task)
    else:
        pairs = answered(policies, examples, task)
    _finish(folder, config, say, "where to look" if task.crops else "to answer at once", table, pairs, len(examples))


def _finish(
    folder: Path, config: TrainConfig, say: Callable[[str], None], learned: str,
    table: tuple[list[dict[str, Any]], list[str]], pairs: Sequence[tuple[Sample, ...]], pictures: int,
) -> None:  # fmt: skip
    """The page of a run and its last words."""
    data, steps = "+".join(config.data), log.read_rows(folder / "metrics.jsonl")
    write_page(
        folder / "report.html",
        f"activeo3: learning {learned}",
        [f"policy: {config.model}", f"data: {data} ({config.split})", f"steps: {config.steps}",
         f"answers per step: {config.prompts} pictures x {config.group}", f"seed: {config.seed}", *filter(None, [lost(steps)])],
        steps,
        *table,
        pairs,
    )  # fmt: skip
    say(log.table(*table, f"{data}, {pictures} pictures"))
    say(log.where(folder))
