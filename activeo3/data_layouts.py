"""Where the files of a data set may lie: every layout that people have, and the first of them that is there.

A layout is a pattern below the data root, ``coco/annotations/instances_{split}2017.json`` or ``data/test-*.parquet``.
A reader keeps its patterns in one list, most common first; what is looked for and what a message names is that list.
"""

from collections import defaultdict
from glob import escape
from pathlib import Path
from typing import Iterable, NamedTuple

from activeo3.files import DataError

PICTURES = ("coco/{part}", "coco/images/{part}", "images/{part}", "{part}", "images/mscoco/images/{part}", "mscoco/{part}")
"""Where COCO's folders of pictures lie: train2014, train2017, val2017."""


class Found(NamedTuple):
    """The pattern that fitted, as it stands in the list, and the files that fit it, in order."""

    pattern: str
    paths: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.paths[0]


def look_for(root: Path, patterns: Iterable[str], **parts: str) -> Found | None:
    """The first pattern that a file fits, None if none does. ``{name}`` in a pattern is one of ``parts``.

    Twins ``._name`` that a Mac packs beside every file are no files.
    """
    names = {name: escape(part) for name, part in parts.items()}
    for pattern in patterns:
        paths = tuple(p for p in sorted(root.glob(pattern.format(**names))) if p.is_file() and not p.name.startswith("._"))
        if paths:
            return Found(pattern, paths)
    return None


def files_of(root: Path, name: str, patterns: Iterable[str], **parts: str) -> Found:
    """``look_for``; raises DataError, naming every layout of the data set ``name``, if no file is there."""
    patterns = tuple(patterns)
    found = look_for(root, patterns, **parts)
    if found is None:
        looked_for = " nor ".join(dict.fromkeys(pattern.format(**parts) for pattern in patterns))
        raise DataError(f"{root}: {name} has neither {looked_for}, see data/README.md for the layouts")
    return found


def folder_of(root: Path, folders: Iterable[str], **parts: str) -> Path:
    """The first folder that is there; the first of the list if none is, so that a message about a file names it."""
    paths = [root / folder.format(**parts) for folder in folders]
    return next((path for path in paths if path.is_dir()), paths[0])


def picture_parent(root: Path, parts: Iterable[str]) -> Path | None:
    """The folder that has one of COCO's folders of pictures, ``parts``, in it; None if none is there."""
    for folder in PICTURES:
        for part in parts:
            if (path := root / folder.format(part=part)).is_dir():
                return path.parent
    return None


def present(paths: Iterable[Path]) -> int:
    """How many of these files are there. Lists each folder once: a question per file takes minutes on a slow disk."""
    names = defaultdict(set)
    for path in paths:
        names[path.parent].add(path.name)
    return sum(len(own & {entry.name for entry in folder.iterdir()}) for folder, own in names.items() if folder.is_dir())

