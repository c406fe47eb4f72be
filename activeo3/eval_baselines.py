"""Where each row of a table looks: regions from a policy, or from a rule that asks no model.

    direct           no zoom: the task model sees the whole image as one crop, squeezed to a square
    direct-native    no zoom, and the image keeps its shape and its size (of language models; detectors always keep it)
    random           K random regions of sensible size
    grid             K uniform tiles that cover the image
    fixed            the best K regions that ignore the image, fitted on training images
    cot              the start policy, prompted and untrained (the paper's Qwen2.5-VL-CoT)
    active           the checkpoint
    repeat           the checkpoint is asked for one region, K times, by sampling (paper, Table 13)
    answer           no zoom: the checkpoint itself is the task model, on the whole image as one crop.
                     What a checkpoint of Direct RFT (paper, Table 6) was trained for: its ``active`` is this
    oracle-regions   K regions cut around the true boxes: the ceiling of any sensing policy

A policy answers greedily, one answer per question; ``repeat`` samples one region at a time. The budget of regions is in
the prompt (the paper's wording names the number); the tiny policy's short prompt does not say it, and there it is
enforced by reading no more than so many regions of an answer. All regions are in pixels of the original image.
"""

import zlib
from dataclasses import replace
from typing import Callable, Sequence

import numpy as np
import torch

from activeo3 import geometry, metrics
from activeo3.config import Config
from activeo3.eval_core import Map, Method, blackened, result_of, result_record
from activeo3.eval_runner import Model, Record
from activeo3.metrics import asked_boxes
from activeo3.model import VisionLanguageModel
from activeo3.rollout import sample_rollouts
from activeo3.task_detection import Sense
from activeo3.task_models import Detections, act, merge_crops
from activeo3.tasks import Task
from activeo3.types import Example, ParsedAnswer, Region, Rollout, TaskResult

FITTED_ON = 40
"""How many training images the fixed regions are chosen on."""


# ---------------------------------------------------------------------- rules


def whole_image(example: Example, regions: int) -> tuple[Region, ...]:
    """The image as its own single crop."""
    return (Region(0.0, 0.0, *map(float, example.size_px)),)


def random_regions(example: Example, regions: int) -> tuple[Region, ...]:
    """Regions with sides of 20 % to 50 % of the image's, anywhere; the same ones for the same example."""
    rng = np.random.default_rng(list(example.id.encode()))
    sides = rng.uniform(0.2, 0.5, (regions, 2))
    corners = rng.uniform(0, 1, (regions, 2)) * (1 - sides)
    return from_unit(np.concatenate([corners, corners + sides], axis=1), example.size_px)


def grid_regions(example: Example, regions: int) -> tuple[Region, ...]:
    """``regions`` equal tiles that cover the image, as square as that number allows."""
    width, height = example.size_px
    shapes = [(rows, regions // rows) for rows in range(1, regions + 1) if regions % rows == 0]
    rows, columns = min(shapes, key=lambda shape: abs(np.log((width / shape[1]) / (height / shape[0]))))
    tiles = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    return from_unit(geometry.as_boxes(tiles), example.size_px)


def oracle_regions(example: Example, regions: int) -> tuple[Region, ...]:
    """At most ``regions`` rectangles around the true boxes, with some of their surroundings.

    Boxes are joined pair by pair, always the pair whose common rectangle is smallest, until few enough
    are left and no two would fit into one region of a third of the image's shorter side.
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


# ---------------------------------------------------------------------- policies


def greedy_rollouts(policy: VisionLanguageModel, task: Task, examples: Sequence[Example]) -> list[Rollout]:
    """One greedy answer per example, all in one batch."""
    _, groups = sample_rollouts(policy, task, examples)
    return [rollout for (rollout,) in groups]


def sensed(policy: VisionLanguageModel, examples: Sequence[Example], config: Config) -> list[Rollout]:
    """The ``Method.propose`` of a policy that is asked where to look."""
    return greedy_rollouts(policy, Sense(config), examples)


def repeated_rollouts(policy: VisionLanguageModel, examples: Sequence[Example], config: Config) -> list[Rollout]:
    """One region per answer, from K answers sampled at temperature 1, which are joined into one.

    What is drawn depends on the seed and the examples alone, not on what was sampled before.
    """
    task = Sense(replace(config, regions=1))
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(repr((config.seed, [example.id for example in examples])).encode()))
        _, groups = sample_rollouts(policy, task, examples, config.regions, task.sampling(1.0))
    return [_joined(group) for group in groups]


def _joined(answers: Sequence[Rollout]) -> Rollout:
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


# ---------------------------------------------------------------------- methods


def by_rule(rule: Callable[[Example, int], tuple[Region, ...]]) -> Callable[..., list[Rollout]]:
    """The ``Method.propose`` of a rule; its rollouts have no text."""

    def propose(policy: VisionLanguageModel | None, examples: Sequence[Example], config: Config) -> list[Rollout]:
        return [Rollout(example, (), "", True, ParsedAnswer(()), rule(example, config.regions)) for example in examples]

    return propose


METHODS: dict[str, Method] = {
    "direct": Method(by_rule(whole_image), "none", zooms=False, overrides={"crop_shape": "square"}),
    "direct-native": Method(by_rule(whole_image), "none", zooms=False, overrides={"crop_shape": "aspect"}),
    "random": Method(by_rule(random_regions), "none"),
    "grid": Method(by_rule(grid_regions), "none"),
    "fixed": Method(None, "none"),
    "cot": Method(sensed, "start"),
    "active": Method(sensed, "trained"),
    "repeat": Method(repeated_rollouts, "trained"),
    "answer": Method(by_rule(whole_image), "trained", zooms=False),
    "oracle-regions": Method(by_rule(oracle_regions), "none"),
}
"""Every method by the name of its row."""


def find(
    task_model: Model,
    pairs: Sequence[tuple[Example, Sequence[Region]]],
    config: Config,
    map: Map,
    blind: bool = False,
    **more: int,
) -> list[Record]:
    """What a task model finds for every example in its regions, or in black crops."""

    def work(block: Sequence[tuple[Example, Sequence[Region]]]) -> list[Record]:
        examples, regions = zip(*block)
        return [
            result_record(one) for one in act(task_model, blackened(examples) if blind else examples, regions, config)
        ]

    return map(work, pairs, ("act", task_model, config, blind), **more)


# ---------------------------------------------------------------------- the best regions that ignore the image


def fixed_candidates() -> np.ndarray:
    """Rectangles (C, 4) in 0-1 that ``fixed`` chooses from: three sizes on lattices, and thirds."""
    boxes = []
    for side, places in ((0.34, 4), (0.5, 3), (0.66, 2)):
        for x in np.linspace(0, 1 - side, places):
            boxes += [(x, y, x + side, y + side) for y in np.linspace(0, 1 - side, places)]
    boxes += [(k / 3, 0, (k + 1) / 3, 1) for k in range(3)] + [(0, k / 3, 1, (k + 1) / 3) for k in range(3)]
    return geometry.as_boxes(boxes)


def fit_fixed(task_model: Model, training: Sequence[Example], config: Config, map: Map, count: int) -> np.ndarray:
    """The best regions (``count``, 4) in 0-1 that ignore the image: chosen greedily from a lattice, so that the mean
    task reward (AP50 + AR50) on the training images is highest. The best fewer are the first of them.

    Raises ValueError without training images.
    """
    if not training:
        raise ValueError("the fixed regions are fitted on training images, and there are none")
    lattice = fixed_candidates()
    windows = [(example, from_unit(box[None], example.size_px)) for box in lattice for example in training]
    results = [
        result_of(record) for record in find(task_model, windows, config, map, block=len(training), counts=False)
    ]
    found = [results[first : first + len(training)] for first in range(0, len(results), len(training))]
    chosen: list[int] = []
    for _ in range(count):
        gains = [
            _joint_reward(training, [found[k] for k in (*chosen, new)], config.merge) for new in range(len(lattice))
        ]
        chosen.append(int(np.argmax(gains)))
    return lattice[chosen]


def _joint_reward(examples: Sequence[Example], seen: Sequence[Sequence[TaskResult]], merge: str) -> float:
    """Mean AP50 + AR50 when several regions' detections are merged as the config says."""
    total = 0.0
    for index, example in enumerate(examples):
        found = [Detections(outcomes[index].boxes_px, outcomes[index].scores, "") for outcomes in seen]
        total += sum(metrics.ap_ar_50(example, merge_crops(found, merge)))
    return total / len(examples)


def to_unit(regions: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """Regions in pixels of a image of ``size`` -> boxes (K, 4) in 0-1."""
    return geometry.as_boxes(regions) / np.array([*size, *size])


def from_unit(boxes: np.ndarray, size: tuple[int, int]) -> tuple[Region, ...]:
    """Boxes (K, 4) in 0-1 -> regions in pixels of a image of ``size``."""
    return tuple(Region(*map(float, box)) for box in boxes * np.array([*size, *size]))
