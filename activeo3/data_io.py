"""What all readers of data on disk share: one sentence for what is wrong, json files, pictures as RGB.

An annotation file that is wrong ends a program when the data set is opened, before any model is loaded.
A picture is read only when it is asked for, and one that cannot be used ends nothing: its DataError
names the example, so that a run can pass over it, count it and list it.

Ids of data files are whole numbers of any size, texts, UUIDs; inside this project an id is a number of 64 bits. An id
is turned into its number once, where a file is read. What is written for other programs has the file's own id again
(eval_output.py), so that pycocotools scores our predictions against the user's own file.
"""

import difflib
import errno
import io
import json
import math
import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO, Callable, Iterable, Iterator, Mapping, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, Strict, ValidationError

from activeo3.data_images import Decoded, Unreadable, decode, upright_size
from activeo3.geometry import refuse_elongated
from activeo3.terminal import OneLine

R = TypeVar("R")
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class DataError(OneLine):
    """The data on disk cannot be used: one sentence that names file and id and says what to do.

    ``example_id`` is set if a single example is unusable, so that a stream can pass over it.
    """

    def __init__(self, sentence: str, example_id: str | None = None) -> None:
        super().__init__(sentence)
        self.example_id = example_id


class LeftOut(list[str]):
    """A sentence for every row of a data set that cannot be used: one bad row does not end a run.

    A DataError inside a ``with`` block is added, and the program continues behind the block. What is wrong with a
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

    def each(self, rows: Iterable[R], use: Callable[[int, R], T]) -> list[T]:
        """``use(number, row)`` of every row that it raises no DataError for."""
        found = []
        for number, row in enumerate(rows):
            with self:
                found.append(use(number, row))
        return found

    def nothing(self, what: str) -> DataError:
        """The error that ends a run if no row is usable. ``what`` names file or set, and what to do if it has no
        rows."""
        if not self:
            return DataError(what)
        others = f" (and {len(self) - 1:,} more)" if len(self) > 1 else ""
        return DataError(f"{what}. Nothing in it can be used: {self[0]}{others}")


# ---------------------------------------------------------------------------- text files


def read_text(path: Path, what: str = "", wrong: type[Exception] = DataError) -> str:
    """A UTF-8 file, a byte-order mark left out. Raises ``wrong`` if it is not there or not text; ``what`` names the
    file, by default its path."""
    what = what or str(path)
    try:
        return regular(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise wrong(f"{what}: there is no such file, {did_you_mean_path(path) or 'check where it should be'}") from None
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


def parsed_line(path: Path, what: str, line: str, advice: str = "download the file again") -> Any:
    """What a line of json says. Raises DataError, which ends with what to do."""
    try:
        return parsed_json(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {what} is not valid json ({error}), {advice}") from None


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def near_path(text: str | Path) -> str:
    """The file or folder that a path with a typing error may mean, "" if it is there, or nothing like it is.

    ``owner/name`` may be an id of the hub: then a folder whose name differs in digits alone is another model, not a
    typing error.
    """
    path, here = Path(text).expanduser(), Path()
    for part in path.parts:
        if not os.path.exists(here / part):  # also of a name that is too long for any file
            names = [entry.name for entry in here.iterdir()] if here.is_dir() and os.access(here, os.R_OK) else []
            close = difflib.get_close_matches(part, names, 1, 0.7)
            if not close or is_hub_id(str(text)) and _without_digits(close[0]) == _without_digits(part):
                return ""
            part = close[0]
        here /= part
    return "" if here == path else str(here)


def did_you_mean_path(text: str | Path) -> str:
    """``did you mean PATH?``, or nothing if nothing like it is there (``near_path``)."""
    near = near_path(text)
    return f"did you mean {near}?" if near else ""


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of an id of the hub, owner/name.

    >>> is_hub_id("Qwen/Qwen3-VL-4B-Instruct"), is_hub_id("runs/a/checkpoint-4"), is_hub_id("./a")
    (True, False, False)
    """
    return text.count("/") == 1 and not text.startswith((".", "/", "~"))


def as_words(name: str) -> str:
    """The name of a category as it is asked for.

    >>> as_words("traffic_light ")
    'traffic light'
    """
    return " ".join(name.replace("_", " ").split())


def _without_digits(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def regular(path: Path) -> Path:
    """The path, if it is no pipe or device, of which a read may never end. Raises OSError if it is."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a folder" if stat.S_ISDIR(mode) else "no regular file", str(path))
    return path


def needed(path: Path, what: str, row: Any, key: str = "") -> Any:
    """A value that an entry of a file, which should be an object, must have; without a key the object. Raises
    DataError."""
    if not isinstance(row, dict):
        having = f" with a '{key}'" if key else ""
        raise DataError(f"{path}: {what} is no object{having}, correct or remove the entry")
    if not key:
        return row
    if key not in row:
        raise DataError(f"{path}: {what} has no '{key}', add it or remove the entry")
    return row[key]


LARGEST_SIDE = 10**9
"""Pixels. No picture is larger, and sums and products of such numbers stay far from a float's end."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Pixels = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST_SIDE, le=LARGEST_SIDE)]
FourPixels = Annotated[tuple[Pixels, Pixels, Pixels, Pixels], Strict(False)]
"""A list of four numbers of json."""


class Row(BaseModel, strict=True):
    """An entry of a file, by its keys; a number is no text, a whole number no truth value. Other keys are passed
    over."""


def checked(model: type[M], path: Path, what: str, row: Any) -> M:
    """An entry of a file as a pydantic model. Raises DataError with the first field that is wrong.

    The description of a field says what to give; a ValueError of a validator is a sentence about the entry.
    """
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    needed(path, what, row, *required[:1])
    try:
        return model.model_validate(row)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
    key = str(wrong["loc"][0]) if wrong["loc"] else ""
    if wrong["type"] == "missing" and len(wrong["loc"]) == 1:
        needed(path, what, row, key)
    if wrong["type"] == "value_error":
        raise DataError(f"{path}: {what} {wrong['ctx']['error']}")
    value, at = row[key], (*wrong["loc"], None)[1]
    if isinstance(value, list) and isinstance(at, int):  # of a list of boxes the one that is wrong
        value = next((one for one in value[at : at + 1] if isinstance(one, list | dict)), value)
    raise DataError(
        f"{path}: {what} has the {key} {shortened(value)}, {model.model_fields[key].description or wrong['msg']}"
    )


def list_under(path: Path, content: Any, key: str) -> list[Any]:
    """The list that a file's object holds under a key. Raises DataError."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{path}: the file needs a list of objects under the key '{key}'")
    return content[key]


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


# ---------------------------------------------------------------------------- ids


Id = int | str
"""An id as a file has it. A text of digits and the number that it spells are the same id."""

MOST = 250  # digits or letters
LARGEST = 10**14
"""Numbers below this stand for themselves: SODA multiplies ids by 10,000, and 64 bits hold that."""


def id_of(path: Path, what: str, row: Any, key: str) -> Id:
    """The id under ``key`` of an entry of a file. Raises DataError if it has none.

    >>> [id_of(Path("a.json"), "image 0", {"id": given}, "id") for given in (7, "7", 7.0, "07", "5f1c-a")]
    [7, 7, 7, '07', '5f1c-a']
    """
    value = needed(path, what, row, key)
    if type(value) is int and abs(value) < 10**MOST:
        return value
    if isinstance(value, str) and value.strip() and len(value) <= MOST:
        digits = value.removeprefix("-")
        plain = digits.isascii() and digits.isdigit()
        return int(value) if plain and str(int(value)) == value else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise DataError(f"{path}: {what} has the {key} {shortened(value)}, give a whole number or a text")


def numbered(ids: Iterable[Id]) -> dict[Id, int]:
    """The number of every id: the id itself, or, if one of them is no number or too large, the place of each from 1 on.

    >>> numbered([3, 17]), numbered([2**64, 5, "5f1c-a"])
    ({3: 3, 17: 17}, {18446744073709551616: 1, 5: 2, '5f1c-a': 3})
    """
    ids = list(dict.fromkeys(ids))
    if all(isinstance(one, int) and abs(one) < LARGEST for one in ids):
        return {one: one for one in ids}
    return {one: place for place, one in enumerate(ids, start=1)}


def originals(numbers: Mapping[Id, int]) -> dict[int, Id]:
    """The file's id of every number that is not the id itself."""
    return {number: one for one, number in numbers.items() if number != one}


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


def picture_size(path: Path) -> tuple[int, int]:
    """The (width, height) of a picture as it is shown upright, by the head of its file. Raises DataError."""
    with _named(f"{path}: the picture", None):
        return upright_size(regular(path))


def _decoded(source: Path | BinaryIO, what: str, example_id: str | None, use: Callable[[Decoded], T]) -> T:
    """What ``use`` makes of a picture. Raises DataError if it cannot be decoded, is no regular file or not there."""
    with _named(what, example_id):
        return use(decode(regular(source) if isinstance(source, Path) else source))


@contextmanager
def _named(what: str, example_id: str | None) -> Iterator[None]:
    """Whatever goes wrong with a picture inside the block is a DataError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{what} is missing, add it", example_id) from None
    except (OSError, ValueError, Unreadable) as error:
        raise DataError(f"{what} cannot be read, replace it ({error})", example_id) from None
