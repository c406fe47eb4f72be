"""curriculum.py: ranks are what answers earn, stages are parts of the ranking, and one follows the other."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launch import rank_environment
from pages import commands
from scripted import rows_in

from activeo3 import curriculum, engine
from activeo3.config import ConfigError, TrainConfig
from activeo3.curriculum import rewards_of, stage, stage_of
from activeo3.data import open_dataset
from activeo3.data_io import DataError
from activeo3.data_set import Dataset
from activeo3.eval_baselines import greedy_rollouts
from activeo3.eval_config import EvalConfig
from activeo3.model import VisionLanguageModel
from activeo3.tasks import prepared, task_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # train.py and evaluate.py are scripts beside the package
COMMANDS = commands((ROOT / "docs" / "curriculum.md").read_text())

import evaluate  # noqa: E402
import train  # noqa: E402


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """This process as a group of one in the project's folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1).items():
            patch.setenv(name, value)
        patch.setattr(engine, "stop", lambda: None)
        patch.chdir(ROOT)
        yield


def argv_of(words: list[str]) -> list[str]:
    """The flags of a command."""
    return (
        words[next(place for place, word in enumerate(words) if word.startswith("--")) :]
        if words[1] != "-m"
        else words[3:]
    )


# ---------------------------------------------------------------------- parts of a ranking


@given(st.lists(st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=30), st.integers(1, 5))
def test_stages_are_the_ranking_in_parts(rewards: list[float | None], stages: int) -> None:
    parts = [stage(rewards, number, stages) for number in range(1, stages + 1)]
    order = [place for part in parts for place in part]
    assert sorted(order) == [place for place, reward in enumerate(rewards) if reward is not None]
    earned = [rewards[place] for place in order]
    assert earned == sorted(earned, reverse=True) and max(map(len, parts)) - min(map(len, parts)) <= 1


def torn(dataset: Dataset) -> Dataset:
    """The data set, of which question 1 cannot be read."""

    def read(item: Any, index: int) -> Any:
        if index == 1:
            raise DataError("torn.jpg: the picture cannot be read", "torn")
        return dataset.read(item, index)

    return replace(dataset, read=read)


@pytest.fixture(scope="module")
def ranked(here: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The ranking of five plates by the shipped policy, one of them unreadable, and the flags that made it."""
    path = tmp_path_factory.mktemp("ranked") / "order.json"
    flags = ["--preset", "ocr", "--limit", "5", "--curriculum", str(path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curriculum, "BLOCK", 2)
        patch.setattr(curriculum, "open_dataset", lambda *given, **options: torn(open_dataset(*given, **options)))
        curriculum.main(flags)
    return path, flags


def test_a_rank_is_what_a_greedy_answer_earns(ranked: tuple[Path, list[str]]) -> None:
    path, flags = ranked
    found, config = json.loads(path.read_text()), TrainConfig.from_args(flags)
    vlm, task = VisionLanguageModel.load(config.model, torch.float32), task_of(config)
    dataset, expected = prepared(open_dataset(config.data, "train", "", 5), task), []
    for place in range(5):  # each by itself
        (answer,) = greedy_rollouts(vlm, task, [dataset[place]])
        expected.append(None if place == 1 else task.reward(answer, task.act(vlm, [answer])[0]).total)
    assert found["rewards"] == expected and found["by"] == "reward" and len(set(expected)) > 2
    assert (found["data"], found["questions"], found["model"]) == (["plates"], 5, "data/tiny-tasks")
    assert {entry.name for entry in path.parent.iterdir()} == {"order.json", ".activeo3"}


def test_detection_is_ranked_by_the_number_reward_alone(here: None) -> None:
    config = TrainConfig.from_args(["--preset", "detection", "--max_new_tokens", "100"])
    vlm, task = VisionLanguageModel.load(config.model, torch.float32), task_of(config)
    dataset = prepared(open_dataset(config.data, "train", "", 2), task)
    examples = [dataset[place] for place in range(2)]
    answers = greedy_rollouts(vlm, task, examples)
    scores = [task.reward(answer, answer.result) for answer in answers]
    assert (
        rewards_of(examples, vlm, config)
        == [score.terms["number"] for score in scores]
        != [score.total for score in scores]
    )
    assert rewards_of([], vlm, config) == []


def test_a_stage_reads_its_own_questions(ranked: tuple[Path, list[str]]) -> None:
    path, flags = ranked
    config = replace(TrainConfig.from_args(flags), stages=2)
    dataset = prepared(open_dataset(config.data, "train", "", 5), task_of(config))
    rewards = json.loads(path.read_text())["rewards"]
    ids = []
    for number in (1, 2):
        part = stage_of(dataset, replace(config, stage=number))
        ids += [part[k].id for k in range(len(part))]
        assert len(part) == 2 and part.name == dataset.name and len(list(part)) == 2
    assert ids == [dataset[place].id for place in sorted((0, 2, 3, 4), key=lambda place: -rewards[place])]
    assert stage_of(dataset, replace(config, stages=1)) is dataset


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(curriculum=""), "--stage needs a ranking"),
        (dict(curriculum="nowhere.json"), "--curriculum nowhere.json: there is no such file"),
        (dict(task="counting", data=("close_ups",)), "ranks other questions, see its task, data"),
        (dict(limit=4), "ranks other questions, see its limit"),
        (dict(stages=9), "stage 1 of 9 has no question"),
    ],
)
def test_a_ranking_that_does_not_fit_is_one_sentence(changes: dict, words: str, ranked: tuple[Path, list[str]]) -> None:
    config = replace(TrainConfig.from_args(ranked[1]), **{"stages": 2} | changes)
    dataset = prepared(open_dataset(config.data, "train", "", 5), task_of(config))
    with pytest.raises(ConfigError, match=words) as caught:
        stage_of(dataset, config)
    assert "\n" not in str(caught.value)


def test_a_ranking_without_its_numbers_is_named(ranked: tuple[Path, list[str]], tmp_path: Path) -> None:
    content = json.loads(ranked[0].read_text())
    config = replace(TrainConfig.from_args(ranked[1]), stages=2, curriculum=str(tmp_path / "order.json"))
    dataset = prepared(open_dataset(config.data, "train", "", 5), task_of(config))
    for rewards in (None, [1.0], [1.0, 2.0, 3.0, 4.0, "5"]):
        (tmp_path / "order.json").write_text(json.dumps(content | {"rewards": rewards}))
        with pytest.raises(ConfigError, match="has no list 'rewards' with a number for each of 5 questions"):
            stage_of(dataset, config)


@pytest.mark.parametrize(
    "flags, words", [([], "--curriculum is missing"), (["--task_model", "oracle"], "leave out .* --task_model oracle")]
)
def test_what_cannot_be_ranked_is_named_before_the_work(flags: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        curriculum.main([*flags, *(["--curriculum", str(tmp_path / "order.json")] if flags else [])])


def test_stages_are_counted_from_one_to_their_number() -> None:
    for values in (dict(stage=0), dict(stage=2), dict(stage=4, stages=3)):
        with pytest.raises(ConfigError, match=r"--stage is \d; it must lie between 1 and --stages"):
            TrainConfig(**values)


# ---------------------------------------------------------------------- the page's commands


def test_the_commands_of_the_page_have_flags_that_exist() -> None:
    assert len(COMMANDS) == 11
    for words in COMMANDS:
        config = EvalConfig if "evaluate.py" in words else TrainConfig
        config.from_args(argv_of(words))
    stages = [
        TrainConfig.from_args(argv_of(words)) for words in COMMANDS if "coco_det" in words and "deepspeed" in words
    ][:3]
    assert [(config.stage, config.stages, config.group) for config in stages] == [(1, 3, 8), (2, 3, 12), (3, 3, 16)]
    for before, after in zip(stages, stages[1:]):
        assert after.model == f"{before.output_dir}/checkpoint-{before.steps}"
    assert stages[0].steps * 8 * stages[0].prompts == pytest.approx(110_000 / 3, abs=16)


def test_two_stages_one_after_the_other(here: None, make_vlm: Callable, tmp_path: Path) -> None:
    """The page's commands for a laptop, with a step each of few tokens: ranked, trained, and trained on."""
    make_vlm("qwen3_vl").save(tmp_path / "start")
    laptop = [words for words in COMMANDS if "detection" in words]
    small = ["--limit", "6", "--max_new_tokens", "6", "--sensing_side", "32", "--eval_examples", "0"]
    small += ["--prompts", "1", "--micro_prompts", "1"]
    given = [argv_of(words)[: argv_of(words).index("--limit")] + small for words in laptop[:3]]
    order = ["--curriculum", str(tmp_path / "order.json")]
    curriculum.main([*given[0], *order, "--model", str(tmp_path / "start")])
    content = json.loads((tmp_path / "order.json").read_text())
    content["rewards"] = [0.1, 0.9, 0.5, 0.3, 0.8, 0.2]  # a random policy earns nothing
    (tmp_path / "order.json").write_text(json.dumps(content))
    asked: list[list[str]] = []
    step_of = train.train_step

    def watched(step: int, examples: list[Any], *others: Any) -> Any:
        asked.append([example.id for example in examples])
        return step_of(step, examples, *others)

    model = str(tmp_path / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", watched)
        for number, flags in enumerate(given[1:], start=1):
            folder = tmp_path / f"stage-{number}"
            train.main(
                TrainConfig.from_args([*flags, *order, "--steps", "1", "--model", model, "--output_dir", str(folder)])
            )
            model = str(folder / "checkpoint-1")
    state = json.loads((tmp_path / "stage-2" / "checkpoint-1" / "activeo3.json").read_text())["config"]
    assert (state["model"], state["stage"], state["group"]) == (str(tmp_path / "stage-1" / "checkpoint-1"), 2, 12)
    dataset = prepared(open_dataset(("close_ups",), "train", "", 6), task_of(TrainConfig(task="detection")))
    ids = [dataset[place].id for place in range(6)]
    assert asked[0][0] in (ids[1], ids[4]) and asked[1][0] in (ids[2], ids[3])
    row = json.loads((tmp_path / "stage-2" / "metrics.jsonl").read_text())
    assert row["step"] == 1 and row["kl"] == 0.0  # the reference is the first stage's checkpoint


def test_a_supervised_start_is_a_row_beside_the_others(here: None, make_vlm: Callable, tmp_path: Path, capsys) -> None:
    """The page's last table: the base model, supervised, and reinforced from there."""
    for seed, name in enumerate(("base", "sft", "rl/checkpoint-1")):
        make_vlm("qwen3_vl", seed=seed).save(tmp_path / name)
    run = {"step": 1, "world": 1, "config": {"model": str(tmp_path / "sft"), "task": "detection"}}
    (tmp_path / "rl" / "checkpoint-1" / "activeo3.json").write_text(json.dumps(run))
    small = [
        "--preset",
        "detection",
        "--limit",
        "2",
        "--max_new_tokens",
        "6",
        "--sensing_side",
        "32",
        "--resamples",
        "5",
    ]
    names = {"base": ["sft", "rl/checkpoint-1"], "sft": ["rl/checkpoint-1"]}
    for start, checkpoints in names.items():
        paths = [str(tmp_path / name) for name in checkpoints]
        out = tmp_path / f"out-{start}"
        evaluate.main(
            EvalConfig.from_args(
                [*small, "--start", str(tmp_path / start), "--checkpoint", *paths, "--output_dir", str(out)]
            )
        )
        rows = rows_in(out)
        assert [row["policy"] for row in rows] == (["start", "sft", "rl"] if start == "base" else ["start", "trained"])
    assert "| sft" in capsys.readouterr().out
