"""The file that MMBench's server takes for a test set, whose answers are not public.

It is a table with the columns of the published file, without the picture, and ``prediction``, as VLMEvalKit writes it;
the server (its ``scripts/mmb_eval_gradio.py``) takes .xlsx, .tsv and .csv, and wants ``index``, ``question``, ``A`` to
``D`` and ``prediction``. It reads the letter out of what a model wrote by its own rules and a language model. A thought and
its tags would mislead it: the answer is what ``answer_parsing.final_text`` leaves.
"""

import csv
import io
from pathlib import Path
from typing import Any, Mapping, Sequence

from activeo3 import outputs
from activeo3.answer_parsing import final_text
from activeo3.types import Example


def asks_for_one(examples: Sequence[Example]) -> bool:
    """Whether these are questions of a test file."""
    return all(example.vqa.answer is None and example.vqa.columns for example in examples)


def write_submission(path: Path, examples: Sequence[Example], answers: Sequence[Mapping[str, Any]]) -> None:
    """Writes the table, a row per example; ``answers`` have the ``text`` that was written, in the same order."""
    columns = list(
        dict.fromkeys(column for example in examples for column in example.vqa.columns if column != "answer")
    )
    file = io.StringIO(newline="")
    writer = csv.DictWriter(
        file,
        [*columns, "prediction"],
        delimiter="\t",
        quoting=csv.QUOTE_ALL,
        extrasaction="ignore",
        lineterminator="\n",
    )
    writer.writeheader()
    for example, answer in zip(examples, answers, strict=True):
        writer.writerow(example.vqa.columns | {"prediction": final_text(answer["text"])})
    outputs.leave(path, file.getvalue().encode())
