"""Four tasks without zooms (Perception-R1, arXiv 2504.07954, section 4): grounding, counting, ocr, detection.

``prepare`` makes an example of any data set a question of the task, so that its boxes and fields are the truth, for the
reward, the table and the drawings alike:

    grounding   query the phrase, boxes_px (1, 4)
    counting    query the name, count, with places_px (N, 4), None where they are not known
    ocr         text
    detection   boxes_px (N, 4) of everything, crowds marked, objects with labels (N) and categories

The policy sees the whole image once, at --sensing_side. task_perception_words.py reads the answers, matching.py has the
rewards.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Sequence

import numpy as np

from activeo3 import matching
from activeo3.data_io import DataError
from activeo3.geometry import Frame, as_boxes, clipped, ordered
from activeo3.metrics import asked_boxes
from activeo3.model import VisionLanguageModel
from activeo3.task_perception_words import Answer, perception_prompt, read_answer
from activeo3.tasks import PromptSpec, Task, sensing_view
from activeo3.text_metrics import text_similarity
from activeo3.types import Count, Example, Parsed, ParsedAnswer, Rollout, TaskResult


class Perception(Task):
    """What the four tasks share: one answer about the whole image, which is the result."""

    crops = False
    benchmark = "perception"

    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        """The whole image, and the task's question about it."""
        config = self.config
        view, frame = sensing_view(vlm, example.image, config.sensing_side, config.max_view_pixels)
        asked = self.asked(example)
        return PromptSpec(view, frame, perception_prompt(self.name, asked, config.wording, config.thinking, vlm.boxes))

    def asked(self, example: Example) -> str | Sequence[str]:
        """What the prompt names."""
        return example.query

    def parse(self, text: str, finished: bool, prompt: PromptSpec, example: Example) -> Parsed:
        """An answer with its boxes in original pixels, clipped to the image, as the result."""
        answer = read_answer(self.name, text, finished, self.config.thinking, self.config.parser)
        return Parsed(answer, result=_result(answer, text, prompt.frame, example))

    def reward_terms(self, rollout: Rollout, result: TaskResult) -> dict[str, float]:
        """Format and the task's own terms. An answer that cannot be read earns nothing, also where nothing is to be
        found (matching.py, reading 5)."""
        example, answer = rollout.example, rollout.action
        assert isinstance(answer, Answer), f"example {example.id}: the answer was read by another task"
        return {"format": float(answer.error is None)} | self.answer_terms(example, answer, result)

    @abstractmethod
    def answer_terms(self, example: Example, answer: Answer, result: TaskResult) -> dict[str, float]:
        """The terms beside the format."""

    @property
    def matched(self) -> bool:
        """Whether predictions are matched by the Hungarian method, or in their order."""
        return self.reward_config.matching == "hungarian"

    def unfit(self, example: Example, why: str, data: str) -> DataError:
        """The error of an example that is no question of this task."""
        where = f"which --task {self.name} needs: use --data {data} or scenes"
        return DataError(f"example {example.id} {why}, {where}", example.id)


def _result(answer: ParsedAnswer, text: str, frame: Frame, example: Example) -> TaskResult:
    boxes = clipped(ordered(frame.to_px(as_boxes(answer.boxes_text))), example.size_px)
    strict = answer.strict and _result(answer.strict, text, frame, example)
    return TaskResult(boxes, np.ones(len(boxes)), (text,), strict=strict)


class Grounding(Perception):
    """The one box of a phrase."""

    name = "grounding"
    terms = {"format": 1.0, "iou": 1.0}

    def prepare(self, example: Example) -> Example:
        if example.phrase:
            query, boxes = example.phrase.text, as_boxes([example.phrase.box_px])
        else:
            query, boxes = example.query, asked_boxes(example)
        if len(boxes) != 1:
            raise self.unfit(example, f"has {len(boxes)} boxes of '{query}' and not one", "refcoco")
        return replace(example, query=query, boxes_px=boxes, crowd=None)

    def answer_terms(self, example: Example, answer: Answer, result: TaskResult) -> dict[str, float]:
        return {"iou": matching.box_iou(result.boxes_px, example.boxes_px, self.reward_config.iou_power)}


class Counting(Perception):
    """Where every thing is, and how many there are."""

    name = "counting"
    terms = {"format": 1.0, "match": 1.0, "count": 1.0}

    def prepare(self, example: Example) -> Example:
        boxes = asked_boxes(example)
        count = example.count or (Count(len(boxes)) if len(boxes) else None)
        if not example.exhaustive or count is None:
            raise self.unfit(example, f"does not say how many '{example.query}' there are", "pixmo_count")
        if count.places_px is None and (len(boxes) or not count.number):
            count = Count(count.number, boxes)
        return replace(example, count=count)

    def answer_terms(self, example: Example, answer: Answer, result: TaskResult) -> dict[str, float]:
        right, kind = answer.count == example.count.number, self.reward_config.perception_reward
        terms = matching.counting_terms(self._affinity(example, result), right, self.matched, kind)
        if answer.readable:
            return terms
        return terms | {"match": 0.0, "count": float(right) if kind == "paper" else 0.0}

    def _affinity(self, example: Example, result: TaskResult) -> np.ndarray:
        """How well the answer's places fit the true ones (A, B); without true places each fits, and only numbers
        count."""
        places = example.count.places_px
        if places is None:
            return np.ones((len(result.boxes_px), example.count.number))
        return matching.place_affinity(result.boxes_px, places, example.size_px, self.reward_config.places)


class Ocr(Perception):
    """The text of a page."""

    name = "ocr"
    terms = {"format": 1.0, "text": 1.0}

    def prepare(self, example: Example) -> Example:
        if not example.text:
            raise self.unfit(example, "has no text", "pageocr")
        boxes = example.vqa.evidence_px if example.vqa else as_boxes([])
        return replace(example, query="text", boxes_px=boxes, crowd=None)

    def answer_terms(self, example: Example, answer: Answer, result: TaskResult) -> dict[str, float]:
        return {"text": text_similarity(answer.text, example.text)}


class Detection(Perception):
    """Boxes and names of all categories."""

    name = "detection"
    terms = {"format": 1.0, "location": 1.0, "class": 1.0, "number": 1.0, "missing": 1.0}

    def prepare(self, example: Example) -> Example:
        there = example.objects
        if there is None:
            raise self.unfit(example, "has no boxes of all categories", "coco_det")
        boxes = as_boxes(there.boxes_px)
        return replace(example, query="everything", boxes_px=boxes, crowd=there.crowd, areas=there.areas)

    def asked(self, example: Example) -> str | Sequence[str]:
        return example.objects.categories

    def answer_terms(self, example: Example, answer: Answer, result: TaskResult) -> dict[str, float]:
        found = matching.detection_terms(
            result.boxes_px, answer.labels, as_boxes(example.boxes_px), example.objects.labels, example.crowd,
            self.matched, forgiven(example, answer.labels), self.reward_config.perception_reward,
        )  # fmt: skip
        return found if answer.readable else dict.fromkeys(found, 0.0) | {"missing": found["missing"]}


def forgiven(example: Example, labels: Sequence[str]) -> np.ndarray:
    """Which of the named detections (A,) of a posed picture are not false if they match nothing.

    In a federated set (LVIS) those of a category that the picture was not checked for, or of which a part of the
    instances is boxed.
    """
    if example.objects.checked is None:
        return np.zeros(len(labels), dtype=bool)
    certain = {matching.plain(name) for name in example.objects.checked - example.objects.partly}
    return np.array([matching.plain(name) not in certain for name in labels], dtype=bool)
