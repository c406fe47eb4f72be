"""Does a policy look, or has it learned good average regions? How far region recall falls when they are swapped.

    swap_picture   each picture gets the regions of another picture
    swap_query     the same picture is asked for another query

A policy that ignores its input loses nothing.
"""

from dataclasses import replace
from typing import Sequence

import numpy as np

from activeo3 import eval_baselines, intervals, metrics
from activeo3.config import Config
from activeo3.eval_core import Runner
from activeo3.model import VisionLanguageModel
from activeo3.proposals import Regions, greedy_rollouts
from activeo3.task_detection import Sense
from activeo3.types import Example, Region


def sensing_metrics(
    method: str,
    examples: Sequence[Example],
    regions: Regions,
    policy: VisionLanguageModel | None,
    config: Config,
    resamples: int,
    runner: Runner,
    swaps: bool = True,
) -> dict[str, intervals.Metric | None]:
    """Region recall and what it loses when picture or query are swapped (None where that is meaningless).

    ``policy`` is who was asked for the regions, if somebody was. Without ``swaps`` only recall is measured.
    """
    pictures = [example.image_id for example in examples]
    own = recalls(examples, regions)
    result: dict[str, intervals.Metric | None] = {
        "region_recall": intervals.bootstrap_interval(own, pictures, resamples),
        "swap_picture": None,
        "swap_query": None,
    }
    if method in eval_baselines.NO_ZOOM or not swaps:
        return result
    if len(set(pictures)) > 1:
        units = [eval_baselines.to_unit(of_one, example.size_px) for of_one, example in zip(regions, examples)]
        lenders = [other_picture(examples, i) for i in range(len(examples))]
        borrowed = [
            eval_baselines.from_unit(units[lender], example.size_px) for lender, example in zip(lenders, examples)
        ]
        result["swap_picture"] = intervals.bootstrap_interval(own - recalls(examples, borrowed), pictures, resamples)
    if method in ("cot", "active") and len({example.query for example in examples}) > 1:
        asked = [replace(example, query=other_query(examples, i)) for i, example in enumerate(examples)]
        answers = runner.map(
            lambda block: [answer.regions for answer in greedy_rollouts(policy, Sense(config), block)],
            asked,
            ("swap", policy, config),
        )
        elsewhere = recalls(examples, [tuple(Region(*box) for box in answer) for answer in answers])
        result["swap_query"] = intervals.bootstrap_interval(own - elsewhere, pictures, resamples)
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
