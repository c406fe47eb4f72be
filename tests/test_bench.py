"""The benchmarks run, prove what they compare, and can tell when that is not the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Sequence

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "bench"))

import crops  # noqa: E402
import full_size  # noqa: E402
import gpu  # noqa: E402
import gpu_kernels  # noqa: E402
import gpu_sections  # noqa: E402
import step  # noqa: E402
import where  # noqa: E402
from contenders import Naive, Ours  # noqa: E402
from probe import Probe  # noqa: E402
from setting import Point, Setting, Stopwatch, pictures  # noqa: E402

from activeo3 import data_scenes  # noqa: E402
from activeo3.config import TrainConfig  # noqa: E402
from activeo3.eval_config import EvalConfig  # noqa: E402
from activeo3.packing import Prompt  # noqa: E402
from activeo3.types import TaskResult  # noqa: E402

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, for the cache


@pytest.fixture(scope="module", params=[False, True], ids=["all learns", "frozen vision"])
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting.make(
        "mini", tmp_path_factory.mktemp("start"), torch.float32, CPU, False, frozen_vision=request.param
    )


class OtherPicture(Naive):
    """A peer that looks at its pictures upside down."""

    name = "upside down"

    def rows(self) -> list[Prompt]:
        return [Prompt(row.ids, row.pixels.flip(0), row.grids) for row in super().rows()]


class OtherReference(Naive):
    """A peer whose policy is its own reference, so that it has no KL."""

    name = "without KL"

    def backward(self, pieces: list, ref_logps: list[torch.Tensor]) -> tuple[list[torch.Tensor], float]:
        with torch.no_grad():
            own = [self.logps(self.setting.policy, rows, ids) for rows, ids, _ in pieces]
        return super().backward(pieces, own)


def test_it_runs_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "times.json"
    small = "--size mini --image_tokens 4 6 --prompts 2 --micro 1 --group 2 --tokens 3 --repeats 2 --peers naive --cpu"
    command = [sys.executable, "tests/bench/step.py", *small.split(), "--out", str(out)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line for line in run.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 * 2 and "| ours |" in rows[2] and "| naive |" in rows[3]
    assert len({row.count("|") for row in rows}) == 1
    for result in json.loads(out.read_text())["results"]:
        assert result["agreement"]["naive"]["gradients"] < 1e-4
        for found in result["contenders"].values():
            seconds = found["seconds"]
            assert {len(values) for values in seconds.values()} == {2}
            assert all(seconds[phase][0] > 0 for phase in ("generate", "reward", "reference", "update", "cpu"))
            assert sum(seconds[phase][0] for phase in step.PHASES) == pytest.approx(seconds["step"][0])
            assert found["update_mb"] > 0 and found["tokens_per_second"] > 0


def test_where_a_step_goes_adds_up(capsys: pytest.CaptureFixture) -> None:
    where.main("--size mini --image_tokens 16 --prompts 2 --group 2 --tokens 4".split())
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {name: [float(cell) for cell in cells] for name, *cells, share in lines[2:]}
    assert lines[0][:-1] == ["generate, s", "reward, s", "reference, s", "update, s"] and [*rows] == [
        *where.KINDS,
        "Python, and the rest",
        "whole",
    ]
    whole = rows.pop("whole")
    assert np.sum(list(rows.values()), axis=0) == pytest.approx(whole, abs=0.05)  # of rounding, twice
    assert min(min(values) for values in rows.values()) > -0.05 and whole[0] > 0 < whole[3]


def test_operations_by_kind() -> None:
    kinds = {
        "matrix products": ["addmm", "mm", "bmm", "mkldnn_convolution"], "copies": ["copy_", "cat", "index_select"],
        "attention": ["_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"],
        "softmax of the vocabulary": ["_log_softmax", "_log_softmax_backward_data", "logsumexp", "multinomial"],
        "optimizer": ["_foreach_addcdiv_", "_fused_adamw_"], "element by element": ["mul", "silu", "rsqrt", "mean"],
    }  # fmt: skip
    for kind, names in kinds.items():
        assert [where.kind_of(name) for name in names] == [kind] * len(names)


@pytest.mark.parametrize("other", [OtherPicture, OtherReference])
def test_it_stops_when_a_peer_computes_something_else(
    other: type[Naive], setting: Setting, capsys: pytest.CaptureFixture
) -> None:
    point = Point(image_tokens=6, prompts=2, group=2, tokens=4, micro=2)
    honest, wrong = Naive(setting, point), other(setting, point)
    assert set(step.agreement([Ours(setting, point), honest], (1e-4, 1e-4))) == {"naive"}
    with pytest.raises(SystemExit, match=f"ours and {wrong.name} do not compute the same thing"):
        step.agreement([Ours(setting, point), honest, wrong], (1e-4, 1e-4))
    assert capsys.readouterr().out.count("differ by") == 3


def test_agreement_leaves_the_weights_and_a_step_moves_them(setting: Setting) -> None:
    point = Point(image_tokens=4, prompts=1, group=2, tokens=4, micro=1)
    for contender in (Ours(setting, point), Naive(setting, point)):
        before = [p.detach().clone() for p in setting.policy.model.parameters()]
        step.agreement([Ours(setting, point), contender], (1e-4, 1e-4))
        assert all(map(torch.equal, before, setting.policy.model.parameters()))
        contender.step(Stopwatch(CPU))
        assert not all(map(torch.equal, before, setting.policy.model.parameters()))


def test_the_memory_of_an_update_is_that_of_its_tensors() -> None:
    clock = Stopwatch(CPU, memory=True)
    with clock("generate"):
        kept = torch.ones(2**20)
    with clock("update"):
        for _ in range(3):
            del kept
            kept = torch.ones(2**21)  # 8 MB, one at a time
        doubled = kept * 2
    assert 16 <= clock.peak_mb < 17 and doubled.numel() == kept.numel()


@pytest.mark.parametrize("image_tokens, size", [(64, (224, 224)), (1300, (1400, 728)), (6, (84, 56)), (7, (196, 28))])
def test_pictures_have_the_tokens_that_were_asked_for(
    image_tokens: int, size: tuple[int, int], setting: Setting
) -> None:
    views = pictures(2, image_tokens)
    assert [view.size for view in views] == [size, size] and views[0].tobytes() != views[1].tobytes()
    (prompt, _) = setting.policy.encode(views, ["Where?", "Where?"])
    assert int((prompt.ids == setting.policy.image_token).sum()) == image_tokens


@pytest.mark.parametrize(
    "words, says",
    [
        (["--group", "1"], "--group must be at least 2"),
        (["--tokens", "0"], "must be at least 1"),
        (["--prompts", "4", "--micro", "3"], "--micro 3 must divide"),
    ],
)
def test_flags_that_cannot_be_used(words: Sequence[str], says: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        step.parse(words)
    assert says in capsys.readouterr().err


def test_without_trl_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: None)
    assert step.parse([]).peers == ["naive"]
    with pytest.raises(SystemExit):
        step.parse(["--peers", "trl"])
    assert ".[bench]" in capsys.readouterr().err


# ---------------------------------------------------------------------- crops


def test_crops_are_timed_after_both_ways_found_the_same(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    crops.main(crops.parse(["--pictures", "2", "--repeats", "1", "--cpu"]))
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert "boxes in 6 crops of 2 pictures" in said
    assert [row.split(" | ")[0] for row in (rows[0], *rows[2:])] == ["| 6 crops", "| together", "| one by one"]
    assert len({row.count("|") for row in rows}) == 1


def test_crops_in_which_other_boxes_are_found_are_not_timed() -> None:
    example = data_scenes.example("val", 0)
    one, other = (TaskResult(np.array([[0, 0, side, 9]]), np.ones(1)) for side in (8.0, 8.1))
    crops.agree([example], [one], [one])
    with pytest.raises(SystemExit, match=f"do not find the same boxes in {example.id}"):
        crops.agree([example], [one], [other])


def test_crops_need_pictures(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        crops.parse(["--pictures", "0"])
    assert "--pictures and --repeats must be at least 1" in capsys.readouterr().err


# ---------------------------------------------------------------------- the GPU check


@pytest.mark.parametrize("section", ["env", "sdpa", "equal", "decode", "update", "vision"])
def test_every_section_of_the_gpu_check_runs_at_toy_size(
    section: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = getattr(gpu_kernels, section, None) or getattr(gpu_sections, section)
    run(Probe(section, tmp_path, tiny=True))
    rows = gpu.findings(tmp_path)
    assert rows and not [row for row in rows if "failed" in row]
    printed = capsys.readouterr().out
    assert all(f"[{section}] {row['what']}" in printed for row in rows)
    if section == "equal":
        assert rows[0]["logp_max"] < 1e-4 and rows[0]["gradient_worst"] < 1e-4
    if section == "decode":
        apart = next(row for row in rows if "scorer" in row["what"])
        assert apart["max_abs"] < 0.1 and all(row["tokens_as_generate"] == 1.0 for row in rows if "sdpa" in row["what"])


def test_the_gpu_check_runs_sections_as_processes_and_ends_with_a_table(tmp_path: Path) -> None:
    command = [sys.executable, "tests/bench/gpu.py", "--tiny", "--sections", "default", "zero3", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("\n" + gpu.table(gpu.findings(tmp_path)) + "\n")
    found = {row["what"]: row for row in gpu.findings(tmp_path)}
    assert found["deepspeed train.py, tiny"]["logp_difference/max"] < 1e-3
    assert found["train.update"]["ratio_max"] == 1.0 and found["train.update"]["skipped_steps"] == 0


def test_a_failure_is_a_finding_and_the_check_says_so_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Probe("sdpa", tmp_path, tiny=True)
    with probe.trying("a kernel"):
        raise RuntimeError("no kernel image")
    probe.note("another", ms=1.23456)
    assert [row.get("failed") or row["ms"] for row in gpu.findings(tmp_path)] == [
        "RuntimeError: no kernel image",
        1.235,
    ]

    def fails(name: str, out: Path, tiny: bool, limit: float) -> None:
        with Probe(name, out, tiny).trying("a kernel"):
            raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu, "start_section", fails)
    with pytest.raises(SystemExit, match="failed: env: a kernel"):
        gpu.main(["--sections", "env", "--tiny", "--out", str(tmp_path)])


def test_the_real_size_is_written_in_the_published_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sizes of a small model in place of the real ones; the real vocabulary, and both commands are read."""
    monkeypatch.setattr(full_size, "TEXT", {})
    monkeypatch.setattr(full_size, "VISION", {})
    full_size.write_model(tmp_path / "model")
    full_size.write_picture(tmp_path / "coco")
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()) and model.dtype == torch.bfloat16
    assert model.get_input_embeddings().num_embeddings == full_size.published.ROWS
    assert model.lm_head.weight is model.get_input_embeddings().weight
    found = full_size.commands(tmp_path, tmp_path / "coco", ["--seed", "3"])
    config = TrainConfig.from_args(found["train.py"])
    assert (config.dtype, config.lora, config.sensing_side, config.seed) == ("bfloat16", 8, 1024, 3)
    asked = EvalConfig.from_args(found["evaluate.py"])
    assert (asked.data, asked.sensing_side, asked.methods) == (("coco",), 1024, ("active",))


def test_memory_that_a_process_has_for_itself_is_counted(tmp_path: Path) -> None:
    work = "import time; held = bytearray(300_000_000); time.sleep(1)"
    code, minutes, gigabytes = full_size.measured(tmp_path / "log", "-c", work)
    assert code == 0 and 0.3 < gigabytes < 0.33 and minutes > 1 / 60
