"""A whole evaluation: several checkpoints in one table, on ranks, interrupted, over budgets. The table is the same.

The shipped tiny policy and random ones, on a few pictures of the embedded world.
"""

import gc
import json
import os
import re
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from data_folders import vstar_set
from launch import on_ranks
from PIL import Image
from scripted import rows_in

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # evaluate.py is a script beside the package


import evaluate  # noqa: E402
from activeo3 import eval_detection, eval_runner, eval_setup  # noqa: E402
from activeo3.engine import Distributed  # noqa: E402
from activeo3.eval_config import EvalConfig  # noqa: E402
from activeo3.model import VisionLanguageModel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
TINY = str(ROOT / "data" / "tiny")
SMALL = dict(limit=3, resamples=10, task_max_new_tokens=24, max_new_tokens=70)


@pytest.fixture(scope="module")
def other(make_vlm, tmp_path_factory) -> str:
    """A checkpoint of a run that began with the tiny policy, with random weights."""
    folder = tmp_path_factory.mktemp("runs") / "other" / "checkpoint-7"
    make_vlm("qwen3_vl").save(folder)
    (folder / "activeo3.json").write_text(json.dumps({"step": 7, "world": 1, "config": {"model": TINY}}))
    return str(folder)


@pytest.fixture(scope="module")
def config(other: str) -> EvalConfig:
    methods = ("random", "active", "repeat", "answer")
    return EvalConfig(checkpoint=(TINY, other), start=TINY, methods=methods, task_model=("oracle",), **SMALL)


def run(config: EvalConfig, folder: Path) -> int:
    """An evaluation in blocks of two pictures: how many blocks were worked on."""
    done: list[int] = []
    share = Distributed.map

    def counted(self: Distributed, work: Callable[[Any], Any], parts: Any) -> list[Any]:
        return share(self, lambda part: done.append(1) or work(part), parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distributed, "map", counted)
        patch.setattr(eval_runner, "BATCH", 2)
        evaluate.main(replace(config, output_dir=str(folder)))
    return len(done)


def written(folder: Path) -> dict[str, str]:
    """Every file of an evaluation that is about numbers, without the seconds and what the libraries said."""
    texts = {path.name: path.read_text() for path in folder.glob("*.json")}
    return {name: re.sub(r'"seconds": [\d.e-]+', '"seconds": 0', text) for name, text in texts.items()}


@pytest.fixture(scope="module")
def uninterrupted(config: EvalConfig, tmp_path_factory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(config, folder)


@pytest.fixture
def straight(uninterrupted: tuple[Path, int]) -> Path:
    return uninterrupted[0]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return rows_in(folder)


# ---------------------------------------------------------------------- several checkpoints


def test_checkpoints_are_rows_of_one_table(straight: Path) -> None:
    rows = rows_of(straight)
    named = [(row["method"], row["policy"], row["task_model"]) for row in rows]
    wanted = [("random", "", "oracle")]
    wanted += [(method, label, "oracle") for method in ("active", "repeat") for label in ("start", "other")]
    wanted += [("answer", label, "itself") for label in ("start", "other")]
    assert named == wanted
    by_name = {key[:2]: row["metrics"] for key, row in zip(named, rows)}
    assert by_name["active", "start"]["regions"] > 0
    assert by_name["active", "other"]["regions"] == 0  # random weights propose nothing
    predictions = {path.name for path in straight.glob("predictions-*")}
    assert len(predictions) == len(rows) and "predictions-scenes-active-other.json" in predictions
    table = (straight / "results.md").read_text()
    assert [line.split("|")[2].strip() for line in table.splitlines() if line.startswith("| active ")][:2] == [
        "start",
        "other",
    ]
    assert not (straight / "unfinished").exists()


def test_what_a_picture_costs(straight: Path) -> None:
    by_name = {(row["method"], row["policy"]): row["metrics"] for row in rows_of(straight)}
    assert (by_name["random", ""]["tokens"], by_name["random", ""]["calls"]) == (0, 3)
    assert by_name["active", "start"]["tokens"] > 10 and by_name["active", "other"]["calls"] == 0
    assert by_name["answer", "start"]["calls"] == 1 and by_name["answer", "start"]["tokens"] > 0
    assert 0 < by_name["repeat", "start"]["calls"] <= 3


def test_a_checkpoint_of_direct_rft_answers_itself(other: str, tmp_path: Path) -> None:
    state = json.loads((Path(other) / "activeo3.json").read_text())
    direct = tmp_path / "run" / "checkpoint-1"
    VisionLanguageModel.load(TINY, evaluate.engine.pick_dtype("auto")).save(direct)
    state["config"]["task"] = "direct"
    (direct / "activeo3.json").write_text(json.dumps(state))
    config = EvalConfig(checkpoint=(str(direct),), methods=("active", "answer"), **SMALL)
    run(config, tmp_path / "out")
    active, answer = rows_of(tmp_path / "out")
    for row in (active, answer):
        assert row.pop("method") and row.pop("setting") and row["metrics"].pop("seconds") > 0
    assert active == answer and active["task_model"] == "itself" and row["regions"] == 0
    files = [tmp_path / "out" / f"predictions-scenes-{name}.json" for name in ("active", "answer")]
    assert files[0].read_text() == files[1].read_text()


def test_models_are_loaded_one_after_the_other(other: str, make_vlm, tmp_path: Path, monkeypatch) -> None:
    folders = [tmp_path / name / "checkpoint-1" for name in "abcd"]
    for seed, folder in enumerate(folders):
        make_vlm("qwen3_vl", seed=seed).save(folder)
    config = EvalConfig(
        checkpoint=tuple(map(str, folders)),
        start=TINY,
        methods=("active",),
        task_model=("oracle",),
        **SMALL | {"limit": 2},
    )
    alive: list[weakref.ref] = []
    most = []
    load = VisionLanguageModel.load

    def watched(*args: Any, **named: Any) -> VisionLanguageModel:
        gc.collect()
        most.append(sum(one() is not None for one in alive))
        alive.append(weakref.ref(model := load(*args, **named)))
        return model

    monkeypatch.setattr(VisionLanguageModel, "load", watched)
    run(config, tmp_path / "out")
    assert len(most) == 5 and max(most) == 1  # beside the one that is loaded there is the start policy
    assert [row["policy"] for row in rows_of(tmp_path / "out")] == [*"abcd"]


# ---------------------------------------------------------------------- ranks, and interruptions


# One evaluation of each kind, as small as it can be and still have several blocks on each of two ranks.
KINDS: dict[str, dict[str, Any]] = {
    "boxes": {"methods": ("random", "active", "repeat", "answer"), "task_model": ("oracle",)},
    "perception": {"task": "grounding", "data": ("close_ups",), "sensing_side": 64, "max_new_tokens": 12},
    "segmentation": {"task": "segment", "task_model": ("oracle",), "methods": ("random", "cot", "active")},
    "episodes": {
        "task": "zoom_qa",
        "mode": ("baseline", "default"),
        "max_new_tokens": 12,
        "sensing_side": 64,
        "crop_side": 64,
    },
    "words": {"benchmark": ("vstar",), "methods": ("direct", "random", "active"), "task_max_new_tokens": 4},
}


@pytest.fixture(scope="module", params=KINDS)
def of_a_kind(request: pytest.FixtureRequest, other: str, tmp_path_factory) -> EvalConfig:
    """The config of an evaluation of each kind, of two checkpoints."""
    root = str(tmp_path_factory.mktemp("data"))
    if request.param == "words":
        vstar_set(Path(root))
    return EvalConfig(**{"checkpoint": (TINY, other), "start": TINY, "data_root": root} | SMALL | KINDS[request.param])


@pytest.fixture(scope="module")
def straight_of_a_kind(of_a_kind: EvalConfig, tmp_path_factory) -> tuple[Path, int]:
    """Its results without an interruption, and how many blocks that took."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(of_a_kind, folder)


class Thread:
    """One of two ranks that are threads of this process. One works while the other waits: models are not made for
    threads."""

    world, device, log = 2, torch.device("cpu"), Path(os.devnull)
    works = threading.Lock()

    def __init__(self, rank: int, meeting: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.meeting, self.table = rank, meeting, table

    map = Distributed.map

    def redirect_output(self) -> Any:
        return nullcontext()

    def all_gather(self, value: Any) -> list[Any]:
        self.table[self.rank] = value
        self.barrier()
        values = list(self.table)
        self.barrier()
        return values

    def barrier(self) -> None:
        self.works.release()
        try:
            self.meeting.wait(60)
        finally:
            self.works.acquire()


def on_two_threads(work: Callable[[], Any], patch: pytest.MonkeyPatch) -> None:
    """``work`` on two ranks, as evaluate.py sees them."""
    meeting, table, own = threading.Barrier(2), [None, None], threading.local()
    patch.setattr(evaluate.engine, "join", lambda folder: own.rank)
    patch.setattr(evaluate.engine, "stop", lambda: None)

    def on(rank: int) -> None:
        own.rank = Thread(rank, meeting, table)
        try:
            with Thread.works:
                work()
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(2) as both:
        list(both.map(on, (0, 1)))


def test_two_ranks_make_the_results_of_one(
    straight_of_a_kind: tuple[Path, int], of_a_kind: EvalConfig, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(eval_runner, "BATCH", 2)
    on_two_threads(lambda: evaluate.main(replace(of_a_kind, output_dir=str(tmp_path / "two"))), monkeypatch)
    assert written(tmp_path / "two") == written(straight_of_a_kind[0])
    assert not (tmp_path / "two" / "unfinished").exists()


class Killed(BaseException):
    """The process ends here."""


def test_a_killed_evaluation_goes_on_where_it_stopped(
    straight_of_a_kind: tuple[Path, int], of_a_kind: EvalConfig, tmp_path: Path, monkeypatch
) -> None:
    """It is killed while its second block is being kept: the torn one is worked on again, and the bar ends where it
    should."""
    straight, worked = straight_of_a_kind
    assert worked >= 4
    kept: list[Path] = []

    def kept_or_dead(path: Path, data: bytes) -> None:
        kept.append(path)
        if len(kept) == 2:
            path.write_bytes(data[: len(data) // 2])
            raise Killed
        replace_file(path, data)

    replace_file = eval_runner.replace_file
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(eval_runner, "replace_file", kept_or_dead)
        run(of_a_kind, tmp_path)
    assert len(list((tmp_path / "unfinished").iterdir())) == 2
    bars: list[Any] = []
    close = eval_runner.Runner.close
    monkeypatch.setattr(eval_runner.Runner, "close", lambda self: bars.append(self.bar) or close(self))
    assert run(of_a_kind, tmp_path) == worked - 1
    assert written(tmp_path) == written(straight)
    assert bars[0].n == bars[0].total > 0


# ---------------------------------------------------------------------- benchmarks of one's own

DATA_SET = """
from PIL import Image
from activeo3.data_set import Dataset, register
from activeo3.types import VQA, Example

@register("dots", {"test": 6}, "drawn here", answers="words")
def open_dots(source):
    asked = VQA("Is it red?", ("A",), options=("yes", "no"))
    draw = lambda number: Image.new("RGB", (64, 64), (40 * number, 0, 0))
    read = lambda number, index: Example(f"dot-{number}", draw(number), asked.question, image_id=number + 1, vqa=asked)
    return Dataset("dots", source.split, range(6), read)
"""
METRIC = """
from activeo3.eval_baselines import greedy_rollouts
from activeo3.eval_core import Benchmark, Method
from activeo3.eval_setup import OWN
from activeo3.intervals import bootstrap_interval

class Length(Benchmark):
    methods = {"answer": Method(policy="every", zooms=False)}
    default_methods = ("answer",)
    columns = ("letters",)

    def predict(self, setting, examples, models, map):
        policy = models[setting.policy]
        work = lambda block: [{"text": rollout.text} for rollout in greedy_rollouts(policy, self.task, block)]
        return map(work, examples, ("answer", policy, self.config, setting.blind))

    def metrics(self, setting, examples, records):
        images = [example.image_id for example in examples]
        return {"letters": bootstrap_interval([len(one["text"]) for one in records], images, self.config.resamples)}

OWN["dots"] = Length
"""


@pytest.mark.parametrize(
    "text, column", [(DATA_SET, "accuracy"), (DATA_SET + METRIC, "letters")], ids=["set", "metric"]
)
def test_a_benchmark_of_ones_own_runs_on_two_ranks_and_goes_on(
    text: str, column: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VQA set in at most 12 lines and a metric in at most 25, in a file that --data_options names; killed once."""
    lines = [len([line for line in part.splitlines() if line.strip()]) for part in (DATA_SET, METRIC)]
    assert lines[0] <= 12 and lines[1] <= 25
    monkeypatch.setattr(eval_setup, "OWN", dict(eval_setup.OWN))
    (tmp_path / "mine.py").write_text(text)
    flags = {"start": TINY, "split": "test", "benchmark": "dots", "data_options": f"extension={tmp_path / 'mine.py'}"}
    flags |= {"limit": "6", "resamples": "10", "max_new_tokens": "8", "task_max_new_tokens": "4"}
    argv = ["--checkpoint", TINY, other, *(part for name, value in flags.items() for part in (f"--{name}", value))]
    config = EvalConfig.from_args(argv)
    try:
        run(config, tmp_path / "straight")
        rows = rows_of(tmp_path / "straight")
        assert len(rows) >= 2 and all(column in row["metrics"] and row["n"] == 6 for row in rows)

        kept: list[Path] = []
        replace_file = eval_runner.replace_file

        def kept_or_dead(path: Path, data: bytes) -> None:
            kept.append(path)
            if len(kept) == 2:
                raise Killed
            replace_file(path, data)

        both = lambda: evaluate.main(replace(config, output_dir=str(tmp_path / "two")))  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(eval_runner, "BATCH", 2)
            with pytest.raises((Killed, threading.BrokenBarrierError)):
                patch.setattr(eval_runner, "replace_file", kept_or_dead)
                on_two_threads(both, patch)
            assert list((tmp_path / "two" / "unfinished").glob("*.json"))
            patch.setattr(eval_runner, "replace_file", replace_file)
            on_two_threads(both, patch)
        assert written(tmp_path / "two") == written(tmp_path / "straight")
    finally:
        eval_setup.data.DATASETS.pop("dots", None)


def on_a_rank(config: EvalConfig, folder: Path) -> None:
    run(config, folder)


def test_two_processes_make_the_table_of_one(straight: Path, config: EvalConfig, tmp_path: Path) -> None:
    on_ranks(2, tmp_path, on_a_rank, config, tmp_path / "two")
    assert written(tmp_path / "two") == written(straight)


# ---------------------------------------------------------------------- budgets


def test_budgets_are_a_curve_beside_the_table(other: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(eval_detection, "FITTED_ON", 6)
    methods = ("direct", "random", "fixed", "repeat", "active", "oracle-regions")
    config = EvalConfig(
        checkpoint=(other,), methods=methods, task_model=("oracle",), regions=2, budgets=(1, 4), **SMALL
    )
    run(config, tmp_path / "curve")
    rows = rows_in(tmp_path / "curve")
    budgets = {(row["method"], row["regions"]): row for row in rows}
    assert list(budgets) == [("direct", 0)] + [(m, k) for m in methods[1:] for k in (1, 2, 4)]
    for method in ("random", "fixed"):
        assert [budgets[method, k]["metrics"]["calls"] for k in (1, 2, 4)] == [1, 2, 4]
    recalls = [budgets["fixed", k]["metrics"]["region_recall"] for k in (1, 2, 4)]
    assert recalls == sorted(recalls) and recalls[0] < recalls[-1]  # the fewer are the first of the more
    assert all(row["metrics"]["swap_picture"] is None for key, row in budgets.items() if key[1] in (1, 4))
    out = capsys.readouterr().out
    assert (
        "what a budget of regions buys" in " ".join(out.split())
        and "what a budget" in (tmp_path / "curve" / "results.tex").read_text()
    )
    with Image.open(tmp_path / "curve" / "budgets-scenes.png") as drawn:
        assert drawn.width > 900
    assert "hat a budget of regions buys" in (tmp_path / "curve" / "scenes.html").read_text()
    # The table of one budget is that of a run without the others.
    run(replace(config, budgets=()), tmp_path / "alone")
    alone = rows_in(tmp_path / "alone")
    for row in (*alone, *rows):
        row["metrics"].pop("seconds")
    assert alone == [row for row in rows if row["regions"] in (0, 2)]
