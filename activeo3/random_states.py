"""The random generators of a process: Python's, numpy's, torch's and the GPU's. Seeded, saved and put back bit for bit.

A saved state holds tensors and plain values, so that reading it runs nothing: see ``checkpoint_files.read_plain``.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from activeo3.checkpoint_files import read_plain
from activeo3.cli import ConfigError

_WORDS = 624
"""Words in the state of a Mersenne twister, which Python and numpy use."""


def seed_everything(seed: int, rank: int) -> None:
    """Seed all generators, differently on every rank, so that ranks do not draw the same answers."""
    random.seed(seed * 1000 + rank)
    np.random.seed(seed * 1000 + rank)
    torch.manual_seed(seed * 1000 + rank)


def save(path: Path) -> None:
    """Write the states of all generators of this process."""
    kind, words, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    torch.save(
        {
            "python": random.getstate(),
            "numpy": (kind, words.tolist(), *rest),
            "torch": torch.get_rng_state(),
            "cuda": cuda,
        },
        path,
    )


def restore(path: Path) -> None:
    """Put all generators back. Raises ConfigError if the file is damaged, or holds more than tensors and plain values."""
    state = read_plain(path, _of_older_versions())
    try:
        words, position = state["numpy"][1:3]
        if len(words) != _WORDS or not 0 <= position <= _WORDS:  # numpy would read beyond its words
            raise ValueError("numpy's generator has no such state")
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
    except (TypeError, ValueError, LookupError, OverflowError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{path} is damaged: it is no state of the random generators ({reason}).") from None


def _of_older_versions() -> list[Any]:
    """What names a numpy array in the files of older versions, which saved numpy's words as one."""
    rebuild = np.empty(0).__reduce__()[0]
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]  # of numpy 1 and 2
    return [*names, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
