"""After every step of train.py: what goes wrong in a run, said in a sentence when it begins."""

from typing import Callable, Sequence

from activeo3.config import ConfigError

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

    ``most`` skipped updates in a row end the run; ``skipped`` is how many there were before it began.
    """

    def __init__(self, most: int, skipped: int) -> None:
        self.most, self.skipped, self.in_a_row = most, skipped, 0
        self.flat_in_a_row = 0
        self.warned: set[str] = set()

    def check(self, row: dict[str, float], ids: Callable[[], Sequence[str]], say: Callable[[str], None]) -> None:
        """Look at a step's row; raises ConfigError after ``most`` skipped updates in a row.

        ``ids`` names the examples of all ranks, a collective, and is called after a skipped update only: the
        row is the same on every rank, so all of them call it or none.
        """
        self.in_a_row = self.in_a_row + 1 if row["skipped_steps"] > self.skipped else 0
        self.skipped = row["skipped_steps"]
        if self.in_a_row:
            say(f"step {row['step']}: loss or gradient not finite, update skipped; examples: {', '.join(ids())}")
        if self.in_a_row >= self.most:
            raise ConfigError(
                f"{self.most} updates in a row were skipped because a loss or gradient was not finite; "
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
