"""Your own pictures in the forms that people have them: COCO folders of several programs, and --holdout.

Every folder is built as its program writes it; the truth that is expected is written down by hand.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from activeo3.data import open_dataset
from activeo3.data_io import DataError
from activeo3.data_set import held_out

ROOT = Path(__file__).parent.parent
SIZE = (64, 48)
NAMES = [f"{place:02d}.jpg" for place in range(10)]
"""Ten photos; each has a cat, every second one two dogs besides."""
CATS = {name: [[place, 2, place + 10, 12]] for place, name in enumerate(NAMES)}
DOGS = {name: [[20, 20, 40, 40], [50, 30, 64, 48]] for name in NAMES[::2]}
WANTED = sorted((name, query, boxes) for query, of in (("cat", CATS), ("red dog", DOGS)) for name, boxes in of.items())
"""(picture, query, boxes) of all questions."""


def photos(folder: Path, names: list[str] = NAMES) -> None:
    """The photos, each of a colour of its own."""
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (25 * place, 100, 50)).save(path)


def coco(prefix: str = "", string_ids: bool = False, names: list[str] = NAMES) -> dict[str, Any]:
    """The annotations of the photos in COCO's format; ``prefix`` stands before every file_name."""
    one = (lambda number: f"id-{number}") if string_ids else (lambda number: number)  # noqa: E731
    boxes = [(n, c, box) for n in names for c, of in ((1, CATS), (2, DOGS)) for box in of.get(n, [])]
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": one(7 + place), "file_name": prefix + name, "width": SIZE[0], "height": SIZE[1]}
            for place, name in enumerate(names)
        ],
        "categories": [
            {"id": one(1), "name": "cat", "supercategory": "animal"},
            {"id": one(2), "name": "red_dog", "supercategory": "animal"},
        ],
        "annotations": [
            {
                "id": one(100 + place),
                "image_id": one(7 + names.index(name)),
                "category_id": one(category),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "segmentation": [],
                "iscrowd": 0,
            }
            for place, (name, category, (x1, y1, x2, y2)) in enumerate(boxes)
        ],
    }


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def found(data: Any) -> list[tuple[str, str, list[list[float]]]]:
    """(picture, query, boxes) of all questions of a data set; the colour shows that the right picture was read."""
    questions = []
    for example in data:
        name = NAMES[round(example.image.getpixel((60, 2))[0] / 25)]
        questions.append((name, example.query, np.rint(example.boxes_px).astype(int).tolist()))
    return sorted(questions)


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


def as_label_studio(root: Path) -> None:
    write(root / "result.json", coco("images/"))
    photos(root / "images")


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
    assert f"{tmp_path}: coco has no split 'val' there, it has train;" in str(said.value)
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
    with pytest.raises(DataError, match="coco has no split 'train' there, it has val;"):
        open_dataset("coco", "train", str(tmp_path))
    write(tmp_path / "b.json", coco())
    write(tmp_path / "c.json", coco())  # of two files none is the one
    with pytest.raises(DataError, match="it has val;"):
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
