"""RefCOCO and the sets of Perception-R1 in small, in every published layout."""

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any, Callable

import pytest
from data_folders import GLOVE, SIDES, picture
from PIL import Image

from activeo3.data_io import DataError


def complaint(act: Callable[[], Any]) -> str:
    """The one sentence that something is refused with."""
    with pytest.raises(DataError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


NAME = "COCO_train2014_000000000042.jpg"

IMAGE = {"id": 42, "file_name": NAME, "width": 40, "height": 30}

OBJECTS = {  # annotation id: (bbox, split, phrases)
    1: ([5, 6, 10, 8], "val", ["red cup", "the cup  on the left"]),
    2: ([30, 20, 99, 99], "val", ["dog"]),
    3: ([1, 1, 2, 2], "testA", ["a person"]),
    4: ([2, 2, 3, 3], "train", ["chair"]),
}

WANTED = [("red cup", [5, 6, 15, 14]), ("the cup on the left", [5, 6, 15, 14]), ("dog", [30, 20, 40, 30])]

HUB = {"val": "validation", "testA": "test", "train": "train", "testB": "testB"}


def as_json(root: Path, objects: dict = OBJECTS, folder: str = "refcoco") -> None:
    (root / "mdetr_annotations").mkdir(exist_ok=True)
    for split in ("train", "val", "testA"):
        images, annotations = [], []
        for bbox, own, phrases in objects.values():
            for phrase in phrases if own == split else ():
                images.append(IMAGE | {"id": len(images), "original_id": 42, "caption": phrase, "dataset_name": folder})
                annotations.append({"id": len(images), "image_id": images[-1]["id"], "bbox": bbox, "category_id": 1})
        content = {"images": images, "annotations": annotations, "categories": []}
        (root / "mdetr_annotations" / f"finetune_{folder}_{split}.json").write_text(json.dumps(content))


def as_table(root: Path, objects: dict = OBJECTS, folder: str = "refcoco", **changes: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (root / folder / "data").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "testA"):
        rows = [
            {"raw_image_info": json.dumps(IMAGE), "raw_anns": json.dumps({"id": number, "image_id": 42, "bbox": bbox}),
             "captions": phrases, "split": own, "file_name": f"{NAME[:-4]}_{number}.jpg"} | changes
            for number, (bbox, own, phrases) in objects.items() if own == split
        ]  # fmt: skip
        parquet.write_table(
            pyarrow.Table.from_pylist(rows), root / folder / "data" / f"{HUB[split]}-00000-of-00001.parquet"
        )


def as_pickle(
    root: Path, objects: dict = OBJECTS, folder: str = "refcoco", partition: str = "unc", protocol: int = 2
) -> Path:
    (root / folder).mkdir(exist_ok=True)
    refs = [
        {"ref_id": number, "ann_id": number, "image_id": 42, "split": split, "category_id": 1, "sent_ids": [1],
         "file_name": f"{NAME[:-4]}_{number}.jpg",
         "sentences": [{"sent": phrase, "raw": phrase, "sent_id": 1, "tokens": phrase.split()} for phrase in phrases]}
        for number, (bbox, split, phrases) in objects.items()
    ]  # fmt: skip
    path = root / folder / f"refs({partition}).p"
    path.write_bytes(pickle.dumps(refs, protocol))
    annotations = [{"id": number, "image_id": 42, "bbox": bbox} for number, (bbox, *_) in objects.items()]
    (root / folder / "instances.json").write_text(json.dumps({"images": [IMAGE], "annotations": annotations}))
    return path


def picture(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def pixmo_row(content: bytes, label: str = "cup", count: int = 2, points: Any = ((1.5, 2.0), (30.0, 20.0))) -> dict:
    stored = None if points is None else {"x": [x for x, _ in points], "y": [y for _, y in points]}
    digest = hashlib.sha256(content).hexdigest()
    return {
        "image_url": f"https://example.org/{label}",
        "image_sha256": digest,
        "count": count,
        "points": stored,
        "label": label,
    }


def pixmo_set(root: Path, rows: list[dict], split: str = "train", pictures: dict[str, bytes] | None = None) -> str:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (root / "pixmo-count" / "data").mkdir(parents=True, exist_ok=True)
    (root / "pixmo-count" / "images").mkdir(exist_ok=True)
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), root / "pixmo-count" / "data" / f"{split}-00000-of-00001.parquet"
    )
    for name, content in (pictures or {}).items():
        (root / "pixmo-count" / "images" / name).write_bytes(content)
    return str(root)


def page_set(root: Path, rows: Any) -> str:
    (root / "pageocr" / "images").mkdir(parents=True, exist_ok=True)
    (root / "pageocr" / "train.json").write_text(json.dumps(rows))
    Image.new("RGB", (40, 60), "white").save(root / "pageocr" / "images" / "1.png")
    return str(root)


def told(text: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>\nOCR this image: "}, {"from": "gpt", "value": text}]


COCO = {
    "images": [{"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} for number in (7, 3, 5)],
    "categories": [{"id": 2, "name": "cat"}, {"id": 1, "name": "traffic_light"}, {"id": 9, "name": "x"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 10, 5], "area": 33.5},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [30, 20, 99, 99]},
        {"id": 3, "image_id": 7, "category_id": 9, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"id": 4, "image_id": 3, "category_id": 2, "bbox": [0.5, 0.5, 4, 4]},
    ],
}


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    """A parquet file of these rows."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def as_lmms_lab(root: Path, objects: dict = OBJECTS, hub: str = "RefCOCO") -> None:
    """lmms-lab's tables: a row per object, all sentences as the answer, bbox as x, y, w, h, the picture itself."""
    for split in ("val", "testA"):
        rows = [
            {"question_id": str(number), "image": {"bytes": picture(9), "path": f"{NAME[:-4]}.jpg"}, "question": "What is in the box?",
             "answer": phrases, "segmentation": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "bbox": [float(side) for side in bbox],
             "iscrowd": 0, "file_name": f"{NAME[:-4]}_{number}.jpg"}
            for number, (bbox, own, phrases) in objects.items() if own == split
        ]  # fmt: skip
        table(root / hub / "data" / f"{split}-00000-of-00001.parquet", rows)


def solutions(objects: dict, split: str) -> list[dict[str, Any]]:
    """Perception-R1's rows: a row per phrase, x1, y1, x2, y2 in pixels, and in thousandths beside them."""
    return [
        {"image": f"train2014/{NAME}", "problem": phrase, "solution": [x, y, x + w, y + h], "normalized_solution": [1, 2, 3, 4]}
        for (x, y, w, h), own, phrases in objects.values() if own == split for phrase in phrases
    ]  # fmt: skip


def as_perception_r1(
    root: Path, objects: dict = OBJECTS, below: str = "jsons/grounding", short: str = "refcoco"
) -> None:
    (root / below).mkdir(parents=True, exist_ok=True)
    for split in ("val", "testA"):
        (root / below / f"{short}_{split}.json").write_text(json.dumps(solutions(objects, split)))


def row_of(name: str, content: dict[str, Any], number: int, right: int) -> dict[str, str]:
    """A row of test_questions.jsonl: short options in an order of their own, and the letter of the right one."""
    words = [option.rstrip(".").split()[-1] for option in content["options"]]
    words = words[1 : right + 1] + words[:1] + words[right + 1 :]
    lines = [content["question"], *(f"({letter}) {word}" for letter, word in zip("ABCD", words))]
    text = "\n".join([*lines, "Answer with the option's letter from the given choices directly."])
    return {
        "image": f"{name}.jpg",
        "text": text,
        "category": name.split("/")[0],
        "label": "ABCD"[right],
        "question_id": str(number),
    }


ROWS = [
    row_of("direct_attributes/sa_17", GLOVE, 0, 2), row_of("direct_attributes/sa_4690", GLOVE, 1, 0),
    row_of("relative_position/sa_5", SIDES, 2, 1),
]  # fmt: skip


def vstar_lmms_lab(root: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    rows = [row | {"image": {"bytes": picture(90), "path": None}} for row in rows]
    table(root / "vstar-bench" / "data" / "test-00000-of-00001.parquet", rows)
