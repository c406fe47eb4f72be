"""data_set.py: a data set of your own, of each kind, in one file outside the package."""

import json
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from PIL import Image

from activeo3.config import ConfigError, TrainConfig
from activeo3.data import DATASETS, open_dataset
from activeo3.data_set import Dataset
from activeo3.eval_config import EvalConfig

BOXES = """
from activeo3.data_io import LeftOut, Row, FourPixels, checked, read_json, read_picture
from activeo3.data_set import Source, register
from activeo3.geometry import as_boxes
from activeo3.types import Example

class Bird(Row):
    file: str
    boxes: list[FourPixels]

@register("birds", {"train": 2}, "my garden")
def open_birds(source: Source):
    folder, left_out = source.folder("birds"), LeftOut()
    rows = left_out.each(read_json(folder / "birds.json"), lambda number, row: checked(Bird, folder, f"row {number}", row))
    return source.dataset(rows, lambda row, i: Example(row.file, read_picture(folder / row.file), "bird", as_boxes(row.boxes), i + 1), left_out)
"""
OPTIONS = """
from activeo3.data_io import read_json, read_picture
from activeo3.data_set import ONE_SPLIT, Source, register
from activeo3.types import VQA, Example

@register("colours", {"test": 2}, "my garden", answers="words", aliases=ONE_SPLIT)
def open_colours(source: Source):
    folder = source.folder("birds")
    vqa = lambda row: VQA(row["question"], (row["answer"],), options=tuple(row["options"]))
    return source.dataset(read_json(folder / "questions.json"),
                          lambda row, i: Example(f"c{i}", read_picture(folder / row["file"]), row["question"], vqa=vqa(row)))
"""
PHRASE = """
from activeo3.data_io import read_json, read_picture
from activeo3.data_set import Source, register
from activeo3.geometry import as_boxes
from activeo3.types import Example

@register("phrases", {"val": 1}, "my garden")
def open_phrases(source: Source):
    folder = source.folder("birds")
    return source.dataset(read_json(folder / "phrases.json"), lambda row, i: Example(
        f"p{i}", read_picture(folder / row["file"]), row["phrase"], as_boxes([row["box"]]), image_id=i + 1))
"""


@pytest.fixture
def garden(tmp_path: Path) -> Iterator[Path]:
    """Two images with boxes, questions and a phrase, and the three files that register them."""
    folder = tmp_path / "birds"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "red").save(folder / name)
    contents = {
        "birds": [{"file": "a.png", "boxes": [[1, 2, 9, 8.5]]}, {"file": "b.png", "boxes": [[1, 2, 9]]}],
        "questions": [{"file": "b.png", "question": "Which colour?", "options": ["red", "blue"], "answer": "A"}],
        "phrases": [{"file": "a.png", "phrase": "the left bird", "box": [1, 2, 9, 8]}],
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    for name, code in (("boxes", BOXES), ("options", OPTIONS), ("phrase", PHRASE)):
        (tmp_path / f"{name}.py").write_text(code)
    yield tmp_path
    for name in ("birds", "colours", "phrases"):
        DATASETS.pop(name, None)


def opened(garden: Path, file: str, name: str, split: str) -> Dataset:
    """The data set, as train.py opens it, or evaluate.py one that is answered in words."""
    flags = ["--data_options", f"extension={garden / file}", "--data_root", str(garden)]
    known = {"data": DATASETS, "benchmark": DATASETS}
    if file == "options.py":
        config = EvalConfig.from_args([*flags, "--checkpoint", "x", "--benchmark", name], known=known)
    else:
        config = TrainConfig.from_args([*flags, "--data", name], known={"data": DATASETS})
    assert DATASETS[name].origin == "my garden"
    return open_dataset(name, split, config.data_root, None, **config.dataset_options)


def test_boxes_of_your_own(garden: Path) -> None:
    data = opened(garden, "boxes.py", "birds", "train")
    (example,) = data
    assert (example.id, example.query, example.image_id) == ("a.png", "bird", 1)
    assert example.boxes_px.tolist() == [[1, 2, 9, 8.5]] and example.size_px == (40, 30)
    assert len(data.dropped) == 1 and f"{garden}/birds: row 1 has the boxes [1, 2, 9], " in data.dropped[0]


def test_questions_with_options_of_your_own(garden: Path) -> None:
    (example,) = opened(garden, "options.py", "colours", "dev")
    assert example.query == "Which colour?" and example.asks_in_words
    assert example.vqa.options == ("red", "blue") and example.vqa.answer == "A" and example.vqa.scored_by == "choice"


def test_phrases_of_your_own(garden: Path) -> None:
    (example,) = opened(garden, "phrase.py", "phrases", "val")
    assert example.query == "the left bird" and np.array_equal(example.boxes_px, [[1, 2, 9, 8]])


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data_options extension=.*none.py: there is no such Python file"):
        TrainConfig.from_args(["--data_options", f"extension={tmp_path / 'none.py'}"])
