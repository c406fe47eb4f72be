"""Work of an evaluation that is never done twice: cut into jobs, shared by the ranks, kept on disk.

Where a policy looks in a block of pictures is one job, what a task model finds there another. The name of
a job is a digest of everything that decides its result: the weights, words and picture processing of the
model that works, the settings, pixels, query and true boxes of every example, the regions to look at, this
program's own text and the versions below it. So a job that was done before an evaluation was interrupted
is read and not done again, and a changed setting, picture or checkpoint makes other names: nothing has to
be told apart, and nothing stale can be used.

Results are plain JSON, whose numbers come back bit for bit. Nothing that is read here is ever run.
"""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch

from activeo3.config import _Config
from activeo3.models import VisionLanguageModel
from activeo3.progress import Progress
from activeo3.outputs import enough_room, make_folder, replace_file
from activeo3.schema import Example
from activeo3.taskmodels import Oracle, TaskModel


_NAME = re.compile(r"\.?[0-9a-f]{40}\.json(\.tmp)?")
"""A file of the ledger."""


class Job(NamedTuple):
    """``work(part)`` returns plain values; beside the part, ``decided_by`` is all that it depends on."""

    decided_by: tuple[Any, ...]
    work: Callable[[Any], Any]

    def __call__(self, part: Any) -> Any:
        return self.work(part)


Share = Callable[[Job, Sequence[Any]], list[Any]]
"""``share(job, parts)`` is ``job(part)`` of every part, in order; ranks may divide them (engine.Ranks.share)."""


def alone(job: Job, parts: Sequence[Any]) -> list[Any]:
    """The ``Share`` of a single process that keeps nothing."""
    return [job(part) for part in parts]


class Ledger:
    """Results by the name of their job, in files under ``folder``.

    ``divide`` and ``gather`` are those of engine.Ranks. Each rank keeps what it did itself; all read what
    any of them has kept.
    """

    def __init__(
        self,
        folder: Path,
        divide: Callable[[Callable[[int], Any], Sequence[int]], list[Any]],
        gather: Callable[[Any], list[Any]],
        progress: Progress,
    ) -> None:
        self.folder, self.divide, self.gather, self.progress = folder, divide, gather, progress
        self._known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # digests of what takes long to read

    def share(self, job: Job, parts: Sequence[Any]) -> list[Any]:
        """The ``Share`` of an evaluation: what is kept is read, the ranks divide the rest and keep it."""
        common = self._digest(job.decided_by)
        names = [digest(common, self._digest(part)) for part in parts]
        kept: dict[str, Any] = {}
        for of_rank in self.gather({name: found for name in names if (found := self._read(name)) is not None}):
            kept |= of_rank
        missing = [index for index, name in enumerate(names) if name not in kept]
        self.progress.known(len(parts) - len(missing))

        def work(index: int) -> Any:
            text = json.dumps({"job": names[index], "result": job(parts[index])})
            make_folder(self.folder)
            replace_file(self.folder / f"{names[index]}.json", text.encode())
            self.progress.done()
            return json.loads(text)["result"]  # as it will be read

        fresh = dict(zip(missing, self.divide(work, missing), strict=True))
        self.progress.arrived(len(missing))
        return [fresh[index] if index in fresh else kept[name] for index, name in enumerate(names)]

    def close(self) -> None:
        """Everything is in the tables: forget the jobs, so that the same command measures again. Other files stay."""
        for path in [*self.folder.glob("*.json"), *self.folder.glob(".*.json.tmp")]:
            if _NAME.fullmatch(path.name):
                with enough_room(path):
                    path.unlink(missing_ok=True)  # of several ranks each may be the first
        with suppress(OSError):
            self.folder.rmdir()

    def _read(self, name: str) -> Any:
        """What is kept of a job, or None: a file that is torn or of another job counts for nothing."""
        try:
            content = json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        return content.get("result") if isinstance(content, dict) and content.get("job") == name else None

    # ------------------------------------------------------------------ what decides a result

    def _digest(self, thing: Any) -> str:
        """A digest of whatever may decide a result; the large ones are read once."""
        match thing:
            case None | bool() | int() | float() | str():
                return digest(repr(thing))
            case tuple() | list():
                return digest(str(len(thing)), *map(self._digest, thing))
            case _Config():
                return digest(repr([(field.name, getattr(thing, field.name)) for field in fields(_Config)]))
            case Example() | VisionLanguageModel() | TaskModel():
                if thing not in self._known:
                    self._known[thing] = _of_example(thing) if isinstance(thing, Example) else _of_model(thing)
                return self._known[thing]
        raise TypeError(f"nobody said how a {type(thing).__name__} decides a result")


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


def _of_example(example: Example) -> str:
    boxes = np.ascontiguousarray(example.boxes_px, dtype=np.float64)
    said = repr((example.id, example.query, example.image.mode, example.size_px, boxes.shape, example.asked_for.tolist()))
    return digest(said, boxes.tobytes(), example.image.tobytes())


def _of_model(model: VisionLanguageModel | TaskModel) -> str:
    """Weights, and how words and pictures become their input; with the program that runs them."""
    parts: list[str | bytes] = [type(model).__name__, program()]
    if not isinstance(model, Oracle):  # which has neither weights nor words
        words = sorted(model.tokenizer.get_vocab().items())
        parts += [model.model.config.to_json_string(), repr(words), str(model.tokenizer.chat_template)]
        parts += [str(getattr(model, "trained_here", ""))]  # --parser auto asks for it
        parts += [model.image_processor.to_json_string(), str(model.model.device.type)]
        for name, tensor in model.model.state_dict().items():
            whole = tensor.detach().cpu().contiguous()
            parts += [f"{name} {whole.dtype} {tuple(whole.shape)}", digest(whole.reshape(-1).view(torch.uint8).numpy().data)]
    return digest(*parts)


@lru_cache(maxsize=1)
def program() -> str:
    """This package's own text, and the versions of what computes."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return digest(*texts, *(version(package) for package in ("torch", "transformers", "numpy", "pillow")))
