"""What the attacks on running commands share: which commands, trials in a short notation, and how they are judged.

A trial is a command and what befalls it: ``train: half 31, 12`` is disturbed at its 31st file operation, and the same
command, which goes on, at its 12th. Then the command runs to its end. It must exit with 0 and leave what the same
command leaves that nothing disturbs: the same files and none more, the same metrics, checkpoints, tables and pictures,
bit for bit.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, NamedTuple, Protocol, Sequence

from .commands import OUTPUT, PORT, ROOT, Command, Ended
from .same_run import differences

_TRAIN = Command("train.py", (
    "--preset", "tiny", "--model", str(ROOT / "data/tiny"), "--ds_config", str(ROOT / "ds_config.json"), "--prompts", "1",
    "--micro_prompts", "1", "--group", "2", "--regions", "1", "--max_new_tokens", "48", "--task_max_new_tokens", "16", "--update_options", "warmup=1",
    "--steps", "4", "--save_every", "2", "--keep", "1", "--samples_every", "2", "--eval_examples", "1",
))  # fmt: skip
_TWO_STEPS = ("--steps", "2", "--save_every", "1", "--samples_every", "1")
_EVALUATE = Command("evaluate.py", (
    "--checkpoint", str(ROOT / "data/tiny"), "--limit", "3", "--methods", "grid", "cot", "--regions", "1", "--max_new_tokens", "48",
    "--task_model", "oracle", "--resamples", "10",
))  # fmt: skip
_DEEPSPEED = (
    sys.executable,
    str(Path(sys.executable).with_name("deepspeed")),
    "--num_accelerators",
    "2",
    "--master_port",
    PORT,
)
COMMANDS = {
    "train": _TRAIN,
    "two steps": replace(_TRAIN, flags=(*_TRAIN.flags, *_TWO_STEPS)),
    "saves": replace(_TRAIN, flags=(*_TRAIN.flags, *_TWO_STEPS, "--eval_examples", "0", "--task_model", "oracle")),
    "tables": replace(_TRAIN, flags=(*_TRAIN.flags, "--steps", "1", "--task_model", "oracle")),
    "keep two": replace(_TRAIN, flags=(*_TRAIN.flags, "--steps", "3", "--save_every", "1", "--keep", "2")),
    "two ranks": replace(_TRAIN, world=2),
    "evaluate": _EVALUATE,
    "python train.py": replace(_TRAIN, program=(sys.executable,)),
    "python evaluate.py": replace(_EVALUATE, program=(sys.executable,)),
    "deepspeed train.py": replace(_TRAIN, program=_DEEPSPEED),
}
"""Small, but everything is done: several checkpoints, of which one is deleted, pictures, tables, a page. The first
seven are forks, which can be disturbed at a file operation; the others start as a user starts them."""


class Disturbance(Protocol):
    """Something that befalls a running command."""

    text: str

    def befalls(self, command: Command, folder: Path) -> list[str]:
        """Start the command, disturb it, wait for its end, and say what was wrong with that, a sentence each."""
        ...


class Trial(NamedTuple):
    """A command and what befalls it, one after the other."""

    name: str
    disturbances: tuple[Disturbance, ...]

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(one.text for one in self.disturbances)}"

    def faults(self, folder: Path) -> list[str]:
        """What went wrong in a new ``folder``, a sentence each."""
        command, wanted = COMMANDS[self.name], undisturbed(self.name).folder
        found = [fault for one in self.disturbances for fault in one.befalls(command, folder)]
        ended = command.run(folder)
        if ended.code != 0:
            return [*found, f"the command that goes on ended with {ended.code}: {last_words(ended)}"]
        return found + differences(folder / OUTPUT, wanted / OUTPUT)


def read_trial(text: str, read: Callable[[str], Disturbance]) -> Trial:
    """The trial that a text like ``train: half 31, 12`` is short for; ``read`` reads one disturbance."""
    name, _, rest = text.partition(":")
    return Trial(name, tuple(read(part.strip()) for part in rest.split(",")))


class Undisturbed(NamedTuple):
    """The folder and the end of a command that nothing disturbed."""

    folder: Path
    ended: Ended


@cache
def _shelf() -> TemporaryDirectory[str]:
    """Where the folders of undisturbed commands are, until this process ends."""
    return TemporaryDirectory(prefix="undisturbed-")


@cache
def undisturbed(name: str) -> Undisturbed:
    """A command that nothing disturbs, once. Raises RuntimeError if it fails."""
    folder = Path(_shelf().name, name)
    ended = COMMANDS[name].run_undisturbed(folder)
    if ended.code != 0:
        raise RuntimeError(f"{name} ended with {ended.code}, and nothing had disturbed it: {last_words(ended)}")
    return Undisturbed(folder, ended)


def last_words(ended: Ended) -> str:
    """The last lines of what a command said, in one."""
    return " / ".join(ended.said.strip().splitlines()[-3:])


def flags_of(doc: str | None, parts: Sequence[str], what: str, trials: int, of: str) -> argparse.ArgumentParser:
    """The flags that an attack on running commands has: ``what`` its ``parts`` are, and ``of`` what so many ``trials``
    are made."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help=what)
    parser.add_argument("--trials", type=int, default=trials, help=of)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def attack(name: str, trials: Sequence[Trial], faults: Callable[[Trial, Path], list[str]] = Trial.faults) -> int:
    """Judge all trials, print the faulty ones and ``name trials faults``. Returns the exit code."""
    folder, faulty, began = Path(tempfile.mkdtemp(prefix=f"{name}-")), 0, time.monotonic()
    for number, trial in enumerate(trials, start=1):
        place = folder / f"trial-{number}"
        place.mkdir()
        if found := faults(trial, place):
            faulty += 1
            print(f'FAULT --only "{trial}" in {place}:', *found, sep="\n  ", flush=True)
        else:
            shutil.rmtree(place)
        if number % 20 == 0:
            print(
                f"{number} of {len(trials)} trials, {faulty} faults, {(time.monotonic() - began) / 60:.0f} minutes",
                flush=True,
            )
    if not faulty:
        shutil.rmtree(folder)
    print(f"{name} {len(trials)} {faulty}")
    return int(faulty > 0)
