"""Before step 1 of train.py: the order in which a data set's questions are asked."""

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from tqdm import tqdm

from activeo3 import outputs
from activeo3.data_io import DataError
from activeo3.data_set import Dataset
from activeo3.types import Example

PATIENCE = 20
"""How many unreadable pictures in a row the stream replaces before it gives up."""


class TrainingOrder:
    """The training order: which examples does this rank see at a step?

    A pure function of (seed, step, rank), so a run is resumed by knowing its step. Step s of all
    ranks together takes the next ``prompts`` x ``world`` questions of an endless order, in which
    every epoch is a new permutation of the data set; rank r has the r-th part of them. Two ranks
    with P prompts each therefore see what one rank with 2P sees.

    >>> stream = TrainingOrder("abcdef", prompts=2, seed=0, rank=0, world=1)
    >>> sorted(stream.at(0) + stream.at(1) + stream.at(2))
    ['a', 'b', 'c', 'd', 'e', 'f']
    """

    def __init__(self, dataset: Dataset, prompts: int, seed: int, rank: int, world: int) -> None:
        if prompts < 1 or not 0 <= rank < world or len(dataset) == 0:
            raise ValueError(
                f"a stream needs prompts >= 1, 0 <= rank < world and questions, got {prompts=}, "
                f"{rank=}, {world=}, {len(dataset)=}"
            )
        self.dataset = dataset
        self.prompts, self.seed, self.rank, self.world = prompts, seed, rank, world
        self.skipped: dict[str, str] = {}
        """Examples of this rank that could not be read: id -> reason."""

    def at(self, step: int) -> list[Example]:
        """This rank's examples (P) of a step, counted from 0.

        Raises DataError if PATIENCE questions in a row cannot be read.
        """
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        first = (step * self.world + self.rank) * self.prompts
        return [self._readable(first + k) for k in range(self.prompts)]

    def recall(self, folder: Path, resumed: bool) -> None:
        """Take up what a resumed run had left out, on one rank: the lines of ``left_out_file``."""
        path = left_out_file(folder, self.dataset)
        if resumed and self.rank == 0 and path.is_file():
            earlier = path.read_text("utf-8").split("\n")[:-1]
            self.skipped |= dict(zip(earlier, earlier))

    def list_left_out(self, folder: Path, gather: "Gather", say: Callable[[str], None] = lambda line: None) -> None:
        """Write what all ranks have left out into the run's folder, so that a resumed run knows it, and say it."""
        reasons = self.left_out(gather)
        if self.rank == 0:
            name_left_out(reasons, say, left_out_file(folder, self.dataset))

    def left_out(self, gather: "Gather") -> list[str]:
        """What its reader and all ranks have left out of the data set so far, each once; a collective."""
        of_ranks = gather(list(self.skipped.values()))
        return list(dict.fromkeys([*self.dataset.dropped, *(reason for of_rank in of_ranks for reason in of_rank)]))

    def _readable(self, position: int) -> Example:
        """The example at a position of the endless order, or its replacement if it cannot be read.

        The replacement is what the same slot holds one global step later: that depends on no rank,
        and within an epoch no other slot of this step holds it.
        """
        reason = ""
        for attempt in range(PATIENCE):
            ahead = position + attempt * self.prompts * self.world
            epoch, place = divmod(ahead, len(self.dataset))
            index = int(_order(self.seed, epoch, len(self.dataset))[place])
            try:
                return self.dataset[index]
            except DataError as error:
                reason = str(error)
                self.skipped[error.example_id or f"#{index}"] = reason
        raise DataError(f"{PATIENCE} examples in a row cannot be used, the last one: {reason}")


class PrefetchLoader:
    """A stream whose next step is read in a thread while this one is worked on: photographs take a while to decode.

    It gives what the stream gives, since that depends on the step alone. An error in reading is raised when its own
    step is asked for, and nothing is read from step ``end`` on.

    >>> ahead = PrefetchLoader(TrainingOrder("abcdef", prompts=2, seed=0, rank=0, world=1), end=2)
    >>> [ahead.at(step) == ahead.stream.at(step) for step in range(3)]
    [True, True, True]
    """

    def __init__(self, stream: TrainingOrder, end: int) -> None:
        self.stream, self.end = stream, end
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pictures")
        self._coming: dict[int, Future[list[Example]]] = {}  # of one step at most

    def at(self, step: int) -> list[Example]:
        """As ``TrainingOrder.at``; raises what that raises."""
        coming = self._coming.pop(step, None) or self._thread.submit(self.stream.at, step)
        examples = coming.result()
        ahead = step + 1
        self._coming = {ahead: self._thread.submit(self.stream.at, ahead)} if ahead < self.end else {}
        return examples


Gather = Callable[[Any], list[Any]]
"""``gather(mine)`` is every rank's value, on every rank (engine.Distributed.all_gather)."""


def one_rank(mine: Any) -> list[Any]:
    """The ``Gather`` of a single process."""
    return [mine]


MOST_NAMED = 20
"""How many examples that were left out are named on the screen; the file has all of them."""


def name_left_out(reasons: Sequence[str], say: Callable[[str], None], path: Path) -> None:
    """Say what was left out of a data set and how much that is; ``path`` gets every reason, one per line.

    Says nothing and leaves no file if ``reasons`` is empty.
    """
    if not reasons:
        outputs.remove(path)  # of an earlier run
        return
    for reason in reasons[:MOST_NAMED]:
        say(f"left out: {reason}")
    outputs.leave(path, "".join(f"{reason}\n" for reason in reasons).encode("utf-8", "replace"))
    say(f"left out in all: {len(reasons):,}, listed in {path}")


def left_out_file(folder: Path, dataset: Dataset) -> Path:
    """Where a run that writes into ``folder`` lists what it left out of a data set."""
    return folder / f"left_out-{dataset.name}-{dataset.split}.txt"


def readable(dataset: Dataset, folder: Path, gather: Gather = one_rank, writes: bool = True) -> list[Example]:
    """All examples of a data set in order; what cannot be read is left out, named on stderr and listed in ``folder``.

    So are the rows that its reader has left out. Ranks that share the examples must hold the same ones, so what one
    rank cannot read is left out on all of them, and one of them ``writes``.

    Raises DataError if none is left.
    """
    examples: dict[int, Example] = {}
    reasons: dict[int, str] = {}
    # Some thousand large pictures take minutes: a terminal is shown how far it is.
    for index in tqdm(
        range(len(dataset)), f"{dataset.name}: reading pictures", delay=5, leave=False, disable=None if writes else True
    ):
        try:
            examples[index] = dataset[index]
        except DataError as error:
            reasons[index] = str(error)
    left_out = {index: reason for of_rank in gather(reasons) for index, reason in of_rank.items()}
    if writes:
        sentences = [*dataset.dropped, *(left_out[index] for index in sorted(left_out))]
        name_left_out(sentences, partial(print, file=sys.stderr), left_out_file(folder, dataset))
    if len(left_out) == len(dataset):
        raise DataError(f"{dataset.name} has no readable picture in its split {dataset.split}.")
    return [example for index, example in examples.items() if index not in left_out]


Whole = Callable[[Example], Example]
"""``whole(example)`` is the example with its image, if that was put aside (``Dataset.with_image``)."""


def as_it_is(example: Example) -> Example:
    """The ``Whole`` of examples that have their images."""
    return example


@lru_cache(maxsize=4)  # replacements look ahead, so two epochs are in use at a border
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation (size,) of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(size)
