"""What every reader of an answer begins with, in time linear in the answer: its length, thoughts, tags, JSON and Unicode.

A policy that repeats itself, or a stranger's model, writes anything. So that no answer keeps a run waiting,
  1. a reader sees the first MOST_CHARACTERS of an answer, and takes at most MOST_BOXES out of it;
  2. a pattern never goes back over what it has passed: its unbounded repetitions are possessive (``*+``, ``++``), and stop
     where the pattern could begin anew (tests/regex_rules.py reads the patterns of all rooms and says which do not);
  3. a part of an answer is decoded as JSON at most once by each reader, and the parts do not overlap;
  4. Unicode is normalised piece by piece where combining marks pile up, which takes quadratic time in one piece.
"""

import json
import re
import unicodedata
from typing import Any

MOST_CHARACTERS = 131_072
"""Of an answer; what is beyond is not read. Text has about 4 characters per token, and no model here writes more than 32,768
tokens; the longest answers that are asked for, pages of text, have some 5,000 characters."""
MOST_BOXES = 1_000
"""Of an answer; boxes beyond are not read. They are compared with each other and with the true ones, all pairs of them.
COCO counts 100 of a picture, LVIS 300."""


def limited(text: str) -> str:
    """The part of an answer that is read, its first MOST_CHARACTERS."""
    return text[:MOST_CHARACTERS]


# ---------------------------------------------------------------------- thoughts and tags

TAGS = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
_NO_TAG = r"((?:[^<]++|<(?!/?(?:think|answer)>))*+)"
NO_ANSWER_TAG = r"(?:[^<]++|<(?!/?answer>))*+"
LAYOUT = re.compile(rf"\s*+<think>{_NO_TAG}</think>\s*+<answer>{_NO_TAG}</answer>\s*+")
"""An answer as the paper wants it, from end to end: its thought and its answer."""
ANSWERS = re.compile(rf"<answer>({NO_ANSWER_TAG})</answer>")
"""What stands between tags of answers that have been closed."""


def without_thoughts(text: str) -> str:
    """The text outside of thoughts, which are no answer, of the part of an answer that is read.

    A thought that is never closed ends where an ``<answer>`` begins, or with the text. One that is closed without having
    been opened began with the text.

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
"""What ``decoded`` makes of a text that is no JSON value."""


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
    """The text in Unicode's form NFKC: wide letters are narrow ones, ligatures are letters (up to 18, so that it is limited anew).

    Marks on a letter are put in order, by a sort that is quadratic. The text is cut where 30 of them have come one after the
    other, as Unicode's Stream-Safe Text Format does (UAX 15, section 13); no language has so many on a letter.

    >>> normalised("Ｂ ﬁ"), normalised("e\\u0301") == "\\u00e9"
    ('B fi', True)
    """
    if text.isascii():
        return text
    cuts = [0, *(pile.end() for pile in _PILE.finditer(text)), len(text)]
    return limited("".join(unicodedata.normalize("NFKC", text[begin:end]) for begin, end in zip(cuts, cuts[1:])))
