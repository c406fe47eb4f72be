"""Question files with the pictures inside: parquet as the Hugging Face hub stores it, tab-separated text.

A table is rows of text, held in memory, and pictures, read from the file one at a time.
"""

import base64
import binascii
import csv
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, Iterator, Protocol, Sequence

from PIL import Image

from activeo3.files import DAMAGED, DataError, LeftOut, decode_picture

PICTURE = "image"
"""The column with the picture, in all public files of these sets."""

READ_AT_ONCE = 2**22
"""Bytes of pictures that are read from a parquet file together, or one picture if that is larger."""
REFERENCE = 64
"""Characters: text up to this length is no picture but the ``index`` of the row that has it (VLMEvalKit's limit)."""

csv.field_size_limit(2**31 - 1)  # a picture is one field of a line


class Table(Protocol):
    """Rows without their pictures, and the bytes of a row's picture."""

    path: Path
    rows: Sequence[dict[str, str]]
    dropped: Sequence[str]
    """A sentence for every row that is no row of this table, and not among ``rows``."""

    def picture(self, row: int) -> bytes:
        """Raises ValueError or OSError if it cannot be had."""
        ...


def open_table(path: Path) -> Table:
    """A ``.parquet`` or ``.tsv`` file. Raises DataError if it cannot be read or has no pictures."""
    return ParquetTable(path) if path.suffix == ".parquet" else TextTable(path)


def picture_of(table: Table, row: int, example_id: str) -> Image.Image:
    """The picture of a row, RGB. Raises DataError, naming file, row and example, if it cannot be used."""
    where = f"{table.path}, row {row}"
    try:
        content = table.picture(row)
    except DAMAGED as error:
        raise DataError(f"{where}: the picture of example {example_id} cannot be read ({error})", example_id) from None
    return decode_picture(content, where, example_id)


class TextTable:
    """A file of tab-separated values with a header line; pictures are base64 text.

    A picture that is a mere number stands for that of the row with this ``index``, as in MMBench.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        self.dropped = LeftOut()
        self.offsets: list[int] = []
        self.same_as: dict[int, int] = {}
        by_index: dict[str, int] = {}
        try:
            with path.open("rb") as file:
                lines = _Lines(file)
                reader = csv.reader(lines, delimiter="\t")
                self.columns = [column.removeprefix("\ufeff") for column in next(reader, [])]  # a byte-order mark
                if PICTURE not in self.columns:
                    raise DataError(f"{path}: the header has no column '{PICTURE}', download the file again")
                start, line = lines.offset, reader.line_num + 1
                for number, fields in enumerate(reader):
                    with self.dropped:
                        self._add(f"row {number} (line {line})", fields, start, by_index)
                    start, line = lines.offset, reader.line_num + 1
        except (OSError, csv.Error) as error:
            raise DataError(f"{path}: the file cannot be read ({error}), download it again") from None

    def _add(self, what: str, fields: Sequence[str], start: int, by_index: dict[str, int]) -> None:
        """Keep a row that begins at byte ``start``. Raises DataError if it is none of this table."""
        if len(fields) != len(self.columns):
            counts = f"{len(fields)} fields and the header {len(self.columns)}"
            raise DataError(f"{self.path}: {what} has {counts}, download the file again")
        row = dict(zip(self.columns, fields))
        stored = row.pop(PICTURE)
        if any(_is_damaged(text) for text in row.values()):
            raise DataError(f"{self.path}: {what} has bytes that are no UTF-8 text, download the file again")
        if stored.isdigit():
            if stored not in by_index:
                raise DataError(f"{self.path}: {what} has the picture of an unknown index {stored}, download the file again")
            self.same_as[len(self.rows)] = by_index[stored]
        by_index[row.get("index", "")] = len(self.rows)
        self.rows.append(row)
        self.offsets.append(start)

    def picture(self, row: int) -> bytes:
        """Reads one row of the file again."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[self.same_as.get(row, row)])
            fields = next(csv.reader(_Lines(file), delimiter="\t"))
        return _decoded(fields[self.columns.index(PICTURE)])


def _decoded(text: str) -> bytes:
    """The bytes that base64 text stands for. Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from None


class _Lines:
    """Lines of a file as text, and the ``offset`` in bytes of the next one."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.offset = 0

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            self.offset += len(line)
            yield line.decode("utf-8", "surrogateescape")  # one bad byte spoils its row and not the file


def _is_damaged(text: str) -> bool:
    """Whether a text of ``_Lines`` has bytes in it that are no UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def parquet_columns(path: Path) -> list[str]:
    """The names of a parquet file's columns. Raises DataError if it cannot be read."""
    pyarrow = _pyarrow(path)
    try:
        return pyarrow.parquet.ParquetFile(path).schema_arrow.names
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: the file cannot be read ({error}), download it again") from None


def parquet_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """These columns of a parquet file without pictures, row by row. Raises DataError if one is not there."""
    pyarrow = _pyarrow(path)
    try:
        file = pyarrow.parquet.ParquetFile(path)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise DataError(f"{path}: there is no column '{missing[0]}', download the file again")
        return file.read(list(columns)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: the file cannot be read ({error}), download it again") from None


def _pyarrow(path: Path) -> ModuleType:
    """The package, with its part for parquet. Raises DataError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f'{path}: reading parquet needs the package pyarrow: pip install "activeo3[parquet]"') from None
    return pyarrow


class ParquetTable:
    """A parquet file; its picture column holds structs with the ``bytes`` of a picture file, those bytes, or base64 text.

    Text that is too short for a picture stands for that of the row with this ``index``, as in ``TextTable``.
    """

    dropped: Sequence[str] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        pyarrow = _pyarrow(path)
        try:
            # A picture of 8K is 6 MB of text, and a group of rows can have gigabytes: it is read bit by bit.
            self.file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=READ_AT_ONCE)
            columns = self.file.schema_arrow.names
            if PICTURE not in columns:
                raise DataError(f"{path}: there is no column '{PICTURE}', download the file again")
            text = self.file.read([name for name in columns if name != PICTURE])
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: the file cannot be read ({error}), download it again") from None
        self.rows = [{k: "" if v is None else str(v) for k, v in row.items()} for row in text.to_pylist()]
        sizes = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.places = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
        self.by_index = {row.get("index", ""): number for number, row in enumerate(self.rows)}
        self.forwards: _Forwards | None = None
        self.one_at_a_time = Lock()  # the pictures of the next step are read in a thread (stream.Ahead)

    def picture(self, row: int) -> bytes:
        """Reads on from the row that was read last; a row before it is read from the beginning of its group."""
        with self.one_at_a_time:
            stored = self._stored(row)
            if isinstance(stored, str) and len(stored) <= REFERENCE and stored in self.by_index:
                stored = self._stored(self.by_index[stored])
        content = _decoded(stored) if isinstance(stored, str) else stored.get("bytes") if isinstance(stored, dict) else stored
        if not content:
            raise ValueError("the file holds no bytes for it")
        return content

    def _stored(self, row: int) -> Any:
        """What the picture column holds in a row."""
        group, within = self.places[row]
        if not self.forwards or self.forwards.group != group or within < self.forwards.first:
            self.forwards = _Forwards(self.file, group)
        return self.forwards.at(within)


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
