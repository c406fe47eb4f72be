"""Where the files of data sets lie.

Files are looked for in every layout that people have; the first one that is there is read. A layout is a pattern below
the data root, ``coco/annotations/instances_{split}2017.json`` or ``data/test-*.parquet``. A reader keeps its patterns
in one list, most common first; what is looked for and what a message names is that list.
"""

import re
from collections import defaultdict
from glob import escape
from pathlib import Path
from typing import Iterable, NamedTuple, Sequence

from activeo3.data_io import DataError

PICTURES = (
    "coco/{part}", "coco/images/{part}", "images/mscoco/images/{part}", "images/coco/{part}", "eval/images/coco/{part}",
    "images/{part}", "{part}",
)  # fmt: skip
"""Where COCO's folders of pictures lie, train2014, train2017 and val2017: as its archives unpack, as ultralytics has
them, as the authors of RefCOCO and of Perception-R1 do, and beside the annotations."""
_SPLIT_NAMES = re.compile(r"(?<![a-z])(train|val|valid|validation|test|dev|minival)(ing)?(?![a-z])", re.IGNORECASE)


def unsplit(root: Path, ending: str) -> list[Path]:
    """The files of a folder, or of the folder annotations/ in it, whose names name no split."""
    files = sorted(path for folder in ("", "annotations/") for path in root.glob(f"{folder}*.{ending}"))
    return [path for path in files if not _SPLIT_NAMES.search(path.stem) and not path.name.startswith(".")]


class Located(NamedTuple):
    """The pattern that fitted, as it stands in the list, and the files that fit it, in order."""

    pattern: str
    paths: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.paths[0]


def look_for(root: Path, patterns: Iterable[str], **parts: str) -> Located | None:
    """The first pattern that a file fits, None if none does. ``{name}`` in a pattern is one of ``parts``.

    If ``root`` is a cache of the hub, the first folder of a pattern may be the name of a data set in it. Twins
    ``._name`` that a Mac packs beside every file are no files.
    """
    names = {name: escape(part) for name, part in parts.items()}
    globs = {pattern: pattern.format(**names) for pattern in patterns}
    for pattern, glob in globs.items():
        if paths := _matches(root, glob):
            return Located(pattern, paths)
    for pattern, glob in globs.items():
        folder, _, rest = glob.partition("/")
        for snapshot in hub_snapshots(root, folder) if rest else ():
            if paths := _matches(snapshot, rest):
                return Located(pattern, paths)
    return None


def _matches(folder: Path, glob: str) -> tuple[Path, ...]:
    """The files that fit a pattern, in order."""
    return tuple(path for path in sorted(folder.glob(glob)) if path.is_file() and not path.name.startswith("._"))


def hub_snapshots(root: Path, name: str) -> list[Path]:
    """The data sets called ``name`` (a pattern), of any owner, if ``root`` is a cache of the Hugging Face hub: the
    snapshot of each that ``refs/main`` names, or its only one."""
    found = []
    for folder in sorted(root.glob(f"datasets--*--{name}")) if name and "/" not in name else ():
        main = folder / "refs" / "main"
        snapshots = (
            [folder / "snapshots" / main.read_text().strip()] if main.is_file() else sorted(folder.glob("snapshots/*"))
        )
        found += snapshots if len(snapshots) == 1 and snapshots[0].is_dir() else []
    return found


def files_of(root: Path, patterns: Iterable[str], **parts: str) -> Located:
    """``look_for``; raises DataError, naming every layout, if no file is there."""
    patterns = tuple(patterns)
    found = look_for(root, patterns, **parts)
    if found is None:
        raise missing(root, grouped_names([pattern.format(**parts) for pattern in patterns]))
    return found


def missing(folder: Path, layouts: Sequence[str]) -> DataError:
    """The error of a data set of which no layout is there; ``layouts`` are the files that were looked for.

    >>> print(missing(Path("data/a"), ["train.json", "data/train-*.parquet"]))
    data/a: there is neither train.json nor data/train-*.parquet, see data/README.md for the layout
    """
    looked_for = f"neither {' nor '.join(layouts)}" if len(layouts) > 1 else f"no {layouts[0]}"
    return DataError(f"{folder}: there is {looked_for}, see data/README.md for the layout")


def grouped_names(patterns: Iterable[str]) -> list[str]:
    """The patterns for a sentence: files of the same names in several folders together.

    >>> grouped_names(["a/1.json", "b/1.json", "a/2.json", "b/2.json", "c/3.json"])
    ['1.json or 2.json in a or b', 'c/3.json']
    """
    folders: dict[str, list[str]] = {}
    for pattern in dict.fromkeys(patterns):
        folder, _, name = pattern.rpartition("/")
        folders.setdefault(name, []).append(folder)
    names: dict[tuple[str, ...], list[str]] = {}
    for name, own in folders.items():
        names.setdefault(tuple(own), []).append(name)
    sentences = []
    for own, found in names.items():
        if len(own) == 1:
            sentences += [f"{own[0]}/{name}".removeprefix("/") for name in found]
        else:
            sentences.append(f"{' or '.join(found)} in {' or '.join(folder or '.' for folder in own)}")
    return sentences


def folder_of(root: Path, folders: Iterable[str], **parts: str) -> Path:
    """The first folder that is there; the first of the list if none is, so that a message about a file names it."""
    paths = [root / folder.format(**parts) for folder in folders]
    return next((path for path in paths if path.is_dir()), paths[0])


def fullest(root: Path, folders: Iterable[str], names: Sequence[Path], **parts: str) -> Path:
    """The folder that holds most of these files, the first of equals; a sample of them is looked for.

    If it is none, a folder that is there, so that a message about a file names it.
    """
    sample = names[:: max(1, len(names) // 30)]
    paths = [root / folder.format(**parts) for folder in folders]
    there = list(dict.fromkeys(path for path in paths if path.is_dir())) or paths[:1]
    return max(there, key=lambda folder: sum((folder / name).is_file() for name in sample))


def parent_of(root: Path, folders: Iterable[str], parts: Iterable[str]) -> Path | None:
    """The folder that holds one of ``parts``, each ``{part}`` in a pattern of ``folders``; None if none of them is
    there."""
    parts = tuple(parts)
    paths = (root / folder.format(part=part) for folder in folders for part in parts)
    return next((path.parent for path in paths if path.is_dir()), None)


def present(paths: Iterable[Path]) -> int:
    """How many of these files are there. Lists each folder once: a question per file takes minutes on a slow disk."""
    names = defaultdict(set)
    for path in paths:
        names[path.parent].add(path.name)
    return sum(
        len(own & {entry.name for entry in folder.iterdir()}) for folder, own in names.items() if folder.is_dir()
    )
