"""1,200 questions of DocVQA as the hub's nielsr/docvqa_1200_examples has them, which Active-Perception-R1 evaluates on.

Its published numbers (GitHub sabdulmajid/Active-Perception-R1, ``scripts/benchmark_docvqa_suite.py``) are of 16 questions of
the split test: the first after ``shuffle(seed=29)``. The questions are in that order here, drawn from the seed of the data,
so ``--benchmark docvqa_1200 --data_options selection_seed=29 --limit 16`` asks the same 16 in the same order.

As there, an answer is right that is one of the answers up to case, white space, quotation marks and a full stop, the text
that the OCR has at the answer's place included; that is evidence.py's "exact" (DocVQA's own measure is in ``docvqa``).

Deviations from that system:

1. Where an answer stands is found as in data_docvqa.py: a run of words that spells it. There, every word of the page that is
   one of the answer's words is evidence, and the region is the smallest box around all of them.
2. A question without words that spell its answer has no evidence. There, its oracle is the whole page.

A row: ``id``, ``image``, ``query`` (a text per language), ``answers``, ``words`` and ``bounding_boxes`` of the OCR, ``answer``
(the OCR's own words for it). That boxes are x1, y1, x2, y2, as shares of the page or in its pixels, is that system's reading.
"""

from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from activeo3.data_docvqa import Asked, DocvqaDataset, PageWords, Word
from activeo3.data_io import DataError, LeftOut, Source, is_number, needed
from activeo3.data_layouts import files_of
from activeo3.data_tables import ParquetTable, parquet_rows
from activeo3.types import VQA

NAME = "docvqa_1200"
SPLITS = {"train": "train", "test": "test", "val": "test", "dev": "test"}
TABLES = (
    "docvqa_1200_examples/data/{split}-*.parquet",
    "docvqa_1200_examples/{split}-*.parquet",
    "docvqa_1200/data/{split}-*.parquet",
)
COLUMNS = ("id", "query", "answers", "answer", "words", "bounding_boxes")
_SHARE = 1.5
"""Boxes with no number above this are shares of the page."""


def open_docvqa_1200(source: Source) -> DocvqaDataset:
    """Reads ``docvqa_1200_examples/data/<split>-*.parquet``; val and dev mean test. Raises DataError."""
    root = source.folder(NAME, "")
    split = SPLITS[source.one_of(NAME, SPLITS)]
    rows: list[tuple[ParquetTable, int, Mapping[str, Any]]] = []
    for path in files_of(root, TABLES, split=split).paths:
        table = ParquetTable(path)
        rows += [(table, number, row) for number, row in enumerate(parquet_rows(path, COLUMNS))]
    found, left_out = [], LeftOut()
    for place in np.random.default_rng(source.seed).permutation(len(rows)):  # as the hub's library shuffles
        with left_out:
            found.append(_asked(*rows[place], image_id=int(place) + 1))
    if not found:
        raise left_out.nothing(f"{root}: {NAME} has no question in its split '{split}'")
    return DocvqaDataset(split, tuple(found), NAME, dropped=tuple(left_out))


def _asked(table: ParquetTable, number: int, row: Mapping[str, Any], image_id: int) -> Asked:
    """The question of a row. Raises DataError."""
    what = f"row {number}"
    query = needed(table.path, what, row, "query")
    question = str((query.get("en") if isinstance(query, dict) else query) or "").strip()
    own = row["answer"] if isinstance(row["answer"], dict) else {"text": row["answer"]}
    answers = [
        own.get("text") or own.get("matched_text"),
        *(row["answers"] if isinstance(row["answers"], list) else []),
    ]
    answers = list(dict.fromkeys(str(answer).strip() for answer in answers if answer and str(answer).strip()))
    if not question or not answers:
        raise DataError(f"{table.path}: {what} has no question in English or no answer, download the file again")
    words, boxes = (row[name] if isinstance(row[name], list) else [] for name in ("words", "bounding_boxes"))
    page = _page(table.path, what, words, boxes)
    return Asked(f"{NAME}:{row['id']}", (table, number), image_id, page, VQA(question, tuple(answers)))


def _page(path: Path, what: str, words: Sequence[Any], boxes: Sequence[Any]) -> PageWords:
    """The words of a row with their boxes. Raises DataError."""
    if len(words) != len(boxes) or not all(
        isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) for box in boxes
    ):
        raise DataError(
            f"{path}: {what} has {len(words)} words and {len(boxes)} boxes of four numbers, download the file again"
        )
    largest = max((abs(side) for box in boxes for side in box), default=0.0)
    return PageWords(tuple(Word(str(word), tuple(box)) for word, box in zip(words, boxes)), largest <= _SHARE)
