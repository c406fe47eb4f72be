"""The held-out table during a run, the best checkpoint, and the trackers: a run with them is the run without."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator

import pytest
from launch import finely_sharded, rank_environment
from small_runs import prepare, rows_of

import train
from activeo3 import checkpoint_files, checkpoints, engine, eval_training, trackers
from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_core import Row, Setting
from activeo3.eval_training import BEST, best_step, point
from activeo3.log import EVALUATIONS, read_rows
from activeo3.model import VisionLanguageModel

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's


class Killed(BaseException):
    """Stands for a kill in this process: nothing catches it."""


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process as a group of one, in the small world."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**rank_environment(0, 1), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
            patch.setenv(name, value)
        prepare(patch)
        engine.start(tmp_path_factory.mktemp("alone"))
        yield


@pytest.fixture(scope="module")
def config(make_vlm: Callable[..., VisionLanguageModel], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("start")
    make_vlm("qwen3_vl", 0).save(folder)
    return TrainConfig(
        model=str(folder), ds_config=finely_sharded(tmp_path_factory.mktemp("config")), steps=4, save_every=1,
        prompts=1, micro_prompts=1, group=2, max_new_tokens=6, task_max_new_tokens=4, sensing_side=32, crop_side=32,
        lr=1e-3, warmup=2, eval_examples=2, samples_every=2, keep=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is evaluated at its end only."""
    folder = tmp_path_factory.mktemp("plain")
    train.main(replace(config, output_dir=str(folder)))
    return folder


@pytest.fixture(scope="module")
def installed() -> tuple[str, ...]:
    return tuple(name for name in trackers.LIBRARIES if trackers.find_spec(trackers.LIBRARIES[name]))


@pytest.fixture(scope="module")
def killed(
    config: TrainConfig, installed: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a run that is evaluated at step 2 and killed twice: in that evaluation, and in step 4, and the
    evaluations that it had made when it was killed the second time."""
    folder = tmp_path_factory.mktemp("killed")
    config = replace(config, output_dir=str(folder), eval_every=2, report_to=installed, best_metric="region_recall")
    step_of, compare = train.train_step, eval_training.eval_setup.compare_start_and_trained

    def die(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(eval_training.eval_setup, "compare_start_and_trained", die)
        train.main(config)
    assert [path.name for path in checkpoints.complete(folder)] == ["checkpoint-2"]
    assert not (folder / EVALUATIONS).exists()

    def die_after_3(step: int, *others: Any) -> Any:
        if step == 4:
            (folder / "checkpoint-3").rename(folder / "lost")  # as if it had been killed before it was written
            raise Killed
        return step_of(step, *others)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(eval_training.eval_setup, "compare_start_and_trained", compare)
        patch.setattr(train, "train_step", die_after_3)
        train.main(config)
    seen = read_rows(folder / EVALUATIONS)
    train.main(config)
    return folder, seen


def test_a_run_that_is_evaluated_is_the_run_bit_for_bit(plain: Path, killed: tuple[Path, Any]) -> None:
    folder, seen = killed
    assert rows_of(folder) == rows_of(plain) and len(rows_of(folder)) == 4
    here, there = folder / "checkpoint-4", plain / "checkpoint-4"
    names = [path.relative_to(here) for path in here.rglob("*") if path.suffix in (".safetensors", ".pt")]
    assert len(names) == 4
    for name in names:
        if "optim" not in name.name and "model_states" not in name.name:  # of which equal contents have other bytes
            assert (here / name).read_bytes() == (there / name).read_bytes(), name
    assert [row["step"] for row in seen] == [2]


def test_evaluations_are_rows_and_tables_of_the_same_function(plain: Path, killed: tuple[Path, Any]) -> None:
    folder, seen = killed
    rows = read_rows(folder / EVALUATIONS)
    assert [row["step"] for row in rows] == [2, 4] and rows[0] == seen[0]
    for step, where in ((2, folder / "evaluations" / "step-000002"), (4, folder)):
        table = json.loads((where / "results.json").read_text())["rows"]
        found = {row["setting"]["method"]: row["metrics"] for row in table}
        row = next(row for row in rows if row["step"] == step)
        assert row["held_out/active/region_recall"] == found["active"]["region_recall"] == row["trained"]
        assert "active" in (where / "results.md").read_text()
    assert json.loads((plain / "results.json").read_text())["rows"][4]["metrics"]["AP"] == rows[1]["held_out/active/AP"]


def test_the_card_of_an_evaluated_checkpoint_has_its_table(killed: tuple[Path, Any]) -> None:
    checkpoint = killed[0] / "checkpoint-4"
    text = (checkpoint / "README.md").read_text()
    table = (killed[0] / "results.md").read_text().split("\n\n###")[0].strip()
    assert table in text and checkpoint_files.damage(checkpoint) == ""


def test_best_is_kept_and_can_be_named(killed: tuple[Path, Any]) -> None:
    folder, _ = killed
    rows = read_rows(folder / EVALUATIONS)
    best = best_step(rows, "region_recall")
    assert (folder / BEST).resolve() == (folder / f"checkpoint-{best}").resolve()
    assert {path.name for path in folder.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-4"}


def test_keep_never_removes_the_best(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "activeo3.json").write_text("{}")
    point(tmp_path, 2)
    checkpoints._prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-6"]
    point(tmp_path, 6)
    assert (tmp_path / BEST).resolve().name == "checkpoint-6"
    checkpoints._prune(tmp_path, 1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def test_the_best_of_errors_is_the_smallest_and_of_equals_the_oldest() -> None:
    rows = [{"step": step, "trained": value} for step, value in ((2, 0.5), (4, 0.25), (6, 0.25), (8, None))]
    assert best_step(rows, "MAE") == 4 and best_step(rows, "AP") == 2
    assert best_step(rows, "AP", lambda step: step != 2) == 4 and best_step([rows[-1]], "AP") == 0
    assert best_step([rows[0] | {"best_metric": "AP"}, rows[1] | {"best_metric": "AR"}], "AR") == 4


def test_what_cannot_be_evaluated_is_said_at_once(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="--eval_every 3 must be a multiple of --save_every 2"):
        replace(config, eval_every=3, save_every=2)
    with pytest.raises(ConfigError, match="--eval_every 2 needs held-out pictures"):
        replace(config, eval_every=2, eval_examples=0)
    row = Row("scenes", Setting("active", "trained"), 1, {"AP": 0.5}, [], "strict")
    with pytest.raises(ConfigError, match="--best_metric AQ: the table of --task sense has AP"):
        eval_training.best_metric(replace(config, best_metric="AQ"), SimpleNamespace(best="", columns=("AP",)), [row])


def test_a_missing_library_is_a_sentence(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--report_to wandb needs its library: install it with pip install wandb"):
        checkpoints.open_run(replace(config, report_to=("wandb",)))


# ---------------------------------------------------------------------- trackers


def values_of(folder: Path) -> dict[str, dict[int, float]]:
    """name -> step -> value, of the two files of a run's numbers."""
    found: dict[str, dict[int, float]] = {}
    for row in [*read_rows(folder / "metrics.jsonl"), *read_rows(folder / EVALUATIONS)]:
        for name, value in trackers.numbers_of(row).items():
            found.setdefault(name, {})[row["step"]] = value
    return found


def pictures_of(folder: Path) -> set[tuple[str, int]]:
    """(name, step) of all sample pictures."""
    found = folder.glob("samples/step-*/*.jpg")
    return {(f"samples/{path.stem}", int(path.parent.name.removeprefix("step-"))) for path in found}


def test_tensorboard_has_every_value_once(killed: tuple[Path, Any]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, wanted = killed[0], values_of(killed[0])
    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0}).Reload()
    assert set(events.Tags()["scalars"]) == set(wanted) and "reward" in wanted and "time/step" in wanted
    for name, of_steps in wanted.items():
        kept = [(event.step, event.value) for event in events.Scalars(name)]
        assert kept == [(step, pytest.approx(value, nan_ok=True)) for step, value in sorted(of_steps.items())], name
    shown = {(name, event.step) for name in events.Tags()["images"] for event in events.Images(name)}
    assert shown == pictures_of(folder) and {2, 4} <= {step for _, step in shown}
    table, config = (
        events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0] for name in ("table", "config")
    )
    assert b"active" in table and b"region_recall" in table and b"AP50" in table
    assert b'"eval_every": 2' in config


def records_of(log: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, and parts with checksum, length and kind (1: whole,
    2, 3, 4: first, middle and last part); 7 bytes of W&B's own come first."""
    place, whole = 7, b""
    while place + 7 <= len(log):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", log, place + 4)
        whole += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def test_weights_and_biases_has_every_value_once(killed: tuple[Path, Any]) -> None:
    """Offline; what a run left is read back from its newest file."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    folder, wanted = killed[0], values_of(killed[0])
    got: dict[str, dict[int, Any]] = {}
    settings: dict[str, Any] = {}
    (path,) = (folder / "wandb" / "latest-run").glob("*.wandb")
    for data in records_of(path.read_bytes()):
        record = Record.FromString(data)
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in items.items():  # a picture's and a table's are nested
            assert items["_step"] not in got.setdefault(name, {})
            got[name][items["_step"]] = value
        if record.HasField("run"):
            settings = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            assert record.run.run_id == (folder / trackers.WANDB_RUN).read_text().strip()
    assert settings["eval_every"] == 2 and {2, 4} == set(got["table/path"])
    shown = {
        (name, step) for name in got if name.startswith("samples/") for step in got[name] if name.endswith("/path")
    }
    assert shown == {(f"{name}/path", step) for name, step in pictures_of(folder)}
    for name, of_steps in wanted.items():
        number = lambda value: float(value)  # noqa: E731  NaN is written as a word
        kept = {step: number(value) for step, value in got[name].items()}
        assert kept == {step: pytest.approx(value, nan_ok=True) for step, value in of_steps.items()}, name
