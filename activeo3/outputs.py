"""What a run or an evaluation leaves in a folder: its own files, and never in the place of a file that is not ours.

Somebody may name a folder of their own as ``--output_dir``. So every folder has a list of what was written into it,
``.activeo3``, one name a line. A file with a name of ours that is not in the list is not ours: it stays, and the program
says so before the work if it can.
"""

import errno
import io
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Iterator

from PIL import Image

from activeo3.cli import ConfigError

LIST = ".activeo3"
OF_A_RUN = ("metrics.jsonl", "results.json", "results.md", "results.tex", "report.html")
OF_AN_EVALUATION = ("results.json", "results.md", "results.tex")


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
        with (
            enough_room(folder / LIST),
            open(folder / LIST, "a+b") as file,
        ):  # added to: several ranks may write at once
            file.seek(0)
            file.write(
                lines if file.read()[-1:] in (b"", b"\n") else b"\n" + lines
            )  # the last name may be half written


def _noted(folder: Path) -> set[str]:
    """The names in a folder's list."""
    path = folder / LIST
    return set(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.is_file() else set()


def _of_an_older_version(folder: Path) -> bool:
    """Is this the folder of a run or an evaluation from before there were lists: a run, in a checkpoint, or with its results?"""
    if any(folder.glob("checkpoint-*/activeo3.json")) or (folder.parent / "activeo3.json").is_file():
        return True
    results = folder / "results.json"
    return results.is_file() and results.read_bytes()[:9] == b'{"rows": '


def leave(path: Path, data: bytes) -> None:
    """Write a file of ours as a whole, a new one or in the place of an older one, in a folder that is made if need be.

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
    """Return when a file, or the names in a folder, are on the disk. What is renamed before may be lost in a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a device, or a file system that keeps nothing back
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what was half written in a folder when a run or an evaluation was killed: temporary files of ours."""
    noted = _noted(folder)
    for path in folder.glob(".*.tmp"):
        if path.name[1:].removesuffix(".tmp") in noted and path.is_file():
            path.unlink(missing_ok=True)


def is_full(error: BaseException) -> bool:
    """Does an error of whoever writes say that the disk, or the user's share of it, is full?"""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)


@contextmanager
def enough_room(path: Path) -> Iterator[None]:
    """Raise ConfigError, one sentence, if ``path`` cannot be written inside the block: the disk is full, the folder gone or closed."""
    try:
        yield
    except OSError as error:
        free = f"{free_bytes(path) / 1e6:,.0f} MB free"
        if is_full(error):
            raise ConfigError(
                f"{path} could not be written, the disk is full ({free}): make room and start again."
            ) from None
        if error.errno is None:  # of a library about its own work
            raise
        raise ConfigError(
            f"{path} could not be written ({error.strerror}; {free}): see to its folder, or choose another --output_dir."
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
