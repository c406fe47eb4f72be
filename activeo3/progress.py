"""How far a long evaluation is: a bar on a terminal, a line now and then otherwise."""

import shutil
import sys
import time
from typing import Callable

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Counts questions towards ``total`` and says how long the rest will take, on stderr.

    ``at_once`` ranks work at the same time, and one of them ``speaks``. Questions that were ``known`` already
    cost nothing and say nothing about the time that the others take.
    """

    def __init__(
        self, total: int, at_once: int = 1, speaks: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.at_once, self.clock, self.speaks = total, at_once, clock, speaks
        self.finished = self.worked = self.now = 0  # questions behind us, those of them that took time, under way
        self.began = self.spoken = clock()
        self._bar: tqdm | None = None
        if speaks and sys.stderr.isatty():
            columns, lines = shutil.get_terminal_size()
            layout = "{desc}|{bar:24}| {n_fmt}/{total_fmt}  {postfix}"
            self._bar = tqdm(total=total, desc="evaluating ", bar_format=layout, ncols=columns, nrows=lines)

    def known(self, questions: int) -> None:
        """So many need no work."""
        self.finished += questions
        self._show()

    def done(self, questions: int = 1) -> None:
        """So many are done here; every other rank will have done about as many."""
        self.now += questions * self.at_once
        self._show()

    def arrived(self, questions: int) -> None:
        """So many are done on all ranks together: what ``done`` estimated is now exact."""
        self.finished, self.worked, self.now = self.finished + questions, self.worked + questions, 0
        self._show()

    @property
    def left(self) -> float | None:
        """Seconds until all are done, or None before one was."""
        worked = self.worked + self.now
        if not worked:
            return None
        return (self.clock() - self.began) / worked * max(0, self.total - self.finished - self.now)

    def say(self, text: str) -> None:
        """A plain line on stdout that does not break the bar."""
        if self.speaks:
            print(text, flush=True) if self._bar is None else tqdm.write(text, file=sys.stdout)

    def close(self) -> None:
        """Leave the cursor on a fresh line."""
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        there, left = min(self.total, self.finished + self.now), self.left
        eta = f"ETA {clock_words(left)}" if left is not None else ""
        if self._bar is not None:
            self._bar.n = there
            self._bar.set_postfix_str(eta)
        elif self.speaks and left is not None and self.clock() - self.spoken >= EVERY:
            self.spoken = self.clock()
            print(f"evaluating: {there:,} of {self.total:,} questions  {eta}", file=sys.stderr, flush=True)


def clock_words(seconds: float) -> str:
    """
    >>> clock_words(65), clock_words(3_700)
    ('1:05', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
