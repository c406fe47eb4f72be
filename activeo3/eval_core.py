"""The work of an evaluation: divided over the ranks, kept on disk, never done twice.

``Runner.map(work, items, key)`` is the only place of an evaluation that knows ranks, files and progress. Items are worked
on in blocks of BATCH, in the same way wherever and whenever that is, so a table is the same on any number of ranks and
after any interruption. ``work`` returns records, which are plain JSON: pictures, which are large, stay where they are.

A block is kept under the digest of everything that decides its records: the key (settings; weights, words and image
processing of the models that work), the items (pixels, question, true boxes, regions), this program's own text and the
versions below it. A changed setting, picture or checkpoint makes another name, so nothing stale can be used.
JSON brings numbers back bit for bit. Nothing that is read here is ever run.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Protocol, Sequence, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from activeo3.config import Config
from activeo3.model import VisionLanguageModel
from activeo3.outputs import enough_room, make_folder, replace_file
from activeo3.progress import Progress
from activeo3.task_model_sam import Corrector
from activeo3.task_models import TaskModel
from activeo3.types import Example

BATCH = 16
"""How many examples are worked on together."""

T = TypeVar("T")
Record = Any
"""What is known of one item after the work: plain JSON."""
Map = Callable[..., list[Record]]
"""``Runner.map``."""

_NAME = re.compile(r"\.?[0-9a-f]{40}\.json(\.tmp)?")
"""A file of a Runner."""


def trained_of(sources: Mapping[str, str]) -> list[str]:
    """The titles of the trained policies among those of a table; the start policy is its own if there is no other.

    >>> trained_of({"start": "data/tiny", "a": "runs/a"}), trained_of({"start": "data/tiny"})
    (['a'], ['start'])
    """
    return [title for title in sources if title != "start"] or ["start"]


class Processes(Protocol):
    """The processes that divide the work (engine.Ranks)."""

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


class Runner:
    """Does the work of an evaluation. By default in one process, keeping nothing.

    Args:
        ranks: the processes that divide the work; all of them must call ``map`` with the same arguments.
        folder: where finished blocks are kept. Each rank writes its own, and all read what any of them finds.
        progress: counts items.
    """

    def __init__(
        self, ranks: Processes | None = None, folder: Path | None = None, progress: Progress | None = None
    ) -> None:
        self.ranks = ranks or OneProcess()
        self.folder, self.progress = folder, progress or Progress(0, speaks=False)
        self._digests: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # of what takes long to read

    @property
    def writes(self) -> bool:
        """True on the one rank that writes tables."""
        return self.ranks.rank == 0

    def say(self, text: str) -> None:
        """Print a line on the rank that writes."""
        self.progress.say(text)

    def map(
        self, work: Callable[[Sequence[T]], Sequence[Record]], items: Sequence[T], key: tuple, block: int = 0
    ) -> list[Record]:
        """``work(block of items)`` of all blocks, joined: one record per item, in order, on every rank.

        Args:
            work: returns one record per item, plain JSON.
            key: all that decides the records beside the items.
            block: how many items are worked on together, by default BATCH.

        Raises TypeError if a part of ``key`` or of an item has no digest.
        """
        block = block or BATCH
        blocks = [items[first : first + block] for first in range(0, len(items), block)]
        names = self._names(blocks, key)
        kept: dict[str, list[Record]] = {}
        for of_rank in self.ranks.all_gather(
            {name: found for name in names if (found := self._read(name)) is not None}
        ):
            kept |= of_rank
        missing = [index for index, name in enumerate(names) if name not in kept]
        self.progress.known(sum(len(of_one) for name, of_one in zip(names, blocks) if name in kept))

        def work_and_keep(index: int) -> list[Record]:
            text = json.dumps({"block": names[index], "records": list(work(blocks[index]))})
            if self.folder:
                make_folder(self.folder)
                replace_file(self.folder / f"{names[index]}.json", text.encode())
            self.progress.done(len(blocks[index]))
            return json.loads(text)["records"]  # as it will be read

        fresh = dict(zip(missing, self.ranks.map(work_and_keep, missing), strict=True))
        self.progress.arrived(sum(len(blocks[index]) for index in missing))
        found = [fresh[index] if index in fresh else kept[name] for index, name in enumerate(names)]
        return [record for of_block in found for record in of_block]

    def close(self) -> None:
        """Remove the kept blocks when everything is in the tables, so that the same command measures again. Other files stay."""
        self.progress.close()
        if not self.folder:
            return
        for path in [*self.folder.glob("*.json"), *self.folder.glob(".*.json.tmp")]:
            if _NAME.fullmatch(path.name):
                with enough_room(path):
                    path.unlink(missing_ok=True)  # of several ranks each may be the first
        with suppress(OSError):
            self.folder.rmdir()

    def _read(self, name: str) -> list[Record] | None:
        """The kept records of a block, or None: a file that is torn or of another block counts for nothing."""
        if not self.folder:
            return None
        try:
            content = json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        return content.get("records") if isinstance(content, dict) and content.get("block") == name else None

    # ------------------------------------------------------------------ what decides a record

    def _names(self, blocks: Sequence[Sequence[Any]], key: tuple) -> list[str]:
        """A name for every block; where nothing is kept, its number."""
        if not self.folder:
            return [str(number) for number in range(len(blocks))]
        common = self._digest(key)
        return [digest(common, self._digest(block)) for block in blocks]

    def _digest(self, thing: Any) -> str:
        """A digest of whatever may decide a record; large things are read once."""
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
            case Config():
                return digest(repr([(field.name, getattr(thing, field.name)) for field in fields(Config)]))
            case Example() | VisionLanguageModel() | TaskModel() | Corrector():
                if thing not in self._digests:
                    self._digests[thing] = self._of_example(thing) if isinstance(thing, Example) else _of_model(thing)
                return self._digests[thing]
        if is_dataclass(thing) and not isinstance(thing, type):
            return digest(type(thing).__name__, *(self._digest(getattr(thing, field.name)) for field in fields(thing)))
        raise TypeError(f"a {type(thing).__name__} has no digest")

    def _of_example(self, example: Example) -> str:
        known = {field.name: getattr(example, field.name) for field in fields(example)}
        for apart in ("image", "masks"):  # masks are a function that reads the image's own file
            known.pop(apart)
        known |= {"boxes_px": np.asarray(example.boxes_px, dtype=np.float64), "crowd": example.asked_for.tolist()}
        return digest(repr((example.image.mode, example.size_px)), self._digest(known), example.image.tobytes())


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


def _of_model(model: VisionLanguageModel | TaskModel | Corrector) -> str:
    """Weights, and how words and images become their input; with the program that runs them. An oracle has its type only."""
    parts: list[str | bytes] = [
        type(model).__name__,
        program(),
        str(getattr(model, "trained_here", "")),
    ]  # --parser auto asks for it
    if tokenizer := getattr(model, "tokenizer", None):
        parts += [repr(sorted(tokenizer.get_vocab().items())), str(tokenizer.chat_template)]
    if processor := getattr(model, "image_processor", None):
        parts += [processor.to_json_string()]
    if network := getattr(model, "model", None):
        parts += [network.config.to_json_string(), str(network.device.type)]
        for name, tensor in network.state_dict().items():
            whole = tensor.detach().cpu().contiguous()
            parts += [
                f"{name} {whole.dtype} {tuple(whole.shape)}",
                digest(whole.reshape(-1).view(torch.uint8).numpy().data),
            ]
    return digest(*parts)


@lru_cache(maxsize=1)
def program() -> str:
    """This package's own text, and the versions of what computes."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return digest(*texts, *(version(package) for package in ("torch", "transformers", "numpy", "pillow")))
