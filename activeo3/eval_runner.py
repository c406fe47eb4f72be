"""The work of an evaluation: divided over the ranks, kept on disk, never done twice.

``Runner.map(work, items, key)`` is the only place of an evaluation that knows ranks, files and progress. Items are
worked on in blocks of BATCH, in the same way wherever and whenever that is, so a table is the same on any number of
ranks and after any interruption. A block is kept under the digest of everything that decides its records: the key
(settings, the files of the models), the items (pixels, question, true boxes, regions) and the versions below. A changed
setting, image or checkpoint makes another name, so nothing stale is used. JSON brings numbers back bit for bit. Nothing
that is read here is ever run.
"""

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Protocol, Sequence, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image
from tqdm import tqdm

from activeo3.config import Config
from activeo3.outputs import enough_room, make_folder, replace_file
from activeo3.task_models import TaskModel
from activeo3.types import Example

BATCH = 16
"""How many examples are worked on together."""
EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""

T = TypeVar("T")
Record = dict[str, Any]
"""What is known of one item after the work: JSON only."""
Model = TaskModel
"""A policy, which is a task model too, or another task model."""

_NAME = re.compile(r"\.?[0-9a-f]{40}\.json(\.tmp)?")
"""A file of a Runner."""


class Processes(Protocol):
    """The processes that divide the work (engine.Distributed)."""

    rank: int
    world: int

    def all_gather(self, value: Any) -> list[Any]:
        """Every process's value, on every process."""

    def map(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        """``work(part)`` of every part, in order, on every process; they take turns at the parts."""


class OneProcess:
    """A group of one."""

    rank, world = 0, 1

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def map(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        return [work(part) for part in parts]


class _Lines:
    """stderr for tqdm where there is no terminal: what it would redraw becomes a line of its own."""

    def write(self, text: str) -> None:
        sys.stderr.write(text.replace("\r", "\n").lstrip("\n") if text.strip() else "\n")

    def flush(self) -> None:
        sys.stderr.flush()


class Runner:
    """Does the work of an evaluation. By default in one process, keeping records in memory only.

    Args:
        ranks: the processes that divide the work; all of them must call ``map`` with the same arguments.
        folder: where finished blocks are kept. Each rank writes its own, and all read what any of them finds.
        total: how many questions the bar counts; 0: there is no bar.
    """

    def __init__(self, ranks: Processes | None = None, folder: Path | None = None, total: int = 0) -> None:
        self.ranks, self.folder = ranks or OneProcess(), folder
        self.writes = self.ranks.rank == 0
        self._known: dict[str, list[Any]] = {}
        self._digests: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # of what takes long to read
        self._numbers = itertools.count()
        self._expected = 0
        terminal = sys.stderr.isatty()
        layout = "{desc}: {n_fmt} of {total_fmt} questions  ETA {remaining}"
        self.bar = tqdm(
            total=total, desc="evaluating", disable=not (total and self.writes), smoothing=0, dynamic_ncols=terminal,
            bar_format="{desc}: |{bar:24}| {n_fmt} of {total_fmt} questions  ETA {remaining}" if terminal else layout,
            file=None if terminal else _Lines(), mininterval=0.1 if terminal else EVERY,
            delay=0 if terminal else EVERY, leave=terminal,
        )  # fmt: skip

    def forget(self, model: Model) -> None:
        """Take a model for another one from now on: its weights have changed. What is known of others stays."""
        self._digests.pop(model, None)

    def say(self, text: str) -> None:
        """Print a line on the rank that writes; the bar stays whole."""
        if self.writes:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def expect(self, questions: int) -> None:
        """The bar stands where all work that was expected so far is done; ``questions`` come next."""
        if not self.bar.disable:
            self.bar.update(self._expected - self.bar.n)
        self._expected += questions

    def map(
        self,
        work: Callable[[Sequence[T]], Sequence[Any]],
        items: Sequence[T],
        key: tuple,
        block: int = 0,
        counts: bool = True,
    ) -> list[Any]:
        """``work(block of items)`` of all blocks, joined: one record per item, in order, on every rank.

        Args:
            work: returns one record per item, plain JSON.
            key: all that decides the records beside the items.
            block: how many items are worked on together, by default BATCH.
            counts: False for work that the bar does not expect.

        Raises TypeError if a part of ``key`` or of an item has no digest.
        """
        block = block or BATCH
        blocks = [items[first : first + block] for first in range(0, len(items), block)]
        names = [digest(self._digest(key), self._digest(part)) for part in blocks]
        kept = {name: found for name in names if name not in self._known and (found := self._read(name)) is not None}
        for of_rank in self.ranks.all_gather(kept):
            self._known |= of_rank
        sizes = dict(zip(names, map(len, blocks)))
        missing = [index for index, name in enumerate(names) if name not in self._known]
        known = sum(sizes[name] for name in names if name in self._known)

        def work_and_keep(index: int) -> list[Any]:
            text = json.dumps({"block": names[index], "records": list(work(blocks[index]))})
            if self.folder:
                make_folder(self.folder)
                replace_file(self.folder / f"{names[index]}.json", text.encode())
            self._done(sizes[names[index]] * self.ranks.world * counts)
            return json.loads(text)["records"]  # as it will be read

        if not self.bar.disable and counts:
            self.bar.initial += known  # they say nothing about the time of the rest
        self._done(known * counts)
        fresh = self.ranks.map(work_and_keep, missing)
        self._known |= {names[index]: records for index, records in zip(missing, fresh, strict=True)}
        return [record for name in names for record in self._known[name]]

    def _done(self, questions: int) -> None:
        """Move the bar, at most to what is expected so far."""
        if not self.bar.disable:
            self.bar.update(max(0, min(questions, self._expected - self.bar.n)))

    def close(self) -> None:
        """Remove the kept blocks when everything is in the tables, so that the same command measures again. Other files
        stay."""
        self.bar.close()
        if not self.folder:
            return
        for path in [*self.folder.glob("*.json"), *self.folder.glob(".*.json.tmp")]:
            if _NAME.fullmatch(path.name):
                with enough_room(path):
                    path.unlink(missing_ok=True)  # of several ranks each may be the first
        with suppress(OSError):
            self.folder.rmdir()

    def _read(self, name: str) -> list[Any] | None:
        """The kept records of a block, or None: a file that is torn or of another block counts for nothing."""
        if not self.folder:
            return None
        try:
            content = json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        return content.get("records") if isinstance(content, dict) and content.get("block") == name else None

    def _digest(self, thing: Any) -> str:
        """A digest of whatever may decide a record; examples and models are read once."""
        match thing:
            case None | bool() | int() | float() | str() | bytes() | np.generic():
                return digest(repr(thing))
            case tuple() | list() | range():
                return digest(str(len(thing)), *map(self._digest, thing))
            case set() | frozenset():
                return digest(*sorted(map(self._digest, thing)))
            case Mapping():
                return digest(*(part for name in sorted(thing) for part in (name, self._digest(thing[name]))))
            case np.ndarray():
                return digest(f"{thing.dtype} {thing.shape}", np.ascontiguousarray(thing).tobytes())
            case Image.Image():
                return digest(f"{thing.mode} {thing.size}", thing.tobytes())
            case Config():
                values = [(field.name, getattr(thing, field.name)) for field in fields(Config)]
                return digest(repr(values), repr(thing.own_files))
            case Example() | TaskModel():
                if thing not in self._digests:
                    self._digests[thing] = self._fields(thing) if isinstance(thing, Example) else self._identity(thing)
                return self._digests[thing]
        if is_dataclass(thing) and not isinstance(thing, type):
            return self._fields(thing)
        if callable(thing):
            return ""  # masks that are read when they are wanted, from the same file
        raise TypeError(f"a {type(thing).__name__} has no digest")

    def _fields(self, thing: Any) -> str:
        return digest(type(thing).__name__, *(self._digest(getattr(thing, part.name)) for part in fields(thing)))

    def _identity(self, model: Model) -> str:
        """What a model is: the files that it was loaded from. One that was made in memory is itself only."""
        files = getattr(model, "identity", None) or str(next(self._numbers))
        return digest(type(model).__name__, files, str(getattr(model, "trained_here", "")), *_versions())


def _versions() -> list[str]:
    return [version(package) for package in ("torch", "transformers", "numpy", "pillow")]


def digest(*parts: str | bytes | memoryview) -> str:
    """One name for several texts or bytes; where one ends and the next begins counts.

    >>> digest("ab", "c") == digest("a", "bc")
    False
    """
    found = hashlib.blake2b(digest_size=20)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()
