"""The best regions that ignore the picture: a floor that only a policy which looks gets past."""

from typing import Sequence

import numpy as np

from activeo3 import metrics
from activeo3.config import Config
from activeo3.eval_baselines import fixed_candidates, from_unit
from activeo3.eval_core import Runner
from activeo3.eval_rollouts import Expert, found_in
from activeo3.task_models import Detections, merge_crops
from activeo3.types import Example, TaskResult


def fit_fixed(
    task_model: Expert, training: Sequence[Example], config: Config, runner: Runner, most: int = 0
) -> np.ndarray:
    """The best regions (K, 4) in 0-1 that ignore the picture: chosen greedily from a lattice, so that the
    mean task reward (AP50 + AR50) on the training pictures is highest. K is ``most``, by default the
    config's; the best fewer are the first of them.

    Raises ValueError without training pictures.
    """
    if not training:
        raise ValueError("the fixed regions are fitted on training pictures, and there are none")
    lattice = fixed_candidates()
    windows = [(example, from_unit(box[None], example.size_px)) for box in lattice for example in training]
    outcomes, _ = found_in(task_model, windows, config, runner, block=len(training))
    seen = [outcomes[first : first + len(training)] for first in range(0, len(outcomes), len(training))]
    chosen: list[int] = []
    for _ in range(most or config.regions):
        gains = [
            _joint_reward(training, [seen[k] for k in (*chosen, new)], config.merge) for new in range(len(lattice))
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
