"""DocVQA: questions about scanned pages, whose answers stand on the page (arXiv 2007.00398, its task 1).

Where an answer stands is not annotated. The words of the page are, by Microsoft's OCR, which is published with the
task: the evidence is the words that spell an answer. Two layouts are read, the first that is there, json files
with pictures and OCR beside them, or the hub's parquet with the pictures inside. The OCR folder counts for both.

An answer is scored by its likeness (kind "anls", evidence.py). An example's ``boxes_px`` are the evidence; there are none
where no word spells an answer.

Readings of what the task leaves open:
  1. An answer is looked for exactly, up to case, white space and the punctuation around it, over neighbouring
     words. If it stands on the page several times, all places are evidence: nobody knows which one was meant.
  2. Only if none of the answers is found so, the most similar run of words counts, if it is similar enough (ALIKE):
     OCR misreads.
  3. Boxes of words are tight: each is padded by a quarter of its height.
  4. The test questions have no public answers: val, test and dev all mean the validation part.
"""

import string
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

from activeo3.answer_text import normalised
from activeo3.data_io import DataError, LeftOut, Source, inside, is_number, needed, read_json, shortened, within
from activeo3.data_layouts import files_of, folder_of
from activeo3.data_tables import ParquetTable, Place, parquet_rows, picture_at
from activeo3.geometry import as_boxes, clipped
from activeo3.text_metrics import edit_distance
from activeo3.types import VQA, Example

SPLITS = {"train": "train", "val": "val", "test": "val", "dev": "val"}
ALIKE = 0.75
"""1 - edit distance from which on a run of words is taken for a misread answer."""
PADDING = 0.25
LAYOUTS = (
    ("spdocvqa_qas/{split}_v1.0_withQT.json", "spdocvqa_images", "spdocvqa_ocr"),  # since 2023
    ("{split}/{split}_v1.0.json", "{split}/documents", "{split}/ocr_results"),  # before
)
"""Questions, folder of pictures, folder of OCR, as the task has published them."""
PARQUET = ("DocVQA/{hub}-*.parquet", "data/{hub}-*.parquet")
_COLUMNS = ("questionId", "question", "answers", "ucsf_document_id", "ucsf_document_page_no")


class Word(NamedTuple):
    """A word of a page and its box (x1, y1, x2, y2)."""

    text: str
    box: tuple[float, float, float, float]


class PageWords(NamedTuple):
    """The words of a page that a data set has itself; their boxes in shares of the page (``in_shares``), or in pixels."""

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


@dataclass(frozen=True, eq=False)
class DocvqaDataset:
    """The questions of a split, in the order of the file."""

    split: str
    questions: tuple[Asked, ...]
    name: str = "docvqa"
    paths: tuple[Path, ...] = ()
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Raises DataError if the picture or the OCR of its page cannot be used."""
        asked = self.questions[within(index, len(self))]
        image = picture_at(asked.picture, asked.id)
        words = _words(asked, image.size)
        boxes = padded(spelled(words, asked.vqa.answers), image.size) if words else as_boxes([])
        vqa = replace(asked.vqa, evidence_px=boxes)
        return Example(asked.id, image, vqa.question, boxes, image_id=asked.image_id, vqa=vqa)


def open_docvqa(source: Source) -> DocvqaDataset:
    """Reads ``DocVQA/`` below the data root, in one of LAYOUTS or as PARQUET.

    Raises DataError if neither is there or no question has an answer.
    """
    folder = source.folder("docvqa", "DocVQA")
    split = SPLITS[source.one_of("docvqa", SPLITS)]
    found = files_of(
        folder, [*(layout[0] for layout in LAYOUTS), *PARQUET], split=split, hub={"val": "validation"}.get(split, split)
    )
    for questions, pictures, ocr in LAYOUTS:
        if found.pattern == questions:
            asked, left_out = _from_json(
                found.path, folder / pictures.format(split=split), folder / ocr.format(split=split)
            )
            return DocvqaDataset(
                split, asked, paths=tuple(dict.fromkeys(one.picture for one in asked)), dropped=left_out
            )
    ocr = folder_of(folder, [layout[2] for layout in LAYOUTS], split=split)
    asked, left_out = _from_parquet(found.paths, ocr)
    return DocvqaDataset(split, asked, dropped=left_out)


def _from_json(path: Path, pictures: Path, ocr: Path) -> tuple[tuple[Asked, ...], tuple[str, ...]]:
    """The questions of a file, and a sentence for each that was left out."""
    content = read_json(path)
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(
            f"{path}: a DocVQA file holds an object with a list of questions under 'data', download it again"
        )
    found, numbers, left_out = [], {}, LeftOut()
    for number, row in enumerate(rows):
        with left_out:
            what = f"question {row.get('questionId', number) if isinstance(row, dict) else number}"
            name = PurePosixPath(inside(path, what, str(needed(path, what, row, "image")))).name
            vqa = _question(path, what, row)
            page = numbers.setdefault(name, len(numbers) + 1)
            example_id = f"docvqa:{row.get('questionId', number)}"
            found.append(Asked(example_id, pictures / name, page, ocr / f"{Path(name).stem}.json", vqa))
    if not found:
        raise left_out.nothing(f"{path}: the file has no question")
    return tuple(found), tuple(left_out)


def _from_parquet(paths: Sequence[Path], ocr: Path) -> tuple[tuple[Asked, ...], tuple[str, ...]]:
    """The questions of all files, and a sentence for each that was left out."""
    found: list[Asked] = []
    left_out = LeftOut()
    numbers: dict[str, int] = {}
    for path in paths:
        table = ParquetTable(path)
        columns = [*_COLUMNS, *(["question_types"] if table.rows and "question_types" in table.rows[0] else [])]
        for number, row in enumerate(parquet_rows(path, columns)):
            with left_out:
                what = f"question {row['questionId']}"
                page = inside(path, what, f"{row['ucsf_document_id']}_{row['ucsf_document_page_no']}")
                vqa = _question(path, what, row)
                image_id = numbers.setdefault(page, len(numbers) + 1)
                found.append(Asked(f"docvqa:{row['questionId']}", (table, number), image_id, ocr / f"{page}.json", vqa))
    if not found:
        raise left_out.nothing(f"{paths[0].parent}: the files have no question")
    return tuple(found), tuple(left_out)


def _question(path: Path, what: str, row: Mapping[str, Any]) -> VQA:
    question, answers = needed(path, what, row, "question"), needed(path, what, row, "answers")
    answers = (
        [str(answer) for answer in answers or [] if str(answer).strip()] if isinstance(answers, list | None) else []
    )
    if not answers:
        raise DataError(f"{path}: {what} has no answer, and nothing to compare with; use the split val or train")
    kinds = row.get("question_types")
    category = ", ".join(map(str, kinds)) if isinstance(kinds, list) else ""
    return VQA(str(question), tuple(answers), "anls", category=category)


def _words(asked: Asked, size: tuple[int, int]) -> list[Word]:
    """The words of a question's page with boxes in pixels of a picture of ``size``; none if nobody has read it. Raises DataError."""
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
                        f"the word {shortened(word['text'])} has the boundingBox {shortened(corners)}, not eight numbers"
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
        if plain(_said(run)) in wanted
    ]
    if exact:
        return as_boxes(list(dict.fromkeys(word.box for run in exact for word in run)))
    best, likeness = words[:0], 0.0
    for answer, right in zip(answers, wanted):
        count = len(answer.split())
        for length in range(max(1, count - 1), count + 2):
            for first in range(len(words) - length + 1):
                run = words[first : first + length]
                alike = 1.0 - edit_distance(plain(_said(run)), right)
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


def _said(run: Sequence[Word]) -> str:
    return " ".join(word.text for word in run)


def padded(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (E, 4) with PADDING of their height on all sides, inside a picture of ``size``."""
    margin = PADDING * (boxes[:, 3:] - boxes[:, 1:2])
    grown = clipped(np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1), size)
    return grown[(grown[:, 0] < grown[:, 2]) & (grown[:, 1] < grown[:, 3])]
