"""Detections and true boxes for tests, scored by pycocotools itself."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from activeo3 import metrics
from activeo3.types import Example, TaskResult


def scored_by_pycocotools(folder: Path, truth: str, predictions: str) -> np.ndarray:
    """The twelve numbers of COCOeval from two files, and nothing of ours."""
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO(str(folder / f"{truth}.json"))
        found = data.loadRes(str(folder / f"{predictions}.json"))
        run = COCOeval(data, found, "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    return run.stats


STATS = {"AP": 0, "AP50": 1, "AP75": 2, "AP_s": 3, "AP_m": 4, "AP_l": 5, "AR": 8, "AR_s": 9, "AR_m": 10, "AR_l": 11}


def world(scores: str, seed: int) -> tuple[list[Example], list[TaskResult]]:
    """Questions about pictures in no order of their ids, with crowds, mask areas and perturbed detections."""
    rng = np.random.default_rng(seed)
    examples, outcomes = [], []
    for image_id in rng.permutation(12) + 1:
        for category in rng.permutation(4)[: rng.integers(1, 4)] + 1:
            low, side = rng.uniform(0, 400, (5, 2)), rng.uniform(6, 140, (5, 2))
            boxes = np.concatenate([low, low + side], axis=1)
            image = Image.new("RGB", (640, 560))
            areas = side.prod(axis=1) * rng.uniform(0.3, 1, 5)
            examples.append(
                Example(
                    f"{image_id}-{category}",
                    image,
                    f"thing {category}",
                    boxes,
                    int(image_id),
                    int(category),
                    rng.random(5) < 0.2,
                    areas,
                )  # fmt: skip
            )
            around = np.concatenate([boxes, boxes[:3]]) + rng.normal(0, 5, (8, 4))
            order = rng.permutation(8)
            values = {"ties": np.ones(8), "few": rng.integers(1, 4, 8) / 4, "real": rng.random(8)}[scores]
            outcomes.append(TaskResult(around[order], np.sort(values)[::-1].copy()))
    return examples, outcomes


IMAGE = Image.new("RGB", (8, 8))

Pairs = tuple[list[Example], list[TaskResult]]


def question(boxes: list | np.ndarray, name: str = "a", **more) -> Example:
    return Example(name, IMAGE, more.pop("query", "dot"), np.reshape(boxes, (-1, 4)), **more)


def answer(boxes: list | np.ndarray, scores: list | np.ndarray | None = None) -> TaskResult:
    boxes = np.reshape(np.asarray(boxes, dtype=float), (-1, 4))
    return TaskResult(boxes, np.ones(len(boxes)) if scores is None else np.asarray(scores, float))


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(0, 500, (count, 2))
    return np.concatenate([low, low + np.exp(rng.uniform(2.2, 5.5, (count, 2)))], axis=1)


def random_pairs(seed: int, count: int = 40, queries: int = 4, ties: bool = False) -> Pairs:
    """Two questions a picture, with crowds, mask areas, misses, noise and false positives."""
    rng = np.random.default_rng(seed)
    examples, outcomes = [], []
    for k in range(count):
        true = random_boxes(rng, int(rng.integers(0, 9)))
        areas = metrics.area(true) * rng.uniform(0.5, 1, len(true)) if k % 3 else None
        more = {"query": f"q{k % queries}", "image_id": k // 2, "areas": areas}
        examples.append(question(true, f"e{k}", crowd=rng.random(len(true)) < 0.15, **more))
        near = true[rng.random(len(true)) < 0.7]
        near = near + rng.normal(0, 1, near.shape)  # stays upright: sides are at least 9
        found = np.concatenate([near, random_boxes(rng, int(rng.integers(0, 5)))])
        found = found[rng.permutation(len(found))]
        outcomes.append(answer(found, None if ties else rng.random(len(found))))
    return examples, outcomes


def coco_index(images: int, categories: list[str], rows: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": k + 1} for k in range(images)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(categories)],
        "annotations": [{"id": k + 1} | row for k, row in enumerate(rows)],
    }
    coco.createIndex()
    return coco
