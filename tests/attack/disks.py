"""Take the disk away from the real commands: full in several sizes, full, closed, gone or replaced at every file
operation.

    python -m tests.attack.disks                                     # everything: an hour
    python -m tests.attack.disks --parts sizes
    python -m tests.attack.disks --only "train: full 31, gone open metrics.jsonl"

trials.py says how a trial is judged; here it begins on a disk of its own (a tmpfs in a namespace of its own, which
needs no root where users may have namespaces). What may befall the command:

    size 40      the disk has 40 MB, until the command has ended
    full 31      before operation 31 (or the first that a pattern fits to) a stranger's file takes all room that is left
    gone 31      ... the output folder is removed
    file 31      ... it is renamed, and a file has its name
    closed 31    ... nobody may write into it any more

The command must say one sentence, with the folder and the free space where that is what is missing, and exit with 1; it
may also end well if it needed nothing more. Nothing half written is left, and the complete checkpoints that were there
still are. Then the disk is as before, and the command that goes on is judged.
"""

import ctypes
import json
import os
import random
import re
import shutil
import sys
import tempfile
from argparse import ArgumentTypeError
from contextlib import suppress
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

from .commands import OUTPUT, Command, Ended, Operation, operations
from .same_run import names_in
from .trials import Trial, attack, flags_of, last_words, read_trial, undisturbed

DISK = Path(OUTPUT).parent
BALLAST, ASIDE = DISK / "ballast", DISK / "aside"
STRUCK, THERE = "struck", "checkpoints.txt"
"""In the folder of a trial: that the disk has failed, and the complete checkpoints that there were then."""
LARGE = 400.0
"""MB of the disk unless it is said otherwise; the largest command needs 150."""
_CLONE_NEWNS, _CLONE_NEWUSER, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 0x20000, 0x10000000, 32, 16384, 1 << 18
_SENTENCE = re.compile(r"activeo3: (?!loading |training |continuing |all \d+ steps |going on |memory per )")
_CAPABILITIES = 0x20080522  # the version of capset's arguments
_LIBC = ctypes.CDLL(None, use_errno=True)


# ---------------------------------------------------------------------- a disk of our own


def own_disk(disk: Path) -> None:
    """Mount an empty disk of LARGE MB for this process and its children alone. Raises OSError where that is not
    allowed."""
    user, group = os.geteuid(), os.getegid()
    _checked(_LIBC.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if user else 0)))
    if user:
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(line)
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    disk.mkdir()
    _mount("tmpfs", str(disk), 0, _size(LARGE))


def resize(disk: Path, mb: float) -> None:
    """Give the disk another size."""
    _mount("tmpfs", str(disk), _MS_REMOUNT, _size(mb))


def _size(mb: float) -> str:
    return f"size={mb * 1000:.0f}k"


def _mount(kind: str, place: str, flags: int, options: str = "") -> None:
    _checked(_LIBC.mount(kind.encode(), place.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()))


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def obey_permissions() -> None:
    """Take from this process what lets root write where nobody may (CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."""
    header, sets = (
        (ctypes.c_uint32 * 2)(_CAPABILITIES, 0),
        (ctypes.c_uint32 * 6)(),
    )  # effective, permitted, inheritable, twice
    _checked(_LIBC.capget(header, sets))
    sets[0], sets[1] = sets[0] & ~0b110, sets[1] & ~0b110
    _checked(_LIBC.capset(header, sets))


def in_a_child(work: Callable[[], list[str]], folder: Path) -> list[str]:
    """What ``work`` returns in a child of this process, whose disk goes with it."""
    answer = folder / "answer.json"
    if not (child := os.fork()):
        try:
            answer.write_text(json.dumps(work()))
        except BaseException as error:
            answer.write_text(json.dumps([f"the trial could not be made: {error!r}"]))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return json.loads(answer.read_text())


# ---------------------------------------------------------------------- what happens to a disk


def fill() -> None:
    """A stranger's file takes all room that there is."""
    with suppress(OSError), open(BALLAST, "ab", buffering=0) as file:
        for piece in (1 << 20, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(piece)) == piece:
                    pass


def put_a_file() -> None:
    """The output folder has another name, and a file has its own."""
    Path(OUTPUT).rename(ASIDE)
    Path(OUTPUT).write_text("somebody's")


STRIKES: dict[str, Callable[[], None]] = {
    "full": fill, "gone": lambda: shutil.rmtree(OUTPUT), "file": put_a_file, "closed": lambda: os.chmod(OUTPUT, 0o555),
}  # fmt: skip


def put_right() -> None:
    """The disk is as it was, except for a folder that was removed."""
    BALLAST.unlink(missing_ok=True)
    if ASIDE.exists():
        Path(OUTPUT).unlink()
        ASIDE.rename(OUTPUT)
    if Path(OUTPUT).exists():
        os.chmod(OUTPUT, 0o755)


class Harm(NamedTuple):
    """One thing that befalls the disk: a kind of STRIKES at an operation, or a ``size`` in MB from the start."""

    text: str
    kind: str
    at: str

    @classmethod
    def read(cls, text: str) -> "Harm":
        """The harm that ``text`` is short for."""
        kind, _, at = text.partition(" ")
        if kind not in STRIKES and kind != "size":
            raise ArgumentTypeError(f"{text}: it begins with size, {', '.join(STRIKES)}")
        return cls(text, kind, at)

    def befalls(self, command: Command, folder: Path) -> list[str]:
        """Run the command on a disk that fails, put the disk right, and judge how the command took it."""
        if self.kind == "size":
            resize(folder / DISK, float(self.at))
        (folder / STRUCK).unlink(missing_ok=True)
        must = self.kind != "size" and (not self.at.isdecimal() or not (folder / OUTPUT).exists())
        ended = command.run(folder, self._strike(folder))
        was_here = os.getcwd()
        os.chdir(folder)
        try:
            found = [f"{self.text}: {fault}" for fault in self._faults(ended)]
            found += [f"{self.text}: there was no such operation"] if must and not Path(STRUCK).exists() else []
            put_right()
        finally:
            os.chdir(was_here)
        if self.kind == "size":
            resize(folder / DISK, LARGE)
        return found

    def _strike(self, folder: Path) -> Callable[[Operation], None]:
        """Before every operation: note the complete checkpoints, until the disk has failed."""
        struck = False

        def before(operation: Operation) -> None:
            nonlocal struck
            if not operation.number and self.kind == "closed":
                obey_permissions()
            if not struck:
                (folder / THERE).write_text("\n".join(complete()))
            if not struck and self.kind != "size" and operation.is_one(self.at):
                struck = True
                (folder / STRUCK).touch()
                STRIKES[self.kind]()

        return before

    def _faults(self, ended: Ended) -> list[str]:
        """How the command took it, in its folder."""
        found, lines = [], ended.said.splitlines()
        sentences = [line for line in lines if _SENTENCE.match(line)]
        output = ASIDE if ASIDE.exists() else Path(OUTPUT)  # where the command cannot remove what is half written
        if ended.code not in (0, 1):
            found.append(f"it ended with {ended.code}: {last_words(ended)}")
        if "Traceback" in ended.said or ended.code == 1 and len(sentences) != 1:
            found.append(
                f"it did not say one sentence but: {' / '.join(sentences if len(sentences) > 1 else lines[-8:])}"
            )
        elif ended.code == 1 and not (
            OUTPUT in sentences[0] and (self.kind not in ("full", "size") or " free" in sentences[0])
        ):
            found.append(f"its sentence lacks the folder or the free space: {sentences[0]}")
        left = names_in(output) if output == Path(OUTPUT) and output.is_dir() and self.kind != "closed" else ()
        unfinished = [name for name in left if re.search(r"(^|/)building-|\.tmp$", name)]
        if unfinished:
            found.append(f"half written: {', '.join(sorted(unfinished)[:5])}")
        were_there = Path(THERE).read_text().split()[-1:] if Path(THERE).exists() else []
        if self.kind != "gone" and not all((output / name).is_dir() for name in were_there):
            found.append(f"{were_there[0]} was complete and is lost")
        return found


def complete() -> list[str]:
    """The checkpoints that can be seen, oldest first."""
    return sorted(path.name for path in Path(OUTPUT).glob("checkpoint-*"))


# ---------------------------------------------------------------------- which trials


def sizes() -> list[Trial]:
    """Disks on which nothing fits, the metrics, almost a checkpoint, one but not two, two but not three."""
    of_one = (
        sum(path.stat().st_size for path in (undisturbed("keep two").folder / OUTPUT / "checkpoint-3").rglob("*")) / 1e6
    )
    fitting = [0.004, 0.1, 2, of_one - 1, of_one + 0.05, of_one + 3, 2 * of_one + 0.05, 2 * of_one + 3, 3 * of_one]
    return [Trial("keep two", (Harm.read(f"size {mb:.3f}"),)) for mb in fitting]


def every(name: str, kind: str) -> list[Trial]:
    """A disk that fails in one way before every operation of a command."""
    return [
        Trial(name, (Harm.read(f"{kind} {operation.number}"),)) for operation in operations(undisturbed(name).folder)
    ]


def trials_of(part: str, trials: int, draw: random.Random) -> list[Trial]:
    """The trials of a part: all there are of ``sizes``, as many as asked for of a kind of failure."""
    if part == "sizes":
        return sizes()
    found = [trial for name in ("two steps", "evaluate") for trial in every(name, part)]
    return sorted(draw.sample(found, min(trials, len(found))), key=found.index)


def needs_a_disk(trial: Trial) -> bool:
    """Can the trial only be made on a disk of its own?"""
    return any(isinstance(harm, Harm) and harm.kind in ("full", "size") for harm in trial.disturbances)


def refusal() -> str:
    """Why this user can have no disk of its own on this machine; "" if it can."""
    with tempfile.TemporaryDirectory() as folder:
        return "".join(in_a_child(lambda: own_disk(Path(folder, "disk")) or [], Path(folder)))


def faults_on_a_disk(trial: Trial, folder: Path) -> list[str]:
    """``Trial.faults`` on a disk of its own, or, where no disk is needed, in the folder."""

    def work() -> list[str]:
        if needs_a_disk(trial):
            own_disk(folder / DISK)
        if found := trial.faults(folder):
            shutil.copytree(folder / DISK, folder / "disk as it was", symlinks=True)
        return found

    undisturbed(trial.name)
    return in_a_child(work, folder)


def main(argv: Sequence[str] | None = None) -> int:
    parts = ("sizes", *STRIKES)
    parser = flags_of(
        __doc__, parts, "which failures", 1000, "at most so many of every part but sizes, drawn by --seed"
    )
    parser.add_argument(
        "--only", nargs="+", type=lambda text: read_trial(text, Harm.read), metavar="TRIAL", help="these trials"
    )
    options = parser.parse_args(argv)
    if refused := refusal():
        print(f"full disks are left out, since this machine lets this user have none: {refused}")
    draw = random.Random(options.seed)
    trials = options.only or [trial for part in options.parts for trial in trials_of(part, options.trials, draw)]
    return attack("disks", [trial for trial in trials if not (refused and needs_a_disk(trial))], faults_on_a_disk)


if __name__ == "__main__":
    sys.exit(main())
