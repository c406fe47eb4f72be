"""Before step 1 of train.py: where the questions come from. Their order is data_loader.py's.

    python -m activeo3.data --data_root FOLDER                        # what is registered, found and missing
    python -m activeo3.data --check --data coco --data_root FOLDER    # what a run would be trained on, and why not all
    python -m activeo3.data --data_root FOLDER --fetch pixmo_count    # images of a set that is a list of urls

Every data set is registered by the function that opens it (data_set.py); ``--data_options extension=my_sets.py`` runs a
file of your own that registers some.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence

from activeo3 import (
    data_coco,
    data_docvqa,
    data_fetch,
    data_hub,
    data_lvis,
    data_mixed,
    data_mmbench,
    data_own,
    data_perception,
    data_refcoco,
    data_scenes,
    data_soda,
    data_thinobject,
    data_vqa,
    data_yolo,
    paths,
    processes,
    terminal,
)
from activeo3.data_fetch import Fetched
from activeo3.data_files import present
from activeo3.data_io import DataError
from activeo3.data_set import DATASETS, HUB, Dataset, Source, listed, mixed, open_source

_REGISTERED = (data_coco, data_docvqa, data_hub, data_lvis, data_mixed, data_mmbench, data_own, data_perception,
               data_refcoco, data_scenes, data_soda, data_thinobject, data_vqa, data_yolo)  # fmt: skip
"""The rooms that register data sets when they are imported."""


def open_dataset(
    names: str | Sequence[str],
    split: str,
    data_root: str | None = None,
    limit: int | None = None,
    **options: Any,
) -> Dataset:
    """Opens a registered data set by name, or several as one; ``limit`` keeps the first questions, the options are
    those of ``Source``.

    Raises DataError if a name or split is unknown, the annotations are not in order, or not a single
    image is where they say.
    """
    names = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in names if name not in DATASETS and not name.startswith(HUB)]:
        raise DataError(f"there is no data set '{unknown[0]}', choose one of {listed(DATASETS)}")
    if limit is not None and limit < 1:
        raise DataError(f"{'+'.join(names)}: a limit of {limit} leaves no question, give at least 1")
    roots = [name.removeprefix(HUB) if name.startswith(HUB) else data_root for name in names]
    parts = [open_source(Source(name, split, root, **options)) for name, root in zip(names, roots)]
    for part in parts:
        if part.paths and not any(path.is_file() for path in part.paths):
            raise DataError(f"{part.paths[0]}: neither this nor any other picture of {part.name} is there, add them")
    dataset = mixed(parts)
    return dataset if limit is None or limit >= len(dataset) else dataset.take(limit)


# ---------------------------------------------------------------------------- what there is


def survey(data_root: str) -> Iterator[str]:
    """A line per data set, and one per split: what was found, counted against what it should hold.

    Nothing is written, and no image is opened.
    """
    for name, known in DATASETS.items():
        yield f"{name}  ({known.origin})"
        sources = [Source(name, split, data_root, keep=False) for split in known.splits] or _coco_folders(data_root)
        states: dict[str, list[str]] = {}
        total = 0
        for source in sources:
            try:
                dataset = open_source(source)
                total += len(dataset.paths)
                state = _state(dataset, known.splits.get(source.split, 0))
            except DataError as error:
                state = f"NOT USABLE  {error}"
            states.setdefault(state, []).append(source.split)
        yield from (f"    {', '.join(splits)}: {state}" for state, splits in states.items())
        if total and known.images:
            yield f"    all splits: {total:,} of {known.images:,} pictures"


def _coco_folders(data_root: str) -> list[Source]:
    """Every COCO-format split in the data root itself and in the folders in it."""
    paths = sorted(path for depth in ("", "*/") for path in Path(data_root).glob(f"{depth}instances_*.json"))
    return [Source("coco", path.stem.removeprefix("instances_"), str(path.parent), keep=False) for path in paths]


def _state(dataset: Dataset, wanted: int) -> str:
    """What there is of a split that should hold so many images, or questions (0: not known)."""
    there = len(dataset.paths) or len(dataset)
    files = present(dataset.paths)
    words = [f"{there:,}{f' of {wanted:,}' if wanted else ''} {'pictures' if dataset.paths else 'questions'}"]
    if dataset.paths:
        words += [f"{files:,} of their files", f"in {dataset.paths[0].parent}", f"{len(dataset):,} questions"]
    if dataset.dropped:
        words.append(f"{len(dataset.dropped):,} annotations left out, the first: {dataset.dropped[0]}")
    whole = there == (wanted or there) and files == len(dataset.paths)
    return f"{'found' if whole else 'PARTLY'}  {', '.join(words)}"


def fetch_pictures(name: str, data_root: str, splits: Sequence[str] = (), retry: bool = False) -> Fetched:
    """Downloads the images of a data set whose tables hold urls, of all its splits or of some.

    Raises DataError if its tables are not there or its images cannot be downloaded.
    """
    if not (name in DATASETS and DATASETS[name].fetched):
        raise DataError(f"{name}: its pictures are not a list of urls; --fetch is for {_fetchable()}")
    opened = [open_source(Source(name, split, data_root, keep=False)) for split in splits or DATASETS[name].splits]
    wanted = {file.sha256: file for dataset in opened for file in data_perception.wanted(dataset)}
    return data_fetch.fetch(list(wanted.values()), Path(data_root) / DATASETS[name].fetched, retry=retry)


def _fetchable() -> str:
    return listed(name for name, known in DATASETS.items() if known.fetched)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: list what is registered, found and missing, check what a run would take, or download images."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--check" in words:
        from activeo3 import data_check  # it reads the flags of train.py and writes a page

        return data_check.main([word for word in words if word != "--check"], open_dataset)
    parser = argparse.ArgumentParser(description="List the data sets: what is registered, found and missing.")
    parser.add_argument("--check", action="store_true", help="with the flags of train.py: what a run would take")
    parser.add_argument("--data_root", default="data", help="the folder that holds the data sets [data]")
    parser.add_argument(
        "--fetch", metavar="NAME", help=f"download the pictures of a set that is a list of urls ({_fetchable()})"
    )
    parser.add_argument("--split", nargs="+", default=(), help="with --fetch: only these splits [all]")
    parser.add_argument("--retry", action="store_true", help="with --fetch: ask again for what was unavailable")
    config = parser.parse_args(words)
    data_root = paths.expanded(config.data_root, "data_root")
    if config.fetch:
        fetch_pictures(config.fetch, data_root, config.split, config.retry)
        return
    for line in survey(data_root):
        print(line, flush=True)


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    processes.tell(kept=lambda: "the same command goes on where this one was")
    with processes.one_sentence(terminal.OneLine):
        main()
