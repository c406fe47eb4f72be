"""data_soda.py: SODA-A's and SODA-D's official files, ignored areas, tiles by a naive second opinion."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_folders import aerial, aerial_set, driving_set, gradient
from hypothesis import given, strategies
from PIL import Image

from activeo3 import data_soda, data_tiles, eval_output
from activeo3.data import open_dataset
from activeo3.data_annotations import Index, Picture, Question
from activeo3.data_io import DataError
from activeo3.data_set import Source
from activeo3.data_soda import open_soda_a, remembered
from activeo3.data_tiles import counted
from activeo3.metric_rules import SODA_A, SODA_D

# ---------------------------------------------------------------------- the files


@pytest.mark.parametrize("images", ["Images", "Images/test"])
def test_polygons_become_boxes(tmp_path: Path, images: str) -> None:
    rotated = [10.0, 20.0, 30.0, 10.0, 40.0, 30.0, 20.0, 40.0]
    five = [100, 50, 110, 40, 120, 50, 115, 60, 105, 60]
    root = aerial_set(
        tmp_path,
        "test",
        {"00007": aerial([(0, rotated), (2, five), (0, rotated)]), "00002": aerial([(8, five)])},
        images,
    )
    data = open_dataset("soda_a", "test", root, tile=0)
    assert [(e.id, e.query) for e in data] == [
        ("1:windmill", "windmill"), ("2:airplane", "airplane"), ("2:small vehicle", "small vehicle")
    ]  # fmt: skip
    assert data[1].boxes_px.tolist() == [[10, 10, 40, 40]] * 2 and data[1].areas.tolist() == [50, 50]
    assert data[2].boxes_px.tolist() == [[100, 40, 120, 60]] and data[2].category_id == 2
    assert [path.name for path in data.paths] == ["00002.jpg", "00007.jpg"]
    assert data.dropped == () and data[0].rules is SODA_A


def test_ignored_areas_are_crowds_of_every_question(tmp_path: Path) -> None:
    boxes = [
        {"category_id": 1, "bbox": [10, 10, 5, 9]}, {"category_id": 5, "bbox": [50, 10, 5, 5]},
        {"category_id": 10, "bbox": [0, 100, 300, 50]}, {"category_id": 10, "bbox": [200, 0, 20, 20]},
    ]  # fmt: skip
    data = open_dataset("soda_d", "val", driving_set(tmp_path, "val", boxes), tile=0)
    assert [(e.query, e.image_id, e.category_id) for e in data] == [("people", 41, 1), ("vehicle", 41, 5)]
    for example in data:
        assert example.boxes_px[1:].tolist() == [[0, 100, 300, 150], [200, 0, 220, 20]]
        assert example.crowd.tolist() == [False, True, True] and example.asked_for.sum() == 1
    assert data[0].boxes_px[0].tolist() == [10, 10, 15, 19]
    assert {example.rules for example in data} == {SODA_D} and not data[0].frequency


def test_ignored_areas_of_one_picture_stay_there(tmp_path: Path) -> None:
    square = [0, 0, 9, 0, 9, 9, 0, 9]
    root = aerial_set(tmp_path, "val", {"a": aerial([(4, square), (9, square)]), "b": aerial([(4, square)])})
    first, second = open_dataset("soda_a", "val", root, tile=0)
    assert first.crowd.tolist() == [False, True] and second.crowd.tolist() == [False]


BROKEN = [
    ({"images": []}, "needs one picture under 'images'"),
    ({"annotations": None}, "a list under 'annotations'"),
    (
        {"annotations": [{"category_id": 1, "poly": [0, 0, 9, 0, 9, "9"]}]},
        "annotation 0 has the poly [0, 0, 9, 0, 9, '9']",
    ),
    ({"annotations": [{"category_id": 1, "poly": [0, 0, 9, float("nan"), 9, 9]}]}, "annotation 0 has the poly"),
    ({"annotations": [{"category_id": 1}]}, "annotation 0 has no 'poly'"),
    (
        {"annotations": [{"category_id": 10, "poly": [0, 0, 9, 0, 9, 9]}]},
        "annotation 0 names the unknown category id 10",
    ),
    ({"annotations": [{"poly": [0, 0, 9, 0, 9, 9]}]}, "annotation 0 has no 'category_id'"),
    ({"images": {"file_name": "a.jpg", "width": 5}}, "its picture has no 'height'"),
    ({"images": {"file_name": "../a.jpg", "width": 5, "height": 5}}, "its picture has a file_name outside"),
]


@pytest.mark.parametrize("change, sentence", BROKEN)
def test_a_broken_file_is_left_out_with_one_sentence(tmp_path: Path, change: dict, sentence: str) -> None:
    square = [0, 0, 9, 0, 9, 9, 0, 9]
    root = aerial_set(
        tmp_path, "val", {"a": aerial([(4, square)]), "b": aerial([(4, square)]), "c": aerial([(4, square)])}
    )
    path = tmp_path / "SODA-A" / "Annotations" / "val" / "b.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    data = open_dataset("soda_a", "val", root, tile=0)
    assert [example.id for example in data] == ["1:ship", "3:ship"]  # numbered as they were
    (said,) = data.dropped
    assert sentence in said and "b.json" in said and "\n" not in said


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_an_empty_file_among_others_is_left_out(tmp_path: Path, content: str) -> None:
    root = aerial_set(tmp_path, "val", {name: aerial([(4, [0, 0, 9, 0, 9, 9, 0, 9])]) for name in "ab"})
    folder = tmp_path / "SODA-A" / "Annotations" / "val"
    (folder / "a.json").write_text(content)
    data = open_dataset("soda_a", "val", root, tile=0)
    assert [example.id for example in data] == ["2:ship"] and len(data.dropped) == 1 and "a.json" in data.dropped[0]
    (folder / "b.json").write_text(content)
    with pytest.raises(
        DataError, match=r"there is no picture in its 2 files. Nothing in it can be used: .*a.json.* \(and 1 more\)"
    ):
        open_dataset("soda_a", "val", root)


def test_lines_and_points_are_left_out_and_named(tmp_path: Path) -> None:
    square, outside = [0, 0, 9, 0, 9, 9, 0, 9], [400, 0, 409, 0, 409, 9, 400, 9]
    polys = [(4, [1, 1, 2, 2]), (4, square), (4, [5, 5, 8, 5, 9, 5, 5, 5]), (4, outside)]
    data = open_dataset("soda_a", "val", aerial_set(tmp_path, "val", {"a": aerial(polys)}), tile=0)
    assert len(data) == 1 and data[0].boxes_px.tolist() == [[0, 0, 9, 9]]
    assert [sentence.split("a.json: ")[1].split(" (")[0] for sentence in data.dropped] == [
        "annotation 0 is no polygon", "annotation 2 has no area", "annotation 3 lies outside of its picture"
    ]  # fmt: skip


def test_an_empty_split_and_twins_of_a_mac(tmp_path: Path) -> None:
    root = aerial_set(tmp_path, "val", {"a": aerial([(9, [0, 0, 9, 0, 9, 9, 0, 9])])})
    with pytest.raises(DataError, match="soda_a has no question in its split 'val'"):
        open_dataset("soda_a", "val", root)
    folder = tmp_path / "SODA-A" / "Annotations" / "val"
    (folder / "a.json").rename(folder / "._a.json")
    with pytest.raises(
        DataError,
        match=r"there is no \*.json in SODA-A/Annotations/val or SODA/SODA-A/Annotations/val or SODA-A/rawData/val",
    ):
        open_dataset("soda_a", "val", root)
    with pytest.raises(DataError, match="soda_d: there is no split 'dev', choose one of test, train, val"):
        (tmp_path / "SODA-D").mkdir()
        open_dataset("soda_d", "dev", root)


def test_tiles_of_pictures_with_ids_of_any_kind(tmp_path: Path) -> None:
    """A tile's number is one of ours, what it is from has the file's own id."""
    root = driving_set(
        tmp_path, "val", [{"bbox": [5, 5, 20, 20], "category_id": 1}, {"bbox": [250, 150, 20, 20], "category_id": 1}]
    )
    path = tmp_path / "SODA-D" / "Annotations" / "val.json"
    content = json.loads(path.read_text())
    content["images"][0]["id"] = "3fa8-41"
    path.write_text(
        json.dumps(content | {"annotations": [row | {"image_id": "3fa8-41"} for row in content["annotations"]]})
    )
    data = open_dataset("soda_d", "val", root, tile=200, tile_overlap=20)
    assert [(e.image_id, e.source.whole_id) for e in data] == [(10000, "3fa8-41"), (10001, "3fa8-41")]
    assert [row["id"] for row in eval_output.truth(list(data))["images"]] == [10000, 10001]
    assert eval_output.truth(list(open_dataset("soda_d", "val", root, tile=0)))["images"][0]["id"] == "3fa8-41"


# ---------------------------------------------------------------------- tiles


def authors_starts(side: int, tile: int, overlap: int) -> list[int]:
    """The same by walking: a step is tile - overlap, the last tile is moved back to the border."""
    found, at = [], 0
    while True:
        if at + tile >= side:
            return found + [max(side - tile, 0)]
        found.append(at)
        at += tile - overlap


@given(
    side=strategies.integers(1, 400), tile=strategies.integers(1, 120), overlap=strategies.integers(0, 119),
)  # fmt: skip
def test_tiles_lie_as_the_authors_lay_them(side: int, tile: int, overlap: int) -> None:
    if overlap >= tile:
        return
    found = data_tiles.windows((side, side), tile, overlap)
    starts = authors_starts(side, tile, overlap)
    assert found == [(x, y, min(x + tile, side), min(y + tile, side)) for x in starts for y in starts]
    covered = np.zeros(side, dtype=int)
    for x in starts:
        covered[x : x + tile] += 1
    assert (covered > 0).all()
    for start in range(max(0, side - overlap) + 1):  # whatever is as small as the overlap is whole somewhere
        assert any(x <= start and min(start + overlap, side) <= x + tile for x in starts)


def test_the_papers_numbers() -> None:
    assert (Source.tile, Source.tile_overlap) == (800, 150)
    assert len(data_tiles.windows((4761, 2777), 800, 150)) == 8 * 5


def naive_tile(boxes: np.ndarray, crowd: np.ndarray, window: tuple[int, ...], enough: float) -> list[tuple]:
    """Pixel by pixel: what of each box is inside a tile."""
    found = []
    for (x1, y1, x2, y2), is_crowd in zip(boxes.astype(int), crowd):
        pixels = [(x, y) for x in range(x1, x2) for y in range(y1, y2)]
        inside = [
            (x - window[0], y - window[1])
            for x, y in pixels
            if window[0] <= x < window[2] and window[1] <= y < window[3]
        ]
        if inside:
            xs, ys = zip(*inside)
            box = (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
            found.append((box, bool(is_crowd or len(inside) / len(pixels) < enough), len(inside)))
    return found


@pytest.mark.parametrize("enough", [0.7, float(np.nextafter(0.4, 1))])
def test_boxes_in_tiles_by_a_naive_loop(enough: float) -> None:
    rng = np.random.default_rng(3)
    corner = rng.integers(0, 90, (40, 2))
    boxes = np.concatenate([corner, np.minimum(corner + rng.integers(1, 12, (40, 2)), [100, 70])], axis=1).astype(float)
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    crowd = rng.random(len(boxes)) < 0.2
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    picture = Picture(Path("x.jpg"), (100, 70))
    whole = Index({5: picture}, (Question(5, 1, "a", boxes, areas, crowd),), (), (Path("x.jpg"),))
    cut = data_tiles.cut(whole, tile=40, overlap=10, enough=enough)
    by_tile = {question.image_id: question for question in cut.questions}
    expected = 0
    for number, window in enumerate(data_tiles.windows((100, 70), 40, 10)):
        wanted = naive_tile(boxes, crowd, window, enough)
        found = by_tile.get(5 * data_tiles.TILES + number)
        if all(is_crowd for _, is_crowd, _ in wanted):
            assert found is None
            continue
        expected += 1
        assert cut.pictures[found.image_id].window == window and cut.pictures[found.image_id].source_id == 5
        assert [tuple(map(int, box)) for box in found.boxes_px] == [box for box, _, _ in wanted]
        assert found.crowd.tolist() == [is_crowd for _, is_crowd, _ in wanted]
        assert found.areas == pytest.approx([size for _, _, size in wanted])
    assert expected == len(cut.questions) > 5


@pytest.mark.parametrize("inside, counts", [(3, False), (4, False), (5, True)])
def test_forty_percent_are_not_enough_in_soda_d(tmp_path: Path, inside: int, counts: bool) -> None:
    boxes = [{"category_id": 1, "bbox": [100 - inside, 10, 10, 10]}, {"category_id": 1, "bbox": [20, 20, 5, 5]}]
    data = open_dataset("soda_d", "val", driving_set(tmp_path, "val", boxes, (150, 100)), tile=100, tile_overlap=0)
    first = data[0]
    assert first.source.window_px == (0, 0, 100, 100)
    assert first.boxes_px.tolist() == [[100 - inside, 10, 100, 20], [20, 20, 25, 25]]
    assert first.crowd.tolist() == [not counts, False]


@pytest.mark.parametrize("inside, counts", [(6, False), (7, True)])
def test_seventy_percent_are_enough_in_soda_a(tmp_path: Path, inside: int, counts: bool) -> None:
    left = 100 - inside
    polys = [(0, [left, 10, left + 10, 10, left + 10, 20, left, 20]), (0, [20, 20, 25, 20, 25, 25, 20, 25])]
    root = aerial_set(tmp_path, "val", {"a": aerial(polys, (150, 100))})
    first = open_dataset("soda_a", "val", root, tile=100, tile_overlap=0)[0]
    assert first.crowd.tolist() == [not counts, False]
    assert first.areas == pytest.approx([50.0 * inside / 10, 50.0])  # a polygon's share is its box's


def test_a_tile_shows_its_part_of_the_picture(tmp_path: Path) -> None:
    boxes = [{"category_id": 1, "bbox": [150, 120, 20, 20]}]
    root = driving_set(tmp_path, "test", boxes)
    data = open_dataset("soda_d", "test", root, tile=100, tile_overlap=50)
    whole = np.asarray(Image.open(tmp_path / "SODA-D" / "Images" / "00041.jpg"))
    assert len(data) > 1  # neighbours share it
    for example in data:
        x1, y1, x2, y2 = example.source.window_px
        assert np.array_equal(np.asarray(example.image), whole[y1:y2, x1:x2])
        assert example.size_px == (100, 100) and example.source.whole_id == 41
        assert example.image_id // data_tiles.TILES == 41
        assert (example.boxes_px[0] + [x1, y1, x1, y1]).tolist() == [150, 120, 170, 140]
    assert len({example.image_id for example in data}) == len(data)


def test_our_coco_files_say_where_a_tile_is_from(tmp_path: Path) -> None:
    """The truth file alone leads from a box in a tile back to the annotation of the whole picture."""
    boxes = [{"category_id": 1, "bbox": [150, 120, 20, 20]}]
    data = open_dataset("soda_d", "test", driving_set(tmp_path, "test", boxes), tile=100, tile_overlap=50)
    content = eval_output.truth(list(data))
    assert len(content["images"]) == len(data) > 1
    windows = {row["id"]: row["window"] for row in content["images"]}
    assert {(row["source_id"], row["file_name"]) for row in content["images"]} == {(41, "00041.jpg")}
    for row in content["annotations"]:
        (x, y, *sides), (left, top, *_) = row["bbox"], windows[row["image_id"]]
        assert [x + left, y + top, *sides] == boxes[0]["bbox"]
    whole = eval_output.truth(list(open_dataset("soda_d", "test", str(tmp_path), tile=0, tile_overlap=0)))
    assert [sorted(row) for row in whole["images"]] == [["file_name", "height", "id", "width"]]


def test_training_pictures_are_drawn_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square = [0, 0, 9, 0, 9, 9, 0, 9]
    root = aerial_set(tmp_path, "train", {f"{k:03}": aerial([(4, square), (5, square)], (20, 20)) for k in range(12)})
    monkeypatch.setattr(data_soda, "TRAINED_ON", 5)
    draws = [data_soda.open_soda_a(Source("soda_a", "train", root, seed=seed)) for seed in (0, 0, 1)]
    ids = [sorted({question.image_id for question in data.items}) for data in draws]
    assert ids[0] == ids[1] != ids[2] and all(len(of_one) == 5 for of_one in ids)
    assert [len(data) for data in draws] == [10, 10, 10]  # both categories of each
    assert len(draws[0].paths) == 12  # what is there is still counted whole
    opened = [open_dataset("soda_a", "train", root, seed=seed) for seed in (0, 1)]
    assert [sorted({question.image_id for question in data.items}) for data in opened] == [ids[0], ids[2]]


# ---------------------------------------------------------------------- the trees of the authors' tools

CUP = [10, 10, 30, 10, 30, 30, 10, 30]


def raw_aerial(home: Path, split: str = "val") -> None:
    """SODA-mmrotate's rawData: a folder per split with annotations and pictures in it."""
    for below in ("Annotations", "Images", "AnnsWoIgnore"):
        (home / "rawData" / split / below).mkdir(parents=True)
    content = aerial([(4, CUP), (9, CUP)], (300, 200))
    content["images"] |= {"file_name": "00007.jpg", "id": 7}
    (home / "rawData" / split / "Annotations" / "00007.json").write_text(json.dumps(content))
    gradient(300, 200).save(home / "rawData" / split / "Images" / "00007.jpg", quality=95)


def raw_driving(home: Path, images: str, split: str = "val") -> None:
    """SODA-mmdetection's rawData, which has the files without ignored areas beside it."""
    content = {"images": [{"id": 41, "file_name": "00041.jpg", "width": 300, "height": 200}], "categories": [{"id": 1, "name": "people"}],
               "annotations": [{"id": 1, "image_id": 41, "category_id": 1, "iscrowd": 0, "area": 400, "bbox": [10, 10, 20, 20]}]}  # fmt: skip
    (home / "Annotations").mkdir(parents=True)
    for name in (split, f"{split}_wo_ignore"):
        (home / "Annotations" / f"{name}.json").write_text(json.dumps(content))
    (home / images).mkdir(parents=True)
    gradient(300, 200).save(home / images / "00041.jpg", quality=95)


@pytest.mark.parametrize("home", ["SODA-A", "SODA/SODA-A"])
def test_soda_a_in_the_tree_of_its_tools(tmp_path: Path, home: str) -> None:
    raw_aerial(tmp_path / home)
    (example,) = open_dataset("soda_a", "val", str(tmp_path), tile=0)
    assert (example.id, example.image_id, example.boxes_px.tolist()) == ("7:ship", 7, [[10, 10, 30, 30]] * 2)
    assert example.crowd.tolist() == [False, True] and example.size_px == (300, 200)


@pytest.mark.parametrize("home, images", [
    ("SODA-D/rawData", "Images"), ("SODA-D/rawData", "Images/val"), ("SODA/SODA-D/rawData", "Images"),
    ("SODA-D", "Images/Images"), ("SODA-D", "Images/Images/val"), ("SODA-D", "Images"), ("SODA-D", "Images/val"),
])  # fmt: skip
def test_soda_d_in_the_trees_of_its_users(tmp_path: Path, home: str, images: str) -> None:
    raw_driving(tmp_path / home, images)
    (example,) = open_dataset("soda_d", "val", str(tmp_path), tile=0)
    assert (example.id, example.boxes_px.tolist(), example.size_px) == ("41:people", [[10, 10, 30, 30]], (300, 200))


@pytest.mark.parametrize(
    "ids, wanted", [((12, 5), (12, 5)), ((3, 3), (1, 2)), (("x", "y"), (1, 2)), ((None, 4), (1, 2))]
)
def test_pictures_have_the_ids_of_their_files(tmp_path: Path, ids: tuple, wanted: tuple) -> None:
    """Or, if these are not all different, the places of the files in the order of their names."""
    files = {name: aerial([(4, CUP)]) for name in "ab"}
    for content, own in zip(files.values(), ids):
        content["images"] |= {} if own is None else {"id": own}
    root = aerial_set(tmp_path, "val", files)
    if None in ids:
        path = tmp_path / "SODA-A" / "Annotations" / "val" / "a.json"
        content = json.loads(path.read_text())
        del content["images"]["id"]
        path.write_text(json.dumps(content))
    data = open_dataset("soda_a", "val", root, tile=0)
    assert {e.source.file_name[0]: e.image_id for e in data} == dict(zip("ab", wanted))
    assert [e.image_id for e in data] == sorted(wanted)
    if ids == ("x", "y"):
        assert [e.source.image_id for e in data] == ["x", "y"]


def aerial_tiles(home: Path, split: str = "val") -> None:
    """What sodaa_split.py writes: a json and a jpg per tile, without ``images``; cat_id and trunc in place of
    category_id."""
    for below in ("Annotations", "Images"):
        (home / "divData" / split / below).mkdir(parents=True)
    for source, left, top in (("00012", 0, 0), ("00012", 650, 0), ("00003", 0, 650)):
        name = f"{source}__800__{left}___{top}"
        content = {"filename": f"{name}.jpg", "x_start": left, "y_start": top, "id": name, "ori_id": source, "height": 800, "width": 800,
                   "annotations": [{"poly": [10, 10, 30, 10, 30, 50, 10, 50], "cat_id": 4, "trunc": 0}], "categories": []}  # fmt: skip
        (home / "divData" / split / "Annotations" / f"{name}.json").write_text(json.dumps(content))
        gradient(800, 800).save(home / "divData" / split / "Images" / f"{name}.jpg", quality=95)


def driving_tiles(home: Path, images: str, split: str = "val") -> None:
    """What sodad_split.py writes: COCO's format with ori_id and start_coord, and ignore for what is cut off."""
    (home / "divData" / "Annotations").mkdir(parents=True)
    (home / "divData" / images).mkdir(parents=True)
    tiles = [(0, 41, 0), (1, 41, 650)]
    content = {
        "type": "instance", "categories": [{"id": 1, "name": "people"}],
        "images": [{"file_name": f"00041_{k}.jpg", "height": 800, "width": 800, "id": k, "ori_id": own, "start_coord": [left, 0]}
                   for k, own, left in tiles],
        "annotations": [{"id": 2 * k + j, "image_id": k, "category_id": 1, "bbox": [10 + 100 * j, 10, 20, 40], "area": 800, "iscrowd": 0,
                         "segmentation": [[]], "ignore": bool(j)} for k, *_ in tiles for j in range(2)],
    }  # fmt: skip
    (home / "divData" / "Annotations" / f"{split}.json").write_text(json.dumps(content))
    for k, *_ in tiles:
        gradient(800, 800).save(home / "divData" / images / f"00041_{k}.jpg", quality=95)


def test_tiles_that_the_authors_have_cut(tmp_path: Path) -> None:
    aerial_tiles(tmp_path / "SODA-A")
    data = open_dataset("soda_a", "val", str(tmp_path))
    assert [(e.query, e.image_id, e.size_px, e.source.window_px, e.source.whole_id) for e in data] == [
        ("ship", 1, (800, 800), (0, 650, 800, 1450), 1), ("ship", 2, (800, 800), (0, 0, 800, 800), 2), ("ship", 3, (800, 800), (650, 0, 1450, 800), 2)
    ]  # fmt: skip
    assert (
        data[1].boxes_px.tolist() == [[10, 10, 30, 50]]
        and data[1].areas.tolist() == [800]
        and data[1].source.whole is None
    )
    assert data[2].image.getpixel((40, 7)) == pytest.approx((40, 7, 47), abs=3)  # not cut once more
    raw_aerial(tmp_path / "SODA-A")  # whole pictures count more
    assert [e.image_id for e in open_dataset("soda_a", "val", str(tmp_path))] == [7 * data_tiles.TILES]


@pytest.mark.parametrize("images", ["Images", "Images/val"])
def test_tiles_of_soda_d(tmp_path: Path, images: str) -> None:
    driving_tiles(tmp_path / "SODA-D", images)
    data = open_dataset("soda_d", "val", str(tmp_path))
    assert [(e.image_id, e.source.whole_id, e.source.window_px) for e in data] == [
        (0, 41, (0, 0, 800, 800)),
        (1, 41, (650, 0, 1450, 800)),
    ]
    assert data[1].crowd.tolist() == [False, True] and data[1].size_px == (800, 800) and data[1].source.whole is None
    with pytest.raises(
        DataError,
        match="soda_d is there in tiles of 800 that share 150 pixels: give --data_options tile=800 tile_overlap=150, or add",
    ):
        open_dataset("soda_d", "val", str(tmp_path), tile=0)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"start_coord": [0, -1]}, "has the start_coord [0, -1], give whole numbers"),
        ({"ori_id": "x"}, "has the ori_id 'x', give a whole number"),
    ],
)
def test_a_tile_that_lies_nowhere_is_left_out(tmp_path: Path, change: dict, sentence: str) -> None:
    driving_tiles(tmp_path / "SODA-D", "Images")
    path = tmp_path / "SODA-D" / "divData" / "Annotations" / "val.json"
    content = json.loads(path.read_text())
    content["images"][0] |= change
    path.write_text(json.dumps(content))
    data = open_dataset("soda_d", "val", str(tmp_path))
    assert [e.image_id for e in data] == [1] and sentence in data.dropped[0]


# ---------------------------------------------------------------------- what was read is kept

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
