"""Our AP and AR against the public ``lvis`` package: its annotations, our predictions file, its evaluation.

    federated labels   lvis punishes a detection only in pictures that were checked for its category. We ask about
                       nothing else, and a category known to be absent is a question without boxes.
    not exhaustive     detections without a match are forgiven where not every instance was boxed.
    at most            the best 300 detections of a picture count, over all its categories.
    crowds             lvis has none.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from real_data import real_file
from test_results import STATS, scored_by_pycocotools

from activeo3 import metrics, results
from activeo3.annotations import read_coco
from activeo3.metric_rules import LVIS
from activeo3.schema import Example, Outcome

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


def asked(path: Path) -> list[Example]:
    """A question for every category in a picture, and one without boxes for every category known to be absent."""
    content = json.loads(path.read_text())
    index = read_coco(path, path.parent, url_parts=1)
    names = index.names
    blank = {picture.size: Image.new("L", picture.size) for picture in index.pictures.values()}
    found = [
        Example(f"{q.image_id}:{q.query}", blank[index.pictures[q.image_id].size], q.query, q.boxes_px, q.image_id, q.category_id,
                q.crowd, {"areas": q.areas, "exhaustive": q.category_id not in index.pictures[q.image_id].partly})
        for q in index.questions
    ]  # fmt: skip
    for row in content["images"]:
        size = index.pictures[row["id"]].size
        found += [Example("absent", blank[size], names[k], np.zeros((0, 4)), row["id"], k) for k in row["neg_category_ids"]]
    return found


def perturbed(examples: list[Example], seed: int) -> list[Outcome]:
    """Most true boxes, shifted by a share of their size, and some things that are not there; scores often tie."""
    rng = np.random.default_rng(seed)
    outcomes = []
    for example in examples:
        kept = example.boxes_px[rng.random(len(example.boxes_px)) < 0.9]
        twice = np.concatenate([kept, kept[:1]])
        side = np.tile(twice[:, 2:] - twice[:, :2], 2)
        low = rng.uniform(0, 100, (int(rng.integers(0, 2)), 2))
        boxes = np.concatenate([twice + side * rng.normal(0, 0.06, twice.shape), np.concatenate([low, low + 30], axis=1)])
        outcomes.append(Outcome(boxes, np.sort(rng.integers(1, 9, len(boxes)) / 8)[::-1].copy()))
    return outcomes


def theirs(monkeypatch: pytest.MonkeyPatch, annotations: Path, predictions: Path) -> dict[str, float]:
    """What the package finds in two files, and nothing of ours."""
    lvis = pytest.importorskip("lvis", exc_type=ImportError)
    monkeypatch.setattr(np, "float", float, raising=False)  # its last release is older than numpy without np.float
    evaluation = lvis.LVISEval(str(annotations), str(predictions), iou_type="bbox")
    boxed = {row["category_id"] for row in evaluation.lvis_gt.dataset["annotations"]}
    evaluation.params.cat_ids = sorted(boxed)  # the others have no number, and there are a thousand of them
    evaluation.run()
    return {ours: float(evaluation.results[name]) for ours, name in NAMES.items()}


def both(monkeypatch: pytest.MonkeyPatch, folder: Path, path: Path, seed: int = 0) -> tuple[dict[str, float], dict[str, float]]:
    """(ours, theirs) of perturbed ground truth, which goes to them through our predictions file."""
    examples = asked(path)
    outcomes = perturbed(examples, seed)
    results.write_coco(folder, "predictions", results.predictions(examples, outcomes))
    ours = metrics.detection_metrics(examples, outcomes, rules=LVIS)
    return ours, theirs(monkeypatch, path, folder / "predictions.json")


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "lvis_v1_val.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("seed", range(4))
def test_federated_labels_give_the_numbers_of_lvis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    ours, other = both(monkeypatch, tmp_path, written(tmp_path, small_lvis(seed, partly=False)), seed)
    assert 0.1 < other["AP"] < 0.9
    for name in NAMES:
        assert ours[name] == pytest.approx(other[name], abs=1e-9), name


def test_absent_categories_and_unchecked_ones_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards the test above: it compares something only if false positives in absent categories count."""
    path = written(tmp_path, small_lvis(0, partly=False))
    examples = asked(path)
    outcomes = perturbed(examples, 0)
    boxed = [k for k, example in enumerate(examples) if len(example.boxes_px)]
    fewer = metrics.detection_metrics([examples[k] for k in boxed], [outcomes[k] for k in boxed], rules=LVIS)
    assert fewer["AP"] > metrics.detection_metrics(examples, outcomes, rules=LVIS)["AP"] + 1e-3
    before = results.predictions(examples, outcomes)
    checked = {(example.image_id, example.category_id) for example in examples}
    unchecked = [
        {"image_id": row["id"], "category_id": kind, "bbox": [0, 0, 50, 50], "score": 2.0}
        for row in json.loads(path.read_text())["images"] for kind in range(1, 7) if (row["id"], kind) not in checked
    ]  # fmt: skip
    assert unchecked
    results.write_coco(tmp_path, "before", before)
    results.write_coco(tmp_path, "after", unchecked + before)
    assert theirs(monkeypatch, path, tmp_path / "before.json") == theirs(monkeypatch, path, tmp_path / "after.json")


@pytest.mark.parametrize("seed", range(3))
def test_what_was_not_boxed_exhaustively_is_forgiven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    ours, other = both(monkeypatch, tmp_path, written(tmp_path, small_lvis(seed, partly=True)), seed)
    examples = asked(tmp_path / "lvis_v1_val.json")
    assert as_if_exhaustive(examples, perturbed(examples, seed)) < ours["AP"] - 1e-4  # else the test compares nothing
    for name in NAMES:
        assert ours[name] == pytest.approx(other[name], abs=1e-9), name


def test_only_the_best_300_of_a_picture_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = written(tmp_path, small_lvis(2))
    examples = asked(path)
    rng = np.random.default_rng(2)
    outcomes = []
    for outcome in perturbed(examples, 2):
        low = rng.uniform(0, 150, (150, 2))
        boxes = np.concatenate([outcome.boxes_px, np.concatenate([low, low + 40], axis=1)])
        outcomes.append(Outcome(boxes, np.sort(rng.integers(1, 9, len(boxes)) / 8)[::-1].copy()))
    results.write_coco(tmp_path, "many", results.predictions(examples, outcomes))
    ours, other = metrics.detection_metrics(examples, outcomes, rules=LVIS), theirs(monkeypatch, path, tmp_path / "many.json")
    for name in NAMES:
        assert ours[name] == pytest.approx(other[name], abs=1e-9), name
    assert metrics.detection_metrics(examples, outcomes)["AR"] != pytest.approx(ours["AR"], abs=1e-3)


def test_the_real_annotations_give_the_numbers_of_lvis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The 100 pictures of the LVIS API, with two boxes without a match in each pair that was not boxed exhaustively."""
    path = real_file("lvis/lvis_val_100.json")
    examples = asked(path)
    outcomes = [with_two_more(*pair) for pair in zip(examples, perturbed(examples, 0))]
    results.write_coco(tmp_path, "predictions", results.predictions(examples, outcomes))
    ours = metrics.detection_metrics(examples, outcomes, rules=LVIS)
    other = theirs(monkeypatch, path, tmp_path / "predictions.json")
    assert 0.2 < other["AP"] < 0.9
    for name in NAMES:
        assert ours[name] == pytest.approx(other[name], abs=1e-9), name
    assert as_if_exhaustive(examples, outcomes) < ours["AP"] - 0.005


def as_if_exhaustive(examples: list[Example], outcomes: list[Outcome]) -> float:
    """AP if every detection without a match were false."""
    strict = [replace(example, fields=example.fields | {"exhaustive": True}) for example in examples]
    return metrics.detection_metrics(strict, outcomes, rules=LVIS)["AP"]


def with_two_more(example: Example, outcome: Outcome) -> Outcome:
    """Where not every instance is boxed, two boxes before all others that match nothing."""
    if example.fields.get("exhaustive", True):
        return outcome
    boxes = np.concatenate([[[0.0, 0.0, 3.0, 3.0], [0.0, 4.0, 3.0, 7.0]], outcome.boxes_px])
    return Outcome(boxes, np.concatenate([[2.0, 2.0], outcome.scores]))


def test_pycocotools_finds_the_same_in_the_same_predictions_of_real_annotations(tmp_path: Path) -> None:
    """As far as it can: it knows no pair that was not boxed exhaustively."""
    found = asked(real_file("lvis/lvis_val_100.json"))
    examples = [example for example in found if len(example.boxes_px) and example.fields["exhaustive"]]
    outcomes = perturbed(examples, 2)
    results.write_coco(tmp_path, "truth", results.truth(examples))
    results.write_coco(tmp_path, "predictions", results.predictions(examples, outcomes))
    stats, ours = scored_by_pycocotools(tmp_path, "truth", "predictions"), metrics.detection_metrics(examples, outcomes)
    for name, place in STATS.items():
        assert stats[place] == pytest.approx(ours[name], abs=1e-9), name
