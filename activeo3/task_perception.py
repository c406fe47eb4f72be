"""Four tasks without zooms (Perception-R1, arXiv 2504.07954, section 4): grounding, counting, ocr, detection.

``prepare`` makes an example of any data set a question of the task, so that its boxes and fields are the truth, for the
reward, the table and the drawings alike:

    grounding   query the phrase, boxes_px (1, 4)
    counting    query the name, count, with places_px (N, 4), None where they are not known
    ocr         text
    detection   boxes_px (N, 4) of everything, crowds marked, objects with labels (N) and categories

The policy sees the whole image once, at --sensing_side. matching.py has the
rewards.

How answers are read. Thinking, which the paper found to hurt all four (Table 5), is a flag: an answer must then stand
inside ``<answer>`` after a ``<think>``; without it the answer is the whole text, without any tag. Deviations:
  1. The sentences are our own, and the coordinates are JSON: the paper's model is Qwen2-VL, which writes boxes in
     special tokens. That model is asked for them here, too (families.py).
  2. An answer must fit its form from end to end. The released format reward has an unescaped ``|`` in its
     regular expression, which every text that begins with ``<`` satisfies.
  3. What cannot be read is no box. The released parser takes the first four numbers anywhere, and
     [0, 0, 0, 0] if there are none; ``--parser lenient`` takes boxes of any form, for the same format.
  4. Counting ends with the number, which must be that of the things listed; the paper counts the boxes.
     A number that was not given is theirs, and the form is then wrong.
"""

import json
import re
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Callable, Sequence

import numpy as np

from activeo3 import matching
from activeo3.answer_parsing import NUMBER_WORDS, answer_in, box_error, read_boxes
from activeo3.answer_text import (
    ANSWERS,
    LAYOUT,
    Item,
    boxes_in,
    decoded,
    four_numbers,
    last_number,
    limited,
    without_thoughts,
)
from activeo3.data_io import DataError
from activeo3.geometry import Frame, as_boxes, clipped, ordered
from activeo3.metrics import asked_boxes
from activeo3.model import VisionLanguageModel
from activeo3.prompts import PERCEPTION, perception_prompt
from activeo3.tasks import PromptSpec, Task, sensing_view
from activeo3.text_metrics import text_similarity
from activeo3.types import Count, Example, Parsed, ParsedAnswer, Rollout, TaskResult


@dataclass(frozen=True)
class Answer(ParsedAnswer):
    """An answer to a one-shot task, read. A point is a box without sides.

    ``count`` is the number of things, as it was said or else as they were listed, -1 if neither can be read; ``text``
    is what was read off a page, and empty for the other tasks.
    """

    count: int = 0
    text: str = ""


class Perception(Task):
    """What the four tasks share: one answer about the whole image, which is the result."""

    crops = False
    benchmark = "perception"

    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        """The whole image, and the task's question about it."""
        config = self.config
        view, frame = sensing_view(vlm, example.image, config.sensing_side, config.max_view_pixels)
        asked = self.asked(example)
        return PromptSpec(view, frame, perception_prompt(self.name, asked, config.words, config.thinking, vlm.boxes))

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
            result.boxes_px, answer.labels,
            matching.Truth(as_boxes(example.boxes_px), example.objects.labels, example.crowd),
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


# ---------------------------------------------------------------------- prompts and answers


TASKS = tuple(PERCEPTION)
"""The four tasks by name."""

ERRORS = (
    "unfinished", "tags", "json", "not_a_list", "no_bbox_2d", "not_four_numbers", "not_finite",
    "empty", "not_one", "no_label", "no_count", "count_differs",
)  # fmt: skip
"""Everything that can be wrong with an answer."""


def perception_answer(body: str, thought: str | None = None) -> str:
    """A well-formed answer: the body alone, or inside its tags after a thought."""
    return body if thought is None else f"<think>{thought}</think><answer>{body}</answer>"


def labelled_answer(boxes_text: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """A well-formed answer of detection: compact JSON.

    >>> labelled_answer([(10, 20, 30, 40)], ["cup"])
    '[{"bbox_2d":[10,20,30,40],"label":"cup"}]'
    """
    items = [{"bbox_2d": list(box), "label": label} for box, label in zip(boxes_text, labels, strict=True)]
    return json.dumps(items, separators=(",", ":"))


def read_answer(task: str, text: str, finished: bool = True, thinking: bool = False, parser: str = "strict") -> Answer:
    """Read the answer to one of TASKS; what is wrong with it is ``error``, and what can be used is kept.

    Args:
        text: the sampled answer without its end token.
        finished: False when the answer hit the length limit.
        thinking: whether it must think first.
        parser: ``lenient`` also reads other forms, where that is more than the strict reader finds; the error stays.

    >>> read_answer("grounding", "[10, 20, 30, 40]").boxes_text
    ((10.0, 20.0, 30.0, 40.0),)
    >>> read_answer("counting", '[{"point_2d": [3, 4]}] 2')
    Answer(boxes_text=((3.0, 4.0, 3.0, 4.0),), labels=('',), error='count_differs', count=2, text='')
    >>> read_answer("grounding", "<[1, 2, 3, 4]").error
    'json'
    """
    text = limited(text)
    strict = _read_answer(task, text, finished, thinking)
    if parser == "strict" or strict.error is None:
        return strict
    kind = _LENIENT[task](answer_in(text), strict)
    return strict if kind == strict else replace(kind, error=strict.error, strict=strict)


def _read_answer(task: str, text: str, finished: bool, thinking: bool) -> Answer:
    """``read_answer`` of the strict reader."""
    body, tagged = _body(text, thinking)
    if body is None:
        return Answer((), (), "tags" if finished else "unfinished", count=-1 if task == "counting" else 0)
    answer = _READ[task](body, finished)
    error = answer.error if tagged else "tags"
    return replace(answer, error=error if finished else "unfinished")


_TAG = re.compile(r"</?(?:think|answer)>")
_COUNT = re.compile(r"\s*+(\d{1,6})\s*+")


def _body(text: str, thinking: bool) -> tuple[str | None, bool]:
    """The part of the text that answers (None: there is none), and whether the tags are as they must be."""
    layout, outside = LAYOUT.fullmatch(text), without_thoughts(text)
    if thinking and layout:
        return layout.group(2), True
    inside = ANSWERS.findall(outside)
    if inside:
        return inside[-1], False
    if thinking or _TAG.search(outside):
        return None, False
    return outside, outside == text


def _grounding(body: str, finished: bool) -> Answer:
    """One box: four bare numbers, or the one item of a list as the task model writes it."""
    numbers = decoded(body)
    if isinstance(numbers, list) and not all(isinstance(item, dict) for item in numbers):
        wrong = box_error(numbers)
        return Answer((), (), wrong) if wrong else Answer((tuple(map(float, numbers)),), ("",))  # type: ignore[arg-type]
    action = read_boxes(body, finished)
    error = (
        action.error or (None if action.boxes_text else "empty") or (None if len(action.boxes_text) == 1 else "not_one")
    )
    return Answer(action.boxes_text[:1], action.labels[:1], error)


def _counting(body: str, finished: bool) -> Answer:
    """A list of boxes or points, and the number."""
    end = max(body.rfind("]"), body.rfind("`")) + 1  # of the list, or of the fence around it
    stated = _COUNT.fullmatch(body, end)
    action = read_boxes(body[:end] if stated else body, finished, points=True)
    listed = len(action.boxes_text)
    count = int(stated.group(1)) if stated else listed if action.readable else -1
    error = action.error or (None if stated else "no_count") or (None if count == listed else "count_differs")
    return Answer(action.boxes_text, action.labels, error, count=count)


def _ocr(body: str, finished: bool) -> Answer:
    """The text, whatever it is."""
    return Answer((), (), None if body.strip() else "empty", text=body.strip())


def _detection(body: str, finished: bool) -> Answer:
    """A list of boxes, each with a name; one without a name is kept and is an error."""
    action = read_boxes(body, finished)
    return Answer(action.boxes_text, action.labels, action.error or (None if all(action.labels) else "no_label"))


_READ: dict[str, Callable[[str, bool], Answer]] = {
    "grounding": _grounding, "counting": _counting, "ocr": _ocr, "detection": _detection,
}  # fmt: skip


# ---------------------------------------------------------------------- the lenient reader


def _any_box(body: str, strict: Answer) -> Answer:
    """The first box of any form, or four numbers alone."""
    items, alone = boxes_in(body), four_numbers(body)
    items = items or ([Item(alone, "", (0, 0))] if alone else [])
    return strict if strict.boxes_text else _listed(items[:1], strict)


def _any_count(body: str, strict: Answer) -> Answer:
    """Places of any form, and the last number beside them, in digits or in words; without one, how many places there
    are."""
    items = boxes_in(body, points=True)
    kind = _listed(items, strict)
    if strict.error == "count_differs" or strict.count >= 0 and not kind.boxes_text:
        return strict  # it has said its number
    stated = last_number(body, items, NUMBER_WORDS)
    return replace(kind, count=stated if stated is not None else len(kind.boxes_text) if kind.readable else -1)


def _any_text(body: str, strict: Answer) -> Answer:
    """What is no thought."""
    return strict if strict.text else replace(strict, text=body)


def _any_boxes(body: str, strict: Answer) -> Answer:
    """Boxes of any form with their labels."""
    return _listed(boxes_in(body), strict)


def _listed(items: Sequence[Item], strict: Answer) -> Answer:
    """The strict reader's answer with these boxes in the place of its own, if they are more."""
    if len(items) <= len(strict.boxes_text):
        return strict
    return replace(strict, boxes_text=tuple(item.box for item in items), labels=tuple(item.label for item in items))


_LENIENT: dict[str, Callable[[str, Answer], Answer]] = {
    "grounding": _any_box, "counting": _any_count, "ocr": _any_text, "detection": _any_boxes,
}  # fmt: skip
