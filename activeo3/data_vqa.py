"""Questions that are answered in words: HR-Bench, RealWorldQA and MME. V*Bench and MMBench have rooms of their own.

V*Bench asks about small things in large images ("V*: Guided Visual Search as a Core Mechanism in
Multimodal LLMs", arXiv 2312.14135), and so does HR-Bench, in images of 4K and 8K (arXiv 2408.15556). The
others say whether general ability has survived a training.

An example's ``query`` is the question, ``vqa`` what it is answered with; questions of one group have one ``image_id``.

MME (arXiv 2306.13394) asks two yes-or-no questions about each image, in fourteen categories. The authors' archive has a
folder per category, either with images and texts side by side or with ``images/`` and ``questions_answers_YN/``. The text of
``0001.jpg`` is ``0001.txt``: a question, a tab and the answer in each line. The hub's table and VLMEvalKit's file hold the same
in one table, with the images inside. The ``group`` of a question is the category and the name of the image.
"""

import string
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterable, Mapping, NamedTuple, Sequence

from activeo3.data_io import DataError, LeftOut, read_text, shortened
from activeo3.data_set import ONE_SPLIT, Dataset, Source, files_of, look_for, missing, register
from activeo3.data_tables import Place, open_table, picture_at
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
    """``HR-Bench/hr_bench_4k.tsv`` or ``.parquet`` (index, question, answer, category, A, B, C, D, cycle_category, image), or
    those of 8K.

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
    """The question in a row of the hub's table, or of VLMEvalKit's file, which calls the image's name ``image_path``."""
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
