"""The lenient reader: the boxes of a text, whatever form they have. It finds what a model means, not whether it obeyed.

A model that was not trained here says the right thing in a form of its own. Read strictly it would lose to a trained one by
its form, which is not what a comparison should measure. Read as a box, or several, with the label in the same object:

    {"bbox_2d": [1, 2, 30, 40]}        alone, listed, nested, in prose or a fence, with broken ones beside it
    {'bbox': (1, 2, 30, 40,), ...}     another key or none, single quotes, round brackets, trailing commas
    "bbox_2d": "1, 2, 30, 40"          the numbers as words, together or each
    {"bbox_2d [1, 2, 30, 40]"}         the numbers inside the key
    {"x1": 1, "y1": 2, "x2": 30, "y2": 40}, also left, top, right, bottom, xmin and so on
    <|box_start|>(1,2),(30,40)<|box_end|>, [[1, 2], [30, 40]]

Three numbers, or five, are no box; nor is anything without brackets, key or names around its numbers. The format reward
knows nothing of this room (answer_parsing.py).

Every repetition is bounded, and none goes back over more than a few characters, so reading takes time linear in the text.
"""

import json
import re
from itertools import islice
from typing import Iterator, NamedTuple

from activeo3.answer_text import MOST_BOXES

TextBox = tuple[float, float, float, float]


class Item(NamedTuple):
    """A box as it was written (corners maybe swapped), its label or "", and where it stands in the text."""

    box: TextBox
    label: str
    span: tuple[int, int]


_GAP = r"\s{0,20}+"
_NUMBER = r"""["']?([-+]?(?:\d{1,10}(?:\.\d{0,12})?|\.\d{1,12})(?:[eE][-+]?\d{1,2})?)["']?"""
_COMMA = rf"(?:{_GAP}[,;]{_GAP}|\s{{1,20}}+)"
_FOUR = _COMMA.join([_NUMBER] * 4)
_TWO = _COMMA.join([_NUMBER] * 2)
_END = rf"(?!{_GAP}[,;]?{_GAP}[\"']?[-+.\d])"  # no further number
_IS = rf"""["']?{_GAP}[:=]{_GAP}"""
_BETWEEN = r"""[\s,;"']{1,20}+"""
_CORNER = rf"[\[(]{_GAP}{_TWO}{_GAP}[\])]"


def _named(*names: str) -> str:
    """Numbers behind these names (alternatives each), in their order."""
    return r"\b" + _BETWEEN.join(rf"(?:{name}){_IS}{_NUMBER}" for name in names)


_BOXES = (
    rf"b?box\w{{0,8}}[\"'\s:=(\[]{{1,12}}{_FOUR}{_END}",
    rf"[\[(]{_GAP}{_FOUR}{_GAP},?{_GAP}[\])]",
    _named("x_?min|left|x[01]", "y_?min|top|y[01]", "x_?max|right|x[12]", "y_?max|bottom|y[12]"),
)
_CORNERS = rf"{_CORNER}{_GAP}[,;]?{_GAP}(?:to|and)?{_GAP}{_CORNER}"
_POINTS = (rf"\bpoint\w{{0,8}}[\"'\s:=(\[]{{1,12}}{_TWO}{_END}", _CORNER, _named("x", "y"))
_ANY_BOX = re.compile("|".join([*_BOXES, _CORNERS]), re.IGNORECASE)
_ANY_PLACE = re.compile("|".join([*_BOXES, *_POINTS]), re.IGNORECASE)
_BARE = re.compile(rf"\W{{0,20}}+{_FOUR}\W{{0,20}}")
_LABEL = re.compile(
    r"""\b(?:label|name|category|class)""" + _IS + r"""(?:"([^"]{0,200})"|'([^']{0,200})')""", re.IGNORECASE
)
_FAR = 1000  # characters from a box to the braces of its object, at most


def boxes_in(text: str, points: bool = False) -> list[Item]:
    """The boxes of a text in their order, MOST_BOXES at most; with ``points`` two numbers are a point, a box without sides.

    >>> [item.box for item in boxes_in("I see {'bbox': ['1', 2, 30, 40,], 'label': 'cup'} and (5,6),(7,8).")]
    [(1.0, 2.0, 30.0, 40.0), (5.0, 6.0, 7.0, 8.0)]
    >>> boxes_in('{"label": "cup", "point": [5, 6]}', points=True)[0][:2]
    ((5.0, 6.0, 5.0, 6.0), 'cup')
    """
    items: list[tuple[Item, int]] = []  # with where their object begins
    boxed = set()  # objects that have a box
    for match in islice((_ANY_PLACE if points else _ANY_BOX).finditer(text), MOST_BOXES):
        numbers = [float(value) for value in match.groups() if value is not None]
        if not all(abs(value) < 1e9 for value in numbers):  # as in answer_parsing.box_error
            continue
        x1, y1, x2, y2 = numbers if len(numbers) == 4 else numbers * 2
        start, end = _object_around(text, *match.span())
        items.append((Item((x1, y1, x2, y2), _label_in(text[start:end]) if start >= 0 else "", match.span()), start))
        boxed |= {start} if len(numbers) == 4 and start >= 0 else set()
    return [
        item for item, start in items if start not in boxed or item.box[:2] != item.box[2:]
    ]  # one place for each thing


def four_numbers(text: str) -> TextBox | None:
    """The box of a text that consists of four numbers, without brackets; None for any other text.

    >>> four_numbers("1, 2, 30, 40."), four_numbers("1, 2, 30")
    ((1.0, 2.0, 30.0, 40.0), None)
    """
    match = _BARE.fullmatch(text)
    return tuple(map(float, match.groups())) if match else None  # type: ignore[return-value]


def _object_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the braces around a part of a text stand: (open, close); (-1, -1) without an open one nearby."""
    opened = text.rfind("{", max(0, start - _FAR), end)
    if opened < 0 or text.find("}", opened, start) >= 0:
        return -1, -1
    closed = text.find("}", end, end + _FAR)
    return opened, closed if closed >= 0 else end


def _label_in(text: str) -> str:
    """What an object calls its thing, or ""."""
    match = _LABEL.search(text)
    label = (match.group(1) or match.group(2) or "") if match else ""
    try:
        return str(json.loads(f'"{label}"', strict=False))  # escapes
    except ValueError:
        return label


# ---------------------------------------------------------------------- words

_QUOTED = re.compile(r'"[^"]{0,200}"')
_WHOLE = re.compile(r"(?<![\w.,])\d{1,6}(?![\w%]|[.,]\d)")
_ANSWER_LINE = re.compile(r"^[^\w\n]{0,10}(?:final )?answer(?: is)?\s{0,5}:([^\n]*+)", re.IGNORECASE | re.MULTILINE)
_LATIN = re.compile(r"[a-z]++")


def last_number(text: str, items: list[Item], words: tuple[str, ...] = ()) -> int | None:
    """The last whole number of a text that belongs to none of its boxes and labels, in digits or as one of ``words`` (for 0,
    1, 2, ...); None without one.

    >>> text = "Two: [1, 2, 3, 4], [5, 6, 7, 8]. There are 2 cups."
    >>> last_number(text, boxes_in(text)), last_number("I see two.", [], ("zero", "one", "two"))
    (2, 2)
    """
    rest, begin = [], 0
    for item in items:
        rest.append(text[begin : item.span[0]])
        begin = item.span[1]
    left = _QUOTED.sub(" ", " ".join([*rest, text[begin:]]))
    digits = _WHOLE.findall(left)
    if digits:
        return int(digits[-1])
    named = [words.index(word) for word in _LATIN.findall(left.lower()) if word in words]
    return named[-1] if named else None


def last_words(text: str) -> str | None:
    """What a text without tags answers: behind the last "answer:", or else its last line (as Active-Perception-R1 reads it).

    >>> last_words("It is far away.\\nAnswer: 42"), last_words("I see\\n42\\n"), last_words(" ")
    ('42', '42', None)
    """
    stated = _ANSWER_LINE.findall(text)
    lines: Iterator[str] = (line.strip() for line in reversed([*text.splitlines(), *stated[-1:]]))
    return next((line for line in lines if line), None)
