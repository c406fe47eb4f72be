"""eval_setup.py: names that tell checkpoints apart, and the start policy they share."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeo3 import data
from activeo3.config import ConfigError
from activeo3.eval_config import EvalConfig
from activeo3.eval_setup import Checkpoint, benchmark_of, compared, labels, settled, task_of_data
from activeo3.eval_vqa import VQABenchmark


def left_by_a_run(folder: Path, **config: str) -> str:
    folder.mkdir(parents=True)
    (folder / "activeo3.json").write_text(json.dumps({"step": 1, "world": 1, "config": config}))
    return str(folder)


def test_checkpoints_of_runs_share_their_start_policy(tmp_path: Path) -> None:
    sense = left_by_a_run(tmp_path / "seed-0" / "checkpoint-3", model="data/tiny")
    direct = left_by_a_run(tmp_path / "rft" / "checkpoint-3", model="data/tiny", task="direct")
    assert compared([sense]) == ([Checkpoint(sense, "", "")], "data/tiny")
    assert compared([sense, direct]) == (
        [Checkpoint(sense, "seed-0", ""), Checkpoint(direct, "rft", "direct")],
        "data/tiny",
    )
    assert compared([sense, "owner/model"], "owner/start")[1] == "owner/start"
    assert compared(["owner/model"]) == ([Checkpoint("owner/model", "", "")], "owner/model")


def test_another_start_policy_is_one_sentence(tmp_path: Path) -> None:
    one = left_by_a_run(tmp_path / "a" / "checkpoint-3", model="data/tiny")
    other = left_by_a_run(tmp_path / "b" / "checkpoint-3", model="owner/large")
    with pytest.raises(ConfigError, match="different start policies, data/tiny and owner/large; .*--start"):
        compared([one, other])
    with pytest.raises(ConfigError, match="twice"):
        compared([one, one])


folders = st.lists(st.sampled_from(["a", "b", "runs", "checkpoint-1", "checkpoint-2"]), min_size=1, max_size=4).map(
    "/".join
)


@given(st.lists(folders, min_size=1, max_size=6, unique=True))
def test_labels_are_all_different_and_fit_for_files(sources: list[str]) -> None:
    found = labels(sources)
    assert len(set(found)) == len(found) == len(sources)
    assert all(name and "/" not in name for name in found)


def test_labels_are_short() -> None:
    assert labels(["runs/a/checkpoint-1", "runs/b/checkpoint-1/"]) == ["a", "b"]
    assert labels(["runs/a/checkpoint-1", "other/a/checkpoint-1"]) == ["runs-a-1", "other-a-1"]
    assert labels(["Qwen/Qwen3-VL-4B", "Qwen/Qwen3-VL-8B"]) == ["Qwen3-VL-4B", "Qwen3-VL-8B"]


# ---------------------------------------------------------------------- tasks


def meant(*tasks: str, **flags) -> str:
    """The task of an evaluation of checkpoints that were trained for these tasks ("": not known)."""
    checkpoints = [Checkpoint(f"run-{number}", "", task) for number, task in enumerate(tasks or ("",))]
    return settled(EvalConfig(**{"checkpoint": ("x",), "data_root": "d"} | flags), checkpoints).task


@pytest.mark.parametrize(
    "name, task",
    [("coco_det", "detection"), ("pixmo_count", "counting"), ("fox_en", "ocr"), ("refcoco", "grounding"), ("docvqa", "zoom_qa"),
     ("thinobject5k", "segment"), ("vstar", "sense"), ("mme", "sense"), ("scenes", "sense"), ("coco", "sense"), ("docvqa:train", "zoom_qa")],
)  # fmt: skip
def test_a_data_set_chooses_its_task(name: str, task: str) -> None:
    assert meant(benchmark=(name,)) == task


def test_every_data_set_has_a_benchmark_that_can_be_made() -> None:
    pytest.importorskip("nltk")
    for name in data.DATASETS:
        config = EvalConfig(checkpoint=("x",), data_root="d", benchmark=(name,), task_model=("oracle",))
        benchmark = benchmark_of(name, settled(config, [Checkpoint("x", "", "")]))
        task = task_of_data(name)
        assert (benchmark.name, benchmark.task.name) == (name, task if task not in ("", "vqa") else "sense")
        assert isinstance(benchmark, VQABenchmark) == (task == "vqa")


def test_a_mode_means_episodes() -> None:
    assert meant(mode=("default",)) == meant(benchmark=("vstar",), mode=("baseline",)) == "zoom_qa"
    assert meant(benchmark=("docvqa", "vstar"), mode=("default",)) == "zoom_qa"


def test_a_checkpoint_is_evaluated_in_its_own_task() -> None:
    assert meant("counting") == "counting" and meant("direct") == meant("sense", "direct") == "sense"
    assert (
        meant("counting", benchmark=("pixmo_count",)) == meant("", "counting", benchmark=("pixmo_count",)) == "counting"
    )
    assert meant("counting", benchmark=("mme",)) == "sense"  # general ability is asked of every checkpoint
    assert meant("counting", benchmark=("coco_det",), task="detection") == "detection"


@pytest.mark.parametrize(
    "tasks, flags, words",
    [
        (
            ("counting",),
            {"benchmark": ("coco_det",)},
            "run-0 was trained for counting, and this evaluation is of detection",
        ),
        (
            ("counting", "ocr"),
            {},
            "was trained for .*, and this evaluation is of .*: name one --task to evaluate all the same",
        ),
        (
            (),
            {"benchmark": ("coco_det", "scenes")},
            r"several tasks, coco_det \(detection\), scenes \(boxes\): evaluate them apart",
        ),
        (
            (),
            {"benchmark": ("coco_det",), "task": "counting"},
            "coco_det is made for another task: leave out --task counting",
        ),
        ((), {"benchmark": ("mme",), "task": "segment", "task_model": ("oracle",)}, "mme is made for another task"),
    ],
)
def test_a_benchmark_that_does_not_fit_is_one_sentence(tasks: tuple, flags: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        meant(*tasks, **flags)
    assert "\n" not in str(caught.value)
