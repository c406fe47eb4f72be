"""What a policy is trained to do: one interface from the question to the reward, and the register of tasks.

    sense    say where to look; a task model works on the crops, and its success is the reward (ACTIVE-O3)
    direct   say what is there: GRPO on the task answer itself, without a zoom (its Table 6, Direct RFT)
    segment  say where a mask is wrong; it is corrected there (its section 5.4; correction.py)
    grounding, counting, ocr, detection
             answer at once, each in a form and with rewards of its own (Perception-R1; task_perception.py)
    zoom_qa  zoom, look again, and again, then answer a question in words (task_zoom_qa.py)

train.py calls four things of a task: what the policy is shown and asked, how its answer is read (both in
``look``), how the world answers (``act``), and what that is worth (``score``). A task may also have to ``prepare``
its examples first, and to ``load`` task models of its own. A new task is a prompt
in prompts.py, a parser in answer_parsing.py, a reward in rewards.py with its weight in config.py, and a line in TASKS.

Deviations from the paper, and readings of what it leaves open:
  1. Direct RFT shows the whole picture as the task model sees a crop (``--crop_side``, ``--crop_shape``) and
     asks the task model's own question, so that the trained policy and the ``direct`` row of the table differ
     in their weights only. The paper names neither view nor prompt.
  2. Its reward is format + R_detect, the two terms of ACTIVE-O3's that a task without regions has.
"""

from dataclasses import dataclass
from functools import partial
from typing import Callable, Sequence

import torch

from activeo3 import (
    correction,
    evidence,
    matching,
    prompts,
    rewards,
    task_perception,
    task_perception_words,
    task_zoom_qa,
)
from activeo3.answer_parsing import read_boxes
from activeo3.cli import check_known
from activeo3.config import Config, ConfigError, TrainConfig
from activeo3.data_io import Dataset
from activeo3.eval_config import EvalConfig
from activeo3.geometry import Frame
from activeo3.model import VisionLanguageModel
from activeo3.rollout import SENSING, PromptSpec, Role
from activeo3.task_model_sam import Corrector, corrector, prepared
from activeo3.task_models import Crop, TaskModel, act, crop_view, load_task_model, merge_crops, said_to_be_there
from activeo3.types import Example, Parsed, Region, Reward, Rollout, TaskResult

Separate = TaskModel | Corrector
"""Whoever works on crops and is not the language model."""


def as_they_are(task_model: Separate | None, examples: Sequence[Example], config: Config) -> list[Example]:
    """Examples that need no preparation."""
    return list(examples)


@dataclass(frozen=True)
class Task(Role):
    """A role, how the world answers, and what that is worth.

    ``act(task_model, rollouts, config)`` gives one outcome per rollout; ``task_model`` is whoever works on crops.
    ``score(rollout, outcome, config)`` is the reward with its named ``terms``, each with a weight in the
    config. ``zooms`` is False where the answer is the result and nobody works on crops.
    ``prepare(task_model, examples, config)`` adds what the task needs to know of its examples; ``task_model`` is the
    task model if it is not the language model. ``load(name, config, device)`` makes that task model. ``pose(example)``
    makes an example of any data set a question of this task, or raises DataError. ``measured`` is True where
    eval_perception.py has a table of the task's own.
    """

    act: Callable[[VisionLanguageModel | Separate, Sequence[Rollout], TrainConfig], list[TaskResult]]
    score: Callable[[Rollout, TaskResult, TrainConfig], Reward]
    terms: tuple[str, ...]
    zooms: bool = True
    prepare: Callable[[Separate | None, Sequence[Example], Config], list[Example]] = as_they_are
    load: Callable[[str, Config, torch.device], Separate] = load_task_model
    pose: Callable[[Example], Example] | None = None
    measured: bool = False


# ---------------------------------------------------------------------- sense: where to look


def zoom_and_act(
    task_model: VisionLanguageModel | TaskModel, rollouts: Sequence[Rollout], config: TrainConfig
) -> list[TaskResult]:
    """The task model on the crops of every answer."""
    return act(task_model, [rollout.example for rollout in rollouts], [rollout.regions for rollout in rollouts], config)


def score_regions(rollout: Rollout, outcome: TaskResult, config: TrainConfig) -> Reward:
    """ACTIVE-O3's five terms."""
    return rewards.score(rollout, outcome, config.weights, config.coverage)


# ---------------------------------------------------------------------- direct: what is there


def ask_what(policy: VisionLanguageModel, example: Example, config: Config) -> PromptSpec:
    """The whole picture as the task model sees a crop, and the task model's own question (deviation 1)."""
    view, frame = crop_view(policy, example.image, _whole(example), config)
    return PromptSpec(view, frame, prompts.task_prompt(example.query, config.wording, policy.boxes))


def read_what(text: str, finished: bool, frame: Frame, example: Example, config: Config) -> Parsed:
    """The boxes of an answer as its result, read and merged as a task model's answer about one crop is."""
    action = read_boxes(text, finished, parser=config.parser)
    return Parsed(
        action,
        result=merge_crops([said_to_be_there(action, Crop(example, _whole(example)), frame, text)], config.merge),
    )


def as_answered(
    task_model: VisionLanguageModel | TaskModel, rollouts: Sequence[Rollout], config: TrainConfig
) -> list[TaskResult]:
    """Nobody acts: the answers are the results."""
    return [rollout.result for rollout in rollouts]


def score_result(rollout: Rollout, outcome: TaskResult, config: TrainConfig) -> Reward:
    """Format and task only (deviation 2)."""
    return rewards.score_result(rollout, outcome, config.weights)


def _whole(example: Example) -> Region:
    """The window that shows all of an example's picture."""
    return Region(0.0, 0.0, *map(float, example.size_px))


# ---------------------------------------------------------------------- the register

TASKS: dict[str, Task] = {
    "sense": Task(SENSING.ask, SENSING.read, SENSING.longest, zoom_and_act, score_regions, rewards.SENSING_TERMS),
    "direct": Task(
        ask_what, read_what, lambda config: config.task_max_new_tokens, as_answered, score_result,
        rewards.RESULT_TERMS, zooms=False,
    ),
    "segment": Task(
        correction.ask_wrong, correction.read_wrong, SENSING.longest, correction.correct, correction.score_correction,
        rewards.SENSING_TERMS, prepare=prepared, load=corrector,
    ),
    **{
        name: Task(
            partial(task_perception.ask, name), partial(task_perception.read, name), lambda config: config.max_new_tokens, as_answered,
            partial(task_perception.score, name), matching.TERMS[name], zooms=False, pose=partial(task_perception.posed, name), measured=True,
        )
        for name in task_perception_words.TASKS
    },
    "zoom_qa": Task(
        task_zoom_qa.ask, None, SENSING.longest, task_zoom_qa.as_told, task_zoom_qa.score,
        evidence.TERMS, zooms=False, pose=task_zoom_qa.posed, follow=task_zoom_qa.ZoomDialogue,
    ),
}  # fmt: skip


def posed(dataset: Dataset, task: Task) -> Dataset:
    """The data set as questions of the task; an example that cannot be one is like a picture that cannot be read."""
    return dataset if task.pose is None else task_perception.Posed(dataset, task.pose)


def task_of(config: TrainConfig | EvalConfig) -> Task:
    """The task of a run or an evaluation. Raises ConfigError if there is none of that name, or if it has no
    use for a flag."""
    check_known("task", [config.task], TASKS)
    task = TASKS[config.task]
    trains = isinstance(config, TrainConfig)
    task_models = (config.task_model,) if trains else config.task_model
    if trains and not task.zooms and config.task_model != "mllm":
        raise ConfigError(f"--task {config.task} has no crops to work on: leave out --task_model {config.task_model}.")
    if trains and not task.zooms and config.other_mllm:
        raise ConfigError(
            f"--task {config.task} has no crops to work on: leave out --task_checkpoint {config.other_mllm}."
        )
    if config.wording == "zoom_roi" and not task.follow:
        raise ConfigError(
            f"--wording zoom_roi asks for zooms turn by turn: it goes with --task zoom_qa, not with --task {config.task}."
        )
    if config.task == "segment":
        correction.check(config, *task_models)
    elif getattr(config, "coverage", "contain") == "recall":
        raise ConfigError(
            f"--coverage recall is of a mask's errors: it goes with --task segment, not with --task {config.task}."
        )
    elif "sam" in task_models:
        raise ConfigError(
            f"--task_model sam corrects masks: it goes with --task segment, not with --task {config.task}."
        )
    return task
