"""Ten small photos and what is in them, for tests of all forms that own pictures come in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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


def found(data: Any) -> list[tuple[str, str, list[list[float]]]]:
    """(picture, query, boxes) of all questions of a data set; the colour shows that the right picture was read."""
    questions = []
    for example in data:
        name = NAMES[round(example.image.getpixel((60, 2))[0] / 25)]
        questions.append((name, example.query, np.rint(example.boxes_px).astype(int).tolist()))
    return sorted(questions)


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


def as_label_studio(root: Path) -> None:
    write(root / "result.json", coco("images/"))
    photos(root / "images")


def lines(prefix: str = "", key: str = "image") -> str:
    rows = [{key: prefix + name, "query": query, "boxes": boxes} for name, query, boxes in WANTED]
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def as_jsonl(root: Path) -> None:
    (root / "train.jsonl").write_text(lines("photos/"))
    photos(root / "photos")


def labels(name: str, polygons: bool = False) -> str:
    """The lines of a picture's labels: class 0 is the cat."""
    text = ""
    for number, of in enumerate((CATS, DOGS)):
        for x1, y1, x2, y2 in of.get(name, []):
            width, height = SIZE
            if polygons:
                corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
                text += f"{number} " + " ".join(f"{x / width:.6f} {y / height:.6f}" for x, y in corners) + "\n"
            else:
                sides = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
                text += f"{number} " + " ".join(f"{side:.6f}" for side in sides) + "\n"
    return text


def yolo(root: Path, settings: str, images: str, polygons: bool = False) -> None:
    (root / "data.yaml").write_text(settings)
    photos(root / images)
    folder = root / "labels".join(images.rsplit("images", 1))
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).with_suffix(".txt").write_text(labels(name, polygons))


def as_ultralytics(root: Path) -> None:
    """coco8.yaml: a path elsewhere, names by number, an empty test."""
    yolo(
        root,
        "path: /home/me/datasets/coco8\ntrain: images/train\nval:\ntest:\nnames:\n  0: cat\n  1: red_dog\n",
        "images/train",
    )


def asked(folder: Path, names: list[str] = NAMES) -> Any:
    """The photos as rows of the datasets library, one for each question."""
    datasets = pytest.importorskip("datasets", reason='needs pip install "activeo3[hub]"')
    photos(folder)
    rows = [(name, query, boxes) for name, query, boxes in WANTED if name in names]
    columns = {
        "image": [str(folder / name) for name, *_ in rows],
        "query": [query for _, query, _ in rows],
        "boxes": [boxes for *_, boxes in rows],
    }
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def as_hub(root: Path) -> None:
    """A folder of save_to_disk, which holds the pictures themselves."""
    asked(root.with_name(f"{root.name}-pictures")).save_to_disk(str(root))
