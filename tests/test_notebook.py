"""notebook.py: what ``activeo3.load(...).look(...)`` shows is what training measures, and nothing is run or left unescaped
that a checkpoint or model wrote."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import activeo3
from activeo3 import data_scenes, grpo, notebook
from activeo3.config import ConfigError, TrainConfig
from activeo3.data_io import DataError
from activeo3.model import ModelError
from activeo3.rollout import sample_rollouts
from activeo3.task_models import act
from activeo3.tasks import task_of

ROOT = Path(__file__).parent.parent
TINY, TASKS = ROOT / "data" / "tiny", ROOT / "data" / "tiny-tasks"


@pytest.fixture(scope="module")
def policy() -> notebook.Policy:
    return activeo3.load(TINY)


def copied(source: Path, folder: Path, **config) -> Path:
    """A folder that looks like a checkpoint of a run with these flags."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in ("activeo3.json", "digests.json"):
            (folder / path.name).symlink_to(path)
    (folder / "activeo3.json").write_text(
        json.dumps({"step": 1, "world": 1, "config": {"model": str(source)} | config})
    )
    return folder


def test_importing_the_package_imports_nothing_that_takes_long() -> None:
    said = (
        "import activeo3, sys; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)), activeo3.__all__)"
    )
    run = subprocess.run([sys.executable, "-c", said], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[] ['Answer', 'Look', 'Policy', 'load']\n"
    assert len(activeo3.__all__) <= 5 and all(getattr(activeo3, name).__doc__ for name in activeo3.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        activeo3.lode  # noqa: B018


def test_a_group_is_one_step_of_training_without_its_update(policy: notebook.Policy) -> None:
    """By hand: the same answers, crops, rewards and advantages as train.py makes of the same seed."""
    example = data_scenes.example("test", 39)
    look = policy.look(example.image, example.query, group=4, boxes=example.boxes_px, seed=3)
    task = task_of(TrainConfig())
    torch.manual_seed(3)
    _, (rollouts,) = sample_rollouts(policy.model, task, [example], 4, task.sampling(1.0))
    results = act(policy.model, [example] * 4, [one.regions for one in rollouts], task.config)
    totals = [task.reward(*pair).total for pair in zip(rollouts, results)]
    assert [answer.text for answer in look.answers] == [one.text for one in rollouts] and len(set(totals)) > 1
    assert [answer.reward.total for answer in look.answers] == totals
    advantages = grpo.advantages(torch.tensor([totals]))[0].tolist()
    assert [answer.reward.advantage for answer in look.answers] == advantages
    for answer, result in zip(look.answers, results):
        assert np.array_equal(answer.boxes, result.boxes_px) and len(answer.scores) == len(answer.boxes)
    assert look.best.reward.total == max(totals) and min(look.view.size) == 96
    region, cut = look.best.regions[0], look.best.crops()[0]
    assert cut.size == (round(region.x2 - region.x1), round(region.y2 - region.y1))
    again = policy.look(example.image, example.query, group=4, seed=3)
    assert [one.text for one in again.answers] == [one.text for one in look.answers] and again.best.reward is None


def test_one_look_is_greedy_and_takes_any_picture(policy: notebook.Policy, tmp_path: Path) -> None:
    image = data_scenes.example("test", 0).image
    image.save(tmp_path / "photo.png")
    texts = {
        policy.look(one, "red star").best.text
        for one in (image, np.asarray(image), tmp_path / "photo.png", str(tmp_path / "photo.png"))
    }
    assert len(texts) == 1 and repr(policy).startswith("activeo3 policy ")
    look = policy.look(image.convert("L"), "red star")
    assert look.example.image.mode == "RGB" and look.picture().width >= 320


def test_what_is_shown_is_escaped_and_whole(
    policy: notebook.Policy, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = data_scenes.example("test", 1).image
    look = policy.look(image, "<script>alert(1)</script>", group=2)
    answer = replace(
        look.answers[0], rollout=replace(look.answers[0].rollout, text="<img src=x onerror=alert(1)>\x1b[2J")
    )
    page = replace(look, answers=(answer, look.answers[1]))._repr_html_()
    assert "<script" not in page and "<img src=x" not in page and "\x1b" not in page and page.count("<tr>") == 3
    assert re.search(r'src="data:image/jpeg;base64,[\w+/=]+"', page) and "http" not in page
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    replace(look, answers=(answer,)).show()
    said = capsys.readouterr().out
    path = Path(said.rpartition("drawn in ")[2].strip())
    assert "\x1b" not in said and Image.open(path).size[0] >= 320
    path.unlink()


def test_a_checkpoint_is_asked_as_its_run_asked_and_its_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef score(a): return 1.0")
    flags = {"task": "sense", "sensing_side": 64, "regions": 1, "reward_weights": ["task=2", "score=3"], "seed": 5}
    code = {
        "reward": [f"{tmp_path / 'evil.py'}:score"],
        "task_model": f"{tmp_path / 'evil.py'}:score",
        "extension": str(tmp_path / "evil.py"),
    }
    policy = activeo3.load(copied(TINY, tmp_path / "checkpoint-1", **flags, **code))
    config = policy.task.config
    assert (config.sensing_side, config.regions, config.extension, config.task_model) == (64, 1, "", ("mllm",))
    assert policy.task.weights == {"format": 1.0, "no_overlap": 1.0, "area": 1.0, "coverage": 1.0, "task": 2.0}
    look = policy.look(data_scenes.example("test", 2).image, "red star")
    assert min(look.view.size) == 64 and not (tmp_path / "ran").exists()
    other = activeo3.load(tmp_path / "checkpoint-1", sensing_side=96, task_model=("oracle",))
    example = data_scenes.example("test", 39)
    seen = other.look(example.image, example.query, boxes=example.boxes_px, group=3)
    assert min(seen.view.size) == 96 and {float(score) for one in seen.answers for score in one.scores} == {1.0}


def test_a_policy_that_answers_in_words_is_asked_a_question(tmp_path: Path) -> None:
    flags = {"task": "zoom_qa", "max_new_tokens": 40, "max_turns": 2, "max_zooms": 1, "least_zoom": 0.005}
    policy = activeo3.load(copied(TASKS, tmp_path / "checkpoint-1", **flags))
    example = next(one for one in map(lambda k: data_scenes.example("test", k), range(9)) if one.vqa)
    look = policy.look(example.image, data_scenes.QUESTION, answer="52")
    assert look.best.reward.terms.keys() == {"answer", "evidence", "calls"}
    assert look.best.said is None or look.rows()[0]["found"] == look.best.said
    assert policy.look(example.image, data_scenes.QUESTION).best.reward is None


@pytest.mark.parametrize("task", ["direct", "grounding", "counting", "ocr"])
def test_tasks_of_one_answer(task: str) -> None:
    policy = activeo3.load(TASKS, task=task, sensing_side=128, max_new_tokens=12, task_max_new_tokens=12)
    image = data_scenes.example("test", 3).image
    known = policy.look(image, "red star", boxes=[[10, 10, 60, 60]], answer="K7")
    assert known.best.reward.terms["format"] in (0.0, 1.0) and policy.look(image, "red star").best.reward is None
    assert known.picture().width >= 320


def test_what_cannot_be_looked_at_is_said(policy: notebook.Policy, tmp_path: Path) -> None:
    image = data_scenes.example("test", 0).image
    for wrong, said in ((np.zeros((4, 4, 3)), "array .4, 4, 3. of float64"), (tmp_path / "no.png", "no.png")):
        with pytest.raises(DataError, match=said):
            policy.look(wrong, "red star")
    with pytest.raises(DataError, match="boxes must be a list of x1, y1, x2, y2"):
        policy.look(image, "red star", boxes=[[1, 2, 3]])
    with pytest.raises(ConfigError, match="group is 0"):
        policy.look(image, "red star", group=0)
    with pytest.raises(ConfigError, match="--task segment needs more than a picture and words"):
        activeo3.load(copied(TINY, tmp_path / "checkpoint-1", task="segment"), task_model=("oracle",))
    with pytest.raises((ConfigError, ModelError), match="no/such/folder"):
        activeo3.load("no/such/folder")
