"""What all readers of data on disk share: one sentence for what is wrong, json files, pictures as RGB.

An annotation file that is wrong ends a program when the data set is opened, before any model is loaded.
A picture is read only when it is asked for, and one that cannot be used ends nothing: its DataError
names the example, so that a run can pass over it, count it and list it.
"""

import errno
import io
import json
import math
import os
import re
import stat
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Callable, Iterable, Protocol, Sequence, TypeVar

import numpy as np
from PIL import Image

from activeo3.data_images import Decoded, Unreadable, decode
from activeo3.geometry import refuse_elongated
from activeo3.terminal import OneLine
from activeo3.types import Example

T = TypeVar("T")


class DataError(OneLine):
    """The data on disk cannot be used: one sentence that names file and id and says what to do.

    ``example_id`` is set if a single example is unusable, so that a stream can pass over it.
    """

    def __init__(self, sentence: str, example_id: str | None = None) -> None:
        super().__init__(sentence)
        self.example_id = example_id


class LeftOut(list[str]):
    """A sentence for every row of a data set that cannot be used: one bad row does not end a run.

    A DataError inside a ``with`` block is noted, and the program goes on behind the block. What is wrong with a
    file as a whole is raised outside of one.

    >>> left_out, usable = LeftOut(), []
    >>> for row in ("yes", "", "no"):
    ...     with left_out:
    ...         if not row:
    ...             raise DataError("a.json: row 1 has no answer, add it")
    ...         usable.append(row)
    >>> usable, left_out
    (['yes', 'no'], ['a.json: row 1 has no answer, add it'])
    """

    def __enter__(self) -> "LeftOut":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, DataError):
            self.append(str(error))
        return isinstance(error, DataError)

    def nothing(self, what: str) -> DataError:
        """What ends a run if no row was usable. ``what`` says of which file or set, and what to do if it has no rows."""
        if not self:
            return DataError(what)
        others = f" (and {len(self) - 1:,} more)" if len(self) > 1 else ""
        return DataError(f"{what}. Nothing in it can be used: {self[0]}{others}")


class Dataset(Protocol):
    """A fixed, ordered collection of questions. ``__getitem__`` reads the picture, lazily."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def paths(self) -> Sequence[Path]:
        """The picture files that the annotations name, questions or not; none if there are no files."""
        ...

    @property
    def dropped(self) -> Sequence[str]:
        """A sentence for every row of the files that was left out (LeftOut)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Raises DataError with the example's id if its picture cannot be used."""
        ...


@dataclass(frozen=True, eq=False)
class Derived:
    """A data set made of another one: what is not defined anew is that of ``dataset``."""

    dataset: Dataset

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def split(self) -> str:
        return self.dataset.split

    @property
    def paths(self) -> Sequence[Path]:
        return self.dataset.paths

    @property
    def dropped(self) -> Sequence[str]:
        return self.dataset.dropped

    def __len__(self) -> int:
        return len(self.dataset)


@dataclass(frozen=True)
class Source:
    """What a reader is asked for: a split below a data root.

    ``tile`` and ``tile_overlap`` are pixels, for sets whose pictures are cut into tiles (0: whole
    pictures). ``seed`` draws selections and the order of options: it belongs to the data, not to a
    run. ``keep`` allows a reader to write a selection that it has drawn beside the annotations.
    """

    split: str
    root: str | None
    tile: int = 800
    tile_overlap: int = 150
    seed: int = 0
    keep: bool = True

    def folder(self, name: str, below: str) -> Path:
        """The folder ``below`` the data root that the data set ``name`` lives in.

        Raises DataError if no root was given or there is no such folder.
        """
        if not self.root:
            raise DataError(f"{name}: no data root was given, name the folder that holds its files")
        folder = Path(self.root) / below
        if not folder.is_dir():
            cached = hub_snapshots(Path(self.root), escape(below))
            if cached:
                return cached[0]
            raise DataError(f"{folder}: there is no such folder, see data/README.md for the layout")
        return folder

    def one_of(self, name: str, splits: Iterable[str]) -> str:
        """The split, which must be among ``splits``. Raises DataError with the choice there is."""
        if self.split not in splits:
            raise DataError(f"{name}: there is no split '{self.split}', choose one of {listed(splits)}")
        return self.split


def hub_snapshots(root: Path, name: str) -> list[Path]:
    """The data sets called ``name`` (a pattern), of any owner, if ``root`` is a cache of the Hugging Face hub: the snapshot
    of each that ``refs/main`` names, or its only one."""
    found = []
    for folder in sorted(root.glob(f"datasets--*--{name}")) if name and "/" not in name else ():
        main = folder / "refs" / "main"
        snapshots = (
            [folder / "snapshots" / main.read_text().strip()] if main.is_file() else sorted(folder.glob("snapshots/*"))
        )
        found += snapshots if len(snapshots) == 1 and snapshots[0].is_dir() else []
    return found


def missing(folder: Path, layouts: Sequence[str]) -> DataError:
    """The error of a data set of which no layout is there; ``layouts`` are the files that were looked for.

    >>> print(missing(Path("data/a"), ["train.json", "data/train-*.parquet"]))
    data/a: there is neither train.json nor data/train-*.parquet, see data/README.md for the layout
    """
    looked_for = f"neither {' nor '.join(layouts)}" if len(layouts) > 1 else f"no {layouts[0]}"
    return DataError(f"{folder}: there is {looked_for}, see data/README.md for the layout")


def listed(names: Iterable[str]) -> str:
    """Names in order, for a sentence."""
    return ", ".join(sorted(names))


def within(index: int, size: int) -> int:
    """An index of ``size`` items by Python's own rule, so that a loop over a data set ends."""
    if not -size <= index < size:
        raise IndexError(f"question {index} of {size}")
    return index % size


# ---------------------------------------------------------------------------- text files


def read_text(path: Path, what: str = "", wrong: type[Exception] = DataError) -> str:
    """A UTF-8 file, a byte-order mark left out. Raises ``wrong`` if it is not there or not text; ``what`` names the
    file, by default its path."""
    what = what or str(path)
    try:
        return regular(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise wrong(f"{what}: there is no such file, check where it should be") from None
    except OSError as error:
        raise wrong(f"{what}: the file cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise wrong(f"{what}: this is not a UTF-8 text file, write it again") from None


def read_json(path: Path, what: str = "", wrong: type[Exception] = DataError) -> Any:
    """A json file's content. Raises ``wrong`` if it is not there or not json; arguments as in ``read_text``."""
    text = read_text(path, what, wrong)
    try:
        return parsed_json(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
    except RecursionError:
        where = "its lists or objects are nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        where = str(error)
    raise wrong(f"{what or path}: this is not valid json ({where}), write it again")


def parsed_json(text: str) -> Any:
    """What a text of json says, halves of surrogate pairs as question marks: no file and no terminal takes them.

    Raises ValueError (of which JSONDecodeError is a kind) or RecursionError.
    """
    content = json.loads(text)
    if _SURROGATE.search(text):
        content = json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
    return content


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def regular(path: Path) -> Path:
    """The path, if it is no pipe or device, of which a read may never end. Raises OSError if it is."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a folder" if stat.S_ISDIR(mode) else "no regular file", str(path))
    return path


def needed(path: Path, what: str, row: Any, key: str) -> Any:
    """A value that an entry of a file, which should be an object, must have. Raises DataError."""
    if not isinstance(row, dict):
        raise DataError(f"{path}: {what} is no object with a '{key}', correct or remove the entry")
    if key not in row:
        raise DataError(f"{path}: {what} has no '{key}', add it or remove the entry")
    return row[key]


def is_number(value: Any) -> bool:
    """Whether a value from a json file is a number that a float holds: finite, and not beyond its range."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


LONGEST_NAME = 255  # bytes of a file name, which no usual file system exceeds


def inside(path: Path, what: str, name: str) -> str:
    """A file name from a file, refused if it leads out of the pictures' folder or no file can have it."""
    parts = PurePosixPath(name).parts
    # A file from elsewhere must not make us read outside of the data set.
    if PurePosixPath(name).is_absolute() or ".." in parts:
        raise DataError(f"{path}: {what} has a file_name outside of its folder, correct {shortened(name)}")
    if "\0" in name or any(len(part.encode(errors="replace")) > LONGEST_NAME for part in parts) or len(name) > 3000:
        raise DataError(f"{path}: {what} has a file_name that no file can have, correct {shortened(name)}")
    return name


def shortened(value: Any, most: int = 80) -> str:
    """A value from a file for a sentence, as Python writes it, on one line and not longer than ``most``.

    >>> shortened("a" * 300, most=9)
    "'aaaaaaaa..."
    """
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= most else text[:most] + "..."


# ---------------------------------------------------------------------------- pictures


def read_picture(path: Path, size: tuple[int, int] | None = None, example_id: str | None = None) -> Image.Image:
    """The picture as 8-bit RGB, turned so that it has the (width, height) of the annotations.

    Cameras store a picture lying on its side with an EXIF note to turn it. Annotation tools show it
    upright, so that way up is tried first; files whose boxes were made without turning exist as
    well, and there the stored size fits. A picture without annotations (``size`` None) is upright.

    Raises DataError if neither size fits, the file is broken or no model takes its shape.
    """
    return _picture(path, str(path), size, example_id)


def decode_picture(content: bytes, where: str, example_id: str) -> Image.Image:
    """A picture that is stored inside another file, as 8-bit RGB and upright. Raises DataError."""
    return _picture(io.BytesIO(content), where, None, example_id)


def read_grey(path: Path, what: str, example_id: str) -> np.ndarray:
    """A grey picture (H, W) of 8 bits as stored, for masks. Raises DataError, in which ``what`` names the file."""
    return _decoded(path, what, example_id, Decoded.grey)


def _picture(source: Path | BinaryIO, where: str, size: tuple[int, int] | None, example_id: str | None) -> Image.Image:
    what = f"{where}: the picture" + (f" of example {example_id}" if example_id else "")

    def fitting(decoded: Decoded) -> Image.Image:
        refuse_elongated(decoded.stored.size)
        if size in (None, decoded.upright_size):
            return decoded.rgb()
        if size == decoded.stored.size:
            return decoded.rgb(upright=False)
        sizes = "is {}x{} but {}x{} in the annotations".format(*decoded.stored.size, *size)
        raise DataError(f"{what} {sizes}, correct the one that is wrong", example_id)

    return _decoded(source, what, example_id, fitting)


def _decoded(source: Path | BinaryIO, what: str, example_id: str | None, use: Callable[[Decoded], T]) -> T:
    """What ``use`` makes of a picture. Raises DataError if it cannot be decoded, is no regular file or not there."""
    try:
        return use(decode(regular(source) if isinstance(source, Path) else source))
    except FileNotFoundError:
        raise DataError(f"{what} is missing, add it", example_id) from None
    except (OSError, ValueError, Unreadable) as error:
        raise DataError(f"{what} cannot be read, replace it ({error})", example_id) from None
