"""data_soda.py: what was read is read again exactly when a file, or the program, has changed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_data_soda import aerial, aerial_set

from activeo3 import data_soda, data_tiles
from activeo3.data import open_dataset
from activeo3.data_set import Source
from activeo3.data_soda import open_soda_a, remembered
from activeo3.data_tiles import counted

SQUARE = [0, 0, 9, 0, 9, 9, 0, 9]


class Reads:
    """Counts how often the files are read."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.count = paths, 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.count += 1
        return {"text": np.array([path.read_text() for path in self.paths]), "none": np.array([], dtype=np.str_)}


def test_read_once_until_something_changes(tmp_path: Path) -> None:
    paths, code, store = [tmp_path / name for name in "ab"], tmp_path / "code.py", tmp_path / "kept.npz"
    for path in (*paths, code):
        path.write_text("one")
    read = Reads(paths)

    def texts() -> list[str]:
        found = remembered(store, paths, [code], read)
        assert found["none"].tolist() == []
        return found["text"].tolist()

    assert [texts() for _ in range(3)] == [["one", "one"]] * 3 and read.count == 1
    paths[0].write_text("longer")
    assert texts() == ["longer", "one"] and read.count == 2
    paths[1].write_text("two")  # as long as before
    os.utime(paths[1], ns=(1, 1))
    assert texts() == ["longer", "two"] and read.count == 3
    code.write_text("another program")
    assert texts() == ["longer", "two"] and read.count == 4
    paths[0].rename(tmp_path / "c")
    paths[0] = tmp_path / "c"
    assert texts() == ["longer", "two"] and read.count == 5
    del paths[1]
    assert texts() == ["longer"] and read.count == 6 and texts() == ["longer"] and read.count == 6
    whole = store.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"no archive", np.array(3).tobytes()):
        store.write_bytes(torn)
        count = read.count
        assert texts() == ["longer"] and read.count == count + 1 and store.read_bytes() != torn
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "code.py", "kept.npz"]


def test_a_kept_file_is_never_run(tmp_path: Path) -> None:
    """An array of objects is a pickle, and a pickle can name any function."""
    path, store = tmp_path / "a", tmp_path / "kept.npz"
    path.write_text("x")
    read = Reads([path])
    remembered(store, [path], [], read)
    np.savez(store, version=np.load(store)["version"], text=np.array([{"a": 1}], dtype=object))
    assert remembered(store, [path], [], read)["text"].tolist() == ["x"] and read.count == 2


def test_where_nothing_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("x")
    read = Reads([path])
    for store, keep in ((tmp_path / "no" / "kept.npz", True), (tmp_path / "kept.npz", False)):
        assert remembered(store, [path], [], read, keep)["text"].tolist() == ["x"]
    assert read.count == 2 and list(tmp_path.iterdir()) == [path]


def test_a_bar_for_what_takes_long(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        list(counted(["a", "b"], "reading")) == ["a", "b"] and capsys.readouterr().err == ""
    )  # done before anybody waits
    tqdm = data_tiles.tqdm
    monkeypatch.setattr(data_tiles, "tqdm", lambda *a, **k: tqdm(*a, **(k | {"delay": 0})))
    assert list(counted(["a", "b"], "reading")) == ["a", "b"] and "reading: 100%" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert list(counted(["a", "b"], "reading")) == ["a", "b"] and capsys.readouterr().err == ""


# ---------------------------------------------------------------------- SODA-A


def test_soda_a_is_the_same_from_its_files_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "a": aerial([(4, SQUARE), (2, [20, 20, 40, 25, 30, 30]), (4, [1, 1, 2, 2]), (9, [50, 50, 90, 50, 90, 90])]),
        "b": aerial([(4, [100, 100, 400, 100, 400, 120])]),
    }
    root = aerial_set(tmp_path, "val", files)
    fresh = open_dataset("soda_a", "val", root, tile=0)
    store = tmp_path / "SODA-A" / "Annotations" / "val.index.npz"
    assert store.is_file()
    monkeypatch.setattr(data_soda, "read_json", lambda path: 1 / 0)  # not one file is opened
    kept = open_dataset("soda_a", "val", root, tile=0)
    assert kept.dropped == fresh.dropped != () and kept.paths == fresh.paths and len(kept) == len(fresh) == 3
    for one, other in zip(kept, fresh):
        assert (one.id, one.query, one.image_id, one.category_id) == (
            other.id,
            other.query,
            other.image_id,
            other.category_id,
        )
        assert np.array_equal(one.boxes_px, other.boxes_px) and np.array_equal(one.crowd, other.crowd)
        assert np.array_equal(one.areas, other.areas)
    monkeypatch.undo()
    content = json.loads((tmp_path / "SODA-A" / "Annotations" / "val" / "b.json").read_text())
    content["annotations"][0]["category_id"] = 0
    (tmp_path / "SODA-A" / "Annotations" / "val" / "b.json").write_text(json.dumps(content))
    assert [e.query for e in open_dataset("soda_a", "val", root, tile=0)][-1] == "airplane"
    shutil.move(tmp_path / "SODA-A" / "Annotations" / "val" / "b.json", tmp_path)
    assert {e.image_id for e in open_dataset("soda_a", "val", root, tile=0)} == {1}


def test_a_survey_writes_nothing(tmp_path: Path) -> None:
    root = aerial_set(tmp_path, "val", {"a": aerial([(4, SQUARE)])})
    open_soda_a(Source("soda_a", "val", root, keep=False))
    assert not list(tmp_path.rglob("*.npz"))
