"""``act``: the other role of ACTIVE-O3 as the policy. It finds things on crops that a frozen sensing policy proposes.

The paper trains sensing and leaves the task model as it is; training both is an open question of its (section 5, D.2).
A run with ``--task act`` trains the task role alone; ``--alternate`` trains the two in turn (alternation.py).

Readings of what nobody has written down:
  1. A question is one crop: one of the regions that the frozen policy samples at temperature 1 for the whole picture,
     drawn at random. Where none of them shows anything, as of things that no policy has seen before, it is a random
     region of AREAS, and three of four of these hold one of the things. The sensing policy is the start policy, or
     what ``--task_checkpoint`` names.
  2. A crop's truth is what the oracle takes for it (task_models.py): the true boxes that it holds to 90 %, cut at its
     edges. Nothing is asked about a box of which the crop holds less, and to answer with it is wrong.
  3. The reward is that of ``direct``, format + R_detect of the crop. ``--task_update sft`` learns the crop's truth as
     the answer instead, boxes from the top to the bottom: the right answer is known, and all that is left to chance is
     where to look.
"""

import math
from dataclasses import replace
from typing import Any, Sequence

import numpy as np
import torch

from activeo3 import geometry, prompts
from activeo3.config import ConfigError, TrainConfig
from activeo3.geometry import Frame
from activeo3.rollout import sample_rollouts
from activeo3.task_detection import Direct, Sense
from activeo3.task_models import is_valid_region
from activeo3.types import Example, Region, Rollout

AREAS = (0.04, 0.5)
"""Least and largest share of the picture of a random region, where none is proposed."""


class Act(Direct):
    """Find every query on a crop."""

    name = "act"
    crops = True

    def prepare_batch(self, task_model: Any, examples: Sequence[Example]) -> list[Example]:
        """One crop of every example, in a region that the frozen policy samples (reading 1). A collective."""
        sense = Sense(self.config)
        with task_model.gathered() as frozen:
            _, groups = sample_rollouts(frozen, sense, examples, 1, sense.sampling(1.0))
        return [cropped(rollout.example, one_region(rollout)) for (rollout,) in groups]

    def check(self) -> None:
        """Also refuses a task model that cannot propose regions."""
        super().check()
        if isinstance(self.config, TrainConfig) and self.config.task_model != "mllm":
            raise ConfigError(
                f"--task act has its crops from a sensing policy, and --task_model is {self.config.task_model}; leave "
                "it out, and name the policy with --task_checkpoint."
            )

    def truth(self, example: Example, frame: Frame) -> str:
        """The answer that names every box of the crop, from the top to the bottom."""
        boxes = np.rint(frame.to_text(example.boxes_px[example.asked_for])).astype(int).tolist()
        return prompts.boxes_answer(sorted(boxes, key=lambda box: (box[1], box[0])))


def one_region(rollout: Rollout) -> Region:
    """One of the regions that show something, or a random one. It is drawn by torch's generator, which a checkpoint
    keeps."""
    valid = [region for region in rollout.regions if is_valid_region(region)]
    return valid[int(torch.randint(len(valid), ()))] if valid else random_region(rollout.example)


def random_region(example: Example) -> Region:
    """A region of the picture's shape; three of four hold one of the things that are asked for, if there are any."""
    area, which, *place = torch.rand(4).tolist()
    size = np.array(example.size_px, dtype=float)
    side = math.sqrt(AREAS[0] + (AREAS[1] - AREAS[0]) * area) * size
    low, high = np.zeros(2), size - side  # of the corner
    things = example.boxes_px[example.asked_for]
    if len(things) and which < 0.75:
        x1, y1, x2, y2 = things[int(which / 0.75 * len(things))]
        low, high = np.clip([(x2, y2) - side, np.array([x1, y1])], low, high)
    corner = low + np.array(place) * (high - low)
    return Region(*corner.tolist(), *(corner + side).tolist())


def cropped(example: Example, region: Region) -> Example:
    """A region of an example, out to whole pixels, as an example of its own."""
    window = tuple(map(math.floor, region[:2])) + tuple(map(math.ceil, region[2:]))
    held = geometry.held(example.boxes_px, geometry.as_boxes([window]))[:, 0]  # (N,)
    origin = np.array(window[:2] * 2, dtype=float)
    inside = geometry.clipped(example.boxes_px[held] - origin, (window[2] - window[0], window[3] - window[1]))
    return replace(
        example, image=example.image.crop(window), boxes_px=inside, areas=None, masks=None,
        crowd=None if example.crowd is None else np.asarray(example.crowd)[held],
    )  # fmt: skip
