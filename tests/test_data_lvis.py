"""data_lvis.py: the paper's rules on LVIS files of both releases, the drawing, and the file it leaves."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import lvis_set, lvis_v1
from hypothesis import given, strategies
from pycocotools.coco import COCO
from real_data import real_file

from activeo3 import data_lvis
from activeo3.data import open_dataset
from activeo3.data_annotations import read_coco
from activeo3.data_io import DataError
from activeo3.data_lvis import CROWDED, PER_CATEGORY, SMALL_PX, TOTAL, candidates, draw
from activeo3.data_set import Source
from activeo3.metric_rules import LVIS

# ---------------------------------------------------------------------- the files


@pytest.mark.parametrize("pictures", ["coco", "lvis"])
def test_small_and_dense_questions(tmp_path: Path, pictures: str) -> None:
    root = lvis_set(tmp_path, lvis_v1(), pictures=pictures)
    small, dense = (open_dataset(name, "val", root) for name in ("lvis_small", "lvis_dense"))
    assert [(e.id, e.category_id) for e in small] == [("11:pin", 7)]  # not the 10 x 10 cup: not below 100
    assert [(e.id, e.category_id) for e in dense] == [("12:dog", 5), ("12:pin", 7)]
    pin = small[0]
    assert pin.boxes_px.tolist() == [[0, 0, 9.9, 9.9], [40, 0, 55, 15]]  # all instances, the larger one too
    assert pin.areas == pytest.approx([98.01, 225])
    assert pin.image.getpixel((0, 0))[0] == pytest.approx(11, abs=2)
    assert dense[0].image.getpixel((0, 0))[0] == pytest.approx(12, abs=2)
    assert pin.exhaustive is False and dense[0].exhaustive is True
    assert [example.frequency for example in (pin, *dense)] == ["r", "f", "r"]
    assert pin.rules is LVIS
    assert len(small.paths) == 3 and all(path.is_file() for path in small.paths)


def test_v05_files_name_pictures_as_coco_2014_did(tmp_path: Path) -> None:
    content = lvis_v1()
    for row in content["images"]:
        row["file_name"] = f"COCO_val2014_{row['id']:012}.jpg"
    data = open_dataset("lvis_small", "val", lvis_set(tmp_path, content, "lvis_v0.5_val.json"))
    assert data[0].size_px == (64, 48)


def test_the_newer_release_wins(tmp_path: Path) -> None:
    root = lvis_set(tmp_path, lvis_v1())
    (tmp_path / "lvis" / "lvis_v0.5_val.json").write_text("{}")
    assert len(open_dataset("lvis_small", "val", root)) == 1
    with pytest.raises(
        DataError,
        match="no lvis_v1_train.json or lvis_v0.5_train.json or lvis_train_100.json in lvis or lvis/annotations or lvis_v1/annotations or coco/ann",
    ):
        open_dataset("lvis_small", "train", root)
    with pytest.raises(DataError, match="lvis_dense: there is no split 'test', choose one of train, val"):
        open_dataset("lvis_dense", "test", root)


def test_a_set_without_its_pictures_is_refused_at_once(tmp_path: Path) -> None:
    root = lvis_set(tmp_path, lvis_v1())
    for path in (tmp_path / "coco").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="000000000013.jpg: neither this nor any other picture of lvis_small is there"):
        open_dataset("lvis_small", "val", root)


def test_a_rule_that_nothing_fits_is_a_sentence(tmp_path: Path) -> None:
    content = lvis_v1()
    content["annotations"] = content["annotations"][:4]
    with pytest.raises(DataError, match="lvis_v1_val.json: no question of split 'val' fits the rule of lvis_dense"):
        open_dataset("lvis_dense", "val", lvis_set(tmp_path, content))


def test_a_category_that_was_not_checked_is_never_asked(tmp_path: Path) -> None:
    """In 11 and 13 there is no dog, checked or not: no question. Every question has a box that counts."""
    root = lvis_set(tmp_path, lvis_v1())
    asked = {(e.image_id, e.query) for name in ("lvis_small", "lvis_dense") for e in open_dataset(name, "val", root)}
    boxes = {(row["image_id"], row["category_id"]) for row in lvis_v1()["annotations"]}
    assert asked <= {(image, {7: "pin", 3: "coffee cup", 5: "dog"}[category]) for image, category in boxes}


@pytest.mark.parametrize("value", ["3", [3, True], {"a": 3}])
def test_a_broken_list_of_partly_checked_categories(tmp_path: Path, value: Any) -> None:
    content = lvis_v1()
    content["images"][1]["not_exhaustive_category_ids"] = value
    data = open_dataset("lvis_dense", "val", lvis_set(tmp_path, content))
    assert [example.id for example in data] == ["12:dog", "12:pin"]
    assert "image 11 has" in data.dropped[0] and "not_exhaustive_category_ids" in data.dropped[0]


# ---------------------------------------------------------------------- the drawing


def many(seed: int, size: int, categories: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    return sorted({(int(rng.integers(size)), int(rng.integers(categories))) for _ in range(size)})


@given(
    total=strategies.integers(0, 80), limit=strategies.integers(0, 4), seed=strategies.integers(0, 50),
    sizes=strategies.tuples(strategies.integers(0, 60), strategies.integers(0, 60)),
)  # fmt: skip
def test_what_is_drawn_keeps_the_rules(total: int, limit: int, seed: int, sizes: tuple[int, int]) -> None:
    found = {"a": many(1, sizes[0], 9), "b": many(2, sizes[1], 9)}
    drawn = draw(found, total, limit, seed)
    assert drawn == draw(found, total, limit, seed)
    taken = [key for name in found for key in drawn[name]]
    used = Counter(category for _, category in taken)
    assert len(taken) <= total and (not limit or max(used.values(), default=0) <= limit)
    for name in found:
        assert set(drawn[name]) <= set(found[name]) and len(set(drawn[name])) == len(drawn[name])
        assert drawn[name] == sorted(drawn[name])
        left = [category for image, category in found[name] if (image, category) not in drawn[name]]
        # What was left lying could not have been taken: no place, or its category was full.
        assert len(taken) == total or all(limit and used[category] == limit for category in left)


def test_both_sets_get_their_half_and_the_rest_of_the_other() -> None:
    found = {"a": [(k, k) for k in range(100)], "b": [(k, k) for k in range(10)]}
    assert {name: len(keys) for name, keys in draw(found, 40, 0, seed=0).items()} == {"a": 30, "b": 10}
    found["b"] = [(k, k) for k in range(100)]
    assert {name: len(keys) for name, keys in draw(found, 40, 0, seed=0).items()} == {"a": 20, "b": 20}
    assert draw(found, 40, 0, seed=0) != draw(found, 40, 0, seed=1)


def test_the_papers_numbers() -> None:
    assert (SMALL_PX, CROWDED) == (100, 15)
    assert TOTAL == {"train": 10_000, "val": 1_200} and PER_CATEGORY["val"] == 3


# ---------------------------------------------------------------------- the file it leaves


def saved(root: str) -> Path:
    (path,) = (Path(root) / "lvis").glob("queries_*")
    assert path.name == "queries_lvis_v1_val_seed0.json"
    return path


def test_a_selection_is_written_and_used_again(tmp_path: Path) -> None:
    root = lvis_set(tmp_path, lvis_v1())
    open_dataset("lvis_small", "val", root)
    content = json.loads(saved(root).read_text())
    assert content["lvis_small"] == [[11, 7]] and content["lvis_dense"] == [[12, 5], [12, 7]]
    content["lvis_dense"] = [[13, 3]]  # somebody else's selection
    saved(root).write_text(json.dumps(content))
    assert [example.id for example in open_dataset("lvis_dense", "val", root)] == ["13:coffee cup"]


def test_nothing_is_written_when_it_must_not_be(tmp_path: Path) -> None:
    root = lvis_set(tmp_path, lvis_v1())
    assert len(data_lvis.open_lvis(Source("lvis_small", "val", root, keep=False))) == 1
    assert list((tmp_path / "lvis").glob("queries_*")) == []


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only")

    root = lvis_set(tmp_path, lvis_v1())
    monkeypatch.setattr(Path, "write_text", refuse)
    assert len(open_dataset("lvis_small", "val", root)) == 1
    assert list((tmp_path / "lvis").glob("queries_*")) == []


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"seed": 4}, "this was selected by other rules"),
        ({"per_category": 9}, "this was selected by other rules"),
        ({"lvis_small": [[11, 5]]}, "image 11 has no box of category 5, delete it and it is drawn again"),
        ({"lvis_small": [[99, 7]]}, "image 99 has no box of category 7"),
        ({"lvis_small": [[11]]}, "'lvis_small' is no list of pairs"),
        ({"lvis_dense": None}, "'lvis_dense' is no list of pairs"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused(tmp_path: Path, change: dict, sentence: str) -> None:
    root = lvis_set(tmp_path, lvis_v1())
    open_dataset("lvis_small", "val", root)
    saved(root).write_text(json.dumps(json.loads(saved(root).read_text()) | change))
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        open_dataset("lvis_small", "val", root)
    assert "queries_lvis_v1_val_seed0.json" in str(caught.value)


# ---------------------------------------------------------------------- real annotations


def test_real_lvis_annotations_by_pycocotools(capsys: pytest.CaptureFixture) -> None:
    """The same questions and candidates by pycocotools' own index and plain loops."""
    path = real_file("lvis/lvis_val_100.json")
    coco = COCO(str(path))
    index = read_coco(path, path.parent / "images", url_parts=1)
    pairs = {(row["image_id"], row["category_id"]) for row in coco.anns.values()}
    assert {(q.image_id, q.category_id) for q in index.questions} == pairs and index.dropped == ()
    small, dense = set(), set()
    for question in index.questions:
        key = (question.image_id, question.category_id)
        rows = coco.loadAnns(coco.getAnnIds(imgIds=[key[0]], catIds=[key[1]]))
        assert sorted(row["area"] for row in rows) == sorted(question.areas.tolist())
        x, y, w, h = np.array([row["bbox"] for row in rows]).T
        width, height = index.pictures[key[0]].size
        by_hand = np.stack([x, y, np.minimum(x + w, width), np.minimum(y + h, height)], axis=1)
        assert np.allclose(sorted(by_hand.tolist()), sorted(question.boxes_px.tolist()), atol=1e-9)
        assert question.query == coco.cats[key[1]]["name"].replace("_", " ")
        small |= {key} if any(row["area"] < 100 for row in rows) else set()
        dense |= {key} if len(coco.imgToAnns[key[0]]) > 15 else set()
    found = candidates(index.questions)
    assert set(found["lvis_small"]) == small and set(found["lvis_dense"]) == dense
    assert len({image for image, _ in dense}) == 20  # as its README says
    assert sum(int((q.areas < 100).sum()) for q in index.questions) == 134


def test_real_lvis_selection_keeps_the_rules(tmp_path: Path) -> None:
    path = real_file("lvis/lvis_val_100.json")
    (tmp_path / "lvis").mkdir()
    (tmp_path / "lvis" / path.name).write_bytes(path.read_bytes())
    sets = [data_lvis.open_lvis(Source(name, "val", str(tmp_path))) for name in data_lvis.RULES]
    used = Counter(question.category_id for data in sets for question in data.items)
    assert max(used.values()) == 3 and min(map(len, sets)) > 20
    partly = {row["id"]: row["not_exhaustive_category_ids"] for row in json.loads(path.read_text())["images"]}
    assert any(partly.values())
    index = read_coco(path, tmp_path, url_parts=2)
    for image_id, picture in index.pictures.items():
        assert picture.partly == frozenset(partly[image_id])
    marks = Counter(index.frequency[category] for category in used)
    assert set(marks) <= {"r", "c", "f"} and len(marks) > 1


# ---------------------------------------------------------------------- one file, two rules, any seed


def test_both_rules_read_the_annotations_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lvis_set(tmp_path, lvis_v1())
    reads: list[Path] = []
    monkeypatch.setattr(
        data_lvis, "read_coco", lambda path, *args, **options: reads.append(path) or read_coco(path, *args, **options)
    )
    small, dense = (open_dataset(name, "val", root) for name in ("lvis_small", "lvis_dense"))
    assert len(reads) == 1 and len(open_dataset(["lvis_small", "lvis_dense"], "val", root)) == len(small) + len(dense)
    assert len(reads) == 1
    content = lvis_v1()
    content["categories"][0]["name"] = "needle"
    (tmp_path / "lvis" / "lvis_v1_val.json").write_text(json.dumps(content))
    again = open_dataset("lvis_small", "val", root)
    assert len(reads) == 2 and "needle" in {question.query for question in again.items}


def test_the_selection_seed_reaches_the_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOTAL, "val", 2)
    root = lvis_set(tmp_path, lvis_v1())
    seen = set()
    for seed in range(6):
        data = open_dataset(["lvis_small", "lvis_dense"], "val", root, seed=seed)
        assert (tmp_path / "lvis" / f"queries_lvis_v1_val_seed{seed}.json").is_file() and len(data) == 2
        parts = [open_dataset(name, "val", root, seed=seed) for name in ("lvis_small", "lvis_dense")]
        seen.add(tuple((q.image_id, q.category_id) for part in parts for q in part.items))
    assert len(seen) > 1
