"""What every data set is: checked rows without pixels, and the function that makes an example of one. The registry of
names.

A new data set is one function, here or in a file of your own (``--data_options extension=my_sets.py``):

    @register("plates", {"test": 40}, "my own photographs", answers="words")
    def open_plates(source: Source) -> Dataset:
        folder, left_out = source.folder("plates"), LeftOut()
        rows = left_out.each(read_json(folder / "plates.json"), lambda n, row: checked(Plate, folder, f"row {n}", row))
        vqa = lambda row: VQA(row.question, (row.answer,))
        read = lambda row, index: Example(row.id, read_picture(folder / row.file), row.question, vqa=vqa(row))
        return source.dataset(rows, read, left_out)
"""

import hashlib
import os
import re
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any, Callable, Collection, Generic, Iterable, Iterator, Mapping, NamedTuple, Sequence, TypeVar

from PIL import Image

from activeo3.data_files import hub_snapshots, look_for, unsplit
from activeo3.data_io import DataError, LeftOut, did_you_mean_path
from activeo3.types import Aside, Example

T = TypeVar("T")

ONE_SPLIT = {"val": "test", "dev": "test"}
"""The ``aliases`` of a set with one public part to evaluate on, whichever of these names it is asked for by."""


@dataclass(frozen=True, eq=False)
class Dataset(Generic[T]):
    """A fixed, ordered collection of questions; indexing reads the image.

    ``items`` are validated rows without pixels. ``read(item, index)`` makes an example of one and raises DataError,
    with the example's id, if its image cannot be used. ``dropped`` has a sentence for every row that was left out.
    ``paths`` are the image files that the annotations name, asked about or not; there are none if images are inside
    tables.
    """

    name: str
    split: str
    items: Sequence[T]
    read: Callable[[T, int], Example]
    dropped: Sequence[str] = ()
    paths: Sequence[Path] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return self.read(self.items[index], index % len(self.items))  # IndexError ends a loop

    def __iter__(self) -> Iterator[Example]:
        return map(self.read, self.items, range(len(self.items)))

    def take(self, count: int) -> "Dataset[T]":
        """The first ``count`` questions."""
        return replace(self, items=self.items[:count])

    def map(self, change: Callable[[Example], Example]) -> "Dataset[T]":
        """The data set whose examples are changed when they are read."""
        return replace(self, read=lambda item, index: change(self.read(item, index)))

    def select(self, places: Sequence[int]) -> "Dataset[int]":
        """The questions at ``places``, in this order."""
        return replace(self, items=places, read=lambda place, _: self[place])

    def without_images(self) -> "Dataset[T]":
        """The questions without pixels: 800 images of 8K would need 80 GB of memory. This set's ``with_image`` reads
        one again."""

        def read(item: T, index: int) -> Example:
            example = self.read(item, index)
            pixels = hashlib.blake2b(example.image.tobytes(), digest_size=20).hexdigest()
            return replace(example, image=_NO_IMAGE, place=index, aside=Aside(example.image.size, pixels))

        return replace(self, read=read)

    def with_image(self, example: Example) -> Example:
        """An example of ``without_images`` with its image; others have theirs."""
        return example if example.aside is None else replace(example, image=self[example.place].image, aside=None)


_NO_IMAGE = Image.new("RGB", (1, 1))


def mixed(parts: Sequence[Dataset]) -> Dataset:
    """Several data sets as one: first the first question of each, then the second of each, and so on.

    So the beginning of a mixture has something of every set. Longer sets fill the end alone.
    """
    if len(parts) == 1:
        return parts[0]
    return Dataset(
        "+".join(part.name for part in parts),
        parts[0].split,
        sorted((k, p) for p, part in enumerate(parts) for k in range(len(part))),
        lambda place, _: parts[place[1]][place[0]],
        [sentence for part in parts for sentence in part.dropped],
        [path for part in parts for path in part.paths],
    )


# ---------------------------------------------------------------------------- what a reader is asked for


@dataclass(frozen=True)
class Source:
    """What a reader is asked for: a split of the data set ``name`` below a data root.

    ``tile`` and ``tile_overlap`` are pixels, for sets whose images are cut into tiles (0: whole images). ``seed`` draws
    selections and the order of options: it belongs to the data, not to a run. ``absent`` is the share of questions
    about categories that are known to be absent (data_coco.py). ``keep`` allows a reader to write what it has drawn or
    gathered beside the annotations.

    Of one's own data: ``holdout`` is the share of the training pictures that are the split val, ``held_out`` that these
    are meant; ``boxed`` leaves out rows that do not say what is there; ``box_format``, ``data_columns`` and ``subset``
    as in --data_options.
    """

    name: str
    split: str
    root: str | None
    tile: int = 800
    tile_overlap: int = 150
    seed: int = 0
    absent: float = 0.0
    keep: bool = True
    holdout: float = 0.0
    held_out: bool = False
    boxed: bool = False
    box_format: str = "auto"
    data_columns: str = ""
    subset: str = ""

    def folder(self, below: str = "") -> Path:
        """The folder ``below`` the data root. Raises DataError if no root was given or there is no such folder."""
        if not self.root:
            raise DataError(f"{self.name}: no data root was given, name the folder that holds its files")
        folder = Path(self.root) / below
        if not folder.is_dir():
            cached = hub_snapshots(Path(self.root), escape(below))
            if cached:
                return cached[0]
            advice = did_you_mean_path(folder) or "see data/README.md for the layout"
            raise DataError(f"{folder}: there is no such folder, {advice}")
        return folder

    def dataset(
        self,
        items: Sequence[T],
        read: Callable[[T, int], Example],
        left_out: Sequence[str] = (),
        paths: Iterable[Path] = (),
        where: Path | None = None,
        picture: Callable[[T], Any] | None = None,
    ) -> Dataset[T]:
        """The data set of these rows, with ``--holdout`` those of one part. ``picture`` names a row's picture.

        Raises DataError, naming the file ``where`` they were looked for, if there is none.
        """
        if picture and (self.held_out or self.holdout and self.split == "train"):
            names = [self._name(picture(item)) for item in items]
            apart = held_out(names, self.holdout, self.seed)
            items = [item for item, name in zip(items, names) if (name in apart) == self.held_out]
        if not len(items):
            what = f"{self.name} has no question in its split '{self.split}', write or download it again"
            raise LeftOut(left_out).nothing(f"{where or self.root}: {what}")
        split = "val" if self.held_out else self.split
        return Dataset(label(self.name), split, items, read, tuple(left_out), tuple(dict.fromkeys(paths)))

    def _name(self, picture: Any) -> str:
        """A picture's name, which does not change when the data root is moved."""
        return os.path.relpath(picture, self.root or ".") if isinstance(picture, Path) else str(picture)

    def own_file(self, patterns: Sequence[str]) -> tuple[Path, str]:
        """The file of this split of one's own data, and the split as its name spells it.

        A single file of the first pattern's ending that names no split is the training split. Raises DataError, naming
        the splits that are there and what to do without a split val.
        """
        root, there = self.folder(), {}
        for split in dict.fromkeys([self.split, "train", "val", "test"]):
            for spelled in SPELLINGS.get(split, (split,)):
                if split not in there and (found := look_for(root, patterns, split=spelled)):
                    there[split] = found.path, spelled
        alone = [] if there else unsplit(root, patterns[0].rpartition(".")[2])
        there |= {"train": (alone[0], "")} if len(alone) == 1 else {}
        if self.split not in there:
            raise self.no_split(root, there, patterns[0].format(split=self.split))
        return there[self.split]

    def no_split(self, root: Path, there: Collection[str], looked_for: str) -> DataError:
        """The error of a split of one's own data that is not there, beside those that are."""
        if not there:
            others = [f"it looks like --data {name}" for name, signs in SIGNS.items() if look_for(root, signs)]
            advice = (*others, "docs/own-data.md shows all layouts")[0]
            return DataError(f"{root}: there is no {looked_for}, or what else {self.name} could be; {advice}")
        return DataError(
            f"{root}: {self.name} has no split '{self.split}' there, it has {listed(there)}: name one with --split; "
            "--holdout 0.1 holds a tenth of train out as val, --eval_examples 0 trains without one"
        )


SPELLINGS = {"val": ("val", "valid", "validation")}
"""Splits that programs spell in several ways."""
SIGNS = {
    "yolo": ("data.yaml", "*.yaml", "*.yml"),
    "jsonl": ("*.jsonl",),
    "coco": ("instances_*.json", "annotations/instances_*.json", "*/_annotations.coco.json"),
    "hub:FOLDER": ("dataset_dict.json", "dataset_info.json", "*/*.parquet", "*.parquet"),
}
"""Files that show of which kind one's own data are."""


def held_out(names: Sequence[str], share: float, seed: int) -> set[str]:
    """The pictures that ``--holdout`` puts aside: a share of them, at least one, and never all.

    A picture's place follows from the seed and its own name, so it is the same on every rank and machine, and the
    pictures that are added later move few others. Raises DataError if there is but one.

    >>> sorted(held_out(["a", "b", "a", "c", "d"], 0.5, seed=0)) == sorted(held_out(["d", "c", "b", "a"], 0.5, seed=0))
    True
    """
    order = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed} {name}".encode("utf-8", "replace")).digest())
    if len(order) == 1:
        raise DataError(f"{order[0]}: --holdout cannot divide a single picture, leave it out or add pictures")
    return set(order[: min(max(1, round(share * len(order))), len(order) - 1)])


class Registered(NamedTuple):
    """A data set of the registry: what opens it; how many images (or questions, where images are packed together) each
    split should hold, 0 if not known; where it is to be had; how many ``images`` all splits together should hold.

    ``answers`` says what its questions are answered with: ``boxes`` (eval_detection.py), ``words`` that are right or
    wrong (eval_vqa.py) or free ``text`` that is more or less right (eval_zoom_qa.py). ``aliases`` are further names of
    splits; with ``any_split``, a split of any name may be there. ``fetched`` is the folder below the data root that the
    images of a list of urls are downloaded to.
    """

    open: Callable[[Source], Dataset]
    splits: Mapping[str, int]
    origin: str
    images: int = 0
    answers: str = "boxes"
    aliases: Mapping[str, str] = {}
    any_split: bool = False
    fetched: str = ""


DATASETS: dict[str, Registered] = {}
"""Every data set by its name. data.py imports the rooms that fill it."""


def register(name: str, splits: Mapping[str, int], origin: str, **more: Any) -> Callable[[Any], Any]:
    """Enters the decorated function, which opens a data set from a ``Source``, into the registry; arguments as in
    ``Registered``."""

    def entered(opens: Callable[[Source], Dataset]) -> Callable[[Source], Dataset]:
        DATASETS[name] = Registered(opens, splits, origin, **more)
        return opens

    return entered


def open_source(source: Source) -> Dataset:
    """Opens a registered data set. Raises DataError if it has no such split or its files are not in order."""
    known = DATASETS[source.name.partition(":")[0]]
    if source.holdout and not known.any_split:
        raise DataError(f"{source.name}: it has splits of its own, leave out --holdout")
    if source.holdout and source.split in SPELLINGS["val"]:
        source = replace(source, split="train", held_out=True)
    splits = {name: name for name in known.splits} | dict(known.aliases)
    if source.split not in splits and not known.any_split:
        raise DataError(f"{source.name}: there is no split '{source.split}', choose one of {listed(splits)}")
    return known.open(replace(source, split=splits.get(source.split, source.split)))


HUB = "hub:"
"""What a name begins with whose rest is the place of the data itself (data_hub.py)."""


def label(name: str) -> str:
    """The name of a data set for tables and files.

    >>> label("hub:owner/birds"), label("hub:./my set/"), label("coco:val")
    ('birds', 'my-set', 'coco:val')
    """
    last = os.path.normpath(name.removeprefix(HUB)).rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", last) if name.startswith(HUB) else name


def listed(names: Iterable[str]) -> str:
    """Names in order, for a sentence."""
    return ", ".join(sorted(names))
