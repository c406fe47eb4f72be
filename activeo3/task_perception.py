"""The four one-shot tasks on the interface of tasks.py: what is asked, how it is read, what it is worth.

An example of any data set is first *posed* as a question of the task, so that its boxes and fields are the
truth of that task, for the reward, the table and the pictures alike:

    grounding   query the phrase, boxes_px (1, 4)
    counting    query the name, count, with places_px (N, 4), None where they are not known
    ocr         text
    detection   boxes_px (N, 4) of everything, crowds marked, objects with labels (N) and categories

The policy sees the whole picture once, at --sensing_side. (Perception-R1, arXiv 2504.07954, section 4.)
"""

from dataclasses import dataclass, replace
from typing import Callable, Sequence

import numpy as np

from activeo3 import matching
from activeo3.config import Config, TrainConfig
from activeo3.data_io import DataError, Derived
from activeo3.geometry import Frame, as_boxes, clipped, ordered
from activeo3.metrics import asked_boxes
from activeo3.model import VisionLanguageModel
from activeo3.rewards import weighted
from activeo3.rollout import PromptSpec, sensing_view
from activeo3.task_perception_words import Answer, perception_prompt, read_answer
from activeo3.text_metrics import text_similarity
from activeo3.types import Count, Example, Parsed, ParsedAnswer, Reward, Rollout, TaskResult

# ---------------------------------------------------------------------- posing


def posed(task: str, example: Example) -> Example:
    """The example as a question of the task. Raises DataError, naming it, if it cannot be one."""
    return _POSES[task](example)


def _grounding(example: Example) -> Example:
    if example.phrase:
        query, boxes = example.phrase.text, as_boxes([example.phrase.box_px])
    else:
        query, boxes = example.query, asked_boxes(example)
    if len(boxes) != 1:
        raise _unfit(example, f"has {len(boxes)} boxes of '{query}' and not one", "grounding", "refcoco")
    return replace(example, query=query, boxes_px=boxes, crowd=None)


def _counting(example: Example) -> Example:
    boxes = asked_boxes(example)
    count = example.count or (Count(len(boxes)) if len(boxes) else None)
    if not example.exhaustive or count is None:
        raise _unfit(example, f"does not say how many '{example.query}' there are", "counting", "pixmo_count")
    if count.places_px is None and (len(boxes) or not count.number):
        count = Count(count.number, boxes)
    return replace(example, count=count)


def _ocr(example: Example) -> Example:
    if not example.text:
        raise _unfit(example, "has no text", "ocr", "pageocr")
    boxes = example.vqa.evidence_px if example.vqa else as_boxes([])
    return replace(example, query="text", boxes_px=boxes, crowd=None)


def _detection(example: Example) -> Example:
    there = example.objects
    if there is None:
        raise _unfit(example, "has no boxes of all categories", "detection", "coco_det")
    boxes = as_boxes(there.boxes_px)
    return replace(example, query="everything", boxes_px=boxes, crowd=there.crowd, areas=there.areas)


def _unfit(example: Example, why: str, task: str, data: str) -> DataError:
    return DataError(f"example {example.id} {why}, which --task {task} needs: use --data {data} or scenes", example.id)


_POSES: dict[str, Callable[[Example], Example]] = {
    "grounding": _grounding, "counting": _counting, "ocr": _ocr, "detection": _detection,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Posed(Derived):
    """A data set whose examples are posed when they are read; one that does not fit is passed over like a bad picture."""

    pose: Callable[[Example], Example]

    def __getitem__(self, index: int) -> Example:
        return self.pose(self.dataset[index])


# ---------------------------------------------------------------------- asking and reading


def ask(task: str, policy: VisionLanguageModel, example: Example, config: Config) -> PromptSpec:
    """The whole picture, and the task's question about it."""
    view, frame = sensing_view(policy, example.image, config.sensing_side, config.max_view_pixels)
    asked = example.objects.categories if task == "detection" else example.query
    return PromptSpec(view, frame, perception_prompt(task, asked, config.wording, config.thinking, policy.boxes))


def read(task: str, text: str, finished: bool, frame: Frame, example: Example, config: Config) -> Parsed:
    """An answer, with its boxes in original pixels, cut off at the picture's border, as its result."""
    answer = read_answer(task, text, finished, config.thinking, config.parser)
    return Parsed(answer, result=_result(answer, text, frame, example))


def _result(answer: ParsedAnswer, text: str, frame: Frame, example: Example) -> TaskResult:
    boxes = clipped(ordered(frame.to_px(as_boxes(answer.boxes_text))), example.size_px)
    strict = answer.strict and _result(answer.strict, text, frame, example)
    return TaskResult(boxes, np.ones(len(boxes)), (text,), strict=strict)


# ---------------------------------------------------------------------- worth


def score(task: str, rollout: Rollout, outcome: TaskResult, config: TrainConfig) -> Reward:
    """The task's terms (matching.TERMS) and their weighted sum, for a posed example.

    An answer that cannot be read earns nothing, also where nothing is to be found (matching.py, reading 5).
    """
    example, answer, matched, by = (
        rollout.example,
        rollout.action,
        config.matching == "hungarian",
        config.perception_reward,
    )
    assert isinstance(answer, Answer), f"example {example.id}: the answer was read by another task"
    terms = {"format": float(answer.error is None)}
    match task:
        case "grounding":
            terms["iou"] = matching.box_iou(outcome.boxes_px, example.boxes_px, config.iou_power)
        case "counting":
            right = answer.count == example.count.number
            found = matching.counting_terms(_places_found(example, outcome, config), right, matched, by)
            terms |= (
                found if answer.readable else found | {"match": 0.0, "count": float(right) if by == "paper" else 0.0}
            )
        case "ocr":
            terms["text"] = text_similarity(answer.text, example.text)
        case "detection":
            labels = example.objects.labels
            found = matching.detection_terms(
                outcome.boxes_px,
                answer.labels,
                as_boxes(example.boxes_px),
                labels,
                example.crowd,
                matched,
                forgiven(example, answer.labels),
                by,
            )
            terms |= found if answer.readable else dict.fromkeys(found, 0.0) | {"missing": found["missing"]}
    return weighted(terms, config.weights)


def forgiven(example: Example, labels: Sequence[str]) -> np.ndarray:
    """Which of the named detections (A,) of a posed picture are not false if they match nothing.

    In a federated set (LVIS) those of a category that the picture was not checked for, or of which a part of the
    instances is boxed.
    """
    if example.objects.checked is None:
        return np.zeros(len(labels), dtype=bool)
    certain = {matching.plain(name) for name in example.objects.checked - example.objects.partly}
    return np.array([matching.plain(name) not in certain for name in labels], dtype=bool)


def _places_found(example: Example, outcome: TaskResult, config: TrainConfig) -> np.ndarray:
    """How well the places said fit the true ones (A, B); where nobody pointed every one fits, and only their numbers differ."""
    places = example.count.places_px
    if places is None:
        return np.ones((len(outcome.boxes_px), example.count.number))
    return matching.place_affinity(outcome.boxes_px, places, example.size_px, config.places)
