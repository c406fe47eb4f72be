"""The words of the four one-shot tasks, in which the answer is the result, and how the answers are read.

    grounding   the one box of a phrase             [x1, y1, x2, y2]
    counting    where every thing is, then how many [{"bbox_2d": ...}, {"point_2d": ...}] 2
    ocr         the text of a page                  the text itself
    detection   boxes and names of all categories   [{"bbox_2d": ..., "label": "cup"}]

The tasks are Perception-R1's (arXiv 2504.07954, Table 8). ``paper`` asks in a sentence as it does, ``short``
in a few words. Thinking, which the paper found to hurt all four (Table 5), is a flag: an answer must then
stand inside ``<answer>`` after a ``<think>``, and without it the answer is the whole text, without any tag.

Deviations from the paper:
  1. The sentences are our own, and the coordinates are JSON: the paper's model is Qwen2-VL, which writes boxes in
     special tokens. That model is asked for them here, too (box_tokens.py).
  2. An answer must fit its form from end to end. The released format reward has an unescaped ``|`` in its
     regular expression, which every text that begins with ``<`` satisfies.
  3. What cannot be read is no box. The released parser takes the first four numbers anywhere, and
     [0, 0, 0, 0] if there are none; ``--parser lenient`` takes boxes of any form (answer_text.py), for the same format.
  4. Counting ends with the number, which must be that of the things listed; the paper counts the boxes.
     A number that was not said is theirs, and the form is then wrong.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Callable, Sequence

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
from activeo3.prompts import in_form
from activeo3.types import ParsedAnswer

_PROMPTS: dict[str, dict[str, str]] = {
    "grounding": {
        "paper": "Give the bounding box of {object} in this image as [x1, y1, x2, y2].",
        "short": "Find the {object}.",
    },
    "counting": {
        "paper": (
            "Give the bounding box, or a point, of every {object} in this image as a JSON list of objects of the form "
            '{{"bbox_2d": [x1, y1, x2, y2]}} or {{"point_2d": [x, y]}}, and after the list how many there are.'
        ),
        "short": "Count every {object}.",
    },
    "ocr": {"paper": "Do OCR on this image.", "short": "Read."},
    "detection": {
        "paper": (
            "Give the bounding boxes and the names of all things in this image that are one of: {object}. Answer with "
            'a JSON list of objects of the form {{"bbox_2d": [x1, y1, x2, y2], "label": "name"}}.'
        ),
        "short": "Find and name everything.",
    },
}
_THINK = {
    "paper": (
        " First reason inside <think> </think> tags, then put the answer inside <answer> </answer> tags. "
        "The layout is: <think> your reasoning </think> <answer> the answer </answer>"
    ),
    "short": " Think first.",
}

TASKS = tuple(_PROMPTS)
"""The four tasks by name."""

ERRORS = (
    "unfinished", "tags", "json", "not_a_list", "no_bbox_2d", "not_four_numbers", "not_finite",
    "empty", "not_one", "no_label", "no_count", "count_differs",
)  # fmt: skip
"""Everything that can be wrong with an answer."""


@dataclass(frozen=True)
class Answer(ParsedAnswer):
    """An answer to a one-shot task, read. A point is a box without sides.

    ``count`` is the number of things, as it was said or else as they were listed, -1 if neither can be read; ``text``
    is what was read off a page, and empty for the other tasks.
    """

    count: int = 0
    text: str = ""


def perception_prompt(
    task: str, asked: str | Sequence[str], wording: str, thinking: bool = False, boxes: str = "json"
) -> str:
    """What a model is asked in one of TASKS; ``asked`` is a phrase or, for detection, all category names.

    >>> perception_prompt("grounding", "red cup", "short")
    'Find the red cup.'
    """
    words = asked if isinstance(asked, str) else ", ".join(asked)
    return in_form(_PROMPTS[task][wording], boxes).format(object=words) + (_THINK[wording] if thinking else "")


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
    said = _COUNT.fullmatch(body, end)
    action = read_boxes(body[:end] if said else body, finished, points=True)
    listed = len(action.boxes_text)
    count = int(said.group(1)) if said else listed if action.readable else -1
    error = action.error or (None if said else "no_count") or (None if count == listed else "count_differs")
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
    said = last_number(body, items, NUMBER_WORDS)
    return replace(kind, count=said if said is not None else len(kind.boxes_text) if kind.readable else -1)


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
