"""Two commands in one folder, commands that are asked to end, and launchers and workers that are ended in every order.

    python -m tests.attack.folders                                          # everything: an hour
    python -m tests.attack.folders --parts together --seed 7
    python -m tests.attack.folders --only "train + evaluate 1.25"           # one trial again
    python -m tests.attack.folders --only "evaluate TERM at 12" "train INT 2.5"
    python -m tests.attack.folders --only "9.5 KILL launcher, 0.2 TERM worker-1"

``train + evaluate 1.25``: an evaluation into the folder of a training that began 1.25 seconds before. One of the two
may be refused, in one sentence that names the other; the other one leaves what it leaves alone; and the refused one
then goes on.

``evaluate TERM at 12``: an evaluation that gets a SIGTERM before its 12th file operation; ``2.5`` is after so many
seconds. It ends with 143, one sentence and no traceback, and the command that goes on leaves what an undisturbed one
leaves, bit for bit.

``9.5 KILL launcher, 0.2 TERM worker-1``: ``deepspeed train.py`` on two ranks, whose outer process is killed after 9.5
seconds and whose second worker is sent a SIGTERM 0.2 seconds later. No process may go on, at most one sentence and no
traceback of ours is printed, and the command that goes on leaves what an undisturbed one leaves, bit for bit.
"""

import os
import random
import re
import signal
import sys
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple, Sequence

from .commands import OUTPUT, SAID, Ended, Process, operations
from .same_run import differences
from .trials import COMMANDS, attack, flags_of, last_words, undisturbed

GONE = 60.0
"""Seconds after the last signal in which all processes have to be gone: DeepSpeed's launcher waits for 30."""
PAIRS = (
    ("train", "train"),
    ("train", "evaluate"),
    ("evaluate", "train"),
    ("evaluate", "evaluate"),
    ("two ranks", "two ranks"),
)
DELAYS = 10
VICTIMS = ("launcher", "launch", "worker-0", "worker-1")
SIGNALS = ("TERM", "KILL", "INT")
ASKED = ("INT", "TERM", "HUP")
LAUNCHED = "deepspeed train.py"
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*.*")


# ---------------------------------------------------------------------- two commands in one folder


class Together(NamedTuple):
    """Two commands, the second of which begins ``delay`` seconds after the first."""

    first: str
    second: str
    delay: float

    def __str__(self) -> str:
        return f"{self.first} + {self.second} {self.delay:.2f}"

    @classmethod
    def read(cls, text: str) -> "Together":
        first, _, rest = text.partition(" + ")
        second, _, delay = rest.rpartition(" ")
        return cls(first, second, float(delay))

    def faults(self, folder: Path) -> list[str]:
        """What went wrong in a new ``folder``, a sentence each."""
        names, places = (self.first, self.second), [folder / "a", folder / "b"]
        (places[0] / OUTPUT).parent.mkdir(parents=True)
        places[1].mkdir()
        (places[1] / Path(OUTPUT).parts[0]).symlink_to(places[0] / Path(OUTPUT).parts[0])  # the same output folder
        before = time.monotonic()
        started = [COMMANDS[self.first].start(places[0])]
        time.sleep(max(0.0, before + self.delay - time.monotonic()))
        overlap = not _ended(started[0])
        started.append(COMMANDS[self.second].start(places[1]))
        ends = [process.wait() for process in started]
        refused = [index for index, end in enumerate(ends) if end.code]
        found = [f"{len(refused)} of the two were refused: {[last_words(end) for end in ends]}"] * (len(refused) > 1)
        found += [fault for index in refused for fault in _badly_refused(ends[index])]
        if overlap and not refused and not _one_after_the_other(ends, self.delay):
            found.append("both ran at once in one folder, and none was refused")
        if len(refused) == 1:
            winner = names[1 - refused[0]]
            found += differences(places[0] / OUTPUT, undisturbed(winner).folder / OUTPUT)
            again = COMMANDS[names[refused[0]]].run(places[0])
            found += [f"{names[refused[0]]} did not go on: {last_words(again)}"] * (again.code != 0)
        return found


def _ended(process: Process) -> bool:
    """Have all processes of a command ended? Asks without waiting."""
    for child in set(process.children) - set(process.codes):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            process.codes[child] = os.waitstatus_to_exitcode(status)
    return len(process.codes) == len(process.children)


def _one_after_the_other(ends: Sequence[Ended], delay: float) -> bool:
    """May the second command have come to its work when the first had ended? It has a start of some seconds before
    that."""
    return ends[0].seconds - delay < ends[1].seconds


def _badly_refused(end: Ended) -> list[str]:
    """What is wrong with the end of a command that was refused."""
    lines = end.said.strip().splitlines()
    said = [line for line in lines if " is in use by process " in line and line.startswith("activeo3: ")]
    found = [f"it was refused with {end.code}: {last_words(end)}"] * (end.code != 1)
    return found + [f"it was not refused in one sentence, but: {last_words(end)}"] * (
        not said or "Traceback" in end.said
    )


# ---------------------------------------------------------------------- one command that is asked to end


class Asked(NamedTuple):
    """A signal to a command, before a file operation or after some seconds; every rank gets it, as at Ctrl-C."""

    name: str
    signal: str
    seconds: float = 0.0
    operation: int | None = None

    def __str__(self) -> str:
        return (
            f"{self.name} {self.signal} {self.seconds:.2f}"
            if self.operation is None
            else f"{self.name} {self.signal} at {self.operation}"
        )

    @classmethod
    def read(cls, text: str) -> "Asked":
        name, number, at, when = re.fullmatch(rf"(.*) ({'|'.join(ASKED)}) (at )?([\d.]+)", text).groups()
        return cls(name, number, operation=int(when)) if at else cls(name, number, float(when))

    def faults(self, folder: Path) -> list[str]:
        """What went wrong in a new ``folder``, a sentence each."""
        number = getattr(signal, f"SIG{self.signal}")
        process = COMMANDS[self.name].start(
            folder, lambda operation: os.kill(os.getpid(), number) if operation.number == self.operation else None
        )
        if self.operation is None:
            time.sleep(self.seconds)
            for child in () if _ended(process) else process.children:
                os.kill(child, number)
        end = process.wait()
        sentences = re.findall(r"^activeo3: ended by .*", end.said, re.MULTILINE)
        found = [f"it ended with {end.code}: {last_words(end)}"] * (end.code not in (0, 128 + number, -number))
        found += [f"it did not say what is kept in one sentence, but: {last_words(end)}"] * (
            end.code == 128 + number and len(sentences) != 1
        )
        found += ["there is a traceback"] * ("Traceback" in end.said)
        again = COMMANDS[self.name].run(folder)
        if again.code != 0:
            return [*found, f"the command that goes on ended with {again.code}: {last_words(again)}"]
        return found + differences(folder / OUTPUT, undisturbed(self.name).folder / OUTPUT)


# ---------------------------------------------------------------------- launchers and workers


class Blow(NamedTuple):
    """A signal to one process of a run, ``after`` so many seconds."""

    after: float
    signal: str
    victim: str

    def __str__(self) -> str:
        return f"{self.after:.2f} {self.signal} {self.victim}"

    def fall(self, process: Process) -> None:
        """Wait, and send the signal, if there is still somebody to get it."""
        time.sleep(self.after)
        for pid in process.everyone():
            if _role(pid) == self.victim:
                with suppress(ProcessLookupError):
                    os.kill(pid, getattr(signal, f"SIG{self.signal}"))


class Blows(NamedTuple):
    """``deepspeed train.py`` and the signals that its processes get."""

    blows: tuple[Blow, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.blows))

    @classmethod
    def read(cls, text: str) -> "Blows":
        words = [part.split() for part in text.split(",")]
        return cls(tuple(Blow(float(after), name, victim) for after, name, victim in words))

    def faults(self, folder: Path) -> list[str]:
        """What went wrong in a new ``folder``, a sentence each."""
        process = COMMANDS[LAUNCHED].start(folder)
        for blow in self.blows:
            blow.fall(process)
        until = time.monotonic() + GONE
        while (left := process.everyone()) and time.monotonic() < until:
            _ended(process)  # or it would stay as a zombie
            time.sleep(0.1)
        found = [f"{', '.join(map(_role, left))} went on {GONE:.0f} s after the end"] * bool(left)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        said = (folder / SAID).read_text(errors="replace")
        sentences = re.findall(r"^activeo3: ended by .*", said, re.MULTILINE)
        found += [f"more than one sentence: {sentences}"] * (len(sentences) > 1)
        found += [
            text for text in _TRACEBACK.findall(said) if "deepspeed/launcher/runner.py" not in text
        ]  # that is DeepSpeed's own
        again = COMMANDS["two ranks"].run(folder)
        if again.code != 0:
            return [*found, f"the command that goes on ended with {again.code}: {last_words(again)}"]
        return found + differences(folder / OUTPUT, undisturbed("two ranks").folder / OUTPUT)


def _role(pid: int) -> str:
    """What a process is to its run, by its command line; "" for others."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if "deepspeed.launcher.launch" in words:
            return "launch"
        if "--num_accelerators" in words:
            return "launcher"
        return next((f"worker-{word[-1]}" for word in words if word.startswith("--local_rank=")), "")
    return ""


# ---------------------------------------------------------------------- which trials


def together(draw: random.Random) -> list[Together]:
    """Every pair at delays that lie evenly, but for some chance, between 0 and the length of the first command."""
    found = []
    for first, second in PAIRS:
        undisturbed(second)
        each = undisturbed(first).ended.seconds / DELAYS
        found += [Together(first, second, (place + draw.random() * (place > 0)) * each) for place in range(DELAYS)]
    return found


def asked(trials: int, draw: random.Random) -> list[Asked]:
    """Signals before random file operations of each command, and as many at random moments."""
    found = []
    for name in ("train", "evaluate", "two ranks"):
        whole, steps = undisturbed(name).ended.seconds, len(operations(undisturbed(name).folder))
        for _ in range(-(-trials // 6)):
            found += [
                Asked(name, draw.choice(ASKED), draw.uniform(0, whole)),
                Asked(name, draw.choice(ASKED), operation=draw.randrange(steps)),
            ]
    return found


def endings(trials: int, draw: random.Random) -> list[Blows]:
    """One signal to each process, and ``trials`` orders of two to four of them, at random moments of the run."""
    undisturbed("two ranks")
    whole = undisturbed(LAUNCHED).ended.seconds
    single = [Blows((Blow(draw.uniform(0, whole), *blow),)) for blow in product(SIGNALS, VICTIMS)]
    several = []
    for _ in range(trials):
        victims = draw.sample(VICTIMS, draw.randint(2, 4))
        moments = [draw.uniform(0, whole), *(draw.choice([0.0, 0.1, 1.0, 3.0]) for _ in victims[1:])]
        several.append(
            Blows(tuple(Blow(after, draw.choice(SIGNALS), victim) for after, victim in zip(moments, victims)))
        )
    return single + several


def read_trial(text: str) -> Together | Asked | Blows:
    """The trial that a text is short for."""
    kind = Together if " + " in text else Blows if text[:1].isdecimal() else Asked
    return kind.read(text)


PARTS = ("together", "asked", "endings")


def main(argv: Sequence[str] | None = None) -> int:
    parser = flags_of(__doc__, PARTS, "which trials", 50, "of asked; of endings, beside one signal to each process")
    parser.add_argument("--only", nargs="+", metavar="TRIAL", help="these trials")
    options = parser.parse_args(argv)
    draw = random.Random(options.seed)
    of_part = {
        "together": lambda: together(draw),
        "asked": lambda: asked(options.trials, draw),
        "endings": lambda: endings(options.trials, draw),
    }
    trials = [read_trial(text) for text in options.only or ()] or [
        trial for part in options.parts for trial in of_part[part]()
    ]
    return attack("folders", trials, lambda trial, folder: trial.faults(folder))


if __name__ == "__main__":
    sys.exit(main())
