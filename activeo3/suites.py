"""Benchmark suites: one table whose rows are ways of choosing regions, with everything else equal.

    direct           no zoom: the task model sees the whole picture as one crop
    random           K random regions of sensible size
    grid             K uniform tiles that cover the picture
    fixed            the best K regions that ignore the picture, fitted on training pictures
    cot              the start policy, prompted and untrained (the paper's Qwen2.5-VL-CoT)
    active           the checkpoint
    oracle-regions   K regions cut around the true boxes: the ceiling of any sensing policy

The same frozen task model works on the crops of all of them, greedily.

Two swap columns tell a policy that looks from one that has learned good average regions: how far region
recall falls when each picture gets the regions of another picture (``swap_picture``), and when the same
picture is asked for another query (``swap_query``). A policy that ignores its input loses nothing.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from activeo3 import geometry, metrics, report
from activeo3.config import TrainConfig, _Config
from activeo3.datasets import open_dataset
from activeo3.models import VisionLanguageModel
from activeo3.page import write_page
from activeo3.pictures import Shown
from activeo3.prompts import read_regions
from activeo3.rewards import asked_boxes, score
from activeo3.sampler import look
from activeo3.schema import Example, Outcome, Region, Rollout, Sampling
from activeo3.taskmodels import act

COLUMNS = ("method", "AP", "AP50", "AP_s", "AR", "AR_s", "region_recall", "swap_picture", "swap_query", "regions", "seconds")
BATCH = 16  # pictures that a policy looks at together

Regions = list[tuple[Region, ...]]


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
) -> tuple[list[dict[str, Any]], dict[str, tuple[Regions, list[Outcome], list[str]]]]:
    """Evaluate every method on the examples: (table rows, {method: (regions, outcomes, answers)}).

    Args:
        actor, start: the checkpoint, and the start policy that is also the frozen task model.
        training: pictures that ``fixed`` may be fitted on.
        say: told about each row as soon as it is there.

    A row holds ``benchmark``, ``method``, ``n`` and ``metrics``, a mapping from column to
    ``metrics.Metric`` (value, low, high) or, for ``regions`` and ``seconds``, a plain number.
    """
    rows, shown = [], {}
    for method in methods:
        began = time.perf_counter()
        regions, answers = propose(method, examples, actor, start, config, training)
        outcomes = act(start, examples, regions, config)
        seconds = (time.perf_counter() - began) / len(examples)
        found = metrics.evaluate_detections(examples, outcomes, resamples=resamples)
        values: dict[str, Any] = {name: found[name] for name in ("AP", "AP50", "AP_s", "AR", "AR_s")}
        values |= sensing_metrics(method, examples, regions, actor, start, config, resamples)
        values |= {"regions": float(np.mean([len(of_one) for of_one in regions])), "seconds": seconds}
        rows.append({"benchmark": benchmark, "method": method, "n": len(examples), "metrics": values})
        shown[method] = (regions, outcomes, answers)
        say(f"{benchmark} {method}: AP50 {values['AP50'].value:.3f}, region recall {values['region_recall'].value:.3f}")
    return rows, shown


def propose(
    method: str,
    examples: Sequence[Example],
    actor: VisionLanguageModel,
    start: VisionLanguageModel,
    config: _Config,
    training: Sequence[Example] = (),
) -> tuple[Regions, list[str]]:
    """Each example's regions, in original pixels, and what the model said (empty where none spoke)."""
    if method in ("cot", "active"):
        rollouts = greedy_look(actor if method == "active" else start, examples, config)
        return [rollout.regions for rollout in rollouts], [rollout.text for rollout in rollouts]
    if method == "fixed":
        boxes = fit_fixed(start, training, config)
        regions = [from_unit(boxes, example.size_px) for example in examples]
    else:
        rule = {"direct": whole_picture, "random": random_regions, "grid": grid_regions, "oracle-regions": oracle_regions}
        regions = [rule[method](example, config.regions) for example in examples]
    return regions, [""] * len(examples)


def greedy_look(policy: VisionLanguageModel, examples: Sequence[Example], config: _Config) -> list[Rollout]:
    """One greedy sensing answer per example."""
    rollouts: list[Rollout] = []
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        _, groups = look(policy, part, 1, Sampling(0.0, config.max_new_tokens), config)
        rollouts += [group[0] for group in groups]
    return rollouts


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
    if method == "direct":
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
    return np.array([metrics.region_recall(of_one, asked_boxes(example)) for example, of_one in pairs])


def other_picture(examples: Sequence[Example], index: int) -> int:
    """Where the nearest earlier example of another picture is; several questions may share a picture."""
    earlier = (k % len(examples) for k in range(index - 1, index - len(examples), -1))
    return next(k for k in earlier if examples[k].image_id != examples[index].image_id)


def other_query(examples: Sequence[Example], index: int) -> str:
    """The query of the nearest later example that asks for something else."""
    own = examples[index].query
    later = [*examples[index + 1 :], *examples[:index]]
    return next((example.query for example in later if example.query != own), own)


# ---------------------------------------------------------------------- floors and ceiling


def whole_picture(example: Example, regions: int) -> tuple[Region, ...]:
    """The picture as its own single crop."""
    return (Region(0.0, 0.0, *map(float, example.size_px)),)


def random_regions(example: Example, regions: int) -> tuple[Region, ...]:
    """Regions with sides of 20 % to 50 % of the picture's, anywhere; the same ones for the same example."""
    rng = np.random.default_rng(list(example.id.encode()))
    sides = rng.uniform(0.2, 0.5, (regions, 2))
    corners = rng.uniform(0, 1, (regions, 2)) * (1 - sides)
    return from_unit(np.concatenate([corners, corners + sides], axis=1), example.size_px)


def grid_regions(example: Example, regions: int) -> tuple[Region, ...]:
    """``regions`` equal tiles that cover the picture, as square as that number allows."""
    width, height = example.size_px
    shapes = [(rows, regions // rows) for rows in range(1, regions + 1) if regions % rows == 0]
    rows, columns = min(shapes, key=lambda shape: abs(np.log((width / shape[1]) / (height / shape[0]))))
    tiles = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    return from_unit(geometry.as_boxes(tiles), example.size_px)


def oracle_regions(example: Example, regions: int) -> tuple[Region, ...]:
    """At most ``regions`` rectangles around the true boxes, with some of their surroundings.

    Boxes are joined pair by pair, always the pair whose common rectangle is smallest, until few enough
    are left and no two would fit into one region of a third of the picture's shorter side.
    """
    width, height = example.size_px
    side = min(width, height)
    groups = list(asked_boxes(example))
    while len(groups) > 1:
        joined = {
            (i, j): np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])])
            for i, a in enumerate(groups)
            for j, b in enumerate(groups[:i])
        }
        (i, j), box = min(joined.items(), key=lambda item: float(np.prod(item[1][2:] - item[1][:2])))
        if len(groups) <= regions and max(box[2:] - box[:2]) > side / 3:
            break
        groups = [group for k, group in enumerate(groups) if k not in (i, j)] + [box]
    found = []
    for box in groups:
        size = np.maximum(1.3 * (box[2:] - box[:2]), side / 4)
        low = np.clip((box[:2] + box[2:] - size) / 2, 0, np.maximum(0, (width, height) - size))
        found.append(Region(*map(float, (*low, *np.minimum(low + size, (width, height))))))
    return tuple(found)


def fit_fixed(expert: VisionLanguageModel, training: Sequence[Example], config: _Config) -> np.ndarray:
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


def fixed_candidates() -> np.ndarray:
    """Rectangles (C, 4) in 0-1 that ``fixed`` chooses from: three sizes on lattices, and thirds."""
    boxes = []
    for side, places in ((0.34, 4), (0.5, 3), (0.66, 2)):
        for x in np.linspace(0, 1 - side, places):
            boxes += [(x, y, x + side, y + side) for y in np.linspace(0, 1 - side, places)]
    boxes += [(k / 3, 0, (k + 1) / 3, 1) for k in range(3)] + [(0, k / 3, 1, (k + 1) / 3) for k in range(3)]
    return geometry.as_boxes(boxes)


def _joint_reward(examples: Sequence[Example], seen: Sequence[Sequence[Outcome]]) -> float:
    """Mean AP50 + AR50 when several regions' detections are merged."""
    total = 0.0
    for index, example in enumerate(examples):
        boxes = np.concatenate([outcomes[index].boxes_px for outcomes in seen])
        kept = geometry.nms(boxes, np.ones(len(boxes)))
        total += sum(metrics.ap_ar_50(example, Outcome(boxes[kept], np.ones(len(kept)))))
    return total / len(examples)


def to_unit(regions: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """Regions in pixels of a picture of ``size`` -> boxes (K, 4) in 0-1."""
    return geometry.as_boxes(regions) / np.array([*size, *size])


def from_unit(boxes: np.ndarray, size: tuple[int, int]) -> tuple[Region, ...]:
    """Boxes (K, 4) in 0-1 -> regions in pixels of a picture of ``size``."""
    return tuple(Region(*map(float, box)) for box in boxes * np.array([*size, *size]))


# ---------------------------------------------------------------------- results for people and programs


def table_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as report.table wants them: one flat mapping from column to value or interval."""
    return [{"method": row["method"], **row["metrics"]} for row in rows]


def results(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results.json holds: values under their names, intervals under ``intervals``."""
    written = []
    for row in rows:
        numbers = {k: (v.value if isinstance(v, metrics.Metric) else v) for k, v in row["metrics"].items()}
        spans = {k: [v.low, v.high] for k, v in row["metrics"].items() if isinstance(v, metrics.Metric)}
        written.append({"benchmark": row["benchmark"], "method": row["method"], "n": row["n"], "metrics": numbers, "intervals": spans})
    return {"rows": written}


def gallery(examples: Sequence[Example], shown: Mapping[str, tuple[Regions, list[Outcome], list[str]]],
            titles: Mapping[str, str], weights: Mapping[str, float], count: int = 12) -> list[tuple[Shown, ...]]:
    """The same picture under several methods, side by side, for ``count`` examples; none without a method."""
    pairs = []
    for index in range(min(count, len(examples)) if titles else 0):
        items = []
        for method, title in titles.items():
            regions, outcomes, answers = shown[method]
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
) -> None:
    """The end of a run: the start policy and the trained one on held-out pictures, as table and page."""
    folder = Path(config.output_dir)
    say(f"evaluating on {len(examples)} held-out pictures ({config.data}, {config.eval_split})")
    methods = ("direct", "random", "grid", "cot", "active", "oracle-regions")
    rows, shown = run(config.data, methods, examples, actor, start, config, say=say)
    write_results(folder, rows)
    pairs = gallery(examples, shown, {"cot": "before", "active": "after"}, config.weights)
    write_page(
        folder / "report.html",
        "activeo3: learning where to look",
        [f"policy: {config.model}", f"data: {config.data} ({config.split})", f"steps: {config.steps}",
         f"answers per step: {config.prompts} pictures x {config.group}", f"seed: {config.seed}"],
        report.read_rows(folder / "metrics.jsonl"),
        table_rows(rows),
        COLUMNS,
        pairs,
    )  # fmt: skip
    say(report.table(table_rows(rows), COLUMNS, f"{config.data}, {len(examples)} pictures"))
    say(f"curves and pictures: {folder / 'report.html'}; samples: {folder / 'samples'}; numbers: {folder / 'results.json'}")


def write_results(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``results.json``, replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    report.replace_file(folder / "results.json", (report.strict_json(results(rows)) + "\n").encode())
