"""The task ``segment``: say where a mask is wrong; whoever corrects masks works there, and the IoU is the reward.

The counterpart for masks of what rollout.py and task_models.py do for boxes (ACTIVE-O3, section 5.4): the policy
sees the picture under a translucent mask and proposes exactly K regions, which are zoomed into one after the
other. tasks.py makes a task of these functions; task_segmentation.py owns the masks, task_model_sam.py who corrects them.

The paper uses an oracle in the place of its task model, without saying of what kind: here it is ``sam`` under an
oracle's clicks, or ``oracle``, which makes every region as right as its view can show it.
"""

from typing import Sequence

import numpy as np

from activeo3 import prompts, rewards
from activeo3.answer_parsing import read_regions
from activeo3.config import Config, ConfigError, TrainConfig
from activeo3.geometry import Frame, as_boxes
from activeo3.model import VisionLanguageModel
from activeo3.rollout import SENSING, PromptSpec, Role, regions_of, sensing_view
from activeo3.task_model_sam import Corrector, zoom_and_click
from activeo3.task_segmentation import Draft, overlaid
from activeo3.types import Example, Parsed, Reward, Rollout, TaskResult


def ask_wrong(policy: VisionLanguageModel, example: Example, config: Config) -> PromptSpec:
    """The whole picture under its first mask, and: where is that wrong?"""
    view, frame = sensing_view(policy, example.image, config.sensing_side, config.max_view_pixels)
    words = prompts.segmentation_prompt(example.query, config.wording, config.regions, policy.boxes)
    return PromptSpec(overlaid(view, Draft.of(example).mask), frame, words)


def read_wrong(text: str, finished: bool, frame: Frame, example: Example, config: Config) -> Parsed:
    """The regions of an answer; their number is part of its format."""
    action = read_regions(text, finished, most=config.regions, least=config.regions, parser=config.parser)
    return Parsed(action, regions_of(action, frame, example.size_px))


FINDING_ERRORS = Role(ask_wrong, read_wrong, SENSING.longest)


def correct(task_model: Corrector, rollouts: Sequence[Rollout], config: TrainConfig) -> list[TaskResult]:
    """What the first mask of every answer's picture has become after all of its zooms."""
    return [TaskResult(as_boxes([]), np.zeros(0), mask=steps[-1]) for steps in zoomed(task_model, rollouts, config)]


def zoomed(task_model: Corrector, rollouts: Sequence[Rollout], config: Config) -> list[list[np.ndarray]]:
    """The masks (H, W) of every answer after 0, 1, 2, ... of its zooms."""
    drafts = {id(rollout.example): Draft.of(rollout.example) for rollout in rollouts}  # a group shares one
    regions = [rollout.regions for rollout in rollouts]
    return zoom_and_click(task_model, [drafts[id(rollout.example)] for rollout in rollouts], regions, config.clicks)


def score_correction(rollout: Rollout, outcome: TaskResult, config: TrainConfig) -> Reward:
    """ACTIVE-O3's heuristic terms, of the errors of the mask, and R_seg."""
    return rewards.score_mask(rollout, Draft.of(rollout.example), outcome.mask, config.weights, config.coverage)


def check(config: Config, *task_models: str) -> None:
    """Raise ConfigError for flags that do not go with --task segment."""
    unfit = [name for name in task_models if name not in ("sam", "oracle")]
    if unfit:
        raise ConfigError(f"--task segment corrects masks, and {unfit[0]} makes none: give --task_model sam or oracle.")
    if config.first_mask == "sam" and "sam" not in task_models:
        raise ConfigError("--first_mask sam needs --task_model sam, which makes it.")
    if getattr(config, "coverage", "contain") == "iou":
        raise ConfigError("--coverage iou compares boxes: with --task segment choose contain, recall or purity.")
