"""eval_zoom_qa.py under scripted policies: what each mode shows, allows and takes, and every number by hand."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import pytest
from data_folders import docvqa_json, vstar_set
from episodes import ANSWER, CONFIG, IN, PLATE, SIZE, WAYS, episode, question
from PIL import Image
from scripted import END, Scripted, backwards, finished, painted, rows_in, table

from activeo3 import eval_baselines, eval_output, eval_page, eval_zoom_qa, prompts, task_zoom_qa
from activeo3.config import ConfigError, TrainConfig
from activeo3.data_io import DataError
from activeo3.data_set import Dataset
from activeo3.eval_config import MODES
from activeo3.eval_core import Row, Setting
from activeo3.eval_runner import BATCH
from activeo3.eval_zoom_qa import ORACLES, ZoomQABenchmark
from activeo3.geometry import as_boxes
from activeo3.intervals import Metric
from activeo3.types import VQA, Example
from activeo3.zoom_calls import STATUSES

CLOSER = prompts.shown("zoom_executed", "short")
AWAY = '<zoom_roi x0="0" y0="0.5" x1="0.25" y1="0.75"/>' + END
WRONG = prompts.final_answer("7") + END


def red(view: Image.Image) -> float:
    """The share of a view that is red."""
    pixels = np.asarray(view, dtype=int)
    return float(((pixels[..., 0] > 150) & (pixels[..., 2] < 90)).mean())


def after_a_look(zoom: str, answer: str = ANSWER) -> Callable[..., str]:
    """A policy that zooms once and then answers."""
    return lambda model, view, words: answer if words == CLOSER else zoom


def sees(model: Scripted, view: Image.Image | list[Image.Image], words: str) -> str:
    """A policy that reads the plate where it is large, and zooms at it where it is small; it goes by the pixels."""
    if words == prompts.shown("zoom_limit", "short"):
        return WRONG
    views = view if isinstance(view, list) else [view]
    if any(red(one) > 0.01 for one in views):
        return ANSWER
    return WRONG if words == CLOSER else IN


def rows_of(
    says: Callable,
    tokenizer,
    wanted: Sequence[str],
    examples: Sequence[Example] | None = None,
    config=CONFIG,
    load=None,
    **flags,
) -> dict[str, Row]:
    """The rows of a policy in the modes, by their names."""
    examples = [question()] if examples is None else examples
    policy = Scripted("qwen3_vl", tokenizer, says)
    flags = {"mode": tuple(wanted), "resamples": 50, "task": "zoom_qa"} | flags
    rows = table(ZoomQABenchmark, examples, {"start": policy}, config, load=load, **flags)
    return {eval_output.label(row, rows): row for row in rows}


def value(row: Row, name: str) -> Any:
    found = row.metrics[name]
    return found.value if isinstance(found, Metric) else found


def statuses(row: Row) -> dict[str, int]:
    return {name: row.metrics[f"turns/{name}"] for name in STATUSES}


def numbers(row: Row) -> tuple:
    return tuple(value(row, name) for name in ("answer", "zoomed", "zooms", "asked"))


# ---------------------------------------------------------------------- what a mode shows and allows


def test_only_looking_or_being_shown_helps_a_policy_that_goes_by_pixels(tokenizer) -> None:
    rows = rows_of(sees, tokenizer, MODES, black=True)
    assert {mode: value(row, "answer") for mode, row in rows.items()} == {
        "baseline": 0, "default": 1, "default-blind": 0, "strict_zoom": 1, "strict_zoom-blind": 0,
        "oracle_crop": 1, "oracle_crop+picture": 1,
    }  # fmt: skip
    assert numbers(rows["baseline"]) == (0, 0, 0, 1) and numbers(rows["default"]) == (1, 1, 1, 1)
    assert value(rows["default-blind"], "zoomed") == 1  # it looks, and nothing is there
    assert set(rows_of(sees, tokenizer, ["default"])) == {"default"}


def test_what_is_shown_and_asked_in_each_mode(tokenizer) -> None:
    seen: dict[str, list] = {}
    for mode in MODES:
        model = Scripted("qwen3_vl", tokenizer, lambda *_: ANSWER)
        config = replace(CONFIG, wording="paper")
        table(ZoomQABenchmark, [question()], {"start": model}, config, mode=(mode,), task="zoom_qa")
        seen |= zip(ORACLES if mode == "oracle_crop" else [mode], model.shown, strict=True)
    (whole, at_once), (same, may), (_, must) = (seen[name] for name in ("baseline", "default", "strict_zoom"))
    (crop, alone_), ((first, second), beside) = seen["oracle_crop"], seen["oracle_crop+picture"]
    assert whole.tobytes() == same.tobytes() == first.tobytes() and crop.tobytes() == second.tobytes()
    assert red(whole) < 0.01 < 0.05 < red(crop)
    assert "bbox_2d" not in at_once + alone_ + beside and "bbox_2d" in may and "bbox_2d" in must
    assert "You may look closer" in may and "up to 3 times" in may and may in must
    assert must.removeprefix(may) == " Look closer at least once before you answer; an earlier answer does not count."
    assert (
        "at least 2 times" in prompts.episode_prompt("?", "paper", 3, least=2)
        and prompts.episode_prompt("?", "short", 3, least=2) == "?"
    )
    assert (
        at_once == alone_
        and beside == f"The first picture is the whole scene, the second shows a part of it enlarged.\n{at_once}"
    )


def test_a_hint_is_shown_in_every_mode(tokenizer) -> None:
    """MMBench's questions may come with what should be known beforehand; without it some cannot be answered."""
    plain = question()
    hinted = replace(plain, vqa=replace(plain.vqa, hint="Plates are red."))
    for mode in MODES:
        model = Scripted("qwen3_vl", tokenizer, lambda *_: ANSWER)
        config = replace(CONFIG, wording="paper")
        table(ZoomQABenchmark, [plain, hinted], {"start": model}, config, mode=(mode,), task="zoom_qa")
        for (_, without), (_, words) in zip(model.shown[::2], model.shown[1::2], strict=True):
            assert words == without.replace("What number", "Hint: Plates are red.\nWhat number", 1), mode


def test_the_oracles_region_holds_all_evidence_and_its_surroundings() -> None:
    vqa = VQA("?", ("7",), evidence_px=as_boxes([[100, 100, 140, 120], [400, 300, 460, 380]]))
    example = Example("a", painted(SIZE, []), "?", vqa=vqa)
    region = eval_zoom_qa.evidence_region(example)
    assert task_zoom_qa.covered(as_boxes([region]), task_zoom_qa.asked_of(example).evidence_px) == 1.0
    assert region == pytest.approx((280 - 1.3 * 180, 240 - 1.3 * 140, 280 + 1.3 * 180, 240 + 1.3 * 140))
    assert eval_zoom_qa.evidence_region(question()) == eval_baselines.oracle_regions(question(), 1)[0]


def test_a_zoom_that_is_not_there_is_refused_once_and_then_the_policy_may_answer(tokenizer) -> None:
    told = prompts.shown("zoom_limit", "short")
    rows = rows_of(lambda model, view, words: ANSWER if words == told else IN, tokenizer, ["baseline", "oracle_crop"])
    for row in rows.values():
        assert row.records[0]["statuses"] == ["zoom_limit", "answered_without_zoom"] and numbers(row) == (
            1,
            0,
            0,
            1,
        )
    stubborn = rows_of(lambda *_: IN, tokenizer, ["baseline"])["baseline"]
    assert statuses(stubborn)["zoom_limit"] == 2 and numbers(stubborn) == (0, 0, 0, 2)


def test_strict_fails_closed(tokenizer) -> None:
    """The right answer at once is right, and counts for nothing; so does one after a zoom that came to nothing."""
    small = '<zoom_roi x0="0" y0="0" x1="0.1" y1="0.1"/>' + END
    guesses = rows_of(lambda *_: ANSWER, tokenizer, MODES)
    assert [value(guesses[mode], "answer") for mode in MODES] == [1, 1, 0, 1]
    strict = guesses["strict_zoom"]
    assert statuses(strict)["answered_early"] == 1 and strict.records[0]["answer"] is None
    refused = lambda model, view, words: ANSWER if words == prompts.shown("too_small", "short") else small  # noqa: E731
    assert value(rows_of(refused, tokenizer, ["default", "strict_zoom"])["strict_zoom"], "answer") == 0
    assert value(rows_of(after_a_look(AWAY), tokenizer, ["strict_zoom"])["strict_zoom"], "answer") == 1
    none_left = replace(CONFIG, max_zooms=0)
    with pytest.raises(
        ConfigError, match="^--mode strict_zoom needs a zoom and a turn to answer in, and --max_zooms 0 "
    ):
        rows_of(refused, tokenizer, ["strict_zoom"], config=none_left)
    assert len(rows_of(lambda *_: ANSWER, tokenizer, ["baseline", "default", "oracle_crop"], config=none_left)) == 4


@pytest.mark.parametrize("least", [1, 2, 3])
def test_an_answer_before_its_time_ends_the_episode_without_one(tokenizer, least: int) -> None:
    config = replace(CONFIG, min_zooms=least)
    for looks in range(4):
        told = episode("qwen3_vl", tokenizer, [*[IN] * looks, ANSWER], config)
        enough = looks >= least
        assert told.episode.answer == ("42" if enough else None)
        assert told.episode.statuses[-1] == ("answered" if enough else "answered_early")
        assert told.action.error == (None if enough else "answered_early") and len(told.regions) == looks


def test_without_a_least_number_every_way_is_as_it_was(tokenizer) -> None:
    """``--min_zooms 1`` takes the answers away from the ways without an executed zoom, and from no other."""
    for turns, statuses, answer in WAYS.values():
        plain = episode("qwen3_vl", tokenizer, turns).episode
        strict = episode("qwen3_vl", tokenizer, turns, replace(CONFIG, min_zooms=1)).episode
        assert strict.answer == (plain.answer if "zoom_executed" in statuses else None)
        renamed = ["answered_early" if status == "answered_without_zoom" else status for status in statuses]
        assert strict.statuses == tuple(renamed) and strict.zooms == plain.zooms and set(renamed) <= set(STATUSES)


def test_a_budget_that_cannot_be_is_one_sentence() -> None:
    assert TrainConfig(min_zooms=2, max_zooms=2).min_zooms == 2
    for wrong in ({"min_zooms": 4}, {"min_zooms": -1}, {"min_zooms": 2, "max_turns": 2}):
        with pytest.raises(
            ConfigError, match="--min_zooms is -?[0-9]; it must lie between 0 and --max_zooms 3, and leave a turn"
        ):
            TrainConfig(**wrong)


# ---------------------------------------------------------------------- numbers


def test_grounded_and_right_are_crossed_and_counted_by_hand(tokenizer) -> None:
    half = (672.0 - 60, 200.0, 672.0 + 60, 244.0)  # half of it is in the zoom
    less = (672.0 - 60, 200.0, 672.0 + 58, 244.0)
    ways = {"grounded": (PLATE, half), "ungrounded": (less, (0.0, 0.0, 40.0, 40.0))}
    for says, right in ((after_a_look(IN), "right"), (after_a_look(IN, WRONG), "wrong")):
        for name, boxes in ways.items():
            (row,) = rows_of(says, tokenizer, ["default"], [question(box=box) for box in boxes]).values()
            assert {column: value(row, column) for column in eval_zoom_qa.QUADRANTS} == {
                column: float(column == f"{name}_{right}") for column in eval_zoom_qa.QUADRANTS
            }  # fmt: skip
    rows = rows_of(after_a_look(AWAY), tokenizer, MODES)
    assert value(rows["default"], "ungrounded_right") == 1 and value(rows["baseline"], "ungrounded_wrong") == 1
    assert np.isnan(
        [value(rows["oracle_crop"], column) for column in eval_zoom_qa.QUADRANTS]
    ).all()  # nobody asked it where to look


def test_half_right_is_right_and_looks_count_together(tokenizer) -> None:
    near = question()
    near = replace(near, vqa=replace(near.vqa, kind="anls", answers=("4200",)))
    (row,) = rows_of(after_a_look(IN), tokenizer, ["default"], [near]).values()
    assert value(row, "answer") == 0.5 and value(row, "grounded_right") == 1
    (row,) = rows_of(after_a_look(IN), tokenizer, ["default"], [question(box=(640.0, 200.0, 704.0, 244.0))]).values()
    assert row.records[0]["evidence_seen"] == pytest.approx(0.5)
    assert (
        task_zoom_qa.covered(as_boxes([(336, 112, 672, 336), (672, 112, 1008, 336)]), as_boxes([(640, 200, 704, 244)]))
        == 1.0
    )


def test_questions_without_evidence_are_neither_grounded_nor_told(tokenizer) -> None:
    vqa = VQA("Which?", ("B",), options=("no", "42"), category="single")
    bare = [Example(f"b{k}", painted(SIZE, []), "?", image_id=k + 2, vqa=vqa) for k in range(2)]
    rows = rows_of(after_a_look(IN), tokenizer, MODES, [*bare, question()])
    assert [row.n for row in rows.values()] == [3, 3, 3, 1, 1]
    assert (
        value(rows["default"], "answer") == 1 and value(rows["default"], "grounded_right") == 1
    )  # of the one that can be
    for name in ("answer/none", "answer/single", "asked/none", "asked/single"):
        assert rows["default"].metrics[name] == 1
    assert [one["evidence_seen"] for one in rows["default"].records] == [None, None, 1.0]
    assert set(rows_of(lambda *_: ANSWER, tokenizer, MODES, bare)) == {"baseline", "default", "strict_zoom"}


def test_every_number_follows_from_the_episodes(tokenizer) -> None:
    said = iter([IN, IN, ANSWER, WRONG, IN, AWAY, IN, WRONG, "I do not know." + END])
    examples = [replace(question(), id=str(k), image_id=k) for k in range(4)]
    (row,) = rows_of(lambda *_: next(said), tokenizer, ["default"], examples).values()
    told = row.records
    assert [one["id"] for one in told] == ["0", "1", "2", "3"] and [one["answer"] for one in told] == [
        "42",
        "7",
        "7",
        None,
    ]
    assert [one["statuses"] for one in told][2] == ["zoom_executed"] * 3 + ["answered"]
    assert numbers(row) == (0.25, 0.5, 1.25, 1.25)
    assert statuses(row) == dict.fromkeys(STATUSES, 0) | {
        "zoom_executed": 5, "answered": 2, "answered_without_zoom": 1, "missing_zoom": 1
    }  # fmt: skip
    assert value(row, "tokens") == np.mean([one["tokens"] for one in told]) and told[3]["tokens"] == len(
        tokenizer("I do not know." + END).input_ids
    )
    assert value(row, "reward") == pytest.approx(np.mean([one["reward"] for one in told]))
    assert told[0]["zooms"][0] == {"status": "zoom_executed", "window_px": pytest.approx([672, 112, 1008, 336])}
    _, low, high = row.metrics["answer"]
    assert low < 0.25 < high and sum(value(row, name) for name in eval_zoom_qa.QUADRANTS) == 1
    first, second = eval_output.tables(finished([row], ZoomQABenchmark, task="zoom_qa"))
    assert first.cells[0]["answer"] == (0.25, low, high) and first.columns[:2] == ["method", "answer"]
    assert second.columns == ["method", *(f"turns/{name}" for name in STATUSES if statuses(row)[name])]
    json.dumps(row.records)


def test_ranks_that_share_the_questions_find_the_same(tokenizer) -> None:
    examples = [replace(question(), id=str(k), image_id=k) for k in range(20)]
    policy = Scripted("qwen3_vl", tokenizer, sees)

    assert len(examples) > BATCH
    one, other = (
        table(ZoomQABenchmark, examples, {"start": policy}, CONFIG, None, runner, task="zoom_qa")
        for runner in (None, backwards())
    )
    assert same(one) == same(other)


def same(rows: Any) -> str:
    """The rows without seconds; NaN is NaN."""
    return re.sub(r"'seconds': [\d.e-]+", "", repr(rows))


def test_episodes_are_the_same_with_pictures_that_are_read_when_their_turn_comes(tokenizer) -> None:
    full = [question() for _ in range(3)]
    disk = Dataset("disk", "test", full, lambda item, _: item)
    examples = list(disk.without_images())
    assert {example.image.size for example in examples} == {(1, 1)}
    held, read = (
        rows_of(sees, tokenizer, MODES, which, load=load, black=True)
        for which, load in ((full, None), (examples, disk.with_image))
    )
    assert same(held) == same(read)


def test_budgets_are_how_often_an_episode_may_zoom(tokenizer) -> None:
    policy = Scripted("qwen3_vl", tokenizer, lambda *_: IN)
    flags = {"mode": ("baseline", "default"), "task": "zoom_qa", "budgets": (1, 5)}
    rows = table(ZoomQABenchmark, [question()], {"start": policy}, CONFIG, **flags)
    assert [(row.setting.method, row.setting.regions) for row in rows] == [
        ("baseline", 0),
        *(("default", k) for k in (1, 3, 5)),
    ]
    assert [value(row, "zooms") for row in rows] == [0, 1, 3, 5]


def test_an_example_that_asks_nothing_is_named_before_any_episode(tokenizer) -> None:
    mute = Example("m", painted((200, 200), []), "red star", np.zeros((0, 4)))
    asked: list[str] = []
    with pytest.raises(DataError, match="^example m asks nothing"):
        rows_of(lambda *_: asked.append("") or ANSWER, tokenizer, ["default"], [question(), mute])
    assert asked == []


# ---------------------------------------------------------------------- evaluate.py

SMALL = ("--max_new_tokens", "6", "--sensing_side", "32", "--crop_side", "32", "--limit", "3", "--resamples", "20")
ALL = ("--mode", *MODES)


@pytest.mark.parametrize("task", [(), ("--task", "zoom_qa")])
def test_docvqa_in_the_public_layout_is_reported(
    checkpoint: str, evaluate: Callable, tmp_path: Path, task: tuple[str, ...]
) -> None:  # noqa: F811
    root = docvqa_json(tmp_path / "data")
    out = tmp_path / "out"
    printed, complaint = evaluate(
        "--checkpoint",
        checkpoint,
        *task,
        "--benchmark",
        "docvqa",
        "--data_root",
        root,
        *ALL,
        *SMALL,
        "--output_dir",
        str(out),
    )
    assert complaint == ""
    rows = rows_in(out)
    assert [(row["policy"], row["method"], row["n"]) for row in rows] == [
        ("start", "baseline", 3), ("start", "default", 3), ("start", "strict_zoom", 3),
        ("start", "oracle_crop", 2), ("start", "oracle_crop+picture", 2),
    ]  # fmt: skip
    assert "docvqa (val), 3 questions" in printed
    for row in rows:
        episodes = json.loads((out / f"answers-docvqa-{row['method']}.json").read_text())
        assert {one["id"] for one in episodes} <= {"docvqa:1", "docvqa:2", "docvqa:3"} and len(episodes) == row["n"]
        assert f"| {row['method']} " in printed and f"| {row['method']} " in (out / "results.md").read_text()


def test_start_and_every_checkpoint_in_every_mode_about_several_benchmarks(
    checkpoint: str,
    make_vlm: Callable,
    evaluate: Callable,
    tmp_path: Path,  # noqa: F811
) -> None:
    for number in (1, 2):
        make_vlm("qwen3_vl", seed=number).save(tmp_path / f"run-{number}")
    vstar_set(tmp_path)
    _, complaint = evaluate(
        "--checkpoint", *(str(tmp_path / f"run-{k}") for k in (1, 2)), "--start", checkpoint, "--benchmark", "scenes", "vstar",
        "--data_root", str(tmp_path), "--mode", "baseline", "--output_dir", str(tmp_path / "out"), *SMALL,
    )  # fmt: skip
    assert complaint == ""
    rows = rows_in(tmp_path / "out")
    assert [(row["benchmark"], row["policy"]) for row in rows] == [
        (name, policy) for name in ("scenes", "vstar") for policy in ("start", "run-1", "run-2")
    ]  # fmt: skip


def test_what_cannot_be_asked_is_one_sentence(checkpoint: str, evaluate: Callable, tmp_path: Path) -> None:  # noqa: F811
    def complaint(*argv: str) -> str:
        return evaluate("--checkpoint", checkpoint, *argv)[1]

    root = docvqa_json(tmp_path)
    assert (
        complaint("--mode", "best")
        == "activeo3: --mode best is not known; there are: baseline, default, strict_zoom, oracle_crop."
    )
    assert complaint("--mode", "baseline", "--task", "segment") == (
        "activeo3: --mode is how questions are asked in episodes: leave out --task segment, or --mode."
    )
    assert "--mode strict_zoom needs a zoom" in complaint("--mode", "strict_zoom", "--max_turns", "1")
    assert complaint("--benchmark", "docvqa", "scenes", "--data_root", root) == (
        "activeo3: --benchmark names data sets of several tasks, docvqa (zoom_qa), scenes (boxes): evaluate them apart."
    )


def test_budgets_are_a_curve_also_where_tokens_have_an_interval() -> None:
    rows = [
        Row("zoom_qa", Setting("default", "trained", regions=k), 9, {"answer": Metric(0.1 * k, 0.0, 1.0), "tokens": cost}, [])
        for k, cost in ((3, Metric(40.0, 35.0, 45.0)), (1, Metric(20.0, 15.0, 25.0)), (10, 60.0))
    ]  # fmt: skip
    drawn = eval_page.curve_of(finished(rows, ZoomQABenchmark, regions=3, budgets=(1, 10)))
    assert drawn is not None and drawn.width > 300
