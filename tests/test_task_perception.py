"""task_perception.py and eval_perception.py: posed questions, answers in original pixels, rewards, tables, a run from
end to end."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import pytest
from coco_reference import coco_index
from launch import rank_environment
from PIL import Image
from scripted import END, USUAL, Scripted, blobs, painted, rows_in, table, written

from activeo3 import data_scenes, engine, eval_perception, eval_setup, log, monitor
from activeo3.config import TrainConfig
from activeo3.data_io import DataError
from activeo3.data_loader import TrainingOrder
from activeo3.data_set import Dataset
from activeo3.eval_config import EvalConfig
from activeo3.eval_perception import PerceptionBenchmark, measure, per_category
from activeo3.geometry import Frame, as_boxes, ordered
from activeo3.rollout import sample_rollouts
from activeo3.task_perception import TASKS as ONE_SHOT
from activeo3.task_perception import Answer
from activeo3.tasks import PromptSpec, known_tasks, prepared, task_of
from activeo3.text_metrics import page_metrics, text_similarity
from activeo3.types import Count, Example, Objects, Rollout, Sampling, TaskResult

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # train.py and evaluate.py are scripts beside the package

import evaluate  # noqa: E402
import train  # noqa: E402

TASKS = known_tasks()

CONFIG = TrainConfig(sensing_side=256, max_new_tokens=64)
RED, OTHER = (40, 60, 120, 140), (300, 200, 360, 260)


def picture(things: list = [("red", RED), ("red", OTHER)], **fields: Any) -> Example:
    boxes = np.array([box for _, box in things], dtype=float).reshape(-1, 4)
    return Example("a", painted((480, 320), things), "red", boxes, **fields)


# ---------------------------------------------------------------------- posing


def test_the_embedded_world_has_a_question_for_every_task() -> None:
    for index in range(8):
        example, world = data_scenes.example("train", index), data_scenes.scene("train", index)
        names = [thing.name for thing in world.things]
        phrase = TASKS["grounding"](TrainConfig()).prepare(example)
        alone = [thing for thing in world.things if thing.name == phrase.query]
        assert len(alone) == 1 and phrase.boxes_px.tolist() == [list(alone[0].box_px)]  # true of exactly one thing
        count = TASKS["counting"](TrainConfig()).prepare(example)
        assert count.count.number == names.count(count.query) == len(count.count.places_px)
        page = TASKS["ocr"](TrainConfig()).prepare(example)
        assert page.text == world.number and page.boxes_px.tolist() == [list(world.plate_px)]
        everything = TASKS["detection"](TrainConfig()).prepare(example)
        assert list(everything.objects.labels) == names
        assert everything.boxes_px.tolist() == [list(thing.box_px) for thing in world.things]
        assert len(everything.objects.categories) == 36 and set(names) <= set(everything.objects.categories)
        assert all(one.image is example.image for one in (phrase, count, page, everything))


def test_a_picture_without_a_single_kind_refers_to_the_leftmost_target() -> None:
    world = data_scenes.scene("val", 0)
    doubled = replace(world, things=world.things * 2)
    referred = data_scenes.referred(doubled, np.random.default_rng(0))
    assert referred.text == f"leftmost {world.colour} {world.shape}"
    assert referred.box_px == min(thing.box_px for thing in world.targets)


def test_examples_of_other_data_sets() -> None:
    one = picture([("red", RED)])
    assert TASKS["grounding"](TrainConfig()).prepare(one).boxes_px.tolist() == [list(RED)]
    with_crowd = replace(picture(), crowd=np.array([False, True]))
    assert TASKS["grounding"](TrainConfig()).prepare(with_crowd).boxes_px.tolist() == [list(RED)]
    assert TASKS["counting"](TrainConfig()).prepare(with_crowd).count.number == 1
    pointed = TASKS["counting"](TrainConfig()).prepare(
        picture([], count=Count(2, np.array([[1.0, 2, 1, 2], [3, 4, 3, 4]])))
    )
    assert pointed.count.places_px.tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]
    assert (
        TASKS["counting"](TrainConfig()).prepare(picture([], count=Count(2))).count.places_px is None
    )  # PixMo's sets to evaluate on
    assert TASKS["counting"](TrainConfig()).prepare(picture([], count=Count(0))).count.places_px.shape == (0, 4)
    objects = Objects(np.array([RED, OTHER]), ("cup", "cup"), ("cup",), np.array([True, False]), np.ones(2))
    coco = TASKS["detection"](TrainConfig()).prepare(picture([], objects=objects))
    assert coco.boxes_px.tolist() == [list(RED), list(OTHER)] and coco.query == "everything"
    assert coco.crowd is objects.crowd and coco.areas is objects.areas
    assert TASKS["ocr"](TrainConfig()).prepare(picture([], text="a page")).text == "a page"


@pytest.mark.parametrize(
    "task, example, why",
    [
        ("grounding", picture(), "has 2 boxes of 'red' and not one, which --task grounding needs: use --data refcoco"),
        ("grounding", picture([]), "has 0 boxes of 'red'"),
        ("counting", picture(exhaustive=False), "does not say how many 'red' there are"),
        ("counting", picture([]), "does not say how many 'red' there are"),
        ("ocr", picture(), "has no text, which --task ocr needs: use --data pageocr or scenes"),
        ("detection", picture(), "has no boxes of all categories"),
    ],
)
def test_an_example_that_does_not_fit_is_passed_over(task: str, example: Example, why: str) -> None:
    with pytest.raises(DataError) as caught:
        TASKS[task](TrainConfig()).prepare(example)
    assert str(caught.value).startswith("example a ") and why in str(caught.value) and caught.value.example_id == "a"
    fits = data_scenes.example("val", 0)
    data = prepared(Dataset("two", "train", [example, fits], lambda item, _: item), TASKS[task](CONFIG))
    stream = TrainingOrder(data, prompts=1, seed=0, rank=0, world=1)
    assert {stream.at(step)[0].id for step in range(4)} == {fits.id} and list(stream.skipped) == ["a"]
    assert prepared(data, TASKS["sense"](CONFIG)) is data


# ---------------------------------------------------------------------- a policy that sees


def sees(task: str) -> Callable[..., str]:
    """A policy that answers one of the tasks rightly about everything red."""

    def says(model: Scripted, view: Image.Image, question: str) -> str:
        boxes = written(model, view, blobs(view, "red"))
        listed = json.dumps([{"bbox_2d": box, "label": "Red"} for box in boxes])
        return {"grounding": str(boxes[0]), "counting": f"{listed} {len(boxes)}", "ocr": "No.  7", "detection": listed}[
            task
        ] + END

    return says


RIGHT = {
    "grounding": picture([("red", RED)]),
    "counting": picture(),
    "ocr": picture(text="No. 7"),
    "detection": picture(objects=Objects(np.array([RED, OTHER], dtype=float), ("red", "red"), ("red", "green"))),
}


def answers(
    task: str, says: Callable | str, config: TrainConfig = CONFIG, family: str = "qwen3_vl", tokenizer: Any = None
) -> Rollout:
    policy = Scripted(family, tokenizer, says if callable(says) else lambda *_: says)
    example = TASKS[task](TrainConfig()).prepare(RIGHT[task])
    _, ((rollout,),) = sample_rollouts(policy, TASKS[task](config), [example], 1, Sampling(0.0, 64))
    return rollout


@pytest.mark.parametrize("family", USUAL)
@pytest.mark.parametrize("task", ONE_SHOT)
def test_a_right_answer_is_worth_full_marks(task: str, family: str, tokenizer: Any) -> None:
    rollout = answers(task, sees(task), family=family, tokenizer=tokenizer)
    score = TASKS[task](CONFIG).reward(rollout, *TASKS[task](CONFIG).act(None, [rollout]))
    assert list(score.terms) == list(TASKS[task].terms)
    full = {name: 0.0 if name == "missing" else 1.0 for name in score.terms}
    assert score.terms == pytest.approx(full, abs=0.05)  # whole numbers in a model's coordinates
    assert score.total == pytest.approx(sum(score.terms.values()))
    row = measure(task, [rollout.example], [rollout], resamples=0)
    columns = eval_perception.COLUMNS[task]
    assert tuple(row)[: len(columns)] == columns and row["form"].value == 1.0


@pytest.mark.parametrize("task", ONE_SHOT)
def test_a_wrong_answer_is_worth_little(task: str, tokenizer: Any) -> None:
    for said in ("nonsense", "<|box_start|>" + END, "<think>a</think><answer></answer>" + END):
        rollout = answers(task, said, tokenizer=tokenizer)
        terms = TASKS[task](CONFIG).reward(rollout, rollout.result).terms
        assert terms["format"] == (task == "ocr" and said == "<|box_start|>" + END) and terms.get("iou", 0) == 0
        assert log.rollout_lines(rollout, rollout.result, TASKS[task](CONFIG).reward(rollout, rollout.result))


def test_boxes_are_put_in_order_and_cut_off_at_the_border(tokenizer: Any) -> None:
    frame = Frame((0, 0, 480, 320), (1000, 1000))
    reading = TASKS["grounding"](CONFIG).parse(
        "[1200, 1000, 500, -50]", True, PromptSpec(RIGHT["grounding"].image, frame, ""), RIGHT["grounding"]
    )
    assert reading.result.boxes_px.tolist() == [[240, 0, 480, 320]] and reading.regions == ()


def test_flags_reach_the_reward(tokenizer: Any) -> None:
    half = answers("grounding", "[84, 188, 250, 312]" + END, tokenizer=tokenizer)  # the upper half of the box
    iou = TASKS["grounding"](CONFIG).reward(half, half.result).terms["iou"]
    assert 0.45 < iou < 0.55
    assert TASKS["grounding"](replace(CONFIG, iou_power=2)).reward(half, half.result).terms["iou"] == pytest.approx(
        iou**2
    )

    turned = answers("counting", lambda m, v, q: json.dumps([{"bbox_2d": b} for b in written(m, v, blobs(v, "red"))[::-1]]) + " 2" + END,
                     tokenizer=tokenizer)  # fmt: skip
    by_match, by_order = (TASKS["counting"](replace(CONFIG, matching=m)).reward(turned, turned.result).terms["match"]
                          for m in ("hungarian", "sequential"))  # fmt: skip
    assert by_match > 0.98 > by_order + 0.2
    inside = (
        TASKS["counting"](replace(CONFIG, matching="sequential", places="inside")).reward(turned, turned.result).terms
    )
    assert inside["match"] == 0.0
    doubled = replace(CONFIG, reward_weights=("match=2", "count=0"))
    assert TASKS["counting"](doubled).reward(turned, turned.result).total == pytest.approx(1 + 2 * by_match)

    thoughtful = replace(CONFIG, thinking=True)
    told = "<think>seven</think><answer>No. 7</answer>" + END
    assert (
        TASKS["ocr"](thoughtful)
        .reward(*_with_result(answers("ocr", told, thoughtful, tokenizer=tokenizer)))
        .terms["format"]
        == 1.0
    )
    assert TASKS["ocr"](CONFIG).reward(*_with_result(answers("ocr", told, tokenizer=tokenizer))).terms == {
        "format": 0.0,
        "text": 1.0,
    }


def _with_result(rollout: Rollout) -> tuple[Rollout, TaskResult]:
    return rollout, rollout.result


def test_a_thinking_question_asks_for_a_thought(tokenizer: Any) -> None:
    for thinking in (False, True):
        policy = Scripted("qwen3_vl", tokenizer, lambda *_: END)
        sample_rollouts(
            policy,
            TASKS["detection"](replace(CONFIG, thinking=thinking, wording="paper")),
            [RIGHT["detection"]],
            1,
            Sampling(),
        )
        words = policy.shown[0][1]
        assert ("<think>" in words) == thinking and "one of: red, green." in words


def test_the_number_alone_can_be_compared_where_nobody_pointed(tokenizer: Any) -> None:
    rollout = answers("counting", sees("counting"), tokenizer=tokenizer)
    for count, worth, paper in ((2, 1.0, 1.0), (4, 2 / 3, 0.5), (1, 2 / 3, 0.5)):
        unpointed = replace(rollout, example=TASKS["counting"](TrainConfig()).prepare(picture([], count=Count(count))))
        for reward, match in (("f1", worth), ("paper", paper)):
            terms = TASKS["counting"](replace(CONFIG, perception_reward=reward)).reward(unpointed, rollout.result).terms
            assert (terms["match"], terms["count"]) == (pytest.approx(match), float(count == 2))


# ---------------------------------------------------------------------- tables


def said(
    example: Example, boxes: Any = (), labels: Any = (), count: int = 0, text: str = "", error: str | None = None
) -> Rollout:
    boxes_px = as_boxes(boxes)
    answer = Answer(tuple(map(tuple, boxes_px.tolist())), tuple(labels), error, count=count, text=text)
    return Rollout(example, (), text, True, answer, (), TaskResult(boxes_px, np.ones(len(boxes_px))))


def values(task: str, examples: list[Example], given: list[Rollout]) -> dict[str, float]:
    return {name: metric.value for name, metric in measure(task, examples, given, resamples=0).items()}


def test_accuracies_of_grounding() -> None:
    example = picture([("red", (0, 0, 100, 100))])
    ious = [1.0, 0.95, 0.94, 0.75, 0.5, 0.49, 0.0]
    given = [said(example, [(0, 0, 100 * iou, 100)]) for iou in ious[:-1]] + [said(example, error="json")]
    row = values("grounding", [example] * 7, given)
    assert [row[name] for name in ("Acc50", "Acc75", "Acc95")] == pytest.approx([5 / 7, 4 / 7, 2 / 7])
    assert (
        row["Avg"] == pytest.approx(11 / 21)
        and row["mIoU"] == pytest.approx(sum(ious) / 7)
        and row["form"] == pytest.approx(6 / 7)
    )


def test_counting_and_reading() -> None:
    example = TASKS["counting"](TrainConfig()).prepare(picture([], count=Count(3)))
    assert values("counting", [example] * 4, [said(example, count=k) for k in (3, 3, 1, 7)]) == {
        "exact": 0.5,
        "MAE": 1.5,
        "form": 1.0,
    }
    pytest.importorskip("nltk")
    pages = [TASKS["ocr"](TrainConfig()).prepare(picture([], text=text)) for text in ("one two three", "four")]
    row = values("ocr", pages, [said(pages[0], text="one two three"), said(pages[1], text="for", error="unfinished")])
    wanted = [page_metrics("one two three", "one two three"), page_metrics("for", "four")]
    assert row == pytest.approx({name: (wanted[0][name] + wanted[1][name]) / 2 for name in wanted[0]} | {"form": 0.5})
    assert row["edit_distance"] == pytest.approx((1 - text_similarity("for", "four")) / 2)


def random_pictures(seed: int, pictures: int = 14) -> tuple[list[Example], list[Rollout]]:
    """Pictures with things of four categories, crowds and nothing at all, and answers that are often near."""
    rng = np.random.default_rng(seed)
    names, examples, given = ("cup", "traffic light", "dog", "bus"), [], []
    for number in range(1, pictures + 1):
        count = 0 if number in (3, pictures) else int(rng.integers(1, 7))
        corner, side = rng.uniform(0, 300, (count, 2)), rng.uniform(10, 150, (count, 2))
        boxes, labels = np.concatenate([corner, corner + side], axis=1), rng.choice(names, count)
        areas = side.prod(axis=1) * rng.uniform(0.5, 1, count)
        more = {"areas": areas, "objects": Objects(boxes, tuple(labels), tuple(names))}
        blank = Image.new("RGB", (480, 480))
        example = Example(
            str(number), blank, "everything", boxes, image_id=number, crowd=rng.random(count) < 0.15, **more
        )
        kept = rng.random(count) < 0.8
        near, as_named = boxes[kept] + rng.normal(0, 6, (kept.sum(), 4)), labels[kept]
        as_named = np.where(rng.random(len(as_named)) < 0.8, as_named, rng.choice(names, len(as_named)))
        spare = int(rng.integers(0, 3))
        false = np.tile(rng.uniform(0, 200, (spare, 2)), 2) + [0, 0, 60, 60]
        found = ordered(np.concatenate([near, false]))
        order = rng.permutation(len(found))
        spoken = [str(name).upper() for name in [*as_named, *rng.choice([*names, "zebra"], spare)]]
        examples.append(example)
        given.append(said(example, found[order], [spoken[k] for k in order]))
    return examples, given


def coco_stats(examples: list[Example], given: list[Rollout]) -> dict[str, float]:
    """pycocotools on the pictures as a COCO data set, without any of our code between."""
    from pycocotools.cocoeval import COCOeval

    names = list(examples[0].objects.categories)
    truth = [
        {"image_id": e.image_id, "category_id": names.index(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": int(crowd)}
        for e in examples
        for (x1, y1, x2, y2), label, area, crowd in zip(e.boxes_px.tolist(), e.objects.labels, e.areas.tolist(), e.crowd)
    ]  # fmt: skip
    found = [
        {"image_id": e.image_id, "category_id": names.index(label.lower()) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1.0,
         "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        for e, r in zip(examples, given)
        for (x1, y1, x2, y2), label in zip(r.result.boxes_px.tolist(), r.action.labels) if label.lower() in names
    ]  # fmt: skip
    run = COCOeval(*(coco_index(len(examples), names, rows) for rows in (truth, found)), "bbox")
    run.evaluate(), run.accumulate(), run.summarize()
    return dict(zip(("AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l", "AR1", "AR10", "AR"), run.stats.tolist()))


@pytest.mark.parametrize("seed", range(4))
def test_detection_is_cocos_over_all_pictures(seed: int, capsys: pytest.CaptureFixture) -> None:
    examples, given = random_pictures(seed)
    ours, cocos = values("detection", examples, given), coco_stats(examples, given)
    assert {name: ours[name] for name in ("AP", "AP50", "AP75", "AP_s", "AR")} == pytest.approx(
        {name: cocos[name] for name in ("AP", "AP50", "AP75", "AP_s", "AR")}, abs=1e-9
    )
    assert 0.1 < ours["AP50"] < 0.95


def test_the_last_picture_counts(capsys: pytest.CaptureFixture) -> None:
    """The reference's evaluation drops it by default; here it holds nothing, and what is said of it is false."""
    examples, given = random_pictures(0)
    false = said(examples[-1], np.repeat([[0.0, 0, 50, 50]], 9, axis=0), ["cup"] * 9)
    # The empty picture first: equal scores rank in the order of pictures, so what is false there comes first.
    examples = [
        replace(example, image_id=number) for number, example in enumerate([examples[-1], *examples[:-1]], start=1)
    ]
    given = [false, *given[:-1]]
    assert values("detection", examples, given)["AP"] < values("detection", examples[1:], given[1:])["AP"]
    assert values("detection", examples, given)["AP"] == pytest.approx(coco_stats(examples, given)["AP"], abs=1e-9)
    questions, outcomes = per_category(examples, given)
    assert {question.image_id for question in questions} == {example.image_id for example in examples}


def test_policies_beside_each_other(tokenizer: Any) -> None:
    examples = [TASKS["counting"](TrainConfig()).prepare(data_scenes.example("val", index)) for index in range(3)]
    three = Scripted(
        "qwen3_vl", tokenizer, lambda *_: '[{"point_2d":[1,2]},{"point_2d":[5,2]},{"point_2d":[9,2]}] 3' + END
    )
    mute = Scripted("qwen3_vl", tokenizer, lambda *_: END)
    rows = table(PerceptionBenchmark, examples, {"start": mute, "trained": three}, CONFIG, task="counting", black=True)
    assert [(row.setting.policy, row.setting.blind) for row in rows] == [
        ("start", False), ("start", True), ("trained", False), ("trained", True),
    ]  # fmt: skip
    right = [example.count.number == 3 for example in examples]
    assert rows[2].metrics["exact"].value == pytest.approx(np.mean(right)) and rows[0].metrics["form"].value == 0.0
    assert [one["id"] for one in rows[2].records] == [example.id for example in examples]
    assert three.batches[0][2].temperature == 0.0
    assert {np.asarray(view).max() for view, _ in three.shown[3:]} == {0}


# ---------------------------------------------------------------------- the scripts


@pytest.fixture(scope="module")
def policy(make_vlm: Callable, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy") / "model"
    make_vlm("qwen3_vl").save(folder)
    return str(folder)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as a group of one in the project's folder."""
    for name, value in rank_environment(0, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(engine, "stop", lambda: None)
    monkeypatch.chdir(ROOT)
    yield


SMALL = "--limit 2 --sensing_side 32 --max_new_tokens 4".split()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
@pytest.mark.parametrize("task", ONE_SHOT)
def test_a_run_ends_in_the_tasks_own_table(
    task: str, here: None, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if task == "ocr":
        pytest.importorskip("nltk")
    few = "--steps 2 --save_every 1 --eval_examples 1 --prompts 1 --micro_prompts 1 --group 2 --samples_every 2".split()
    train.main(TrainConfig.from_args(["--task", task, "--model", policy, *SMALL, *few, "--output_dir", str(tmp_path)]))
    rows = log.read_rows(tmp_path / "metrics.jsonl")
    logged = {name.removeprefix("reward/") for row in rows for name in row if name.startswith("reward/")}
    assert len(rows) == 2 and logged == set(TASKS[task].terms)
    assert all(f"reward/{name}" in monitor.METRIC_GLOSSARY for name in logged)
    found = rows_in(tmp_path)
    assert [row["policy"] for row in found] == ["start", "trained"] and set(found[0]["metrics"]) >= set(
        eval_perception.COLUMNS[task]
    )
    assert (tmp_path / "report.html").exists() and list((tmp_path / "samples").rglob("*.jpg"))

    capsys.readouterr()
    names = ["scenes", "scenes:test"] if task == "grounding" else ["scenes"]
    given = [
        "--task",
        task,
        "--checkpoint",
        str(tmp_path / "checkpoint-2"),
        "--split",
        "val",
        *SMALL,
        "--resamples",
        "10",
    ]
    evaluate.main(EvalConfig.from_args([*given, "--benchmark", *names]))
    printed = capsys.readouterr().out
    assert (
        all(f"{name} (val), 2 questions" in printed or f"{name} (test), 2 questions" in printed for name in names)
        and f" {eval_perception.COLUMNS[task][0]} |" in printed
    )
    found = rows_in(tmp_path / "checkpoint-2" / "eval")
    assert [(row["benchmark"], row["policy"]) for row in found] == [
        (name, who) for name in names for who in ("start", "trained")
    ]

    if task == "grounding":  # several checkpoints are rows of one table, and each is what it is alone
        both = [str(tmp_path / f"checkpoint-{step}") for step in (1, 2)]
        config = EvalConfig.from_args([*given, "--checkpoint", *both, "--output_dir", str(tmp_path / "both")])
        evaluate.main(config)
        rows = rows_in(tmp_path / "both")
        assert [row["policy"] == "start" for row in rows] == [True, False, False]
        assert rows[2]["metrics"] | {"seconds": 0} == found[1]["metrics"] | {"seconds": 0}


@pytest.mark.parametrize(
    "preset, task, tokens",
    [
        ("refcoco", "grounding", 256),
        ("pixmo_count", "counting", 1024),
        ("pageocr", "ocr", 2048),
        ("coco_det", "detection", 2048),
    ],
)
def test_a_preset_for_every_task(preset: str, task: str, tokens: int) -> None:
    """Perception-R1, section 4.3: learning rate 1e-6, 8 rollouts, batch 1, accumulation 2, KL .04, temperature 1."""
    config = TrainConfig.from_args(["--preset", preset, "--data_root", "somewhere"])
    assert (config.task, config.data, config.max_new_tokens) == (task, (preset,), tokens)
    assert (config.lr, config.group, config.prompts, config.micro_prompts, config.beta, config.temperature) == (
        1e-6,
        8,
        2,
        1,
        0.04,
        1,
    )
    assert (
        config.steps == {"refcoco": 5_000, "pixmo_count": 10_000, "pageocr": 5_000, "coco_det": 110_000}[preset] // 16
    )
    assert task_of(config).benchmark == "perception" and not config.thinking and config.wording == "paper"
    evaluated = EvalConfig.from_args(["--preset", preset, "--data_root", "somewhere", "--checkpoint", "c"])
    assert (evaluated.task, evaluated.data) == (task, (preset,))


def test_a_missing_package_is_named_before_any_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    config = TrainConfig(task="ocr", eval_examples=1)
    with pytest.raises(DataError, match=r"^the table of --task ocr needs the package nltk"):
        eval_setup.held_out(config)
    with pytest.raises(DataError, match=r"^the table of --task ocr needs the package nltk"):
        evaluate.main(EvalConfig(task="ocr", checkpoint=("nowhere",)))
    assert eval_setup.held_out(replace(config, eval_examples=0)) == []
