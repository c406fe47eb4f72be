"""paths.py: a folder is the same folder however it is spelled, in both scripts and in what a run remembers."""

import json
import os
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from activeo3 import checkpoints, cli, data, paths
from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_config import EvalConfig
from activeo3.eval_setup import compared
from activeo3.paths import beside, expanded, same, unified

ROOT = Path(__file__).parent.parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, which is also where the program is started."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def left_by_a_run(folder: Path, model: str) -> str:
    model_folder(folder)
    (folder / "activeo3.json").write_text(json.dumps({"step": 1, "world": 1, "config": {"model": model}}))
    return str(folder)


# ---------------------------------------------------------------------- the home folder


def test_a_tilde_is_the_home_folder_in_every_flag_that_is_a_path(home: Path) -> None:
    train = TrainConfig.from_args(
        [
            "--model",
            "~/m",
            "--task_checkpoint",
            "~/t",
            "--data_root",
            "~/d",
            "--output_dir",
            "~/o",
            "--ds_config",
            "~/c.json",
        ]
    )
    found = (train.model, train.task_checkpoint, train.data_root, train.output_dir, train.ds_config)
    assert found == tuple(f"{home}/{name}" for name in ("m", "t", "d", "o", "c.json"))
    shown = EvalConfig.from_args(
        [
            "--checkpoint",
            "~/a",
            "b",
            "--start",
            "~/s",
            "--output_dir",
            "~/o",
            "--data_root",
            "~/d",
            "--task_checkpoint",
            "~/t",
        ]
    )
    assert shown.checkpoint == (f"{home}/a", "b") and shown.start == f"{home}/s" and shown.output_dir == f"{home}/o"
    assert EvalConfig(checkpoint=("x",), image="~/i.jpg", find="dot").image == f"{home}/i.jpg"
    assert replace(train, model="~/other").model == f"{home}/other"  # wherever a value comes from
    assert TrainConfig.from_args(["--model", "owner/model"]).model == "owner/model"


def test_a_field_that_says_it_is_a_path_has_the_type_of_one() -> None:
    """A new flag that holds a path must be a Place, or ``~`` would be left in it."""
    for config in (TrainConfig, EvalConfig):
        for name, kind in {field.name: field.type for field in config.__dataclass_fields__.values()}.items():
            named = name.endswith(("_root", "_dir", "_checkpoint", "_config")) or name in (
                "model",
                "checkpoint",
                "start",
                "image",
                "curriculum",
                "prompt_file",
            )
            assert named == (kind in (paths.Place, tuple[paths.Place, ...])), name


def test_the_list_of_data_sets_finds_the_home_folder(home: Path, capsys: pytest.CaptureFixture) -> None:
    (home / "data").mkdir()
    (home / "data" / "instances_val.json").write_text('{"images": [], "annotations": [], "categories": []}')
    data.main(["--data_root", "~/data"])
    assert f"{home}/data" in capsys.readouterr().out


# ---------------------------------------------------------------------- one folder, several spellings


def test_one_folder_has_many_spellings(home: Path) -> None:
    model_folder(home / "models" / "a")
    (home / "link").symlink_to("models/a")
    spellings = ["models/a", "models/a/", "./models/../models/a", str(home / "models" / "a"), "link", "~/models/a"]
    assert all(same(one, other) for one in spellings for other in spellings)
    assert unified([*spellings, "models"]) == ["models/a"] * len(spellings) + ["models"]
    assert not same("models/a", "models") and not same("owner/a", "owner/b")
    assert same("gone/a/", "gone/a") and not same("", "models/a")


def test_a_run_is_continued_from_a_start_policy_spelled_otherwise(home: Path) -> None:
    model_folder(home / "models" / "a")
    config = TrainConfig(model="models/a", output_dir="runs/one")
    stored = json.loads(json.dumps({**vars(config)}))
    for spelling in ("models/a/", "~/models/a", str(home / "models" / "a"), "models/../models/a"):
        assert checkpoints.differences(replace(config, model=spelling), stored) == []
    (said,) = checkpoints.differences(replace(config, model="models"), stored)
    assert said == "--model was 'models/a' and is now 'models'"
    (home / "elsewhere").mkdir()
    os.chdir(home / "elsewhere")  # the run said "models/a", which is beside it and not here
    moved = TrainConfig(model="../models/a", output_dir="../runs/one")
    assert checkpoints.differences(moved, stored) == []


def test_a_table_knows_a_checkpoint_and_a_start_policy_in_any_spelling(home: Path) -> None:
    start = str(model_folder(home / "models" / "a"))
    one = left_by_a_run(home / "runs" / "one" / "checkpoint-3", "models/a")
    two = left_by_a_run(home / "runs" / "two" / "checkpoint-3", start)
    rows, shared = compared(["runs/one/checkpoint-3", two])
    assert [row.label for row in rows] == ["one", "two"] and shared == "models/a"
    rows, shared = compared(
        [one, "models/a/"], start
    )  # the start policy as a row: loaded once, and told apart from none
    assert [row.source for row in rows] == [one, "models/a/"] and shared == "models/a/"
    with pytest.raises(ConfigError, match="names runs/one/checkpoint-3 twice, also as .*/runs/one/checkpoint-3;"):
        compared(["runs/one/checkpoint-3", one])


def test_a_start_policy_is_found_beside_the_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was started in a project that has moved since, and is evaluated from yet another folder."""
    project = home / "moved" / "project"
    left_by_a_run(project / "runs" / "one" / "checkpoint-3", "data/start")
    model_folder(project / "data" / "start")
    monkeypatch.chdir(home)
    checkpoint = "moved/project/runs/one/checkpoint-3"
    assert compared([checkpoint])[1] == str(project / "data" / "start")
    model_folder(home / "data" / "start")  # as the run names it comes first
    assert compared([checkpoint])[1] == "data/start"
    assert beside(Path(checkpoint), "owner/model") == "owner/model"  # a hub id that lies nowhere
    assert beside(Path(checkpoint), "/gone") == "/gone"


# ---------------------------------------------------------------------- the hub's cache


def cache(folder: Path, *revisions: str, main: str = "") -> Path:
    """A model in the hub's cache, with snapshots of these revisions, laid out as the hub's client does."""
    model = folder / "hub" / "models--owner--big-model"
    for revision in revisions:
        model_folder(model / "snapshots" / revision)
    if main:
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(main)
    return model


def test_a_folder_of_the_hubs_cache_is_its_snapshot(home: Path) -> None:
    model = cache(home, "0a1b", "2c3d", main="2c3d")
    assert expanded(str(model), "model") == expanded(f"{model}/", "model") == f"{model}/snapshots/2c3d"
    assert expanded(f"{model}/snapshots/0a1b", "model") == f"{model}/snapshots/0a1b"
    assert TrainConfig(model="hub/models--owner--big-model").model == "hub/models--owner--big-model/snapshots/2c3d"
    config = EvalConfig(
        checkpoint=("~/hub/models--owner--big-model", "data/tiny"), start="hub/models--owner--big-model"
    )
    rows, start = compared(config.checkpoint, config.start)
    assert rows[0].source == start == f"{model}/snapshots/2c3d" and [row.label for row in rows] == ["big-model", "tiny"]


def test_a_snapshot_keeps_the_results_of_others_out(home: Path) -> None:
    script = runpy.run_path(str(ROOT / "evaluate.py"), run_name="evaluate")
    config = EvalConfig(checkpoint=(str(cache(home, "0a1b")),))
    assert script["output_folder"](config) == Path("eval")


@pytest.mark.parametrize(
    "revisions, main, words",
    [
        (("0a", "1b"), "", "several snapshots, name one of 0a, 1b"),
        ((), "", "no whole snapshot"),
        (("0a",), "2c", "no whole snapshot"),
    ],
)
def test_a_cached_model_that_is_not_clear_is_one_sentence(revisions: tuple, main: str, words: str, home: Path) -> None:
    model = cache(home, *revisions, main=main)
    model.mkdir(parents=True, exist_ok=True)
    with pytest.raises(ConfigError, match=f"^--model {model} is a folder of the hub's cache with {words}"):
        TrainConfig(model=str(model))


def test_the_clients_own_cache_is_read(home: Path) -> None:
    """huggingface_hub finds the same snapshot in this layout."""
    from huggingface_hub import try_to_load_from_cache

    model = cache(home, "0" * 40, "1" * 40, main="1" * 40)
    found = try_to_load_from_cache("owner/big-model", "config.json", cache_dir=home / "hub")
    assert Path(found).parent == Path(expanded(str(model), "model"))


def test_a_resumable_run_is_found_in_the_home_folder(home: Path) -> None:
    from types import SimpleNamespace

    config = TrainConfig(output_dir="~/runs/a")
    folder = home / "runs" / "a" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "activeo3.json").write_text(json.dumps({"step": 3, "world": 1, "config": vars(config)}))
    (folder / "deepspeed").mkdir()
    for part in (
        "random-0.pt",
        "model.safetensors",
        *(f"deepspeed/zero_pp_rank_0_mp_rank_00_{kind}_states.pt" for kind in ("model", "optim")),
    ):
        (folder / part).touch()
    assert checkpoints.resumable(config, SimpleNamespace(rank=0, world=1))["path"] == folder


# ---------------------------------------------------------------------- typing errors


@pytest.mark.parametrize(
    "flag, text, near",
    [
        ("model", "data/tinyy", "data/tiny"),
        ("model", "dat/tiny", "data/tiny"),
        ("checkpoint", "~/data/tnyi", "data/tiny"),
        ("task_checkpoint", "data/tinyy", "data/tiny"),
        ("data_root", "dta", "data"),
        ("ds_config", "ds_confg.json", "ds_config.json"),
        ("image", "foto.jpg", "photo.jpg"),
        ("checkpoint", "runs/a/checkpoint-16", "runs/a/checkpoint-160"),
        ("model", "owner/Qwen-7B", None),  # another model of the hub, of which a smaller one is here
        ("model", "Qwen/Qwen3-VL-4B-Instruct", None),
        ("output_dir", "runs/b", None),  # is made
    ],
)
def test_what_a_misspelt_path_may_mean_is_said(home: Path, flag: str, text: str, near: str | None) -> None:
    for folder in ("data/tiny", "owner/Qwen-3B", "runs/a/checkpoint-160"):
        (home / folder).mkdir(parents=True)
    for name in ("ds_config.json", "photo.jpg"):
        (home / name).touch()
    evaluates = flag in ("checkpoint", "image")
    kind, given = (EvalConfig, ["--checkpoint", "data/tiny"]) if evaluates else (TrainConfig, [])
    argv = [*given, f"--{flag}", text]
    if near is None:
        assert getattr(kind.from_args(argv), flag) == text
        return
    with pytest.raises(ConfigError) as complaint:
        kind.from_args(argv)
    expected = str(home / near) if text.startswith("~") else near
    assert str(complaint.value) == f"--{flag} {text} does not exist: did you mean {expected}?"


@pytest.mark.parametrize("flag", ["model", "task_checkpoint", "data_root", "ds_config", "prompt_file", "output_dir"])
def test_what_can_be_no_path_is_one_sentence(home: Path, flag: str) -> None:
    (home / "round").symlink_to(home / "round")
    for text, reason in (("9" * 300, "file name too long"), (str(home / "round"), "symbolic links")):
        with pytest.raises(ConfigError, match=f"--{flag} .* is no path: .*{reason}"):
            TrainConfig.from_args([f"--{flag}", text])
    with pytest.raises(ConfigError, match=f"--{flag} is no path: .*null"):
        TrainConfig(**{flag: "a\0b"})


def test_a_misspelt_file_is_named_wherever_files_are_read(home: Path) -> None:
    (home / "order.json").write_text("{}")
    with pytest.raises(ConfigError, match="oder.json: there is no such file, did you mean order.json"):
        cli.read_object(Path("oder.json"), "--curriculum oder.json")
