"""tasks.py: every task answers all four calls, and Direct RFT is the task model's own role on the whole picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import rank_environment
from scripted import END, USUAL, Scripted, end_of_run, finds, painted, rows_in, table

import train
from activeo3 import engine, log
from activeo3.config import ConfigError, TrainConfig
from activeo3.data_io import DataError
from activeo3.eval_core import result_of
from activeo3.eval_detection import DetectionBenchmark
from activeo3.eval_runner import OneProcess
from activeo3.geometry import as_boxes, mask_to_rle
from activeo3.metrics import ap_ar_50
from activeo3.model import VisionLanguageModel
from activeo3.rollout import sample_rollouts
from activeo3.samples import Sample, save_samples
from activeo3.task_models import Oracle
from activeo3.tasks import PromptSpec, Task, known_tasks, sensing_view, task_of
from activeo3.types import VQA, Count, Example, Objects, Parsed, ParsedAnswer, Phrase, Rollout, TaskResult

TASKS = known_tasks()

CONFIG = TrainConfig(crop_side=256)
THINGS = [("red", (40, 60, 120, 140)), ("red", (300, 200, 360, 260))]


@pytest.fixture(params=USUAL)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def question(size: tuple[int, int] = (480, 320)) -> Example:
    """Two things, with all that any task may ask of an example."""
    boxes = as_boxes([box for _, box in THINGS])
    return Example(
        "a",
        painted(size, THINGS),
        "red",
        boxes,
        objects=Objects(boxes, ("red", "red"), ("red",)),
        vqa=VQA("What colour is it?", ("red",), evidence_px=boxes[:1]),
        phrase=Phrase("the first", THINGS[0][1]),
        text="7",
    )


def answers(
    task: type[Task], policy: Scripted, example: Example, config: TrainConfig = CONFIG, group: int = 1
) -> list[Rollout]:
    _, (rollouts,) = sample_rollouts(policy, task(config), [example], group, task(config).sampling(1.0))
    return rollouts


# ---------------------------------------------------------------------- every task


@pytest.mark.parametrize("name", TASKS)
def test_a_task_goes_from_question_to_reward(name: str, family: str, tokenizer) -> None:
    """Whatever the answer, the reward has the terms that the task names, and each has a weight."""
    task, task_model, example = TASKS[name](CONFIG), Scripted(family, tokenizer, finds), question()
    example = task.prepare(example)
    if name == "segment":
        task_model = task.load_task_model("oracle", torch.device("cpu"))
        true = np.zeros((320, 480), dtype=bool)
        true[60:140, 40:120] = True
        example = replace(example, boxes_px=example.boxes_px[:1], masks=lambda: [mask_to_rle(true)])
    (example,) = task.prepare_batch(task_model, [example])
    for said in ("[]" + END, "nonsense", '<think>a</think><answer>[{"bbox_2d":[1,2,90,80]}]</answer>' + END):
        rollouts = answers(TASKS[name], Scripted(family, tokenizer, lambda *_: said), example, group=2)
        outcomes = task.act(task_model, rollouts)
        for rollout, outcome in zip(rollouts, outcomes, strict=True):
            score = task.reward(rollout, outcome)
            assert tuple(score.terms) == tuple(task.terms)
            assert score.total == pytest.approx(sum(task.terms[term] * score.terms[term] for term in task.terms))
            assert log.rollout_lines(rollout, outcome, score).startswith("example a")


UNREADABLE = ("", " \n", "<think>[]</think>", "<answer>", "<think>[] 0", "[] 0</think>")
"""Answers of which nothing can be read, in any task; below, those that are at least a transcript."""
NO_BOXES = ("[", "nothing here", "{}", '[{"bbox_2d": [1, 2]}]', "null", "[[]", '{"things": []}')
SILENT = {  # what is to be said of an empty picture, and what that earns beside the format
    "sense": ("<think>no</think><answer>[]</answer>", {"task": 2.0}), "direct": ("[]", {"task": 2.0}), "act": ("[]", {"task": 2.0}),
    "counting": ("[] 0", {"match": 1.0, "count": 1.0}), "detection": ("[]", {"location": 1.0, "class": 1.0, "number": 1.0}),
}  # fmt: skip


def situation(name: str, empty: bool) -> tuple[Any, Example]:
    """Who works on crops in a task, and a question of it about a picture with two things or without any."""
    task, example, task_model = TASKS[name](CONFIG), question(), Oracle()
    if empty:
        nothing = Objects(as_boxes([]), (), ("red",))
        example = replace(example, boxes_px=as_boxes([]), count=Count(0), objects=nothing)
    if name == "segment":
        task_model, true = task.load_task_model("oracle", torch.device("cpu")), np.zeros((320, 480), dtype=bool)
        true[60:140, 40:120] = True
        example = replace(example, boxes_px=as_boxes([THINGS[0][1]]), masks=lambda: [mask_to_rle(true)])
    example = task.prepare(example)
    if name != "act":  # whose crops a language model proposes (test_task_act.py)
        (example,) = task.prepare_batch(task_model, [example])
    return task_model, example


def terms_of(name: str, said: str, empty: bool, tokenizer: Any, config: TrainConfig = CONFIG) -> dict[str, float]:
    task_model, example = situation(name, empty)
    (rollout,) = answers(TASKS[name], Scripted("qwen3_vl", tokenizer, lambda *_: said), example, config)
    task = TASKS[name](config)
    return dict(task.reward(rollout, *task.act(task_model, [rollout])).terms)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_an_answer_that_cannot_be_read_earns_nothing_in_any_term_of_any_task(name: str, empty: bool, tokenizer) -> None:
    """Finished or cut off. An empty picture is no reason: only an answer that can be read has said that it is empty."""
    if empty and name in ("grounding", "ocr", "segment"):
        return  # there is always something to find
    for said in UNREADABLE + (() if name == "ocr" else NO_BOXES):
        for ending in (END, ""):
            terms = terms_of(name, said + ending, empty, tokenizer)
            assert tuple(terms) == tuple(TASKS[name].terms) and max(terms.values()) <= 0.0, (said, terms)
    if empty and name in SILENT:
        said, worth = SILENT[name]
        assert {term: terms_of(name, said + END, empty, tokenizer)[term] for term in worth} == worth


@pytest.mark.parametrize("evidence", ["union", "per_call"])
def test_zooms_without_an_answer_earn_nothing(evidence: str, tokenizer) -> None:
    """Not even where evidence counts for wrong answers; costs stay."""
    config = replace(CONFIG, evidence=evidence, evidence_gate=False, max_turns=2)
    zoom = '<zoom_roi x0="0.05" y0="0.15" x1="0.3" y1="0.5"/>' + END
    task_model, example = situation("zoom_qa", False)
    for last in ("It is red." + END, "<answer>red", zoom):
        turns = [zoom, last]
        (rollout,) = answers(
            TASKS["zoom_qa"], Scripted("qwen3_vl", tokenizer, lambda *_: turns.pop(0)), example, config
        )
        task = TASKS["zoom_qa"](config)
        terms = task.reward(rollout, *task.act(task_model, [rollout])).terms
        assert rollout.episode.looked_at and max(terms.values()) <= 0.0
    turns = [zoom, "<answer>blue</answer>" + END]
    (rollout,) = answers(TASKS["zoom_qa"], Scripted("qwen3_vl", tokenizer, lambda *_: turns.pop(0)), example, config)
    assert task.reward(rollout, *task.act(task_model, [rollout])).terms["evidence"] > 0.5


def test_an_unknown_task_and_a_useless_flag_are_one_sentence() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^--task paint is not known; there are: .*sense.*\.$",
    ):
        task_of(TrainConfig(task="paint"))
    with pytest.raises(ConfigError, match=r"^--task direct has no crops to work on: leave out --task_model oracle\.$"):
        task_of(TrainConfig(task="direct", task_model="oracle"))
    assert task_of(TrainConfig(task_model="oracle")).name == "sense"
    with pytest.raises(
        ConfigError,
        match=r"^--wording zoom_roi asks for zooms turn by turn: it goes with --task zoom_qa, not with --task sense\.$",
    ):
        task_of(TrainConfig(wording="zoom_roi"))
    assert task_of(TrainConfig(wording="zoom_roi", task="zoom_qa")).name == "zoom_qa"


# ---------------------------------------------------------------------- Direct RFT


@pytest.mark.parametrize("shape, method", [("square", "direct"), ("aspect", "direct-native")])
def test_a_direct_answer_is_what_the_table_calls_direct(shape: str, method: str, family: str, tokenizer) -> None:
    """The same view, the same words, and the same boxes as the task model on the whole picture."""
    config = replace(CONFIG, crop_shape=shape, task="direct")
    policy, other, example = Scripted(family, tokenizer, finds), Scripted(family, tokenizer, finds), question()
    task = task_of(config)
    (rollout,) = answers(type(task), policy, example, config)
    (outcome,) = task.act(other, [rollout])
    assert not other.shown  # nobody else is asked
    (row,) = table(DetectionBenchmark, [example], {"start": other}, config, {"mllm": other}, methods=(method,))
    expected = result_of(row.records[0]["found"])
    (view, words), (other_view, other_words) = policy.shown[0], other.shown[0]
    assert words == other_words and np.array_equal(np.asarray(view), np.asarray(other_view))
    assert policy.batches[0][2].max_new_tokens == other.batches[0][2].max_new_tokens
    assert np.array_equal(outcome.boxes_px, expected.boxes_px) and outcome.texts == expected.texts
    assert np.abs(outcome.boxes_px - example.boxes_px).max() < 3 and rollout.regions == ()


@pytest.mark.parametrize(
    "said, terms",
    [
        ("[]" + END, {"format": 1.0, "task": 0.0}),
        ("[]", {"format": 0.0, "task": 0.0}),  # cut off
        ('{"bbox_2d": [0, 0, 5, 5]}' + END, {"format": 0.0, "task": 0.0}),
        ('[{"bbox_2d": [0, 0, 5]}]' + END, {"format": 0.0, "task": 0.0}),
        ("<think>there</think><answer>[]</answer>" + END, {"format": 0.0, "task": 0.0}),
    ],
)
def test_the_reward_of_a_direct_answer(said: str, terms: dict[str, float], tokenizer) -> None:
    task = TASKS["direct"]
    (rollout,) = answers(task, Scripted("qwen3_vl", tokenizer, lambda *_: said), question())
    assert task(CONFIG).reward(rollout, rollout.result).terms == terms


def test_a_direct_answer_earns_what_the_benchmark_measures(tokenizer) -> None:
    task, example = TASKS["direct"], question()
    half = '[{"bbox_2d":[83,187,250,437]}]'  # the first of two things, in thousandths
    for said, points in ((half, sum((51 / 101, 0.5))), (None, 2.0)):
        says = (lambda *_: said + END) if said else finds
        (rollout,) = answers(task, Scripted("qwen3_vl", tokenizer, says), example)
        (outcome,) = task(CONFIG).act(None, [rollout])
        score = task(CONFIG).reward(rollout, outcome)
        assert score.terms == {"format": 1.0, "task": pytest.approx(points)} and score.total == pytest.approx(
            1 + points
        )
        assert sum(ap_ar_50(example, outcome)) == score.terms["task"]
        without = task(replace(CONFIG, reward_weights=("task=0",))).reward(rollout, outcome)
        assert without.total == 1.0 and without.terms == score.terms


def test_a_run_without_regions_leaves_table_page_and_samples(tmp_path, tokenizer) -> None:
    """Before and after are the start policy and the trained one on the whole picture, and nobody is said to zoom."""
    nothing = lambda *_: "[]" + END  # noqa: E731
    trained, start = (Scripted("qwen3_vl", tokenizer, says) for says in (finds, nothing))
    config = TrainConfig(crop_side=256, task="direct", output_dir=str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 2.5}\n')
    examples = [replace(question(), image_id=i + 1, id=str(i)) for i in range(3)]
    end_of_run(trained, start, start, examples, config, OneProcess())
    rows = rows_in(tmp_path)
    seen = {(row["method"], row["task_model"]): row["metrics"]["AP50"] for row in rows}
    assert seen["direct", "trained"] == 1.0 and seen["direct", "start"] == 0.0
    assert {method for method, _ in seen} == {"direct", "oracle-regions"} and len(seen) == 4
    page = (tmp_path / "report.html").read_text()
    assert (
        "direct-start" in page
        and "direct-trained" in page
        and "region to zoom into" not in page
        and 'alt="the crops"' not in page
    )
    task = task_of(config)
    (rollout,) = answers(type(task), trained, examples[0], config)
    (outcome,) = task.act(None, [rollout])
    score = task.reward(rollout, outcome)
    assert "regions" not in log.rollout_lines(rollout, outcome, score)
    folder = save_samples(tmp_path, 1, [Sample.of(rollout, outcome, score)])
    assert sorted(path.name for path in folder.iterdir()) == [
        "samples-00-picture.jpg",
        "samples-00-small.jpg",
        "samples.jsonl",
    ]


def test_an_episode_is_drawn_with_its_question_its_evidence_and_what_was_said(tokenizer) -> None:
    task = TASKS["zoom_qa"](CONFIG)
    example = task.prepare(question())
    assert (example.query, example.boxes_px.tolist()) == ("What colour is it?", [list(THINGS[0][1])])
    for told, said in (("<think></think><answer>red</answer>" + END, "red"), ("nonsense" + END, "nothing")):
        (rollout,) = answers(type(task), Scripted("qwen3_vl", tokenizer, lambda *_: told), example)
        (outcome,) = task.act(None, [rollout])
        shown = Sample.of(rollout, outcome, task.reward(rollout, outcome))
        assert shown.said == said
        other = replace(shown, said="blue").picture()
        assert shown.picture().size == other.size and shown.picture().tobytes() != other.tobytes()


# ---------------------------------------------------------------------- a new task


class Side(Task):
    """On which side of the image is the first thing? A task of its own, in one place."""

    name = "side"
    terms = {"format": 1.0, "right": 2.0}
    crops = False

    def prepare(self, example: Example) -> Example:
        if not len(example.boxes_px):
            raise DataError(f"example {example.id} shows nothing", example.id)
        return example

    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        view, frame = sensing_view(vlm, example.image, self.config.sensing_side)
        return PromptSpec(view, frame, f"Is the {example.query} on the left or on the right?")

    def parse(self, text: str, finished: bool, prompt: PromptSpec, example: Example) -> Parsed:
        answer = ParsedAnswer((), error=None if text in ("left", "right") else "neither")
        return Parsed(answer, result=TaskResult(as_boxes([]), np.zeros(0), (text,)))

    def reward_terms(self, rollout: Rollout, result: TaskResult) -> dict[str, float]:
        x1, _, x2, _ = rollout.example.boxes_px[0]
        side = "left" if x1 + x2 < rollout.example.image.width else "right"
        return {"format": float(rollout.action.error is None), "right": float(result.texts == (side,))}


del TASKS["side"]  # only in the tests below


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "side", Side)


def test_the_reward_of_a_new_task_follows_its_weights(side: None, tokenizer) -> None:
    config = TrainConfig(task="side", reward_weights=("right=3",))
    for said, terms in (("left", (1.0, 1.0)), ("right", (1.0, 0.0)), ("nowhere", (0.0, 0.0))):
        (rollout,) = answers(Side, Scripted("qwen3_vl", tokenizer, lambda *_: said + END), question(), config)
        reward = task_of(config).reward(rollout, rollout.result)
        assert tuple(reward.terms.values()) == terms and reward.total == terms[0] + 3 * terms[1]
    wrong = r"^--reward_weights rigth is no term of --task side \(did you mean right\?\); there are: format, right\.$"
    with pytest.raises(ConfigError, match=wrong):
        task_of(TrainConfig(task="side", reward_weights=("rigth=3",)))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
def test_a_new_task_trains(side: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of train.py: the terms are logged, nothing else of the project knows the task."""
    for name, value in rank_environment(0, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(engine, "stop", lambda: None)
    monkeypatch.chdir(Path(train.__file__).parent)
    small = dict(steps=2, prompts=1, micro_prompts=1, group=2, limit=2, sensing_side=32, max_new_tokens=4)
    train.main(TrainConfig(task="side", eval_examples=0, output_dir=str(tmp_path), **small))
    rows = log.read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all({"reward/format", "reward/right", "grad_norm"} <= set(row) for row in rows)
