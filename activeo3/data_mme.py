"""MME in all public forms (arXiv 2306.13394): two yes-or-no questions about each picture, in fourteen categories.

The authors' archive has a folder per category, either with pictures and texts side by side or with ``images/`` and
``questions_answers_YN/``. The text of ``0001.jpg`` is ``0001.txt``: a question, a tab and the answer in each line. The
hub's table and VLMEvalKit's file hold the same in one table, with the pictures inside.

The ``group`` of a question is the category and the name of the picture.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Mapping, NamedTuple

from activeo3.data_io import DataError, Dataset, LeftOut, Source, missing, read_picture, read_text, within
from activeo3.data_vqa import ONE_SPLIT, in_words, open_files
from activeo3.types import VQA, Example

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""MME's categories."""
TABLES = ("MME/data/test-*.parquet", "MME/MME.tsv")
ARCHIVES = (
    "MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version", "MME_Benchmark",
    "MME/MME_Benchmark_release_version/MME_Benchmark", "MME/MME_Benchmark_release_version", "MME/MME_Benchmark", "MME",
)  # fmt: skip
"""Where the folders of the categories may lie: the archive as it is unpacked, beside the other sets or in ``MME``."""


class Asked(NamedTuple):
    """A line of a text file: the picture it is about, which number that has, the question."""

    picture: Path
    image_id: int
    vqa: VQA


@dataclass(frozen=True, eq=False)
class MmeFolders:
    """The questions of the authors' archive, category by category."""

    questions: tuple[Asked, ...]
    dropped: tuple[str, ...] = ()
    name: str = "mme"
    split: str = "test"

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(asked.picture for asked in self.questions))

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the picture is missing or cannot be read."""
        index = within(index, len(self))
        picture, image_id, vqa = self.questions[index]
        example_id = f"mme:{index}"
        image = read_picture(picture, None, example_id)
        return Example(example_id, image, vqa.question, image_id=image_id, vqa=vqa)


def open_mme(source: Source) -> Dataset:
    """Reads the first of TABLES and ARCHIVES that is there below the data root. Raises DataError if none is."""
    source.one_of("mme", ONE_SPLIT)
    root = source.folder("mme", ".")
    for pattern in TABLES:
        paths = sorted(root.glob(pattern))
        if paths:
            return open_files("mme", paths, _of_a_table)
    for archive in ARCHIVES:
        folders = [root / archive / category for category in (*PERCEPTION, *COGNITION)]
        there = [folder for folder in folders if folder.is_dir()]
        if there:
            return _open_folders(there)
    raise missing(root, [*TABLES, *(f"{archive}/{PERCEPTION[0]}" for archive in ARCHIVES)])


def _of_a_table(row: Mapping[str, str]) -> VQA:
    """The question in a row of the hub's table, or of VLMEvalKit's file, which calls the picture's name ``image_path``."""
    name = row["question_id"] if "question_id" in row or "image_path" not in row else row["image_path"]
    vqa = in_words(row)
    category = f"{vqa.category}/"
    return replace(vqa, group=name if name.startswith(category) else category + name)


def _open_folders(folders: list[Path]) -> MmeFolders:
    """All lines of the categories' text files. Raises DataError if none is a question."""
    found: list[Asked] = []
    left_out = LeftOut()
    number = 0
    for folder in folders:
        texts, pictures = (
            folder / below if (folder / below).is_dir() else folder for below in ("questions_answers_YN", "images")
        )
        for number, path in enumerate(sorted(texts.glob("*.txt")), number + 1):
            picture = next(
                (one for one in sorted(pictures.glob(f"{path.stem}.*")) if one.suffix != ".txt"),
                pictures / f"{path.stem}.jpg",
            )
            about = {"category": folder.name, "group": f"{folder.name}/{picture.name}"}
            asked = [VQA(question, (answer,), **about) for question, answer in _lines(path, left_out)]
            found += [Asked(picture, number, vqa) for vqa in asked]
    if not found:
        raise left_out.nothing(f"{folders[0]}: there is no text file with questions")
    return MmeFolders(tuple(found), tuple(left_out))


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
