"""Which regular expressions can take more than linear time, read off their syntax trees.

A pattern is linear if
  1. no repetition of more than FEW goes back: it is possessive, or what follows it begins with none of its characters;
  2. no repetition that goes back stands inside another that does;
  3. inside an unbounded repetition, alternatives begin differently, and so does what may be left out from what follows
     it:
     else a text is passed twice in one round, and again in the next;
  4. searching for it, no unbounded repetition runs over a place where the pattern could begin anew, unless nothing
     behind the repetition can fail: else every such place leads to a run of its own.

Characters are those of ALPHABET and of the pattern itself. Python's own parser of patterns does the reading.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from re import _compiler, _parser  # type: ignore[attr-defined]
from re import _constants as op
from typing import Any, Iterator, Sequence

FEW = 12
"""Rounds of a repetition that may go back."""
UNBOUNDED = 1000
ALPHABET = "aAzZ09_ \t\n.,:;!?-+*/\\|=<>()[]{}\"'`$%#é中\u0301\u200b"
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)
_LONGEST = 12  # characters of a beginning

Node = tuple[Any, Any]


@dataclass(frozen=True)
class Rules:
    """The rules for one pattern; ``anchored``: it is never searched for, but matched from a given place."""

    pattern: re.Pattern[str]
    anchored: bool = False

    def broken(self) -> list[str]:
        """A sentence for every rule that the pattern breaks."""
        nodes = list(self._tree)
        faults = [*self._going_back(nodes, [], False), *self._passing_twice(nodes, [], False)]
        return faults if self.anchored else [*faults, *self._running_over()]

    @cached_property
    def _tree(self) -> Any:
        return _parser.parse(self.pattern.pattern, self.pattern.flags)

    @cached_property
    def _alphabet(self) -> list[str]:
        return sorted({*ALPHABET, *self._literals(list(self._tree))})

    # ------------------------------------------------------------------ the rules

    def _going_back(self, nodes: Sequence[Node], rest: Sequence[Node], inside: bool) -> Iterator[str]:
        """Rules 1 and 2."""
        for place, (kind, value) in enumerate(nodes):
            after = [*nodes[place + 1 :], *rest]
            if kind in _REPEATS:
                least, most, body = value
                returns = kind != op.POSSESSIVE_REPEAT and least != most
                overlaps = self._first(list(body))[0] & self._first(after)[0]
                if returns and most > FEW and (len(body) > 1 or kind == op.MIN_REPEAT or overlaps):
                    yield f"a repetition of {most} goes back over {self._shown(overlaps)}"
                if returns and inside and most > 1 and overlaps:
                    yield "a repetition that goes back stands inside another"
                again = [(op.MAX_REPEAT, (0, 1, body))] if most > 1 else []
                yield from self._going_back(list(body), [*again, *after], inside or returns and most > 1)
            for part in () if kind in _REPEATS else _parts((kind, value)):
                yield from self._going_back(part, after, inside)

    def _passing_twice(self, nodes: Sequence[Node], rest: Sequence[Node], repeated: bool) -> Iterator[str]:
        """Rule 3."""
        for place, (kind, value) in enumerate(nodes):
            after = [*nodes[place + 1 :], *rest]
            endless = kind in _REPEATS and value[1] > UNBOUNDED
            if endless and not self._width(list(value[2])):
                yield "an unbounded repetition may repeat nothing"
            if repeated and kind == op.BRANCH and self._endless(nodes):
                parts = [list(part) for part in value[1]]
                if any(self._alike(one, other) for i, one in enumerate(parts) for other in parts[i + 1 :]):
                    yield "inside a repetition, alternatives begin alike"
            if repeated and kind in _REPEATS and not value[0] and not endless and self._endless(value[2]):
                if self._alike(list(value[2]), after):
                    yield "inside a repetition, what may be left out begins like what follows"
            for part in _parts((kind, value)):
                yield from self._passing_twice(part, after, repeated or endless)

    def _running_over(self) -> Iterator[str]:
        """Rule 4."""
        for run, before in self._runs(list(self._tree), [], False):
            compiled = self._compiled([run])
            for text in self._beginnings(before, certain=False):
                passed = compiled.match(text)
                if not text or passed and passed.end() == len(text):
                    yield f"an unbounded repetition runs over {text!r}, behind which it begins"
                    break

    def _runs(
        self, nodes: Sequence[Node], before: Sequence[Node], fails: bool
    ) -> Iterator[tuple[Node, Sequence[Node]]]:
        """The unbounded repetitions behind which something can fail, each with all that a match has before it."""
        for place, node in enumerate(nodes):
            earlier = [*before, *nodes[:place]]
            if any(kind == op.AT and value == op.AT_BEGINNING_STRING for kind, value in earlier):
                return  # it begins once
            behind = fails or any(map(self._can_fail, nodes[place + 1 :]))
            if node[0] in _REPEATS and node[1][1] > UNBOUNDED and behind:
                yield node, earlier
            for part in () if node[0] in (op.ASSERT, op.ASSERT_NOT) else _parts(node):
                yield from self._runs(part, earlier, behind)

    # ------------------------------------------------------------------ what nodes can be

    def _can_fail(self, node: Node) -> bool:
        return node[0] in (op.AT, op.ASSERT, op.ASSERT_NOT) or self._width([node]) > 0

    def _endless(self, nodes: Any) -> bool:
        """Is there an unbounded repetition among the nodes, or in them?"""
        found = lambda node: node[0] in _REPEATS and node[1][1] > UNBOUNDED or any(map(self._endless, _parts(node)))  # noqa: E731
        return any(map(found, nodes))

    def _alike(self, one: Sequence[Node], other: Sequence[Node]) -> bool:
        """Can both match begin with the same text, as far as can be told?"""
        pairs = product(self._beginnings(one), self._beginnings(other))
        return bool(self._first(one)[0] & self._first(other)[0]) and any(
            a.startswith(b) or b.startswith(a) for a, b in pairs
        )

    def _first(self, nodes: Sequence[Node]) -> tuple[set[str], bool]:
        """Characters with which the nodes can begin, and whether they can match nothing."""
        found: set[str] = set()
        for kind, value in nodes:
            if kind in (op.AT, op.ASSERT, op.ASSERT_NOT):
                continue
            parts = _parts((kind, value))
            firsts = [self._first(part) for part in parts] or [(self._characters((kind, value)), False)]
            found |= set().union(*(first for first, _ in firsts))
            if not (any(empty for _, empty in firsts) or kind in _REPEATS and value[0] == 0):
                return found, False
        return found, True

    def _beginnings(self, nodes: Sequence[Node], certain: bool = True) -> list[str]:
        """Texts with which a match begins: ``certain`` up to where it can be of several lengths, or the shortest ones.

        A line begins behind a line break.
        """
        found = [""]
        for kind, value in nodes:
            several = kind in _REPEATS and value[0] != value[1]
            if kind == op.AT:
                more = (
                    ["\n"] if value == op.AT_BEGINNING and self.pattern.flags & re.MULTILINE and found == [""] else [""]
                )
            elif kind in (op.ASSERT, op.ASSERT_NOT) or kind in _REPEATS and not value[0]:
                more = [""]
            elif parts := _parts((kind, value)):
                more = [text for part in parts for text in self._beginnings(part, certain)]
            else:
                more = sorted(self._characters((kind, value)))
            found = ["".join(pair) for pair in product(found, more)]
            if certain and several or len(found) > 500 or max(map(len, found)) >= _LONGEST:
                break
        return found

    def _characters(self, node: Node) -> set[str]:
        compiled = self._compiled([node])
        return {character for character in self._alphabet if compiled.fullmatch(character)}

    def _compiled(self, nodes: Sequence[Node]) -> re.Pattern[str]:
        return _compiler.compile(_parser.SubPattern(self._tree.state, list(nodes)), self.pattern.flags)

    def _width(self, nodes: Sequence[Node]) -> int:
        """The least number of characters that the nodes match."""
        return _parser.SubPattern(self._tree.state, list(nodes)).getwidth()[0]

    def _literals(self, nodes: Sequence[Node]) -> Iterator[str]:
        for kind, value in nodes:
            if kind in (op.LITERAL, op.NOT_LITERAL):
                yield from {chr(value), chr(value).lower(), chr(value).upper()} - {"SS", "İ"}
            elif kind == op.IN:
                yield from self._literals(value)
            elif kind == op.RANGE:
                yield from map(chr, value)
            for part in _parts((kind, value)):
                yield from self._literals(part)

    def _shown(self, characters: set[str]) -> str:
        return repr("".join(sorted(characters))[:10]) if characters else "its own rounds"


def _parts(node: Node) -> list[list[Node]]:
    """The sequences of nodes that a node holds: one for a group or a repetition, several for alternatives."""
    kind, value = node
    if kind in _REPEATS:
        return [list(value[2])]
    if kind == op.SUBPATTERN:
        return [list(value[3])]
    if kind == op.BRANCH:
        return [list(part) for part in value[1]]
    if kind in (op.ASSERT, op.ASSERT_NOT):
        return [list(value[1])]
    return [list(value)] if kind == op.ATOMIC_GROUP else []
