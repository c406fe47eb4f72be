"""After every step of train.py: what goes wrong in a run, said in a sentence when it begins."""

from collections import deque
from typing import Callable, Sequence

from activeo3.config import ConfigError
from activeo3.terminal import one_line

RECENT = 100  # steps over which skipped updates are counted
MOST_SKIPPED = 0.1  # share of them that may be skipped
FLAT_STEPS = 10  # steps in a row without any spread before a run is told that it does not learn
TOO_MANY_CUT = 0.5  # share of answers that hit the length limit
NOTHING_TO_LEARN = (
    f"for {FLAT_STEPS} steps all answers of every group earned the same, so there was nothing to learn; "
    f"look at the answers' format, at what the task model finds, and at --max_new_tokens"
)
CUT_OFF = (
    "more than half of the answers hit the length limit and were cut off; "
    "raise --max_new_tokens, or look at what they ramble about"
)


class Watch:
    """Looks at every step's row: names a skipped update, and warns, once each, of what keeps a run from learning.

    ``most`` skipped updates in a row end the run, and so do more than MOST_SKIPPED of the last RECENT steps;
    ``skipped`` is how many there were before it began.
    """

    def __init__(self, most: int, skipped: int) -> None:
        self.most, self.skipped, self.in_a_row = most, skipped, 0
        self.recent: deque[int] = deque(maxlen=RECENT)  # updates that each of the last steps skipped
        self.flat_in_a_row = 0
        self.warned: set[str] = set()

    def check(self, row: dict[str, float], ids: Callable[[], Sequence[str]], say: Callable[[str], None]) -> None:
        """Look at a step's row; raises ConfigError after too many skipped updates, in a row or of the last steps.

        ``ids`` names the examples of all ranks, a collective, and is called after a skipped update only: the
        row is the same on every rank, so all of them call it or none.
        """
        new = int(row["skipped_steps"] - self.skipped)
        self.skipped = row["skipped_steps"]
        self.in_a_row = self.in_a_row + 1 if new else 0
        self.recent.append(min(new, 1))
        if new:
            say(f"step {row['step']}: loss or gradient not finite, update skipped; examples: {', '.join(map(one_line, ids()))}")
        of_last = f"{sum(self.recent)} of the last {RECENT} steps were" if sum(self.recent) > MOST_SKIPPED * RECENT else ""
        if many := f"{self.most} updates in a row were" if self.in_a_row >= self.most else of_last:
            raise ConfigError(
                f"{many} skipped because a loss or gradient was not finite; "
                f"lower --lr, or continue from the last checkpoint with another --seed in a new --output_dir."
            )
        self.flat_in_a_row = self.flat_in_a_row + 1 if row["zero_spread"] == 1 else 0
        if self.flat_in_a_row >= FLAT_STEPS:
            self._warn(row, NOTHING_TO_LEARN, say)
        if row["tokens/truncated"] > TOO_MANY_CUT:
            self._warn(row, CUT_OFF, say)

    def _warn(self, row: dict[str, float], sentence: str, say: Callable[[str], None]) -> None:
        """Say a sentence, but only the first time."""
        if sentence not in self.warned:
            self.warned.add(sentence)
            say(f"step {row['step']}: {sentence}")
