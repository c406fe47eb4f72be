"""Small folders of data sets, as their publishers lay them out."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import pytest
from PIL import Image

from activeo3 import (
    data_docvqa,
)
from activeo3.data_docvqa import Word

PAGE = (200, 100)

LINES = [
    ["Invoice", "No.", "4711"],
    ["Total", "due:", "$", "1,284.50"],
    ["New", "York,", "May", "1968"],
    ["copy", "of", "4711"],
]


def page_words(lines: Sequence[Sequence[str]] = LINES) -> list[Word]:
    """Words in lines, each 20 pixels high and 40 wide, from the top left corner on."""
    return [
        Word(text, (40.0 * x, 20.0 * y, 40.0 * x + 38, 20.0 * y + 16))
        for y, line in enumerate(lines)
        for x, text in enumerate(line)
    ]


def box_of(*texts: str) -> list[list[float]]:
    return [list(word.box) for word in page_words() if word.text in texts]


def ocr(size: tuple[int, int] = PAGE, lines: Sequence[Sequence[str]] = LINES) -> dict[str, Any]:
    """Microsoft's OCR of the page, as the task publishes it."""
    scale = np.array([size[0] / PAGE[0], size[1] / PAGE[1]])
    words = []
    for word in page_words(lines):
        x1, y1, x2, y2 = (np.array(word.box) * np.tile(scale, 2)).tolist()
        words.append({"boundingBox": [x1, y1, x2, y1, x2, y2, x1, y2], "text": word.text})
    read = {"page": 1, "clockwiseOrientation": 359.9, "width": size[0], "height": size[1], "unit": "pixel"}
    return {
        "status": "Succeeded",
        "recognitionResults": [read | {"lines": [{"boundingBox": [0] * 8, "text": "", "words": words}]}],
    }


ROWS = [
    {"questionId": 1, "question": "What is the total?", "question_types": ["table/list"], "image": "documents/ab_1.png", "docId": 5,
     "ucsf_document_id": "ab", "ucsf_document_page_no": "1", "answers": ["$1,284.50", "1,284.50"], "data_split": "val"},
    {"questionId": 2, "question": "Which city?", "question_types": ["form", "layout"], "image": "documents/ab_1.png", "docId": 5,
     "ucsf_document_id": "ab", "ucsf_document_page_no": "1", "answers": ["new york"], "data_split": "val"},
    {"questionId": 3, "question": "Is it signed?", "question_types": ["Yes/No"], "image": "documents/cd_7.png", "docId": 6,
     "ucsf_document_id": "cd", "ucsf_document_page_no": "7", "answers": ["no signature"], "data_split": "val"},
]  # fmt: skip


def docvqa_json(root: Path, layout: int = 0, rows: Sequence[dict[str, Any]] = ROWS, split: str = "val") -> str:
    """The task's json files, with pictures and OCR, in one of the layouts; the second page has no OCR."""
    questions, pictures, read = (root / "DocVQA" / part.format(split=split) for part in data_docvqa.LAYOUTS[layout])
    for folder in (questions.parent, pictures, read):
        folder.mkdir(parents=True, exist_ok=True)
    questions.write_text(
        json.dumps({"dataset_name": "docvqa", "dataset_split": split, "dataset_version": "0.1", "data": list(rows)})
    )
    for number, name in enumerate(("ab_1", "cd_7")):
        Image.new("RGB", PAGE, (90 + number, 0, 0)).save(pictures / f"{name}.png")
    (read / "ab_1.json").write_text(json.dumps(ocr()))
    return str(root)


def mask_of(seed: int, size: tuple[int, int] = (30, 20)) -> np.ndarray:
    """Grey values (H, W) as an alpha channel has them: a thin line with soft borders."""
    values = np.zeros(size[::-1], dtype=np.uint8)
    for k in range(5, 15):
        values[k, k + seed : k + seed + 4] = (90, 127, 128, 255)
    return values


def thin_set(root: Path, names: tuple[str, ...] = ("bee", "web.v2"), split: str = "val") -> str:
    """The published layout: lists of mask names, jpg pictures, png masks."""
    folder = root / "ThinObject5K"
    for below in ("images", "masks", "list"):
        (folder / below).mkdir(parents=True)
    (folder / "list" / f"{split}.txt").write_text("".join(f"{name}.png\n" for name in names))
    for seed, name in enumerate(names):
        Image.new("RGB", (30, 20), (200, 10 * seed, 0)).save(folder / "images" / f"{name}.jpg", quality=100)
        Image.fromarray(mask_of(seed)).save(folder / "masks" / f"{name}.png")
    return str(root)


def picture(red: int, size: tuple[int, int] = (40, 30), kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(file, kind, **options)
    return file.getvalue()


GLOVE = {
    "target_object": ["glove"],
    "bbox": [[10, 5, 8, 6]],
    "question": "What is the material of the glove?",
    "options": ["The material of the glove is rubber.", "The material of the glove is cotton.",
                "The material of the glove is kevlar.", "The material of the glove is leather."],
}  # fmt: skip

SIDES = {
    "target_object": ["dog", "red car"],
    "bbox": [[0, 0, 4, 4], [30, 20, 99, 5]],
    "question": "Is the dog left or right of the red car?",
    "options": ["The dog is left of the red car.", "The dog is right of the red car."],
}


def vstar_set(root: Path, attributes: dict[str, dict] | None = None) -> str:
    """The published layout: a jpg and a json of the same name, in a folder per kind of question."""
    parts = {
        "direct_attributes": attributes or {"sa_4690": GLOVE, "sa_17": GLOVE},
        "relative_position": {"sa_5": SIDES},
    }
    for kind, files in parts.items():
        (root / "vstar_bench" / kind).mkdir(parents=True)
        for name, content in files.items():
            (root / "vstar_bench" / kind / f"{name}.json").write_text(json.dumps(content))
            (root / "vstar_bench" / kind / f"{name}.jpg").write_bytes(picture(90, kind="JPEG"))
    return str(root)


HEADER = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment",
          "split"]  # fmt: skip


def mmbench_row(index: int, image: bytes | str, answer: str = "B", **cells: str) -> dict[str, str]:
    row = dict.fromkeys(HEADER, "") | {"index": str(index), "question": f"Which, {index}?", "A": "cat", "B": "dog", "C": "hen",
                                       "answer": answer, "category": "identity", "split": "dev"}  # fmt: skip
    row["image"] = image if isinstance(image, str) else base64.b64encode(image).decode()
    return row | cells


def mmbench_set(root: Path, rows: list[dict[str, str]], header: list[str] | None = None) -> str:
    (root / "MMBench").mkdir(parents=True)
    with (root / "MMBench" / "MMBench_DEV_EN_V11.tsv").open(
        "w", newline="", encoding="utf-8", errors="surrogatepass"
    ) as file:
        writer = csv.DictWriter(file, header or HEADER, delimiter="\t", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return str(root)


def parquet_set(root: Path, name: str, files: list[list[dict[str, Any]]], group: int = 2) -> str:
    """Files as the hub stores them: ``image`` is a struct of a picture file's bytes and its path."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (root / name / "data").mkdir(parents=True)
    for number, rows in enumerate(files):
        path = root / name / "data" / f"test-{number:05}-of-{len(files):05}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return str(root)


def mme_row(name: str, red: int, answer: str) -> dict[str, Any]:
    return {
        "question_id": name, "image": {"bytes": picture(red), "path": None},
        "question": f"Is this red {red}? Please answer yes or no.", "answer": answer,
        "category": name.partition("/")[0] if "/" in name else "color",
    }  # fmt: skip


def hrbench_rows(image: Any, number: int = 0, kind: str = "single") -> list[dict[str, Any]]:
    """A question of HR-Bench under the four rotations of its options."""
    options = [f"27{letter}" for letter in "BDEF"]
    return [
        {"index": str(number + k), "question": f"What is on sign {number}?", **dict(zip("ABCD", options[k:] + options[:k])),
         "answer": "ABCD"[-k % 4], "category": kind, "cycle_category": str(k), "image": image}
        for k in range(4)
    ]  # fmt: skip


def hrbench_set(root: Path, name: str = "hr_bench_4k") -> str:
    (root / "HR-Bench").mkdir(parents=True, exist_ok=True)
    rows = [
        *hrbench_rows(base64.b64encode(picture(10)).decode()),
        *hrbench_rows(base64.b64encode(picture(20)).decode(), 4, "cross"),
    ]
    with (root / "HR-Bench" / f"{name}.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return str(root)


def questions_on_disk(root: Path, parquet: bool) -> list[str]:
    """The public files in small; returns the data sets that were written."""
    vstar_set(root)
    rows = [
        mmbench_row(1, picture(10)),
        mmbench_row(1_000_001, "1", "A"),
        mmbench_row(2_000_001, "1", "C"),
        mmbench_row(2, picture(20), hint="Look."),
    ]
    mmbench_set(root, rows)
    hrbench_set(root)
    if not parquet:
        return ["hrbench", "mmbench", "vstar"]
    parquet_set(root, "MME", [[mme_row(f"color/{k // 2}.jpg", k, "No" if k % 2 else "Yes") for k in range(4)]])
    real = [
        {"image": {"bytes": picture(k), "path": None}, "question": f"Which?\n\nA. {k}\nB. no", "answer": "B"}
        for k in range(2)
    ]
    parquet_set(root, "RealworldQA", [real])
    return ["hrbench", "mme", "mmbench", "realworldqa", "vstar"]


FREQUENCIES = {"AP_r": "APr", "AP_c": "APc", "AP_f": "APf"}

NAMES = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "AP_s": "APs", "AP_m": "APm", "AP_l": "APl",
         "AR": "AR@300", "AR_s": "ARs@300", "AR_m": "ARm@300", "AR_l": "ARl@300"}  # fmt: skip


def small_lvis(seed: int = 0, partly: bool = True) -> dict[str, Any]:
    """Twelve pictures and six categories: some present, some known to be absent, the rest not checked."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for number in rng.permutation(12) + 1:
        kinds = rng.permutation(6) + 1
        there, absent = kinds[: rng.integers(1, 4)], kinds[3:5]
        some = there[:1].tolist() if partly and rng.random() < 0.5 else []
        images.append({"id": int(number), "width": 400, "height": 300, "coco_url": f"http://images.cocodataset.org/val2017/{number}.jpg",
                       "neg_category_ids": absent.tolist(), "not_exhaustive_category_ids": some})  # fmt: skip
        for kind in there:
            for _ in range(rng.integers(1, 5)):
                (x, y), (w, h) = rng.uniform(0, 150, 2).round(2), rng.uniform(5, 149, 2).round(2)
                annotations.append({"id": len(annotations) + 1, "image_id": int(number), "category_id": int(kind), "bbox": [x, y, w, h],
                                    "area": float(w * h * 0.7), "segmentation": [[x, y, x + w, y, x + w, y + h]]})  # fmt: skip
    categories = [{"id": k, "name": f"thing_{k}", "frequency": "rcf"[k % 3]} for k in range(1, 7)]
    return {"info": {}, "licenses": [], "images": images, "categories": categories, "annotations": annotations}


def theirs(monkeypatch: pytest.MonkeyPatch, annotations: Path, predictions: Path) -> dict[str, float]:
    """What the package finds in two files, and nothing of ours."""
    lvis = pytest.importorskip("lvis", exc_type=ImportError)
    monkeypatch.setattr(np, "float", float, raising=False)  # its last release is older than numpy without np.float
    evaluation = lvis.LVISEval(str(annotations), str(predictions), iou_type="bbox")
    boxed = {row["category_id"] for row in evaluation.lvis_gt.dataset["annotations"]}
    evaluation.params.cat_ids = sorted(boxed)  # the others have no number, and there are a thousand of them
    evaluation.run()
    return {ours: float(evaluation.results[name]) for ours, name in (NAMES | FREQUENCIES).items()}


def lvis_folder(root: Path, seed: int, names: Sequence[str] = ()) -> str:
    """A folder of the user's with LVIS's annotations, and its pictures; the categories may get ``names``."""
    (root / "images").mkdir(parents=True)
    content = small_lvis(seed)
    for row, name in zip(content["categories"], names):
        row["name"] = name
    (root / "instances_val.json").write_text(json.dumps(content))
    for row in content["images"]:
        Image.new("L", (row["width"], row["height"])).save(root / "images" / row["coco_url"].rpartition("/")[2])
    return str(root)


def lvis_v1(split: str = "val") -> dict[str, Any]:
    """An LVIS v1 file: picture 11 has a tiny pin and a cup, 12 is crowded, 13 has only a large cup.

    Pictures are named by their url alone, and 12 comes from COCO's training pictures, as many of LVIS do.
    """

    def image(number: int, folder: str, **federated: list[int]) -> dict[str, Any]:
        return {"id": number, "coco_url": f"http://images.cocodataset.org/{folder}/{number:012}.jpg", "width": 64, "height": 48,
                "flickr_url": "", "license": 3, "date_captured": "2013-11-14",
                "neg_category_ids": [], "not_exhaustive_category_ids": []} | federated  # fmt: skip

    def box(number: int, picture: int, category: int, x: float, side: float) -> dict[str, Any]:
        corners = [x, 0, x + side, 0, x + side, side, x, side]
        return {"id": number, "image_id": picture, "category_id": category, "bbox": [x, 0, side, side],
                "area": side * side, "segmentation": [corners]}  # fmt: skip

    category = {"synset": "", "synonyms": [], "def": "", "instance_count": 9, "image_count": 9}
    return {
        "info": {"version": "v1.0"}, "licenses": [],
        "images": [image(13, "val2017"), image(11, "val2017", not_exhaustive_category_ids=[7], neg_category_ids=[5]),
                   image(12, "train2017")],
        "categories": [category | {"id": k, "name": name, "frequency": mark}
                       for k, name, mark in ((7, "pin", "r"), (3, "coffee_cup", "c"), (5, "dog", "f"))],
        "annotations": [
            box(1, 11, 7, 0, 9.9), box(2, 11, 3, 20, 20), box(3, 11, 7, 40, 15), box(4, 13, 3, 0, 10.0),
            *(box(10 + k, 12, 5 if k else 7, 3.5 * k, 11) for k in range(16)),
        ],
    }  # fmt: skip


def lvis_set(root: Path, content: dict[str, Any], name: str = "lvis_v1_val.json", pictures: str = "coco") -> str:
    """The folders as data/README.md tells to unpack them."""
    (root / "lvis").mkdir(parents=True)
    (root / "lvis" / name).write_text(json.dumps(content))
    for row in content["images"]:
        part = row["coco_url"].removeprefix("http://images.cocodataset.org/")
        path = root / "coco" / part if pictures == "coco" else root / "lvis" / "images" / Path(part).name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (row["width"], row["height"]), (row["id"], 0, 0)).save(path, quality=100)
    return str(root)


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose pixels say where they are: red is x, green is y, both modulo 256."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], axis=2).astype(np.uint8))


def driving_set(root: Path, split: str, annotations: list[dict[str, Any]], size: tuple[int, int] = (300, 200)) -> str:
    """SODA-D's two folders with one picture of id 41."""
    names = ["people", "rider", "bicycle", "motor", "vehicle", "traffic-sign", "traffic-light", "traffic-camera",
             "warning-cone", "ignore"]  # fmt: skip
    content = {
        "images": [{"id": 41, "file_name": "00041.jpg", "width": size[0], "height": size[1]}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
        "annotations": [
            {"id": k, "image_id": 41, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]} | row
            for k, row in enumerate(annotations)
        ],
    }
    (root / "SODA-D" / "Annotations").mkdir(parents=True)
    (root / "SODA-D" / "Images").mkdir()
    (root / "SODA-D" / "Annotations" / f"{split}.json").write_text(json.dumps(content))
    gradient(*size).save(root / "SODA-D" / "Images" / "00041.jpg", quality=95)
    return str(root)


def index() -> dict[str, Any]:
    """Two pictures, three categories, ids in no order; picture 7 has cats and a red blood cell."""
    return {
        "images": [
            {"id": 7, "file_name": "seven.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "sub/three.png", "width": 20, "height": 20},
        ],
        "categories": [
            {"id": 2, "name": "cat"},
            {"id": 1, "name": "red_blood_cell"},
            {"id": 9, "name": "x"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 10, 5], "area": 33.5},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [30, 20, 99, 99]},
            {"id": 3, "image_id": 7, "category_id": 2, "bbox": [-5, 0, 10, 5], "iscrowd": 1},
            {"id": 4, "image_id": 3, "category_id": 2, "bbox": [0.5, 0.5, 4, 4]},
            {"id": 5, "image_id": 3, "category_id": 2, "bbox": [0, 0, 0, 4]},
            {"id": 6, "image_id": 3, "category_id": 1, "bbox": [50, 50, 4, 4]},
            {"id": 8, "image_id": 3, "category_id": 9, "bbox": [1, 1, 4, 4], "iscrowd": 1},
        ],
    }


def folder(root: Path, content: dict[str, Any]) -> str:
    (root / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(root / "images" / "seven.png")
    Image.new("RGB", (20, 20), "blue").save(root / "images" / "sub" / "three.png")
    (root / "instances_train.json").write_text(json.dumps(content), encoding="utf-8")
    return str(root)


AERIAL_NAMES = ["airplane", "helicopter", "small-vehicle", "large-vehicle", "ship", "container", "storage-tank",
                "swimming-pool", "windmill", "ignore"]  # fmt: skip


def aerial(polys: list[tuple[int, list[float]]], size: tuple[int, int] = (300, 200)) -> dict[str, Any]:
    """One of SODA-A's files, with the keys that the published ones have."""
    return {
        "images": {"file_name": "set-by-caller.jpg", "height": size[1], "width": size[0]},
        "categories": [{"id": k, "name": name} for k, name in enumerate(AERIAL_NAMES)],
        "annotations": [
            {"poly": poly, "area": 50.0, "category_id": category, "image_id": 0, "id": number}
            for number, (category, poly) in enumerate(polys)
        ],
    }


def aerial_set(root: Path, split: str, files: dict[str, dict[str, Any]], images: str = "Images") -> str:
    folder = root / "SODA-A" / "Annotations" / split
    folder.mkdir(parents=True)
    (root / "SODA-A" / images).mkdir(parents=True)
    for number, name in enumerate(sorted(files), start=1):
        content = files[name]
        content["images"] = {"id": number} | content["images"] | {"file_name": f"{name}.jpg"}
        (folder / f"{name}.json").write_text(json.dumps(content))
        size = (content["images"]["width"], content["images"]["height"])
        gradient(*size).save(root / "SODA-A" / images / f"{name}.jpg", quality=95)
    return str(root)


def docvqa_parquet(
    root: Path, name: str = "DocVQA/validation-00000-of-00001.parquet", rows: Sequence[dict[str, Any]] = ROWS
) -> str:
    """The hub's file: the same rows, with the picture in them."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    stored = []
    for row in rows:
        file = io.BytesIO()
        Image.new("RGB", PAGE, (90 + (row["docId"] == 6), 0, 0)).save(file, "PNG")
        stored.append(row | {"questionId": str(row["questionId"]), "image": {"bytes": file.getvalue(), "path": None}})
    path = root / "DocVQA" / name
    path.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(stored), path, row_group_size=2)
    return str(root)


def page() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", PAGE, "white").save(file, "PNG")
    return file.getvalue()


def row(number: int = 0, unit: bool = True, **changes: Any) -> dict[str, Any]:
    """A row with the columns and types of the published table."""
    scale = (*PAGE, *PAGE) if unit else (1, 1, 1, 1)
    words = page_words(LINES)
    return {
        "id": f"test_{number}", "image": {"bytes": page(), "path": None},
        "query": {"de": "Summe?", "en": "What is the total?", "es": "?", "fr": "?", "it": "?"},
        "answers": ["$1,284.50", "1,284.50"], "words": [word.text for word in words],
        "bounding_boxes": [[side / size for side, size in zip(word.box, scale)] for word in words],
        "answer": {"match_score": 1.0, "matched_text": "1,284.50", "start": 5, "text": "1,284.50"},
    } | changes  # fmt: skip


def written(root: Path, rows: list[dict[str, Any]], split: str = "test") -> str:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = root / "docvqa_1200_examples" / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    query = pyarrow.struct([(language, pyarrow.string()) for language in ("de", "en", "es", "fr", "it")])
    parts = {
        "match_score": pyarrow.float64(),
        "matched_text": pyarrow.string(),
        "start": pyarrow.int64(),
        "text": pyarrow.string(),
    }
    answer = pyarrow.struct(list(parts.items()))
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = {"id": pyarrow.string(), "image": image, "query": query, "answers": pyarrow.list_(pyarrow.string()),
             "words": pyarrow.list_(pyarrow.string()), "bounding_boxes": pyarrow.list_(pyarrow.list_(pyarrow.float32())),
             "answer": answer}  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(kinds)), path)
    return str(root)
