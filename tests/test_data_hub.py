"""data_hub.py: folders that the datasets library itself has written, in the layouts that are common on the hub."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_photos import CATS, DOGS, NAMES, WANTED, asked, found, photos

from activeo3 import data_hub
from activeo3.config import ConfigError, TrainConfig
from activeo3.data import open_dataset
from activeo3.data_io import DataError
from activeo3.eval_config import EvalConfig
from activeo3.eval_setup import benchmark_of, opened

datasets = pytest.importorskip("datasets", reason='needs pip install "activeo3[hub]"')


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library keeps what it has read, here in a folder of the test's own."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def things(folder: Path, named: bool = True) -> Any:
    """A row for each picture, with its objects as CPPE-5 has them: x, y, width, height, and a number for the class."""
    photos(folder)
    sides = lambda box: [box[0], box[1], box[2] - box[0], box[3] - box[1]]  # noqa: E731
    of = [[(sides(box), kind) for kind, boxes in enumerate((CATS, DOGS)) for box in boxes.get(n, [])] for n in NAMES]
    rows = {
        "image_id": list(range(len(NAMES))),
        "image": [str(folder / name) for name in NAMES],
        "width": [64] * len(NAMES),
        "objects": [{"bbox": [box for box, _ in one], "category": [kind for _, kind in one]} for one in of],
    }
    kind = datasets.ClassLabel(names=["cat", "red_dog"]) if named else datasets.Value("int64")
    objects = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(kind)}
    features = {"image_id": datasets.Value("int64"), "image": datasets.Image(), "width": datasets.Value("int32")}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features | {"objects": objects}))


def as_saved(root: Path, photos: Path) -> None:
    asked(photos).save_to_disk(str(root))


def as_saved_splits(root: Path, photos: Path) -> None:
    datasets.DatasetDict({"train": things(photos), "test": things(photos)}).save_to_disk(str(root))


def as_parquet(root: Path, photos: Path) -> None:
    """As push_to_hub leaves a data set, with the pictures inside."""
    from datasets.table import embed_table_storage

    (root / "data").mkdir(parents=True)
    embedded = things(photos).with_format("arrow").map(embed_table_storage, batched=True)
    embedded.with_format(None).to_parquet(root / "data" / "train-00000-of-00001.parquet")


def as_pictures(root: Path, _: Path) -> None:
    """The library's form for folders of pictures; categories are texts here."""
    photos(root / "train")
    lines = []
    for name in NAMES:
        boxes = [(box, kind) for kind, of in (("cat", CATS), ("red_dog", DOGS)) for box in of.get(name, [])]
        sides = [[x1, y1, x2 - x1, y2 - y1] for (x1, y1, x2, y2), _ in boxes]
        lines.append({"file_name": name, "objects": {"bbox": sides, "categories": [kind for _, kind in boxes]}})
    (root / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


LAYOUTS = (as_saved, as_saved_splits, as_parquet, as_pictures)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_folders_of_the_library(layout: Any, tmp_path: Path) -> None:
    root = tmp_path / "my_set"
    layout(root, tmp_path / "photos")
    data = open_dataset(f"hub:{root}", "train")
    assert found(data) == WANTED and not data.dropped and data.name == "my_set"
    parts = [found(open_dataset(f"hub:{root}", split, holdout=0.3)) for split in ("train", "val")]
    train, val = ({name for name, *_ in part} for part in parts)
    assert (len(train), len(val)) == (7, 3) and not train & val and sorted(parts[0] + parts[1]) == WANTED
    there = "test, train" if layout is as_saved_splits else "train"
    with pytest.raises(
        DataError, match=f"has no split 'val' there, it has {there}: name one with --split; --holdout 0.1"
    ):
        open_dataset(f"hub:{root}", "val")


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = asked(tmp_path / "photos")
    rows = rows.rename_columns({"image": "jpg", "query": "what", "boxes": "where"})
    rows.save_to_disk(str(tmp_path / "set"))
    name = f"hub:{tmp_path / 'set'}"
    with pytest.raises(
        DataError, match="no column is known to hold its query, category or text, it has jpg, what, where"
    ):
        open_dataset(name, "train")
    assert found(open_dataset(name, "train", data_columns="query=what,boxes=where")) == WANTED
    for columns, sentence in (("query=wat", "no column 'wat', it has"), ("ask=what", "no part 'ask' of a question")):
        with pytest.raises(DataError, match=sentence):
            open_dataset(name, "train", data_columns=columns)
    flags = ["--data", name, "--data_options", "data_columns=query=what,boxes=where", "box_format=xyxy"]
    config = TrainConfig.from_args(flags, known={"data": ["hub"]})
    assert found(open_dataset(config.data, "train", config.data_root, **config.dataset_options)) == WANTED


def test_numbers_without_names_are_no_question(tmp_path: Path) -> None:
    things(tmp_path / "photos", named=False).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match="row 0 has the category 0, which has no name"):
        open_dataset(f"hub:{tmp_path / 'set'}", "train")


def test_pictures_elsewhere_are_not_read(tmp_path: Path) -> None:
    """A table from elsewhere may name any file of this machine."""
    photos(tmp_path / "secret")
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "secret" / "00.jpg")], "query": ["cat"]})
    rows.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match="lies outside of the data set"):
        open_dataset(f"hub:{tmp_path / 'set'}", "train")[0]


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(tmp_path / "photos", NAMES[:1]).save_to_disk(str(tmp_path / "set"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="sett: there is no such folder, did you mean set?"):
        open_dataset("hub:sett", "train")
    with pytest.raises(DataError, match="owner/none: there is no such folder, and the hub cannot be reached"):
        open_dataset("hub:owner/none", "train")
    with pytest.raises(DataError, match="name a folder or a data set of the hub"):
        open_dataset("hub", "train")
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(DataError, match="needs datasets 4 or newer"):
        open_dataset("hub:set", "train")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r'hub:set needs the package datasets: pip install "activeo3\[hub\]"'):
        open_dataset("hub:set", "train")


def test_the_name_of_a_folder_is_no_split(tmp_path: Path) -> None:
    """``coco:val`` names a split; ``hub:folder`` names the data itself, and needs no data root."""
    asked(tmp_path / "photos").save_to_disk(str(tmp_path / "a set"))
    name = f"hub:{tmp_path / 'a set'}"
    config = EvalConfig.from_args(
        ["--checkpoint", "x", "--benchmark", name, "--split", "train"], {"benchmark": ["hub"]}
    )
    assert found(opened(name, "train", 0, config)) == WANTED
    assert benchmark_of(name, config).name == "a-set"
    with pytest.raises(ConfigError, match="--data coco lives on disk"):
        TrainConfig(data=("coco",))


def test_parts_of_objects_in_both_forms() -> None:
    """A list of objects, or an object of lists: the library has given either."""
    lists = {"objects": {"bbox": [[1], [2]]}}
    objects = {"objects": [{"bbox": [1]}, {"bbox": [2]}]}
    assert [data_hub._value(row, "objects.bbox") for row in (lists, objects)] == [[[1], [2]]] * 2
    assert np.array(data_hub._value({"a": 1}, "a")) == 1
