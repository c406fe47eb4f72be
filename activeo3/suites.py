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
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np
from PIL import Image

from activeo3 import measures, metrics, report, results
from activeo3.config import TrainConfig, _Config
from activeo3.datasets import open_dataset
from activeo3.failures import failures
from activeo3.floors import RULES, fixed_candidates, from_unit, to_unit
from activeo3.models import VisionLanguageModel
from activeo3.page import write_page
from activeo3.pictures import Shown
from activeo3.rewards import score
from activeo3.sampler import SENSING, Role, look
from activeo3.schema import Action, Example, Outcome, Region, Rollout, Sampling
from activeo3.stream import Gather, one_rank, readable
from activeo3.taskmodels import Found, TaskModel, act, merged
from activeo3.tasks import Task, posed, task_of

BATCH = 16  # pictures that are looked at together, and then zoomed into

Regions = list[tuple[Region, ...]]
Expert = VisionLanguageModel | TaskModel
Share = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""``share(work, parts)`` is ``work(part)`` of every part; ranks may divide them (engine.Ranks.share)."""
Shows = dict[str, tuple[list[Rollout], list[Outcome]]]
"""What was proposed and what was found there, by the label of the row."""


class Acted(NamedTuple):
    """What one task model found in the regions of a method, the seconds of proposing and finding, and
    what it found in black crops (nothing unless asked for)."""

    outcomes: list[Outcome]
    seconds: float
    blind: list[Outcome]


def alone(work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """The ``Share`` of a single process."""
    return [work(part) for part in parts]


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
    share: Share = alone,
) -> tuple[list[dict[str, Any]], Shows]:
    """Evaluate every method on the examples: (table rows, {label of the row: (rollouts, outcomes)}).

    Args:
        actor, start: the checkpoint, and the start policy.
        training: pictures that ``fixed`` may be fitted on, with the first task model.
        say: told about each row as soon as it is there.
        experts: the task models by name; by default the start policy is the only one.
        black: also score the task models on black crops.
        share: how the models' work is divided. A block of BATCH examples is one part, worked on in the same
            way wherever that is, so that the table is the same on any number of ranks.

    A row holds ``benchmark``, ``method``, ``task_model``, ``n``, and two mappings from column to
    ``metrics.Metric`` (value, low, high) or a plain number: ``metrics`` and ``failures``.
    """
    experts = experts or {"mllm": start}
    rows: list[dict[str, Any]] = []
    kept = []
    fixed = fit_fixed(next(iter(experts.values())), training, config) if "fixed" in methods else None
    for method in methods:
        rollouts, acted = judged(method, examples, actor, start, experts, config, fixed, black, share)
        regions = [rollout.regions for rollout in rollouts]
        sensing = sensing_metrics(method, examples, regions, actor, start, config, resamples, share)
        for name, (outcomes, seconds, blind) in acted.items():
            found = metrics.evaluate_detections(examples, outcomes, resamples=resamples)
            values: dict[str, Any] = {column: found[column] for column in ("AP", "AP50", "AP_s", "AR", "AR_s")} | sensing
            values |= {"regions": float(np.mean([len(of_one) for of_one in regions])), "seconds": seconds / len(examples)}
            lost = failures(examples, regions, outcomes)
            if black:
                lost[results.BLACK] = metrics.evaluate_detections(examples, blind, resamples=resamples)["AP50"]
            row = {"benchmark": benchmark, "method": method, "task_model": name, "n": len(examples)}
            rows.append(row | {"metrics": values, "failures": lost})
            kept.append((rollouts, outcomes))
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


def judged(
    method: str,
    examples: Sequence[Example],
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    experts: Mapping[str, Expert],
    config: _Config,
    fixed: np.ndarray | None = None,
    black: bool = False,
    share: Share = alone,
) -> tuple[list[Rollout], dict[str, Acted]]:
    """What a method proposes for every example, and what each task model finds there."""
    if method == "direct-native":  # the others see the same as in ``direct``
        experts = {name: expert for name, expert in experts.items() if isinstance(expert, VisionLanguageModel)}
    seen_as = as_seen(method, config)

    def work(block: Sequence[Example]) -> tuple[list[tuple], dict[str, Acted]]:
        began = time.perf_counter()
        rollouts = propose(method, block, actor, start, config, fixed)
        proposing = time.perf_counter() - began
        regions = [rollout.regions for rollout in rollouts]
        acted = {}
        for name, expert in experts.items():
            began = time.perf_counter()
            outcomes = act(expert, block, regions, seen_as)
            seconds = proposing + time.perf_counter() - began
            acted[name] = Acted(outcomes, seconds, act(expert, blackened(block), regions, seen_as) if black else [])
        # Every rank has the pictures, which are large: ranks tell each other the rest.
        return [(r.token_ids, r.text, r.finished, r.action, r.regions) for r in rollouts], acted

    told, acted = zip(*share(work, blocks(examples)))
    rollouts = [Rollout(example, *rest) for example, rest in zip(examples, chain(*told), strict=True)]
    return rollouts, {name: _joined([of_block[name] for of_block in acted]) for name in experts}


def _joined(blocks: Sequence[Acted]) -> Acted:
    """What one task model found in all blocks, in order."""
    outcomes, seconds, blind = zip(*blocks)
    return Acted(list(chain(*outcomes)), sum(seconds), list(chain(*blind)))


def blocks(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """The examples in order, BATCH at a time."""
    return [examples[first : first + BATCH] for first in range(0, len(examples), BATCH)]


def propose(
    method: str,
    examples: Sequence[Example],
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    config: _Config,
    fixed: np.ndarray | None = None,
) -> list[Rollout]:
    """Each example's regions, in original pixels, as the answer that proposed them; a rule says nothing.

    ``fixed`` (K, 4) in 0-1 is what ``fit_fixed`` found, for the method of that name.
    """
    if method == "repeat":
        return repeated_look(actor, examples, config)
    if method in ("cot", "active"):
        return greedy_look(actor if method == "active" else start, examples, config)
    if method == "fixed":
        regions = [from_unit(fixed, example.size_px) for example in examples]
    else:
        regions = [RULES[method](example, config.regions) for example in examples]
    return [Rollout(example, (), "", True, Action(()), of_one) for example, of_one in zip(examples, regions)]


def greedy_look(
    policy: VisionLanguageModel, examples: Sequence[Example], config: _Config, role: Role = SENSING
) -> list[Rollout]:
    """One greedy answer per example in a role, by default that of sensing, all in one batch."""
    _, groups = look(policy, examples, 1, Sampling(0.0, role.longest(config)), config, role)
    return [rollout for (rollout,) in groups]


def repeated_look(policy: VisionLanguageModel, examples: Sequence[Example], config: _Config) -> list[Rollout]:
    """One region per answer, from K answers sampled at temperature 1, which are joined into one."""
    one, sampling = replace(config, regions=1), Sampling(1.0, config.max_new_tokens)
    _, groups = look(policy, examples, config.regions, sampling, one)
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
        action=Action(boxes, error=errors[0] if errors else None),
        regions=tuple(region for answer in answers for region in answer.regions),
    )


def sensing_metrics(
    method: str,
    examples: Sequence[Example],
    regions: Regions,
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    config: _Config,
    resamples: int,
    share: Share = alone,
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
        policy = actor if method == "active" else start
        answers = share(lambda block: [r.regions for r in greedy_look(policy, block, config)], blocks(asked))
        elsewhere = recalls(examples, list(chain(*answers)))
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
        gains = [_joint_reward(training, [seen[k] for k in (*chosen, new)], config.merge) for new in range(len(lattice))]
        chosen.append(int(np.argmax(gains)))
    return lattice[chosen]


def _joint_reward(examples: Sequence[Example], seen: Sequence[Sequence[Outcome]], merge: str) -> float:
    """Mean AP50 + AR50 when several regions' detections are merged as the config says."""
    total = 0.0
    for index, example in enumerate(examples):
        found = [Found(outcomes[index].boxes_px, outcomes[index].scores, "") for outcomes in seen]
        total += sum(metrics.ap_ar_50(example, merged(found, merge)))
    return total / len(examples)


# ---------------------------------------------------------------------- results for people


def gallery(
    shown: Shows, titles: Mapping[str, str], weights: Mapping[str, float], coverage: str = "contain", count: int = 12
) -> list[tuple[Shown, ...]]:
    """The same picture in several rows (their labels with a title each), for ``count`` examples; none without a row."""
    columns = [
        [
            Shown.of(rollout, outcome, score(rollout, outcome, weights, coverage), title)
            for rollout, outcome in zip(*(items[:count] for items in shown[label]))
        ]
        for label, title in titles.items()
    ]
    return list(zip(*columns))


def answered(
    policies: Mapping[str, VisionLanguageModel], examples: Sequence[Example], task: Task, config: TrainConfig, count: int = 12
) -> list[tuple[Shown, ...]]:
    """The same for a task whose answers are the results: what policies (by a title each) say of ``count`` examples."""
    columns = []
    for title, policy in policies.items():
        answers = greedy_look(policy, examples[:count], config, task)
        outcomes = task.act(policy, answers, config)
        columns.append([Shown.of(a, found, task.score(a, found, config), title) for a, found in zip(answers, outcomes)])
    return list(zip(*columns))


def held_out(config: TrainConfig, gather: Gather = one_rank, speaks: bool = True) -> list[Example]:
    """The pictures of the table at the end of a run: the first ones of the held-out split, the same on all ranks.

    ``gather`` and ``speaks`` as in ``stream.readable``.
    """
    if not config.eval_examples:
        return []
    measures.ready(config.task)
    dataset = open_dataset(config.data, config.eval_split, config.data_root, config.eval_examples, config.tile, config.tile_overlap)
    return readable(posed(dataset, task_of(config)), gather, speaks)


def before_and_after(
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    examples: Sequence[Example],
    config: TrainConfig,
    say: Callable[[str], None],
    share: Share = alone,
    writes: bool = True,
    task_model: TaskModel | None = None,
) -> None:
    """The end of a run: the start policy and the trained one on held-out pictures, as table and page.

    All ranks come here and share the work; one of them writes. ``task_model`` works on the crops; by
    default the start policy does. A policy that has learned to answer without a zoom is put in the place of
    the task model, beside the start policy: on the whole picture, and on the best crops.
    """
    folder, task = Path(config.output_dir), task_of(config)
    data = "+".join(config.data)
    say(f"evaluating on {len(examples)} held-out pictures ({data}, {config.eval_split})")
    if task.zooms:
        methods = ("direct", "random", "grid", "cot", "active", "oracle-regions")
        experts = {config.task_model: task_model or start}
    else:
        methods = ("direct" if config.crop_shape == "square" else "direct-native", "oracle-regions")
        experts = {"start": start, "trained": actor}
    if task.measured:  # in a table of its own
        rows, _ = measures.compare(config.task, task, experts, data, examples, config, share, say=say)
    else:
        rows, shown = run(data, methods, examples, actor, start, config, say=say, experts=experts, share=share)
    if not writes:
        return
    results.write_results(folder, rows)
    table = results.first_table(rows)
    if task.zooms:
        pairs = gallery(shown, {"cot": "before", "active": "after"}, config.weights, config.coverage)
    else:
        pairs = answered({"before": start, "after": actor}, examples, task, config)
    write_page(
        folder / "report.html",
        f"activeo3: learning {'where to look' if task.zooms else 'to answer at once'}",
        [f"policy: {config.model}", f"data: {data} ({config.split})", f"steps: {config.steps}",
         f"answers per step: {config.prompts} pictures x {config.group}", f"seed: {config.seed}"],
        report.read_rows(folder / "metrics.jsonl"),
        *table,
        pairs,
    )  # fmt: skip
    say(report.table(*table, f"{data}, {len(examples)} pictures"))
    say(f"curves and pictures: {folder / 'report.html'}; samples: {folder / 'samples'}; numbers: {folder / 'results.json'}")
