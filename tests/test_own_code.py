"""Code of the user's in whole runs of train.py: their detector and reward decide what is learned, a cut run goes on with
the files that it began with, and what they do wrong ends it with one sentence."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from launch import finely_sharded, rank_environment
from small_runs import look_somewhere, rows_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
sys.path.insert(0, str(Path(__file__).parent.parent))  # train.py is a script beside the package

import train  # noqa: E402
from activeo3 import engine, eval_setup  # noqa: E402
from activeo3.checkpoint_files import run_state  # noqa: E402
from activeo3.config import ConfigError, TrainConfig  # noqa: E402
from activeo3.eval_config import EvalConfig  # noqa: E402
from activeo3.model import VisionLanguageModel  # noqa: E402
from activeo3.task_detection import Sense  # noqa: E402
from activeo3.tasks import TASKS, task_of  # noqa: E402

MINE = """
import numpy as np

def find(crops, queries):
    \"\"\"The upper left quarter of every crop, as sure as the crop is bright.\"\"\"
    return [([[0, 0, crop.width / 2, crop.height / 2]], [np.asarray(crop).mean() / 255]) for crop in crops]

def luck(attempt):
    return len(attempt.text) % 7 + float(attempt.scores.sum())

def picky(attempt):
    return float("nan") if len(attempt.text) % 2 else 1.0

def wrong(attempt):
    return attempt.boxes[99]
"""

TASK = """
from activeo3.task_detection import Sense
from activeo3.tasks import PromptSpec, Task, sensing_view
from activeo3.types import ParsedAnswer, Parsed, TaskResult

class Corner(Sense):
    terms = {"format": 1.0, "corner": 2.0}

    def reward_terms(self, rollout, result):
        return {"format": float(rollout.finished), "corner": len(rollout.text) % 5 / 5}

class Letters(Task):
    \"\"\"From nothing: an answer in words about the whole picture.\"\"\"
    crops, terms = False, {"letters": 1.0}

    def prompt(self, vlm, example):
        return PromptSpec(*sensing_view(vlm, example.image, self.config.sensing_side), f"Write about {example.query}.")

    def parse(self, text, finished, prompt, example):
        return Parsed(ParsedAnswer(()), result=TaskResult(example.boxes_px[:0], example.boxes_px[:0, 0], (text,)))

    def reward_terms(self, rollout, result):
        return {"letters": float(len(set(rollout.text)))}

class Nothing(Task):
    crops = False

something = 3
"""


@pytest.fixture
def run(
    make_vlm: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """``run(name, steps, **flags)``: rows of a run of a random policy with the code above, in a folder of that name."""
    for name, value in rank_environment(0, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(engine, "stop", lambda: None)
    monkeypatch.setattr(train, "sample_rollouts", look_somewhere)  # random policies propose no region
    make_vlm("qwen3_vl").save(tmp_path / "policy")
    (tmp_path / "mine.py").write_text(MINE)
    config = TrainConfig(
        model=str(tmp_path / "policy"), ds_config=finely_sharded(tmp_path), prompts=2, micro_prompts=1, group=4, lr=1e-3,
        max_new_tokens=12, sensing_side=32, crop_side=32, eval_examples=0, samples_every=0, save_every=1,
        task_model=f"{tmp_path}/mine.py:find", reward=(f"{tmp_path}/mine.py:luck",), reward_weights=("luck=0.5",),
    )  # fmt: skip

    def run(name: str, steps: int, **flags: Any) -> list[dict[str, Any]]:
        train.main(replace(config, steps=steps, output_dir=str(tmp_path / name), **flags))
        return rows_of(tmp_path / name)

    yield run


def test_a_run_with_code_of_the_users_goes_on_where_it_was_cut_and_only_with_the_same_code(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run("straight", 2)
    run("halves", 1)
    monkeypatch.chdir(tmp_path)  # the files by another spelling
    there = {"task_model": "mine.py:find", "reward": ("mine.py:luck",)}
    assert run("halves", 2, **there) == straight
    assert all(1 < row["reward/luck"] < 9 and row["reward_spread"] > 0 for row in straight)
    parts = {name: value for name, value in straight[0].items() if name.startswith("reward/")}
    assert straight[0]["reward"] == pytest.approx(sum(parts.values()) - 0.5 * parts["reward/luck"])
    assert run_state(tmp_path / "halves/checkpoint-2")["files"].keys() == {"--task_model find", "--reward luck"}
    (tmp_path / "mine.py").write_text(MINE.replace("% 7", "% 5"))
    with pytest.raises(
        ConfigError,
        match="belongs to another run: the file of --task_model find has changed; the file of --reward luck",
    ):
        run("halves", 3)


def test_a_reward_that_is_no_number_leaves_its_answer_out(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (row,) = run("picky", 1, reward=(f"{tmp_path}/mine.py:picky",), reward_weights=())
    assert 0 < row["rewards_left_out"] < 8 and row["reward/picky"] == 1.0
    assert "not finite, left out of the group: " in (said := capsys.readouterr().out) and "(picky nan)" in said


def test_what_a_reward_does_wrong_ends_the_run_with_its_example(run: Callable, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"mine.py:wrong, for example \S+, fails \(IndexError: index 99 .*, line 15\)\.$"
    ):
        run("wrong", 1, reward=(f"{tmp_path}/mine.py:wrong",), reward_weights=())
    assert not (tmp_path / "wrong/metrics.jsonl").exists()


def test_prompts_of_the_users_are_what_the_models_are_asked(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy and task model, in training and in the table at its end, which keeps them; and nothing else is asked."""
    asked, encode = set(), VisionLanguageModel.encode

    def listen(self: VisionLanguageModel, views: Any, texts: list[str], *more: Any) -> Any:
        asked.update(text.rpartition(" ")[0] for text in texts)
        return encode(self, views, texts, *more)

    monkeypatch.setattr(VisionLanguageModel, "encode", listen)
    words = tmp_path / "words.toml"
    words.write_text('sensing = "Look for: {object}"\ntask = "Show {object}"')
    mine = {"prompt_file": str(words), "task_model": "mllm", "task_max_new_tokens": 4}
    run("words", 1, **mine, eval_examples=2)
    assert {text.partition(" ")[0] for text in asked} == {"Look", "Show"}
    assert json.loads((tmp_path / "words/results.json").read_text())["prompts"]["task"] == "Show {object}"
    words.write_text('sensing = "Look out for: {object}"')
    with pytest.raises(ConfigError, match="belongs to another run: the file of --prompt_file has changed"):
        run("words", 2, **mine)


@pytest.mark.parametrize(
    "name, columns", [("Corner", {"reward", "format", "corner"}), ("Letters", {"reward", "letters"})]
)
def test_a_task_of_the_users_is_trained_and_has_a_table(
    name: str, columns: set[str], run: Callable, tmp_path: Path
) -> None:
    (tmp_path / "my_task.py").write_text(TASK)
    mine = {
        "task": f"{tmp_path}/my_task.py:{name}",
        "task_model": "mllm",
        "task_max_new_tokens": 4,
        "reward": (),
        "reward_weights": (),
    }
    (row,) = run("task", 1, **mine, eval_examples=2)
    assert {key.removeprefix("reward/") for key in row if key.startswith("reward/")} == columns - {"reward"}
    rows = json.loads((tmp_path / "task/results.json").read_text())["rows"]
    assert [one["setting"]["policy"] for one in rows] == ["start", "trained"] and columns <= rows[0]["metrics"].keys()
    weights = {"corner": 2.0}
    assert rows[1]["metrics"]["reward"] == pytest.approx(
        sum(weights.get(term, 1.0) * rows[1]["metrics"][term] for term in columns - {"reward"})
    )
    source = str(tmp_path / "task/checkpoint-1")
    config = EvalConfig(checkpoint=(source,), start=str(tmp_path / "policy"))
    checkpoints, _ = eval_setup.compared(config.checkpoint, config.start)
    with pytest.raises(ConfigError, match=f"was trained for a task of yours: name it, --task .*my_task.py:{name}"):
        eval_setup.settled(config, checkpoints)  # what a checkpoint says is not run
    named = replace(config, task=mine["task"])
    assert (
        eval_setup.settled(named, checkpoints) is named
        and eval_setup.benchmark_of("scenes", named).columns[0] == "reward"
    )


@pytest.mark.parametrize(
    "name, said",
    [("Nothing", r"my_task.py:Nothing has no terms, prompt, reward_terms: write it"), ("something", "must be a class of tasks.Task, and is 3"),
     ("Corners", r"defines no 'Corners' \(did you mean Corner\?\)")],
)  # fmt: skip
def test_what_is_no_task_is_said(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(TASK)
    flags = ["--task", f"{tmp_path}/my_task.py:{name}"]
    with pytest.raises(ConfigError, match=f"^--task .*{said}"):
        task_of(TrainConfig.from_args(flags))
    assert "Corner" not in TASKS and TASKS["sense"] is Sense
