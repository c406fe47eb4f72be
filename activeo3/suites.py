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
    oracle-regions   K regions cut around the true boxes: the ceiling of any sensing policy

The same frozen task model works on the crops of all of them, greedily. With several task models, each
method has a row for each, on the same regions.

The second table (failures.py) tells sensing from task, and may add a control: how much the task model
scores on black crops. What it scores there does not come from looking.

Two swap columns tell a policy that looks from one that has learned good average regions: how far region
recall falls when each picture gets the regions of another picture (``swap_picture``), and when the same
picture is asked for another query (``swap_query``). A policy that ignores its input loses nothing.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from activeo3 import metrics, report, results
from activeo3.config import TrainConfig, _Config
from activeo3.datasets import open_dataset
from activeo3.failures import failures
from activeo3.floors import RULES, fixed_candidates, from_unit, to_unit
from activeo3.models import VisionLanguageModel
from activeo3.page import write_page
from activeo3.pictures import Shown
from activeo3.prompts import read_regions
from activeo3.rewards import score
from activeo3.sampler import look
from activeo3.schema import Example, Outcome, Region, Rollout, Sampling
from activeo3.taskmodels import Found, TaskModel, act, merged

BATCH = 16  # pictures that a policy looks at together

Regions = list[tuple[Region, ...]]
Expert = VisionLanguageModel | TaskModel
Shelf = dict[str, tuple[Regions, list[Outcome], list[str]]]
"""What every row found: {label: (regions, outcomes, answers)}."""


def run(
    benchmark: str,
    methods: Sequence[str],
    examples: Sequence[Example],
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    config: _Config,
    training: Sequence[Example] = (),
    resamples: int = 1000,
    say: Callable[[str], None] = print,
    experts: Mapping[str, Expert] | None = None,
    black: bool = False,
) -> tuple[list[dict[str, Any]], Shelf]:
    """Evaluate every method on the examples: (table rows, what each row found by its label).

    Args:
        actor, start: the checkpoint, and the start policy.
        training: pictures that ``fixed`` may be fitted on, with the first task model.
        say: told about each row as soon as it is there.
        experts: the task models by name; by default the start policy is the only one.
        black: also score the task models on black crops.

    A row holds ``benchmark``, ``method``, ``task_model``, ``n``, and two mappings from column to
    ``metrics.Metric`` (value, low, high) or a plain number: ``metrics`` and ``failures``.
    """
    experts = experts or {"mllm": start}
    rows: list[dict[str, Any]] = []
    kept = []
    for method in methods:
        began = time.perf_counter()
        regions, answers = propose(method, examples, actor, start, config, training, next(iter(experts.values())))
        proposing = time.perf_counter() - began
        sensing = sensing_metrics(method, examples, regions, actor, start, config, resamples)
        seen_as = as_seen(method, config)
        for name, expert in experts.items():
            if method == "direct-native" and not isinstance(expert, VisionLanguageModel):
                continue  # it sees the same as in ``direct``
            began = time.perf_counter()
            outcomes = act(expert, examples, regions, seen_as)
            seconds = (proposing + time.perf_counter() - began) / len(examples)
            found = metrics.evaluate_detections(examples, outcomes, resamples=resamples)
            values: dict[str, Any] = {column: found[column] for column in ("AP", "AP50", "AP_s", "AR", "AR_s")} | sensing
            values |= {"regions": float(np.mean([len(of_one) for of_one in regions])), "seconds": seconds}
            lost = failures(examples, regions, outcomes)
            if black:
                blind = act(expert, blackened(examples), regions, seen_as)
                lost[results.BLACK] = metrics.evaluate_detections(examples, blind, resamples=resamples)["AP50"]
            row = {"benchmark": benchmark, "method": method, "task_model": name, "n": len(examples)}
            rows.append(row | {"metrics": values, "failures": lost})
            kept.append((regions, outcomes, answers))
            with_whom = f" with {name}" if len(experts) > 1 else ""
            recall = values["region_recall"].value
            say(f"{benchmark} {method}{with_whom}: AP50 {values['AP50'].value:.3f}, region recall {recall:.3f}")
    return rows, {results.label(row, rows): found for row, found in zip(rows, kept)}


def as_seen(method: str, config: _Config) -> _Config:
    """How the task model sees the crops of a method: the two readings of ``direct`` fix the shape."""
    shapes: dict[str, Any] = {"direct": "square", "direct-native": "aspect"}
    return replace(config, crop_shape=shapes.get(method, config.crop_shape))


def blackened(examples: Sequence[Example]) -> list[Example]:
    """The same questions about black pictures; those of one size share their pixels."""
    black = {size: Image.new("RGB", size) for size in {example.size_px for example in examples}}
    return [replace(example, image=black[example.size_px]) for example in examples]


def propose(
    method: str,
    examples: Sequence[Example],
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    config: _Config,
    training: Sequence[Example] = (),
    expert: Expert | None = None,
) -> tuple[Regions, list[str]]:
    """Each example's regions, in original pixels, and what the model said (empty where none spoke).

    ``expert`` is the task model that ``fixed`` is fitted with, by default ``start``.
    """
    if method == "repeat":
        return repeated_look(actor, examples, config)
    if method in ("cot", "active"):
        rollouts = greedy_look(actor if method == "active" else start, examples, config)
        return [rollout.regions for rollout in rollouts], [rollout.text for rollout in rollouts]
    if method == "fixed":
        boxes = fit_fixed(expert or start, training, config)
        regions = [from_unit(boxes, example.size_px) for example in examples]
    else:
        regions = [RULES[method](example, config.regions) for example in examples]
    return regions, [""] * len(examples)


def greedy_look(policy: VisionLanguageModel, examples: Sequence[Example], config: _Config) -> list[Rollout]:
    """One greedy sensing answer per example."""
    rollouts: list[Rollout] = []
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        _, groups = look(policy, part, 1, Sampling(0.0, config.max_new_tokens), config)
        rollouts += [group[0] for group in groups]
    return rollouts


def repeated_look(policy: VisionLanguageModel, examples: Sequence[Example], config: _Config) -> tuple[Regions, list[str]]:
    """One region per answer, from K answers sampled at temperature 1; the answers stand one below the other."""
    one, sampling = replace(config, regions=1), Sampling(1.0, config.max_new_tokens)
    regions: Regions = []
    answers: list[str] = []
    for start in range(0, len(examples), BATCH):
        _, groups = look(policy, examples[start : start + BATCH], config.regions, sampling, one)
        regions += [tuple(region for answer in group for region in answer.regions) for group in groups]
        answers += ["\n".join(answer.text for answer in group) for group in groups]
    return regions, answers


def sensing_metrics(
    method: str,
    examples: Sequence[Example],
    regions: Regions,
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    config: _Config,
    resamples: int,
) -> dict[str, metrics.Metric | None]:
    """Region recall and what it loses when picture or query are swapped (None where that is meaningless)."""
    pictures = [example.image_id for example in examples]
    own = recalls(examples, regions)
    result: dict[str, metrics.Metric | None] = {
        "region_recall": metrics.bootstrap_interval(own, pictures, resamples),
        "swap_picture": None,
        "swap_query": None,
    }
    if method in ("direct", "direct-native"):
        return result
    if len(set(pictures)) > 1:
        units = [to_unit(of_one, example.size_px) for of_one, example in zip(regions, examples)]
        lenders = [other_picture(examples, i) for i in range(len(examples))]
        borrowed = [from_unit(units[lender], example.size_px) for lender, example in zip(lenders, examples)]
        result["swap_picture"] = metrics.bootstrap_interval(own - recalls(examples, borrowed), pictures, resamples)
    if method in ("cot", "active") and len({example.query for example in examples}) > 1:
        asked = [replace(example, query=other_query(examples, i)) for i, example in enumerate(examples)]
        rollouts = greedy_look(actor if method == "active" else start, asked, config)
        elsewhere = recalls(examples, [rollout.regions for rollout in rollouts])
        result["swap_query"] = metrics.bootstrap_interval(own - elsewhere, pictures, resamples)
    return result


def recalls(examples: Sequence[Example], regions: Regions) -> np.ndarray:
    """Region recall (E,) of every example, as the coverage reward reads it; NaN without true boxes."""
    pairs = zip(examples, regions, strict=True)
    return np.array([metrics.region_recall(of_one, metrics.asked_boxes(example)) for example, of_one in pairs])


def other_picture(examples: Sequence[Example], index: int) -> int:
    """Where the nearest earlier example of another picture is; several questions may share a picture."""
    earlier = (k % len(examples) for k in range(index - 1, index - len(examples), -1))
    return next(k for k in earlier if examples[k].image_id != examples[index].image_id)


def other_query(examples: Sequence[Example], index: int) -> str:
    """The query of the nearest later example that asks for something else."""
    own = examples[index].query
    later = [*examples[index + 1 :], *examples[:index]]
    return next((example.query for example in later if example.query != own), own)


# ---------------------------------------------------------------------- the best regions that ignore the picture


def fit_fixed(expert: Expert, training: Sequence[Example], config: _Config) -> np.ndarray:
    """The best regions (K, 4) in 0-1 that ignore the picture: chosen greedily from a lattice, so that the
    mean task reward (AP50 + AR50) on the training pictures is highest.

    Raises ValueError without training pictures.
    """
    if not training:
        raise ValueError("the fixed regions are fitted on training pictures, and there are none")
    lattice = fixed_candidates()
    seen = [
        act(expert, training, [from_unit(box[None], example.size_px) for example in training], config) for box in lattice
    ]
    chosen: list[int] = []
    for _ in range(config.regions):
        gains = [_joint_reward(training, [seen[k] for k in (*chosen, new)]) for new in range(len(lattice))]
        chosen.append(int(np.argmax(gains)))
    return lattice[chosen]


def _joint_reward(examples: Sequence[Example], seen: Sequence[Sequence[Outcome]]) -> float:
    """Mean AP50 + AR50 when several regions' detections are merged."""
    total = 0.0
    for index, example in enumerate(examples):
        found = [Found(outcomes[index].boxes_px, outcomes[index].scores, "") for outcomes in seen]
        total += sum(metrics.ap_ar_50(example, merged(found, "nms")))
    return total / len(examples)


# ---------------------------------------------------------------------- results for people


def gallery(examples: Sequence[Example], shown: Shelf, titles: Mapping[str, str], weights: Mapping[str, float],
            count: int = 12) -> list[tuple[Shown, ...]]:
    """The same picture in several rows (their labels with a title each), for ``count`` examples; none without a row."""
    pairs = []
    for index in range(min(count, len(examples)) if titles else 0):
        items = []
        for label, title in titles.items():
            regions, outcomes, answers = shown[label]
            action = read_regions(answers[index])
            rollout = Rollout(examples[index], (), answers[index], True, action, regions[index])
            judged = score(rollout, outcomes[index], weights)
            items.append(Shown.of(rollout, outcomes[index], judged, title))
        pairs.append(tuple(items))
    return pairs


def held_out(config: TrainConfig) -> list[Example]:
    """The pictures of the table at the end of a run: the first ones of the held-out split."""
    if not config.eval_examples:
        return []
    dataset = open_dataset(config.data, config.eval_split, config.data_root or None, config.eval_examples)
    return [dataset[index] for index in range(len(dataset))]


def before_and_after(
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    examples: Sequence[Example],
    config: TrainConfig,
    say: Callable[[str], None],
    task_model: TaskModel | None = None,
) -> None:
    """The end of a run: the start policy and the trained one on held-out pictures, as table and page.

    ``task_model`` works on the crops; by default the start policy does.
    """
    folder = Path(config.output_dir)
    say(f"evaluating on {len(examples)} held-out pictures ({config.data}, {config.eval_split})")
    methods = ("direct", "random", "grid", "cot", "active", "oracle-regions")
    experts = {config.task_model: task_model or start}
    rows, shown = run(config.data, methods, examples, actor, start, config, say=say, experts=experts)
    results.write_results(folder, rows)
    table = results.first_table(rows)
    pairs = gallery(examples, shown, {"cot": "before", "active": "after"}, config.weights)
    write_page(
        folder / "report.html",
        "activeo3: learning where to look",
        [f"policy: {config.model}", f"data: {config.data} ({config.split})", f"steps: {config.steps}",
         f"answers per step: {config.prompts} pictures x {config.group}", f"seed: {config.seed}"],
        report.read_rows(folder / "metrics.jsonl"),
        *table,
        pairs,
    )  # fmt: skip
    say(report.table(*table, f"{config.data}, {len(examples)} pictures"))
    say(f"curves and pictures: {folder / 'report.html'}; samples: {folder / 'samples'}; numbers: {folder / 'results.json'}")
