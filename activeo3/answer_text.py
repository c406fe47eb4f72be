"""The text of an answer, read in time linear in its length: thoughts, tags, JSON, Unicode, and boxes in any form.

A policy that repeats itself, or a model from elsewhere, may write any text. So that no answer delays a run,
  1. a reader sees the first MAX_CHARACTERS of an answer, and takes at most MAX_BOXES out of it;
  2. a pattern never backtracks: its unbounded repetitions are possessive (``*+``, ``++``), and stop where the pattern
     could begin anew (tests/regex_rules.py checks the patterns of all rooms);
  3. a part of an answer is decoded as JSON at most once by each reader, and the parts do not overlap;
  4. Unicode is normalised piece by piece where combining marks pile up, which takes quadratic time in one piece.
"""

import json
import re
import unicodedata
from itertools import islice
from typing import Any, Iterator, NamedTuple, Sequence

MAX_CHARACTERS = 131_072
"""Of an answer; the rest is not read. Text has about 4 characters per token, and no model here writes more than 32,768
tokens; the longest answers that a prompt asks for, pages of text, have some 5,000 characters."""
MAX_BOXES = 1_000
"""Of an answer; further boxes are not read. All pairs of them are compared, with each other and with the true ones.
COCO counts 100 per image, LVIS 300."""


def limited(text: str) -> str:
    """The part of an answer that is read, its first MAX_CHARACTERS."""
    return text[:MAX_CHARACTERS]


# ---------------------------------------------------------------------- loops

REPEATED = 32
"""Tokens that all copies of a piece have at least, before they count as a loop; a row of zeros or spaces has fewer."""


def repeats(ids: Sequence[int], times: int) -> bool:
    """Whether ids end in so many copies of one piece, which is how a model writes that has lost its way.

    >>> repeats([7] + [1, 2, 3] * 11, 11), repeats([1, 2, 3] * 11, 12), repeats([1] * 31, 4)
    (True, False, False)
    """
    for piece in range(-(-REPEATED // times), len(ids) // times + 1):
        tail = ids[-piece * times :]
        if tail[piece:] == tail[:-piece]:
            return True
    return False


# ---------------------------------------------------------------------- thoughts and tags

TAGS = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
_NO_TAG = r"((?:[^<]++|<(?!/?(?:think|answer)>))*+)"
NO_ANSWER_TAG = r"(?:[^<]++|<(?!/?answer>))*+"
LAYOUT = re.compile(rf"\s*+<think>{_NO_TAG}</think>\s*+<answer>{_NO_TAG}</answer>\s*+")
"""An answer as the paper wants it, from end to end: its thought and its answer."""
ANSWERS = re.compile(rf"<answer>({NO_ANSWER_TAG})</answer>")
"""The text between closed answer tags."""


def without_thoughts(text: str) -> str:
    """The text outside of thoughts, of the part of an answer that is read.

    A thought that is never closed ends where an ``<answer>`` begins, or with the text. One that is closed but was never
    opened began with the text.

    >>> without_thoughts('<think>a [1] b</think> c <think>d'), without_thoughts("a [1]</think> c")
    (' c ', ' c')
    """
    kept: list[str] = []
    text = limited(text)
    begin, opened, answer = 0, -1, -1  # where the text outside begins; the open thought, and an answer inside it
    for tag in TAGS.finditer(text):
        closing, thinks = bool(tag.group(1)), tag.group(2).lower() == "think"
        if opened < 0 and thinks and not closing:
            kept.append(text[begin : tag.start()])
            opened, answer = tag.start(), -1
        elif thinks and closing:
            kept = kept if opened >= 0 else []
            begin, opened = tag.end(), -1
        elif opened >= 0 and not thinks and not closing and answer < 0:
            answer = tag.start()
    if opened >= 0:
        begin = answer if answer >= 0 else len(text)
    return "".join(kept) + text[begin:]


# ---------------------------------------------------------------------- JSON

NO_JSON = object()
"""The result of ``decoded`` for a text that is no JSON value."""


def decoded(text: str, strict: bool = True) -> Any:
    """The JSON value that a text is, in a Markdown code fence or without one; NO_JSON if it is none.

    Not ``strict``, it may have line breaks inside its strings.

    >>> decoded("```json\\n[1]\\n```"), decoded("[1") is NO_JSON
    ([1], True)
    """
    try:
        return json.loads(unfenced(text), strict=strict)
    except (ValueError, RecursionError):  # ValueError also for a whole number of more than 4,300 digits
        return NO_JSON


def unfenced(text: str) -> str:
    """The text inside a Markdown code fence, or the text itself if there is none around it."""
    fence, fenced = "```", text.strip()
    if len(fenced) < 2 * len(fence) or not (fenced.startswith(fence) and fenced.endswith(fence)):
        return text
    return fenced[len(fence) : -len(fence)].removeprefix("json")


# ---------------------------------------------------------------------- Unicode

_MARK = r"(?:[^\w\s\x00-\x7f]|[\uff9e\uff9f])"  # every combining mark is among these, and every letter that becomes one
_PILE = re.compile(_MARK + "{30}")


def normalised(text: str) -> str:
    """The text in Unicode's form NFKC: wide letters are narrow ones, ligatures are letters (up to 18, so that it is
    limited anew).

    Marks on a letter are put in order, by a sort that is quadratic. The text is cut where 30 of them have come one
    after the other, as Unicode's Stream-Safe Text Format does (UAX 15, section 13); no language has so many on a
    letter.

    >>> normalised("Ｂ ﬁ"), normalised("e\\u0301") == "\\u00e9"
    ('B fi', True)
    """
    if text.isascii():
        return text
    cuts = [0, *(pile.end() for pile in _PILE.finditer(text)), len(text)]
    return limited("".join(unicodedata.normalize("NFKC", text[begin:end]) for begin, end in zip(cuts, cuts[1:])))


# ---------------------------------------------------------------------- boxes in any form

# The lenient reader finds what a model means, not whether it obeyed. A model that was not trained here says the right
# thing in a form of its own; read strictly it would lose to a trained one by its form, which is not what a comparison
# should measure. Read as a box, or several, with the label in the same object:
#
#     {"bbox_2d": [1, 2, 30, 40]}        alone, listed, nested, in prose or a fence, with broken ones beside it
#     {'bbox': (1, 2, 30, 40,), ...}     another key or none, single quotes, round brackets, trailing commas
#     "bbox_2d": "1, 2, 30, 40"          the numbers as words, together or each
#     {"bbox_2d [1, 2, 30, 40]"}         the numbers inside the key
#     {"x1": 1, "y1": 2, "x2": 30, "y2": 40}, also left, top, right, bottom, xmin and so on
#     <|box_start|>(1,2),(30,40)<|box_end|>, [[1, 2], [30, 40]]
#
# Three numbers, or five, are no box; nor is anything without brackets, key or names around its numbers.

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
    """The boxes of a text in their order, MAX_BOXES at most; with ``points`` two numbers are a point, a box without
    sides.

    >>> [item.box for item in boxes_in("I see {'bbox': ['1', 2, 30, 40,], 'label': 'cup'} and (5,6),(7,8).")]
    [(1.0, 2.0, 30.0, 40.0), (5.0, 6.0, 7.0, 8.0)]
    >>> boxes_in('{"label": "cup", "point": [5, 6]}', points=True)[0][:2]
    ((5.0, 6.0, 5.0, 6.0), 'cup')
    """
    items: list[tuple[Item, int]] = []  # with where their object begins
    boxed = set()  # objects that have a box
    for match in islice((_ANY_PLACE if points else _ANY_BOX).finditer(text), MAX_BOXES):
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
    """The last whole number of a text that belongs to none of its boxes and labels, in digits or as one of ``words``
    (for 0, 1, 2, ...); None without one.

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
    """What a text without tags answers: behind the last "answer:", or else its last line (as Active-Perception-R1 reads
    it).

    >>> last_words("It is far away.\\nAnswer: 42"), last_words("I see\\n42\\n"), last_words(" ")
    ('42', '42', None)
    """
    stated = _ANSWER_LINE.findall(text)
    lines: Iterator[str] = (line.strip() for line in reversed([*text.splitlines(), *stated[-1:]]))
    return next((line for line in lines if line), None)
