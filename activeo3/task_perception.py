"""The four one-shot tasks on the interface of tasks.py: what is asked, how it is read, what it is worth.

An example of any data set is first *posed* as a question of the task, so that ``boxes_px`` and the fields are the
truth of that task, for the reward, the table and the pictures alike:

    grounding   query the phrase, boxes_px (1, 4)
    counting    query the name, fields count and places_px (N, 4), None where nobody pointed; a point is a box
                without sides
    ocr         field text
    detection   boxes_px (N, 4) of everything, crowds marked, fields labels (N) and categories

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
from activeo3.types import Example, Parsed, ParsedAnswer, Reward, Rollout, TaskResult

# ---------------------------------------------------------------------- posing


def posed(task: str, example: Example) -> Example:
    """The example as a question of the task. Raises DataError, naming it, if it cannot be one."""
    return _POSES[task](example)


def _grounding(example: Example) -> Example:
    if "referred" in example.fields:
        query, boxes = example.fields["referred"]["text"], as_boxes([example.fields["referred"]["box_px"]])
    else:
        query, boxes = example.query, asked_boxes(example)
    if len(boxes) != 1:
        raise _unfit(example, f"has {len(boxes)} boxes of '{query}' and not one", "grounding", "refcoco")
    return replace(example, query=query, boxes_px=boxes, crowd=None)


def _counting(example: Example) -> Example:
    fields = dict(example.fields)
    boxes = asked_boxes(example)
    if not fields.get("exhaustive", True) or not (len(boxes) or "count" in fields):
        raise _unfit(example, f"does not say how many '{example.query}' there are", "counting", "pixmo_count")
    if "points_px" in fields:
        points = np.asarray(fields["points_px"], dtype=np.float64).reshape(-1, 2)
        places = np.concatenate([points, points], axis=1)
    else:
        places = boxes if len(boxes) or not fields["count"] else None
    fields |= {"count": int(fields.get("count", len(boxes))), "places_px": places}
    return replace(example, fields=fields)


def _ocr(example: Example) -> Example:
    text = example.fields.get("text") or example.fields.get("reading", {}).get("answer")
    if not text:
        raise _unfit(example, "has no text", "ocr", "pageocr")
    boxes = as_boxes([example.fields["reading"]["box_px"]]) if "reading" in example.fields else np.zeros((0, 4))
    return replace(example, query="text", boxes_px=boxes, crowd=None, fields={**example.fields, "text": text})


def _detection(example: Example) -> Example:
    if "things" in example.fields:  # of the embedded world
        things = example.fields["things"]
        fields = {key: things[key] for key in ("labels", "categories")}
        return replace(example, query="everything", boxes_px=as_boxes(things["boxes_px"]), crowd=None, fields=fields)
    if not {"labels", "categories"} <= set(example.fields):
        raise _unfit(example, "has no boxes of all categories", "detection", "coco_det")
    return example


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
    asked = example.fields["categories"] if task == "detection" else example.query
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
            right = answer.count == example.fields["count"]
            found = matching.counting_terms(_places_found(example, outcome, config), right, matched, by)
            terms |= (
                found if answer.readable else found | {"match": 0.0, "count": float(right) if by == "paper" else 0.0}
            )
        case "ocr":
            terms["text"] = text_similarity(answer.text, example.fields["text"])
        case "detection":
            labels = example.fields["labels"]
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
    if "checked" not in example.fields:
        return np.zeros(len(labels), dtype=bool)
    certain = {matching.plain(name) for name in example.fields["checked"] - example.fields["partly"]}
    return np.array([matching.plain(name) not in certain for name in labels], dtype=bool)


def _places_found(example: Example, outcome: TaskResult, config: TrainConfig) -> np.ndarray:
    """How well the places said fit the true ones (A, B); where nobody pointed every one fits, and only their numbers differ."""
    places = example.fields["places_px"]
    if places is None:
        return np.ones((len(outcome.boxes_px), example.fields["count"]))
    return matching.place_affinity(outcome.boxes_px, places, example.size_px, config.places)
