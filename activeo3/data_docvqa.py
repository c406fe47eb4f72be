"""DocVQA: questions about scanned pages, whose answers stand on the page (arXiv 2007.00398, its task 1).

Where an answer stands is not annotated. The words of the page are, by Microsoft's OCR, which is published with the
task: the evidence is the words that spell an answer. Two layouts are read, the first that is there, json files
with pictures and OCR beside them, or the hub's parquet with the pictures inside. The OCR folder counts for both.

An answer is scored by its likeness (kind "anls", task_zoom_qa.py). An example's ``boxes_px`` are the evidence; there
are none where no word spells an answer.

docvqa_1200 is 1,200 of the questions as the hub's nielsr/docvqa_1200_examples has them, which Active-Perception-R1
evaluates on. Its published numbers (GitHub sabdulmajid/Active-Perception-R1, ``scripts/benchmark_docvqa_suite.py``) are
of 16 questions of the split test: the first after ``shuffle(seed=29)``. The questions are in that order here, drawn
from the seed of the data, so ``--benchmark docvqa_1200 --data_options selection_seed=29 --limit 16`` asks the same 16
in the same order. As there, an answer is right that is one of the answers up to case, white space, quotation marks and
a full stop, the text that the OCR has at the answer's place included (task_zoom_qa.py's "exact"). A row: ``id``,
``image``, ``query`` (a text per language), ``answers``, ``words`` and ``bounding_boxes`` of the OCR, ``answer`` (the
OCR's own words for it). That boxes are x1, y1, x2, y2, as shares of the page or in its pixels, is that system's
reading.
Deviations from it:

1. Where an answer stands is found as for DocVQA: a run of words that spells it. There, every word of the page that is
   one of the answer's words is evidence, and the region is the smallest box around all of them.
2. A question without words that spell its answer has no evidence. There, its oracle is the whole page.

Readings of what the task leaves open:
  1. An answer is looked for exactly, up to case, white space and the punctuation around it, over neighbouring
     words. If it stands on the page several times, all places are evidence: which one was meant is not known.
  2. Only if none of the answers is found so, the most similar run of words counts, if it is similar enough (ALIKE):
     OCR misreads.
  3. Boxes of words are tight: each is padded by a quarter of its height.
  4. The test questions have no public answers: val, test and dev all mean the validation part.
"""

import string
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Mapping, NamedTuple, Sequence

import numpy as np
from pydantic import Field, Strict, field_validator

from activeo3.answer_text import normalised
from activeo3.data_files import files_of, folder_of
from activeo3.data_io import (
    DataError,
    Finite,
    LeftOut,
    Row,
    checked,
    inside,
    is_number,
    list_under,
    needed,
    read_json,
    shortened,
)
from activeo3.data_set import ONE_SPLIT, Dataset, Source, register
from activeo3.data_tables import ParquetTable, Place, picture_at
from activeo3.geometry import as_boxes, clipped
from activeo3.text_metrics import edit_distance
from activeo3.types import VQA, Example

ALIKE = 0.75
"""1 - edit distance from which on a run of words is taken for a misread answer."""
PADDING = 0.25
LAYOUTS = (
    ("spdocvqa_qas/{split}_v1.0_withQT.json", "spdocvqa_images", "spdocvqa_ocr"),  # since 2023
    ("{split}/{split}_v1.0.json", "{split}/documents", "{split}/ocr_results"),  # before
)
"""Questions, folder of pictures, folder of OCR, as the task has published them."""
PARQUET = ("DocVQA/{hub}-*.parquet", "data/{hub}-*.parquet")
TABLES_1200 = tuple(
    f"{home}/{{split}}-*.parquet" for home in ("docvqa_1200_examples/data", "docvqa_1200_examples", "docvqa_1200/data")
)
COLUMNS_1200 = ("id", "query", "answers", "answer", "words", "bounding_boxes")
_SHARE = 1.5
"""Boxes with no number above this are shares of the page."""
_COLUMNS = ("questionId", "question", "answers", "ucsf_document_id", "ucsf_document_page_no")


class Word(NamedTuple):
    """A word of a page and its box (x1, y1, x2, y2)."""

    text: str
    box: tuple[float, float, float, float]


class PageWords(NamedTuple):
    """The words of a page that a data set has itself; their boxes in shares of the page (``in_shares``), or in
    pixels."""

    words: tuple[Word, ...]
    in_shares: bool

    def on(self, size: tuple[int, int]) -> list[Word]:
        """The words with their boxes in pixels of a picture of ``size``."""
        scale = size * 2 if self.in_shares else (1, 1, 1, 1)
        return [Word(word.text, tuple(np.multiply(word.box, scale).tolist())) for word in self.words]


class Asked(NamedTuple):
    """A question: its id, the picture, and the page's OCR, a file or the words themselves."""

    id: str
    picture: Place
    image_id: int
    ocr: Path | PageWords
    vqa: VQA


def page_questions(source: Source, asked: Sequence[Asked], left_out: Sequence[str], where: Path) -> Dataset[Asked]:
    """The data set of these questions in this order."""

    def read(one: Asked, _: int) -> Example:
        image = picture_at(one.picture, one.id)
        words = _words(one, image.size)
        boxes = padded(spelled(words, one.vqa.answers), image.size) if words else as_boxes([])
        vqa = replace(one.vqa, evidence_px=boxes)
        return Example(one.id, image, vqa.question, boxes, image_id=one.image_id, vqa=vqa)

    files = (one.picture for one in asked if isinstance(one.picture, Path))
    return source.dataset(asked, read, left_out, files, where)


# ---------------------------------------------------------------------------- the task's files


class Question(Row):
    """A question of json or parquet, whose keys for its page differ."""

    question: str
    answers: list[Any] | None
    question_types: Any = None

    @property
    def vqa(self) -> VQA:
        """Raises ValueError without an answer."""
        answers = tuple(str(answer) for answer in self.answers or () if str(answer).strip())
        if not answers:
            raise ValueError("has no answer, and nothing to compare with; use the split val or train")
        kinds = self.question_types
        category = ", ".join(map(str, kinds)) if isinstance(kinds, list) else ""
        return VQA(self.question, answers, "anls", category=category)


@register("docvqa", {"train": 10_194, "val": 1_286}, "https://rrc.cvc.uab.es/?ch=17", answers="text",
          aliases={"test": "val", "dev": "val"})  # fmt: skip
def open_docvqa(source: Source) -> Dataset:
    """Reads ``DocVQA/`` below the data root, in one of LAYOUTS or as PARQUET.

    Raises DataError if neither is there or no question has an answer.
    """
    folder, split, left_out = source.folder("DocVQA"), source.split, LeftOut()
    known = {layout[0]: layout for layout in LAYOUTS}
    found = files_of(folder, [*known, *PARQUET], split=split, hub={"val": "validation"}.get(split, split))
    if found.pattern in known:
        pictures, ocr = (folder / below.format(split=split) for below in known[found.pattern][1:])
        asked = _from_json(found.path, pictures, ocr, left_out)
    else:
        asked = _from_parquet(found.paths, folder_of(folder, [layout[2] for layout in LAYOUTS], split=split), left_out)
    return page_questions(source, asked, left_out, found.path)


def _from_json(path: Path, pictures: Path, ocr: Path, left_out: LeftOut) -> list[Asked]:
    """The questions of a file; those that are wrong are left out."""
    numbers: dict[str, int] = {}

    def asked(number: int, row: Any) -> Asked:
        known = row.get("questionId", number) if isinstance(row, dict) else number
        what = f"question {known}"
        name = PurePosixPath(inside(path, what, str(needed(path, what, row, "image")))).name
        vqa = _vqa(path, what, row)
        page = numbers.setdefault(name, len(numbers) + 1)
        return Asked(f"docvqa:{known}", pictures / name, page, ocr / f"{Path(name).stem}.json", vqa)

    return left_out.each(list_under(path, read_json(path), "data"), asked)


def _from_parquet(paths: Sequence[Path], ocr: Path, left_out: LeftOut) -> list[Asked]:
    """The questions of all files; those that are wrong are left out."""
    numbers: dict[str, int] = {}
    found: list[Asked] = []
    for path in paths:
        table = ParquetTable(path)
        columns = [*_COLUMNS, *(["question_types"] if "question_types" in table.types else [])]

        def asked(number: int, row: Mapping[str, Any]) -> Asked:
            what = f"question {row['questionId']}"
            page = inside(path, what, f"{row['ucsf_document_id']}_{row['ucsf_document_page_no']}")
            vqa = _vqa(path, what, row)
            image_id = numbers.setdefault(page, len(numbers) + 1)
            return Asked(f"docvqa:{row['questionId']}", (table, number), image_id, ocr / f"{page}.json", vqa)

        found += left_out.each(table.values(columns), asked)
    return found


def _vqa(path: Path, what: str, row: Any) -> VQA:
    """The question of a row. Raises DataError."""
    try:
        return checked(Question, path, what, row).vqa
    except ValueError as error:
        raise DataError(f"{path}: {what} {error}") from None


# ---------------------------------------------------------------------------- docvqa_1200


class Words1200(Row):
    """A row of docvqa_1200, apart from its image."""

    query: Any
    answers: Any
    answer: Any
    words: list[str] = Field(default_factory=list)
    bounding_boxes: list[Annotated[tuple[Finite, Finite, Finite, Finite], Strict(False)]] = Field(
        default_factory=list, description="give four numbers for each word"
    )

    @field_validator("words", "bounding_boxes", mode="before")
    @classmethod
    def _filled(cls, value: Any) -> Any:
        return [] if value is None else value

    @property
    def vqa(self) -> VQA:
        """Raises ValueError without a question or an answer."""
        question = self.query.get("en") if isinstance(self.query, dict) else self.query
        own = self.answer if isinstance(self.answer, dict) else {"text": self.answer}
        answers = [
            own.get("text") or own.get("matched_text"),
            *(self.answers if isinstance(self.answers, list) else []),
        ]
        answers = [str(answer).strip() for answer in answers if answer]
        answers = list(dict.fromkeys(answer for answer in answers if answer))
        if not str(question or "").strip() or not answers:
            raise ValueError("has no question in English or no answer, download the file again")
        return VQA(str(question).strip(), tuple(answers))

    @property
    def page(self) -> PageWords:
        """The OCR of the page. Raises ValueError if words and boxes do not pair up."""
        if len(self.words) != len(self.bounding_boxes):
            counts = f"{len(self.words)} words and {len(self.bounding_boxes)} boxes of four numbers"
            raise ValueError(f"has {counts}, download the file again")
        largest = max((abs(side) for box in self.bounding_boxes for side in box), default=0.0)
        return PageWords(tuple(map(Word, self.words, self.bounding_boxes)), largest <= _SHARE)


@register("docvqa_1200", {"train": 1_000, "test": 200}, "https://huggingface.co/datasets/nielsr/docvqa_1200_examples",
          answers="text", aliases=ONE_SPLIT)  # fmt: skip
def open_docvqa_1200(source: Source) -> Dataset:
    """Reads ``docvqa_1200_examples/data/<split>-*.parquet``. Raises DataError."""
    paths, left_out = files_of(source.folder(), TABLES_1200, split=source.split).paths, LeftOut()
    rows = [
        (table, number, row)
        for table in map(ParquetTable, paths)
        for number, row in enumerate(table.values(COLUMNS_1200))
    ]
    order = np.random.default_rng(source.seed).permutation(len(rows))  # as the hub's library shuffles
    asked = left_out.each(order, lambda _, place: _of_1200(*rows[place], int(place) + 1))
    return page_questions(source, asked, left_out, paths[0])


def _of_1200(table: ParquetTable, number: int, content: Mapping[str, Any], image_id: int) -> Asked:
    """The question of a row. Raises DataError."""
    row = checked(Words1200, table.path, f"row {number}", content)
    try:
        return Asked(f"docvqa_1200:{content['id']}", (table, number), image_id, row.page, row.vqa)
    except ValueError as error:
        raise DataError(f"{table.path}: row {number} {error}") from None


def _words(asked: Asked, size: tuple[int, int]) -> list[Word]:
    """The words of a question's page with boxes in pixels of a picture of ``size``; none if there is no OCR of it.
    Raises DataError."""
    if isinstance(asked.ocr, PageWords):
        return asked.ocr.on(size)
    return ocr_words(asked.ocr, size, asked.id) if asked.ocr.is_file() else []


# ---------------------------------------------------------------------------- evidence


def ocr_words(path: Path, size: tuple[int, int], example_id: str) -> list[Word]:
    """The words of Microsoft's OCR of a page, in its order; boxes in pixels of a picture of ``size``.

    A box is given by its four corners; a page has its own width and height. Raises DataError.
    """
    words = []
    try:
        for page in read_json(path).get("recognitionResults", []):
            own = [page.get(name, side) for side, name in zip(size, ("width", "height"))]
            if not all(is_number(side) and side > 0 for side in own):
                raise ValueError(f"the page has the size {shortened(own)}")
            scale = [side / of_page for side, of_page in zip(size, own)]
            for word in (word for line in page["lines"] for word in line["words"]):
                corners = word["boundingBox"]
                if not isinstance(corners, list) or len(corners) != 8 or not all(map(is_number, corners)):
                    raise ValueError(
                        f"the word {shortened(word['text'])} has the boundingBox {shortened(corners)}, not eight "
                        "numbers"
                    )
                xs, ys = np.array(corners[0::2]) * scale[0], np.array(corners[1::2]) * scale[1]
                words.append(
                    Word(str(word["text"]), (float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())))
                )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: this is no OCR of a page ({error}), download it again", example_id) from None
    return words


def plain(text: str) -> str:
    """A text without white space, case, and the punctuation around it.

    >>> plain("  (New York), ")
    'newyork'
    """
    letters = "".join(normalised(text).casefold().split())
    return letters.strip(string.punctuation.translate(str.maketrans("", "", "$%+-"))) or letters


def spelled(words: Sequence[Word], answers: Sequence[str]) -> np.ndarray:
    """Boxes (E, 4) of the words that spell one of the answers; none if nothing is like any of them.

    >>> page = [Word("Total:", (0, 0, 9, 5)), Word("$", (10, 0, 12, 5)), Word("1,284.", (13, 0, 30, 5))]
    >>> spelled(page, ["$1,284"]).tolist()
    [[10.0, 0.0, 12.0, 5.0], [13.0, 0.0, 30.0, 5.0]]
    """
    wanted = [plain(answer) for answer in answers]
    longest, letters = max(map(len, wanted)), [len(plain(word.text)) for word in words]
    exact = [
        run
        for first in range(len(words))
        for run in _runs(words, letters, first, longest)
        if plain(_joined(run)) in wanted
    ]
    if exact:
        return as_boxes(list(dict.fromkeys(word.box for run in exact for word in run)))
    best, likeness = words[:0], 0.0
    for answer, right in zip(answers, wanted):
        count = len(answer.split())
        for length in range(max(1, count - 1), count + 2):
            for first in range(len(words) - length + 1):
                run = words[first : first + length]
                alike = 1.0 - edit_distance(plain(_joined(run)), right)
                if alike > likeness:
                    best, likeness = run, alike
    return as_boxes([word.box for word in best] if likeness >= ALIKE else [])


def _runs(words: Sequence[Word], letters: Sequence[int], first: int, longest: int) -> list[Sequence[Word]]:
    """The runs of words from ``first`` on of which the ``plain`` text can have as few as ``longest`` letters;
    ``letters`` are those of each word alone."""
    runs, total = [], 0
    for last in range(first, len(words)):
        total += letters[last]
        if total > longest:
            break
        runs.append(words[first : last + 1])
    return runs


def _joined(run: Sequence[Word]) -> str:
    return " ".join(word.text for word in run)


def padded(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (E, 4) with PADDING of their height on all sides, inside a picture of ``size``."""
    margin = PADDING * (boxes[:, 3:] - boxes[:, 1:2])
    grown = clipped(np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1), size)
    return grown[(grown[:, 0] < grown[:, 2]) & (grown[:, 1] < grown[:, 3])]
