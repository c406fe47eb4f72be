"""Questions about pictures that are answered in words: HR-Bench and RealWorldQA.

V*Bench (data_vstar.py), MME (data_mme.py) and MMBench (data_mmbench.py) have rooms of their own.

V*Bench asks about small things in large pictures ("V*: Guided Visual Search as a Core Mechanism in
Multimodal LLMs", arXiv 2312.14135), and so does HR-Bench, in pictures of 4K and 8K (arXiv 2408.15556). The
others say whether general ability has survived a training.

An example's ``query`` is the question, ``vqa`` what it is answered with; questions of one group have one ``image_id``.
"""

import string
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Mapping, NamedTuple, Sequence

from activeo3.data_io import DataError, LeftOut, Source, shortened, within
from activeo3.data_layouts import files_of
from activeo3.data_tables import Table, open_table, picture_of
from activeo3.types import VQA, Example

ONE_SPLIT = ("test", "val", "dev")
"""These sets have one public part to evaluate on, whichever of these names it is asked for by."""
LETTERS = string.ascii_uppercase


# ---------------------------------------------------------------------------- tables

HRBENCH_KINDS = ("single", "cross")  # about one thing in the picture, or about several


class Asked(NamedTuple):
    """A row of a table: where its picture is, which number the picture has, the question."""

    table: Table
    row: int
    image_id: int
    vqa: VQA


@dataclass(frozen=True, eq=False)
class TableDataset:
    """Questions that came in a table together with their pictures."""

    name: str
    questions: tuple[Asked, ...]
    split: str = "test"
    paths: tuple[Path, ...] = ()
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the picture in the table cannot be used."""
        index = within(index, len(self))
        table, row, image_id, vqa = self.questions[index]
        example_id = f"{self.name}:{index}"
        image = picture_of(table, row, example_id)
        return Example(example_id, image, vqa.question, image_id=image_id, vqa=vqa)


def open_realworldqa(source: Source) -> TableDataset:
    """``RealworldQA/data/test-*.parquet`` (image, question, answer); options are part of the question.

    In VLMEvalKit's ``RealWorldQA.tsv`` they have columns of their own.
    """
    return _open_first("realworldqa", source, "RealworldQA", ("data/test-*.parquet", "RealWorldQA.tsv"), in_words)


def open_hrbench(source: Source) -> TableDataset:
    """``HR-Bench/hr_bench_4k.tsv`` or ``.parquet`` (index, question, answer, category, A, B, C, D, cycle_category, image).

    The file holds a question once for each rotation of its options; the authors' accuracy is the mean over the
    rotations, and so over all rows. Which rows are copies it does not say: those with the same question, options
    and right answer are taken for them.
    """
    return _open_hrbench("hrbench", source, "hr_bench_4k")


def open_hrbench_8k(source: Source) -> TableDataset:
    """``HR-Bench/hr_bench_8k.tsv`` or ``.parquet``, as ``open_hrbench``."""
    return _open_hrbench("hrbench_8k", source, "hr_bench_8k")


def _open_hrbench(name: str, source: Source, stem: str) -> TableDataset:
    return _open_first(name, source, "HR-Bench", (f"{stem}.tsv", f"{stem}*.parquet"), _rotated)


QuestionOf = Callable[[Mapping[str, str]], VQA]
"""The question in a row's columns. Raises ValueError if it is no question, KeyError for a missing column."""


def _open_first(
    name: str, source: Source, below: str, patterns: Sequence[str], question_of: QuestionOf
) -> TableDataset:
    """The rows of the files of the first pattern that fits any."""
    source.one_of(name, ONE_SPLIT)
    folder = source.folder(name, below)
    paths = files_of(folder, patterns).paths
    return open_files(name, paths, question_of)


def open_files(name: str, paths: Sequence[Path], question_of: QuestionOf) -> TableDataset:
    """All rows of tables, every one of them checked; those that are wrong are left out.

    Raises DataError if none is left.
    """
    questions: list[Asked] = []
    left_out = LeftOut()
    pictures: dict[str, int] = {}
    for path in paths:
        table = open_table(path)
        left_out += table.dropped
        for row, content in enumerate(table.rows):
            with left_out:
                vqa = _question(path, row, content, question_of)
                picture = pictures.setdefault(vqa.group or f"{path} {row}", len(pictures) + 1)
                questions.append(Asked(table, row, picture, vqa))
    if not questions:
        raise left_out.nothing(f"{paths[0]}: there is no question in the file, download it again")
    return TableDataset(name, tuple(questions), dropped=tuple(left_out))


def _question(path: Path, row: int, content: Mapping[str, str], question_of: QuestionOf) -> VQA:
    """The question of a row. Raises DataError."""
    try:
        return question_of(content)
    except KeyError as column:
        raise DataError(f"{path}: there is no column {column}, download the file again") from None
    except ValueError as error:
        raise DataError(f"{path}: row {row} {error}, download the file again") from None


def in_words(row: Mapping[str, str]) -> VQA:
    """A question whose answer is a word, or a letter if it has columns of options.

    Raises ValueError if it has no answer.
    """
    if not row["answer"].strip():
        raise ValueError("has no answer")
    if row.get("A", "").strip():
        return lettered(row)
    return VQA(row["question"], (row["answer"].strip(),), category=row.get("category", ""))


def _rotated(row: Mapping[str, str]) -> VQA:
    """One of HR-Bench's questions."""
    vqa = lettered(row)
    if vqa.answer is None:
        raise ValueError("has no answer")
    right = vqa.options[LETTERS.index(vqa.answer)]
    return replace(vqa, group=repr((vqa.question, sorted(vqa.options), right)))


def lettered(row: Mapping[str, str]) -> VQA:
    """A question with a column per option, of which the last may be empty; ``answers`` is empty if there is none.

    Raises ValueError if the options or the answer cannot be.
    """
    cells = [row["A"], row["B"], *(row[letter] for letter in LETTERS[2:] if letter in row)]
    options = [cell for cell in cells if cell.strip()]
    if not options or options != cells[: len(options)]:
        raise ValueError(f"has a gap in its options {shortened(cells)}")
    answer = row.get("answer", "").strip()
    if answer and answer not in list(LETTERS[: len(options)]):
        raise ValueError(f"has the answer {shortened(answer)} and {len(options)} options")
    return VQA(row["question"], (answer,) if answer else (), options=tuple(options), category=row.get("category", ""))
