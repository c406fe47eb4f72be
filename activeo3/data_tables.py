"""Question files with the pictures inside: parquet as the Hugging Face hub stores it, tab-separated text.

A table is rows of text, held in memory, and pictures, read from the file one at a time.
"""

import base64
import binascii
import codecs
import csv
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, Iterator, Sequence

from PIL import Image
from tqdm import tqdm

from activeo3.data_io import DataError, LeftOut, decode_picture, read_picture, regular, shortened

PICTURE = "image"
"""The column with the picture, in all public files of these sets."""

READ_AT_ONCE = 2**22
"""Bytes of pictures that are read from a parquet file together, or one picture if that is larger."""
REFERENCE = 64
"""Characters: text up to this length is no picture but the ``index`` of the row that has it (VLMEvalKit's limit)."""

csv.field_size_limit(2**31 - 1)  # a picture is one field of a line


class TextTable:
    """A file of tab-separated values with a header line; pictures are base64 text.

    Text that is too short for a picture stands for that of the row with this ``index``, before or behind it, as in
    VLMEvalKit's files of MMBench and MME.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        self.dropped = LeftOut()
        self.offsets: list[int] = []
        self.references: list[str] = []  # the index of the row that has the picture; empty if it is here
        try:
            with regular(path).open("rb") as file, _bar(path) as bar:
                lines = _Lines(file)
                self.columns = _row(lines) or []
                if PICTURE not in self.columns:
                    raise DataError(f"{path}: the header has no column '{PICTURE}', download the file again")
                where, number = (lines.offset, lines.number + 1), 0
                while fields := _row(lines, self.columns.index(PICTURE)):
                    with self.dropped:
                        self._add(f"row {number} (line {where[1]})", fields, where[0])
                    bar.update(lines.offset - where[0])
                    where, number = (lines.offset, lines.number + 1), number + 1
        except (OSError, csv.Error) as error:
            raise DataError(f"{path}: the file cannot be read ({error}), download it again") from None
        self._find_pictures()

    def _add(self, what: str, fields: Sequence[str], start: int) -> None:
        """Keep a row that begins at byte ``start``. Raises DataError if it is none of this table."""
        if len(fields) != len(self.columns):
            counts = f"{len(fields)} fields and the header {len(self.columns)}"
            raise DataError(f"{self.path}: {what} has {counts}, download the file again")
        row = dict(zip(self.columns, fields))
        stored = row.pop(PICTURE)
        if any(_is_damaged(text) for text in row.values()):
            raise DataError(f"{self.path}: {what} has bytes that are no UTF-8 text, download the file again")
        self.rows.append(row)
        self.offsets.append(start)
        self.references.append(stored if len(stored) <= REFERENCE else "")

    def _find_pictures(self) -> None:
        """Lets the rows that refer to another one's picture have its offset; leaves those out that refer to none."""
        there = {
            row.get("index", ""): start
            for row, start, other in zip(self.rows, self.offsets, self.references)
            if not other
        }
        kept = []
        for row, start, other in zip(self.rows, self.offsets, self.references):
            with self.dropped:
                if other.isdigit() and other not in there:
                    index = shortened(row.get("index", ""))
                    what = f"the row with the index {index} has the picture of an unknown index {other}"
                    raise DataError(f"{self.path}: {what}, download the file again")
                kept.append((row, there.get(other, start)))
        self.rows, self.offsets = [row for row, _ in kept], [start for _, start in kept]

    def picture(self, row: int) -> bytes:
        """Reads one row of the file again."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[row])
            fields = _row(_Lines(file)) or []
        return _decoded(fields[self.columns.index(PICTURE)])


def _decoded(text: str) -> bytes:
    """The bytes that base64 text stands for. Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from None


class _Lines:
    """Lines of a file as text; the ``offset`` in bytes of the next one, and the ``number`` of the last one, from 1
    on."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.offset = self.number = 0

    def __iter__(self) -> Iterator[str]:
        while line := self.next():
            yield _text(line)

    def next(self) -> bytes:
        """The next line, without a byte-order mark; nothing at the end of the file."""
        line = self.file.readline()
        self.offset, self.number = self.offset + len(line), self.number + bool(line)
        return line.removeprefix(codecs.BOM_UTF8) if self.number == 1 else line


def _bar(path: Path) -> tqdm:
    """How far a file is read, on a terminal and if it takes some seconds: HR-Bench's have gigabytes."""
    return tqdm(
        desc=f"reading {path.name}",
        total=path.stat().st_size,
        unit="B",
        unit_scale=True,
        delay=3,
        leave=False,
        disable=None,
    )


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")  # one bad byte spoils its row and not the file


def _row(lines: _Lines, hardly: int | None = None) -> list[str] | None:
    """The fields of the next row; None at the end of the file. Of the field ``hardly``, the beginning may be enough.

    A line without quotation marks is a row, which is quick to see: csv takes 100 seconds for a file of 5 GB.
    """
    line = lines.next()
    if not line:
        return None
    if b'"' in line:
        return next(csv.reader(chain([_text(line)], lines), delimiter="\t"))
    fields = line.rstrip(b"\r\n").split(b"\t")
    return [_text(field[: REFERENCE + 1] if place == hardly else field) for place, field in enumerate(fields)]


def _is_damaged(text: str) -> bool:
    """Whether a text of ``_Lines`` has bytes in it that are no UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever pyarrow raises for a damaged file is a DataError: its own exceptions, OSError, UnicodeDecodeError,
    ..."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: the file cannot be read ({error or type(error).__name__}), download it again"
        ) from None


def _pyarrow(path: Path) -> ModuleType:
    """The package, with its part for parquet. Raises DataError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f'{path}: reading parquet needs the package pyarrow: pip install "activeo3[parquet]"') from None
    return pyarrow


class ParquetTable:
    """A parquet file, whose columns are read when they are asked for.

    Its picture column holds structs with the ``bytes`` of a picture file, those bytes, or base64 text. Text that is too
    short for a picture stands for that of the row with this ``index``, as in ``TextTable``.
    """

    dropped: Sequence[str] = ()

    def __init__(self, path: Path, needs: Sequence[str] = (PICTURE,)) -> None:
        """Raises DataError if the file cannot be read, or a column that it ``needs`` is not there."""
        self.path = path
        pyarrow = _pyarrow(path)
        with _reading(path):
            # A picture of 8K is 6 MB of text, and a group of rows can have gigabytes: it is read bit by bit.
            self.file = pyarrow.parquet.ParquetFile(regular(path), pre_buffer=False, buffer_size=READ_AT_ONCE)
            self.types = {field.name: str(field.type) for field in self.file.schema_arrow}
        self._check(needs)
        sizes = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.places = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
        self.forwards: _Forwards | None = None
        self.one_at_a_time = Lock()  # the pictures of the next step are read in a thread (data_loader.PrefetchLoader)

    def _check(self, columns: Sequence[str]) -> None:
        for name in columns:
            if name not in self.types:
                raise DataError(f"{self.path}: there is no column '{name}', download the file again")

    def values(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """These columns, row by row. Raises DataError if one is not there."""
        self._check(columns)
        with _reading(self.path):
            return self.file.read(list(columns)).to_pylist()

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """All columns but the pictures, as texts."""
        rows = self.values([name for name in self.types if name != PICTURE])
        return [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]

    @cached_property
    def by_index(self) -> dict[str, int]:
        """Where the row with an ``index`` is."""
        return {row.get("index", ""): number for number, row in enumerate(self.rows)}

    def picture(self, row: int) -> bytes:
        """Reads on from the row that was read last; a row before it is read from the beginning of its group."""
        with self.one_at_a_time:
            stored = self._stored(row)
            if isinstance(stored, str) and len(stored) <= REFERENCE and stored in self.by_index:
                stored = self._stored(self.by_index[stored])
        content = (
            _decoded(stored) if isinstance(stored, str) else stored.get("bytes") if isinstance(stored, dict) else stored
        )
        if not content or not isinstance(content, bytes):
            raise ValueError("the file holds no bytes for it")
        return content

    def _stored(self, row: int) -> Any:
        """What the picture column holds in a row. Raises ValueError."""
        group, within = self.places[row]
        if not self.forwards or self.forwards.group != group or within < self.forwards.first:
            self.forwards = _Forwards(self.file, group)
        try:
            return self.forwards.at(within)
        except Exception as error:  # a damaged part of the file
            self.forwards = None
            raise ValueError(str(error) or type(error).__name__) from None


class _Forwards:
    """The pictures of a group of rows, from the first one on, some READ_AT_ONCE bytes at a time."""

    def __init__(self, file: Any, group: int) -> None:
        self.group = group
        about = file.metadata.row_group(group)
        size = sum(about.column(k).total_uncompressed_size for k in range(about.num_columns))
        at_once = max(1, READ_AT_ONCE * about.num_rows // max(1, size))
        self.batches = file.iter_batches(at_once, row_groups=[group], columns=[PICTURE])
        self.first, self.column = 0, ()

    def at(self, row: int) -> Any:
        """The row's picture; rows must come in order, or the same one again."""
        while row >= self.first + len(self.column):
            self.first += len(self.column)
            self.column = next(self.batches).column(0)
        return self.column[row - self.first].as_py()


# ---------------------------------------------------------------------------- both kinds

Table = TextTable | ParquetTable
"""Rows without their pictures, a sentence for every row that was left out, and ``picture(row)``, the bytes of one."""
Place = Path | tuple[Table, int]
"""Where a picture is: a file, or a row of a table."""


def open_table(path: Path) -> Table:
    """A ``.parquet`` or ``.tsv`` file. Raises DataError if it cannot be read or has no pictures."""
    return ParquetTable(path) if path.suffix == ".parquet" else TextTable(path)


def picture_of(table: Table, row: int, example_id: str) -> Image.Image:
    """The picture of a row, RGB. Raises DataError, naming file, row and example, if it cannot be used."""
    where = f"{table.path}, row {row}"
    try:
        content = table.picture(row)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: the picture of example {example_id} cannot be read ({error})", example_id) from None
    return decode_picture(content, where, example_id)


def picture_at(place: Place, example_id: str, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture, RGB; ``size`` is that of the annotations, if a file has some. Raises DataError."""
    return read_picture(place, size, example_id) if isinstance(place, Path) else picture_of(*place, example_id)
