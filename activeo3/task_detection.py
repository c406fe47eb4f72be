"""Detection: ``sense`` says where to look and a task model works on the crops (ACTIVE-O3); ``direct`` answers at once.

Deviations of ``direct`` from the paper (its Table 6, Direct RFT), and readings of what it leaves open:
  1. It shows the whole image as the task model sees a crop (``--crop_side``, ``--crop_shape``) and asks the task
     model's own question, so that the trained policy and the ``direct`` row of the table differ in their weights only.
     The paper names neither view nor prompt.
  2. Its reward is format + R_detect, the two terms of ACTIVE-O3's that a task without regions has.
"""

from typing import Sequence

from activeo3 import prompts, rewards
from activeo3.answer_parsing import read_boxes, read_regions
from activeo3.model import VisionLanguageModel
from activeo3.task_models import Crop, act, crop_view, merge_crops, said_to_be_there
from activeo3.tasks import PromptSpec, Task, regions_of, sensing_view
from activeo3.types import Example, Parsed, Region, Rollout, TaskResult


class Sense(Task):
    """Propose regions to zoom into; the reward is what the task model finds there, and four heuristic terms."""

    name = "sense"
    terms = dict.fromkeys(rewards.SENSING_TERMS, 1.0)

    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        """The whole image, and: where should one look for the query, or for the answer if it is a question?"""
        config = self.config
        view, frame = sensing_view(vlm, example.image, config.sensing_side, config.max_view_pixels)
        words = prompts.looking_prompt if example.asks_in_words else prompts.sensing_prompt
        return PromptSpec(view, frame, words(example.query, config.words, config.regions, vlm.boxes))

    def parse(self, text: str, finished: bool, prompt: PromptSpec, example: Example) -> Parsed:
        """The regions to zoom into."""
        action = read_regions(text, finished, self.config.regions, parser=self.config.parser)
        return Parsed(action, regions_of(action, prompt.frame, example.size_px))

    def act(self, task_model, rollouts: Sequence[Rollout]) -> list[TaskResult]:
        """The task model on the crops of every answer."""
        return act(task_model, [one.example for one in rollouts], [one.regions for one in rollouts], self.config)

    def reward_terms(self, rollout: Rollout, result: TaskResult) -> dict[str, float]:
        """ACTIVE-O3's five terms."""
        return rewards.sensing_terms(rollout, result, self.reward_config.coverage)


class Direct(Task):
    """Answer with the boxes themselves."""

    name = "direct"
    terms = {"format": 1.0, "task": 1.0}
    crops = False

    @property
    def max_new_tokens(self) -> int:
        """As the task model's answers."""
        return self.config.task_max_new_tokens

    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        """The whole image as the task model sees a crop, and the task model's question (deviation 1)."""
        view, frame = crop_view(vlm, example.image, _whole(example), self.config)
        return PromptSpec(view, frame, prompts.task_prompt(example.query, self.config.words, vlm.boxes))

    def parse(self, text: str, finished: bool, prompt: PromptSpec, example: Example) -> Parsed:
        """The boxes as the result, read and merged as a task model's answer about one crop is."""
        action = read_boxes(text, finished, parser=self.config.parser)
        found = said_to_be_there(action, Crop(example, _whole(example)), prompt.frame, text)
        return Parsed(action, result=merge_crops([found], self.config.merge))

    def reward_terms(self, rollout: Rollout, result: TaskResult) -> dict[str, float]:
        """Format and task (deviation 2)."""
        return rewards.result_terms(rollout, result)


def _whole(example: Example) -> Region:
    """The window that shows all of an example's image."""
    return Region(0.0, 0.0, *map(float, example.size_px))
