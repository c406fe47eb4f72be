"""The readers of the one-shot tasks: RefCOCO in three layouts, PixMo-Count, pages, COCO with all categories."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image
from refcoco_folders import (
    COCO,
    NAME,
    OBJECTS,
    WANTED,
    as_json,
    as_pickle,
    as_table,
    complaint,
    page_set,
    picture,
    pixmo_row,
    pixmo_set,
    told,
)

from activeo3 import data_perception, data_refcoco
from activeo3.data import open_dataset

# ---------------------------------------------------------------------- RefCOCO


LAYOUTS = {"json": as_json, "table": as_table, "pickle": as_pickle}


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_every_phrase_is_a_question_with_one_box(root: Path, write: Callable) -> None:
    write(root)
    data = open_dataset("refcoco", "val", str(root))
    assert [(e.query, e.boxes_px[0].tolist()) for e in data] == WANTED  # clipped at the border, spaces put right
    assert all(e.boxes_px.shape == (1, 4) and e.image_id == 42 and e.size_px == (40, 30) for e in data)
    assert len({e.id for e in data}) == 3 and data.paths == (root / "coco" / "train2014" / NAME,)
    assert [e.query for e in open_dataset("refcoco", "testA", str(root))] == ["a person"]


def test_all_eight_splits_and_their_files(root: Path) -> None:
    eight = [("refcoco", s) for s in ("val", "testA", "testB")] + [
        ("refcoco_plus", s) for s in ("val", "testA", "testB")
    ]
    eight += [("refcocog", s) for s in ("val", "test")]
    for name, split in eight:
        family = data_refcoco.FAMILIES[name]
        as_pickle(root, {1: ([1, 1, 5, 5], split, [f"{name} {split}"])}, family.folder, family.partition)
        assert [e.query for e in open_dataset(name, split, str(root))] == [f"{name} {split}"]
    assert {family.partition for family in data_refcoco.FAMILIES.values()} == {"unc", "umd"}
    said = complaint(lambda: open_dataset("refcocog", "testA", str(root)))
    assert said == "refcocog: there is no split 'testA', choose one of test, train, val"


def test_json_comes_before_tables_before_the_pickle(root: Path) -> None:
    as_pickle(root, {1: ([1, 1, 5, 5], "val", ["from the pickle"])})
    assert open_dataset("refcoco", "val", str(root))[0].query == "from the pickle"
    as_table(root, {1: ([1, 1, 5, 5], "val", ["from the table"])})
    assert open_dataset("refcoco", "val", str(root))[0].query == "from the table"
    as_json(root, {1: ([1, 1, 5, 5], "val", ["from the json"])})
    assert open_dataset("refcoco", "val", str(root))[0].query == "from the json"


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    "row, sentence",
    [
        (([1, 2, 3], "val", ["cup"]), "has the bbox [1, 2, 3], give finite numbers x, y, w, h"),
        ((["1", 2, 3, 4], "val", ["cup"]), "has the bbox ['1', 2, 3, 4]"),
        (([1, 2, 3, 4], "val", [" "]), "has an empty phrase, download the file again"),
        (([50, 2, 3, 4], "val", ["cup"]), "has a box without area in its picture"),
        (([1, 2, float("nan"), 4], "val", ["cup"]), "has the bbox [1, 2, nan, 4]"),
    ],
)
def test_a_broken_row_is_left_out_and_named(root: Path, write: Callable, row: tuple, sentence: str) -> None:
    write(root, {9: row} | OBJECTS)
    data = open_dataset("refcoco", "val", str(root))
    assert [example.query for example in data] == [phrase for phrase, _ in WANTED]
    assert len(data.dropped) == 1 and sentence in data.dropped[0]
    write(root, {1: row})
    said = complaint(lambda: open_dataset("refcoco", "val", str(root)))
    assert (
        "refcoco has no question in its split 'val', write or download it again. Nothing in it can be used: " in said
        and sentence in said
    )


def test_an_empty_phrase_among_others_is_left_out_alone(root: Path) -> None:
    as_pickle(root, {1: ([5, 6, 10, 8], "val", ["red cup", "", "cup"])})
    data = open_dataset("refcoco", "val", str(root))
    assert [example.query for example in data] == [
        "red cup",
        "cup",
    ] and "reference 0 has an empty phrase" in data.dropped[0]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_every_kind_of_pickle_is_read(root: Path, protocol: int) -> None:
    as_pickle(root, protocol=protocol)
    assert [e.query for e in open_dataset("refcoco", "val", str(root))] == [phrase for phrase, _ in WANTED]


class Poison:
    """What a pickle can do: it names a function, which is called when the file is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_something_is_refused(root: Path) -> None:
    path, mark = as_pickle(root), root / "it-ran"
    for content in (pickle.dumps([Poison(mark)]), pickle.dumps(np.zeros(2)), pickle.dumps({"a": Path("b")})):
        path.write_bytes(content)
        said = complaint(lambda: open_dataset("refcoco", "val", str(root)))
        assert "refs(unc).p: the pickle cannot be read as plain values (it names " in said and "do not trust" in said
        assert not mark.exists()
    pickle.loads(pickle.dumps(Poison(mark)))
    assert mark.exists()  # so the first one would have run


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1] * 99)[:-9], b"\x80\x04."])
def test_a_pickle_that_is_none(root: Path, content: bytes) -> None:
    as_pickle(root).write_bytes(content)
    assert "the pickle cannot be read as plain values" in complaint(lambda: open_dataset("refcoco", "val", str(root)))


def test_files_that_do_not_fit_together(root: Path) -> None:
    path = as_pickle(root)
    for refs, sentence in (
        ({"a": 1}, "the file holds no list of objects"),
        ([{"split": "val", "image_id": 7, "ann_id": 1, "sentences": []}], "reference 0 is not in instances.json"),
        ([{"split": "val", "image_id": 42, "ann_id": 1, "sentences": "cup"}], "reference 0 has no sentences"),
        ([{"split": "val", "image_id": 42, "ann_id": 1, "sentences": ["cup"]}], "reference 0 has an empty phrase"),
        ([{"image_id": 42}], "reference 0 has no 'split'"),
    ):
        path.write_bytes(pickle.dumps(refs))
        assert sentence in complaint(lambda: open_dataset("refcoco", "val", str(root)))
    (path.parent / "instances.json").write_text("[]")
    assert "needs a list of objects under the key 'images'" in complaint(
        lambda: open_dataset("refcoco", "val", str(root))
    )
    path.unlink()
    looked_for = "neither mdetr_annotations/finetune_refcoco_val.json nor refcoco/data/validation-*.parquet nor refcoco/refs(unc).p nor val-*.parquet in"
    assert looked_for in complaint(lambda: open_dataset("refcoco", "val", str(root)))


def test_broken_json_and_tables(root: Path) -> None:
    as_json(root)
    path = root / "mdetr_annotations" / "finetune_refcoco_val.json"
    good = json.loads(path.read_text())
    for change, sentence in (
        ({"annotations": []}, "image 0 has 0 boxes and not one"),
        ({"annotations": good["annotations"] * 2}, "image 0 has 2 boxes and not one"),
        ({"images": "none"}, "needs a list of objects under the key 'images'"),
        ({"images": [good["images"][0] | {"file_name": "../x.jpg"}]}, "file_name outside of its folder"),
        ({"images": [good["images"][0] | {"original_id": None}]}, "has the id None"),
        ({"images": [{k: v for k, v in good["images"][0].items() if k != "caption"}]}, "image 0 has no 'caption'"),
    ):
        path.write_text(json.dumps(good | change))
        assert sentence in complaint(lambda: open_dataset("refcoco", "val", str(root)))
    path.unlink()
    as_table(root, raw_image_info="{}")
    assert "row 0 holds no image and annotation as json" in complaint(lambda: open_dataset("refcoco", "val", str(root)))
    as_table(root, captions=None)
    assert "row 0 has an empty phrase" in complaint(lambda: open_dataset("refcoco", "val", str(root)))


# ---------------------------------------------------------------------- PixMo-Count


def test_pixmo_questions(tmp_path: Path) -> None:
    one, two = picture(10), picture(20)
    rows = [pixmo_row(one), pixmo_row(two, "traffic  light", 1, [(3.0, 4.0)]), pixmo_row(one, "dog", 1, [(5.0, 5.0)])]
    names = {
        f"{hashlib.sha256(one).hexdigest()}.png": one,
        hashlib.sha256(two).hexdigest(): two,
    }  # with any ending, or none
    data = open_dataset("pixmo_count", "train", pixmo_set(tmp_path, rows, pictures=names))
    assert [(e.query, e.count.number, e.count.places_px[:, :2].tolist()) for e in data] == [
        ("cup", 2, [[1.5, 2.0], [30.0, 20.0]]), ("traffic light", 1, [[3.0, 4.0]]), ("dog", 1, [[5.0, 5.0]])
    ]  # fmt: skip
    assert [e.image_id for e in data] == [1, 2, 1] and [e.image.getpixel((0, 0))[0] for e in data] == [10, 20, 10]
    assert len(data.paths) == 2 and all(path.is_file() for path in data.paths)
    pixmo_set(tmp_path, [pixmo_row(one, points=None)], "validation")
    (example,) = open_dataset("pixmo_count", "val", str(tmp_path))
    assert example.count == (2, None)  # nobody pointed in the sets to evaluate on


def test_points_as_a_list_of_objects(tmp_path: Path) -> None:
    content = picture(1)
    row = pixmo_row(content) | {"points": [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}]}
    data = open_dataset("pixmo_count", "train", pixmo_set(tmp_path, [row], pictures={row["image_sha256"]: content}))
    assert data[0].count.places_px.tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]


def test_a_picture_that_is_not_there_or_another(tmp_path: Path) -> None:
    one, two = pixmo_row(picture(1)), pixmo_row(picture(2))
    root = pixmo_set(tmp_path, [one, two], pictures={f"{two['image_sha256']}.jpg": picture(3)})
    data = open_dataset("pixmo_count", "train", root)
    said = complaint(lambda: data[0])
    assert (
        f"{one['image_sha256']}.jpg: the picture of example pixmo_count:train:0 is missing, get it from https://"
        in said
    )
    assert "this is not the picture that example pixmo_count:train:1 is about, remove it" in complaint(lambda: data[1])


def test_rows_whose_points_do_not_fit_are_left_out(tmp_path: Path) -> None:
    content = picture(1)
    root = pixmo_set(
        tmp_path,
        [pixmo_row(content), pixmo_row(content, count=3)],
        pictures={pixmo_row(content)["image_sha256"]: content},
    )
    data = open_dataset("pixmo_count", "train", root)
    assert len(data) == 1 and "row 1 has 2 points and the count 3" in data.dropped[0]


def test_pictures_by_the_names_of_molmos_downloader(tmp_path: Path) -> None:
    """It names a picture by the SHA-256 of its url, without an ending, and leaves the error where it got none."""
    rows = [pixmo_row(picture(number)) | {"image_url": f"https://example.org/{number}"} for number in range(4)]
    root = Path(pixmo_set(tmp_path, rows))
    for folder, numbers in (("torch_datasets/pixmo_images", (0, 1)), ("pixmo_images", (1, 2))):
        (root / folder).mkdir(parents=True)
        for number in numbers:
            name = hashlib.sha256(rows[number]["image_url"].encode()).hexdigest()
            (root / folder / name).write_bytes(picture(number) if number < 2 else b"404 Client Error: Not Found")
    data = open_dataset("pixmo_count", "train", str(root))
    assert [data[k].image.getpixel((0, 0))[0] for k in (0, 1)] == [0, 1]
    assert [path.parent.name for path in data.paths] == ["pixmo_images"] * 3 + ["images"]
    assert "this is not the picture that example pixmo_count:train:2 is about" in complaint(lambda: data[2])
    assert "is missing, get it from https://example.org/3" in complaint(lambda: data[3])
    (root / "pixmo-count" / "images" / f"{rows[2]['image_sha256']}.png").write_bytes(picture(2))  # ours counts more
    assert open_dataset("pixmo_count", "train", str(root))[2].image.getpixel((0, 0)) == (2, 0, 0)


@pytest.mark.parametrize("folder, urls", [("pixmo-count", True), ("pixmo-count-images", False)])
def test_pictures_inside_the_table(tmp_path: Path, folder: str, urls: bool) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        pixmo_row(picture(number)) | {"image": {"bytes": picture(10 * number), "path": None}} for number in (1, 2, 1)
    ]
    rows[2] |= {"points": {"x": [1.0, 500.0], "y": [1.0, 1.0]}}
    rows = [{key: value for key, value in row.items() if urls or key != "image_url"} for row in rows]
    (tmp_path / folder / "data").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / folder / "data" / "train-00000-of-00002.parquet")
    data = open_dataset("pixmo_count", "train", str(tmp_path))
    assert (len(data), data.paths, data_perception.wanted(data)) == (3, (), [])
    assert [data[k].image.getpixel((0, 0))[0] for k in (0, 1)] == [10, 20]  # written anew, so no SHA-256 fits
    assert [data[k].image_id for k in (0, 1)] == [1, 2] and data[0].count.places_px.shape == (2, 4)
    assert "points lie outside of its picture of 40x30, it was resized" in complaint(lambda: data[2])


@pytest.mark.parametrize("below", ["", "eval/"])
def test_counting_as_perception_r1_has_it(tmp_path: Path, below: str) -> None:
    """A json object per line; the pictures are in the archive, and no SHA-256 is known."""
    rows = [{"question": "red  cups", "ground_truth": 3, "image_path": "pixmo-count/a.jpg"},
            {"question": "dogs", "ground_truth": 2, "image_path": "pixmo-count/b.jpg"},
            {"question": "dogs", "ground_truth": "2", "image_path": "pixmo-count/b.jpg"},
            {"question": "cats", "ground_truth": 2, "image_path": "../../a.jpg"}]  # fmt: skip
    (tmp_path / below / "jsons" / "counting").mkdir(parents=True)
    (tmp_path / below / "images" / "pixmo-count").mkdir(parents=True)
    lines = [*map(json.dumps, rows), "{"]
    (tmp_path / below / "jsons" / "counting" / "pixmo_count_val540.jsonl").write_text("\n".join(lines) + "\n")
    for number, name in enumerate("ab"):
        (tmp_path / below / "images" / "pixmo-count" / f"{name}.jpg").write_bytes(picture(number))
    data = open_dataset("pixmo_count", "val", str(tmp_path))
    assert [(e.query, e.count.number, e.image.getpixel((0, 0))[0], e.image_id) for e in data] == [
        ("red cups", 3, 0, 1),
        ("dogs", 2, 1, 2),
    ]
    assert [path.name for path in data.paths] == ["a.jpg", "b.jpg"] and data_perception.wanted(data) == []
    assert [
        words in said
        for words, said in zip(
            ("has the ground_truth '2', give a count", "outside of its folder", "line 5 is not valid json"),
            data.dropped,
        )
    ] == [True] * 3


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"label": " "}, "row 0 has the label ' ', give a text"),
        ({"image_sha256": "../../passwd"}, "row 0 has the image_sha256 '../../passwd'"),
        ({"count": -1}, "row 0 has the count -1"),
        (
            {"points": {"x": [1.0, float("nan")], "y": [1.0, 2.0]}},
            "row 0 has the points {'x': [1.0, nan], 'y': [1.0, 2.0]}, give a list of x and y",
        ),
    ],
)
def test_a_broken_pixmo_row_is_left_out(tmp_path: Path, change: dict, sentence: str) -> None:
    content = picture(1)
    root = pixmo_set(
        tmp_path,
        [pixmo_row(content) | change, pixmo_row(content)],
        pictures={pixmo_row(content)["image_sha256"]: content},
    )
    data = open_dataset("pixmo_count", "train", root)
    assert [example.query for example in data] == ["cup"] and sentence in data.dropped[0] and len(data.dropped) == 1
    root = pixmo_set(tmp_path / "alone", [pixmo_row(picture(1)) | change])
    assert sentence in complaint(lambda: open_dataset("pixmo_count", "train", root))


def test_pixmo_tables_that_hold_something_else(tmp_path: Path) -> None:
    row = pixmo_row(picture(1))
    root = pixmo_set(tmp_path, [{key: value for key, value in row.items() if key != "points"}])
    assert "there is no column 'points', download the file again" in complaint(
        lambda: open_dataset("pixmo_count", "train", root)
    )
    assert "there is neither validation-*.parquet in pixmo-count/data or pixmo_count/data or" in complaint(
        lambda: open_dataset("pixmo_count", "val", root)
    )
    (tmp_path / "pixmo-count" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    assert "the file cannot be read" in complaint(lambda: open_dataset("pixmo_count", "train", root))


# ---------------------------------------------------------------------- pages


def test_pages_in_both_forms(tmp_path: Path) -> None:
    rows = [{"image": "1.png", "len": 2, "conversations": told("Two\nlines")}, {"image": "1.png", "text": "Größe"}]
    data = open_dataset("pageocr", "train", page_set(tmp_path, rows))
    assert [e.text for e in data] == ["Two\nlines", "Größe"] and data[0].size_px == (40, 60)
    (tmp_path / "focus_benchmark_test" / "en_pdf_png").mkdir(parents=True)
    (tmp_path / "focus_benchmark_test" / "en_page_ocr.json").write_text(
        json.dumps([{"image": "en_1.png", "conversations": told("Act")}])
    )
    Image.new("RGB", (40, 60), "white").save(tmp_path / "focus_benchmark_test" / "en_pdf_png" / "en_1.png")
    (page,) = open_dataset("fox_en", "test", str(tmp_path))
    moved = tmp_path / "moved"  # Perception-R1's tree
    for folder in ("jsons/ocr", "images/ocr"):
        shutil.copytree(tmp_path / "focus_benchmark_test", moved / folder)
    assert [path.parent for path in open_dataset("fox_en", "test", str(moved)).paths] == [
        moved / "images/ocr/en_pdf_png"
    ]
    assert (page.id, page.text) == ("fox_en:en_1", "Act")
    assert "no cn_page_ocr.json in focus_benchmark_test or jsons/ocr or eval/jsons/ocr" in complaint(
        lambda: open_dataset("fox_cn", "test", str(tmp_path))
    )


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ({}, "the file needs a list of pages"),
        ([], "pageocr has no question in its split 'train'"),
        ([{"text": "a"}], "page 0 has no 'image'"),
        ([{"image": 3, "text": "a"}], "page 0 has the image 3, give a file name"),
        ([{"image": "../1.png", "text": "a"}], "file_name outside of its folder"),
        ([{"image": "1.png"}], "page 0 has no text"),
        ([7], "page 0 is no object with a 'image'"),
        ([{"image": "1.png", "text": " "}], "page 0 has no text"),
        ([{"image": "1.png", "conversations": told("a")[:1]}], "page 0 has no text"),
        ([{"image": "1.png", "conversations": "a"}], "page 0 has no text"),
    ],
)
def test_a_broken_page_is_refused(tmp_path: Path, rows: Any, sentence: str) -> None:
    said = complaint(lambda: open_dataset("pageocr", "train", page_set(tmp_path, rows)))
    assert sentence in said and "train.json" in said
    if rows:
        data = open_dataset("pageocr", "train", page_set(tmp_path, [*rows, {"image": "1.png", "text": "good"}]))
        assert [example.text for example in data] == ["good"] and sentence in data.dropped[0]


# ---------------------------------------------------------------------- COCO, all categories


@pytest.mark.parametrize("own", [True, False])
def test_every_picture_is_one_question(tmp_path: Path, own: bool) -> None:
    index, images = (
        ("instances_val.json", "images") if own else ("coco/annotations/instances_val2017.json", "coco/val2017")
    )
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / index).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / index).write_text(json.dumps(COCO))
    for number in (7, 3, 5):
        Image.new("RGB", (40, 30)).save(tmp_path / images / f"{number}.png")
    data = open_dataset("coco_det", "val", str(tmp_path))
    assert [e.image_id for e in data] == [3, 5, 7]  # the picture without anything is a question too
    first, empty, last = data
    assert empty.boxes_px.shape == (0, 4) and empty.objects.labels == () and empty.crowd.shape == (0,)
    assert last.objects.labels == ("traffic light", "cat", "x") and last.crowd.tolist() == [False, False, True]
    assert last.boxes_px.tolist() == [[30, 20, 40, 30], [1, 2, 11, 7], [0, 0, 5, 5]]
    assert last.areas.tolist() == [100.0, 33.5, 25.0]
    assert all(e.objects.categories == ("cat", "traffic light", "x") for e in data)
    assert first.boxes_px.tolist() == [[0.5, 0.5, 4.5, 4.5]]


def test_a_folder_without_coco(tmp_path: Path) -> None:
    said = complaint(lambda: open_dataset("coco_det", "val", str(tmp_path)))
    assert said.endswith(
        "there is no instances_val.json, or what else coco_det could be; docs/own-data.md shows all layouts"
    )
