"""Parses the zoom requests of a turn, in every notation, and checks each against the view.

    <zoom_roi x0="0.2" y0="0.1" x1="0.5" y1="0.4" />      or x, y, w, h; shares of the view, or its coordinates
    {"bbox_2d": [20, 10, 50, 40]}                         bare, in a list, or in the arguments of a tool call

Coordinates refer to the view that the model has just seen, so zooms nest; the crop itself is always cut from
the original picture, whatever its depth. A turn is read into its calls, in their order, and at most one answer,
the last; a call that comes to nothing has a name for the reason (``STATUSES``), never an exception. How many
of the calls are looked at is not decided here (task_zoom_qa.py).

The tag and the names are those of Active-Perception-R1 (commit 14f2841), with these differences:
  1. A tag counts wherever it stands, except inside ``<answer>``; there, the first think block alone was
     read. A JSON box counts outside of thoughts only, and so does an answer: what is merely thought about is no action.
  2. Without ``normalized``, numbers are shares of the view if none is above 2, not 1: a slip like x1="1.2"
     is then outside of the view rather than a region of one pixel. No real region has two pixels.
  3. Regions are bounded by the view in either unit; there, pixel boxes were not.
  4. A region that is too large is refused, not shown at a discount.
"""

import re
from dataclasses import dataclass
from itertools import islice
from typing import Any, Iterator, Literal, get_args

import numpy as np

from activeo3 import geometry
from activeo3.answer_parsing import answer_in, box_error, objects_in
from activeo3.answer_text import MAX_BOXES, NO_ANSWER_TAG, boxes_in, decoded, last_words, limited, without_thoughts
from activeo3.geometry import Frame
from activeo3.types import Region, Zoom

Status = Literal[
    "zoom_executed", "malformed_zoom", "invalid_zoom", "too_small", "too_large", "zoom_limit",
    "answered", "answered_without_zoom", "answered_early", "missing_zoom", "truncated",
]  # fmt: skip
STATUSES: tuple[Status, ...] = get_args(Status)
"""The status of a turn.

    zoom_executed          the region was shown
    malformed_zoom         a zoom that cannot be read: no four numbers, broken JSON, an open tag
    invalid_zoom           corners out of order, or outside of the view
    too_small, too_large   its share of the view's area is not allowed
    zoom_limit             a zoom although none, or no turn to look at it, was left
    answered               an answer, after a look
    answered_without_zoom  an answer without a look
    answered_early         an answer that is not taken: fewer looks than there must be came before it
    missing_zoom           neither a zoom nor an answer
    truncated              cut off by the length limit
"""


@dataclass(frozen=True)
class Call:
    """A region that was asked for: ``box`` (x1, y1, x2, y2) in shares of the view if ``shares``, else in its
    coordinate system (pixels for Qwen2.5-VL, thousandths for Qwen3-VL)."""

    box: tuple[float, float, float, float]
    shares: bool


@dataclass(frozen=True)
class ParsedTurn:
    """A turn, read: zooms (``calls`` in their order, None for one that cannot be read), an answer, both or neither.

    ``lenient_only``: the strict reader would have found no zoom that can be read, and no answer.
    """

    calls: tuple[Call | None, ...] = ()
    answer: str | None = None
    lenient_only: bool = False

    @property
    def call(self) -> Call | None:
        """The first zoom; None if there is none, or it is ``malformed``."""
        return self.calls[0] if self.calls else None

    @property
    def malformed(self) -> bool:
        """Is the first zoom one that cannot be read?"""
        return self.calls[:1] == (None,)

    @property
    def zooms(self) -> bool:
        """Does it ask for a look, in whatever form?"""
        return bool(self.calls)


@dataclass(frozen=True)
class Limits:
    """Which regions are shown: their ``least`` and ``most`` share of the area of the view they are in."""

    least: float = 0.02
    most: float = 0.65


# ---------------------------------------------------------------------- reading

_ANSWER = re.compile(rf"<answer>({NO_ANSWER_TAG})</answer>", re.IGNORECASE)
# A thought that is closed without having been opened began with the text (answer_text.without_thoughts).
_THINK = re.compile(
    r"\A(?:[^<]++|<(?!/?think>))*+</think>|<think>(?:[^<]++|<(?!/think>))*+(?:</think>)?", re.IGNORECASE
)
_TAG = re.compile(r"<zoom_roi\b([^<>]*+)>?", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""\s++([a-z_]\w*+)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)')""", re.IGNORECASE)
_END = re.compile(r"\s*+(?:/\s*+)?")
_NUMBER = re.compile(r"\s*+[+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?\s*+")
_CORNERS, _SIDES = ("x0", "y0", "x1", "y1"), ("x", "y", "w", "h")
_WORD = '"bbox_2d"'
_OBJECT_OR_WORD = re.compile(rf"\{{[^{{}}]*+\}}|{_WORD}")
_SHARES_UP_TO = 2.0  # difference 2
_ROUNDING = 1e-9


def read_turn(text: str, parser: str = "strict") -> ParsedTurn:
    """What a turn says; the text is without its end token.

    Where the strict reader finds neither an answer nor a zoom that can be read, the ``lenient`` one takes boxes of any
    form outside of thoughts for zooms, or, if there are none, the last words for an answer.

    >>> read_turn('<think>top <zoom_roi x0="0" y0="0" x1="0.5" y1="0.4"/></think>').call
    Call(box=(0.0, 0.0, 0.5, 0.4), shares=True)
    >>> read_turn('<answer>42</answer>').answer
    '42'
    """
    text = limited(text)
    parsed = _read_turn(text)
    if parser == "strict" or parsed.answer is not None or any(parsed.calls):
        return parsed
    calls = tuple(_call_of(list(item.box)) for item in boxes_in(_blanked(_THINK, text)))
    answer = None if calls or parsed.zooms else last_words(answer_in(text))
    return ParsedTurn(calls, answer, True) if calls or answer is not None else parsed


def _read_turn(text: str) -> ParsedTurn:
    """``read_turn`` of the strict reader."""
    answers = _ANSWER.findall(without_thoughts(text))
    return ParsedTurn(tuple(islice(_calls_in(text), MAX_BOXES)), answers[-1].strip() if answers else None)


def _calls_in(text: str) -> Iterator[Call | None]:
    """The calls of a turn in their order: tags outside of answers, and JSON outside of thoughts as well."""
    outside, begin = _blanked(_ANSWER, text), 0
    spoken = _blanked(_THINK, outside)
    for tag in _TAG.finditer(outside):
        yield from _json_calls(spoken[begin : tag.start()])
        yield _call_in_tag(tag)
        begin = tag.end()
    yield from _json_calls(spoken[begin:])


def _blanked(pattern: re.Pattern[str], text: str) -> str:
    """The text with every match replaced by as many spaces."""
    return pattern.sub(lambda match: " " * len(match.group()), text)


def _call_in_tag(tag: re.Match[str]) -> Call | None:
    """The call of a ``zoom_roi`` tag; None if it is open, or its attributes are no region."""
    values = _attributes(tag.group(1))
    names = _CORNERS if set(_CORNERS) <= values.keys() else _SIDES
    if not tag.group().endswith(">") or not all(_NUMBER.fullmatch(values.get(name, "")) for name in names):
        return None
    a, b, c, d = (float(values[name]) for name in names)
    box = [a, b, c, d] if names == _CORNERS else [a, b, a + c, b + d]
    if "normalized" not in values:
        return _call_of(box)
    return _call_of(box, shares=values["normalized"].strip().lower() not in ("0", "false", "no"))


def _attributes(inside: str) -> dict[str, str]:
    """The attributes of a tag by name, in lower case; none if anything else is in it."""
    values, begin = {}, 0
    while attribute := _ATTRIBUTE.match(inside, begin):
        values[attribute.group(1).lower()] = attribute.group(2) or attribute.group(3) or ""
        begin = attribute.end()
    return values if _END.fullmatch(inside, begin) else {}


def _call_of(box: Any, shares: bool | None = None) -> Call | None:
    """Four finite numbers as a call; ``shares`` None: decided by their size."""
    if box_error(box):
        return None
    x1, y1, x2, y2 = map(float, box)
    return Call((x1, y1, x2, y2), max(box) <= _SHARES_UP_TO if shares is None else shares)


def _json_calls(text: str) -> Iterator[Call | None]:
    """A call for every ``bbox_2d`` of a text; None where that word is in no object that can be read.

    The text is a JSON value from end to end, or else its objects are read that have no others inside.
    """
    if _WORD not in text:
        return
    whole = [item["bbox_2d"] for item in objects_in(decoded(text))]
    yield from map(_call_of, whole)
    for part in () if whole else _OBJECT_OR_WORD.finditer(text):
        item = decoded(part.group()) if _WORD in part.group() else {}
        if isinstance(item, dict):
            yield from [_call_of(item["bbox_2d"])] if "bbox_2d" in item else []
        else:
            yield from [None] * part.group().count(_WORD)


# ---------------------------------------------------------------------- checks


def check_zoom(call: Call, frame: Frame, limits: Limits = Limits()) -> Zoom:
    """The zoom that a call on the view of ``frame`` yields, or the status that rejects it.

    The edges of the view and both limits are allowed; rounding is forgiven.

    >>> frame = Frame((100, 100, 300, 200), (1000, 1000))
    >>> check_zoom(Call((0.5, 0.0, 1.0, 0.5), shares=True), frame).window_px
    Region(x1=200.0, y1=100.0, x2=300.0, y2=150.0)
    """
    scale = np.array(frame.scale * 2, dtype=np.float64)
    part = np.array(call.box) / (1.0 if call.shares else scale)  # shares of the view's sides
    if not (part[0] < part[2] and part[1] < part[3]) or part.min() < -_ROUNDING or part.max() > 1 + _ROUNDING:
        return Zoom("invalid_zoom")
    part = part.clip(0, 1)
    share = float((part[2] - part[0]) * (part[3] - part[1]))
    window = Region(*frame.to_px(geometry.as_boxes(part * scale))[0].tolist())
    if share < limits.least - _ROUNDING or not (window.x1 < window.x2 and window.y1 < window.y2):
        return Zoom("too_small", window, share)
    return Zoom("too_large" if share > limits.most + _ROUNDING else "zoom_executed", window, share)
