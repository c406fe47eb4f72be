"""What was read from many files, kept as arrays in one file beside them, so that the next start reads that.

A kept file belongs to exactly the files that it was read from, their sizes and times of change, and to the program text
that read them: when one of these is another one, everything is read again. Nothing that is read here is ever run.
"""

import hashlib
import os
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping, Sequence, TypeVar

import numpy as np
from tqdm import tqdm

Arrays = Mapping[str, np.ndarray]
VERSION = "version"
T = TypeVar("T")


def remembered(
    store: Path, sources: Sequence[Path], code: Iterable[Path], read: Callable[[], Arrays], keep: bool = True
) -> Arrays:
    """``read()``, or what it returned when it last read the same ``sources`` with the same ``code``.

    ``store`` is an ``.npz`` file. A folder that cannot be written to is no error, and ``keep`` False writes nothing:
    then it is read again next time.
    """
    version = _version(sources, code)
    arrays = _load(store, version)
    if arrays is None:
        arrays = read()
        if keep:
            _save(store, version, arrays)
    return arrays


def _version(sources: Sequence[Path], code: Iterable[Path]) -> str:
    """A digest of names, sizes and times of change, and of the program text."""
    found = hashlib.blake2b(digest_size=20)
    for path in sources:
        state = path.stat()
        found.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    for path in code:
        found.update(path.read_bytes())
    return found.hexdigest()


def _load(store: Path, version: str) -> Arrays | None:
    """What is kept, or None: a file that is torn, or of another version, counts for nothing."""
    try:
        with np.load(store, allow_pickle=False) as kept:
            return (
                {name: kept[name] for name in kept.files if name != VERSION} if str(kept[VERSION]) == version else None
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(store: Path, version: str, arrays: Arrays) -> None:
    part = store.with_suffix(f".part{os.getpid()}")  # ranks may write at once, each its own
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays, **{VERSION: np.array(version)})
        part.replace(store)
    except OSError:
        with suppress(OSError):
            part.unlink()


def counted(items: Sequence[T], what: str, unit: str = "file") -> Iterator[T]:
    """The items, with a bar on the first rank's stderr when it takes longer than two seconds."""
    quiet = os.environ.get("RANK", "0") != "0"
    every = 0.5 if sys.stderr.isatty() else 30.0
    return iter(tqdm(items, desc=what, unit=unit, delay=2.0, mininterval=every, disable=quiet))
