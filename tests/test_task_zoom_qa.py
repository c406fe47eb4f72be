"""task_zoom_qa.py under a scripted policy: every way an episode can go, what it is shown, and what that depends on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from episodes import ANSWER, BROKEN, CONFIG, IN, LARGE, OUTSIDE, SIZE, SMALL, TASK, WAYS, episode, question, script
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripted import END, USUAL, Scripted, end_of_run, finished, painted, rows_in, table

from activeo3 import eval_output, prompts
from activeo3.config import ConfigError, TrainConfig
from activeo3.data_io import DataError
from activeo3.eval_runner import BATCH, OneProcess
from activeo3.eval_zoom_qa import ZoomQABenchmark
from activeo3.prompts import boxes_answer, final_answer, zoom_call
from activeo3.rollout import sample_rollouts
from activeo3.types import Example, Rollout, Sampling
from activeo3.zoom_calls import STATUSES


def worth(rollout: Rollout, config: TrainConfig = CONFIG) -> dict[str, float]:
    (outcome,) = TASK(config).act(None, [rollout])
    score = TASK(config).reward(rollout, outcome)
    return dict(score.terms) | {"total": score.total}


# ---------------------------------------------------------------------- every way an episode can go


@pytest.fixture(params=USUAL)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", WAYS)
def test_every_way_an_episode_can_go(name: str, family: str, tokenizer) -> None:
    turns, statuses, answer = WAYS[name]
    rollout = episode(family, tokenizer, turns)
    told = rollout.episode
    assert told.statuses == tuple(statuses) and set(statuses) <= set(STATUSES)
    assert told.answer == answer
    assert rollout.action.error == (None if answer is not None else statuses[-1])
    assert rollout.finished == (statuses[-1] != "truncated")
    assert len(told.zooms) == sum(
        status not in ("answered", "answered_without_zoom", "missing_zoom", "truncated") for status in statuses
    )
    assert len(rollout.regions) == statuses.count("zoom_executed")
    # The ids are the record: what was sampled, turn by turn, with an observation between two turns.
    ids = [tuple(tokenizer(turn, add_special_tokens=False).input_ids) for turn in turns]
    assert rollout.branch.turns == tuple(ids) and rollout.token_ids == sum(ids, ())
    assert [seen.view is not None for seen in rollout.branch.shown] == [
        s == "zoom_executed" for s in statuses[: len(turns) - 1]
    ]


def test_a_policy_that_may_not_zoom_answers_at_once(family: str, tokenizer) -> None:
    config = replace(CONFIG, max_turns=1)
    assert episode(family, tokenizer, [IN], config).episode.statuses == ("zoom_limit",)
    assert episode(family, tokenizer, [ANSWER], config).episode.answer == "42"
    none = replace(CONFIG, max_zooms=0)
    assert episode(family, tokenizer, [IN, ANSWER], none).episode.statuses == ("zoom_limit", "answered_without_zoom")


# ---------------------------------------------------------------------- views nest, and come from the original


def test_a_look_inside_a_look_is_cut_from_the_original_picture(family: str, tokenizer) -> None:
    """The second look is in coordinates of the first crop, written as its family writes them."""
    policy = Scripted(family, tokenizer, None)
    scale = policy.text_scale((252, 252) if family == "qwen2_5_vl" else (256, 256))
    inner = [round(0.25 * scale[0]), 0, round(0.75 * scale[0]), scale[1]]
    rollout = episode(family, tokenizer, [IN, zoom_call(inner) + END, ANSWER])
    first, second = rollout.regions
    assert first == pytest.approx((672, 112, 1008, 336))
    assert second == pytest.approx((672 + inner[0] / scale[0] * 336, 112, 672 + inner[2] / scale[0] * 336, 336))
    one, two = (seen.view for seen in rollout.branch.shown)
    assert one.size == two.size
    direct = question().image.resize(two.size, Image.Resampling.LANCZOS, box=second)
    assert np.array_equal(np.asarray(two), np.asarray(direct))


def test_a_refused_look_leaves_the_view_as_it_was(family: str, tokenizer) -> None:
    """After a look that came to nothing, coordinates still refer to the view before it."""
    plain = episode(family, tokenizer, [IN, IN, ANSWER])
    between = episode(family, tokenizer, [IN, SMALL, IN, ANSWER])
    assert plain.regions == between.regions


# ---------------------------------------------------------------------- several looks at once

TWICE = replace(CONFIG, regions_per_turn=2)
RIGHT = IN.removesuffix(END)
LEFT = '<zoom_roi x0="0.25" y0="0.125" x1="0.5" y1="0.375"/>'
FAULTS = [part.removesuffix(END) for part in (SMALL, LARGE, OUTSIDE, BROKEN)]
TURNS: dict[str, tuple[list[str], list[str], list[str]]] = {
    # name: (the turns, their statuses, those of all zooms)
    "two": ([LEFT + RIGHT], ["zoom_executed"], ["zoom_executed"] * 2),
    "one": ([LEFT], ["zoom_executed"], ["zoom_executed"]),
    "more than may be": ([LEFT + RIGHT + LEFT], ["zoom_executed"], ["zoom_executed"] * 2),
    "one of two": ([FAULTS[0] + RIGHT], ["zoom_executed"], ["too_small", "zoom_executed"]),
    "the other one": ([LEFT + FAULTS[3]], ["zoom_executed"], ["zoom_executed", "malformed_zoom"]),
    "none": ([FAULTS[1] + FAULTS[2]], ["too_large"], ["too_large", "invalid_zoom"]),
    "until none is left": ([LEFT + RIGHT] * 2, ["zoom_executed"] * 2, ["zoom_executed"] * 3 + ["zoom_limit"]),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_may_ask_for_several_looks(name: str, family: str, tokenizer) -> None:
    turns, statuses, zooms = TURNS[name]
    rollout = episode(family, tokenizer, [*(turn + END for turn in turns), ANSWER], TWICE)
    looked = "answered" if "zoom_executed" in zooms else "answered_without_zoom"
    assert rollout.episode.statuses == (*statuses, looked)
    assert [zoom.status for zoom in rollout.episode.zooms] == zooms
    assert len(rollout.regions) == zooms.count("zoom_executed")
    assert worth(rollout)["calls"] == -len(zooms)


def test_several_crops_are_shown_in_one_turn_and_in_the_order_asked_for(family: str, tokenizer) -> None:
    rollout = episode(family, tokenizer, [LEFT + RIGHT + END, ANSWER], TWICE)
    (seen,) = rollout.branch.shown
    alone = [episode(family, tokenizer, [one + END, ANSWER]).branch.shown[0] for one in (LEFT, RIGHT)]
    assert len(seen.view) == 2
    for view, single in zip(seen.view, alone):
        assert np.array_equal(np.asarray(view), np.asarray(single.view))
    # An image token (the last ids, in a scripted model) for every visual feature of both.
    count = [int((one.ids == one.ids[-1]).sum()) for one in (seen, *alone)]
    assert count[0] == count[1] + count[2]


def test_after_several_crops_a_region_is_one_of_the_last(family: str, tokenizer) -> None:
    """And all regions of a turn are of the view before it, not of one another."""
    inner = '<zoom_roi x0="0.25" y0="0" x1="0.75" y1="1"/>'
    for turns, wanted in (
        ([LEFT + RIGHT, inner], [(336, 112, 672, 336), (672, 112, 1008, 336), (756, 112, 924, 336)]),
        ([RIGHT + LEFT, inner], [(672, 112, 1008, 336), (336, 112, 672, 336), (420, 112, 588, 336)]),
        ([LEFT + FAULTS[0], inner], [(336, 112, 672, 336), (420, 112, 588, 336)]),
        ([FAULTS[0] + FAULTS[1], RIGHT], [(672, 112, 1008, 336)]),
    ):
        rollout = episode(family, tokenizer, [*(turn + END for turn in turns), ANSWER], TWICE)
        assert np.allclose(rollout.regions, wanted)


def test_the_single_step_of_three_regions_is_an_episode(family: str, tokenizer) -> None:
    """ACTIVE-O3's policy: three regions at once, then the answer; the list is the one that its own role writes."""
    config = replace(CONFIG, regions_per_turn=3, max_turns=2, max_zooms=3)
    policy = Scripted(family, tokenizer, None)
    width, height = policy.text_scale((140, 84) if family == "qwen2_5_vl" else (160, 96))
    asked = boxes_answer(
        [[0, 0, width // 2, height], [width // 2, 0, width, height // 2], [width // 4, height // 2, width, height]]
    )
    rollout = episode(family, tokenizer, [asked + END, ANSWER], config)
    assert rollout.episode.statuses == ("zoom_executed", "answered") and len(rollout.regions) == 3
    assert len(rollout.branch.shown[0].view) == 3
    assert episode(family, tokenizer, [asked + END, IN], config).episode.statuses == ("zoom_executed", "zoom_limit")


def test_crops_that_do_not_fit_go_together(family: str, tokenizer) -> None:
    turns, config = [LEFT + RIGHT + END, FAULTS[0] + RIGHT + END, ANSWER], replace(TWICE, max_zooms=4)
    whole = episode(family, tokenizer, turns, config)
    fits = len(whole.branch.ids) - len(whole.branch.turns[-1]) + TASK(CONFIG).max_new_tokens
    assert episode(family, tokenizer, turns, replace(config, episode_tokens=fits)).branch.ids == whole.branch.ids
    cut = episode(family, tokenizer, turns, replace(config, episode_tokens=fits - 1))
    assert cut.episode.statuses == ("zoom_executed", "truncated") and len(cut.branch.shown) == 1
    assert [zoom.status for zoom in cut.episode.zooms] == ["zoom_executed", "zoom_executed", "too_small", "truncated"]
    none = episode(family, tokenizer, turns, replace(config, episode_tokens=len(whole.branch.turns[0])))
    assert none.episode.statuses == ("truncated",) and none.regions == () and worth(none)["calls"] == -2


def test_what_is_said_of_several_looks_follows_from_what_came_of_each(family: str, tokenizer) -> None:
    for name, words in {
        "two": "Closer.", "one of two": "Closer. Region 1: Too small.",
        "the other one": "Closer. Region 2: No region.", "none": "Too large.",
    }.items():  # fmt: skip
        turns, *_ = TURNS[name]
        assert (
            episode(family, tokenizer, [*(turn + END for turn in turns), ANSWER], TWICE).branch.shown[0].words == words
        )
    told = prompts.shown_together(["too_large", "zoom_executed", "zoom_executed", "zoom_limit"], "paper")
    assert told.startswith("These are the regions") and told.endswith(
        "Region 1: That region is nearly the whole view. Region 4: No zoom is left."
    )
    for wording in prompts.EPISODE_WORDINGS:
        for status in STATUSES[:6]:
            assert prompts.shown_together([status], wording) == prompts.shown(status, wording)


def test_a_policy_is_asked_for_as_many_regions_as_it_may_look_at(family: str, tokenizer) -> None:
    policy = Scripted(family, tokenizer, script([ANSWER] * 2))
    for wording in prompts.WORDINGS:
        sample_rollouts(
            policy, TASK(replace(CONFIG, wording=wording, regions_per_turn=2)), [question()], 1, Sampling(1.0, 64)
        )
    (_, long), (_, short) = policy.shown
    assert short == "What number is on the plate? Look at up to 2 regions at once."
    assert (
        long.startswith("What number is on the plate? ")
        and "a JSON list of up to 2 objects" in long
        and "up to 3 regions in all" in long
    )
    rollout = episode(family, tokenizer, [long + END, ANSWER], TWICE)  # copying the example is no zoom
    assert rollout.episode.statuses[0] == "malformed_zoom"
    for many in (0, 11):
        with pytest.raises(ConfigError, match=f"--regions_per_turn is {many}; it must be at least 1 and at most 10"):
            TrainConfig(regions_per_turn=many)


# ---------------------------------------------------------------------- what an episode carries along


def test_with_notes_a_new_view_takes_the_place_of_those_before_it(family: str, tokenizer) -> None:
    """What was refused shows nothing and replaces nothing; words, views and outcome are those of the other memory."""
    for config in (CONFIG, replace(TWICE, max_zooms=4)):
        turns = [RIGHT + LEFT + END, SMALL, IN, ANSWER]
        views = episode(family, tokenizer, turns, config)
        notes = episode(family, tokenizer, turns, replace(config, memory="notes"))
        assert [seen.replaces for seen in views.branch.shown] == [False, False, False]
        assert [seen.replaces for seen in notes.branch.shown] == [True, False, True]
        assert notes.branch.ids == views.branch.ids and notes.regions == views.regions and notes.text == views.text
    with pytest.raises(ConfigError, match="--memory is 'all'; it can be one of: views, notes"):
        TrainConfig(memory="all")


def test_a_policy_whose_views_are_replaced_is_told_so() -> None:
    for at_once in (1, 3):
        asked = [prompts.episode_prompt("What?", "paper", 3, at_once=at_once, notes=notes) for notes in (False, True)]
        assert asked[1].startswith(asked[0]) and "write down what you still need" in asked[1].removeprefix(asked[0])
    assert prompts.episode_prompt("What?", "short", 3, notes=True) == "What?"


# ---------------------------------------------------------------------- no truth in what is shown


@given(
    st.lists(
        st.sampled_from([IN, RIGHT + LEFT + END, SMALL, LARGE, OUTSIDE, BROKEN, zoom_call([0, 0, 100, 100]) + END]),
        max_size=4,
    ),
    st.sampled_from(["7", "forty-two", "<answer>"]),
    st.tuples(*[st.integers(0, 400)] * 4).map(lambda b: (b[0], b[1], b[0] + b[2] + 1, b[1] + b[3] + 1)),
    st.sampled_from([1, 2]),
)
def test_what_is_shown_follows_from_the_picture_and_the_policys_own_actions(
    tokenizer, turns, answer, box, at_once
) -> None:
    """Two examples with the same picture and question and another truth: to the last token the same episode."""
    config = replace(CONFIG, regions_per_turn=at_once)
    one, other = (
        episode("qwen3_vl", tokenizer, [*turns, ANSWER], config, example)
        for example in (question(), question(answer, box))
    )
    assert one.branch.ids == other.branch.ids and one.text == other.text
    for a, b in zip(one.branch.shown, other.branch.shown, strict=True):
        assert a.words == b.words and (a.view is None) == (b.view is None)
        assert a.view is None or np.array_equal(np.array(a.view), np.array(b.view))


def test_the_words_after_a_zoom_are_a_function_of_its_status_alone() -> None:
    for wording in prompts.EPISODE_WORDINGS:
        told = {status: prompts.shown(status, wording) for status in STATUSES[:6]}
        assert len(set(told.values())) == 6
        assert not any(char.isdigit() for words in told.values() for char in words)
        assert not any("<answer>" in words and "</answer>" in words.split("<answer>")[1][:1] for words in told.values())


# ---------------------------------------------------------------------- what it is worth


def test_an_episode_is_worth_what_answers_say(family: str, tokenizer) -> None:
    share = 336 * 224 / (SIZE[0] * SIZE[1])
    good = worth(episode(family, tokenizer, [IN, ANSWER]))
    assert good == pytest.approx(
        {"answer": 1, "evidence": 1 - share, "calls": -1, "total": 1 + 0.35 * (1 - share) - 0.05}
    )
    assert worth(episode(family, tokenizer, [ANSWER])) == {"answer": 1, "evidence": 0, "calls": 0, "total": 1}
    wrong = [IN, IN, IN, final_answer("41") + END]
    assert worth(episode(family, tokenizer, wrong))["total"] == pytest.approx(-0.15)
    open_gate = replace(CONFIG, evidence_gate=False)
    assert worth(episode(family, tokenizer, [IN, final_answer("41") + END]), open_gate)["evidence"] == pytest.approx(
        1 - share
    )
    theirs = replace(CONFIG, evidence="per_call")
    assert worth(episode(family, tokenizer, [ANSWER]), theirs)["total"] == pytest.approx(0.9475)
    assert worth(episode(family, tokenizer, [IN, ANSWER]), theirs)["total"] == pytest.approx(1.385)


def test_an_example_without_a_question_is_one_sentence(family: str, tokenizer) -> None:
    mute = Example("a", painted((200, 200), []), "red star", np.zeros((0, 4)))
    with pytest.raises(DataError, match="^example a asks nothing"):
        episode(family, tokenizer, [ANSWER], example=mute)


# ---------------------------------------------------------------------- the length of an episode


def test_an_observation_that_does_not_fit_goes_with_its_picture(family: str, tokenizer) -> None:
    """One token too few, and neither words nor picture are there; what was not shown was not looked at."""
    whole = episode(family, tokenizer, [IN, ANSWER])
    fits = len(whole.branch.turns[0]) + len(whole.branch.shown[0].ids) + TASK(CONFIG).max_new_tokens
    assert episode(family, tokenizer, [IN, ANSWER], replace(CONFIG, episode_tokens=fits)).branch.ids == whole.branch.ids
    cut = episode(family, tokenizer, [IN, ANSWER], replace(CONFIG, episode_tokens=fits - 1))
    assert cut.branch.turns == whole.branch.turns[:1] and cut.branch.shown == ()
    assert cut.episode.statuses == ("truncated",) and cut.regions == () and not cut.finished
    assert worth(cut) == {"answer": 0, "evidence": 0, "calls": -1, "total": pytest.approx(-0.05)}


def test_no_episode_is_longer_than_its_limit(tokenizer) -> None:
    turns = [IN, LARGE, IN, BROKEN, IN]
    for limit in range(100, 700, 20):
        config = replace(CONFIG, max_new_tokens=60, episode_tokens=limit)
        rollout = episode("qwen3_vl", tokenizer, turns, config)
        assert len(rollout.branch.ids) <= max(limit, len(rollout.branch.turns[0]))


def test_limits_that_cannot_be_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match="--episode_options least_zoom=0.7 must lie below most_zoom=0.65"):
        TrainConfig(least_zoom=0.7)
    with pytest.raises(ConfigError, match="--max_zooms is -1; it must be at least 0"):
        TrainConfig(max_zooms=-1)


# ---------------------------------------------------------------------- the table at the end


def test_an_exam_tells_the_answer_from_the_way_to_it(family: str, tokenizer) -> None:
    """One policy looks first, one guesses right and one guesses wrong, about three examples in two blocks."""

    def looks(model, view, words):
        return ANSWER if words == prompts.shown("zoom_executed", "short") else IN

    said = {"looks": looks, "guesses": lambda *_: ANSWER, "errs": lambda *_: final_answer("7") + END}
    policies = {title: Scripted(family, tokenizer, says) for title, says in said.items()}
    flags = {"mode": ("default",), "task": "zoom_qa"}
    policies = {"start": policies["looks"]} | {title: policies[title] for title in ("guesses", "errs")}
    examples = [question()] * (BATCH + 1)
    rows = table(ZoomQABenchmark, examples, policies, CONFIG, **flags)
    first, second, third = ({name: getattr(cell, "value", cell) for name, cell in row.metrics.items()} for row in rows)
    assert [row.setting.policy for row in rows] == list(policies)
    assert (first["answer"], first["zooms"], first["grounded_right"]) == (1, 1, 1)
    assert first["turns/zoom_executed"] == first["turns/answered"] == BATCH + 1
    assert (second["answer"], second["zooms"], second["ungrounded_right"]) == (1, 0, 1)
    assert second["turns/answered_without_zoom"] == sum(second[f"turns/{name}"] for name in STATUSES) == BATCH + 1
    assert first["reward"] > second["reward"] > third["reward"] == 0 and third["ungrounded_wrong"] == 1
    columns = eval_output.tables(finished(rows, ZoomQABenchmark, **flags))[1].columns
    turns = [f"turns/{name}" for name in ("zoom_executed", "answered", "answered_without_zoom")]
    assert columns == ["method", "policy", *turns]


def test_the_end_of_a_run_of_episodes_is_a_table_and_a_page(family: str, tokenizer, tmp_path: Path, capsys) -> None:
    start = Scripted(family, tokenizer, lambda *_: final_answer("7") + END)
    trained = Scripted(family, tokenizer, lambda *_: ANSWER)
    (tmp_path / "metrics.jsonl").touch()
    config = replace(CONFIG, task="zoom_qa", output_dir=str(tmp_path))
    end_of_run(trained, start, start, [question()] * 2, config, OneProcess())
    rows = [(row["method"], row["policy"], row["metrics"]["answer"]) for row in rows_in(tmp_path)]
    assert rows == [
        ("baseline", "start", 0),
        ("baseline", "trained", 1),
        ("default", "start", 0),
        ("default", "trained", 1),
    ]
    assert capsys.readouterr().out.count("| trained ") == 4  # answers, and turns
    assert "ungrounded_wrong" in (tmp_path / "report.html").read_text()  # a column, and what it means


# ---------------------------------------------------------------------- in words


def test_what_prompts_write_is_what_zooms_read(family: str, tokenizer) -> None:
    policy = Scripted(family, tokenizer, script([ANSWER] * 2))
    for wording in prompts.WORDINGS:
        sample_rollouts(policy, TASK(replace(CONFIG, wording=wording)), [question()], 1, Sampling(1.0, 64))
    (_, long), (_, short) = policy.shown
    assert short == "What number is on the plate?" and short in long
    asked = prompts.episode_prompt("What number is on the plate?", "paper", 3)
    assert (
        "What number is on the plate?" in asked
        and "up to 3 times" in asked
        and '{"bbox_2d": [x1, y1, x2, y2]}' in asked
    )
    # Copying the prompt's own example is no zoom.
    rollout = episode(family, tokenizer, [asked + END, ANSWER])
    assert rollout.episode.statuses[0] == "malformed_zoom"
    assert json.loads(zoom_call([1, 2, 3, 4])) == {"bbox_2d": [1, 2, 3, 4]}


def test_an_episode_in_the_other_systems_own_words(family: str, tokenizer) -> None:
    """--wording zoom_roi: its call is asked for, a broken one is answered in its terms, and the region is the one of
    IN."""
    config = replace(CONFIG, wording="zoom_roi")
    call = prompts.zooms_turn(" the plate", [[500, 125, 750, 375]], "zoom_roi")
    turns = [BROKEN, call + END, ANSWER]
    policy = Scripted(family, tokenizer, script(turns))
    _, ((rollout,),) = sample_rollouts(policy, TASK(config), [question()], 1, Sampling(1.0, 64))
    assert rollout.episode.statuses == ("malformed_zoom", "zoom_executed", "answered")
    assert rollout.episode.looked_at == episode(family, tokenizer, [IN, ANSWER]).episode.looked_at
    assert (
        "<zoom_roi x0=" in policy.shown[0][1]
        and "bbox_2d" not in policy.shown[0][1]
        and "That tag could not be read" in rollout.text
    )


def test_evaluate_prints_the_table_of_episodes(checkpoint: str, evaluate: Callable, tmp_path: Path) -> None:  # noqa: F811
    small = ("--max_new_tokens", "6", "--sensing_side", "32", "--max_turns", "2", "--limit", "3")
    printed, complaint = evaluate(
        "--checkpoint", checkpoint, "--task", "zoom_qa", "--output_dir", str(tmp_path), *small
    )
    assert complaint == "" and "scenes (test), 3 questions" in printed and "| baseline " in printed
    rows = rows_in(tmp_path)
    assert [(row["benchmark"], row["method"], row["n"]) for row in rows] == [
        ("scenes", "baseline", 3),
        ("scenes", "default", 3),
    ]
    for row in rows:
        turns = {name: row["metrics"][f"turns/{name}"] for name in STATUSES}
        assert turns == dict.fromkeys(STATUSES, 0) | {"truncated": 3}
        assert row["metrics"]["answer"] == 0.0  # six random tokens are no answer
    assert "| baseline " in (tmp_path / "results.md").read_text()
