"""Ids of data files: whole numbers of any size, texts, UUIDs. Inside this project an id is a number of 64 bits.

An id is turned into its number once, where a file is read. What is written for other programs has the file's own
id again (eval_output.py), so that pycocotools scores our predictions against the user's own file.
"""

from pathlib import Path
from typing import Any, Iterable, Mapping

from activeo3.data_io import DataError, needed, shortened

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
