"""Files and folders that flags name: ``~``, the hub's cache, one folder spelled in two ways, a start policy beside its
run.

A field of type ``Place`` is a path, or a hub id where a model is meant. config.py expands all of them, whether they
come from the command line, a preset or a program. What two spellings have in common is ``same``; nothing else compares
paths.
"""

import errno
import os
import re
from pathlib import Path
from typing import Any, NewType, Sequence

from activeo3.cli import ConfigError
from activeo3.data_io import did_you_mean_path

Place = NewType("Place", str)
"""The type of a config's field that names a file, a folder or a hub id."""

WRITTEN = ("output_dir", "curriculum")
"""Flags of places that a program may make."""

_CACHED = re.compile(r"models--(.+)")


def expanded(text: Any, flag: str) -> Any:
    """A path, or each of a tuple of paths, with ``~`` put in full, and a folder of the hub's cache as the snapshot in
    it; other texts are returned as they are.

    Raises ConfigError, naming the ``flag``, for a text that can be no path (too long, a loop of links), and for a
    cached model without a snapshot, or with several and no ``refs/main``.
    """
    if isinstance(text, tuple):
        return tuple(expanded(one, flag) for one in text)
    text = os.path.expanduser(text)
    try:
        os.stat(text)
    except ValueError as error:  # a null character
        raise ConfigError(f"--{flag} is no path: {error}.") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ConfigError(f"--{flag} {text[:60]} … is no path: {error.strerror.lower()}.") from None
    folder = Path(text)
    if not (_CACHED.fullmatch(folder.name) and folder.is_dir()):
        return text
    snapshots = sorted(path.name for path in folder.glob("snapshots/*") if path.is_dir())
    main = folder / "refs" / "main"
    chosen = [main.read_text().strip()] if main.is_file() else snapshots
    if len(chosen) != 1 or chosen[0] not in snapshots:
        there = (
            f"several snapshots, name one of {', '.join(snapshots)}"
            if len(snapshots) > 1
            else "no whole snapshot, download it again"
        )
        raise ConfigError(f"--{flag} {text} is a folder of the hub's cache with {there}.")
    return str(folder / "snapshots" / chosen[0])


def refuse_misspelt(text: Any, flag: str) -> None:
    """Raise ConfigError for a path, or one of several, that is not there while something like it is.

    So a misspelt folder is not looked for on the hub. What a run writes need not be there.
    """
    for one in text if isinstance(text, tuple) else (text,):
        if flag not in WRITTEN and not os.path.exists(os.path.expanduser(one)) and (near := did_you_mean_path(one)):
            raise ConfigError(f"--{flag} {one} does not exist: {near}")


def cached(text: str) -> str:
    """The hub id of a snapshot in the hub's cache; "" for any other path.

    >>> cached("/cache/models--Qwen--Qwen3-VL-4B/snapshots/0f1e"), cached("runs/a")
    ('Qwen/Qwen3-VL-4B', '')
    """
    parents = [_CACHED.fullmatch(part) for part in Path(text).parts[:-2]] if "/snapshots/" in text else []
    return next((match.group(1).replace("--", "/", 1) for match in parents if match), "")


def same(text: str, other: str) -> bool:
    """Do two texts name one file, folder or hub id? Symbolic links, ``..`` and a slash at the end make no difference.

    >>> same("runs/a", "runs/b/../a/"), same("Qwen/A", "Qwen/B")
    (True, False)
    """
    return _canonical(text) == _canonical(other)


def unified(texts: Sequence[str]) -> list[str]:
    """The texts, each replaced by the first one that names the same place.

    >>> unified(["runs/a", "runs/b", "./runs/a/"])
    ['runs/a', 'runs/b', 'runs/a']
    """
    first: dict[str, str] = {}
    return [first.setdefault(_canonical(text), text) for text in texts]


def _canonical(text: str) -> str:
    """One spelling of a place; of what is not there, as far as the text alone tells it."""
    text = os.path.expanduser(text)
    return os.path.realpath(text) if os.path.exists(text) else os.path.normpath(text)


def beside(run: Path, model: str) -> str:
    """Where a model lies that a run names: as named; or, for a relative path, seen from the nearest folder above the
    run.

    A run is often evaluated from another folder than it was started in, or moved with all that it was made of. What is
    found in neither way is returned as it is named.
    """
    model = expanded(model, "model")
    if not os.path.isabs(model) and not Path(model).is_dir():
        for folder in run.resolve().parents:
            if any((folder / model / name).is_file() for name in ("config.json", "adapter_config.json")):
                return str(folder / model)
    return model
