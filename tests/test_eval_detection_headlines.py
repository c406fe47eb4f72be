"""eval_detection.py: frequency groups and low overlaps, each held to pycocotools on its own."""

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from coco_reference import world
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scripted import finished

from activeo3 import eval_output
from activeo3.eval_core import Row, Setting
from activeo3.eval_detection import LOW_RANGE, headlines
from activeo3.metric_rules import LOW_OVERLAP, MetricRules


def scored(examples, outcomes, thresholds=None, kept=None) -> np.ndarray:
    """COCOeval's precision and recall (AP, AP_s, AR, AR_s) at thresholds of its own, for some categories only."""
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = eval_output.truth(examples)
        data.createIndex()
        run = COCOeval(data, data.loadRes(eval_output.predictions(examples, outcomes)), "bbox")
        if thresholds is not None:
            run.params.iouThrs = np.array(thresholds)
        if kept is not None:
            run.params.catIds = sorted(kept)
        run.evaluate(), run.accumulate()
    precision, recall = run.eval["precision"], run.eval["recall"]  # (t, recalls, categories, areas, most), (t, c, a, m)
    parts = [precision[:, :, :, 0, 2], precision[:, :, :, 1, 2], recall[:, :, 0, 2], recall[:, :, 1, 2]]
    return np.array([part[part > -1].mean() for part in parts])


MARKS = {1: "r", 2: "f", 3: "f", 4: "c"}


@pytest.mark.parametrize("seed", range(3))
def test_every_frequency_is_the_mean_over_its_own_categories(seed: int) -> None:
    examples, outcomes = world("real", seed)
    examples = [replace(e, frequency=MARKS[e.category_id]) for e in examples]
    found = headlines(examples, outcomes, resamples=5)
    assert set(found) == {"AP_r", "AP_c", "AP_f"}
    for mark, name in (("r", "AP_r"), ("c", "AP_c"), ("f", "AP_f")):
        kept = [category for category, own in MARKS.items() if own == mark]
        assert found[name].value == pytest.approx(scored(examples, outcomes, kept=kept)[0], abs=1e-9)
    assert len({round(metric.value, 6) for metric in found.values()}) == 3


def test_a_frequency_that_nothing_is_asked_about_is_no_number() -> None:
    examples, outcomes = world("real", 0)
    examples = [replace(e, frequency="c") for e in examples]
    found = headlines(examples, outcomes, resamples=0)
    assert np.isnan(found["AP_r"].value) and found["AP_c"].value > 0


@pytest.mark.parametrize("seed", range(2))
def test_low_overlaps_are_those_of_pycocotools(seed: int) -> None:
    examples, outcomes = world("real", seed)
    assert headlines(examples, outcomes, 0) == {}
    low = [replace(e, rules=MetricRules("low", lowest_iou=LOW_OVERLAP)) for e in examples]
    found = headlines(low, outcomes, resamples=0)
    for suffix, thresholds in (("10", [0.1]), ("10_95", LOW_RANGE)):
        wanted = scored(examples, outcomes, thresholds)
        ours = [found[f"{name}{suffix}{size}"].value for name in ("AP", "AR") for size in ("", "_s")]
        assert ours == pytest.approx(wanted, abs=1e-9)
    assert found["AP10"].value > found["AP10_95"].value
    assert np.allclose(LOW_RANGE, np.arange(0.1, 0.951, 0.05))
    assert headlines([low[0], *examples[1:]], outcomes, 0) == {}  # a mixture stays as it is


def test_the_tables_show_what_was_asked_for() -> None:
    def columns(**values: float) -> list[list[str]]:
        return [one.columns[1:] for one in eval_output.tables(finished([Row("b", Setting("grid"), 1, values, [])]))]

    usual = dict.fromkeys(("AP", "AP50", "AP_s", "AR", "AR_s"), 0.1)
    low = dict.fromkeys(("AP10", "AP10_s", "AR10", "AR10_s"), 0.3)
    assert columns(**usual) == [list(usual)]
    assert columns(**usual, **low) == [["AP10", "AP50", "AP10_s", "AR10", "AR10_s"]]
    assert columns(AP=0.1, AP_r=0.1, AP_c=0.1, AP_f=0.2) == [["AP"], ["AP_r", "AP_c", "AP_f"]]
