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
from typing import NamedTuple, Sequence

from activeo3 import prompts
from activeo3.config import ConfigError
from activeo3.eval_baselines import oracle_regions
from activeo3.eval_rollouts import blackened
from activeo3.model import VisionLanguageModel
from activeo3.task_models import crop_view
from activeo3.task_zoom_qa import ZoomDialogue, ZoomQA, asked_of
from activeo3.tasks import PromptSpec, sensing_view
from activeo3.types import Example, Region


class Way(NamedTuple):
    """A row of the exam: its title, and the task that the question is put with. ``told`` is True where
    the policy is shown the evidence, so that only examples with evidence can be asked."""

    title: str
    task: ZoomQA
    told: bool = False


def ways(task: ZoomQA, modes: Sequence[str], black: bool = False) -> list[Way]:
    """The rows of these modes, in order. Raises ConfigError if the config leaves no zoom for ``strict_zoom``."""
    config = task.config
    at_once = replace(config, max_zooms=0, max_turns=min(2, config.max_turns), min_zooms=0)
    found = []
    for mode in modes:
        if mode == "baseline":
            found.append(Way(mode, task.under(at_once)))
        elif mode == "oracle_crop":
            found.append(Way(mode, CropShown(at_once, task.reward_config), told=True))
            found.append(Way(f"{mode}+picture", ImageAndCropShown(at_once, task.reward_config), told=True))
        else:
            if mode == "strict_zoom" and min(config.max_zooms, config.max_turns - 1) < 1:
                limits = f"--max_zooms {config.max_zooms} and --max_turns {config.max_turns}"
                raise ConfigError(f"--mode strict_zoom needs a zoom and a turn to answer in, and {limits} leave none.")
            least = max(config.min_zooms, int(mode == "strict_zoom"))
            zooming = replace(config, min_zooms=least)
            found.append(Way(mode, task.under(zooming)))
            if black:
                found.append(Way(f"{mode}, black crops", BlackCrops(zooming, task.reward_config)))
    return found


class CropShown(ZoomQA):
    """The policy is shown the evidence as a zoom would show it."""

    whole = False
    """Whether the whole image is shown before the crop."""

    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        config, asked = self.config, asked_of(example)
        crop, frame = crop_view(vlm, example.image, evidence_region(example), config)
        words = prompts.episode_prompt(
            asked.question, config.wording, 0, asked.options, crops=int(self.whole), hint=asked.hint
        )
        if not self.whole:
            return PromptSpec(crop, frame, words)
        view, frame = sensing_view(vlm, example.image, config.sensing_side, config.max_view_pixels)
        return PromptSpec([view, crop], frame, words)


class ImageAndCropShown(CropShown):
    """The policy is shown the whole image and the evidence."""

    whole = True


class BlackCrops(ZoomQA):
    """Every crop is black; the first view is not."""

    def start(self, vlm: VisionLanguageModel, example: Example, prompt: PromptSpec) -> ZoomDialogue:
        (black,) = blackened([example])
        return ZoomDialogue(vlm, black, prompt, self.config)


def evidence_region(example: Example) -> Region:
    """One region around all of an example's evidence, padded (difference 2)."""
    (region,) = oracle_regions(replace(example, boxes_px=asked_of(example).evidence_px, crowd=None), 1)
    return region
