"""Zoom, look again, answer: a policy that may look closer several times before it says what it sees.

    question + whole picture | zoom | crop | zoom inside the crop | closer crop | answer

A turn asks for a look or gives the answer (zoom_calls.py reads it; a turn that does both asks for a look). Views
nest: coordinates refer to the view that was shown last. Every crop is cut from the original picture at the
task model's crop size, so a look at a look is sharper, not blurrier. After a look that came to nothing the
policy is told why, and sees what it saw before.

A turn may ask for several looks at once (``looks_at_once``), which all refer to the view that was shown last.
Those that can be executed are shown in one user turn, in the order in which they were asked for; after it, the
view that was shown last is the last of them. Each is a zoom of its own, with its status and its cost; the turn is
``zoom_executed`` if any was, else what the first one came to. Regions beyond ``looks_at_once`` are not looked at
and count for nothing.

What an episode carries along is its ``memory``. With ``views`` everything that was shown can be seen to the end.
With ``notes`` a new view takes the place of all earlier ones, the whole picture included: their pixels cannot be seen
any more, what was written about them can, that is the policy's thoughts, the coordinates it chose and the words it
was shown. After a look that came to nothing the view before it is still there. packing.py says what exactly is hidden.

Differences from Active-Perception-R1 (commit 14f2841), beside those of zoom_calls.py and evidence.py:
  1. What a policy is told follows from its own action alone. There it learned which true region it had hit.
  2. A look is asked for in vain if no turn is left to use it: ``zoom_limit``, as is one too many.
  3. Only what stands in ``<answer>`` is an answer; there, a last line was one too, as it is here for ``--parser lenient``.
"""

from dataclasses import dataclass, field, replace
from typing import Sequence

import numpy as np

from activeo3 import evidence, prompts, rewards
from activeo3.config import Config, TrainConfig
from activeo3.geometry import as_boxes
from activeo3.model import VisionLanguageModel
from activeo3.rollout import Observation, PromptSpec, sensing_view
from activeo3.task_models import TaskModel, crop_view
from activeo3.types import Episode, Example, Parsed, ParsedAnswer, Reward, Rollout, TaskResult, Zoom
from activeo3.zoom_calls import Call, Limits, judged, read_turn


def posed(example: Example) -> Example:
    """The example as its question in words; what is to be found is the evidence. Raises DataError if it asks nothing."""
    asked = evidence.asked_of(example)
    return replace(example, query=asked.question, boxes_px=asked.evidence_px, crowd=None)


def ask(policy: VisionLanguageModel, example: Example, config: Config) -> PromptSpec:
    """The whole picture, and the question that it answers. Raises DataError if the example has none."""
    view, frame = sensing_view(policy, example.image, config.sensing_side, config.max_view_pixels)
    asked = evidence.asked_of(example)
    zooms = config.max_zooms if config.max_turns > 1 else 0
    words = prompts.episode_prompt(
        asked.question, config.wording, zooms, asked.options, config.looks_at_once, config.memory == "notes",
        least=config.min_zooms, hint=asked.hint, boxes=policy.boxes,
    )  # fmt: skip
    return PromptSpec(view, frame, words)


@dataclass
class ZoomDialogue:
    """One episode: ``question.frame`` is that of the first view, ``frame`` of the last, and ``zooms[begun:]``
    are those of the last turn that asked for any."""

    policy: VisionLanguageModel
    example: Example
    question: PromptSpec
    config: Config
    statuses: list[str] = field(default_factory=list)
    zooms: list[Zoom] = field(default_factory=list)
    begun: int = 0
    answer: str | None = None
    lenient_only: bool = False

    def __post_init__(self) -> None:
        self.frame = self.question.frame

    def hear(self, text: str, finished: bool) -> Observation | None:
        """Take in a turn: a look if it asks for one and may have it, a reason if it may not, else the end."""
        said, last = read_turn(text, self.config.parser), len(self.statuses) + 1 == self.config.max_turns
        self.lenient_only |= said.lenient_only and finished
        if not finished:
            self.statuses.append("truncated")
        elif said.zooms:
            return self._look(said.calls[: self.config.looks_at_once], last)
        elif said.answer is not None:
            looks = sum(zoom.status == "zoom_executed" for zoom in self.zooms)
            enough = looks >= self.config.min_zooms
            self.answer = said.answer if enough else None
            self.statuses.append(("answered" if looks else "answered_without_zoom") if enough else "answered_early")
        else:
            self.statuses.append("missing_zoom")
        return None

    def _judged(self, call: Call | None, last: bool) -> Zoom:
        """What comes of a look that is asked for, in the last turn or not."""
        limits = Limits(self.config.least_zoom, self.config.most_zoom)
        zoom = Zoom("malformed_zoom") if call is None else judged(call, self.frame, limits)
        none_left = last or len(self.zooms) >= self.config.max_zooms
        return zoom._replace(status="zoom_limit") if none_left else zoom

    def _look(self, calls: Sequence[Call | None], last: bool) -> Observation | None:
        """The views and the words that follow the zooms of a turn; None after the last turn."""
        self.begun = len(self.zooms)
        for call in calls:  # all of them in the view that is there now
            self.zooms.append(self._judged(call, last))
        statuses = [zoom.status for zoom in self.zooms[self.begun :]]
        self.statuses.append("zoom_executed" if "zoom_executed" in statuses else statuses[0])
        if last:
            return None
        views = []
        for zoom in self.zooms[self.begun :]:
            if zoom.status == "zoom_executed":
                view, self.frame = crop_view(self.policy, self.example.image, zoom.window_px, self.config)
                views.append(view)
        words = prompts.shown_together(statuses, self.config.wording)
        replaces = bool(views) and self.config.memory == "notes"
        return Observation(views[0] if len(views) == 1 else views or None, words, replaces)

    def cut(self) -> None:
        """The looks that were to come did not fit in."""
        for place, zoom in enumerate(self.zooms[self.begun :], start=self.begun):
            if zoom.status == "zoom_executed":
                self.zooms[place] = zoom._replace(status="truncated")
        self.statuses[-1] = "truncated"

    def reading(self) -> Parsed:
        """The episode, its looks as regions; without an answer, the last status is what is wrong."""
        episode = Episode(tuple(self.statuses), tuple(self.zooms), self.answer)
        error = None if self.answer is not None else self.statuses[-1]
        # The strict reader would have told the policy something else after such a turn, or taken it for the end.
        strict = ParsedAnswer((), error="missing_zoom") if self.lenient_only else None
        return Parsed(ParsedAnswer((), error=error, strict=strict), episode.looked_at, episode=episode)


def as_told(
    task_model: VisionLanguageModel | TaskModel, rollouts: Sequence[Rollout], config: TrainConfig
) -> list[TaskResult]:
    """Nobody acts on the crops but the policy itself: the outcomes are its answers, in words."""
    return [TaskResult(as_boxes([]), np.zeros(0), (rollout.episode.answer or "",)) for rollout in rollouts]


def score(rollout: Rollout, outcome: TaskResult, config: TrainConfig) -> Reward:
    """The reward of an episode (evidence.py)."""
    episode, asked = rollout.episode, evidence.asked_of(rollout.example)
    terms = evidence.terms(
        episode.answer,
        episode.zooms,
        asked,
        rollout.example.size_px,
        config.evidence_gate,
        config.evidence == "per_call",
    )
    return rewards.weighted(terms, config.weights)
