"""V*Bench: 191 questions about small things in large pictures (arXiv 2312.14135), in the layouts that it is published in.

    vstar_bench/direct_attributes/sa_4690.json, .jpg    the authors' files: options, and where the things are
    vstar_bench/test_questions.jsonl                    the authors' list for language models: options with letters, no places
    vstar-bench/data/test-*.parquet                     the same list with the pictures inside (the hub's lmms-lab/vstar-bench)
    vstar_bench/default/test/*.parquet                  the same list, as the hub turns it into parquet; the pictures beside it

The first one that is there is read. In the first the right option is always the first one, so the order is drawn from
the seed; the others have an order of their own.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

from activeo3.data_io import (
    DataError,
    LeftOut,
    Source,
    inside,
    is_number,
    needed,
    parsed_json,
    read_json,
    read_text,
    shortened,
    within,
)
from activeo3.data_layouts import files_of
from activeo3.data_tables import PICTURE, ParquetTable, Place, column_types, parquet_rows, picture_at
from activeo3.data_vqa import LETTERS, ONE_SPLIT
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


@dataclass(frozen=True, eq=False)
class VstarDataset:
    """V*Bench's questions, each with its own picture."""

    split: str
    questions: tuple[VstarQuestion, ...]
    name: str = "vstar"
    dropped: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The picture files; none if the pictures are inside a table."""
        return tuple(question.picture for question in self.questions if isinstance(question.picture, Path))

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the picture cannot be used or a target lies outside of it."""
        index = within(index, len(self))
        asked = self.questions[index]
        image = picture_at(asked.picture, asked.id)
        sides = as_boxes(asked.bboxes)
        boxes = clipped(np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1), image.size)
        if (area(boxes) <= 0).any():
            outside = asked.targets[int(np.flatnonzero(area(boxes) <= 0)[0])]
            raise DataError(f"{asked.picture}: target '{outside}' of example {asked.id} lies outside", asked.id)
        vqa = VQA(asked.question, (asked.answer,), options=asked.options, evidence_px=boxes, category=asked.category)
        return Example(asked.id, image, asked.question, boxes, image_id=index + 1, vqa=vqa)


def open_vstar(source: Source) -> VstarDataset:
    """Reads the first layout that is there. Raises DataError if there is none, or no question in it can be used."""
    root = source.folder("vstar", "")
    source.one_of("vstar", ONE_SPLIT)
    jsons = [f"vstar_bench/{kind}/*.json" for kind in VSTAR_KINDS]
    found = files_of(root, [*jsons, LINES, *TABLES, PATHS])
    left_out = LeftOut()
    if found.pattern in jsons:
        questions = _of_files(found.path.parent.parent, source.seed, left_out)
    else:
        home = found.path.parents[2 if found.pattern == PATHS else 0]
        questions = [question for path in found.paths for question in _of_list(path, home, left_out)]
    if not questions:
        raise left_out.nothing(f"{found.path}: vstar has no question")
    return VstarDataset("test", tuple(questions), dropped=tuple(left_out))


# ---------------------------------------------------------------------------- the authors' files


def shuffled(options: Sequence[str], right: int, seed: int, number: int) -> tuple[tuple[str, ...], str]:
    """Options in an order drawn from (seed, number of the question), and the letter of the right one.

    >>> options, answer = shuffled(["red", "blue"], right=0, seed=0, number=3)
    >>> options[LETTERS.index(answer)]
    'red'
    """
    order = np.random.default_rng([seed, number]).permutation(len(options))
    return tuple(options[k] for k in order), LETTERS[int(np.flatnonzero(order == right)[0])]


def _of_files(home: Path, seed: int, left_out: LeftOut) -> list[VstarQuestion]:
    """The questions of all files, kind by kind; those that are wrong are left out."""
    questions = []
    paths = (
        path for kind in VSTAR_KINDS for path in sorted((home / kind).glob("*.json")) if not path.name.startswith("._")
    )
    for number, path in enumerate(paths):
        with left_out:
            questions.append(_of_file(path, seed, number))
    return questions


def _of_file(path: Path, seed: int, number: int) -> VstarQuestion:
    """The question of a json file, whose picture is the jpg of the same name. Raises DataError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: a V*Bench file holds one object with question, options, target_object and bbox")
    question, options, targets, bboxes = (
        needed(path, "the question", content, key) for key in ("question", "options", "target_object", "bbox")
    )
    for key, words in (("options", options), ("target_object", targets)):
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise DataError(f"{path}: {key} is {shortened(words)}, give a list of texts")
    if not isinstance(bboxes, list) or len(bboxes) != len(targets):
        raise DataError(f"{path}: bbox is {shortened(bboxes)}, give one box for each of the {len(targets)} targets")
    for bbox in bboxes:
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)) or min(bbox[2:]) <= 0:
            raise DataError(f"{path}: a target has the bbox {shortened(bbox)}, give x, y, w, h with an area above 0")
    mixed, answer = shuffled(options, 0, seed, number)
    category = path.parent.name
    places = tuple(targets), tuple(map(tuple, bboxes))
    return VstarQuestion(
        f"{category}/{path.stem}", path.with_suffix(".jpg"), category, str(question), mixed, answer, *places
    )


# ---------------------------------------------------------------------------- the list for language models


def _of_list(path: Path, home: Path, left_out: LeftOut) -> list[VstarQuestion]:
    """The questions of a list whose pictures lie below ``home`` or in the list itself; those that are wrong are left out."""
    table = None
    if path.suffix == ".jsonl":
        rows = read_text(path).splitlines()
    elif column_types(path).get(PICTURE) == "string":  # names of files
        rows = parquet_rows(path, [PICTURE, *LISTED])
    else:
        table = ParquetTable(path)
        rows = table.rows
    questions = []
    for number, row in enumerate(rows):
        with left_out:
            what = f"row {number}"
            row = _object(path, what, row) if isinstance(row, str) else row
            picture = (table, number) if table else home / inside(path, what, str(needed(path, what, row, PICTURE)))
            questions.append(_of_row(path, what, row, picture))
    return questions


def _object(path: Path, what: str, line: str) -> Any:
    """What a line of json says. Raises DataError."""
    try:
        return parsed_json(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {what} is not valid json ({error}), download the file again") from None


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
