"""Before step 1 of train.py: where the questions come from. Their order is data_loader.py's.

    python -m activeo3.data --data_root FOLDER                        # what is registered, found and missing
    python -m activeo3.data --data_root FOLDER --fetch pixmo_count    # pictures of a set that is a list of urls

A data set is one line in ``READERS``: its name, what opens it, how much it should hold and where it
comes from. Adding one means writing a class with what ``files.Dataset`` asks for, and that line.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, Mapping, NamedTuple, Sequence

from activeo3 import (
    data_coco,
    data_docvqa,
    data_docvqa_1200,
    data_fetch,
    data_lvis,
    data_mmbench,
    data_mme,
    data_page_ocr,
    data_pixmo,
    data_refcoco,
    data_scene_crops,
    data_scenes,
    data_soda,
    data_thinobject,
    data_vqa,
    data_vstar,
    paths,
    processes,
    terminal,
)
from activeo3.data_absent import with_absent
from activeo3.data_fetch import Fetched
from activeo3.data_io import DataError, Dataset, Derived, Source, listed, within
from activeo3.data_layouts import present
from activeo3.types import Example

DRAW: dict[str, Callable[[str, int], Example]] = {
    "scenes": data_scenes.example, "close_ups": data_scene_crops.close_up, "plates": data_scene_crops.plate,
}  # fmt: skip
"""What draws an example of a split, for each data set that needs no files."""


@dataclass(frozen=True)
class SceneDataset:
    """The procedural pictures of ``activeo3.data_scenes``, or close-ups of them; no files, the index is the seed."""

    split: str
    size: int
    name: str = "scenes"
    paths: tuple[Path, ...] = ()
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        return DRAW[self.name](self.split, within(index, self.size))


def open_scenes(source: Source, name: str) -> SceneDataset:
    """The embedded world, or its close-ups; the data root is not needed and not looked at."""
    return SceneDataset(source.split, data_scenes.SIZES[source.one_of(name, data_scenes.SIZES)], name)


# ---------------------------------------------------------------------------- the register


class Reader(NamedTuple):
    """How a data set is opened, how many pictures (or questions, where they are packed together) each of
    its splits should hold, where it is to be had, how many pictures all splits together should hold, and
    what its questions are answered with: ``boxes`` (eval_detection.py), ``words`` that are right or wrong (eval_vqa.py)
    or free ``text`` that is more or less right (eval_zoom_qa.py).
    A number of 0 is not known."""

    open: Callable[[Source], Dataset]
    expected: Mapping[str, int]
    origin: str
    whole: int = 0
    answers: str = "boxes"


LVIS = "https://www.lvisdataset.org, pictures https://cocodataset.org"
SODA = "https://shaunyuan22.github.io/SODA"
HUB = "https://huggingface.co/datasets"
MMBENCH = "https://github.com/open-compass/MMBench"
REFER = "https://github.com/lichengunc/refer, pictures https://cocodataset.org (2014 train)"
READERS: dict[str, Reader] = {
    **{
        name: Reader(partial(open_scenes, name=name), {"train": 0, "val": 0, "test": 0}, f"drawn by {draw.__module__.replace('.', '/')}.py")
        for name, draw in DRAW.items()
    },
    "coco": Reader(data_coco.open_coco, {}, "your own pictures, see data/README.md"),
    "lvis_small": Reader(data_lvis.open_small, {"train": 100_170, "val": 19_809}, LVIS),
    "lvis_dense": Reader(data_lvis.open_dense, {"train": 100_170, "val": 19_809}, LVIS),
    "soda_a": Reader(data_soda.open_soda_a, {"train": 0, "val": 0, "test": 0}, SODA, whole=2_513),
    "soda_d": Reader(data_soda.open_soda_d, {"train": 0, "val": 0, "test": 0}, SODA, whole=24_828),
    "thinobject5k": Reader(data_thinobject.open_thinobject5k, {"train": 4_748, "val": 500, "test": 500},
                           "https://github.com/liewjunhao/thin-object-selection"),
    "vstar": Reader(data_vstar.open_vstar, {"test": 191}, f"{HUB}/craigwu/vstar_bench", answers="words"),
    "docvqa": Reader(data_docvqa.open_docvqa, {"train": 10_194, "val": 1_286}, "https://rrc.cvc.uab.es/?ch=17", answers="text"),
    "docvqa_1200": Reader(data_docvqa_1200.open_docvqa_1200, {"train": 1_000, "test": 200}, f"{HUB}/nielsr/docvqa_1200_examples",
                          answers="text"),
    "hrbench": Reader(data_vqa.open_hrbench, {"test": 800}, f"{HUB}/DreamMr/HR-Bench", answers="words"),
    "hrbench_8k": Reader(data_vqa.open_hrbench_8k, {"test": 800}, f"{HUB}/DreamMr/HR-Bench", answers="words"),
    "realworldqa": Reader(data_vqa.open_realworldqa, {"test": 765}, f"{HUB}/xai-org/RealworldQA", answers="words"),
    "mme": Reader(data_mme.open_mme, {"test": 2_374}, f"{HUB}/lmms-lab/MME", answers="words"),
    **{
        name: Reader(data_mmbench.opener(name), {"test": data_mmbench.ROWS.get(name, 0)}, MMBENCH, answers="words")
        for name in data_mmbench.NAMES
    },
    "coco_det": Reader(data_coco.open_coco_det, {"train": 118_287, "val": 5_000}, "https://cocodataset.org"),
    "refcoco": Reader(data_refcoco.open_refcoco, {"train": 16_994, "val": 1_500, "testA": 750, "testB": 750}, REFER),
    "refcoco_plus": Reader(data_refcoco.open_refcoco_plus, {"train": 16_992, "val": 1_500, "testA": 750, "testB": 750}, REFER),
    "refcocog": Reader(data_refcoco.open_refcocog, {"train": 21_899, "val": 1_300, "test": 2_600}, REFER),
    "pixmo_count": Reader(data_pixmo.open_pixmo_count, {"train": 0, "val": 0, "test": 0}, f"{HUB}/allenai/pixmo-count"),
    "pageocr": Reader(data_page_ocr.open_pageocr, {"train": 0, "val": 0}, "your own pages, see data/README.md"),
    "fox_en": Reader(data_page_ocr.open_fox_en, {"test": 112}, "https://github.com/ucaslcl/Fox"),
    "fox_cn": Reader(data_page_ocr.open_fox_cn, {"test": 0}, "https://github.com/ucaslcl/Fox"),
}  # fmt: skip

FETCHABLE = {"pixmo_count": data_pixmo.FETCHED}
"""Data sets that are lists of urls, and the folder their pictures are downloaded to."""


@dataclass(frozen=True)
class Head(Derived):
    """The first ``size`` questions of a data set."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        return self.dataset[within(index, self.size)]


class Mixed:
    """Several data sets as one: first the first question of each, then the second of each, and so on.

    So the beginning of a mixture has something of every set. Longer sets fill the end alone.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = tuple(parts)
        self.name = "+".join(part.name for part in parts)
        self.split = parts[0].split
        self.paths = tuple(path for part in parts for path in part.paths)
        self.dropped = tuple(sentence for part in parts for sentence in part.dropped)
        self.order = sorted((k, p) for p, part in enumerate(parts) for k in range(len(part)))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Example:
        position, part = self.order[within(index, len(self))]
        return self.parts[part][position]


def open_dataset(
    names: str | Sequence[str],
    split: str,
    data_root: str | None = None,
    limit: int | None = None,
    tile: int = Source.tile,
    tile_overlap: int = Source.tile_overlap,
    seed: int = Source.seed,
    absent: float = 0.0,
) -> Dataset:
    """Opens a data set of ``READERS`` by name, or several as one; ``limit`` keeps the first questions.
    ``tile``, ``tile_overlap`` and ``seed`` as in ``files.Source``; ``absent`` as in ``data_absent.with_absent``.

    Raises DataError if a name or split is unknown, the annotations are not in order, or not a single
    picture is where they say.
    """
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in READERS]
    if unknown:
        raise DataError(f"there is no data set '{unknown[0]}', choose one of {listed(READERS)}")
    if limit is not None and limit < 1:
        raise DataError(f"{'+'.join(names)}: a limit of {limit} leaves no question, give at least 1")
    parts = [READERS[name].open(Source(split, data_root, tile, tile_overlap, seed)) for name in names]
    parts = [with_absent(part, absent, seed) for part in parts]
    for part in parts:
        if part.paths and not any(path.is_file() for path in part.paths):
            raise DataError(f"{part.paths[0]}: neither this nor any other picture of {part.name} is there, add them")
    dataset = parts[0] if len(parts) == 1 else Mixed(parts)
    return dataset if limit is None or limit >= len(dataset) else Head(dataset, limit)


# ---------------------------------------------------------------------------- what there is


def survey(data_root: str) -> Iterator[str]:
    """A line per data set, and one per split: what was found, counted against what it should hold.

    Nothing is written, and no picture is opened.
    """
    for name, reader in READERS.items():
        yield f"{name}  ({reader.origin})"
        sources = [Source(split, data_root, keep=False) for split in reader.expected] or _coco_folders(data_root)
        states: dict[str, list[str]] = {}
        total = 0
        for source in sources:
            try:
                dataset = reader.open(source)
                total += len(dataset.paths)
                state = _state(dataset, reader.expected.get(source.split, 0))
            except DataError as error:
                state = f"NOT USABLE  {error}"
            states.setdefault(state, []).append(source.split)
        yield from (f"    {', '.join(splits)}: {state}" for state, splits in states.items())
        if total and reader.whole:
            yield f"    all splits: {total:,} of {reader.whole:,} pictures"


def _coco_folders(data_root: str) -> list[Source]:
    """Every COCO-format split in the data root itself and in the folders in it."""
    paths = sorted(path for depth in ("", "*/") for path in Path(data_root).glob(f"{depth}instances_*.json"))
    return [Source(path.stem.removeprefix("instances_"), str(path.parent), keep=False) for path in paths]


def _state(dataset: Dataset, wanted: int) -> str:
    """What there is of a split that should hold so many pictures, or questions (0: not known)."""
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
    """Downloads the pictures of a data set whose tables hold urls, of all its splits or of some.

    Raises DataError if its tables are not there or its pictures cannot be downloaded.
    """
    if name not in FETCHABLE:
        raise DataError(f"{name}: its pictures are not a list of urls; --fetch is for {listed(FETCHABLE)}")
    opened = [READERS[name].open(Source(split, data_root, keep=False)) for split in splits or READERS[name].expected]
    wanted = {file.sha256: file for dataset in opened for file in dataset.wanted}
    return data_fetch.fetch(list(wanted.values()), Path(data_root) / FETCHABLE[name], retry=retry)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: list what is registered, found and missing, or download pictures."""
    parser = argparse.ArgumentParser(description="List the data sets: what is registered, found and missing.")
    parser.add_argument("--data_root", default="data", help="the folder that holds the data sets [data]")
    parser.add_argument(
        "--fetch", metavar="NAME", help=f"download the pictures of a set that is a list of urls ({listed(FETCHABLE)})"
    )
    parser.add_argument("--split", nargs="+", default=(), help="with --fetch: only these splits [all]")
    parser.add_argument("--retry", action="store_true", help="with --fetch: ask again for what was unavailable")
    config = parser.parse_args(argv)
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
    with processes.one_sentence(DataError):
        main()
