"""One run at a time in an output folder: a lock that the operating system holds, and that goes with its process.

Two runs in one folder would mix their rows and delete each other's half-written checkpoints. So the first process of a
run or an evaluation locks the file ``.activeo3.lock`` of its folder before anything else is written there. A file that
is left behind is no lock: a kill, a crash and a power cut free the folder as a normal end does. The file stays, because
removing it would let two processes lock two files of one name.

These are POSIX record locks (``fcntl.lockf``), because they hold between machines that share a folder, by NFSv4 or by
NFSv3 with its lock daemon; Lustre needs the mount option ``flock``. Where a file system has none, a run warns and goes on.
"""

import errno
import fcntl
import os
import shlex
import socket
import stat
import sys
import time
from pathlib import Path

from activeo3 import outputs, terminal
from activeo3.cli import ConfigError

LOCK = ".activeo3.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

_held: dict[tuple[int, int], int] = {}
"""Device and inode of the lock files of this process, and their descriptors. Each is opened once, under whatever path:
closing any descriptor of a file gives up its lock."""


def take(folder: Path) -> None:
    """Lock a folder until this process ends, or ``release``. Does nothing if this process has locked it.

    Raises ConfigError, which names the other process, if the folder is in use.
    """
    path = folder / LOCK
    if _identity(path) in _held:
        return
    outputs.claim(folder, LOCK)
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
    _held[_identity(path)] = descriptor


def refusal(folder: Path) -> str:
    """Why ``take`` cannot lock a folder; "" if it has."""
    try:
        take(folder)
    except ConfigError as error:
        return str(error)
    return ""


def release() -> None:
    """Give up all locks of this process, at an end that others can see: the files are then empty."""
    while _held:
        _, descriptor = _held.popitem()
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def in_use(folder: Path) -> bool:
    """Does another process write into a folder, or into one right inside it? A checkpoint's evaluation does."""
    return any(_holder(path) for path in [folder / LOCK, *folder.glob(f"*/{LOCK}")])


def died_silently(folder: Path) -> bool:
    """Has the process that had locked a folder ended without ``release``: was it killed? True for the first who asks."""
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
    if _identity(path) in _held or not path.is_file():
        return ""
    descriptor = _opened(path, os.O_RDWR)
    try:
        return _try(descriptor, path)
    finally:
        os.close(descriptor)


def _opened(path: Path, flags: int) -> int:
    """The descriptor of a regular file. A link is not followed: the folder may come from a stranger."""
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
    """Write who has locked a file: process id, host, time and command, one a line."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines = [str(os.getpid()), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"), " ".join(command.split())]
    with outputs.enough_room(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, "\n".join([*lines, ""]).encode("utf-8", "replace"), 0)


def _named(text: bytes) -> str:
    """The process that signed a lock file, in words that are safe to print."""
    words = [terminal.one_line(line, 200) for line in text.decode("utf-8", "replace").splitlines()]
    if len(words) < 4:
        return "another process"  # which is about to sign
    pid, host, since, command = words[:4]
    return f"process {pid} on {host} ({command}, since {since})"
