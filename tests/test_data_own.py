"""Your own pictures in the forms that people have them: COCO folders of several programs, and --holdout.

Every folder is built as its program writes it; the truth that is expected is written down by hand.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from own_photos import (
    NAMES,
    SIZE,
    WANTED,
    as_jsonl,
    as_label_studio,
    as_ultralytics,
    coco,
    found,
    lines,
    photos,
    write,
    yolo,
)
from PIL import Image

from activeo3.config import TrainConfig
from activeo3.curriculum import open_questions
from activeo3.data import open_dataset
from activeo3.data_io import DataError
from activeo3.data_set import held_out
from activeo3.tasks import task_of

ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------------- COCO's format


def as_ours(root: Path) -> None:
    write(root / "instances_train.json", coco())
    photos(root / "images")


def as_published(root: Path) -> None:
    """COCO 2017 as its archives unpack, beside its other annotations."""
    write(root / "annotations" / "instances_train2017.json", coco())
    write(root / "annotations" / "person_keypoints_train2017.json", {})
    write(root / "annotations" / "captions_train2017.json", {})
    photos(root / "train2017")


def as_2014(root: Path) -> None:
    write(root / "annotations" / "instances_train2014.json", coco())
    photos(root / "train2014")


def as_text_ids(root: Path) -> None:
    write(root / "annotations" / "instances_train2017.json", coco(string_ids=True))
    photos(root / "train2017")


def as_with_folders(root: Path) -> None:
    write(root / "annotations" / "instances_train2017.json", coco("train2017/"))
    photos(root / "train2017")


def as_roboflow(root: Path) -> None:
    write(root / "train" / "_annotations.coco.json", coco())
    photos(root / "train")


def as_fiftyone(root: Path) -> None:
    """One json without a split."""
    write(root / "labels.json", coco())
    photos(root / "data")


def as_cvat(root: Path) -> None:
    write(root / "annotations" / "instances_default.json", coco())
    photos(root / "images" / "default")


def as_cvat_flat(root: Path) -> None:
    write(root / "annotations" / "instances_default.json", coco("default/"))
    photos(root / "images" / "default")


COCO = (as_ours, as_published, as_2014, as_text_ids, as_with_folders, as_roboflow, as_fiftyone, as_label_studio,
        as_cvat, as_cvat_flat)  # fmt: skip


@pytest.mark.parametrize("layout", COCO, ids=lambda layout: layout.__name__)
def test_coco_folders_as_programs_write_them(layout: Any, tmp_path: Path) -> None:
    layout(tmp_path)
    data = open_dataset("coco", "train", str(tmp_path))
    assert found(data) == WANTED and not data.dropped
    objects = [example.objects for example in open_dataset("coco_det", "train", str(tmp_path))]
    assert sum(len(one.boxes_px) for one in objects) == 20 and objects[0].categories == ("cat", "red dog")
    with pytest.raises(DataError) as said:
        open_dataset("coco", "val", str(tmp_path))
    assert f"{tmp_path}: coco has no split 'val' there, it has train:" in str(said.value)
    assert "--holdout 0.1" in str(said.value) and "--eval_examples 0" in str(said.value)


@pytest.mark.parametrize("spelled", ["val", "valid", "validation"])
def test_a_split_has_several_spellings(spelled: str, tmp_path: Path) -> None:
    as_roboflow(tmp_path)
    write(tmp_path / spelled / "_annotations.coco.json", coco(names=NAMES[:2]))
    photos(tmp_path / spelled, NAMES[:2])
    assert found(open_dataset("coco", "val", str(tmp_path))) == [one for one in WANTED if one[0] in NAMES[:2]]


def test_a_file_that_names_a_split_is_no_file_without_one(tmp_path: Path) -> None:
    write(tmp_path / "instances_val.json", coco())
    photos(tmp_path / "images")
    with pytest.raises(DataError, match="coco has no split 'train' there, it has val:"):
        open_dataset("coco", "train", str(tmp_path))
    write(tmp_path / "b.json", coco())
    write(tmp_path / "c.json", coco())  # of two files none is the one
    with pytest.raises(DataError, match="it has val:"):
        open_dataset("coco", "train", str(tmp_path))


# ---------------------------------------------------------------------- JSON Lines


def as_one_jsonl(root: Path) -> None:
    (root / "mine.jsonl").write_text("\ufeff" + lines().replace("\n", "\r\n") + "\n\n")
    photos(root / "images")


def as_absolute_jsonl(root: Path) -> None:
    (root / "train.jsonl").write_text(lines(f"{root.resolve()}/a/"))
    photos(root / "a")


def as_metadata(root: Path) -> None:
    (root / "train").mkdir()
    (root / "train" / "metadata.jsonl").write_text(lines(key="file_name"))
    photos(root / "train")


JSONL = (as_jsonl, as_one_jsonl, as_absolute_jsonl, as_metadata)


@pytest.mark.parametrize("layout", JSONL, ids=lambda layout: layout.__name__)
def test_json_lines(layout: Any, tmp_path: Path) -> None:
    layout(tmp_path)
    data = open_dataset("jsonl", "train", str(tmp_path))
    assert found(data) == WANTED and not data.dropped and len(data.paths) == 10
    parts = [open_dataset("jsonl", split, str(tmp_path), holdout=0.3) for split in ("train", "val")]
    assert [len(pictures(part)) for part in parts] == [7, 3] and not pictures(parts[0]) & pictures(parts[1])
    with pytest.raises(
        DataError,
        match="jsonl has no split 'val' there, it has train: name one with --split; --holdout 0.1 .*--eval_examples 0",
    ):
        open_dataset("jsonl", "val", str(tmp_path))


def rows_of(root: Path, *rows: Any, **options: Any) -> Any:
    """A data set of JSON Lines about one photo."""
    photos(root)
    text = "\n".join(row if isinstance(row, str) else json.dumps({"image": "00.jpg"} | row) for row in rows)
    (root / "train.jsonl").write_text(text)
    return open_dataset("jsonl", "train", str(root), **options)


def test_a_row_says_what_it_knows(tmp_path: Path) -> None:
    none, unknown, words, choice, counted, text = rows_of(
        tmp_path,
        {"query": "cat", "boxes": []},
        {"query": "dog"},
        {"query": "What is it?", "answer": 5, "boxes": [[1, 2, 3, 4]], "id": "mine"},
        {"query": "Which?", "answer": "red", "options": ["blue", "red"]},
        {"query": "bird", "count": 4},
        {"text": "STOP"},
    )
    assert none.count.number == 0 and none.exhaustive and len(none.boxes_px) == 0
    assert unknown.count is None and not unknown.exhaustive
    assert words.vqa.answers == ("5",) and words.vqa.evidence_px.tolist() == [[1, 2, 3, 4]] and words.id == "mine"
    assert words.asks_in_words
    assert choice.vqa.answer == "B" and choice.vqa.options == ("blue", "red")
    assert counted.count.number == 4 and text.text == "STOP"
    assert [one.image_id for one in (none, text)] == [1, 1] and unknown.category_id == 2


FORMS = {
    "xyxy": [16, 12, 48, 36],
    "xywh": [16, 12, 32, 24],
    "cxcywh": [32, 24, 32, 24],
    "xyxy_unit": [0.25, 0.25, 0.75, 0.75],
    "xywh_unit": [0.25, 0.25, 0.5, 0.5],
    "cxcywh_unit": [0.5, 0.5, 0.5, 0.5],
}


@pytest.mark.parametrize("form", FORMS)
def test_boxes_of_every_form_are_the_same_pixels(form: str, tmp_path: Path) -> None:
    (example,) = rows_of(tmp_path, {"query": "cat", "boxes": [FORMS[form]]}, box_format=form)
    assert example.boxes_px.tolist() == [FORMS["xyxy"]]
    (example,) = rows_of(tmp_path, {"query": "cat", "bbox": [FORMS["xywh"]]})  # as COCO calls them
    assert example.boxes_px.tolist() == [FORMS["xyxy"]]


WRONG_LINES = [
    ({"query": "cat", "boxes": [[16, 12, 8, 24]]}, "line 2 has a box without area as xyxy ([[16.0, 12.0, 8.0, 24.0]]), correct it, or say what the numbers are, as --data_options box_format=xywh"),
    ({"query": "cat", "boxes": [[0.1, 0.1, 0.5, 0.5]]}, "line 2 has boxes below 1 pixel ([[0.1, 0.1, 0.5, 0.5]]), correct it, or say what the numbers are, as --data_options box_format=xyxy_unit"),
    ({"query": "cat", "boxes": [[1, 2, 3]]}, "line 2 has the boxes [1, 2, 3], give lists of four finite numbers"),
    ({"query": "cat", "boxes": [1, 2, 3, 4]}, "line 2 has the boxes [1, 2, 3, 4], give lists of four finite numbers"),
    ({"query": " "}, "line 2 has no 'query', add what is asked"),
    ({"query": 7}, "line 2 has the query 7, give a text"),
    ({"query": "cat", "image": "../00.jpg"}, "line 2 has a file_name outside of its folder"),
    ({"query": "cat", "image": 7}, "line 2 has the image 7, give the name of a file"),
    ({"query": "dog", "boxes": []}, "line 2 asks the same as line 1, put all boxes into one row or give ids"),
    ({"query": "?", "answer": "a", "options": ["b", "c"]}, "line 2 has the answer 'a', which is none of its options"),
    ("{", "line 2 is not valid json"),
    ("[]", "line 2 is no object"),
]  # fmt: skip


@pytest.mark.parametrize("row, sentence", WRONG_LINES, ids=lambda one: str(one)[:40])
def test_a_wrong_row_is_left_out_and_named(row: Any, sentence: str, tmp_path: Path) -> None:
    data = rows_of(tmp_path, {"query": "dog"}, row)
    assert len(data) == 1 and len(data.dropped) == 1
    assert data.dropped[0].startswith(f"{tmp_path / 'train.jsonl'}: {sentence}")


def test_a_box_outside_of_its_picture_is_named_when_that_is_read(tmp_path: Path) -> None:
    data = rows_of(tmp_path, {"query": "cat", "boxes": [[60, 40, 99, 99]]}, {"query": "dog", "boxes": [[64, 0, 99, 9]]})
    assert data[0].boxes_px.tolist() == [[60, 40, 64, 48]]  # clipped
    with pytest.raises(DataError, match=r"line 2 has the box \[64.0, 0.0, 99.0, 9.0\] outside of its picture of 64x48"):
        data[1]


def test_rows_without_boxes_are_no_lesson_in_boxes(tmp_path: Path) -> None:
    data = rows_of(tmp_path, {"query": "cat"}, {"query": "dog", "boxes": []}, boxed=True)
    assert [example.query for example in data] == ["dog"]
    assert "line 1 has no 'boxes', from which this task learns, add them" in data.dropped[0]
    with pytest.raises(DataError, match="Nothing in it can be used: .*line 1 has no 'boxes'"):
        rows_of(tmp_path, {"query": "cat"}, boxed=True)
    config = TrainConfig(data=("jsonl",), data_root=str(tmp_path))
    with pytest.raises(DataError, match="line 1 has no 'boxes'"):
        open_questions(config, task_of(config))
    config = replace(config, task="counting", model="data/tiny-tasks")
    assert len(open_questions(config, task_of(config))) == 1


def test_a_list_of_json_is_no_json_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is one list of json, write every object of it on a line of its own"):
        rows_of(tmp_path, json.dumps([{"image": "00.jpg", "query": "cat"}]))


# ---------------------------------------------------------------------- YOLO


def as_roboflow_yolo(root: Path) -> None:
    settings = "train: ../train/images\nnc: 2\nnames: ['cat', 'red dog']\nroboflow:\n  workspace: me\n"
    yolo(root, settings, "train/images")


def as_segmentation(root: Path) -> None:
    yolo(root, "path: .\ntrain: images\nnames: [cat, red_dog]\n", "images", polygons=True)


def as_list(root: Path) -> None:
    """VOC's and COCO's own: a text file with the names of pictures."""
    yolo(root, "path: ../datasets/x\ntrain: [train.txt]\nnames: {0: cat, 1: red dog}\n", "images/train")
    (root / "train.txt").write_text("".join(f"./images/train/{name}\n" for name in NAMES))


YOLO = (as_ultralytics, as_roboflow_yolo, as_segmentation, as_list)


@pytest.mark.parametrize("layout", YOLO, ids=lambda layout: layout.__name__)
def test_yolo_folders(layout: Any, tmp_path: Path) -> None:
    layout(tmp_path)
    data = open_dataset("yolo", "train", str(tmp_path))
    assert found(data) == WANTED and not data.dropped
    assert len(open_dataset("yolo_det", "train", str(tmp_path))) == 10
    parts = [open_dataset("yolo", split, str(tmp_path), holdout=0.3) for split in ("train", "val")]
    assert [len(pictures(part)) for part in parts] == [7, 3]
    with pytest.raises(
        DataError, match="yolo has no split 'val' there, it has train: name one with --split; --holdout 0.1"
    ):
        open_dataset("yolo", "val", str(tmp_path))


def test_a_validation_split_of_yolo(tmp_path: Path) -> None:
    """Roboflow's folder is valid/, its key val."""
    as_roboflow_yolo(tmp_path)
    with (tmp_path / "data.yaml").open("a") as file:
        file.write("val: ../valid/images\n")
    (tmp_path / "train").rename(tmp_path / "valid")
    assert found(open_dataset("yolo", "val", str(tmp_path))) == WANTED
    with pytest.raises(DataError, match="'../train/images' is not below the data root"):
        open_dataset("yolo", "train", str(tmp_path))


WRONG_LABELS = [
    ("0 0.5 0.5 0.2", "line 1 has 4 numbers, give a class and x y w h, or a polygon"),
    ("0 50 50 20 20", "line 1 has [50.0, 50.0, 20.0, 20.0], give shares of the picture from 0 to 1"),
    ("0 nan 0.5 0.2 0.2", "give shares of the picture from 0 to 1"),
    ("cat 0.5 0.5 0.2 0.2", "line 1 holds no numbers"),
    ("7 0.5 0.5 0.2 0.2", "images/../labels/00.txt, line 1 names the unknown category id 7"),
    ("0 0.5 0.5 0.0 0.2", "line 1 has no area"),
]


@pytest.mark.parametrize("text, sentence", WRONG_LABELS)
def test_a_wrong_label_is_left_out_and_named(text: str, sentence: str, tmp_path: Path) -> None:
    as_segmentation(tmp_path)
    (tmp_path / "labels" / "00.txt").write_text(text)
    data = open_dataset("yolo", "train", str(tmp_path))
    assert len(data.dropped) == 1 and sentence.replace("images/../", "") in data.dropped[0]
    assert "labels/00.txt" in data.dropped[0] and found(data) == [one for one in WANTED if one[0] != "00.jpg"]


def test_poses_and_pictures_that_lie_on_their_side(tmp_path: Path) -> None:
    """The box of a pose stands before its points; labels are those of the picture as it is shown."""
    (tmp_path / "data.yaml").write_text("train: images\nkpt_shape: [1, 3]\nnames: [cat]\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(tmp_path / "images" / "a.jpg", exif=exif)
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5 0.1 0.1 2")
    (example,) = open_dataset("yolo", "train", str(tmp_path))
    assert example.size_px == (48, 64) and example.boxes_px.tolist() == [[12, 16, 36, 48]]


WRONG_YAML = [
    ("names: [cat", "this is not valid yaml"),
    ("- cat", "this holds no names and folders"),
    ("train: images", "'names' is None, give the classes"),
    ("names: [cat]\ntrain: images", "no picture of its split 'train' has a label beside it"),
    ("names: [cat]\ntrain: labels", "there is no picture in the folders of its split 'train'"),
]


@pytest.mark.parametrize("settings, sentence", WRONG_YAML)
def test_a_yaml_that_is_wrong_as_a_whole(settings: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(settings)
    (tmp_path / "labels").mkdir()
    photos(tmp_path / "images", NAMES[:1])
    with pytest.raises(DataError, match=f"data.yaml: {sentence}"):
        open_dataset("yolo", "train", str(tmp_path))


def test_another_form_is_recognised(tmp_path: Path) -> None:
    as_ultralytics(tmp_path)
    with pytest.raises(DataError, match="there is no instances_train.json.*it looks like --data yolo"):
        open_dataset("coco", "train", str(tmp_path))


# ---------------------------------------------------------------------- --holdout


def pictures(data: Any) -> set[str]:
    return {name for name, *_ in found(data)}


def test_a_holdout_divides_the_pictures_and_no_question_is_in_both(tmp_path: Path) -> None:
    as_fiftyone(tmp_path)
    parts = {split: open_dataset("coco", split, str(tmp_path), holdout=0.3) for split in ("train", "val")}
    train, val = (pictures(part) for part in parts.values())
    assert len(val) == 3 and train | val == set(NAMES) and not train & val
    assert sorted(found(parts["train"]) + found(parts["val"])) == WANTED
    assert [part.split for part in parts.values()] == ["train", "val"]
    by_picture = [open_dataset("coco_det", split, str(tmp_path), holdout=0.3) for split in ("train", "val")]
    assert [len(part) for part in by_picture] == [7, 3]
    assert pictures(open_dataset("coco", "valid", str(tmp_path), holdout=0.3)) == val
    draws = [pictures(open_dataset("coco", "val", str(tmp_path), holdout=0.3, seed=seed)) for seed in range(5)]
    assert draws[0] == val and len({frozenset(draw) for draw in draws}) > 1


def test_a_holdout_hangs_on_nothing_but_names_and_seed(tmp_path: Path) -> None:
    """Another folder, another process with another hash seed, another order, pictures that are added."""
    drawn = []
    for folder in ("a", "b/c"):
        as_fiftyone(tmp_path / folder)
        drawn.append(pictures(open_dataset("coco", "val", str(tmp_path / folder), holdout=0.2)))
    program = "from activeo3.data_set import held_out; print(sorted(held_out([f'data/{k:02d}.jpg' for k in range(10)], 0.2, 0)))"
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    drawn.append({name.removeprefix("data/") for name in eval(other)})
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == 2
    more = [f"{k:04d}.jpg" for k in range(1000)]
    before, after = held_out(more[:900], 0.1, 0), held_out(more, 0.1, 0)
    assert len(before) == 90 and len(after) == 100 and len(before - after) < 15


def test_what_cannot_be_held_out_is_said(tmp_path: Path) -> None:
    assert len(held_out(["a", "b"], 0.01, 0)) == len(held_out(["a", "b"], 0.99, 0)) == 1  # none is without pictures
    write(tmp_path / "labels.json", coco(names=NAMES[:1]))
    photos(tmp_path / "data", NAMES[:1])
    with pytest.raises(DataError, match="--holdout cannot divide a single picture"):
        open_dataset("coco", "train", str(tmp_path), holdout=0.1)
    for name in ("scenes", "refcoco"):
        with pytest.raises(DataError, match=f"{name}: it has splits of its own, leave out --holdout"):
            open_dataset(name, "train", str(tmp_path), holdout=0.1)
