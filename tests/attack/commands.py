"""The real commands, many times and fast: what they import is imported once, and every command is a fork of this
process.

``Command("train.py", flags).start(folder)`` runs the script's own ``__main__`` block, with its own exit code, in a
child that stands in ``folder``; a start costs milliseconds and not ten seconds. The child can be asked to call a
function before each of its file operations below the output folder: that is how an attack kills it there, or takes its
disk away.
"""

import atexit
import importlib
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import wraps
from pathlib import Path
from typing import Any, Callable, NamedTuple, NoReturn

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # a process with threads cannot be forked

ROOT = Path(__file__).parent.parent.parent
OUTPUT = "disk/run"
"""The output folder of every command, in the folder that it stands in; ``disk`` may be a disk of its own (disks.py)."""
SAID, MODULES = "said.txt", "modules.txt"
PORT = "PORT"
"""Stands in the words of a launcher for a port that is free."""
PATIENCE = 1800.0
"""Seconds after which a command that has not ended counts as hanging: on a busy machine, some minutes are no sign of
it."""
GRACE = 2.0
"""Seconds that other ranks have to end by themselves when one of them has died, before they are killed as a launcher
does."""


class Operation(NamedTuple):
    """A file operation that a process is about to do: its n-th, of some kind, with a path below the output folder."""

    number: int
    kind: str
    path: Path

    @property
    def writes(self) -> bool:
        """Does it write a file, which a kill may leave half written?"""
        return self.kind in ("open", "torch.save", "safetensors")

    def __str__(self) -> str:
        return f"{self.number} {self.kind} {self.path}"

    def is_one(self, wanted: str) -> bool:
        """Is this the operation of that number, or one that the pattern ``kind path`` fits to?"""
        return wanted == str(self.number) or fnmatch(f"{self.kind} {self.path}", wanted)


Before = Callable[[Operation], None]


class Ended(NamedTuple):
    """How a command ended: its exit code (negative: a signal; None: it hung), its seconds, and what it said."""

    code: int | None
    seconds: float
    said: str


@dataclass(frozen=True)
class Command:
    """A script of the project with its flags, on ``world`` ranks; its output folder is OUTPUT."""

    script: str
    flags: tuple[str, ...]
    world: int = 1
    program: tuple[str, ...] = ()
    """What starts the script anew, as a user does, in place of a fork; a launcher starts the ranks itself."""

    @property
    def words(self) -> list[str]:
        return [str(ROOT / self.script), *self.flags, "--output_dir", OUTPUT]

    def start(self, folder: Path, before: Before | None = None, rank: int | None = None) -> "Process":
        """The command in processes that stand in ``folder``; that of ``rank``, or all of them, call ``before`` (forks
        only)."""
        folder.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        (folder / SAID).write_text("")
        common, children = _environment(self.world), []
        for mine in range(self.world):
            children.append(os.fork())
            if not children[-1]:
                self._become(
                    folder,
                    before if rank in (None, mine) else None,
                    common | {"RANK": str(mine), "LOCAL_RANK": str(mine)},
                )
        return Process(children, folder)

    def run(self, folder: Path, before: Before | None = None, rank: int | None = None) -> Ended:
        """``start``, and its end."""
        return self.start(folder, before, rank).wait()

    def run_undisturbed(self, folder: Path) -> Ended:
        """How a command goes that nothing disturbs. A fork lists its file operations, and what it imports this process
        imports, too."""
        if self.program:
            return self.run(folder)
        sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]
        importlib.import_module(Path(self.script).stem)
        ended = self.run(folder, write_down)
        for name in (folder / MODULES).read_text().splitlines() if ended.code == 0 else ():
            with suppress(Exception):  # some are parts of others, and can only be imported by them
                importlib.import_module(name)
        if (threads := len(os.listdir("/proc/self/task"))) > 1:
            raise RuntimeError(f"this process has {threads} threads, and a fork would have one of them")
        return ended

    def _become(self, folder: Path, before: Before | None, environment: dict[str, str]) -> NoReturn:
        """What ``python <script> <flags>`` does, from here to its exit code."""
        code = 1
        atexit._clear()  # what this process has to do at its own end
        try:
            os.chdir(folder)
            os.environ.update(environment)
            said = os.open(SAID, os.O_WRONLY | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(said, stream)
            sys.argv = self.words
            if self.program:
                program = [str(free_port()) if word == PORT else word for word in self.program]
                os.execv(program[0], [*program, *sys.argv])
            if before:
                watch_operations(Path(OUTPUT).absolute(), before)
            known = set(sys.modules)
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
            Path(MODULES).write_text("\n".join(name for name in sys.modules if name not in known))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _environment(world: int) -> dict[str, str]:
    """What a launcher tells every rank; nothing without one."""
    if world == 1:
        return {}
    return {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Process:
    """A command that runs, in one process for each rank."""

    def __init__(self, children: list[int], folder: Path) -> None:
        self.children, self.folder, self.began = children, folder, time.monotonic()
        self.codes: dict[int, int] = {}  # of the children that have ended

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """Its end: the code of the rank that failed first. It is killed if its end has not come after so many
        seconds."""
        until, hangs = self.began + seconds, False
        while len(self.codes) < len(self.children):
            for child in set(self.children) - set(self.codes):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    self.codes[child] = os.waitstatus_to_exitcode(status)
                    until = min(until, time.monotonic() + GRACE) if self.codes[child] else until
            if time.monotonic() > until:
                hangs = not any(self.codes.values())
                self.kill()
                until = float("inf")
            time.sleep(0.01)
        code = next(filter(None, self.codes.values()), 0)
        said = (self.folder / SAID).read_text(errors="replace")
        return Ended(None if hangs else code, time.monotonic() - self.began, said)

    def kill(self, rank: int | None = None) -> None:
        """End all processes that this one started, or that of a rank below a launcher, by SIGKILL."""
        if rank is None:
            doomed = [child for child in self.children if child not in self.codes]
        else:
            doomed = [
                pid
                for pid in self.everyone()
                if f"--local_rank={rank}" in _words_of(pid) and "-m" not in _words_of(pid)
            ]
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def everyone(self) -> list[int]:
        """All processes that stand in the command's folder, whoever started them: a launcher's workers, too."""
        found = []
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                found += [int(entry)] if os.readlink(f"/proc/{entry}/cwd") == str(self.folder.resolve()) else []
        return found


def _words_of(pid: int) -> list[str]:
    """The command line of a process; empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


# ---------------------------------------------------------------------- file operations


_OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = {  # of sys.addaudithook: where among what it is told the open folder is that the path lies in
    "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.link": 2, "os.symlink": 2, "os.truncate": None, "os.chmod": 2,
}  # fmt: skip


def watch_operations(root: Path, before: Before) -> None:
    """Call ``before`` with every file operation of this process below ``root`` that changes something, before it is
    done.

    Python tells of its own (sys.addaudithook). fsync is wrapped, and so are the writers that are not Python: torch's
    and safetensors'.
    """
    import safetensors.torch
    import torch

    number = 0

    def told(kind: str, path: Any, descriptor: Any = None) -> None:
        nonlocal number
        found = _absolute(path, descriptor)
        if found.is_relative_to(root) and not _does_nothing(kind, found):
            number += 1
            before(Operation(number - 1, kind, found.relative_to(root)))

    def audited(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and given[2] & _OPENED_TO_WRITE:
            told("open", given[0])
        elif event in _EVENTS:
            place = _EVENTS[event]
            told(event, given[0], given[place] if place else None)

    def wrapped(owner: Any, name: str, kind: str, place: int) -> None:
        original = getattr(owner, name)

        @wraps(original)
        def call(*given: Any, **named: Any) -> Any:
            if len(given) > place and isinstance(given[place], (str, os.PathLike, int)):
                told(kind, given[place])
            return original(*given, **named)

        setattr(owner, name, call)

    wrapped(os, "fsync", "fsync", 0)
    wrapped(torch, "save", "torch.save", 1)
    wrapped(safetensors.torch, "serialize_file", "safetensors", 1)
    sys.addaudithook(audited)


def _absolute(path: Any, descriptor: Any) -> Path:
    """The absolute path of what an operation is told: a name, bytes or an open file, in a folder that may be an open
    one."""
    if isinstance(path, int):
        return Path(os.readlink(f"/proc/self/fd/{path}"))
    folder = (
        os.readlink(f"/proc/self/fd/{descriptor}") if isinstance(descriptor, int) and descriptor >= 0 else os.getcwd()
    )
    return Path(os.path.normpath(os.path.join(folder, os.fsdecode(path))))


def _does_nothing(kind: str, path: Path) -> bool:
    """Will the operation fail or change nothing: a folder that is there or has no place, a file to be removed that is
    not there?"""
    if kind == "os.mkdir":
        return path.exists() or not path.parent.exists()
    return kind == "os.remove" and not os.path.lexists(path)


def write_down(operation: Operation) -> None:
    """A ``Before`` that lists the operations of this rank in a file."""
    with open(_list_of(int(os.environ.get("RANK", "0"))), "a") as file:
        file.write(f"{operation}\n")


def operations(folder: Path, rank: int = 0) -> list[Operation]:
    """The operations that a rank of the command in ``folder`` has written down."""
    lines = [line.split(" ", 2) for line in (folder / _list_of(rank)).read_text().splitlines()]
    return [Operation(int(number), kind, Path(path)) for number, kind, path in lines]


def _list_of(rank: int) -> str:
    return f"operations-{rank}.txt"


def kill_at(wanted: str, half: bool = False) -> Before:
    """A ``Before`` that kills the process before the first operation that is ``wanted``, or, ``half``, in the middle of
    it.

    A file that is written in several pieces is then left with half of what this operation wrote.
    """
    begun: tuple[Path, int] | None = None

    def before(operation: Operation) -> None:
        nonlocal begun
        path = Path(OUTPUT) / operation.path
        if begun:
            (written, had), begun = begun, None
            with suppress(OSError):  # it was taken away again
                os.truncate(written, (had + os.path.getsize(written) + 1) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if operation.is_one(wanted) and half:
            begun = path, os.path.getsize(path) if path.exists() else 0
        elif operation.is_one(wanted):
            os.kill(os.getpid(), signal.SIGKILL)

    return before
