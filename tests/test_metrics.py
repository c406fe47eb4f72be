"""metrics.py against pycocotools' own accumulation and against hand-made cases."""

import contextlib
import io
import math
import time

import numpy as np
import pytest
from coco_reference import Pairs, answer, coco_index, question, random_boxes, random_pairs
from pycocotools.cocoeval import COCOeval

from activeo3 import metric_rules, metrics
from activeo3.metrics import (
    ap_ar_50,
    detection_metrics,
    evaluate_detections,
    region_recall,
)
from activeo3.types import Example, TaskResult


def official(examples: list[Example], outcomes: list[TaskResult]) -> dict[str, float]:
    """COCOeval with real categories, its own accumulate and its own averages."""
    names = sorted({example.query for example in examples})
    truth, found = [], []
    for k, (example, outcome) in enumerate(zip(examples, outcomes)):
        base = {"image_id": k + 1, "category_id": names.index(example.query) + 1}
        areas = metrics.area(example.boxes_px) if example.areas is None else example.areas
        crowd = np.zeros(len(areas)) if example.crowd is None else example.crowd
        for (x1, y1, x2, y2), size, is_crowd in zip(example.boxes_px, areas, crowd):
            box = [x1, y1, x2 - x1, y2 - y1]
            truth.append(base | {"bbox": box, "area": size, "iscrowd": int(is_crowd)})
        for (x1, y1, x2, y2), score in zip(outcome.boxes_px, outcome.scores):
            box, size = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
            found.append(base | {"bbox": box, "area": size, "score": score, "iscrowd": 0})
    with contextlib.redirect_stdout(io.StringIO()):
        indices = [coco_index(len(examples), names, rows) for rows in (truth, found)]
        run = COCOeval(*indices, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    order = ["AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l", None, None, "AR", "AR_s", "AR_m", "AR_l"]
    result = {name: value for name, value in zip(order, run.stats.tolist()) if name}
    recalls = run.eval["recall"][0, :, 0, -1]
    return result | {"AR50": float(recalls[recalls > -1].mean())}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_are_cocos_own(seed: int, ties: bool) -> None:
    examples, outcomes = random_pairs(seed, ties=ties)
    ours, theirs = detection_metrics(examples, outcomes), official(examples, outcomes)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-9), name


def test_an_example_drawn_twice_is_cocos_number_of_two_copies() -> None:
    examples, outcomes = random_pairs(7, count=20, queries=3)
    counts = np.random.default_rng(0).integers(0, 4, len(examples))
    curves = metrics.match(examples, outcomes, metrics.IOU_THRESHOLDS, metric_rules.SIZES, metric_rules.COCO)[""]
    ap, ar = metrics._pooled(curves, counts[None].astype(float), metric_rules.COCO)
    copies = [k for k, count in enumerate(counts) for _ in range(count)]
    theirs = official([examples[k] for k in copies], [outcomes[k] for k in copies])
    assert ap.mean() == pytest.approx(theirs["AP"], abs=1e-9)
    assert ar.mean() == pytest.approx(theirs["AR"], abs=1e-9)


def test_perfect_detections_score_one_and_silence_scores_zero() -> None:
    # The first box matters: COCOeval reads an annotation id of 0 as "not matched".
    boxes = [[0, 0, 10, 10], [50, 50, 100, 100], [200, 200, 400, 400]]
    examples = [question(boxes), question(boxes[:1], "b", image_id=2)]
    perfect = [answer(boxes), answer(boxes[:1])]
    assert set(detection_metrics(examples, perfect).values()) == {1.0}
    assert set(detection_metrics(examples, [answer([])] * 2).values()) == {0.0}
    assert ap_ar_50(examples[1], perfect[1]) == (1.0, 1.0)
    assert ap_ar_50(examples[1], answer([])) == (0.0, 0.0)


def test_a_size_without_true_boxes_is_nan_and_not_zero() -> None:
    row = detection_metrics([question([[0, 0, 10, 10]])], [answer([[0, 0, 10, 10]])])
    assert row["AP_s"] == row["AR_s"] == 1.0
    assert all(math.isnan(row[name]) for name in ("AP_m", "AP_l", "AR_m", "AR_l"))


def test_mask_areas_decide_the_size_class() -> None:
    thin = question([[0, 0, 100, 100]], areas=np.array([50.0]))
    row = detection_metrics([thin], [answer([[0, 0, 100, 100]])])
    assert row["AP_s"] == 1.0 and math.isnan(row["AP_l"])


def test_thresholds_can_be_lowered_as_for_soda() -> None:
    example, outcome = question([[0, 0, 10, 10]]), answer([[0, 0, 10, 2]])
    row = detection_metrics([example], [outcome], iou_thresholds=(0.1,))
    assert row["AP"] == 1.0 and "AP50" not in row and "AP75" not in row
    assert detection_metrics([example], [outcome])["AP50"] == 0.0


def test_ties_keep_the_order_in_which_boxes_are_given() -> None:
    example, right, wrong = question([[0, 0, 10, 10]]), [0, 0, 10, 10], [50, 50, 60, 60]
    assert ap_ar_50(example, answer([right, wrong])) == (1.0, 1.0)
    assert ap_ar_50(example, answer([wrong, right])) == pytest.approx((0.5, 1.0))
    assert ap_ar_50(example, answer([wrong, right], [0.1, 0.9])) == (1.0, 1.0)


def test_a_box_found_twice_counts_once() -> None:
    example = question([[0, 0, 10, 10], [50, 50, 60, 60]])
    ap, ar = ap_ar_50(example, answer([[0, 0, 10, 10], [0, 0, 10, 10]]))
    assert (ap, ar) == pytest.approx((51 / 101, 0.5))


def test_a_crowd_is_neither_asked_for_nor_punished() -> None:
    boxes = [[0, 0, 10, 10], [100, 100, 200, 200]]
    example = question(boxes, crowd=np.array([False, True]))
    inside_crowd = [[110, 110, 120, 120], [130, 130, 150, 150]]
    assert ap_ar_50(example, answer(inside_crowd + boxes[:1])) == (1.0, 1.0)
    assert ap_ar_50(example, answer(boxes[:1])) == (1.0, 1.0)


def test_without_true_boxes_silence_is_right_and_anything_else_wrong() -> None:
    only_crowd = question([[0, 0, 50, 50]], crowd=np.array([True]))
    for nothing in (question([]), only_crowd):
        assert ap_ar_50(nothing, answer([])) == (1.0, 1.0)
        assert ap_ar_50(nothing, answer([[90, 90, 99, 99]])) == (0.0, 0.0)
    assert ap_ar_50(only_crowd, answer([[5, 5, 9, 9]])) == (1.0, 1.0)


def test_one_example_is_measured_as_a_benchmark_of_one() -> None:
    for example, outcome in zip(*random_pairs(5)):
        row = detection_metrics([example], [outcome])
        if not math.isnan(row["AP50"]):
            assert ap_ar_50(example, outcome) == (row["AP50"], row["AR50"])


def test_another_category_of_the_same_picture_is_no_false_positive() -> None:
    cat, dog = [0, 0, 10, 10], [50, 50, 60, 60]
    examples = [question([cat], "1:cat", query="cat"), question([dog], "1:dog", query="dog")]
    assert detection_metrics(examples, [answer([cat]), answer([dog])])["AP"] == 1.0
    assert detection_metrics(examples[:1], [answer([cat])])["AP"] == 1.0


def test_only_the_best_hundred_count_in_a_table_and_all_of_them_in_the_reward() -> None:
    example, outcome = question([[0, 0, 10, 10]]), answer([[50, 50, 60, 60]] * 100 + [[0, 0, 10, 10]])
    table = detection_metrics([example], [outcome])
    assert (table["AP50"], table["AR50"]) == (0.0, 0.0)
    assert ap_ar_50(example, outcome) == pytest.approx((1 / 101, 1.0))


def test_150_perfect_boxes_earn_the_whole_reward() -> None:
    boxes = [[20 * (k % 15), 20 * (k // 15), 20 * (k % 15) + 10, 20 * (k // 15) + 10] for k in range(150)]
    assert ap_ar_50(question(boxes), answer(boxes)) == (1.0, 1.0)
    assert detection_metrics([question(boxes)], [answer(boxes)])["AR"] == pytest.approx(100 / 150)


def crowded(seed: int) -> Pairs:
    """Three questions, each with more true boxes of SODA's sizes and more detections than SODA-D counts for AP."""
    rng = np.random.default_rng(seed)
    examples, outcomes = [], []
    for k in range(3):
        low = rng.uniform(0, 2000, (130, 2))
        true = np.concatenate([low, low + rng.uniform(5, 50, (130, 2))], axis=1)
        found = np.concatenate([true + rng.normal(0, 1, true.shape), random_boxes(rng, 20)])
        examples.append(question(true, f"e{k}", query=f"q{k % 2}", image_id=k, rules=metric_rules.SODA_D))
        outcomes.append(answer(found[rng.permutation(150)], rng.random(150)))
    return examples, outcomes


def test_sodas_size_classes_and_limits_are_cocoeval_with_its_parameters() -> None:
    """The evaluation code of SODA is COCOeval with these maxDets and areaRng; its AP is at 100 and its AR at 1,000."""
    examples, outcomes = crowded(0)
    names, truth, found = ["q0", "q1"], [], []
    for k, (example, outcome) in enumerate(zip(examples, outcomes), start=1):
        base = {"image_id": k, "category_id": 1 + names.index(example.query), "iscrowd": 0}
        truth += [base | {"bbox": box, "area": box[2] * box[3]} for box in metrics.xywh(example.boxes_px)]
        rows = zip(metrics.xywh(outcome.boxes_px), outcome.scores)
        found += [base | {"bbox": box, "area": box[2] * box[3], "score": score} for box, score in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(coco_index(3, names, truth), coco_index(3, names, found), "bbox")
        run.params.maxDets, run.params.iouThrs = [100, 300, 1000], np.array([0.5, 0.8])
        run.params.areaRng = [[0, 1024], [0, 144], [144, 400], [400, 1024], [1024, 2000]]
        run.params.areaRngLbl = ["s", "eS", "rS", "gS", "N"]
        run.evaluate(), run.accumulate()
    ours = detection_metrics(examples, outcomes, (0.5, 0.8))
    for place, size in enumerate(run.params.areaRngLbl):
        ap, ar = run.eval["precision"][:, :, :, place, 0], run.eval["recall"][:, :, place, 2]
        assert ours[f"AP_{size}"] == pytest.approx(ap[ap > -1].mean(), abs=1e-9), size
        assert ours[f"AR_{size}"] == pytest.approx(ar[ar > -1].mean(), abs=1e-9), size
    cut = detection_metrics(examples, outcomes, (0.5, 0.8), metric_rules.COCO)
    assert cut["AP"] == ours["AP"] and cut["AR"] < ours["AR"] - 0.1 and "AP_eS" not in cut
    more = detection_metrics(examples, outcomes, (0.5, 0.8), metric_rules.SODA_A)
    assert more["AR"] == ours["AR"] and more["AP"] > ours["AP"] + 0.1


def test_a_mixture_of_sets_is_scored_as_coco() -> None:
    examples, outcomes = crowded(1)
    mixed = [examples[0], question(examples[1].boxes_px, query="q1", image_id=9), examples[2]]
    assert metrics.rules_of(examples) is metric_rules.SODA_D and metrics.rules_of(mixed) is metric_rules.COCO
    assert "AP_eS" not in detection_metrics(mixed, outcomes, (0.5,)) and "AP_eS" in detection_metrics(
        examples, outcomes, (0.5,)
    )


def test_the_best_of_a_picture_are_a_naive_ranking() -> None:
    rng = np.random.default_rng(0)
    examples = [question([[0, 0, 10, 10]], f"e{k}", query=f"q{k}", image_id=k % 2) for k in range(6)]
    outcomes = [answer(random_boxes(rng, n), np.sort(rng.integers(1, 4, n))[::-1]) for n in (5, 0, 3, 9, 7, 1)]
    kept = metrics.best_of_pictures(examples, outcomes, 8)
    for picture in (0, 1):
        own = [k for k in range(6) if k % 2 == picture]
        ranked = sorted((-score, k, place) for k in own for place, score in enumerate(outcomes[k].scores))[:8]
        for k in own:
            places = [place for _, of, place in ranked if of == k]
            assert kept[k].boxes_px.tolist() == outcomes[k].boxes_px[places].tolist()
            assert kept[k].scores.tolist() == outcomes[k].scores[places].tolist()
    assert all(a is b for a, b in zip(metrics.best_of_pictures(examples, outcomes, 100), outcomes))


def test_where_not_every_instance_is_boxed_a_detection_without_a_match_is_not_false() -> None:
    boxes, wrong = [[0, 0, 10, 10], [20, 0, 30, 10]], [50, 50, 60, 60]
    partly = question(boxes, exhaustive=False)
    assert ap_ar_50(partly, answer([wrong, boxes[0]])) == pytest.approx((51 / 101, 0.5))
    assert ap_ar_50(question(boxes), answer([wrong, boxes[0]])) == pytest.approx((51 / 101 / 2, 0.5))
    assert ap_ar_50(partly, answer([boxes[0]] * 2 + [boxes[1]])) == (1.0, 1.0)  # found twice is no match either
    assert ap_ar_50(question([], exhaustive=False), answer([wrong])) == (1.0, 1.0)


def test_bad_program_state_names_the_example() -> None:
    box = [[0, 0, 10, 10]]
    with pytest.raises(ValueError, match="1 examples and 0 outcomes"):
        detection_metrics([question(box)], [])
    with pytest.raises(ValueError, match="example a: its detections"):
        ap_ar_50(question(box), answer([[0, 0, math.nan, 5]]))
    with pytest.raises(ValueError, match="example a: .*score"):
        ap_ar_50(question(box), TaskResult(np.zeros((2, 4)), np.ones(1)))
    with pytest.raises(ValueError, match="example a: .*crowd"):
        ap_ar_50(question(box, crowd=np.zeros(2, dtype=bool)), answer(box))


def test_an_inverted_box_finds_nothing() -> None:
    assert ap_ar_50(question([[0, 0, 10, 10]]), answer([[10, 10, 0, 0]])) == (0.0, 0.0)


def test_arguments_are_left_unchanged_and_nothing_is_printed(capsys: pytest.CaptureFixture) -> None:
    example, outcome = question([[0, 0, 10, 10]]), answer([[0, 0, 10, 9], [5, 5, 9, 9]], [0.1, 0.2])
    before = example.boxes_px.tobytes(), outcome.boxes_px.tobytes(), outcome.scores.tobytes()
    evaluate_detections([example], [outcome], resamples=10)
    after = example.boxes_px.tobytes(), outcome.boxes_px.tobytes(), outcome.scores.tobytes()
    assert before == after
    assert capsys.readouterr() == ("", "")


def test_region_recall() -> None:
    boxes = [[0, 0, 10, 10], [100, 0, 110, 10], [0, 100, 10, 110]]
    assert region_recall([(0, 0, 9, 10)], boxes) == pytest.approx(1 / 3)  # exactly 90 % inside
    assert region_recall([(0, 0, 8.9, 10)], boxes) == 0.0
    # Two halves do not make a whole: the task model sees one region at a time.
    assert region_recall([(0, 0, 5, 10), (5, 0, 10, 10)], boxes[:1]) == 0.0
    assert region_recall([(0, 0, 200, 200)], boxes) == 1.0
    assert region_recall([], boxes) == 0.0
    assert math.isnan(region_recall([(0, 0, 9, 9)], []))


def test_it_is_fast_enough_for_every_step_and_every_table_row() -> None:
    # Wide limits for busy machines; measured 0.4 ms per call and 1.1 s per row.
    examples, outcomes = random_pairs(0, count=200)
    start = time.perf_counter()
    for example, outcome in zip(examples[:50], outcomes):
        ap_ar_50(example, outcome)
    assert (time.perf_counter() - start) / 50 < 0.02
    start = time.perf_counter()
    evaluate_detections(examples, outcomes)
    assert time.perf_counter() - start < 20
