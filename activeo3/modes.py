"""The ways in which a question in words is put to a policy that may zoom: a row of the exam each.

    baseline      one look at the whole picture: no zoom is shown, and the first answer counts
    default       it may zoom
    strict_zoom   it must zoom: an answer that comes before any zoom was executed is not taken
    oracle_crop   nobody zooms: it is shown where the evidence is and asked at once, in two rows, the crop alone
                  and (``oracle_crop+picture``) the whole picture and the crop

Everything else is equal. Where nobody zooms, the prompt does not speak of it; a policy that asks for a zoom all the
same is told once that none is left, and may answer then: to have learned to look first is no wrong answer. With
``black``, each mode in which the policy zooms has one more row, in which all that it is shown after its zooms is
black: what it answers right there does not come from looking closer.

Differences from Active-Perception-R1 (commit 14f2841):
  1. Its strict mode asks for a zoom alone, tries twice, and then asks again with the picture and one crop. Here it
     is the episode that a policy is trained in, with an answer that fails closed (``--min_zooms``).
  2. The evidence is padded as eval_baselines.py does it, to 1.3 times its size and at least a quarter of the picture's
     shorter side. There it was 0.02 of the picture, and words without context were answered worse than pages.
  3. An example without evidence has no oracle row. There its row repeated the baseline.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Sequence

from activeo3 import evidence, prompts
from activeo3.config import Config, ConfigError
from activeo3.eval_baselines import oracle_regions
from activeo3.eval_rollouts import blackened
from activeo3.model import VisionLanguageModel
from activeo3.rollout import PromptSpec, sensing_view
from activeo3.task_models import crop_view
from activeo3.task_zoom_qa import ZoomDialogue
from activeo3.tasks import Task
from activeo3.types import Example, Region


class Way(NamedTuple):
    """A row of the exam: its title, and the task and config that the question is put with. ``told`` is True where
    the policy is shown the evidence, so that only examples with evidence can be asked."""

    title: str
    task: Task
    config: Any
    told: bool = False


def ways(task: Task, config: Config, modes: Sequence[str], black: bool = False) -> list[Way]:
    """The rows of these modes, in order. Raises ConfigError if the config leaves no zoom for ``strict_zoom``."""
    at_once = replace(config, max_zooms=0, max_turns=min(2, config.max_turns), min_zooms=0)
    found = []
    for mode in modes:
        if mode == "baseline":
            found.append(Way(mode, task, at_once))
        elif mode == "oracle_crop":
            found.append(Way(mode, replace(task, ask=partial(ask_shown, False)), at_once, told=True))
            found.append(Way(f"{mode}+picture", replace(task, ask=partial(ask_shown, True)), at_once, told=True))
        else:
            if mode == "strict_zoom" and min(config.max_zooms, config.max_turns - 1) < 1:
                limits = f"--max_zooms {config.max_zooms} and --max_turns {config.max_turns}"
                raise ConfigError(f"--mode strict_zoom needs a zoom and a turn to answer in, and {limits} leave none.")
            least = max(config.min_zooms, int(mode == "strict_zoom"))
            found.append(Way(mode, task, replace(config, min_zooms=least)))
            if black:
                found.append(Way(f"{mode}, black crops", replace(task, follow=follow_blind), found[-1].config))
    return found


def ask_shown(whole: bool, policy: VisionLanguageModel, example: Example, config: Config) -> PromptSpec:
    """The evidence as a zoom would show it, behind the whole picture or not, and the question about it."""
    asked = evidence.asked_of(example)
    crop, frame = crop_view(policy, example.image, evidence_region(example), config)
    words = prompts.episode_prompt(asked.question, config.wording, 0, asked.options, crops=int(whole), hint=asked.hint)
    if not whole:
        return PromptSpec(crop, frame, words)
    view, frame = sensing_view(policy, example.image, config.sensing_side, config.max_view_pixels)
    return PromptSpec([view, crop], frame, words)


def evidence_region(example: Example) -> Region:
    """One region around all of an example's evidence, padded (difference 2)."""
    (region,) = oracle_regions(replace(example, boxes_px=evidence.asked_of(example).evidence_px, crowd=None), 1)
    return region


def follow_blind(policy: VisionLanguageModel, example: Example, question: PromptSpec, config: Config) -> ZoomDialogue:
    """An episode in which every crop is black; the first view, which is in the question, is not."""
    (black,) = blackened([example])
    return ZoomDialogue(policy, black, question, config)
