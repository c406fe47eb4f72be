"""Files of a run or an evaluation: never in place of a file that is not ours, and of one run at a time in a folder.

A user may name a folder of their own as ``--output_dir``. So every folder has a list of what was written into it,
``.activeo3``, one name a line. A file with a name of ours that is not in the list is not ours: it stays, and the
program refuses the folder before the work if it can.

Two runs in one folder would mix their rows and delete each other's half-written checkpoints. So the first process of a
run or an evaluation locks the file ``.activeo3.lock`` of its folder before anything else is written there. The
operating system holds the lock: a kill, a crash and a power cut free the folder as a normal end does. The file stays,
because removing it would let two processes lock two files of one name. These are POSIX record locks (``fcntl.lockf``),
because they hold between machines that share a folder, by NFSv4 or by NFSv3 with its lock daemon; Lustre needs the
mount option ``flock``. Where a file system has none, a run warns and goes on.
"""

import errno
import fcntl
import io
import logging
import os
import shlex
import shutil
import socket
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Iterator, TextIO

from PIL import Image

from activeo3.cli import ConfigError
from activeo3.terminal import one_line

LIST = ".activeo3"
OF_A_RUN = ("metrics.jsonl", "results.json", "results.md", "results.tex", "report.html", "report.json")
OF_AN_EVALUATION = ("results.json", "results.md", "results.tex")
LOCK = ".activeo3.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

_locked: dict[tuple[int, int], int] = {}
"""Device and inode of the lock files of this process, and their descriptors. Each is opened once, under whatever path:
closing any descriptor of a file gives up its lock."""


# ---------------------------------------------------------------------- files


def claim(folder: Path, *names: str) -> None:
    """Note that files of these names in a folder are ours. Does nothing while there is no such folder.

    Raises ConfigError if one of them is there and was not written by us, or if nothing can be written there.
    """
    if not folder.is_dir():
        return
    noted = _noted(folder)
    wanted = sorted(set(names) - noted)
    foreign = [name for name in wanted if os.path.lexists(folder / name)]
    if not noted and _of_an_older_version(folder):
        wanted, foreign = sorted({*wanted, *(path.name for path in folder.iterdir())}), []
    if foreign:
        there = folder / foreign[0]
        raise ConfigError(
            f"{there} was not written by activeo3 and would be replaced; move it, or choose another --output_dir."
        )
    if wanted:
        lines = "".join(f"{name}\n" for name in wanted).encode()
        with enough_room(folder / LIST), open(folder / LIST, "a+b") as file:  # several ranks may write at once
            file.seek(0)
            torn = file.read()[-1:] not in (b"", b"\n")  # the last name may be half written
            file.write(b"\n" + lines if torn else lines)


def _noted(folder: Path) -> set[str]:
    """The names in a folder's list."""
    path = folder / LIST
    return set(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.is_file() else set()


def _of_an_older_version(folder: Path) -> bool:
    """Whether a run or an evaluation wrote this folder before there were lists."""
    if any(folder.glob("checkpoint-*/activeo3.json")) or (folder.parent / "activeo3.json").is_file():
        return True
    results = folder / "results.json"
    return results.is_file() and results.read_bytes()[:9] == b'{"rows": '


def leave(path: Path, data: bytes) -> None:
    """Write a whole file, new or in place of an older one of ours; make its folder if it is missing.

    Raises ConfigError as ``claim`` does.
    """
    make_folder(path.parent)
    claim(path.parent, path.name)
    replace_file(path, data)


def leave_picture(path: Path, image: Image.Image) -> None:
    """``leave`` a picture, as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    leave(path, stream.getvalue())


def remove(path: Path) -> None:
    """Remove a file of ours; one that is not ours stays."""
    if path.name in _noted(path.parent):
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there. Raises ConfigError if nothing can be written there."""
    with enough_room(path):
        path.mkdir(parents=True, exist_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write ``path`` so that a kill or a power cut at any moment leaves either the old file or the new one.

    Raises ConfigError if the disk is full, or nothing can be written there; the old file is then still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with enough_room(path):
        try:
            temporary.write_bytes(data)
            sync(temporary)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk: a power cut can lose an earlier rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a device, or a file system that keeps nothing back
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove our temporary files that a killed run or evaluation left in a folder."""
    noted = _noted(folder)
    for path in folder.glob(".*.tmp"):
        if path.name[1:].removesuffix(".tmp") in noted and path.is_file():
            path.unlink(missing_ok=True)


def is_full(error: BaseException) -> bool:
    """Whether an error of any library means that the disk, or the user's share of it, is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)


@contextmanager
def enough_room(path: Path) -> Iterator[None]:
    """Raise ConfigError, one sentence, if ``path`` cannot be written inside the block: a full disk, a missing
    folder."""
    try:
        yield
    except OSError as error:
        free = f"{free_bytes(path) / 1e6:,.0f} MB free"
        if is_full(error):
            sentence = f"{path} could not be written, the disk is full ({free}): make room and start again."
            raise ConfigError(sentence) from None
        if error.errno is None:  # of a library about its own work
            raise
        raise ConfigError(
            f"{path} could not be written ({error.strerror}; {free}): see to its folder, or choose another "
            "--output_dir."
        ) from None


def why_closed(folder: Path) -> str:
    """Why nothing can be written into a folder any more; "" if it can."""
    try:
        with TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def free_bytes(path: Path) -> int:
    """How many bytes are free on the disk of a path, which need not be there any more."""
    return shutil.disk_usage(next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())).free


# ---------------------------------------------------------------------- one run at a time


def lock(folder: Path) -> None:
    """Lock a folder until this process ends, or ``unlock_all``. Does nothing if this process has locked it.

    Raises ConfigError, which names the other process, if the folder is in use.
    """
    path = folder / LOCK
    if _identity(path) in _locked:
        return
    claim(folder, LOCK)
    descriptor = _opened(path, os.O_RDWR | os.O_CREAT)
    try:
        holder = _try(descriptor, path)
        if not holder:
            _sign(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    if holder:
        os.close(descriptor)
        raise ConfigError(f"{folder} is in use by {holder}: wait until it ends, or choose another --output_dir.")
    _locked[_identity(path)] = descriptor


def lock_refusal(folder: Path) -> str:
    """Why ``lock`` cannot lock a folder; "" if it has."""
    try:
        lock(folder)
    except ConfigError as error:
        return str(error)
    return ""


def unlock_all() -> None:
    """Release all locks of this process and empty their files, which marks a regular end."""
    while _locked:
        _, descriptor = _locked.popitem()
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def in_use(folder: Path) -> bool:
    """Whether another process writes into a folder, or into one right inside it, as a checkpoint's evaluation does."""
    return any(_holder(path) for path in [folder / LOCK, *folder.glob(f"*/{LOCK}")])


def died_silently(folder: Path) -> bool:
    """Whether the last process that locked a folder was killed before ``unlock_all``. True only for the first call."""
    path = folder / LOCK
    if not path.is_file() or _holder(path):
        return False
    silent = path.stat().st_size > 0
    os.truncate(path, 0)
    return silent


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode of a file; (0, 0) without one."""
    try:
        found = path.lstat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _holder(path: Path) -> str:
    """The other process that has locked a file, "" if there is none."""
    if _identity(path) in _locked or not path.is_file():
        return ""
    descriptor = _opened(path, os.O_RDWR)
    try:
        return _try(descriptor, path)
    finally:
        os.close(descriptor)


def _opened(path: Path, flags: int) -> int:
    """The descriptor of a regular file. Links are not followed: the folder may come from elsewhere."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened ({error.strerror}); choose another --output_dir.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path} is no regular file; move it, or choose another --output_dir.")
    return descriptor


def _try(descriptor: int, path: Path) -> str:
    """Lock an open file: "" if that worked, or is not possible at all there, else the process that has locked it."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return _named(os.pread(descriptor, 2000, 0))
        if error.errno not in _WITHOUT_LOCKS:
            raise
        print(
            f"activeo3: {path.parent} has no locks ({error.strerror}): start no second run in it.",
            file=sys.stderr,
            flush=True,
        )
    return ""


def _sign(descriptor: int, path: Path) -> None:
    """Write the owner of a lock into its file: process id, host, time and command, one a line."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines = [str(os.getpid()), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"), " ".join(command.split())]
    with enough_room(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, "\n".join([*lines, ""]).encode("utf-8", "replace"), 0)


def _named(text: bytes) -> str:
    """The owner that a lock file names, safe to print."""
    words = [one_line(line, 200) for line in text.decode("utf-8", "replace").splitlines()]
    if len(words) < 4:
        return "another process"  # which is about to sign
    pid, host, since, command = words[:4]
    return f"process {pid} on {host} ({command}, since {since})"


# ---------------------------------------------------------------------- the libraries' log


class _Log(io.FileIO):
    """A log that ends nothing: what a full disk does not take is forgotten."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            super().write(data)
        return len(data)


def open_log(path: Path) -> TextIO:
    """The log at ``path``, to be added to; if it cannot be opened, nothing is kept."""
    try:
        log = _Log(path, "a")
    except OSError:
        log = _Log(os.devnull, "a")
    return io.TextIOWrapper(io.BufferedWriter(log))


def log_to_file(name: str, path: Path) -> None:
    """Route a library's logger to a file; its errors also reach the terminal."""
    logger = logging.getLogger(name)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    quiet, loud = logging.StreamHandler(open_log(path)), logging.StreamHandler(sys.__stderr__)
    loud.setLevel(logging.ERROR)
    logger.addHandler(quiet)
    logger.addHandler(loud)
