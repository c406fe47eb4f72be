"""All readers on files in which a value is replaced by an odd one: a row may be left out, and nothing else may
happen."""

import base64
import json
import pickle
import random
from copy import deepcopy
from pathlib import Path
from typing import Any, Callable, Iterator

import data_folders
import numpy as np
import pytest
import refcoco_folders
from PIL import Image

from activeo3 import eval_output, log
from activeo3.data import open_dataset
from activeo3.data_io import DataError
from activeo3.data_set import Dataset

ODD = [None, True, -1, 0, 1, 10**30, 10**400, 1.5, float("nan"), float("inf"), "", "x", "7", "\ud83d", "a\0b", "a\nb\x1b[31m", "n" * 400, [],
       [1, "a", None], [[]], {}, {"a": 1}, "../x", "/x"]  # fmt: skip
TRIES = 100
"""Values that are replaced in each file, drawn from a seed."""


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The way to every value of a json file."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


def replaced(content: Any, at: tuple, value: Any) -> Any:
    if not at:
        return value
    content = deepcopy(content)
    *way, last = at
    inner = content
    for key in way:
        inner = inner[key]
    inner[last] = value
    return content


def survives(name: str, split: str, root: Path) -> bool:
    """Opens a data set, reads every example in both directions and writes what an evaluation would; False if it is
    refused."""
    try:
        data: Dataset = open_dataset(name, split, str(root), tile=0)
    except DataError as error:
        assert str(error).isprintable() and len(str(error)) < 1200
        return False
    assert all(said.isprintable() and len(said) < 600 for said in data.dropped)
    examples = []
    for index in (*range(len(data)), *reversed(range(len(data)))):
        try:
            examples.append(data[index])
        except DataError as error:
            assert error.example_id and str(error).isprintable()
    assert all(np.isfinite(example.boxes_px).all() for example in examples)
    assert log.strict_json(eval_output.truth(examples)).encode()
    return True


# ---------------------------------------------------------------------- json


def refcoco(root: Path, write: Callable) -> None:
    (root / "coco" / "train2014").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(root / "coco" / "train2014" / refcoco_folders.NAME)
    write(root)


SQUARE = [0, 0, 9, 0, 9, 9, 0, 9]
BOXES = [{"bbox": [5 * kind, 5, 20, 20], "category_id": kind} for kind in (1, 2, 10)]
JSON: dict[str, tuple[str, str, Callable[[Path], Any], str]] = {  # name, split, what writes it, the file to spoil
    "coco": ("coco", "train", lambda root: data_folders.folder(root, data_folders.index()), "instances_train.json"),
    "coco_det": ("coco_det", "train", lambda root: data_folders.folder(root, data_folders.index()), "instances_train.json"),
    "lvis": ("lvis_dense", "val", lambda root: data_folders.lvis_set(root, data_folders.lvis_v1()), "lvis/lvis_v1_val.json"),
    "soda_a": ("soda_a", "val", lambda root: data_folders.aerial_set(root, "val", {k: data_folders.aerial([(4, SQUARE), (9, SQUARE)]) for k in "ab"}),
               "SODA-A/Annotations/val/a.json"),
    "soda_d": ("soda_d", "val", lambda root: data_folders.driving_set(root, "val", BOXES), "SODA-D/Annotations/val.json"),
    "mdetr": ("refcoco", "val", lambda root: refcoco(root, refcoco_folders.as_json), "mdetr_annotations/finetune_refcoco_val.json"),
    "refs": ("refcoco", "val", lambda root: refcoco(root, refcoco_folders.as_pickle), "refcoco/refs(unc).p"),
    "instances": ("refcoco", "val", lambda root: refcoco(root, refcoco_folders.as_pickle), "refcoco/instances.json"),
    "perception_r1": ("refcoco", "val", lambda root: refcoco(root, refcoco_folders.as_perception_r1), "jsons/grounding/refcoco_val.json"),
    "vstar": ("vstar", "test", lambda root: data_folders.vstar_set(root, {k: data_folders.GLOVE for k in "ab"}), "vstar_bench/direct_attributes/a.json"),
    "docvqa": ("docvqa", "val", data_folders.docvqa_json, "DocVQA/spdocvqa_qas/val_v1.0_withQT.json"),
    "pages": ("pageocr", "train", lambda root: refcoco_folders.page_set(root, [{"image": "1.png", "conversations": refcoco_folders.told("a")}] * 2), "pageocr/train.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", JSON.values(), ids=JSON)
def test_odd_values_in_json(tmp_path: Path, case: tuple) -> None:
    name, split, write, below = case
    root = tmp_path / "root"
    root.mkdir()
    write(root)
    path = root / below
    reads, writes = (
        (pickle.loads, lambda content: pickle.dumps(content, 2))
        if path.suffix == ".p"
        else (json.loads, lambda c: json.dumps(c).encode())
    )
    good = reads(path.read_bytes())
    assert survives(name, split, root)
    rng, outcomes = random.Random(name), []
    for at, value in rng.sample([(at, value) for at in places(good) for value in ODD], TRIES):
        try:
            path.write_bytes(writes(replaced(good, at, value)))
        except UnicodeEncodeError:  # a pickle cannot hold half a surrogate pair
            continue
        outcomes.append(survives(name, split, root))
    assert sum(outcomes) > TRIES // 3


# ---------------------------------------------------------------------- parquet


def hrbench(root: Path) -> None:
    rows = data_folders.hrbench_rows(base64.b64encode(data_folders.picture(9)).decode())
    refcoco_folders.table(root / "HR-Bench" / "hr_bench_4k.parquet", rows)


def pixmo(root: Path) -> None:
    content = refcoco_folders.picture(1)
    row = refcoco_folders.pixmo_row(content)
    refcoco_folders.pixmo_set(root, [row, row], pictures={row["image_sha256"]: content})


PARQUET: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "mme": (
        "mme",
        "test",
        lambda root: data_folders.parquet_set(
            root, "MME", [[data_folders.mme_row(f"{k // 2}.jpg", k, "Yes") for k in range(4)]]
        ),
    ),
    "hrbench": ("hrbench", "test", hrbench),
    "docvqa": ("docvqa", "val", data_folders.docvqa_parquet),
    "docvqa_1200": (
        "docvqa_1200",
        "test",
        lambda root: data_folders.written(root, [data_folders.row(k) for k in range(3)]),
    ),
    "pixmo": ("pixmo_count", "train", pixmo),
    "jxu124": ("refcoco", "val", lambda root: refcoco(root, refcoco_folders.as_table)),
    "lmms_lab": ("refcoco", "val", lambda root: refcoco(root, refcoco_folders.as_lmms_lab)),
    "vstar": ("vstar", "test", refcoco_folders.vstar_lmms_lab),
}
CELLS = [
    None,
    7,
    1.5,
    True,
    "x",
    "",
    b"\xff\xfe",
    [1, 2],
    ["a", None],
    {"a": 1},
    {"bytes": None},
    {"bytes": "x"},
    {"x": 7},
    [[1.0, float("nan")]],
]


@pytest.mark.parametrize("case", PARQUET.values(), ids=PARQUET)
def test_odd_cells_and_damaged_bytes_in_parquet(tmp_path: Path, case: tuple) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    name, split, write = case
    root = tmp_path / "root"
    root.mkdir()
    write(root)
    path = next(path for path in sorted(root.rglob("*.parquet")) if name != "refcoco" or "val" in path.name)
    whole, rows = path.read_bytes(), parquet.read_table(path).to_pylist()
    assert survives(name, split, root)
    rng, outcomes = random.Random(name), []
    for column, value in [(column, value) for column in rows[0] for value in rng.sample(CELLS, 5)]:
        for spoilt in (rows, rows[:1]):  # a column of another type, or one cell of its own type
            try:
                table = pyarrow.Table.from_pylist([row | {column: value} if row in spoilt else row for row in rows])
                parquet.write_table(table, path)
            except (pyarrow.ArrowException, TypeError, ValueError):  # no table can hold this
                continue
            outcomes.append(survives(name, split, root))
    for attempt in range(30):
        damaged = bytearray(whole[: rng.randrange(len(whole)) if attempt % 3 == 0 else len(whole)])
        for place in rng.sample(range(max(1, len(damaged) - 8)), 3):
            damaged[place : place + 1] = bytes([rng.randrange(256)])
        path.write_bytes(damaged)
        outcomes.append(survives(name, split, root))
    assert 3 < sum(outcomes) < len(outcomes)
