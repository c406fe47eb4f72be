"""``python -m activeo3.data --check``: what a data set holds, what is left out of it and why, and its first questions.

    python -m activeo3.data --check --data jsonl --data_root my_photos --holdout 0.1

The flags are those of train.py, so what is checked is what would be trained on. Pictures are decoded, those of the
first READ questions of a split (``--limit 5000``: of so many).
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from activeo3 import data_images, html_report
from activeo3.config import TrainConfig
from activeo3.data_io import DataError
from activeo3.data_set import DATASETS, Dataset, label
from activeo3.data_tiles import counted
from activeo3.drawing import NOTHING, annotated_picture
from activeo3.geometry import area
from activeo3.terminal import one_line
from activeo3.types import Example

READ = 1_000
NAMED = 10
"""How many queries, and how many rows that are left out, are named on the screen."""
DRAWN = 8
"""Questions on the page."""

Open = Callable[..., Dataset]


class Seen(NamedTuple):
    """A question that was read: its picture's number and size (width, height), its query, the boxes (N, 4) that
    count."""

    image_id: int
    size: tuple[int, int]
    query: str
    boxes_px: np.ndarray


@dataclass
class Split:
    """What was found in a split: its questions without pixels, sentences about what is left out, and the first
    examples."""

    name: str
    questions: int
    seen: list[Seen] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    drawn: list[Example] = field(default_factory=list)

    @classmethod
    def read(cls, dataset: Dataset, limit: int) -> "Split":
        """Reads the first ``limit`` questions of a data set."""
        found = cls(dataset.split, len(dataset), left_out=list(dataset.dropped))
        for index in counted(range(min(limit, len(dataset))), f"{dataset.name} ({dataset.split}): reading pictures"):
            try:
                example = dataset[index]
            except DataError as error:
                found.left_out.append(str(error))
                continue
            boxes = example.boxes_px[example.asked_for]
            found.seen.append(Seen(example.image_id, example.size_px, example.query, boxes))
            found.drawn += [example] * (len(found.drawn) < DRAWN)
        return found

    @property
    def counts(self) -> dict[str, Any]:
        """The numbers of the split, by name."""
        pictures, boxes = len({one.image_id for one in self.seen}), sum(len(one.boxes_px) for one in self.seen)
        counts = {"questions": self.questions, "read": len(self.seen), "pictures": pictures, "boxes": boxes}
        return {"split": self.name} | counts | {"left out": len(self.left_out)}

    def lines(self) -> Iterator[str]:
        """What was found, in words."""
        counts, queries = self.counts, Counter(one.query for one in self.seen)
        part = f", {counts['read']:,} of them read" if counts["read"] != self.questions else ""
        rest = f"{counts['pictures']:,} pictures, {counts['boxes']:,} boxes"
        yield f"{self.name}: {self.questions:,} questions{part}: {rest}"
        if self.seen:
            named = ", ".join(f"{one_line(query, 40)} {count:,}" for query, count in queries.most_common(NAMED))
            yield f"  asked for  {named}{_more(len(queries))}"
            yield f"  pictures   {_range(np.array([one.size for one in self.seen]))}"
        boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes_px for one in self.seen)])
        if len(boxes):
            share = np.median(np.concatenate([area(one.boxes_px) / np.prod(one.size) for one in self.seen]))
            yield f"  boxes      {_range(boxes[:, 2:] - boxes[:, :2])}; half cover less than {share:.1%} of theirs"
        yield f"  left out   {len(self.left_out):,}{':' * bool(self.left_out)}"
        yield from (f"    {sentence}" for sentence in self.left_out[:NAMED])
        yield from [f"    {_more(len(self.left_out)).lstrip(', ')}"] * (len(self.left_out) > NAMED)


def _range(sizes: np.ndarray) -> str:
    """The smallest, the median and the largest width and height of sizes (N, 2)."""
    least, middle, most = ("x".join(f"{side:.0f}" for side in of(sizes, axis=0)) for of in (np.min, np.median, np.max))
    return f"{least} px" if least == most else f"{least} to {most} px, median {middle}"


def _more(count: int) -> str:
    return f", and {count - NAMED:,} more" if count > NAMED else ""


def main(argv: Sequence[str], open_dataset: Open) -> None:
    """Check the splits of a training run, whose flags these are; print what was found, and write a page.

    Raises DataError if the training split cannot be used.
    """
    config = TrainConfig.from_args(argv, {"data": DATASETS})
    data_images.limit_pixels(config.max_image_pixels)
    names = "+".join(map(label, config.data))
    print(f"{names}{f' in {config.data_root}' if config.data_root else ''}", flush=True)
    found = []
    for split in (config.split, config.eval_split):
        try:
            dataset = open_dataset(config.data, split, config.data_root, **config.dataset_options)
        except DataError as error:
            if split == config.split:
                raise
            print(f"{split}: {error}")
            continue
        found.append(Split.read(dataset, config.limit or READ))
        print("\n".join(found[-1].lines()), flush=True)
    folder = Path(config.output_dir) if "--output_dir" in argv else Path()
    print(f"drawn on {write_page(folder / f'check-{names}.html', names, found)}")


def write_page(path: Path, name: str, found: Sequence[Split]) -> Path:
    """The numbers of all splits and the first questions of the first one, with their true boxes."""
    pictures = [
        annotated_picture(one, None, NOTHING, max_side=480, said="", truth=len(one.boxes_px) > 0)
        for one in found[0].drawn
    ]
    lines = [line.strip().replace("  ", ": ", 1) for split in found for line in split.lines()]
    rows = [split.counts for split in found]
    return html_report.write_picture_page(path, f"activeo3: {name}", lines, pictures, rows, list(rows[0]))
