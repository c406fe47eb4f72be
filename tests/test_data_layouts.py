"""data_set.py, and the layouts that people have: each built as its publisher builds it, each read alike."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from data_folders import GLOVE, SIDES, lvis_set, lvis_v1, mask_of, picture, vstar_set
from PIL import Image
from refcoco_folders import (
    COCO,
    NAME,
    OBJECTS,
    ROWS,
    WANTED,
    as_lmms_lab,
    as_perception_r1,
    complaint,
    solutions,
    table,
    vstar_lmms_lab,
)

from activeo3 import (
    data_coco,
    data_lvis,
    data_perception,
    data_refcoco,
    data_set,
    data_thinobject,
    data_vqa,
)
from activeo3.data import open_dataset
from activeo3.data_files import files_of, folder_of, look_for, parent_of, present
from activeo3.geometry import rle_to_mask

# ---------------------------------------------------------------------- the mechanism


def test_the_first_pattern_with_a_file_counts(tmp_path: Path) -> None:
    for name in ("b/2.json", "b/1.json", "c/[x].json", "._a.json", "b/._1.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "folder.json").mkdir()
    found = files_of(tmp_path, ["a/*.json", "*.json", "b/*.json", "c/*.json"])
    assert (found.pattern, [path.name for path in found.paths], found.path.name) == (
        "b/*.json",
        ["1.json", "2.json"],
        "1.json",
    )
    assert look_for(tmp_path, ["c/{split}.json"], split="[x]").path.name == "[x].json"  # a split's name is no pattern
    assert look_for(tmp_path, ["b/{split}.json"], split="*") is None
    said = complaint(lambda: files_of(tmp_path, ["a/{split}.json", "b/{split}-*.parquet"], split="val"))
    assert said == f"{tmp_path}: there is neither a/val.json nor b/val-*.parquet, see data/README.md for the layout"
    assert folder_of(tmp_path, ["a", "c", "b"]) == tmp_path / "c" and folder_of(tmp_path, ["a", "d"]) == tmp_path / "a"
    assert (
        parent_of(tmp_path, ["x/{part}", "{part}"], ["a", "b"]) == tmp_path
        and parent_of(tmp_path, ["{part}"], ["a"]) is None
    )
    assert present([tmp_path / "b/1.json", tmp_path / "b/9.json", tmp_path / "no/1", tmp_path / "c/[x].json"]) == 2


def cached(root: Path, repository: str, files: dict[str, bytes], snapshot: str = "0f1e", main: bool = True) -> None:
    """A data set in the hub's cache: files are links from a snapshot to blobs, and ``refs/main`` names the snapshot."""
    home = root / f"datasets--{repository.replace('/', '--')}"
    for below in ("blobs", "refs", f"snapshots/{snapshot}"):
        (home / below).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob, link = home / "blobs" / hashlib.sha256(content).hexdigest(), home / "snapshots" / snapshot / name
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if main:
        (home / "refs" / "main").write_text(snapshot)


def test_the_cache_of_the_hub_is_a_data_root(tmp_path: Path) -> None:
    """What was downloaded without --local-dir lies in snapshots; the one that refs/main names is read."""
    files = {"test_questions.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode()}
    files |= {row["image"]: picture(90) for row in ROWS}
    cached(tmp_path, "craigwu/vstar_bench", {"test_questions.jsonl": b"{}"}, "older", main=False)
    cached(tmp_path, "craigwu/vstar_bench", files)
    data = open_dataset("vstar", "test", str(tmp_path))
    assert len(data) == 3 and data[2].size_px == (40, 30) and "0f1e" in str(data.paths[0])
    lines = ["index\tquestion\tanswer\tcategory\tA\tB\tC\tD\tcycle_category\timage",
             f"0\tWhich?\tB\tsingle\tred\tblue\tgreen\tpink\t0\t{base64.b64encode(picture(9)).decode()}"]  # fmt: skip
    cached(tmp_path, "DreamMr/HR-Bench", {"hr_bench_4k.tsv": "\n".join(lines).encode()})
    assert open_dataset("hrbench", "test", str(tmp_path))[0].vqa.answer == "B"
    as_lmms_lab(tmp_path / "there")
    tables = {f"data/{path.name}": path.read_bytes() for path in (tmp_path / "there" / "RefCOCO" / "data").iterdir()}
    cached(tmp_path, "lmms-lab/RefCOCO", tables, main=False)  # its only snapshot
    assert [e.query for e in open_dataset("refcoco", "val", str(tmp_path))] == [phrase for phrase, _ in WANTED]
    cached(tmp_path, "lmms-lab/RefCOCO", tables, "another", main=False)  # nobody says which of the two
    assert "there is neither" in complaint(lambda: open_dataset("refcoco", "val", str(tmp_path)))
    vstar_lmms_lab(tmp_path)  # an own folder counts more than the cache
    (tmp_path / "vstar-bench").rename(tmp_path / "vstar_bench")
    assert open_dataset("vstar", "test", str(tmp_path)).paths == ()


# ---------------------------------------------------------------------- COCO and LVIS

COCO_LAYOUTS = {
    "coco/annotations/instances_val2017.json": ["coco/val2017", "coco/images/val2017", "images/val2017", "val2017"],
    "annotations/instances_val2017.json": ["val2017", "images/val2017"],
    "eval/jsons/detection/coco_val2017.json": ["eval/images/coco/val2017"],
    "jsons/detection/coco_val2017.json": ["images/coco/val2017"],
    "instances_val.json": ["images"],
}


@pytest.mark.parametrize(
    "index, images", [(index, folder) for index, folders in COCO_LAYOUTS.items() for folder in folders]
)
def test_coco_in_the_layouts_of_its_users(tmp_path: Path, index: str, images: str) -> None:
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / index).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / index).write_text(json.dumps(COCO))
    for row in COCO["images"]:
        Image.new("RGB", (40, 30)).save(tmp_path / images / row["file_name"])
    data = open_dataset("coco_det", "val", str(tmp_path))
    assert [e.image_id for e in data] == [3, 5, 7] and data.paths[0].parent == tmp_path / images


@pytest.mark.parametrize("index", ["lvis", "lvis/annotations", "lvis_v1/annotations", "coco/annotations"])
@pytest.mark.parametrize("pictures", ["coco", "coco/images", "lvis", "lvis_v1", "images", "."])
def test_lvis_in_the_layouts_of_its_users(tmp_path: Path, index: str, pictures: str) -> None:
    lvis_set(tmp_path, lvis_v1())
    content = (tmp_path / "lvis" / "lvis_v1_val.json").read_text()
    (tmp_path / "lvis" / "lvis_v1_val.json").unlink()
    (tmp_path / index).mkdir(parents=True, exist_ok=True)
    (tmp_path / index / "lvis_v1_val.json").write_text(content)
    (tmp_path / pictures).mkdir(parents=True, exist_ok=True)
    for part in list((tmp_path / "coco").glob("*2017")):
        part.rename(tmp_path / pictures / part.name)
    data = open_dataset("lvis_small", "val", str(tmp_path))
    assert len(data) == 1 and data[0].size_px and all(path.is_file() for path in data.paths)
    assert [path.parent for path in (tmp_path / index).glob("queries_*")] == [tmp_path / index]


# ---------------------------------------------------------------------- RefCOCO


ASKED = "Please provide the bounding box coordinate of the region this sentence describes: {}."


def as_vlm_r1(root: Path, objects: dict = OBJECTS, short: str = "refcoco") -> None:
    """VLM-R1's json for evaluation: the problem is a sentence that asks for the box."""
    (root / "rec_jsons_processed").mkdir(exist_ok=True)
    for split in ("val", "testA"):
        rows = [row | {"problem": ASKED.format(row["problem"])} for row in solutions(objects, split)]
        rows = [{key: row[key] for key in ("image", "problem", "solution")} for row in rows]
        (root / "rec_jsons_processed" / f"{short}_{split}.json").write_text(json.dumps(rows))


def as_vlm_r1_lines(root: Path, objects: dict = OBJECTS) -> None:
    """VLM-R1's json lines for training: a conversation of the sentence and the box as text."""
    (root / "rec_jsons_processed").mkdir(exist_ok=True)
    for split in ("val", "testA"):
        rows = [
            {"id": k, "image": row["image"], "conversations": [{"from": "human", "value": f"<image>{ASKED.format(row['problem'])}"},
                                                                {"from": "gpt", "value": json.dumps(row["solution"])}]}
            for k, row in enumerate(solutions(objects, split))
        ]  # fmt: skip
        (root / "rec_jsons_processed" / f"refcoco_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def as_perception_r1_table(root: Path, objects: dict = OBJECTS) -> None:
    for split in ("val", "testA"):
        inside = {"image": {"bytes": picture(9), "path": NAME}}
        rows = [row | inside | {"solution": json.dumps(row["solution"])} for row in solutions(objects, split)]
        table(root / "refcoco" / "data" / f"{split}-00000-of-00002.parquet", rows)


LAYOUTS: dict[str, Callable] = {
    "lmms-lab": as_lmms_lab, "perception-r1": as_perception_r1, "vlm-r1": as_vlm_r1, "vlm-r1 lines": as_vlm_r1_lines,
    "perception-r1 eval": lambda root: as_perception_r1(root, below="eval/jsons/grounding"), "tables": as_perception_r1_table,
}  # fmt: skip


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_refcoco_is_the_same_in_every_layout(root: Path, write: Callable) -> None:
    """The same phrases and boxes as in the layouts of test_data_perception.py; boxes are clipped when the picture is
    read."""
    write(root)
    data = open_dataset("refcoco", "val", str(root))
    assert [(e.query, e.boxes_px[0].tolist()) for e in data] == WANTED
    assert [e.query for e in open_dataset("refcoco", "testA", str(root))] == ["a person"]
    if write in (as_lmms_lab, as_perception_r1_table):
        assert data.paths == () and data[0].image.getpixel((0, 0)) == (9, 0, 0)
    else:
        assert data.paths == (root / "coco" / "train2014" / NAME,)
    if write is not as_perception_r1_table:  # which does not say whose picture it is
        assert {e.image_id for e in data} == {42}


@pytest.mark.parametrize(
    "folder", ["coco/images/train2014", "images/mscoco/images/train2014", "train2014", "eval/images/coco/train2014"]
)
def test_the_pictures_of_2014_lie_in_many_places(root: Path, folder: str) -> None:
    as_vlm_r1(root)
    (root / folder).parent.mkdir(parents=True, exist_ok=True)
    (root / "coco" / "train2014").rename(root / folder)
    data = open_dataset("refcoco", "val", str(root))
    assert data.paths == (root / folder / NAME,) and data[0].size_px == (40, 30)


def test_all_three_sets_by_all_names(root: Path) -> None:
    for name, family in data_refcoco.FAMILIES.items():
        as_lmms_lab(root, {1: ([1, 1, 5, 5], "val", [f"{name} of lmms-lab"])}, family.hub)
        assert open_dataset(name, "val", str(root))[0].query == f"{name} of lmms-lab"
    for path in root.glob("*/data/*.parquet"):
        path.unlink()
    for name, family in data_refcoco.FAMILIES.items():
        as_perception_r1(root, {1: ([1, 1, 5, 5], "val", [f"{name} of others"])}, short=family.short)
        assert open_dataset(name, "val", str(root))[0].query == f"{name} of others"


def test_lmms_labs_val_holds_two_partitions(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (data_refcoco._UNC_VAL, data_refcoco._UNC_AND_GOOGLE) == (3_811, 8_811)
    monkeypatch.setattr(data_refcoco, "_UNC_VAL", 1)
    monkeypatch.setattr(data_refcoco, "_UNC_AND_GOOGLE", 2)
    as_lmms_lab(root)
    data = open_dataset("refcoco", "val", str(root))
    assert [e.query for e in data] == [phrase for phrase, _ in WANTED[:2]]
    assert data.dropped == (f"{root}/RefCOCO/data: 1 rows behind the first 1 are of the partition google",)


BROKEN = [
    ({"solution": [1, 2, 3]}, "row 0 has the solution [1, 2, 3], give x1, y1, x2, y2 in pixels"),
    ({"solution": "somewhere"}, "row 0 has the solution 'somewhere'"),
    ({"solution": [5, 5, 5, 9]}, "row 0 has a box without area"),
    ({"image": "../secret.jpg"}, "outside of its folder"),
    ({"problem": None}, "row 0 has an empty phrase"),
    ({"problem": ASKED.format("")}, "row 0 has an empty phrase"),
]


@pytest.mark.parametrize("change, sentence", BROKEN)
def test_a_broken_solution_is_left_out(root: Path, change: dict, sentence: str) -> None:
    rows = solutions(OBJECTS, "val")
    rows[0] |= change
    (root / "jsons" / "grounding").mkdir(parents=True)
    (root / "jsons" / "grounding" / "refcoco_val.json").write_text(json.dumps(rows))
    data = open_dataset("refcoco", "val", str(root))
    assert len(data) == 2 and len(data.dropped) == 1 and sentence in data.dropped[0] and "\n" not in data.dropped[0]


def test_what_is_no_table_of_refcoco_and_a_box_outside(root: Path) -> None:
    rows = solutions(OBJECTS, "val")
    rows[1]["solution"] = [100, 100, 120, 130]
    (root / "jsons" / "grounding").mkdir(parents=True)
    (root / "jsons" / "grounding" / "refcoco_val.json").write_text(json.dumps(rows))
    data = open_dataset("refcoco", "val", str(root))
    assert "the box (100.0, 100.0, 120.0, 130.0) lies outside of its picture of (40, 30)" in complaint(lambda: data[1])
    (root / "jsons" / "grounding" / "refcoco_val.json").write_text("{}")
    assert "needs a list of objects with image, problem and solution" in complaint(
        lambda: open_dataset("refcoco", "val", str(root))
    )
    # Without thousandths beside it nobody knows whether a solution is in pixels.
    row = {"image": {"bytes": picture(9)}, "problem": "dog", "solution": "[1, 2, 3, 4]"}
    table(root / "refcoco" / "data" / "val-00000-of-00001.parquet", [row])
    assert "the columns are image, problem, solution; a table of RefCOCO has raw_image_info" in complaint(
        lambda: open_dataset("refcoco", "val", str(root))
    )


# ---------------------------------------------------------------------- V*Bench


def vstar_list(root: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    vstar_set(root)
    for path in (root / "vstar_bench").glob("*/*.json"):
        path.unlink()
    (root / "vstar_bench" / "test_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def vstar_converted(root: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    """The hub's own conversion of the list: names of files in place of pictures."""
    vstar_list(root)
    (root / "vstar_bench" / "test_questions.jsonl").unlink()
    table(root / "vstar_bench" / "default" / "test" / "0000.parquet", rows)


@pytest.mark.parametrize("write", [vstar_list, vstar_lmms_lab, vstar_converted])
def test_vstar_by_its_list(tmp_path: Path, write: Callable) -> None:
    write(tmp_path)
    data = open_dataset("vstar", "test", str(tmp_path))
    assert [e.vqa.options for e in data][0] == ("cotton", "kevlar", "rubber", "leather")
    assert [e.vqa.answer for e in data] == ["C", "A", "B"]
    assert [e.query for e in data] == [GLOVE["question"]] * 2 + [SIDES["question"]]
    assert [e.vqa.category for e in data] == ["direct_attributes"] * 2 + ["relative_position"]
    assert all(e.size_px == (40, 30) and e.boxes_px.shape == (0, 4) for e in data)
    inside = write is vstar_lmms_lab
    assert data[0].id == ("direct_attributes/0" if inside else "direct_attributes/sa_17")
    assert len(data.paths) == (0 if inside else 3) and len({e.image_id for e in data}) == 3


def test_the_authors_files_come_before_their_list(tmp_path: Path) -> None:
    vstar_list(tmp_path)
    (tmp_path / "vstar_bench" / "direct_attributes" / "sa_17.json").write_text(json.dumps(GLOVE))
    data = open_dataset("vstar", "test", str(tmp_path))
    assert len(data) == 1 and data[0].boxes_px.shape == (1, 4)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"label": "E"}, "row 1 has the label 'E' and 4 options"),
        ({"label": None}, "row 1 has the label '' and 4 options"),
        ({"text": "What is it?"}, "row 1 has the label 'A' and 0 options"),
        ({"image": "../x.jpg"}, "row 1 has a file_name outside"),
        ({"category": ...}, "row 1 has no 'category'"),
    ],
)
def test_a_broken_row_of_vstar_is_left_out(tmp_path: Path, change: dict, sentence: str) -> None:
    broken = {key: value for key, value in (ROWS[1] | change).items() if value is not ...}
    vstar_list(tmp_path, [ROWS[0], broken, ROWS[2]])
    data = open_dataset("vstar", "test", str(tmp_path))
    assert len(data) == 2 and len(data.dropped) == 1 and sentence in data.dropped[0]
    with (tmp_path / "vstar_bench" / "test_questions.jsonl").open("a") as file:
        file.write("{no json\n")
    assert "row 3 is not valid json" in open_dataset("vstar", "test", str(tmp_path)).dropped[1]


def test_options_are_found_by_their_letters() -> None:
    assert data_vqa.options_in("Which? (A) one (B) two, (C)three (C) four") == (
        "Which?",
        ("one", "two, (C)three", "four"),
    )
    assert data_vqa.options_in("What does the sign (B) say?") == ("What does the sign (B) say?", ())


# ---------------------------------------------------------------------- thin objects


@pytest.mark.parametrize("home", ["thin_object_detection/ThinObject5K", "ThinObject5K"])
def test_thin_objects_as_sam_hq_has_them(tmp_path: Path, home: str) -> None:
    """SAM-HQ has no lists: the folder is the split, train or test."""
    for split, names in (("train", ("web.v2", "bee")), ("test", ("ant",))):
        for below in ("images", "masks"):
            (tmp_path / home / f"{below}_{split}").mkdir(parents=True)
        for seed, name in enumerate(names):
            Image.new("RGB", (30, 20), (200, 10 * seed, 0)).save(tmp_path / home / f"images_{split}" / f"{name}.jpg")
            Image.fromarray(mask_of(seed)).save(tmp_path / home / f"masks_{split}" / f"{name}.png")
    data = open_dataset("thinobject5k", "train", str(tmp_path))
    assert [e.id for e in data] == ["bee", "web.v2"] and [
        e.id for e in open_dataset("thinobject5k", "test", str(tmp_path))
    ] == ["ant"]
    for example, seed in zip(data, (1, 0)):
        assert np.array_equal(rle_to_mask(example.masks()[0]), mask_of(seed) > 127)
    said = complaint(lambda: open_dataset("thinobject5k", "val", str(tmp_path)))
    assert (
        "neither val.txt in ThinObject5K/list or thin_object_detection/ThinObject5K/list nor *.jpg in thin_object"
        in said
    )


def test_data_readme_shows_every_layout() -> None:
    """The page for people names what the readers look for, up to splits and numbers of parts."""
    text = (Path(data_set.__file__).parent.parent / "data" / "README.md").read_text()
    folders = {"rec_jsons_processed", "jsons/grounding", "RefCOCO/data", "test_questions.jsonl", "vstar-bench/data",
               "thin_object_detection/ThinObject5K", "lvis/annotations", "coco/images/train2017",
               "images/mscoco/images/train2014", "pixmo_images"}  # fmt: skip
    assert {folder for folder in folders if folder not in text} == set()
    known = [
        *data_coco.COCO_FILES,
        *data_lvis.FILES,
        *data_lvis.FOLDERS,
        *data_refcoco.LAYOUTS,
        *data_vqa.VSTAR_TABLES,
        data_vqa.VSTAR_LINES,
    ]
    known += [*data_thinobject.FOLDERS, *data_perception.FOLDERS]
    firsts = (
        {pattern.split("/")[0] for pattern in known}
        | {family.hub for family in data_refcoco.FAMILIES.values()}
        | {"vstar_bench"}
    )
    assert {folder for folder in folders - {"test_questions.jsonl"} if folder.split("/")[0] not in firsts} == set()
