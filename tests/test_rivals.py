"""rivals.py: names that tell checkpoints apart, and the start policy they share."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activeo3.config import ConfigError
from activeo3.rivals import Checkpoint, contest, labels


def left_by_a_run(folder: Path, **config: str) -> str:
    folder.mkdir(parents=True)
    (folder / "activeo3.json").write_text(json.dumps({"step": 1, "world": 1, "config": config}))
    return str(folder)


def test_checkpoints_of_runs_share_their_start_policy(tmp_path: Path) -> None:
    sense = left_by_a_run(tmp_path / "seed-0" / "checkpoint-3", model="data/tiny")
    direct = left_by_a_run(tmp_path / "rft" / "checkpoint-3", model="data/tiny", task="direct")
    assert contest([sense]) == ([Checkpoint(sense, "", False)], "data/tiny")
    assert contest([sense, direct]) == (
        [Checkpoint(sense, "seed-0", False), Checkpoint(direct, "rft", True)],
        "data/tiny",
    )
    assert contest([sense, "owner/model"], "owner/start")[1] == "owner/start"
    assert contest(["owner/model"]) == ([Checkpoint("owner/model", "", False)], "owner/model")


def test_another_start_policy_is_one_sentence(tmp_path: Path) -> None:
    one = left_by_a_run(tmp_path / "a" / "checkpoint-3", model="data/tiny")
    other = left_by_a_run(tmp_path / "b" / "checkpoint-3", model="owner/large")
    with pytest.raises(ConfigError, match="different start policies, data/tiny and owner/large; .*--start"):
        contest([one, other])
    with pytest.raises(ConfigError, match="twice"):
        contest([one, one])


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
