"""Our AP and AR against the public ``lvis`` package: its annotations, our predictions file, its evaluation.

federated labels   lvis punishes a detection only in pictures that were checked for its category. We ask about
                   nothing else, and a category known to be absent is a question without boxes.
not exhaustive     detections without a match are forgiven where not every instance was boxed.
at most            the best 300 detections of a picture count, over all its categories.
crowds             lvis has none.
"""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_reference import STATS, scored_by_pycocotools
from data_folders import FREQUENCIES, NAMES, lvis_folder, small_lvis, theirs
from PIL import Image
from real_data import real_file

from activeo3 import eval_output, eval_perception, eval_setup, metrics, task_perception
from activeo3.config import ConfigError, TrainConfig
from activeo3.data import open_dataset
from activeo3.data_annotations import read_coco
from activeo3.data_io import DataError
from activeo3.eval_config import ABSENT, EvalConfig
from activeo3.eval_detection import headlines
from activeo3.metric_rules import COCO, LVIS
from activeo3.task_perception import Answer
from activeo3.tasks import known_tasks
from activeo3.types import Example, Objects, Rollout, TaskResult


def asked(path: Path) -> list[Example]:
    """A question for every category in a picture, and one without boxes for every category known to be absent."""
    index = read_coco(path, path.parent, url_parts=1)
    blank = {picture.size: Image.new("L", picture.size) for picture in index.pictures.values()}

    def question(image_id: int, kind: int, boxes: np.ndarray, **fields: Any) -> Example:
        picture, name = index.pictures[image_id], index.names[kind]
        fields |= {"rules": LVIS, "frequency": index.frequency[kind], "exhaustive": kind not in picture.partly}
        return Example(f"{image_id}:{name}", blank[picture.size], name, boxes, image_id, kind, **fields)

    found = [question(q.image_id, q.category_id, q.boxes_px, areas=q.areas) for q in index.questions]
    absent = [(row["id"], kind) for row in json.loads(path.read_text())["images"] for kind in row["neg_category_ids"]]
    return found + [question(*pair, np.zeros((0, 4))) for pair in absent]


def perturbed(examples: list[Example], seed: int) -> list[TaskResult]:
    """Most true boxes, shifted by a share of their size, and some things that are not there; scores often tie."""
    rng = np.random.default_rng(seed)
    outcomes = []
    for example in examples:
        kept = example.boxes_px[rng.random(len(example.boxes_px)) < 0.9]
        twice = np.concatenate([kept, kept[:1]])
        side = np.tile(twice[:, 2:] - twice[:, :2], 2)
        low = rng.uniform(0, 100, (int(rng.integers(0, 2)), 2))
        boxes = np.concatenate(
            [twice + side * rng.normal(0, 0.06, twice.shape), np.concatenate([low, low + 30], axis=1)]
        )
        outcomes.append(TaskResult(boxes, np.sort(rng.integers(1, 9, len(boxes)) / 8)[::-1].copy()))
    return outcomes


def both(
    monkeypatch: pytest.MonkeyPatch, folder: Path, path: Path, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """(ours, theirs) of perturbed ground truth, which goes to them through our predictions file."""
    examples = asked(path)
    outcomes = perturbed(examples, seed)
    eval_output.write_json(folder / "predictions.json", eval_output.predictions(examples, outcomes))
    ours = metrics.detection_metrics(examples, outcomes)
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


@pytest.mark.parametrize("seed", range(3))
def test_the_official_evaluation_runs_from_our_two_files_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    """Questions as an evaluation asks them, those about absent categories among them; with APs by frequency."""
    examples = list(open_dataset("coco", "val", lvis_folder(tmp_path, seed), absent=0.25))
    outcomes = perturbed(examples, seed)
    eval_output.write_json(tmp_path / "truth.json", eval_output.truth(examples))
    eval_output.write_json(tmp_path / "predictions.json", eval_output.predictions(examples, outcomes))
    other = theirs(monkeypatch, tmp_path / "truth.json", tmp_path / "predictions.json")
    ours = metrics.detection_metrics(examples, outcomes)
    ours |= {name: metric.value for name, metric in headlines(examples, outcomes, resamples=0).items()}
    assert 0.1 < other["AP"] < 0.9 and set(FREQUENCIES) < set(ours)
    for name in (*NAMES, *FREQUENCIES):
        assert ours[name] == pytest.approx(other[name], abs=1e-9), name


def test_the_page_about_scores_shows_how(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """Its lines of Python, run as they stand, print our AP."""
    pytest.importorskip("lvis", exc_type=ImportError)
    page = (Path(__file__).parent.parent / "docs" / "scores.md").read_text()
    (tmp_path / "html_report.py").write_text(page.split("```python\n")[1].split("```")[0])
    examples = list(open_dataset("coco", "val", lvis_folder(tmp_path / "data", 2), absent=ABSENT))
    outcomes = perturbed(examples, 2)
    eval_output.write_json(tmp_path / "eval" / "truth-lvis_dense.json", eval_output.truth(examples))
    eval_output.write_json(
        tmp_path / "eval" / "predictions-lvis_dense-active.json", eval_output.predictions(examples, outcomes)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(np, "float", float, raising=False)  # taken back, unlike the page's own
    runpy.run_path(str(tmp_path / "html_report.py"))
    line = next(line for line in capsys.readouterr().out.splitlines() if "(AP)" in line and "area=   all" in line)
    assert line.endswith(f"{metrics.detection_metrics(examples, outcomes)['AP']:.3f}")


def test_a_share_of_the_questions_is_about_what_is_known_to_be_absent(tmp_path: Path) -> None:
    root = lvis_folder(tmp_path, 0)
    content = json.loads((tmp_path / "instances_val.json").read_text())
    known = {(row["id"], kind) for row in content["images"] for kind in row["neg_category_ids"]}
    there = {(row["image_id"], row["category_id"]) for row in content["annotations"]}
    without = [(e.image_id, e.category_id) for e in open_dataset("coco", "val", root)]
    assert set(without) == there == set(without)  # in training: none
    asked_too = {}
    for share in (0.1, 0.3, 0.999):
        found = list(open_dataset("coco", "val", root, absent=share))
        keys = [(e.image_id, e.category_id) for e in found]
        assert keys == sorted(keys) and set(keys) > there and len(set(keys)) == len(keys)
        absent = [e for e in found if not len(e.boxes_px)]
        asked_too[share] = {(e.image_id, e.category_id) for e in absent}
        assert asked_too[share] == set(keys) - there
        assert {e.exhaustive for e in absent} == {True} and {e.count.number for e in absent} == {0}
    assert len(asked_too[0.1]) == round(len(there) / 9) and len(asked_too[0.3]) == round(len(there) * 3 / 7)
    assert asked_too[0.1] < asked_too[0.3] < asked_too[0.999] == known
    others = {(e.image_id, e.category_id) for e in open_dataset("coco", "val", root, absent=0.1, seed=1)} - there
    assert others != asked_too[0.1]
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        for row in content["images"]:
            del row[key]
    (tmp_path / "instances_val.json").write_text(json.dumps(content))
    plain = open_dataset("coco", "val", root, absent=0.5)
    assert len(plain) == len(there) and plain[0].rules is COCO


def test_what_is_invented_costs(tmp_path: Path) -> None:
    """A policy that always finds something: as good as a silent one, until it is asked for what is not there."""
    root = lvis_folder(tmp_path, 0)
    for share, cost in ((0.0, False), (0.3, True)):
        examples = list(open_dataset("coco", "val", root, absent=share))
        right = [TaskResult(e.boxes_px, np.full(len(e.boxes_px), 0.5)) for e in examples]
        eager = [
            outcome if len(outcome.boxes_px) else TaskResult(np.array([[0.0, 0, 9, 9]]), np.ones(1))
            for outcome in right
        ]
        assert metrics.detection_metrics(examples, right)["AP"] == 1.0
        assert (metrics.detection_metrics(examples, eager)["AP"] < 0.9) == cost
        assert sum(sum(metrics.ap_ar_50(*pair)) for pair in zip(examples, right)) == 2 * len(examples)
        rewards = [sum(metrics.ap_ar_50(*pair)) for pair in zip(examples, eager)]
        assert rewards.count(0.0) == sum(not len(e.boxes_px) for e in examples)


def test_detection_ignores_what_no_picture_was_checked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything in a picture at once: the table is LVISEval's on the file itself, of all that was said."""
    root = lvis_folder(tmp_path, 1)
    posed = [
        known_tasks()["detection"](TrainConfig()).prepare(example) for example in open_dataset("coco_det", "val", root)
    ]
    rng, answers, said = np.random.default_rng(0), [], []
    for example in posed:
        names = [*example.objects.labels, *example.objects.categories]
        low = rng.uniform(0, 200, (len(example.objects.categories), 2))
        boxes = np.concatenate(
            [example.boxes_px + rng.normal(0, 2, example.boxes_px.shape), np.concatenate([low, low + 50], axis=1)]
        )
        order = rng.permutation(len(names))
        boxes, labels = boxes[order], tuple(names[k] for k in order)
        answer = Answer(tuple(map(tuple, boxes.tolist())), labels, None)
        answers.append(Rollout(example, (), "", True, answer, (), TaskResult(boxes, np.ones(len(boxes)))))
        said += [(example.image_id, int(label.split()[1]), box) for label, box in zip(labels, metrics.xywh(boxes))]
    scores = np.linspace(1, 0.9, len(said))
    rows = [{"image_id": i, "category_id": k, "bbox": box, "score": s} for (i, k, box), s in zip(said, scores.tolist())]
    eval_output.write_json(tmp_path / "said.json", rows)
    other = theirs(monkeypatch, tmp_path / "instances_val.json", tmp_path / "said.json")
    ours = eval_perception.measure("detection", posed, answers, resamples=0)
    for name in NAMES:
        assert ours[name].value == pytest.approx(other[name], abs=1e-9), name


def test_the_reward_of_detection_forgives_as_the_table_does(tmp_path: Path) -> None:
    root = lvis_folder(tmp_path, 1)
    content = json.loads((tmp_path / "instances_val.json").read_text())
    names = {row["id"]: row["name"].replace("_", " ") for row in content["categories"]}
    for row in content["images"]:
        there = {one["category_id"] for one in content["annotations"] if one["image_id"] == row["id"]}
        certain = there.union(row["neg_category_ids"]).difference(row["not_exhaustive_category_ids"])
        example = next(e for e in open_dataset("coco_det", "val", root) if e.image_id == row["id"])
        wanted = [number not in certain for number in names] + [True]
        assert task_perception.forgiven(example, [*names.values(), "a zebra"]).tolist() == wanted
    assert any(row["not_exhaustive_category_ids"] for row in content["images"])
    unfederated = Example("a", Image.new("L", (9, 9)), "b", objects=Objects(np.zeros((0, 4)), (), ("x",)))
    assert not task_perception.forgiven(unfederated, ["x", "y"]).any()


def test_counting_knows_what_is_absent(tmp_path: Path) -> None:
    """None of it is a right answer, and a category that was boxed in part is no question."""
    examples = list(open_dataset("coco", "val", lvis_folder(tmp_path, 1), absent=0.4))
    for example in examples:
        if example.exhaustive:
            assert known_tasks()["counting"](TrainConfig()).prepare(example).count.number == len(example.boxes_px)
            assert len(known_tasks()["counting"](TrainConfig()).prepare(example).count.places_px) == len(
                example.boxes_px
            )
        else:
            with pytest.raises(DataError, match="does not say how many"):
                known_tasks()["counting"](TrainConfig()).prepare(example)
    assert {len(e.boxes_px) == 0 for e in examples} == {e.exhaustive for e in examples} == {True, False}


def test_absent_categories_and_unchecked_ones_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards the test above: it compares something only if false positives in absent categories count."""
    path = written(tmp_path, small_lvis(0, partly=False))
    examples = asked(path)
    outcomes = perturbed(examples, 0)
    boxed = [k for k, example in enumerate(examples) if len(example.boxes_px)]
    fewer = metrics.detection_metrics([examples[k] for k in boxed], [outcomes[k] for k in boxed])
    assert fewer["AP"] > metrics.detection_metrics(examples, outcomes)["AP"] + 1e-3
    before = eval_output.predictions(examples, outcomes)
    checked = {(example.image_id, example.category_id) for example in examples}
    unchecked = [
        {"image_id": row["id"], "category_id": kind, "bbox": [0, 0, 50, 50], "score": 2.0}
        for row in json.loads(path.read_text())["images"] for kind in range(1, 7) if (row["id"], kind) not in checked
    ]  # fmt: skip
    assert unchecked
    eval_output.write_json(tmp_path / "before.json", before)
    eval_output.write_json(tmp_path / "after.json", unchecked + before)
    assert theirs(monkeypatch, path, tmp_path / "before.json") == theirs(monkeypatch, path, tmp_path / "after.json")


@pytest.mark.parametrize("seed", range(3))
def test_what_was_not_boxed_exhaustively_is_forgiven(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    ours, other = both(monkeypatch, tmp_path, written(tmp_path, small_lvis(seed, partly=True)), seed)
    examples = asked(tmp_path / "lvis_v1_val.json")
    assert as_if_exhaustive(examples, perturbed(examples, seed)) < ours["AP50"] - 1e-4  # else the test compares nothing
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
        outcomes.append(TaskResult(boxes, np.sort(rng.integers(1, 9, len(boxes)) / 8)[::-1].copy()))
    eval_output.write_json(tmp_path / "many.json", eval_output.predictions(examples, outcomes))
    ours, other = metrics.detection_metrics(examples, outcomes), theirs(monkeypatch, path, tmp_path / "many.json")
    for name in NAMES:
        assert ours[name] == pytest.approx(other[name], abs=1e-9), name
    assert metrics.detection_metrics(examples, outcomes, rules=COCO)["AR"] != pytest.approx(ours["AR"], abs=1e-3)


def test_the_real_annotations_give_the_numbers_of_lvis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The 100 pictures of the LVIS API, with two boxes without a match in each pair that was not boxed exhaustively."""
    path = real_file("lvis/lvis_val_100.json")
    examples = asked(path)
    outcomes = [with_two_more(*pair) for pair in zip(examples, perturbed(examples, 0))]
    eval_output.write_json(tmp_path / "predictions.json", eval_output.predictions(examples, outcomes))
    ours = metrics.detection_metrics(examples, outcomes)
    other = theirs(monkeypatch, path, tmp_path / "predictions.json")
    assert 0.2 < other["AP"] < 0.9
    for name in NAMES:
        assert ours[name] == pytest.approx(other[name], abs=1e-9), name
    assert as_if_exhaustive(examples, outcomes) < ours["AP50"] - 0.005
    ours_too, official = eval_output.truth(examples), json.loads(path.read_text())  # what we write is what they publish
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        lists = {row["id"]: sorted(row[key]) for row in official["images"]}
        assert {row["id"]: row[key] for row in ours_too["images"]} == {
            row["id"]: lists[row["id"]] for row in ours_too["images"]
        }
    boxes = [
        sorted((row["image_id"], row["category_id"], *np.round(row["bbox"], 6)) for row in one["annotations"])
        for one in (ours_too, official)
    ]
    assert boxes[0] == boxes[1] and len(boxes[0]) > 900


def as_if_exhaustive(examples: list[Example], outcomes: list[TaskResult]) -> float:
    """AP50 if every detection without a match were false."""
    strict = [replace(example, exhaustive=True) for example in examples]
    return metrics.detection_metrics(strict, outcomes, (0.5,))["AP50"]


def with_two_more(example: Example, outcome: TaskResult) -> TaskResult:
    """Where not every instance is boxed, two boxes before all others that match nothing."""
    if example.exhaustive:
        return outcome
    boxes = np.concatenate([[[0.0, 0.0, 3.0, 3.0], [0.0, 4.0, 3.0, 7.0]], outcome.boxes_px])
    return TaskResult(boxes, np.concatenate([[2.0, 2.0], outcome.scores]))


def test_pycocotools_finds_the_same_in_the_same_predictions_of_real_annotations(tmp_path: Path) -> None:
    """As far as it can: it knows no pair that was not boxed exhaustively."""
    found = asked(real_file("lvis/lvis_val_100.json"))
    examples = [example for example in found if len(example.boxes_px) and example.exhaustive]
    outcomes = perturbed(examples, 2)
    eval_output.write_json(tmp_path / "truth.json", eval_output.truth(examples))
    eval_output.write_json(tmp_path / "predictions.json", eval_output.predictions(examples, outcomes))
    stats, ours = (
        scored_by_pycocotools(tmp_path, "truth", "predictions"),
        metrics.detection_metrics(examples, outcomes, rules=COCO),
    )
    for name, place in STATS.items():
        assert stats[place] == pytest.approx(ours[name], abs=1e-9), name


def test_tables_ask_for_what_is_absent_and_training_does_not_unless_told(tmp_path: Path) -> None:
    root = lvis_folder(tmp_path, 0)
    train, table = (
        TrainConfig(data=("coco",), data_root=root, eval_split="val", eval_examples=999),
        EvalConfig(checkpoint=("x",)),
    )
    assert (train.absent, table.absent) == (0.0, ABSENT)
    for config, share in ((train, ABSENT), (replace(train, absent=0.4), 0.4)):
        examples = eval_setup.held_out(config)
        assert sum(not len(e.boxes_px) for e in examples) == round(share * len(examples))
    for wrong in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="--data_options absent is"):
            replace(train, absent=wrong)
