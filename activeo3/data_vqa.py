"""Questions that are answered in words: HR-Bench, RealWorldQA, MME and V*Bench. MMBench has a room of its own.

V*Bench asks about small things in large images ("V*: Guided Visual Search as a Core Mechanism in
Multimodal LLMs", arXiv 2312.14135), and so does HR-Bench, in images of 4K and 8K (arXiv 2408.15556). The
others say whether general ability has survived a training.

An example's ``query`` is the question, ``vqa`` what it is answered with; questions of one group have one ``image_id``.

MME (arXiv 2306.13394) asks two yes-or-no questions about each image, in fourteen categories. The authors' archive has a
folder per category, either with images and texts side by side or with ``images/`` and ``questions_answers_YN/``. The
text of ``0001.jpg`` is ``0001.txt``: a question, a tab and the answer in each line. The hub's table and VLMEvalKit's
file hold the same in one table, with the images inside. The ``group`` of a question is the category and the name of the
image.

V*Bench has 191 questions, in the layouts that it is published in:

    vstar_bench/direct_attributes/sa_4690.json, .jpg  the authors' files: options, and where the things are
    vstar_bench/test_questions.jsonl                  the authors' list for language models: lettered options, no places
    vstar-bench/data/test-*.parquet                   the same list, pictures inside (the hub's lmms-lab/vstar-bench)
    vstar_bench/default/test/*.parquet                the same list, turned into parquet by the hub; pictures beside it

The first one that is there is read. In the first the right option is always the first one, so the order is drawn from
the seed; the others have an order of their own.
"""

import re
import string
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Callable, Iterable, Mapping, NamedTuple, Self, Sequence

import numpy as np
from pydantic import Field, Strict, model_validator

from activeo3.data_files import files_of, look_for, missing
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
from activeo3.data_set import ONE_SPLIT, Dataset, Source, register
from activeo3.data_tables import PICTURE, ParquetTable, Place, open_table, picture_at
from activeo3.geometry import area, as_boxes, clipped
from activeo3.types import VQA, Example

HUB = "https://huggingface.co/datasets"
LETTERS = string.ascii_uppercase
HRBENCH_KINDS = ("single", "cross")  # about one thing in the image, or about several
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""MME's categories."""
TABLES = ("MME/data/test-*.parquet", "MME/MME.tsv")
ARCHIVES = (
    "MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version", "MME_Benchmark",
    "MME/MME_Benchmark_release_version/MME_Benchmark", "MME/MME_Benchmark_release_version", "MME/MME_Benchmark", "MME",
)  # fmt: skip
"""Where the folders of MME's categories may lie: the archive as it is unpacked, beside the other sets or in ``MME``."""


class Asked(NamedTuple):
    """A question, where its image is, and which number the image has."""

    picture: Place
    image_id: int
    vqa: VQA


def questions(source: Source, asked: Sequence[Asked], left_out: Sequence[str], where: Path) -> Dataset[Asked]:
    """The data set of these questions, numbered in this order."""

    def read(one: Asked, index: int) -> Example:
        example_id = f"{source.name}:{index}"
        image = picture_at(one.picture, example_id)
        return Example(example_id, image, one.vqa.question, image_id=one.image_id, vqa=one.vqa)

    files = (one.picture for one in asked if isinstance(one.picture, Path))
    return source.dataset(asked, read, left_out, files, where)


# ---------------------------------------------------------------------------- tables

QuestionOf = Callable[[Mapping[str, str]], VQA]
"""The question in a row's columns. Raises ValueError if it is no question, KeyError for a missing column."""


def questions_of(paths: Iterable[Path], question_of: QuestionOf, left_out: LeftOut) -> list[Asked]:
    """All rows of tables, every one of them checked; those that are wrong are left out."""
    asked: list[Asked] = []
    numbers: dict[str, int] = {}
    for path in paths:
        table = open_table(path)
        left_out += table.dropped
        for row, content in enumerate(table.rows):
            with left_out:
                vqa = _question(path, row, content, question_of)
                number = numbers.setdefault(vqa.group or f"{path} {row}", len(numbers) + 1)
                asked.append(Asked((table, row), number, vqa))
    return asked


def _question(path: Path, row: int, content: Mapping[str, str], question_of: QuestionOf) -> VQA:
    """The question of a row. Raises DataError."""
    try:
        return question_of(content)
    except KeyError as column:
        raise DataError(f"{path}: there is no column {column}, download the file again") from None
    except ValueError as error:
        raise DataError(f"{path}: row {row} {error}, download the file again") from None


def open_tables(source: Source, folder: Path, patterns: Sequence[str], question_of: QuestionOf) -> Dataset[Asked]:
    """The rows of the files of the first pattern that fits any."""
    paths, left_out = files_of(folder, patterns).paths, LeftOut()
    return questions(source, questions_of(paths, question_of, left_out), left_out, paths[0])


def in_words(row: Mapping[str, str]) -> VQA:
    """A question whose answer is a word, or a letter if it has columns of options.

    Raises ValueError if it has no answer.
    """
    if not row["answer"].strip():
        raise ValueError("has no answer")
    if row.get("A", "").strip():
        return lettered(row)
    return VQA(row["question"], (row["answer"].strip(),), category=row.get("category", ""))


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


@register("realworldqa", {"test": 765}, f"{HUB}/xai-org/RealworldQA", answers="words", aliases=ONE_SPLIT)
def open_realworldqa(source: Source) -> Dataset:
    """``RealworldQA/data/test-*.parquet`` (image, question, answer); options are part of the question.

    In VLMEvalKit's ``RealWorldQA.tsv`` they have columns of their own.
    """
    return open_tables(source, source.folder("RealworldQA"), ("data/test-*.parquet", "RealWorldQA.tsv"), in_words)


@register("hrbench", {"test": 800}, f"{HUB}/DreamMr/HR-Bench", answers="words", aliases=ONE_SPLIT)
@register("hrbench_8k", {"test": 800}, f"{HUB}/DreamMr/HR-Bench", answers="words", aliases=ONE_SPLIT)
def open_hrbench(source: Source) -> Dataset:
    """``HR-Bench/hr_bench_4k.tsv`` or ``.parquet`` (index, question, answer, category, A, B, C, D, cycle_category,
    image), or those of 8K.

    The file holds a question once for each rotation of its options; the authors' accuracy is the mean over the
    rotations, and so over all rows. Which rows are copies it does not say: those with the same question, options
    and right answer are taken for them.
    """
    stem = "hr_bench_8k" if source.name == "hrbench_8k" else "hr_bench_4k"
    return open_tables(source, source.folder("HR-Bench"), (f"{stem}.tsv", f"{stem}*.parquet"), _rotated)


def _rotated(row: Mapping[str, str]) -> VQA:
    """One of HR-Bench's questions."""
    vqa = lettered(row)
    if vqa.answer is None:
        raise ValueError("has no answer")
    right = vqa.options[LETTERS.index(vqa.answer)]
    return replace(vqa, group=repr((vqa.question, sorted(vqa.options), right)))


# ---------------------------------------------------------------------------- MME


@register("mme", {"test": 2_374}, f"{HUB}/lmms-lab/MME", answers="words", aliases=ONE_SPLIT)
def open_mme(source: Source) -> Dataset:
    """Reads the first of TABLES and ARCHIVES that is there below the data root. Raises DataError if none is."""
    root, left_out = source.folder(), LeftOut()
    if tables := look_for(root, TABLES):
        return questions(source, questions_of(tables.paths, _of_mme, left_out), left_out, tables.path)
    for archive in ARCHIVES:
        folders = [root / archive / category for category in (*PERCEPTION, *COGNITION)]
        if there := [folder for folder in folders if folder.is_dir()]:
            return questions(source, _of_folders(there, left_out), left_out, there[0])
    raise missing(root, [*TABLES, *(f"{archive}/{PERCEPTION[0]}" for archive in ARCHIVES)])


def _of_mme(row: Mapping[str, str]) -> VQA:
    """The question in a row of the hub's table, or of VLMEvalKit's file, which calls the image's name
    ``image_path``."""
    name = row["question_id"] if "question_id" in row or "image_path" not in row else row["image_path"]
    vqa = in_words(row)
    category = f"{vqa.category}/"
    return replace(vqa, group=name if name.startswith(category) else category + name)


def _of_folders(folders: Sequence[Path], left_out: LeftOut) -> list[Asked]:
    """All lines of the text files of the archive, category by category; those that are no question are left out."""
    found: list[Asked] = []
    number = 0
    for folder in folders:
        texts, images = (
            folder / below if (folder / below).is_dir() else folder for below in ("questions_answers_YN", "images")
        )
        for number, path in enumerate(sorted(texts.glob("*.txt")), number + 1):
            files = (one for one in sorted(images.glob(f"{path.stem}.*")) if one.suffix != ".txt")
            image = next(files, images / f"{path.stem}.jpg")
            group = f"{folder.name}/{image.name}"
            for question, answer in _lines(path, left_out):
                found.append(Asked(image, number, VQA(question, (answer,), category=folder.name, group=group)))
    return found


def _lines(path: Path, left_out: LeftOut) -> list[tuple[str, str]]:
    """(question, answer) of every line of a text file that is one; the others are ``left_out``."""
    found: list[tuple[str, str]] = []
    with left_out:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            question, _, answer = (part.strip() for part in line.rpartition("\t"))
            with left_out:
                if line.strip() and (not question or answer.lower() not in ("yes", "no")):
                    raise DataError(f"{path}: line {number} is no question, a tab and Yes or No, correct or remove it")
                found += [(question, answer)] if line.strip() else []
    return found


# ---------------------------------------------------------------------------- V*Bench


VSTAR_KINDS = ("direct_attributes", "relative_position")
VSTAR_LINES = "vstar_bench/test_questions.jsonl"
VSTAR_TABLES = ("vstar-bench/data/test-*.parquet", "vstar_bench/data/test-*.parquet")
VSTAR_PATHS = "vstar_bench/default/test/*.parquet"
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
    found, left_out = files_of(source.folder(), [*jsons, VSTAR_LINES, *VSTAR_TABLES, VSTAR_PATHS]), LeftOut()
    if found.pattern in jsons:
        questions = _of_files(found.path.parent.parent, source.seed, left_out)
    else:
        home = found.path.parents[2 if found.pattern == VSTAR_PATHS else 0]
        questions = [question for path in found.paths for question in _of_list(path, home, left_out)]
    files = (question.picture for question in questions if isinstance(question.picture, Path))
    return source.dataset(questions, _read_vstar, left_out, files, found.path)


def _read_vstar(asked: VstarQuestion, index: int) -> Example:
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
    """The questions of a list whose images lie below ``home`` or in the list itself; those that are wrong are left
    out."""
    table = None if path.suffix == ".jsonl" else ParquetTable(path)
    rows: Sequence[Any] = table.values([*LISTED]) if table else read_text(path).splitlines()
    if table and table.types[PICTURE] == "string":  # names of files
        rows, table = table.values([PICTURE, *LISTED]), None

    def question(number: int, row: Any) -> VstarQuestion:
        what = f"row {number}"
        row = parsed_line(path, what, row) if isinstance(row, str) else row
        picture = (table, number) if table else home / inside(path, what, str(needed(path, what, row, PICTURE)))
        return _of_row(path, what, row, picture)

    return left_out.each(rows, question)


def _of_row(path: Path, what: str, row: Mapping[str, Any], picture: Place) -> VstarQuestion:
    """The question of a row, whose text has the options with their letters. Raises DataError."""
    text, label, category, number = (str(needed(path, what, row, key) or "") for key in LISTED)
    question, options = options_in(text)
    answer = label.strip("() .\n")
    if len(options) < 2 or answer not in list(LETTERS[: len(options)]):
        raise DataError(
            f"{path}: {what} has the label {shortened(label)} and {len(options)} options, download the file again"
        )
    name = f"{picture.parent.name}/{picture.stem}" if isinstance(picture, Path) else f"{category}/{number}"
    return VstarQuestion(name, picture, category, question, options, answer)


def options_in(text: str) -> tuple[str, tuple[str, ...]]:
    """A question and its options, from a text in which each has its letter; what follows the last one's line is cut.

    >>> options_in("What is it?\\n(A) a cup\\n(B) a dog\\nAnswer with the option's letter "
    ...            "from the given choices directly.")
    ('What is it?', ('a cup', 'a dog'))
    """
    question, *parts = _LETTER.split(text)
    letters, options = parts[::2], [part.strip() for part in parts[1::2]]
    if letters != list(LETTERS[: len(letters)]):
        return text.strip(), ()
    return question.strip(), (*options[:-1], *(option.splitlines()[0] if option else "" for option in options[-1:]))
