"""What an episode is worth: is its answer right, and did it look where the evidence is?

    R = w_answer answer + w_evidence evidence - w_calls calls

    answer     0 to 1, by the kind of question: exact, number, anls (DocVQA), choice
    evidence   answer x |U and E| / |E| x (1 - |U| / |picture|)
               E: where the evidence is; U: all regions that were looked at, together
    calls      how many zooms were asked for, executed or not

Active-Perception-R1's process reward pays for every call anew, counts recall alone and does not ask whether
the answer is right: three zooms at one place with a wrong answer earn more there than a right answer without
a zoom, and so does the whole picture three times. Here a place counts once (U is a union), what was not
narrowed down is subtracted (the whole picture earns 0), evidence for a wrong answer earns nothing (unless
``gated`` is False), and every call costs. Its own formula stays selectable, to compare: ``per_call``.

Readings of what that system leaves open:
  1. There, a region above 65 % of the view was shown at a discount. Where ours refuses it, ``per_call``
     still values the request as it would have.
  2. A call beyond the third costs there 0.10; we take it that it earns nothing besides.
  3. An episode without an answer that counts earns nothing for its zooms, whatever the evidence is worth otherwise; its
     costs stay. There, the last line of any text was an answer.

Deviation from DocVQA: its script divides the distance of two answers without surplus white space by the length of the
longer one as it was written. Here that is the length without it, too: spaces around an answer do not make it more alike.
"""

import re
from typing import Sequence

import numpy as np

from activeo3 import geometry
from activeo3.answer_parsing import read_letter
from activeo3.answer_text import normalised
from activeo3.data_io import DataError
from activeo3.text_metrics import edit_distance
from activeo3.types import VQA, Example, Zoom

KINDS = ("exact", "number", "anls", "choice")
ANLS_LEAST = 0.5  # tau of DocVQA (arXiv 2007.00398): an answer less alike than this is wrong


def asked_of(example: Example) -> VQA:
    """The example's question in words. Raises DataError without a question or a public answer."""
    if example.vqa is None:
        raise DataError(f"example {example.id} asks nothing that is answered in words.", example.id)
    if not example.vqa.answers:
        raise DataError(
            f"example {example.id} has no public answer: its data set can only be asked and submitted.", example.id
        )
    if (kind := example.vqa.scored_by) not in KINDS:
        raise DataError(
            f"example {example.id} has an answer of kind {kind!r}; known are {', '.join(KINDS)}.", example.id
        )
    return example.vqa


# ---------------------------------------------------------------------- is the answer right?


def rightness(said: str | None, asked: VQA) -> float:
    """How right an answer is, 0 to 1; none at all is 0.

    >>> rightness('"Forty-two". ', VQA("?", ("42", "forty-two")))
    1.0
    """
    if said is None:
        return 0.0
    match asked.scored_by:
        case "exact":
            return float(normal(said) in map(normal, asked.answers))
        case "number":
            return float(any(same_number(said, right, asked.tolerance) for right in asked.answers))
        case "anls":
            return max(likeness(said, right) for right in asked.answers)
        case "choice":
            return float(read_letter(said, asked.options).value in asked.answers)
    raise ValueError(f"unknown kind of answer {asked.scored_by!r}")


def normal(text: str) -> str:
    """A text without what says nothing: case, extra space, quotation marks around it, a full stop at its end."""
    text = " ".join(normalised(text).split()).casefold()
    return text.strip("\"'`“”‘’ ").removesuffix(".").strip("\"'`“”‘’ ")


_DIGITS = r"\d{1,3}(?:,\d{3})++(?:\.\d++)?|\d++(?:\.\d++)?|\.\d++"
_QUANTITY = re.compile(rf"([$€£¥]?) ?([+-]?) ?([$€£¥]?) ?({_DIGITS}) ?(%?)")  # of ``normal`` text


def quantity(text: str) -> tuple[float, str] | None:
    """(value, unit) of a number with thousands marked or not, and a currency before or a % behind it.

    >>> quantity("$1,284.50"), quantity("-12 %"), quantity("12 apples")
    ((1284.5, '$'), (-12.0, '%'), None)
    """
    match = _QUANTITY.fullmatch(normal(text))
    if not match:
        return None
    before, sign, between, digits, percent = match.groups()
    return float(sign + digits.replace(",", "")), before or between or percent


def same_number(said: str, right: str, tolerance: float) -> bool:
    """Are both numbers, of one unit where both name one, and as far apart as the tolerance allows or less?"""
    a, b = quantity(said), quantity(right)
    if a is None or b is None or (a[1] and b[1] and a[1] != b[1]):
        return False
    return abs(a[0] - b[0]) <= tolerance * abs(b[0]) + 1e-9


def likeness(said: str, right: str) -> float:
    """DocVQA's normalised Levenshtein similarity of two answers, 0 below ANLS_LEAST.

    >>> likeness("Paris", "paris"), likeness("Pariss", "Paris"), likeness("Rome", "Paris")
    (1.0, 0.8333333333333334, 0.0)
    """
    alike = 1.0 - edit_distance(said.lower(), right.lower())
    return alike if alike >= ANLS_LEAST else 0.0


# ---------------------------------------------------------------------- did it look where the evidence is?


TERMS = ("answer", "evidence", "calls")


def terms(
    said: str | None,
    zooms: Sequence[Zoom],
    asked: VQA,
    size: tuple[int, int],
    gated: bool = True,
    per_call: bool = False,
) -> dict[str, float]:
    """The terms of the reward: ``answer``, ``evidence`` and ``calls`` (a count, negative).

    ``size`` is that of the picture. With ``per_call``, ``evidence`` is Active-Perception-R1's process reward
    and calls cost nothing, so that weights 1, 0.35 and any give that system's own score.
    """
    right = rightness(said, asked)
    if per_call:
        process = process_per_call(zooms, asked.evidence_px)
        return {"answer": right, "evidence": process if said is not None else min(0.0, process), "calls": 0.0}
    looked_at = geometry.as_boxes([zoom.window_px for zoom in zooms if zoom.status == "zoom_executed"])
    found = evidence(looked_at, asked.evidence_px, size)
    return {
        "answer": right,
        "evidence": found * (right if gated else float(said is not None)),
        "calls": 0.0 - len(zooms),
    }


def evidence(regions_px: np.ndarray, evidence_px: np.ndarray, size: tuple[int, int]) -> float:
    """How much of the evidence the regions show together, times how much of the picture they leave out.

    Both in 0 to 1. Order, number and overlap of the regions change nothing; a region that shows no new
    evidence can only lower the value; the whole picture is worth 0, and so is a question without evidence.

    >>> box = geometry.as_boxes([[10, 10, 20, 20]])
    >>> evidence(geometry.as_boxes([[10, 10, 20, 15], [10, 10, 20, 15]]), box, (100, 100))
    0.4975
    """
    seen = geometry.union_area(regions_px)
    return covered(regions_px, evidence_px) * max(0.0, 1.0 - seen / (size[0] * size[1]))


def covered(regions_px: np.ndarray, evidence_px: np.ndarray) -> float:
    """The share of the evidence's area that the regions show together; 0 without evidence.

    >>> covered(geometry.as_boxes([[10, 10, 20, 15], [10, 10, 20, 15]]), geometry.as_boxes([[10, 10, 20, 20]]))
    0.5
    """
    truth, seen = geometry.union_area(evidence_px), geometry.union_area(regions_px)
    if truth == 0 or seen == 0:
        return 0.0
    shared = truth + seen - geometry.union_area(np.concatenate([evidence_px, regions_px]))
    return max(0.0, shared / truth)


MOST_CALLS = 3
_PER_CALL = {"malformed_zoom": -0.20, "invalid_zoom": -0.20, "too_small": -0.10, "zoom_limit": -0.10}
_VALID, _LARGE, _ABOVE, _NO_VALID = 0.10, -0.08, 0.65, -0.15


def process_per_call(zooms: Sequence[Zoom], evidence_px: np.ndarray) -> float:
    """The process reward of Active-Perception-R1 (reward file at commit 14f2841), which can be farmed.

    Every valid zoom earns 0.10 and the largest share of an evidence box that it shows, again and again.
    """
    total, valid = 0.0, 0
    for number, zoom in enumerate(zooms, start=1):
        status = "zoom_limit" if number > MOST_CALLS else zoom.status
        if status in _PER_CALL:
            total += _PER_CALL[status]
            continue
        shown = geometry.containment(evidence_px, geometry.as_boxes([zoom.window_px]))  # (E, 1)
        total += _VALID + _LARGE * (zoom.share > _ABOVE) + float(shown.max(initial=0.0))
        valid += 1
    return total + _NO_VALID * (valid == 0 and len(evidence_px) > 0)
