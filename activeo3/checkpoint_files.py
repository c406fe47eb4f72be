"""The files of a checkpoint: their digests, the random states, and reading them so that nothing in them runs.

``digests.json`` lists every other file of the checkpoint with its size in bytes and its SHA-256:

    {"model.safetensors": [21135984, "9f86d081884c7d65..."], "deepspeed/zero_pp_rank_0...": [...], ...}

SHA-256 has instructions of its own in processors: 1.1 GB/s on one core, and the ranks take turns at the files, so the
133 GB of a 7B on eight ranks are checked in 16 s. To wait for the disk (fsync) costs what the disk is slower than the
memory: 0.37 GB/s here.

A list finds damage, and proves nothing about the author: whoever makes a folder makes its list. So PyTorch files, which
are Python pickles and may name any function to be called, are read by an unpickler that knows tensors, plain values and
the classes that are named here. Anything else that a file names is refused before it is imported.
"""

import hashlib
import json
import random
import re
import warnings
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from activeo3 import outputs
from activeo3.cli import ConfigError, read_object
from activeo3.data_io import regular

DIGESTS = "digests.json"
STATE = "training_state"
"""The folder of a checkpoint that a continued run needs and a user of the model does not: DeepSpeed's and the random
generators' states. Older checkpoints have its content beside the model."""
NOT_THE_MODEL = (f"{STATE}/", "deepspeed/", "random-", "zero_to_")
"""How the names of those files begin, also in older checkpoints."""
CARD = "README.md"
"""The model card. It is on the list, and people may write into it: a card that differs is no damage."""
_WORDS = 624
"""Words in the state of a Mersenne twister, which Python and numpy use."""
Share = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""``share(work, parts)``: ``work`` of every part, in order; several processes take turns at the parts
(``Distributed.map``)."""


def alone(work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """``Share`` of one process."""
    return [work(part) for part in parts]


def seal(folder: Path, share: Share, writes: bool) -> None:
    """Put every file of a finished folder on the disk, and write their digests last. ``writes``: on one process
    only."""
    names = _largest_first(
        folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    )
    kept = share(lambda name: outputs.sync(folder / name) or _digest(folder / name), names)
    if not writes:
        return
    outputs.replace_file(folder / DIGESTS, (json.dumps(dict(zip(names, kept)), indent=1) + "\n").encode())
    for inside in sorted({(folder / name).parent for name in names} | {folder}):
        outputs.sync(inside)


def state_of(checkpoint: Path) -> Path:
    """The folder of the states of a checkpoint: its own, or of an older one the checkpoint itself."""
    return checkpoint / STATE if (checkpoint / STATE).is_dir() else checkpoint


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = {path.parent for name in ("activeo3.json", DIGESTS) for path in folder.glob(f"checkpoint-*/{name}")}
    numbered = {path.name.removeprefix("checkpoint-"): path for path in found}
    return [numbered[step] for step in sorted(filter(str.isdecimal, numbered), key=int)]


def missing_part(path: Path, world: int, optimizer: bool = True) -> str:
    """A part that a checkpoint of ``world`` processes lacks, or ""; one without its ``optimizer`` has fewer."""
    shards = ("deepspeed/*zero_pp_rank_{}_*_model_states.pt", "deepspeed/*zero_pp_rank_{}_*_optim_states.pt")
    each = ("random-{}.pt", *(shards if optimizer else ()))
    states = state_of(path)
    parts = [(states, part.format(rank)) for rank in range(world) for part in each]
    wanted = [(path, "model*.safetensors"), *parts]
    return next((str(place / part) for place, part in wanted if not any(place.glob(part))), "")


def open_to_readers(folder: Path) -> None:
    """Give all files of a folder the mode that the umask gives to new ones; libraries write some for the owner only."""
    (mode := folder / ".mode").touch(mode=0o666)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode.stat().st_mode & 0o777)
    mode.unlink()


def replace_sealed(folder: Path, name: str, data: bytes) -> None:
    """Replace a small file of a sealed folder, and its digest. At any moment all files on the list are as it says."""
    listed: dict[str, Any] = read_object(folder / DIGESTS, str(folder / DIGESTS))
    listed.pop(name, None)
    keep = lambda: outputs.replace_file(folder / DIGESTS, (json.dumps(listed, indent=1) + "\n").encode())  # noqa: E731
    keep()
    outputs.replace_file(folder / name, data)
    listed[name] = _digest(folder / name)
    keep()


def is_sealed(folder: Path) -> bool:
    """Whether the folder has a list of its files; those that older versions wrote have none."""
    return (folder / DIGESTS).is_file()


def damage(folder: Path, share: Share = alone, wanted: Callable[[str], bool] = lambda name: True) -> str:
    """What is wrong with the files on the list, as the beginning of a sentence that names one; "" if all are as they
    were written.

    ``wanted`` chooses among the names on the list.
    """
    try:
        listed = _listed(folder / DIGESTS)
    except ConfigError as error:
        return str(error).removesuffix(".")
    names = _largest_first(folder, list(filter(wanted, listed)))
    return next(filter(None, share(lambda name: _difference(folder / name, *listed[name]), names)), "")


def damage_of_model(source: str) -> str:
    """As ``damage``, of the files that a model is loaded from; of a folder or hub id without a list, only whether all
    are files.

    ``source`` is a checkpoint or its ``adapters/``. The states of the optimizer may have been left behind.
    """
    folder, inside = Path(source), ""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.exists() and not (path.is_file() or path.is_dir()):
            return f"{path} is no regular file"  # a pipe, of which a read never ends
    if folder.name == "adapters":
        folder, inside = folder.parent, "adapters/"
    others = (*NOT_THE_MODEL, CARD) + (() if inside else ("adapters/",))
    chosen = lambda name: name.startswith(inside) and not name.startswith(others)  # noqa: E731
    return damage(folder, wanted=chosen) if is_sealed(folder) else ""


def _largest_first(folder: Path, names: list[str]) -> list[str]:
    """The names in an order in which several processes, dealt one after the other, get about as much to read."""
    size = lambda name: (folder / name).stat().st_size if (folder / name).is_file() else 0  # noqa: E731
    return sorted(names, key=lambda name: (-size(name), name))


def _digest(path: Path) -> tuple[int, str]:
    """The size of a file in bytes and its SHA-256."""
    with open(path, "rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _listed(path: Path) -> dict[str, tuple[int, str]]:
    """The list of a folder. Raises ConfigError if it is missing or damaged."""
    listed = read_object(path, str(path))
    for name, entry in listed.items():
        if not (isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and isinstance(entry[1], str)):
            raise ConfigError(f"{path} is damaged: it has no size and digest of {name!r}.")
    if "activeo3.json" not in listed:
        raise ConfigError(f"{path} is damaged: it does not list activeo3.json.")
    return {name: (size, digest) for name, (size, digest) in listed.items()}


def _difference(path: Path, size: int, digest: str) -> str:
    """How a file differs from what was written; "" if it does not."""
    if not path.is_file():
        return f"{path} is missing"
    try:
        found = path.stat().st_size
        if found == size and _digest(path)[1] == digest:
            return ""
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    why = f"it has {found:,} bytes of {size:,}" if found != size else "its content is not what was written"
    return f"{path} is damaged: {why}"


@lru_cache(maxsize=None)
def identity(source: str) -> str:
    """A name for the content of a model folder; of a hub id, the id itself.

    Files whose digest is known, by the list of a checkpoint or by their name in the hub's cache, are not read.
    """
    folder = Path(source)
    top = folder.parent if folder.name == "adapters" else folder
    listed = _listed(top / DIGESTS) if is_sealed(top) else {}
    found = [source] if not folder.is_dir() else []
    for path in sorted(path for path in folder.glob("*") if path.is_file() and path.name != DIGESTS):
        name, blob = path.relative_to(top).as_posix(), path.resolve().name
        known = listed[name][1] if name in listed else blob if re.fullmatch("[0-9a-f]{64}", blob) else _digest(path)[1]
        found.append(f"{path.name} {known}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def run_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its run: the ``step``, the ``world`` size and the ``config``.

    Raises ConfigError if its ``activeo3.json`` cannot be read or lacks one of them.
    """
    path = checkpoint / "activeo3.json"
    state = read_object(path, str(path))
    for name, kind in (("step", int), ("world", int), ("config", dict)):
        if type(state.get(name)) is not kind or kind is int and state[name] < 0:
            raise ConfigError(f"{path} does not say the {name!r} of its run: it is damaged.")
    for name in ("model", "task"):
        if not isinstance(state["config"].get(name, ""), str):
            raise ConfigError(f"{path} does not say the {name!r} of its run: it is damaged.")
    return state


def read_plain(path: Path | str, known: Sequence[Any] = (), map_location: Any = "cpu") -> Any:
    """What ``torch.save`` wrote: tensors, plain values, and objects of the ``known`` classes. Nothing else is looked up
    or run.

    Raises ConfigError for a file that names anything else, or is damaged.
    """
    try:
        with torch.serialization.safe_globals(list(known)), warnings.catch_warnings(action="ignore"):
            return torch.load(regular(Path(path)), map_location=map_location, weights_only=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # torch raises whatever a damaged file makes it meet
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise ConfigError(
                f"{path} names {named.group(1)}, which could run code when it is read; a checkpoint has tensors and "
                "plain values only, so do not trust this folder."
            ) from None
        raise ConfigError(
            f"{path} is damaged: it cannot be read as tensors and plain values ({type(error).__name__})."
        ) from None


# ---------------------------------------------------------------------- random generators


def seed_everything(seed: int, rank: int) -> None:
    """Seed all generators, differently on every rank, so that ranks do not draw the same answers."""
    random.seed(seed * 1000 + rank)
    np.random.seed(seed * 1000 + rank)
    torch.manual_seed(seed * 1000 + rank)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Put all generators back behind a block, as if it had drawn nothing."""
    states = _random_states()
    try:
        yield
    finally:
        _put_back(states)


def _random_states() -> dict[str, Any]:
    """The states of all generators of this process, as tensors and plain values."""
    kind, words, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, words.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _put_back(states: Mapping[str, Any]) -> None:
    """Set all generators to ``_random_states``."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def save_random_states(path: Path) -> None:
    """Write the states of all generators of this process."""
    torch.save(_random_states(), path)


def restore_random_states(path: Path) -> None:
    """Put all generators back. Raises ConfigError if the file is damaged, or holds more than tensors and plain
    values."""
    state = read_plain(path, _of_older_versions())
    try:
        words, position = state["numpy"][1:3]
        if len(words) != _WORDS or not 0 <= position <= _WORDS:  # numpy would read beyond its words
            raise ValueError("numpy's generator has no such state")
        _put_back(state)
    except (TypeError, ValueError, LookupError, OverflowError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{path} is damaged: it is no state of the random generators ({reason}).") from None


def _of_older_versions() -> list[Any]:
    """What names a numpy array in the files of older versions, which saved numpy's words as one."""
    rebuild = np.empty(0).__reduce__()[0]
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]  # of numpy 1 and 2
    return [*names, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
