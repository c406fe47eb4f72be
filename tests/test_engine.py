"""engine.py and checkpoints.py: whole weights when asked for, checkpoints that are complete or absent, ranks that
agree.

``on_ranks`` starts real processes that talk over gloo; everything that one process can show runs here.
"""

import ctypes
import importlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from launch import ROOT, finely_sharded, rank_environment, whole_weights
from PIL import Image
from safetensors.torch import load_file
from scripted import USUAL
from transformers import AutoModelForImageTextToText

import activeo3
from activeo3 import checkpoint_room, checkpoints, engine, lora, memory
from activeo3.config import ConfigError, TrainConfig
from activeo3.engine import Distributed, Zero3Model
from activeo3.families import FAMILIES
from activeo3.model import VisionLanguageModel
from activeo3.types import Sampling

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
Make = Callable[..., VisionLanguageModel]
Picture = Callable[..., Image.Image]


# ---------------------------------------------------------------------- shared with test_train.py


# ---------------------------------------------------------------------- fixtures


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("config")
    return TrainConfig(ds_config=finely_sharded(folder), output_dir=str(folder / "run"), prompts=2, micro_prompts=2)


@pytest.fixture(params=USUAL)
def policy(request: pytest.FixtureRequest, make_vlm: Make, ranks: Distributed, config: TrainConfig) -> Zero3Model:
    return Zero3Model(make_vlm(request.param), ranks, config, learns=True)


# ---------------------------------------------------------------------- start-up


@pytest.mark.parametrize(
    "package, installed, wanted",
    [("transformers", "5.22.0", "5.23"), ("transformers", "4.57.1", "5.23"), ("deepspeed", "0.18.9", "0.19")],
)
def test_broken_versions_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, package: str, installed: str, wanted: str
) -> None:
    real = engine.version
    monkeypatch.setattr(engine, "version", lambda name: installed if name == package else real(name))
    with pytest.raises(ConfigError, match=rf"^{package} {installed} is installed, and .*install {package}>={wanted}"):
        engine.check_versions()


def test_the_versions_of_setup_py_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine.check_versions()
    lowest = {"transformers": "5.23.0", "deepspeed": "0.19.8"}
    monkeypatch.setattr(engine, "version", lowest.__getitem__)
    engine.check_versions()


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"bf16": {"enabled": true}, "optimizer": {}}', "sets optimizer, bf16, which belongs to train.py's flags"),
        ('{"zero_optimization": \n {"stage": 3,}}', r"not valid json \(line 2"),
        ('{"zero_optimization": {"stage": 2}}', 'must hold "zero_optimization": {"stage": 3'),
        (
            '{"zero_optimization": {"stage": 3, "overlap_com": true}}',
            "zero_optimization.overlap_com is not taken by DeepSpeed",
        ),
        ("{}", 'must hold "zero_optimization": {"stage": 3'),
        ("[3]", "holds no json object"),
        ("caf\xe9", "is not a UTF-8 text file"),
        (None, "there is no such file"),
        (Path, r"cannot be read \(a folder\)"),
    ],
)
def test_a_ds_config_that_cannot_be_used_is_refused(
    tmp_path: Path, ranks: Distributed, text: str | type[Path] | None, message: str
) -> None:
    path = tmp_path / "ds.json"
    if text is Path:
        path.mkdir()
    elif text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message) as caught:
        engine.ds_config(TrainConfig(ds_config=str(path)), ranks, torch.float32, learns=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_port_that_another_run_has_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        environment = os.environ | rank_environment(0, 1) | {"MASTER_PORT": port}
        command = [sys.executable, "train.py", "--output_dir", str(tmp_path / "run")]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith(f"activeo3: the port {port} is in use")
    assert "--master_port" in run.stderr and "Traceback" not in run.stderr


def test_chatter_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    ranks = Distributed(0, 1, torch.device("cpu"), tmp_path / "log")
    print("before")
    with ranks.redirect_output():
        print("from python")
        os.write(2, b"from a descriptor\n")
        ctypes.CDLL(None).printf(b"from C, buffered\n")
        os.system("echo from a child")
    print("after")
    ctypes.CDLL(None).fflush(None)
    shown, logged = capfd.readouterr(), (tmp_path / "log").read_text()
    assert (shown.out, shown.err) == ("before\nafter\n", "")
    assert sorted(logged.splitlines()) == ["from C, buffered", "from a child", "from a descriptor", "from python"]


def test_a_log_that_takes_nothing_ends_nothing(
    ranks: Distributed, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """On a full disk, and in a folder that is gone: what the libraries say is lost, and the work goes on."""
    for log in (Path("/dev/full"), tmp_path / "gone" / "libraries-0.log"):
        with replace(ranks, log=log).redirect_output():
            print("x" * 100_000, flush=True)
            sys.stderr.write("progress")
    assert capfd.readouterr() == ("", "")


def test_an_error_inside_quietly_surfaces_and_the_terminal_is_back(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    ranks = Distributed(0, 1, torch.device("cpu"), tmp_path / "log")
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    with pytest.raises(ZeroDivisionError):
        with ranks.redirect_output():
            print("first")
            1 / 0
    print("back")
    os.write(1, b"here\n")
    assert capfd.readouterr().out == "back\nhere\n"
    assert (tmp_path / "log").read_text() == "first\n"
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors  # none is left open


# ---------------------------------------------------------------------- gathered


def test_gathered_weights_are_whole_and_exact(policy: Zero3Model, make_vlm: Make) -> None:
    original = make_vlm(policy.vlm.family).model.state_dict()
    assert all(parameter.numel() == 0 for parameter in policy.vlm.model.parameters())
    with policy.gathered() as whole:
        weights = whole.model.state_dict()
        assert weights.keys() == original.keys()
        for name, tensor in original.items():
            assert torch.equal(weights[name], tensor), name
    assert all(parameter.numel() == 0 for parameter in policy.vlm.model.parameters())
    assert policy.vlm.parameters == sum(
        parameter.numel() for parameter in make_vlm(policy.vlm.family).model.parameters()
    )


def test_an_error_inside_gathered_leaves_a_working_engine(policy: Zero3Model, make_vlm: Make, picture: Picture) -> None:
    """Forward, generate, raise, forward again: the hooks are back, once each, and nothing has changed."""
    sharded_linear = torch.nn.functional.linear
    plain = make_vlm(policy.vlm.family)
    prompts = plain.encode([picture(64, 48), picture(32, 96)], ["Where?", "Find every star."])
    packed = plain.pack(prompts, [[(20, 21, 22), (23,)], [(24, 25), (26, 27)]])
    with torch.no_grad():
        expected = plain.forward_packed(packed)
        torch.testing.assert_close(policy.logits(packed), expected, rtol=0, atol=1e-5)
        before = policy.logits(packed)
        hooks = hooks_of(policy)
        greedy = plain.generate(prompts, 2, Sampling(0.0, 6))
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                with policy.gathered() as whole:
                    assert not any(hooks_of(policy)[1:])  # the root keeps DeepSpeed's bookkeeping
                    assert torch.nn.functional.linear is torch._C._nn.linear is not sharded_linear
                    assert whole.generate(prompts, 2, Sampling(0.0, 6)) == greedy
                    1 / 0
            assert hooks_of(policy) == hooks
            assert torch.nn.functional.linear is sharded_linear
            assert torch.equal(policy.logits(packed), before)
    loss = policy.logits(packed).square().mean()
    policy.backward(loss)
    norm, skipped = policy.step(1e-3)
    assert norm > 0 and skipped == 0
    with torch.no_grad():
        assert not torch.equal(policy.logits(packed), before)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in USUAL])
def test_every_family_is_sharded(
    family: str, make_vlm: Make, ranks: Distributed, config: TrainConfig, picture: Picture
) -> None:
    """Sharded in its own way to score, the logits of the whole model; and an update, after which no layer is left
    gathered."""
    plain, policy = make_vlm(family), Zero3Model(make_vlm(family), ranks, replace(config, recompute=True), learns=True)
    packed = plain.pack(plain.encode([picture(64, 48)], ["Where?"]), [[(20, 21, 22), (23,)]])
    expected = plain.forward_packed(packed).detach()
    found = policy.logits(packed)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    policy.backward(found.square().mean())
    norm, skipped = policy.step(1e-3)
    assert norm > 0 and skipped == 0 and all(parameter.numel() == 0 for parameter in policy.vlm.model.parameters())


def test_a_way_to_score_that_would_be_wrong_is_refused(make_vlm: Make, ranks: Distributed, config: TrainConfig) -> None:
    for wrong in (
        dict(scoring="packed"),
        dict(task="zoom_qa", memory="notes"),
        dict(task="zoom_qa", scoring="cached", train_only=""),
    ):
        with pytest.raises(ConfigError, match="^--(scoring|memory) "):
            Zero3Model(make_vlm("qwen3_5"), ranks, replace(config, **wrong), learns=True)
    seeing = Zero3Model(make_vlm("qwen3_5"), ranks, replace(config, task="zoom_qa", train_only=""), learns=True)
    assert seeing.vlm.scoring == "rows" and seeing.vlm.attention_summary.startswith(
        "a row for every answer with sdpa; pictures with "
    )


def hooks_of(sharded: Zero3Model) -> list[int]:
    """How many forward hooks each module of the model has."""
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in sharded.vlm.model.modules()]


def test_two_models_can_be_gathered_at_once(
    ranks: Distributed, config: TrainConfig, make_vlm: Make, picture: Picture
) -> None:
    """As at the end of a run: the policy and the frozen reference, each with its own weights."""
    models = [make_vlm("qwen3_vl", seed) for seed in (0, 1)]
    wanted = [{name: t.clone() for name, t in vlm.model.state_dict().items()} for vlm in models]
    policy, reference = (Zero3Model(vlm, ranks, config, learns) for vlm, learns in zip(models, (True, False)))
    assert not any(parameter.requires_grad for parameter in reference.vlm.model.parameters())
    with policy.gathered() as policy, reference.gathered() as task_model:
        for whole, weights in zip((policy, task_model), wanted):
            assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.model.state_dict().items())
        prompts = task_model.encode([picture(64, 48)], ["Where?"])
        assert len(task_model.generate(prompts, 1, Sampling(0.0, 3))) == 1
    with torch.no_grad():
        assert reference.logits(models[1].pack(prompts, [[(20, 21)]])).isfinite().all()


def test_the_recorded_order_of_layers_survives_a_gathered_block(policy: Zero3Model, picture: Picture) -> None:
    """DeepSpeed fetches the next layer early only while it knows the order in which layers come."""

    def update() -> bool:
        policy.backward(policy.logits(pack(policy.vlm, picture)).square().mean())
        policy.step(1e-3)
        return policy._offload.get_param_coordinator().is_complete_trace()

    update()
    update()  # the first pass is recorded; the second follows it
    with policy.gathered() as vlm:
        vlm.generate(vlm.encode([picture(64, 48)], ["Where?"]), 2, Sampling(0.0, 3))
    assert policy._offload.get_param_coordinator().is_complete_trace() and update()


@pytest.mark.parametrize(
    "dtype, which, micro_prompts",
    [
        (torch.float32, "", 2),
        (torch.float32, "self_attn", 2),
        (torch.bfloat16, "self_attn", 2),
        (torch.bfloat16, "", 1),
    ],
)
def test_a_model_holds_what_is_foretold(
    dtype: torch.dtype, which: str, micro_prompts: int, ranks: Distributed, config: TrainConfig, make_vlm: Make,
    picture: Picture,
) -> None:  # fmt: skip
    """The sum in a run's introduction and in the planner, against the tensors that DeepSpeed has after an update."""
    vlm = make_vlm("qwen3_vl")
    vlm.model.to(dtype)
    policy = Zero3Model(vlm, ranks, replace(config, train_only=which, micro_prompts=micro_prompts), learns=True)
    policy.backward(policy.logits(pack(vlm, picture)).float().square().mean())
    policy.step(1e-3)
    optimizer = policy.engine.optimizer
    weights = [parameter.ds_tensor for parameter in vlm.model.parameters()]
    moments = [part for state in optimizer.optimizer.state.values() for part in state.values() if part.dim()]
    gradients = optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values()
    tensors = [*weights, *moments, *gradients, *optimizer.fp32_partitioned_groups_flat]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    gradient = 4 if micro_prompts < config.prompts else dtype.itemsize
    foretold = memory.standing(vlm.parameters, vlm.trainable_parameters, dtype.itemsize, gradient)
    assert sum(held.values()) == pytest.approx(foretold, rel=1e-3)
    assert (vlm.trainable_parameters < vlm.parameters) == bool(which)


def test_gradients_of_bfloat16_add_up_in_float32(
    ranks: Distributed, config: TrainConfig, make_vlm: Make, picture: Picture
) -> None:
    """The same micro-batch twelve times is twelve times its gradient; a bfloat16 sum is rounded eleven times."""
    vlm = make_vlm("qwen3_vl")
    vlm.model.to(torch.bfloat16)
    policy = Zero3Model(vlm, ranks, replace(config, train_only="norm.weight", micro_prompts=1), learns=True)
    gradients = lambda: torch.cat([  # noqa: E731
        part.flatten() for part in policy.engine.optimizer._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values()
    ])  # fmt: skip
    (weight,) = [one for name, one in vlm.model.named_parameters() if name.endswith("language_model.norm.weight")]

    def add() -> None:
        policy.backward(policy.logits(pack(vlm, picture)).float().square().mean())

    add()
    first = gradients().clone()
    for _ in range(11):
        add()
    assert first.dtype == torch.float32 and weight.requires_grad
    torch.testing.assert_close(gradients(), 12 * first, rtol=1e-6, atol=0)


def test_offloading_changes_nothing_but_where_things_lie(
    ranks: Distributed, config: TrainConfig, make_vlm: Make, picture: Picture, tmp_path: Path
) -> None:
    """Optimizer and weights in the CPU's memory, as ds_config.json can say: two updates, and answers between them."""
    settings = json.loads(Path(config.ds_config).read_text())
    settings["zero_optimization"] |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    (tmp_path / "offloading.json").write_text(json.dumps(settings))
    found = []
    for file in (config.ds_config, str(tmp_path / "offloading.json")):
        policy, said = Zero3Model(make_vlm("qwen3_vl"), ranks, replace(config, ds_config=file), learns=True), []
        for _ in range(2):
            policy.backward(policy.logits(pack(policy.vlm, picture)).square().mean())
            policy.step(1e-3)
            with policy.gathered() as vlm:
                said.append(vlm.generate(vlm.encode([picture(64, 48)], ["Where?"]), 2, Sampling(0.0, 5)))
        found.append((said, whole_weights(policy)))
    (said, weights), (also_said, others) = found
    assert said == also_said
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_a_plain_transformers_model(
    policy: Zero3Model, config: TrainConfig, tmp_path: Path, picture: Picture
) -> None:
    """After an update, saved by ZeRO-3 and opened without us: the same weights, the same logits, bit for bit."""
    policy.backward(policy.logits(packed := pack(policy.vlm, picture)).square().mean())
    policy.step(1e-3)
    folder = checkpoints.save(policy, replace(config, output_dir=str(tmp_path)), 7)
    assert folder == tmp_path / "checkpoint-7" and not list(tmp_path.glob("building-*"))
    state = json.loads((folder / "activeo3.json").read_text())
    assert (state["step"], state["world"], state["config"]["prompts"]) == (7, 1, 2)

    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    weights = whole_weights(policy)
    assert plain.state_dict().keys() == weights.keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert tied == policy.vlm.model.config.tie_word_embeddings == (policy.vlm.family == "qwen3_vl")
    with torch.no_grad():
        again = policy.vlm.forward_packed(packed, plain)
        with policy.gathered() as whole:
            assert torch.equal(whole.forward_packed(packed), again)


def pack(vlm: VisionLanguageModel, picture: Picture) -> Any:
    return vlm.pack(vlm.encode([picture(64, 48)], ["Where?"]), [[(20, 21, 22), (23,)]])


def test_only_complete_checkpoints_count_and_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100", "building-checkpoint-200"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "activeo3.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()  # a copy that somebody wants to keep
    (tmp_path / "checkpoint-best" / "activeo3.json").write_text("{}")
    (tmp_path / "checkpoint-300").mkdir()  # as an interrupted deletion leaves it
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert checkpoints.complete(tmp_path / "nowhere") == []


def test_another_run_is_not_continued(tmp_path: Path, ranks: Distributed, config: TrainConfig) -> None:
    config = replace(config, output_dir=str(tmp_path))
    assert checkpoints.resumable(config, ranks) is None
    (tmp_path / "checkpoint-3" / "deepspeed").mkdir(parents=True)
    for part in (
        "random-0.pt",
        "model.safetensors",
        *(f"deepspeed/zero_pp_rank_0_mp_rank_00_{kind}_states.pt" for kind in ("model", "optim")),
    ):
        (tmp_path / "checkpoint-3" / part).touch()
    saved = {"step": 3, "world": 1, "config": vars(config)}
    (tmp_path / "checkpoint-3" / "activeo3.json").write_text(json.dumps(saved))

    assert checkpoints.resumable(config, ranks)["step"] == 3
    harmless = replace(config, steps=9, save_every=7, keep=0, samples_every=0, eval_examples=0)
    assert checkpoints.resumable(harmless, ranks)["step"] == 3
    with pytest.raises(ConfigError, match=r"checkpoint-3 was made by 1 process, and there are now 2"):
        checkpoints.resumable(config, replace(ranks, world=2))
    with pytest.raises(ConfigError, match=r"--group was 8 and is now 4; --beta was 0.04 and is now 0.5"):
        checkpoints.resumable(replace(config, beta=0.5, group=4), ranks)
    with pytest.raises(ConfigError, match=r"--epochs was None and is now 1"):  # a run of an older version
        del saved["config"]["epochs"]
        (tmp_path / "checkpoint-3" / "activeo3.json").write_text(json.dumps(saved))
        checkpoints.resumable(config, ranks)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"step": 3,', "is not valid json"),
        ("[]", "holds no json object"),
        ('{"step": "3", "world": 1, "config": {}}', "does not say the 'step'"),
        ('{"step": 3, "world": 1}', "does not say the 'config'"),
        ("caf\xe9", "is not a UTF-8 text file"),
    ],
)
def test_a_checkpoint_that_does_not_say_what_it_is_is_named(
    tmp_path: Path, ranks: Distributed, config: TrainConfig, text: str, message: str
) -> None:
    path = tmp_path / "checkpoint-3" / "activeo3.json"
    path.parent.mkdir()
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=f"^{path}.* {message}") as caught:
        checkpoints.resumable(replace(config, output_dir=str(tmp_path)), ranks)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_as_large_as_announced(
    ranks: Distributed, config: TrainConfig, make_vlm: Make, tmp_path: Path, picture: Picture
) -> None:
    """After an update, when the optimizer has its moments; all that is not weights and states is small."""
    for only in ("", "self_attn"):
        sharded = Zero3Model(make_vlm("qwen2_5_vl"), ranks, replace(config, train_only=only), learns=True)
        sharded.backward(sharded.logits(pack(sharded.vlm, picture)).square().mean())
        sharded.step(1e-3)
        path = checkpoints.save(sharded, replace(config, output_dir=str(tmp_path)), 1)
        parts = [
            file.stat().st_size
            for file in path.rglob("*")
            if file.suffix in (".safetensors", ".pt") and "random" not in file.name
        ]
        assert 0 <= sum(parts) - checkpoint_room.bytes_of(sharded) < 300_000, only  # names and shapes


def test_a_full_disk_is_one_sentence_and_costs_no_checkpoint(
    ranks: Distributed, config: TrainConfig, make_vlm: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded = Zero3Model(make_vlm("qwen3_vl"), ranks, config, learns=True)
    config, needed = replace(config, output_dir=str(tmp_path)), checkpoint_room.bytes_of(sharded)
    checkpoints.save(sharded, config, 3)
    whole = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    save = VisionLanguageModel.save

    def on_a_full_disk(name: str) -> Callable[..., None]:
        """The policy is saved, and what is written next under ``name`` meets a device without room."""

        def saved(self: VisionLanguageModel, folder: Path, weights: None = None) -> None:
            save(self, folder, weights)
            (folder / name).symlink_to("/dev/full")

        return saved

    def assert_said(message: str, step: int) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            checkpoints.save(sharded, config, step)
        assert "\n" not in str(caught.value) and "checkpoint-3 is whole, and the same command goes on from it" in str(
            caught.value
        )
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == whole

    with monkeypatch.context() as patch:
        patch.setattr(VisionLanguageModel, "save", on_a_full_disk("activeo3.json"))  # OSError, "no space left"
        assert_said(
            f"^{tmp_path / 'checkpoint-4'} could not be written: it needs about {needed / 1e9:.3g} GB and .* GB are "
            "free",
            4,
        )
        patch.setattr(
            VisionLanguageModel, "save", on_a_full_disk("training_state/random-0.pt")
        )  # torch raises a RuntimeError about positions
        with pytest.raises(RuntimeError, match="inline_container"):  # there is room: it is about something else
            checkpoints.save(sharded, config, 5)
        patch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        assert_said(f"^{tmp_path / 'checkpoint-5'} could not be written", 5)
        with pytest.raises(ConfigError, match=f"^--output_dir {tmp_path} has no room for 2 checkpoints: it needs"):
            checkpoint_room.check_room(sharded, config, 1)
    checkpoint_room.check_room(sharded, config, 1)
    assert checkpoints.save(sharded, config, 5).name == "checkpoint-5"


def test_a_tied_head_is_saved_once_also_from_a_gpu(
    make_vlm: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies from a GPU share no memory, so transformers cannot see that they are one: here ``cpu`` copies too."""
    vlm = make_vlm("qwen3_vl")
    embedding, head = vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings()
    assert embedding.weight is head.weight
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor.clone())
    vlm.save(tmp_path)
    lora.add(vlm, 2, "q_proj")
    with torch.no_grad():
        weights, _ = lora.merged(vlm.model)
    (tmp_path / "merged").mkdir()
    vlm.save(tmp_path / "merged", weights)
    for folder in (tmp_path, tmp_path / "merged"):
        saved = load_file(folder / "model.safetensors")
        same = [name for name, tensor in saved.items() if tensor.shape == head.weight.shape]
        assert same == ["model.language_model.embed_tokens.weight"] and torch.equal(saved[same[0]], head.weight)


@pytest.mark.parametrize("minutes", [None, 7])
def test_how_long_ranks_wait_for_each_other_is_our_own(
    minutes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour where nothing else is said, and what --group_timeout says."""
    waits = []
    monkeypatch.setattr("deepspeed.init_distributed", lambda *_, timeout, **__: waits.append(timeout))
    engine.start(tmp_path, *([minutes] if minutes else []))
    assert waits == [timedelta(minutes=minutes or 60)]


def test_an_output_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(
            ConfigError, match=f"^--output_dir {folder} is no folder that can be written to: .*[a-z]\\.$"
        ):
            engine.start(folder)


@pytest.mark.parametrize("given, wanted", [
    ({}, "expandable_segments:True"), ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
    ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
])  # fmt: skip
def test_gpu_memory_is_allocated_in_segments_that_grow_unless_the_user_says_how(
    given: dict[str, str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    importlib.reload(activeo3)
    assert os.environ.get("PYTORCH_ALLOC_CONF") == wanted


def test_a_checkpoint_without_its_optimizer_is_a_model_and_no_place_to_go_on_from(
    ranks: Distributed, config: TrainConfig, make_vlm: Make, tmp_path: Path, picture: Picture
) -> None:
    sharded = Zero3Model(make_vlm("qwen3_vl"), ranks, config, learns=True)
    config = replace(config, output_dir=str(tmp_path), save_optimizer=False)
    path = checkpoints.save(sharded, config, 1)
    assert [file.name for file in (path / "training_state").rglob("*") if file.is_file()] == ["random-0.pt"]
    weights = (path / "model.safetensors").stat().st_size
    assert 0 <= weights - checkpoint_room.bytes_of(sharded, optimizer=False) < 100_000
    ours = whole_weights(sharded)
    theirs = VisionLanguageModel.load(str(path), torch.float32).model.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    with pytest.raises(ConfigError, match=f"^{path} was saved without its optimizer .* --model {path}"):
        checkpoints.resumable(config, ranks)


@pytest.mark.parametrize("steps, first, keep, there, count", [
    (100, 1, 2, 0, 3), (100, 1, 0, 0, 10), (100, 51, 0, 5, 5), (100, 51, 2, 2, 1), (15, 1, 2, 0, 2), (101, 101, 1, 1, 1),
])  # fmt: skip
def test_room_is_for_all_checkpoints_that_lie_there_at_once(
    steps: int, first: int, keep: int, there: int, count: int
) -> None:
    """Against a run that writes a checkpoint and then removes the oldest."""
    config = TrainConfig(steps=steps, save_every=10, keep=keep)
    most, now = 0, there
    for step in range(first, steps + 1):
        if step % 10 == 0 or step == steps:
            now += 1
            most = max(most, now)
            now = min(now, keep) if keep else now
    assert checkpoint_room.at_once(config, first, there) == count == most - there
