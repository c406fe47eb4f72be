"""What all readers of data on disk share: one sentence for what is wrong, json files, pictures as RGB.

An annotation file that is wrong ends a program when the data set is opened, before any model is loaded.
A picture is read only when it is asked for, and one that cannot be used ends nothing: its DataError
names the example, so that a run can pass over it, count it and list it.
"""

import io
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterable, Mapping, Protocol, Sequence

import numpy as np
from PIL import Image, ImageOps

from activeo3.geometry import refuse_elongated
from activeo3.schema import Example

DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a damaged file, depending on its format."""


class DataError(Exception):
    """The data on disk cannot be used: one sentence that names file and id and says what to do.

    ``example_id`` is set if a single example is unusable, so that a stream can pass over it.
    """

    def __init__(self, sentence: str, example_id: str | None = None) -> None:
        super().__init__(sentence)
        self.example_id = example_id


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
        """A sentence for every annotation that was left out."""
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
            raise DataError(f"{folder}: there is no such folder, see data/README.md for the layout")
        return folder

    def one_of(self, name: str, splits: Iterable[str]) -> str:
        """The split, which must be among ``splits``. Raises DataError with the choice there is."""
        if self.split not in splits:
            raise DataError(f"{name}: there is no split '{self.split}', choose one of {listed(splits)}")
        return self.split


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
    """A UTF-8 file. Raises ``wrong`` if it is not there or not text; ``what`` names the file, by default its path."""
    what = what or str(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise wrong(f"{what}: there is no such file, check where it should be") from None
    except OSError as error:
        raise wrong(f"{what}: the file cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise wrong(f"{what}: this is not a UTF-8 text file, write it again") from None


def read_json(path: Path, what: str = "", wrong: type[Exception] = DataError) -> Any:
    """A json file's content. Raises ``wrong`` if it is not there or not json; arguments as in ``read_text``."""
    try:
        return json.loads(read_text(path, what, wrong))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise wrong(f"{what or path}: this is not valid json ({where}), write it again") from None


def needed(path: Path, what: str, row: Mapping[str, Any], key: str) -> Any:
    """A value that an entry of a file must have."""
    if key not in row:
        raise DataError(f"{path}: {what} has no '{key}', add it or remove the entry")
    return row[key]


def is_number(value: Any) -> bool:
    """Whether a value from a json file is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def inside(path: Path, what: str, name: str) -> str:
    """A file name from a file, refused if it leads out of the pictures' folder."""
    # A file from elsewhere must not make us read outside of the data set.
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{path}: {what} has a file_name outside of its folder, correct {name!r}")
    return name


# ---------------------------------------------------------------------------- pictures


def read_picture(path: Path, size: tuple[int, int] | None = None, example_id: str | None = None) -> Image.Image:
    """The picture as 8-bit RGB, turned so that it has the (width, height) of the annotations.

    Cameras store a picture lying on its side with an EXIF note to turn it. Annotation tools show it
    upright, so that way up is tried first; files whose boxes were made without turning exist as
    well, and there the stored size fits. A picture without annotations (``size`` None) is upright.

    Raises DataError if neither size fits, the file is broken or no model takes its shape.
    """
    return _picture(lambda: Image.open(path), str(path), size, example_id)


def decode_picture(content: bytes, where: str, example_id: str) -> Image.Image:
    """A picture that is stored inside another file, as 8-bit RGB and upright. Raises DataError."""
    return _picture(lambda: Image.open(io.BytesIO(content)), where, None, example_id)


def _picture(
    opened: Callable[[], Image.Image], where: str, size: tuple[int, int] | None, example_id: str | None
) -> Image.Image:
    what = f"{where}: the picture" + (f" of example {example_id}" if example_id else "")
    try:
        with opened() as stored:
            stored.load()
            for image in (ImageOps.exif_transpose(stored), stored):
                if size in (None, image.size):
                    refuse_elongated(image.size)
                    return _rgb(image)
            found = stored.size
    except FileNotFoundError:
        raise DataError(f"{what} is missing, add it", example_id) from None
    except DAMAGED as error:
        raise DataError(f"{what} cannot be read, replace it ({error})", example_id) from None
    assert size is not None
    sizes = f"is {found[0]}x{found[1]} but {size[0]}x{size[1]} in the annotations"
    raise DataError(f"{what} {sizes}, correct the one that is wrong", example_id)


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; transparent parts become white. Raises ValueError for values of unknown range."""
    if image.mode in ("I", "F"):
        raise ValueError(f"pixel format {image.mode} has no fixed range, convert to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts off at 255 and would return a white picture.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
