"""Text that is not ours, made harmless: the one place where it leaves for a terminal, a log, a page or a table.

Names of files, ids, categories and answers of models may hold what a terminal obeys (it clears the screen, renames the
window, moves the cursor) and what a reader is deceived by (text that runs backwards, a line that looks like one of the
log).

    protect()     all that a program prints, errors and tracebacks of libraries included, passes through ``printable``
    printable()   shows a character that could act as a dot; line breaks stay
    one_line()    likewise, and line breaks become spaces: for ids and names inside of a line
    columns()     how wide a terminal shows a text
"""

import sys
import unicodedata
from typing import Any, TextIO

SHOWN = frozenset("\n\t\u200c\u200d")
"""Characters that do not count as printable and yet only show: the last two join letters, in Persian, Hindi and
emoji."""


def printable(text: str, limit: int = 0) -> str:
    """A text in which nothing acts: controls, escapes, marks of direction and halves of surrogate pairs are dots.

    Cut in the middle to ``limit`` characters, unless it is 0.

    >>> printable("a\\x1b[31mb\\u202ec"), printable("0123456789", 7)
    ('a·[31mb·c', '0123 … 789')
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c in SHOWN or unicodedata.category(c) == "Zs" else "·" for c in text)
    if not limit or len(text) <= limit:
        return text
    return f"{text[: limit - limit // 2]} … {text[len(text) - limit // 2 :]}"


def one_line(text: str, limit: int = 0) -> str:
    """``printable``, on one line.

    >>> one_line("cat\\nstep 7/160  reward 5.00")
    'cat step 7/160  reward 5.00'
    """
    return printable(text.translate(BREAKS), limit)


BREAKS = {ord(character): " " for character in "\n\t\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"}
"""All that str.splitlines takes for the end of a line."""


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: letters of East Asia take two, marks upon letters none.

    >>> columns("cat"), columns("猫"), columns("e\\u0301")
    (3, 2, 1)
    """
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


class OneLine(Exception):
    """An error whose text is one line, whatever names it quotes."""

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


class Protected:
    """A stream on which nothing that is written can act; what its encoding lacks is a question mark."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, printable. A bar of progress begins with a return, which stays."""
        back, encoding = "\r" if text.startswith("\r") else "", self.stream.encoding or "utf-8"
        shown = back + printable(text.removeprefix("\r"))
        self.stream.write(shown.encode(encoding, "replace").decode(encoding))
        return len(text)


def protect() -> None:
    """Let all that this program prints from now on be printable."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Protected):
            setattr(sys, name, Protected(getattr(sys, name)))
