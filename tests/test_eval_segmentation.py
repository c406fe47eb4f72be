"""task_segmentation.py and eval_segmentation.py: errors of masks from the overlay to the table, against scripted policies and
naive loops."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from data_folders import thin_set
from launch import SMALL
from PIL import Image, ImageColor
from pycocotools import mask as coco_mask
from sam_models import MEAN, STD, sam_1
from scripted import (
    COLOURS,
    END,
    Backwards,
    Scripted,
    backwards,
    end_of_run,
    finished,
    painted,
    rows_in,
    table,
    written,
)

from activeo3 import eval_output, log, task_segmentation
from activeo3.config import ConfigError, TrainConfig
from activeo3.drawing import LACKING, SURPLUS, TRUE, corrected_picture, under_mask
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import Row
from activeo3.eval_runner import OneProcess
from activeo3.eval_segmentation import SegmentationBenchmark
from activeo3.geometry import mask_to_rle, rle_to_mask
from activeo3.intervals import bootstrap_interval
from activeo3.metrics import mask_iou
from activeo3.plots import COLOURS as COLOURS_OF_LINES
from activeo3.prompts import sensing_answer
from activeo3.rollout import sample_rollouts
from activeo3.samples import Sample, save_samples
from activeo3.task_model_sam import Perfect
from activeo3.task_segmentation import Draft, coarse_mask, overlaid, true_mask, with_mask
from activeo3.tasks import known_tasks, sensing_view, task_of
from activeo3.types import Example, Rollout, Sampling

TASKS = known_tasks()
ROWS = SegmentationBenchmark.default_methods
CONFIG = TrainConfig(task="segment", task_model="oracle", sensing_side=320)
THINGS = [(40, 60, 120, 140), (300, 200, 360, 260)]


def question(name: str = "a", number: int = 1) -> Example:
    """Two red things; a first mask that has all of the first and the left half of the second, and some of the
    ground."""
    image = painted((480, 320), [("red", box) for box in THINGS])
    true, mask = np.zeros((320, 480), dtype=bool), np.zeros((320, 480), dtype=bool)
    for x1, y1, x2, y2 in THINGS:
        true[y1:y2, x1:x2] = True
    mask[60:140, 40:120] = mask[200:260, 300:330] = mask[20:40, 200:260] = True
    example = Example(
        name, image, "red", np.array([[0.0, 0.0, 480.0, 320.0]]), image_id=number, masks=lambda: [mask_to_rle(true)]
    )
    return with_mask(example, true, mask)


def sees_errors(model: Scripted, view: Image.Image, asked: str) -> str:
    """Where red is not under green, where green is on the ground, and one corner: exactly three."""
    pixels = np.asarray(view, dtype=int)
    ground = np.array([20, 20, 90])
    green_ground = (ground + [0, 255, 0]) / 2
    surplus = np.abs(pixels - green_ground).sum(axis=2) < 20
    missing = np.abs(pixels - COLOURS["red"]).sum(axis=2) < 20
    boxes = []
    for part in (surplus, missing):
        y, x = np.nonzero(part)
        boxes.append((x.min() - 6, y.min() - 6, x.max() + 7, y.max() + 7))
    boxes.append((0, 260, 60, 320))
    return sensing_answer(written(model, view, boxes), "there") + END


def answers(policy: Scripted, examples: list[Example], group: int = 1, config: TrainConfig = CONFIG) -> list[Rollout]:
    task = TASKS["segment"]
    _, rollouts = sample_rollouts(policy, task(config), examples, group, Sampling(1.0, task(config).max_new_tokens))
    return [rollout for of_one in rollouts for rollout in of_one]


# ---------------------------------------------------------------------- the task


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_policy_that_sees_the_overlay_can_correct_the_mask(family: str, tokenizer) -> None:
    """The mask is in the view and the errors' places survive the way back to the original picture."""
    policy, example = Scripted(family, tokenizer, sees_errors), question()
    (rollout,) = answers(policy, [example])
    view, words = policy.shown[0]
    bare, _ = sensing_view(policy, example.image, CONFIG.sensing_side)
    assert np.array_equal(np.asarray(view), np.asarray(overlaid(bare, Draft.of(example).mask)))
    assert words == "Where are 3 regions with errors of the red mask?"
    assert rollout.action.error is None and len(rollout.regions) == 3
    (outcome,) = TASKS["segment"](CONFIG).act(Perfect(), [rollout])
    assert np.array_equal(outcome.mask, true_mask(example))
    score = TASKS["segment"](CONFIG).reward(rollout, outcome)
    shown = np.zeros((320, 480), dtype=bool)
    for x1, y1, x2, y2 in rollout.regions:
        shown[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
    left_out = pytest.approx(1 - shown.mean())
    assert score.terms == {"format": 1.0, "no_overlap": 1.0, "area": 1.0, "coverage": left_out, "task": 1.0}


def test_two_regions_are_no_format_and_are_worked_on(tokenizer) -> None:
    two = lambda model, view, asked: sees_errors(model, view, asked).replace(',{"bbox_2d":[0,', "x")  # noqa: E731
    says = lambda model, *_: sensing_answer([[0, 0, 1000, 500], [0, 500, 1000, 1000]], "all") + END  # noqa: E731
    (rollout,) = answers(Scripted("qwen3_vl", tokenizer, says), [question()])
    assert rollout.action.error == "too_few" and len(rollout.regions) == 2
    (outcome,) = TASKS["segment"](CONFIG).act(Perfect(), [rollout])
    assert TASKS["segment"](CONFIG).reward(rollout, outcome).terms["task"] == 1.0
    (broken,) = answers(Scripted("qwen3_vl", tokenizer, two), [question()])
    (same,) = TASKS["segment"](CONFIG).act(Perfect(), [broken])
    assert broken.regions == () and np.array_equal(same.mask, Draft.of(broken.example).mask)
    assert mask_iou(same.mask, true_mask(question())) > 0.7  # which is not the answer's merit
    terms = TASKS["segment"](CONFIG).reward(broken, same).terms
    assert terms == {"format": 0.0, "no_overlap": 0.0, "area": 0.0, "coverage": 0.0, "task": 0.0}


def test_flags_that_do_not_go_with_masks_are_one_sentence() -> None:
    assert task_of(CONFIG).name == "segment"
    for changed, sentence in (
        (
            {"task_model": "mllm"},
            "--task segment corrects masks, and mllm makes none: give --task_model sam or oracle.",
        ),
        ({"first_mask": "sam"}, "--first_mask sam needs --task_model sam, which makes it."),
        ({"coverage": "iou"}, "--coverage iou compares boxes: with --task segment choose contain, recall or purity."),
        (
            {"task": "sense", "task_model": "mllm", "coverage": "recall"},
            "--coverage recall is of a mask's errors: it goes with --task segment",
        ),
        (
            {"task": "sense", "task_model": "sam", "task_checkpoint": "x"},
            "it goes with --task segment, not with --task sense.",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            task_of(replace(CONFIG, **changed))
        assert sentence in str(caught.value)
    with pytest.raises(
        ConfigError, match="^--task_model sam needs a Segment Anything model: name it with --task_checkpoint FOLDER.$"
    ):
        replace(CONFIG, task_model="sam")
    with pytest.raises(ConfigError, match="--task_options clicks is 0; it must be at least 1"):
        replace(CONFIG, clicks=0)
    with pytest.raises(ConfigError, match="--task paint is not known; there are: "):
        task_of(EvalConfig(checkpoint=("x",), task="paint"))
    with pytest.raises(ConfigError, match="--task_model sam corrects masks: it goes with --task segment"):
        task_of(EvalConfig(checkpoint=("x",), task_model=("sam",), task_checkpoint="y"))
    preset = TrainConfig.from_args(["--preset", "paper", "thin_objects", "--data_root", "d"])
    assert task_of(preset).name == "segment" and preset.data == ("thinobject5k",) and preset.task_model == "sam"
    assert task_of(TrainConfig.from_args(["--preset", "tiny", "segment"])).name == "segment"
    masks = {"checkpoint": ("x",), "task": "segment", "task_model": ("oracle",)}
    chosen = lambda **more: SegmentationBenchmark("w", EvalConfig(**masks, **more)).chosen  # noqa: E731
    assert chosen() == ROWS and chosen(methods=("grid",)) == ("grid",)
    with pytest.raises(ConfigError, match="--methods direct fixed not known for w .*; there are: random, grid"):
        chosen(methods=("direct", "grid", "fixed"))


# ---------------------------------------------------------------------- people's pictures


def test_the_colours_say_what_is_right_missing_and_too_much() -> None:
    example = question()
    draft = Draft.of(example)
    tinted = np.asarray(under_mask(example, draft.mask).image, dtype=int)
    for (x, y), colour in (((80, 100), TRUE), ((345, 230), LACKING), ((230, 30), SURPLUS)):
        assert (
            np.abs(
                tinted[y, x] - (0.65 * np.array(colour) + 0.35 * 0.7 * np.asarray(example.image.convert("L"))[y, x])
            ).max()
            <= 1
        )
    assert len(set(tinted[300, 400])) == 1  # elsewhere grey
    sheet = corrected_picture(example, (), draft.true, max_side=560)
    assert sheet.width > 2 * 560 or sheet.height > 560  # a close-up, however small the masks are


def test_samples_and_lines_show_masks(tokenizer, tmp_path: Path) -> None:
    (rollout,) = answers(Scripted("qwen3_vl", tokenizer, sees_errors), [question()])
    (outcome,) = TASKS["segment"](CONFIG).act(Perfect(), [rollout])
    score = TASKS["segment"](CONFIG).reward(rollout, outcome)
    lines = log.rollout_lines(rollout, outcome, score)
    before = mask_iou(Draft.of(rollout.example).mask, outcome.mask)
    assert f"mask     IoU {before:.2f} before, 1.00 after" in lines and "detection" not in lines
    folder = save_samples(tmp_path, 1, [Sample.of(rollout, outcome, score)])
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"samples-00-{part}.jpg" for part in ("crops", "picture", "small")), "samples.jsonl"
    ]  # fmt: skip


# ---------------------------------------------------------------------- the table


def several() -> list[Example]:
    return [replace(question(str(k), k + 1), query=("red", "red thing")[k % 2]) for k in range(5)]


def run(
    examples: list[Example], policy: Scripted, start: Scripted, methods: tuple[str, ...] = ROWS, **more
) -> list[Row]:
    policies = {"start": start, "trained": policy}
    flags = {"methods": methods, "resamples": 50, "task_model": ("oracle",)} | more
    runner = flags.pop("runner", None)
    return table(SegmentationBenchmark, examples, policies, CONFIG, {"oracle": Perfect()}, runner, "world", **flags)


@pytest.fixture
def policies(tokenizer) -> tuple[Scripted, Scripted]:
    nothing = lambda *_: "nothing" + END  # noqa: E731
    return Scripted("qwen3_vl", tokenizer, sees_errors), Scripted("qwen3_vl", tokenizer, nothing)


def test_every_row_is_what_a_loop_over_pictures_and_zooms_finds(policies: tuple) -> None:
    rows, examples = run(several(), *policies), several()
    assert [row.setting.method for row in rows] == list(ROWS)
    for row in rows:
        by_zoom: list[list[float]] = []
        for example, one in zip(examples, row.records, strict=True):
            draft, mask, seen = Draft.of(example), Draft.of(example).mask.copy(), []
            for k in range(4):
                union = coco_mask.merge([mask_to_rle(mask), mask_to_rle(draft.true)])
                both = coco_mask.merge([mask_to_rle(mask), mask_to_rle(draft.true)], intersect=True)
                seen.append(coco_mask.area(both) / coco_mask.area(union))
                if k < len(one["regions"]):
                    x1, y1, x2, y2 = one["regions"][k]
                    window = np.s_[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
                    mask[window] = draft.true[window]
            by_zoom.append(seen)
            assert one["ious"] == pytest.approx(seen[: len(one["ious"])]) and np.array_equal(
                rle_to_mask(one["mask"]), mask
            )
        means = np.mean(by_zoom, axis=0)
        assert [row.metrics[f"mIoU@{k}"].value for k in range(4)] == pytest.approx(means)
        assert row.metrics["gain"].value == pytest.approx(means[3] - means[0])
        last = bootstrap_interval([seen[3] for seen in by_zoom], range(5), 50)
        assert row.metrics["mIoU@3"] == pytest.approx(last)
    by_name = {row.setting.method: row.metrics for row in rows}
    assert by_name["active"]["mIoU@3"].value == by_name["grid"]["mIoU@3"].value == 1.0
    assert by_name["cot"]["mIoU@3"] == by_name["cot"]["mIoU@0"] and by_name["cot"]["regions"] == 0.0
    assert by_name["oracle-regions"]["covered"].value == by_name["active"]["covered"].value == 1.0
    assert by_name["oracle-regions"]["mIoU@1"].value > by_name["random"]["mIoU@1"].value


def test_budgets_and_the_blind_control_hold_for_masks_too(policies: tuple) -> None:
    rows = run(several(), *policies, methods=("grid",), budgets=(1,), black=True)
    assert [(row.setting.regions, row.setting.blind) for row in rows] == [(1, False), (1, True), (3, False), (3, True)]
    assert "mIoU@2" not in rows[0].metrics and rows[2].metrics["mIoU@3"].value == rows[3].metrics["mIoU@3"].value == 1.0


def test_regions_in_another_form_are_read_of_a_policy_that_was_not_trained_here(tokenizer) -> None:
    """The strict reader would have left the first mask as it is."""
    everything = lambda *_: "(0, 0, 1000, 500) and (0, 500, 1000, 1000)" + END  # noqa: E731
    start = Scripted("qwen3_vl", tokenizer, everything)
    start.trained_here = False
    (row,) = run([question()], start, start, methods=("cot",), parser="auto")
    seen = row.metrics
    assert seen["mIoU@3"].value == 1.0 and seen["lenient_only"] == 1.0 and row.parser == "lenient"
    assert seen["mIoU@3_strict"].value == seen["mIoU@0"].value < 0.8
    one = finished([row], SegmentationBenchmark, task="segment", task_model=("oracle",))
    assert eval_output.tables(one)[0].columns[-2:] == ["mIoU@3_strict", "lenient_only"]


def test_shared_work_and_unprepared_examples_make_the_same_table(policies: tuple) -> None:
    bare = [replace(example, draft=None) for example in several()]
    rows = run(bare, *policies, methods=("random", "oracle-regions"))
    coarse = [with_mask(one, true_mask(one), coarse_mask(true_mask(one), one.id)) for one in bare]
    again = run(coarse, *policies, methods=("random", "oracle-regions"), runner=backwards())
    for row, other in zip(rows, again, strict=True):
        assert row.metrics | {"seconds": 0} == other.metrics | {"seconds": 0} and row.metrics["mIoU@0"].value < 1


def test_the_plot_has_a_line_for_every_row(policies: tuple, tmp_path: Path) -> None:
    rows = run(several(), *policies)
    one = finished(rows, SegmentationBenchmark, "world", task="segment", task_model=("oracle",))
    one.benchmark.write(tmp_path, several(), eval_output.labels(one))
    with Image.open(tmp_path / "world-zooms.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB"), dtype=int).reshape(-1, 3)
    for colour in COLOURS_OF_LINES[: len(rows)]:
        assert (np.abs(pixels - ImageColor.getrgb(colour)).sum(axis=1) < 6).sum() > 100


def test_the_end_of_a_run_is_a_table_and_a_page(policies: tuple, tmp_path: Path, capsys) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 2.5}\n')
    config = replace(CONFIG, output_dir=str(tmp_path))
    end_of_run(*policies, Perfect(), several(), config, Backwards(rank=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]  # another rank writes
    end_of_run(*policies, Perfect(), several(), config, OneProcess())
    rows = {row["method"]: row for row in rows_in(tmp_path)}
    assert rows["active"]["metrics"]["mIoU@3"] == 1.0 > rows["cot"]["metrics"]["mIoU@3"]
    files = {path.name for path in tmp_path.iterdir()}
    assert files >= {"results.md", "results.tex", "scenes-zooms.png", "report.html", "answers-scenes-active.json"}
    page = (tmp_path / "report.html").read_text()
    assert "too much" in page and "found by the task model" not in page and "cot" in page and "active" in page
    assert "mIoU@3" in capsys.readouterr().out


# ---------------------------------------------------------------------- evaluate.py


def test_evaluate_prints_the_table_of_the_embedded_world(checkpoint: str, evaluate: Callable, tmp_path: Path) -> None:  # noqa: F811
    printed, complaint = evaluate("--checkpoint", checkpoint, "--task", "segment", "--task_model", "oracle", "--limit", "3",
                                  "--output_dir", str(tmp_path), *SMALL)  # fmt: skip
    assert complaint == "" and "scenes (test), 3 questions" in printed
    assert all(f"\n| {name} " in printed for name in ROWS)
    rows = rows_in(tmp_path)
    assert all(row["intervals"]["gain"][0] <= row["metrics"]["gain"] <= row["intervals"]["gain"][1] for row in rows)
    assert (tmp_path / "scenes.html").exists() and (tmp_path / "scenes-zooms.png").exists()


def test_evaluate_corrects_thin_objects_with_sam(
    checkpoint: str, evaluate: Callable, tmp_path: Path, monkeypatch
) -> None:  # noqa: F811
    """Both task models, a first mask by SAM, files in the published layout."""
    sam = tmp_path / "sam"
    sam_1().save_pretrained(sam)
    (sam / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    root = thin_set(tmp_path, split="test")
    made: list[str] = []
    make = task_segmentation._first_mask
    monkeypatch.setattr(
        task_segmentation,
        "_first_mask",
        lambda task_model, example, config: made.append(example.id) or make(task_model, example, config),
    )
    printed, complaint = evaluate(
        "--checkpoint", checkpoint, "--task", "segment", "--benchmark", "thinobject5k", "--data_root", root, "--first_mask", "sam",
        "--task_model", "sam", "oracle", "--task_checkpoint", str(sam), "--methods", "grid", "oracle-regions", "--task_options", "clicks=2", "least_seen=0",
        "--output_dir", str(tmp_path / "out"), *SMALL,
    )  # fmt: skip
    assert complaint == ""
    rows = rows_in(tmp_path / "out")
    assert [(row["method"], row["task_model"]) for row in rows] == [
        (m, t) for m in ("grid", "oracle-regions") for t in ("sam", "oracle")
    ]
    firsts = {row["metrics"]["mIoU@0"] for row in rows}
    assert len(firsts) == 1 and 0 <= firsts.pop() < 1  # all rows start from SAM's masks
    assert len(made) == len(set(made)) == 2  # which are made once
    assert rows[1]["metrics"]["mIoU@3"] == 1.0 and "thinobject5k (test), 2 questions" in printed


def test_evaluate_names_what_does_not_fit(checkpoint: str, evaluate: Callable) -> None:  # noqa: F811
    printed, complaint = evaluate("--checkpoint", checkpoint, "--task", "segment")
    assert complaint == "activeo3: --task segment corrects masks, and mllm makes none: give --task_model sam or oracle."
    _, complaint = evaluate("--checkpoint", checkpoint, "--task_model", "sam", "--task_checkpoint", "x")
    assert complaint == "activeo3: --task_model sam corrects masks: it goes with --task segment, not with --task sense."
