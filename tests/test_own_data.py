"""docs/own-data.md from beginning to end: ten photos in every form, and two steps of the tiny policy; once a table."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

import pytest
from launch import rank_environment
from own_photos import as_hub, as_jsonl, as_label_studio, as_ultralytics

sys.path.insert(0, str(Path(__file__).parent.parent))  # train.py is a script beside the package

import train  # noqa: E402
from activeo3 import engine, eval_setup  # noqa: E402
from activeo3.config import TrainConfig  # noqa: E402
from activeo3.curriculum import open_questions  # noqa: E402
from activeo3.log import read_rows  # noqa: E402
from activeo3.tasks import task_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
FORMS = {"jsonl": as_jsonl, "coco": as_label_studio, "yolo": as_ultralytics, "hub": as_hub}
SMALL: dict[str, Any] = dict(
    holdout=0.2, steps=2, prompts=2, micro_prompts=2, group=2, sensing_side=32, crop_side=32, max_new_tokens=6,
    task_max_new_tokens=6, save_every=2, samples_every=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """This process as a group of one, for all runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1).items():
            patch.setenv(name, value)
        patch.setattr(engine, "stop", lambda: None)
        yield


@pytest.mark.parametrize("form", FORMS)
def test_ten_photos_are_trained_on(form: str, alone: None, tmp_path: Path) -> None:
    if form != "hub":
        (tmp_path / "photos").mkdir()
    FORMS[form](tmp_path / "photos")
    root = str(tmp_path / "photos")
    name = f"hub:{root}" if form == "hub" else form
    config = TrainConfig(
        data=(name,), data_root=root, **SMALL, eval_examples=int(form == "jsonl"), output_dir=str(tmp_path / "run")
    )
    train.main(config)
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    if form == "jsonl":
        rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
        assert {(row["benchmark"], row["n"]) for row in rows} == {("jsonl", 1)}
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").is_file()
    asked = {example.image.tobytes() for example in open_questions(config, task_of(config))}
    held_out = {example.image.tobytes() for example in eval_setup.held_out(replace(config, eval_examples=99))}
    assert len(asked) == 8 and len(held_out) == 2 and not asked & held_out
