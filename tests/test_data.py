"""data.py: the COCO reader on good and on broken folders, pictures, the order of training."""

import json
import os
import re
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from data_folders import folder, index
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from real_data import real_file

from activeo3 import data, data_set, eval_output
from activeo3.cli import ConfigError
from activeo3.config import DRAWN
from activeo3.data import open_dataset
from activeo3.data_io import DataError, read_json, read_picture
from activeo3.data_loader import PrefetchLoader, TrainingOrder, readable
from activeo3.types import Example, TaskResult

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is to be turned; 6 means a quarter turn clockwise."""


def test_a_folder_becomes_one_question_per_picture_and_category(tmp_path: Path) -> None:
    data = open_dataset("coco", "train", folder(tmp_path, index()))
    assert (data.name, data.split, len(data)) == ("coco", "train", 3)
    examples = list(data)
    assert [example.id for example in examples] == ["3:cat", "7:red blood cell", "7:cat"]
    pairs = [(example.image_id, example.category_id) for example in examples]
    assert pairs == [(3, 2), (7, 1), (7, 2)]
    cell, cats = examples[1:]
    assert cell.boxes_px.tolist() == [[30, 20, 40, 30]]  # clipped
    assert cell.areas.tolist() == [100.0]
    assert cats.boxes_px.tolist() == [[1, 2, 11, 7], [0, 0, 5, 5]]
    assert cats.crowd.tolist() == [False, True]
    assert cats.areas.tolist() == [33.5, 25.0]
    assert cats.image.mode == "RGB" and cats.size_px == (40, 30)
    assert len(data.dropped) == 2
    assert "annotation 5 has no area (bbox [0.0, 0.0, 0.0, 4.0]), correct or remove it" in data.dropped[0]
    assert (
        "annotation 6 lies outside of its picture (bbox [50.0, 50.0, 4.0, 4.0]), correct or remove it"
        in data.dropped[1]
    )
    # A category with nothing but a crowd ("x") is no question.


def test_limit_keeps_the_first_questions(tmp_path: Path) -> None:
    data = open_dataset("coco", "train", folder(tmp_path, index()), limit=2)
    assert (data.name, data.split, len(data)) == ("coco", "train", 2)
    assert [example.id for example in data] == ["3:cat", "7:red blood cell"]
    assert data[-1].id == "7:red blood cell"
    assert len(open_dataset("coco", "train", str(tmp_path), limit=99)) == 3


def test_lvis_v1_gives_a_url_instead_of_a_file_name(tmp_path: Path) -> None:
    content = index()
    content["images"][0] = {"id": 7, "width": 40, "height": 30, "coco_url": "http://x/y/seven.png"}
    assert open_dataset("coco", "train", folder(tmp_path, content))[1].size_px == (40, 30)


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit of the json: the value at 'annotations.0.bbox', or None to delete it."""
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def edit(content: Any) -> None:
        for part in way:
            content = content[part]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return edit


WRONG_AS_A_WHOLE = [
    ("images", None, "list of objects under the key 'images'"),
    ("annotations", {"id": 1}, "list of objects under the key 'annotations'"),
    ("categories", "cat", "list of objects under the key 'categories'"),
    ("categories.0.name", "red blood cell", "two categories with boxes have the name 'red blood cell', rename one"),
    ("annotations", [], "the file holds no usable box, check its 'annotations'"),
    (
        "images",
        [],
        "no usable box, check its 'annotations'. Nothing in it can be used: annotation 1 names the unknown image id 7",
    ),
]


@pytest.mark.parametrize("where, value, sentence", WRONG_AS_A_WHOLE)
def test_a_file_that_is_wrong_as_a_whole_is_refused_with_one_sentence(
    tmp_path: Path, where: str, value: Any, sentence: str
) -> None:
    content = index()
    put(where, value)(content)
    root = folder(tmp_path, content)
    with pytest.raises(DataError) as caught:
        open_dataset("coco", "train", root)
    text = str(caught.value).replace(f"{root}/instances_train.json: ", "")
    assert sentence in text and text != str(caught.value) and "\n" not in text and len(text) < 250


BAD_ROWS = [
    ("images.1.id", 7, ["image id 7 is used twice, for different entries"], []),  # whose boxes are they?
    (
        "images.1.id",
        [7],
        ["image number 1 of the list has the id [7], give a whole number or a text"],
        ["7:red blood cell", "7:cat"],
    ),
    ("images.1.id", "x", [], ["7:red blood cell", "7:cat"]),
    ("images.1", 5, ["image number 1 of the list is no object with a 'id'"], ["7:red blood cell", "7:cat"]),
    ("images.1.width", None, ["image 3 has no 'width'"], ["7:red blood cell", "7:cat"]),
    ("images.1.width", 20.5, ["image 3 has the width 20.5, give whole pixels"], ["7:red blood cell", "7:cat"]),
    (
        "images.1.height",
        0,
        ["image 3 has the height 0, give whole pixels", "annotation 4 belongs to image 3, which is left out"],
        ["7:red blood cell", "7:cat"],
    ),
    ("images.1.height", 10**400, ["image 3 has the height 10000"], ["7:red blood cell", "7:cat"]),
    ("images.1.file_name", None, ["image 3 has no 'file_name'"], ["7:red blood cell", "7:cat"]),
    ("images.1.file_name", "../secret.png", ["image 3 has a file_name outside"], ["7:red blood cell", "7:cat"]),
    ("images.1.file_name", "/etc/secret.png", ["image 3 has a file_name outside"], ["7:red blood cell", "7:cat"]),
    (
        "images.1.file_name",
        "ä" * 128 + ".png",
        ["image 3 has a file_name that no file can have"],
        ["7:red blood cell", "7:cat"],
    ),
    ("images.1.file_name", "a\0.png", ["image 3 has a file_name that no file can have"], ["7:red blood cell", "7:cat"]),
    (
        "images.1.not_exhaustive_category_ids",
        2,
        ["image 3 has the not_exhaustive_category_ids 2, give a list of ids"],
        ["7:red blood cell", "7:cat"],
    ),
    (
        "categories.0.id",
        None,
        ["category number 0 of the list has no 'id'", "annotation 1 names the unknown category id 2"],
        ["7:red blood cell"],
    ),
    ("categories.0.id", 1, ["category id 1 is used twice, for different entries"], []),
    ("categories.0", 5, ["category number 0 of the list is no object"], ["7:red blood cell"]),
    (
        "categories.0.name",
        None,
        ["category 2 has no 'name'", "annotation 1 belongs to category 2, which is left out"],
        ["7:red blood cell"],
    ),
    ("categories.0.name", "_", ["category 2 has an empty name"], ["7:red blood cell"]),
    ("annotations.1.id", 1, [], ["3:cat", "7:red blood cell", "7:cat"]),  # merged files have such; nothing goes by it
    ("annotations.1.id", None, [], ["3:cat", "7:red blood cell", "7:cat"]),
    ("annotations.1", None, [], ["3:cat", "7:cat"]),
    ("annotations.1", "box", ["annotation number 1 of the list is no object with a 'image_id'"], ["3:cat", "7:cat"]),
    ("annotations.1.image_id", 99, ["annotation 2 names the unknown image id 99"], ["3:cat", "7:cat"]),
    ("annotations.1.category_id", 99, ["annotation 2 names the unknown category id 99"], ["3:cat", "7:cat"]),
    (
        "annotations.1.category_id",
        [2],
        ["annotation 2 has the category_id [2], give a whole number or a text"],
        ["3:cat", "7:cat"],
    ),
    ("annotations.1.category_id", True, ["annotation 2 has the category_id True"], ["3:cat", "7:cat"]),
    ("annotations.1.image_id", None, ["annotation 2 has no 'image_id'"], ["3:cat", "7:cat"]),
    ("annotations.1.bbox", None, ["annotation 2 has no 'bbox'"], ["3:cat", "7:cat"]),
    ("annotations.1.bbox", [1, 2, 3], ["annotation 2 has the bbox [1, 2, 3]"], ["3:cat", "7:cat"]),
    ("annotations.1.bbox", [1, 2, float("nan"), 4], ["annotation 2 has the bbox"], ["3:cat", "7:cat"]),
    ("annotations.1.bbox", [1, 2, "3", 4], ["annotation 2 has the bbox"], ["3:cat", "7:cat"]),
    ("annotations.1.bbox", [10**400, 0, 5, 5], ["annotation 2 has the bbox"], ["3:cat", "7:cat"]),
    ("annotations.1.bbox", [1e308, 0, 1e308, 5], ["annotation 2 has the bbox"], ["3:cat", "7:cat"]),
    ("annotations.1.area", -1, ["annotation 2 has the area -1"], ["3:cat", "7:cat"]),
    ("annotations.1.area", 10**400, ["annotation 2 has the area 1000"], ["3:cat", "7:cat"]),
    ("annotations.1.iscrowd", "maybe", ["annotation 2 has the iscrowd 'maybe', give 0 or 1"], ["3:cat", "7:cat"]),
    ("annotations.1.iscrowd", float("nan"), ["annotation 2 has the iscrowd nan"], ["3:cat", "7:cat"]),
    ("annotations.1.iscrowd", -1, ["annotation 2 has the iscrowd -1"], ["3:cat", "7:cat"]),
    ("annotations.1.ignore", 2, ["annotation 2 has the ignore 2"], ["3:cat", "7:cat"]),
]


@pytest.mark.parametrize("where, value, sentences, left", BAD_ROWS)
def test_one_bad_row_is_left_out_and_named(
    tmp_path: Path, where: str, value: Any, sentences: list[str], left: list[str]
) -> None:
    content = index()
    put(where, value)(content)
    root = folder(tmp_path, content)
    if not left:
        with pytest.raises(DataError, match=re.escape(sentences[0])):
            open_dataset("coco", "train", root)
        return
    data = open_dataset("coco", "train", root)
    assert [example.id for example in data] == left
    assert all(any(sentence in said for said in data.dropped) for sentence in sentences)
    assert all("instances_train.json: " in said and "\n" not in said and len(said) < 350 for said in data.dropped)


def test_the_same_entry_twice_counts_once(tmp_path: Path) -> None:
    content = index()
    for part in ("images", "categories", "annotations"):
        content[part].append(content[part][0])
    data = open_dataset("coco", "train", folder(tmp_path, content))
    assert [(example.id, len(example.boxes_px)) for example in data] == [
        ("3:cat", 1),
        ("7:red blood cell", 1),
        ("7:cat", 2),
    ]
    assert any("annotation 1 is there twice, remove one" in said for said in data.dropped)


@pytest.mark.parametrize(
    "mark, is_crowd",
    [("0", False), ("1", True), (None, False), (0.0, False), (1.0, True), (True, True), ("False", False)],
)
def test_crowd_marks_as_programs_write_them(tmp_path: Path, mark: Any, is_crowd: bool) -> None:
    content = index() | {
        "annotations": [row | {"iscrowd": mark} for row in index()["annotations"][:2]] + index()["annotations"][3:4]
    }
    asked = [example.id for example in open_dataset("coco", "train", folder(tmp_path, content))]
    assert asked == (["3:cat"] if is_crowd else ["3:cat", "7:red blood cell", "7:cat"])


def test_a_repeated_name_matters_only_where_both_categories_have_boxes(tmp_path: Path) -> None:
    content = index()
    content["categories"] += [{"id": 11, "name": "cat"}, {"id": 12, "name": "tree"}, {"id": 13, "name": "tree"}]
    content["categories"].insert(0, {"id": 14, "name": "red blood_cell"})
    root = folder(tmp_path, content)
    assert [example.id for example in open_dataset("coco", "train", root)] == ["3:cat", "7:red blood cell", "7:cat"]
    assert open_dataset("coco_det", "train", root)[0].objects.categories == ("cat", "red blood cell", "x", "tree")


@pytest.mark.parametrize(
    "names, kinds",
    [
        ({7: 2**63 + 7, 3: 2**63 + 9}, {2: 2**70, 1: 2**71, 9: 5}),
        ({7: "9b2e-a", 3: "9b2e\nb"}, {2: "felis", 1: "cellula", 9: "x"}),
        ({7: -(10**20), 3: 3}, {2: 2, 1: 1, 9: 9}),
    ],
)
def test_ids_of_any_kind_keep_their_boxes_and_come_back_in_the_results(
    tmp_path: Path, names: dict[int, Any], kinds: dict[int, Any]
) -> None:
    """pycocotools scores our predictions against the user's own file: all found, and nothing of another picture."""
    content = index()
    for row in (*content["images"], *content["categories"]):
        row["id"] = (kinds if "name" in row else names)[row["id"]]
    for row in content["annotations"]:
        row |= {
            "image_id": names[row["image_id"]],
            "category_id": kinds[row["category_id"]],
            "iscrowd": row.get("iscrowd", 0),
            "area": 50.0,
        }
    content["annotations"] = [row for row in content["annotations"] if row["id"] not in (5, 6)]
    content["annotations"][1]["bbox"] = [30, 20, 10, 10]  # inside, for their tool does not clip
    data = open_dataset("coco", "train", folder(tmp_path, content))
    by_id = {example.id: example for example in data}
    seven = by_id[f"{names[7]}:cat"]
    assert seven.boxes_px.tolist() == [[1, 2, 11, 7], [0, 0, 5, 5]] and seven.size_px == (40, 30)
    assert [example.image_id for example in data] == [1, 1, 2]
    found = [TaskResult(e.boxes_px[e.asked_for], np.ones(int(e.asked_for.sum()))) for e in data]
    theirs = COCO(str(tmp_path / "instances_train.json"))
    for own in (theirs, COCO()):
        if own is not theirs:  # the file that we write
            own.dataset = eval_output.truth(list(data))
            own.createIndex()
        scored = COCOeval(own, own.loadRes(eval_output.predictions(list(data), found)), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        assert scored.stats[0] == pytest.approx(1.0) and scored.stats[8] == pytest.approx(1.0)
    nothing = eval_output.predictions(list(data), [TaskResult(np.zeros((0, 4)), np.zeros(0))] * len(data))
    assert len(theirs.loadRes(nothing).anns) == 1  # it asks for ids that it knows


def test_a_text_that_spells_a_number_is_that_id(tmp_path: Path) -> None:
    content = index()
    for row in content["annotations"]:
        row |= {"image_id": str(row["image_id"]), "category_id": float(row["category_id"])}
    data = open_dataset("coco", "train", folder(tmp_path, content))
    assert [(e.id, e.image_id, e.category_id) for e in data] == [
        ("3:cat", 3, 2),
        ("7:red blood cell", 7, 1),
        ("7:cat", 7, 2),
    ]
    assert all(e.source.image_id is None for e in data)


def test_texts_as_programs_write_them(tmp_path: Path) -> None:
    """A byte-order mark is no text, and half a surrogate pair, which no file takes, becomes a question mark."""
    content = index()
    content["categories"][0]["name"] = "c\ud83dat \U0001f600"
    root = folder(tmp_path, content)
    path = tmp_path / "instances_train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [example.query for example in open_dataset("coco", "train", root)] == [
        "c?at \U0001f600",
        "red blood cell",
        "c?at \U0001f600",
    ]


@pytest.mark.parametrize("text", ['{"images": [', "[1, 2]", "", "null"])
def test_a_file_that_is_no_coco_json_is_refused(tmp_path: Path, text: str) -> None:
    root = folder(tmp_path, index())
    (tmp_path / "instances_train.json").write_text(text)
    with pytest.raises(DataError, match="train.json: (this is not valid json|the file needs a list of objects under)"):
        open_dataset("coco", "train", root)
    (tmp_path / "instances_train.json").write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(DataError, match="not a UTF-8 text file"):
        open_dataset("coco", "train", root)
    for text, sentence in (("[" * 100_000, "nested too deeply"), ("9" * 5000, "this is not valid json .*digits")):
        (tmp_path / "instances_train.json").write_text(text)
        with pytest.raises(DataError, match=sentence):
            open_dataset("coco", "train", root)
    (tmp_path / "instances_train.json").unlink()
    os.mkfifo(tmp_path / "instances_train.json")  # would be waited for, for ever
    with pytest.raises(DataError, match="train.json: the file cannot be read .no regular file"):
        read_json(tmp_path / "instances_train.json")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", index())
    for arguments, sentence in (
        (
            ("coco", "val", root),
            "data: coco has no split 'val' there, it has train: name one with --split; --holdout 0.1",
        ),
        (("coco", "train", str(tmp_path / "nowhere")), "nowhere: there is no such folder"),
        (("coco", "train", str(tmp_path)), "there is no instances_train.json, or what else coco could be; docs/"),
        (("coco", "train", None), "no data root was given"),
        (("coca", "train", root), "there is no data set 'coca', choose one of ccbench, close_ups, coco, "),
        (("coco", "train", root, 0), "a limit of 0"),
    ):
        with pytest.raises(DataError, match=re.escape(sentence)):
            open_dataset(*arguments)


def test_a_bad_picture_is_named_when_it_is_read(tmp_path: Path) -> None:
    data = open_dataset("coco", "train", folder(tmp_path, index()))
    seven, three = tmp_path / "images" / "seven.png", tmp_path / "images" / "sub" / "three.png"
    three.unlink()
    with pytest.raises(DataError, match="three.png: .* example 3:cat is missing") as caught:
        data[0]
    assert caught.value.example_id == "3:cat"
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(seven)
    seven.write_bytes(seven.read_bytes()[:1500])  # truncated
    with pytest.raises(DataError, match="seven.png: .*example 7:cat cannot be read, replace it"):
        data[2]
    Image.fromarray(noise).save(seven, "JPEG")
    seven.write_bytes(seven.read_bytes()[:900])  # most of it is there, and half a picture is none
    with pytest.raises(DataError, match="seven.png: .*example 7:cat cannot be read, replace it"):
        data[2]
    seven.write_text("this is no picture")
    with pytest.raises(DataError, match="seven.png: .*cannot be read"):
        data[2]
    Image.new("RGB", (4020, 20)).save(seven)
    with pytest.raises(DataError, match="seven.png: .*example 7:cat .*4020x20 is too elongated") as caught:
        read_picture(seven, (4020, 20), "7:cat")
    assert caught.value.example_id == "7:cat"  # a stream passes over it
    Image.new("RGB", (4000, 20)).save(seven)
    assert read_picture(seven, (4000, 20), "7:cat").size == (4000, 20)
    Image.new("RGB", (41, 30)).save(seven)
    with pytest.raises(DataError, match="example 7:cat is 41x30 but 40x30 in the annotations"):
        data[2]


def test_a_rotated_photo_is_turned_the_way_its_boxes_are(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)  # stored lying: 30 wide, 20 high
    pixels[:, :10] = 255  # white on the left, which is the top after a quarter turn clockwise
    note = Image.Exif()
    note[ORIENTATION] = 6
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path, exif=note)
    lying, upright = (np.asarray(read_picture(path, size, "1:a")) for size in ((30, 20), (20, 30)))
    assert lying.shape == (20, 30, 3) and lying[:, :10].min() == 255 and lying[:, 10:].max() == 0
    assert upright.shape == (30, 20, 3) and upright[:10].min() == 255 and upright[10:].max() == 0
    # Where both ways fit, it is shown as every viewer shows it.
    note[ORIENTATION] = 3
    Image.fromarray(pixels).save(path, exif=note)
    assert np.asarray(read_picture(path, (30, 20), "1:a"))[:, 20:].min() == 255
    with pytest.raises(DataError, match="is 30x20 but 25x25"):
        read_picture(path, (25, 25), "1:a")


def test_every_usual_pixel_format_becomes_rgb(tmp_path: Path) -> None:
    def seen(image: Image.Image, name: str = "picture.png") -> tuple[int, ...]:
        image.save(tmp_path / name)
        picture = read_picture(tmp_path / name, image.size, "1:a")
        assert picture.mode == "RGB"
        return picture.getpixel((0, 0))

    assert seen(Image.new("L", (4, 4), 77)) == (77, 77, 77)
    assert seen(Image.new("1", (4, 4), 1)) == (255, 255, 255)
    assert seen(Image.fromarray(np.full((4, 4), 77 * 256 + 5, dtype=np.uint16))) == (77, 77, 77)
    assert seen(Image.new("RGB", (4, 4), "red").convert("P")) == (255, 0, 0)
    assert seen(Image.new("RGBA", (4, 4), (9, 8, 7, 0))) == (255, 255, 255)
    assert seen(Image.new("RGBA", (4, 4), (9, 8, 7, 255))) == (9, 8, 7)
    assert seen(Image.new("LA", (4, 4), (50, 255))) == (50, 50, 50)
    red = seen(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "picture.jpg")
    assert red[0] > 240 and max(red[1:]) < 15
    with pytest.raises(DataError, match="pixel format F has no fixed range"):
        seen(Image.new("F", (4, 4), 0.5), "picture.tif")


class Numbers:
    """A data set without pictures; the examples in ``bad`` cannot be read."""

    name, split, dropped = "numbers", "train", ()

    def __init__(self, size: int, bad: tuple[int, ...] = ()) -> None:
        self.size, self.bad = size, bad

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        if index in self.bad:
            raise DataError(f"number {index} is broken", example_id=str(index))
        return Example(str(index), Image.new("RGB", (1, 1)), "dot", np.zeros((0, 4)))


def ids(stream: TrainingOrder, step: int) -> list[int]:
    return [int(example.id) for example in stream.at(step)]


@pytest.mark.parametrize("size", [1, 5, 23])
def test_every_epoch_shows_every_example_once_in_a_new_order(size: int) -> None:
    stream = TrainingOrder(Numbers(size), prompts=3, seed=4, rank=0, world=1)
    order = [number for step in range(size) for number in ids(stream, step)]  # three epochs
    epochs = [order[k * size : (k + 1) * size] for k in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size < 23 or len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("bad", [(), (2, 3, 11)])
def test_two_ranks_see_what_one_rank_with_twice_the_prompts_sees(bad: tuple[int, ...]) -> None:
    data = Numbers(17, bad)
    one = TrainingOrder(data, prompts=4, seed=1, rank=0, world=1)
    two = [TrainingOrder(data, prompts=2, seed=1, rank=rank, world=2) for rank in range(2)]
    for step in range(20):
        assert ids(one, step) == ids(two[0], step) + ids(two[1], step)
    assert one.skipped == two[0].skipped | two[1].skipped
    assert sorted(one.skipped) == sorted(map(str, bad))


def test_the_order_is_a_function_of_seed_step_and_rank_alone() -> None:
    data = Numbers(11, bad=(4,))
    straight = [ids(TrainingOrder(data, 3, seed=0, rank=0, world=1), step) for step in range(12)]
    stream = TrainingOrder(data, 3, seed=0, rank=0, world=1)
    shuffled = {step: ids(stream, step) for step in (7, 0, 11, 3, 7, 1, 2, 4, 5, 6, 8, 9, 10)}
    assert [shuffled[step] for step in range(12)] == straight
    other = TrainingOrder(data, 3, seed=1, rank=0, world=1)
    assert [ids(other, step) for step in range(12)] != straight


def test_unreadable_examples_are_replaced_and_listed() -> None:
    whole = TrainingOrder(Numbers(40), prompts=4, seed=2, rank=0, world=1)
    stream = TrainingOrder(Numbers(40, bad=(7, 8)), prompts=4, seed=2, rank=0, world=1)
    for step in range(10):
        expected, found = ids(whole, step), ids(stream, step)
        assert len(set(found)) == 4 and not {7, 8} & set(found)
        assert all(a == b for a, b in zip(expected, found) if a not in (7, 8))
    assert stream.skipped == {"7": "number 7 is broken", "8": "number 8 is broken"}


def test_a_stream_gives_up_when_nothing_can_be_read() -> None:
    stream = TrainingOrder(Numbers(99, bad=tuple(range(99))), prompts=2, seed=0, rank=0, world=1)
    with pytest.raises(DataError, match=r"20 examples in a row .* number \d+ is broken"):
        stream.at(0)
    assert len(stream.skipped) == 20


def test_readable_examples_are_the_same_on_all_ranks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    there = [{2: "number 2 is broken"}, {0: "number 0 is broken", 2: "number 2 is broken"}]
    held = [
        readable(Numbers(4, bad=tuple(mine)), tmp_path, lambda _: there, writes=rank == 0)
        for rank, mine in enumerate(there)
    ]
    assert [[example.id for example in of_rank] for of_rank in held] == [["1", "3"], ["1", "3"]]
    listed = tmp_path / "left_out-numbers-train.txt"
    lines = f"left out: number 0 is broken\nleft out: number 2 is broken\nleft out in all: 2, listed in {listed}\n"
    assert capsys.readouterr().err == lines and listed.read_text() == "number 0 is broken\nnumber 2 is broken\n"
    assert [example.id for example in readable(Numbers(4, bad=(1,)), tmp_path)] == ["0", "2", "3"]
    with pytest.raises(DataError, match="no readable picture in its split"):
        readable(Numbers(1), tmp_path, lambda _: [{}, {0: "number 0 is broken"}])


def test_what_was_left_out_is_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Rows that the reader left out and pictures that cannot be read; the screen has the first ones, the file all."""
    content = index()
    content["annotations"] += [
        {"id": 100 + k, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, float("nan")]} for k in range(30)
    ]
    data = open_dataset("coco", "train", folder(tmp_path, content))
    (tmp_path / "images" / "seven.png").write_bytes(b"")
    assert [example.id for example in readable(data, tmp_path / "out")] == ["3:cat"]
    lines = capsys.readouterr().err.splitlines()
    path = tmp_path / "out" / "left_out-coco-train.txt"
    assert len(lines) == 21 and lines[-1] == f"left out in all: 34, listed in {path}"
    listed = path.read_text().splitlines()
    assert len(listed) == 34 and [f"left out: {line}" for line in listed[:20]] == lines[:20]
    assert sum("seven.png" in line for line in listed) == 2 and "annotation 129 has the bbox [1, 2, 3, nan]" in "".join(
        listed
    )
    Image.new("RGB", (40, 30), "red").save(tmp_path / "images" / "seven.png")
    clean = open_dataset(
        "coco", "train", folder(tmp_path / "clean", index() | {"annotations": index()["annotations"][:4]})
    )
    assert (
        len(readable(clean, tmp_path / "out")) == 3 and not path.exists()
    )  # the list of an earlier run is no longer true
    path.write_text("a file of the user's")
    (tmp_path / "out" / ".activeo3").unlink()
    assert len(readable(clean, tmp_path / "out")) == 3 and path.read_text() == "a file of the user's"
    with pytest.raises(ConfigError, match="left_out-coco-train.txt was not written by activeo3 and would be replaced"):
        readable(data, tmp_path / "out")


def test_the_next_step_is_read_ahead_and_nothing_behind_the_last() -> None:
    class Noted(TrainingOrder):
        asked: list[int] = []

        def at(self, step: int) -> list[Example]:
            self.asked.append(step)
            return super().at(step)

    stream, plain = (kind(Numbers(40, bad=(7, 8)), 4, seed=2, rank=0, world=1) for kind in (Noted, TrainingOrder))
    ahead = PrefetchLoader(stream, end=12)
    for step in (*range(3), *range(5, 12)):  # a run that is continued begins anywhere
        assert ids(ahead, step) == ids(plain, step)
    assert stream.asked == [0, 1, 2, 3, *range(5, 12)] and stream.skipped == plain.skipped


def test_what_cannot_be_read_ahead_is_an_error_of_its_own_step() -> None:
    numbers = Numbers(60)
    ahead = PrefetchLoader(TrainingOrder(numbers, prompts=1, seed=0, rank=0, world=1), end=9)
    ids(ahead, 0)
    ahead._coming[1].result()
    numbers.bad = tuple(range(60))
    ids(ahead, 1)  # was read before; the next one is not
    with pytest.raises(DataError, match="20 examples in a row cannot be used"):
        ahead.at(2)


def test_a_stream_refuses_impossible_numbers() -> None:
    for prompts, rank, world in ((0, 0, 1), (1, 1, 1), (1, -1, 1)):
        with pytest.raises(ValueError, match="a stream needs"):
            TrainingOrder(Numbers(3), prompts, 0, rank, world)
    with pytest.raises(ValueError, match="a stream needs"):
        TrainingOrder(Numbers(0), 1, 0, 0, 1)
    with pytest.raises(ValueError, match="counted from 0"):
        TrainingOrder(Numbers(3), 1, 0, 0, 1).at(-1)


# ---------------------------------------------------------------------- several sets, and what there is


def test_mixed_sets_take_turns(tmp_path: Path) -> None:
    root = folder(tmp_path, index())
    mixed = open_dataset(("scenes", "coco"), "train", root)
    assert (mixed.name, mixed.split, len(mixed)) == ("scenes+coco", "train", len(open_dataset("scenes", "train")) + 3)
    assert [example.id for example in (mixed[1], mixed[3], mixed[5])] == ["3:cat", "7:red blood cell", "7:cat"]
    scenes = open_dataset("scenes", "train")
    assert [mixed[k].id for k in (0, 2, 4, 6, 7)] == [scenes[k].id for k in range(5)]
    assert mixed[-1].id == scenes[-1].id and len(mixed.paths) == 2 and len(mixed.dropped) == 2
    with pytest.raises(IndexError):
        mixed[len(mixed)]
    first = open_dataset(("scenes", "coco"), "train", root, limit=4)
    assert [example.id for example in first] == [mixed[k].id for k in range(4)]
    assert open_dataset(("coco",), "train", root).name == "coco"
    with pytest.raises(DataError, match="there is no data set 'cocoa'"):
        open_dataset(("scenes", "cocoa"), "train", root)
    with pytest.raises(DataError, match=r"scenes\+coco: a limit of 0"):
        open_dataset(("scenes", "coco"), "train", root, limit=0)


def test_every_question_of_a_mixture_is_there_once() -> None:
    parts = [data_set.Dataset(str(size), "train", range(size), lambda item, _: item) for size in (3, 0, 5, 1)]
    mixed = data_set.mixed(parts)
    assert len(mixed) == 9 and mixed.items[:3] == [(0, 0), (0, 2), (0, 3)]
    assert sorted(mixed.items) == sorted((k, p) for p, part in enumerate(parts) for k in range(len(part)))
    assert list(mixed) == [0, 0, 0, 1, 1, 2, 2, 3, 4]


def test_a_set_without_any_of_its_pictures_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, index())
    for path in (tmp_path / "images").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="seven.png: neither this nor any other picture of coco is there"):
        open_dataset("coco", "train", root)


def test_areas_are_not_read_as_boxes(tmp_path: Path) -> None:
    """COCO's "ignore" is a crowd too, and a box without an area has its own."""
    content = index()
    content["annotations"][3] |= {"ignore": 1}
    data = open_dataset("coco", "train", folder(tmp_path, content))
    assert [example.id for example in data] == ["7:red blood cell", "7:cat"]


def test_the_list_says_what_is_there_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder(tmp_path / "mine", index())
    (tmp_path / "mine" / "images" / "seven.png").unlink()
    (tmp_path / "mine" / "instances_torn.json").write_text("{")
    (tmp_path / "lvis").mkdir()
    before = sorted(tmp_path.rglob("*"))
    data.main(["--data_root", str(tmp_path)])
    text = capsys.readouterr().out
    for name, known in data.DATASETS.items():
        assert f"{name}  ({known.origin})" in text
    found = f"2 pictures, 1 of their files, in {tmp_path}/mine/images, 3 questions, 2 annotations left out"
    assert f"    train: PARTLY  {found}" in text
    assert "    torn: NOT USABLE  " in text and "instances_torn.json: this is not valid json" in text
    assert text.count("    val, test: found  1,000 questions") == len(DRAWN)
    assert DRAWN == {name for name, known in data.DATASETS.items() if known.origin.startswith("drawn by")}
    assert (
        "there is no lvis_v1_val.json or lvis_v0.5_val.json or lvis_val_100.json in lvis or lvis/annotations or "
        in text
    )
    assert (
        f"    train: NOT USABLE  {tmp_path}: there is no *.json in SODA-A/Annotations/train or "
        "SODA/SODA-A/Annotations/train or" in text
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_the_list_counts_against_what_should_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, index())
    for wanted, word in ((2, "found"), (3, "PARTLY")):
        known = data.DATASETS["coco"]._replace(splits={"train": wanted, "val": 0}, origin="a shop", images=9)
        for room in (data, data_set):
            monkeypatch.setattr(room, "DATASETS", {"coco": known})
        first, train, val, together = data.survey(root)
        assert first == "coco  (a shop)"
        assert train.startswith(
            f"    train: {word}  2 of {wanted} pictures, 2 of their files, in {root}/images, 3 questions, "
        )
        assert "val: NOT USABLE  " in val and together == "    all splits: 2 of 9 pictures"


def test_the_list_on_real_data(capsys: pytest.CaptureFixture) -> None:
    root = real_file("lvis/lvis_val_100.json").parent.parent
    before = sorted(root.rglob("*"))
    data.main(["--data_root", str(root)])
    text = capsys.readouterr().out
    assert "val: PARTLY  100 of 19,809 pictures" in text
    assert f"train: found  64 pictures, 64 of their files, in {root}/bccd/images, 173 questions" in text
    assert sorted(root.rglob("*")) == before


def test_data_readme_names_every_set_with_its_count() -> None:
    text = (Path(data.__file__).parent.parent / "data" / "README.md").read_text()
    for name, known in data.DATASETS.items():
        assert f"`{name}`" in text, name
        for count in (known.images, *known.splits.values()):
            assert not count or f"{count:,}" in text, (name, count)
        assert all(part in text for part in re.findall(r"https://[^ ,]+", known.origin)), name


def test_the_embedded_world_opens_by_name() -> None:
    scenes = pytest.importorskip("activeo3.data_scenes")
    data = open_dataset("scenes", "val", None, limit=2)
    assert (data.name, data.split, len(data)) == ("scenes", "val", 2)
    first, again = data[0], scenes.example("val", 0)
    assert first.id == again.id and first.image.tobytes() == again.image.tobytes()
    with pytest.raises(DataError, match="there is no split 'holiday', choose one of"):
        open_dataset("scenes", "holiday", None)


def test_a_real_data_set() -> None:
    path = real_file("bccd/instances_train.json")
    data = open_dataset("coco", "train", str(path.parent))
    record = json.loads(path.read_text())
    pairs = {(row["image_id"], row["category_id"]) for row in record["annotations"]}
    assert len(data) == len(pairs) and data.dropped == ()
    assert sum(len(question.boxes_px) for question in data.items) == len(record["annotations"])
    for k in (0, len(data) // 2, len(data) - 1):
        example = data[k]
        assert "_" not in example.query and example.size_px == (640, 480)
        assert (example.boxes_px >= 0).all() and (example.boxes_px <= [640, 480, 640, 480]).all()
