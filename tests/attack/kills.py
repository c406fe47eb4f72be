"""Kill the real commands at every file operation and at random moments, and go on with the same command.

    python -m tests.attack.kills                                    # everything: hours
    python -m tests.attack.kills --parts moments --trials 1000 --seed 7
    python -m tests.attack.kills --only "train: half 31, 12, 2.5s"  # one trial again

trials.py says how a trial is judged. A kill comes before the file operation of a number (``31``) or that a pattern fits
to (``os.rename checkpoint-2``), in the middle of writing it (``half 31``), or after some seconds (``2.5s``). ``@1``
behind it: of rank 1, and not of the process that was started.
"""

import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple, Sequence

from .commands import OUTPUT, Command, Ended, kill_at, operations
from .trials import Trial, attack, flags_of, last_words, read_trial, undisturbed

GONE = 30.0
"""Seconds after the end of a launcher in which its workers have to be gone."""


class Kill(NamedTuple):
    """One kill: at an operation or after some seconds, of one rank or of the process that was started."""

    text: str
    wanted: str = ""
    half: bool = False
    seconds: float = 0.0
    rank: int | None = None

    @classmethod
    def read(cls, text: str) -> "Kill":
        """The kill that ``text`` is short for."""
        what, _, rank = text.partition("@")
        seconds = re.fullmatch(r"([\d.]+)s", what)
        at = (
            dict(seconds=float(seconds[1]))
            if seconds
            else dict(wanted=what.removeprefix("half "), half=what.startswith("half "))
        )
        return cls(text, rank=int(rank) if rank else None, **at)

    def befalls(self, command: Command, folder: Path) -> list[str]:
        """Start the command and kill it; nothing of it may go on. By the clock, or as it goes on, the kill may come too
        late."""
        if self.wanted:
            must = not self.wanted.isdecimal() or not (folder / OUTPUT).exists()
            ended = command.run(folder, kill_at(self.wanted, self.half), self.rank)
            return [] if ended.code == -signal.SIGKILL or ended.code == 0 and not must else [self._not_killed(ended)]
        process = command.start(folder)
        time.sleep(self.seconds)
        process.kill(self.rank)
        ended = process.wait()
        by_launcher = self.rank is not None  # which says in its own way that a rank was killed
        found = [] if by_launcher or ended.code in (0, -signal.SIGKILL) else [self._not_killed(ended)]
        until = time.monotonic() + GONE
        while (left := process.everyone()) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return found + [f"{self.text}: {len(left)} processes went on {GONE:.0f} s after the end"] * bool(left)

    def _not_killed(self, ended: Ended) -> str:
        return f"{self.text}: it was not killed but ended with {ended.code}: {last_words(ended)}"


# ---------------------------------------------------------------------- which trials


def every(name: str, ranks: Sequence[int] = (0,), but: str = "") -> list[Trial]:
    """A kill before every operation of a command, and in the middle of every one that writes; not those that the
    command ``but`` has."""
    known = {(one.kind, one.path) for one in operations(undisturbed(but).folder)} if but else set()
    kills = []
    for rank in ranks:
        for operation in operations(undisturbed(name).folder, rank):
            at = f"{operation.number}@{rank}" if len(ranks) > 1 else str(operation.number)
            if (operation.kind, operation.path) not in known:
                kills += [at, f"half {at}"] if operation.writes else [at]
    return [Trial(name, (Kill.read(kill),)) for kill in kills]


def at_moments(name: str, trials: int, draw: random.Random, ranks: Sequence[str] = ("",)) -> list[Trial]:
    """A kill at a random moment, one time in four followed by another one."""

    def kill() -> Kill:
        return Kill.read(f"{draw.uniform(0, undisturbed(name).ended.seconds):.2f}s{draw.choice(ranks)}")

    return [Trial(name, tuple(kill() for _ in range(1 + (draw.random() < 0.25)))) for _ in range(trials)]


PARTS = {
    "operations": ("saves", "tables", "evaluate"), "twice": ("train", "evaluate"), "ranks": ("two ranks",), "moments": ("train", "evaluate"),
    "python": ("python train.py", "python evaluate.py"), "deepspeed": ("deepspeed train.py",),
}  # fmt: skip


def trials_of(part: str, trials: int, draw: random.Random) -> list[Trial]:
    """The trials of a part: all there are of ``operations``, as many as asked for of the others."""
    found: list[Trial] = []
    for name in PARTS[part]:
        share = -(-trials // len(PARTS[part]))
        match part:
            case "operations":
                found += every(name, but="saves" if name == "tables" else "")
            case "ranks":
                found += draw.sample(every(name, (0, 1)), share)
            case "twice":  # the command that goes on is killed, too
                single = every(name)
                found += [
                    Trial(name, draw.choice(single).disturbances + draw.choice(single).disturbances)
                    for _ in range(share)
                ]
            case _:
                found += at_moments(name, share, draw, ("", "@0", "@1") if part == "deepspeed" else ("",))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags_of(
        __doc__, PARTS, "which kills", 100, "of every part but operations, which has as many as there are"
    )
    parser.add_argument(
        "--only", nargs="+", type=lambda text: read_trial(text, Kill.read), metavar="TRIAL", help="these trials"
    )
    options = parser.parse_args(argv)
    draw = random.Random(options.seed)
    return attack(
        "kills", options.only or [trial for part in options.parts for trial in trials_of(part, options.trials, draw)]
    )


if __name__ == "__main__":
    sys.exit(main())
