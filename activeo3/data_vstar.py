"""V*Bench: 191 questions about small things in large pictures (arXiv 2312.14135), in the layouts that it is published in.

    vstar_bench/direct_attributes/sa_4690.json, .jpg    the authors' files: options, and where the things are
    vstar_bench/test_questions.jsonl                    the authors' list for language models: options with letters, no places
    vstar-bench/data/test-*.parquet                     the same list with the pictures inside (the hub's lmms-lab/vstar-bench)
    vstar_bench/default/test/*.parquet                  the same list, as the hub turns it into parquet; the pictures beside it

The first one that is there is read. In the first the right option is always the first one, so the order is drawn from
the seed; the others have an order of their own.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Mapping, NamedTuple, Self, Sequence

import numpy as np
from pydantic import Field, Strict, model_validator

from activeo3.data_io import (
    DataError,
    Finite,
    LeftOut,
    Row,
    checked,
    inside,
    needed,
    parsed_line,
    read_json,
    read_text,
    shortened,
)
from activeo3.data_set import ONE_SPLIT, Dataset, Source, files_of, register
from activeo3.data_tables import PICTURE, ParquetTable, Place, column_types, parquet_rows, picture_at
from activeo3.data_vqa import LETTERS
from activeo3.geometry import area, as_boxes, clipped
from activeo3.types import VQA, Example

VSTAR_KINDS = ("direct_attributes", "relative_position")
LINES = "vstar_bench/test_questions.jsonl"
TABLES = ("vstar-bench/data/test-*.parquet", "vstar_bench/data/test-*.parquet")
PATHS = "vstar_bench/default/test/*.parquet"
LISTED = ("text", "label", "category", "question_id")
_LETTER = re.compile(r"(?:^|\s)\(([A-Z])\)\s")


class VstarQuestion(NamedTuple):
    """A question, checked; ``picture`` is a file, or a row of a table. ``bboxes`` are x, y, width, height in pixels of
    the ``targets``, both empty where the layout does not have them."""

    id: str
    picture: Place
    category: str
    question: str
    options: tuple[str, ...]
    answer: str
    targets: tuple[str, ...] = ()
    bboxes: tuple[tuple[float, ...], ...] = ()


@register(
    "vstar", {"test": 191}, "https://huggingface.co/datasets/craigwu/vstar_bench", answers="words", aliases=ONE_SPLIT
)
def open_vstar(source: Source) -> Dataset:
    """Reads the first layout that is there. Raises DataError if there is none, or no question in it can be used."""
    jsons = [f"vstar_bench/{kind}/*.json" for kind in VSTAR_KINDS]
    found, left_out = files_of(source.folder(), [*jsons, LINES, *TABLES, PATHS]), LeftOut()
    if found.pattern in jsons:
        questions = _of_files(found.path.parent.parent, source.seed, left_out)
    else:
        home = found.path.parents[2 if found.pattern == PATHS else 0]
        questions = [question for path in found.paths for question in _of_list(path, home, left_out)]
    files = (question.picture for question in questions if isinstance(question.picture, Path))
    return source.dataset(questions, _read, left_out, files, found.path)


def _read(asked: VstarQuestion, index: int) -> Example:
    """Raises DataError if the image cannot be used or a target lies outside of it."""
    image = picture_at(asked.picture, asked.id)
    sides = as_boxes(asked.bboxes)
    boxes = clipped(np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1), image.size)
    if (area(boxes) <= 0).any():
        outside = asked.targets[int(np.flatnonzero(area(boxes) <= 0)[0])]
        raise DataError(f"{asked.picture}: target '{outside}' of example {asked.id} lies outside", asked.id)
    vqa = VQA(asked.question, (asked.answer,), options=asked.options, evidence_px=boxes, category=asked.category)
    return Example(asked.id, image, asked.question, boxes, image_id=index + 1, vqa=vqa)


# ---------------------------------------------------------------------------- the authors' files


def shuffled(options: Sequence[str], right: int, seed: int, number: int) -> tuple[tuple[str, ...], str]:
    """Options in an order drawn from (seed, number of the question), and the letter of the right one.

    >>> options, answer = shuffled(["red", "blue"], right=0, seed=0, number=3)
    >>> options[LETTERS.index(answer)]
    'red'
    """
    order = np.random.default_rng([seed, number]).permutation(len(options))
    return tuple(options[k] for k in order), LETTERS[int(np.flatnonzero(order == right)[0])]


Texts = Annotated[list[str], Field(min_length=1, description="give a list of texts")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Authors(Row):
    """One of the authors' files: the first option is the right one, ``bbox`` is x, y, width, height of each target."""

    question: str
    options: Texts
    target_object: Texts
    bbox: list[Annotated[tuple[Finite, Finite, Positive, Positive], Strict(False)]] = Field(
        description="give one x, y, w, h with an area above 0 for each target"
    )

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.bbox) != len(self.target_object):
            raise ValueError(
                f"has {len(self.bbox)} bbox, give one box for each of the {len(self.target_object)} targets"
            )
        return self


def _of_files(home: Path, seed: int, left_out: LeftOut) -> list[VstarQuestion]:
    """The questions of all files, kind by kind; those that are wrong are left out."""
    paths = (
        path for kind in VSTAR_KINDS for path in sorted((home / kind).glob("*.json")) if not path.name.startswith("._")
    )
    return left_out.each(paths, lambda number, path: _of_file(path, seed, number))


def _of_file(path: Path, seed: int, number: int) -> VstarQuestion:
    """The question of a json file, whose image is the jpg of the same name. Raises DataError."""
    row = checked(Authors, path, "the question", read_json(path))
    mixed, answer = shuffled(row.options, 0, seed, number)
    category, places = path.parent.name, (tuple(row.target_object), tuple(row.bbox))
    return VstarQuestion(
        f"{category}/{path.stem}", path.with_suffix(".jpg"), category, row.question, mixed, answer, *places
    )


# ---------------------------------------------------------------------------- the list for language models


def _of_list(path: Path, home: Path, left_out: LeftOut) -> list[VstarQuestion]:
    """The questions of a list whose images lie below ``home`` or in the list itself; those that are wrong are left out."""
    table = None
    if path.suffix == ".jsonl":
        rows: Sequence[Any] = read_text(path).splitlines()
    elif column_types(path).get(PICTURE) == "string":  # names of files
        rows = parquet_rows(path, [PICTURE, *LISTED])
    else:
        table = ParquetTable(path)
        rows = table.rows

    def question(number: int, row: Any) -> VstarQuestion:
        what = f"row {number}"
        row = parsed_line(path, what, row) if isinstance(row, str) else row
        picture = (table, number) if table else home / inside(path, what, str(needed(path, what, row, PICTURE)))
        return _of_row(path, what, row, picture)

    return left_out.each(rows, question)


def _of_row(path: Path, what: str, row: Mapping[str, Any], picture: Place) -> VstarQuestion:
    """The question of a row, whose text has the options with their letters. Raises DataError."""
    text, label, category, number = (str(needed(path, what, row, key) or "") for key in LISTED)
    question, options = lettered(text)
    answer = label.strip("() .\n")
    if len(options) < 2 or answer not in list(LETTERS[: len(options)]):
        raise DataError(
            f"{path}: {what} has the label {shortened(label)} and {len(options)} options, download the file again"
        )
    name = f"{picture.parent.name}/{picture.stem}" if isinstance(picture, Path) else f"{category}/{number}"
    return VstarQuestion(name, picture, category, question, options, answer)


def lettered(text: str) -> tuple[str, tuple[str, ...]]:
    """A question and its options, from a text in which each has its letter; what follows the last one's line is cut.

    >>> lettered("What is it?\\n(A) a cup\\n(B) a dog\\nAnswer with the option's letter from the given choices directly.")
    ('What is it?', ('a cup', 'a dog'))
    """
    question, *parts = _LETTER.split(text)
    letters, options = parts[::2], [part.strip() for part in parts[1::2]]
    if letters != list(LETTERS[: len(letters)]):
        return text.strip(), ()
    return question.strip(), (*options[:-1], *(option.splitlines()[0] if option else "" for option in options[-1:]))
