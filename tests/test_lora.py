"""lora.py: on is the policy, off is the start policy, merged is a plain model; and whole runs with them."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator

import pytest
import torch
from launch import finely_sharded, rank_environment
from PIL import Image
from small_runs import prepare, rows_of

from activeo3 import checkpoints, engine, lora
from activeo3.config import ConfigError, TrainConfig
from activeo3.eval_setup import compared, loader
from activeo3.model import ModelError, VisionLanguageModel

pytest.importorskip("peft")
from scripted import USUAL  # noqa: E402

import train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
Make = Callable[..., VisionLanguageModel]


def logits(vlm: VisionLanguageModel, picture: Callable[..., Image.Image]) -> torch.Tensor:
    prompts = vlm.encode([picture(64, 64)], ["Find every disc."])
    with torch.no_grad():
        return vlm.forward_packed(vlm.pack(prompts, [[[100, 101, 102], [103]]]))


@pytest.fixture(params=USUAL)
def adapted(request: pytest.FixtureRequest, make_vlm: Make) -> VisionLanguageModel:
    """A model whose adapters have learned something."""
    vlm = make_vlm(request.param)
    lora.add(vlm, 3, "self_attn|mlp")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return vlm


def test_new_adapters_change_nothing(make_vlm: Make, picture: Callable[..., Image.Image]) -> None:
    vlm = make_vlm("qwen3_vl")
    before = logits(vlm, picture)
    lora.add(vlm, 4, "")
    assert torch.equal(logits(vlm, picture), before)
    named = {name for name, _ in vlm.model.named_parameters() if lora.NAMES in name}
    assert named and all("language_model" in name for name in named)


def test_off_is_the_start_policy_and_on_is_not(
    adapted: VisionLanguageModel, make_vlm: Make, picture: Callable[..., Image.Image]
) -> None:
    start = logits(make_vlm(adapted.family), picture)
    assert (logits(adapted, picture) - start).abs().max() > 0.01
    assert torch.equal(logits(engine.Unadapted(adapted), picture), start)
    assert (logits(adapted, picture) - start).abs().max() > 0.01  # on again


def test_merged_is_a_plain_model_that_says_the_same(
    adapted: VisionLanguageModel, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    expected = logits(adapted, picture)
    weights, share = lora.merged(adapted.model)
    assert share == pytest.approx(1.0, abs=1e-4)
    adapted.save(tmp_path, weights)
    plain = VisionLanguageModel.load(str(tmp_path), torch.float32)
    assert not any(lora.NAMES in name or "base_layer" in name for name, _ in plain.model.named_parameters())
    torch.testing.assert_close(logits(plain, picture), expected, rtol=1e-4, atol=1e-4)


def test_merging_without_adapters_is_the_state_dict(make_vlm: Make) -> None:
    model = make_vlm("qwen2_5_vl").model
    (merged, share), plain = lora.merged(model), model.state_dict()
    assert (
        share == 1 and merged.keys() == plain.keys() and all(torch.equal(merged[name], plain[name]) for name in plain)
    )


def test_how_much_of_a_correction_bfloat16_holds(make_vlm: Make) -> None:
    """Half a step of a weight near 1 is 0.002: what is far below is gone, what is far above stays."""
    for size, least, most in ((1e-4, 0.0, 0.01), (0.5, 0.98, 1.02)):
        vlm = make_vlm("qwen3_vl")
        for name, parameter in vlm.model.named_parameters():
            parameter.data.fill_(1.0)
        lora.add(vlm, 1, "q_proj")
        for name, parameter in vlm.model.named_parameters():
            if lora.NAMES in name:
                parameter.data.fill_((size / lora.SCALE) ** 0.5)
        vlm.model.to(torch.bfloat16)
        weights, share = lora.merged(vlm.model)
        assert least <= share <= most
        changed = {name for name, tensor in weights.items() if not torch.equal(tensor, torch.ones_like(tensor))}
        assert bool(changed) == (size > 0.1) and all("q_proj" in name for name in changed)


def test_adapters_are_saved_as_peft_loads_them(
    adapted: VisionLanguageModel, tmp_path: Path, make_vlm: Make, picture: Callable
) -> None:
    from peft import PeftModel

    lora.save(adapted.model, "start", tmp_path)
    again = make_vlm(adapted.family)
    assert (logits(again, picture) - logits(adapted, picture)).abs().max() > 0.01
    PeftModel.from_pretrained(again.model, str(tmp_path))  # it puts them into the model that it is given
    assert torch.equal(logits(again, picture), logits(adapted, picture))


# ---------------------------------------------------------------------- a folder that holds an adapter only


@pytest.fixture
def base(make_vlm: Make, tmp_path: Path) -> Path:
    """The folder of a base model."""
    make_vlm("qwen2_5_vl").save(tmp_path / "models/base")
    return tmp_path / "models/base"


def by_peft(make_vlm: Make, folder: Path, named: str, **wanted: object) -> VisionLanguageModel:
    """peft's own folder of an adapter that has learned something, and the model with it, as peft runs it."""
    from peft import LoraConfig, get_peft_model

    vlm = make_vlm("qwen2_5_vl")
    vlm.model.name_or_path = named
    adapted = get_peft_model(vlm.model, LoraConfig(**({"r": 3, "target_modules": ["q_proj", "v_proj"]} | wanted)))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    return vlm


def test_a_folder_with_an_adapter_only_is_its_base_model_with_the_adapter_merged(
    make_vlm: Make, base: Path, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    expected = logits(by_peft(make_vlm, tmp_path / "adapter", str(base)), picture)
    loaded = VisionLanguageModel.load(str(tmp_path / "adapter"), torch.float32)
    torch.testing.assert_close(logits(loaded, picture), expected, rtol=1e-4, atol=1e-4)
    assert (logits(make_vlm("qwen2_5_vl"), picture) - expected).abs().max() > 0.01
    assert not any(lora.NAMES in name for name, _ in loaded.model.named_parameters())
    loaded.save(tmp_path / "saved")
    assert torch.equal(
        logits(VisionLanguageModel.load(str(tmp_path / "saved"), torch.float32), picture), logits(loaded, picture)
    )


def test_an_adapter_that_was_trained_with_transformers_4_is_merged(
    make_vlm: Make, base: Path, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    """There a text tower's matrices are called model.layers, and those of the vision tower visual."""
    from safetensors.torch import load_file, save_file

    everywhere = ["q_proj", "v_proj", "qkv"]
    expected = logits(by_peft(make_vlm, tmp_path / "adapter", str(base), target_modules=everywhere), picture)
    file = tmp_path / "adapter/adapter_model.safetensors"
    old = {name.replace("model.language_model.", "model.").replace("model.model.visual.", "model.visual."): tensor
           for name, tensor in load_file(file).items()}  # fmt: skip
    assert {name.split(".")[2] for name in old} == {"model", "visual"} and not any(
        "language_model" in name for name in old
    )
    save_file(old, file)
    loaded = VisionLanguageModel.load(str(tmp_path / "adapter"), torch.float32)
    torch.testing.assert_close(logits(loaded, picture), expected, rtol=1e-4, atol=1e-4)


def test_where_the_base_model_of_an_adapter_is_looked_for(make_vlm: Make, base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "runs/a/adapter"
    by_peft(make_vlm, adapter, str(base))
    assert lora.base_of(str(adapter)) == lora.base_of(str(adapter), "elsewhere") == str(base)
    assert lora.base_of(str(base)) == lora.base_of("Qwen/Qwen2.5-VL-7B-Instruct") == ""
    settings = json.loads((adapter / "adapter_config.json").read_text())

    def names(text: str | None) -> None:
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": text}))

    names("models/base")  # as seen from where the run was started
    assert lora.base_of(str(adapter)) == str(base)
    names("Qwen/Qwen2.5-VL-7B-Instruct")
    assert lora.base_of(str(adapter)) == "Qwen/Qwen2.5-VL-7B-Instruct" and lora.base_of(str(adapter), str(base)) == str(
        base
    )
    unfound = (
        ("/of/another/machine", "of /of/another/machine, which is not there"),
        (None, "that does not name its base model"),
    )
    for gone, reason in unfound:
        names(gone)
        assert lora.base_of(str(adapter), str(base)) == str(base)
        with pytest.raises(ModelError, match=f"is an adapter {reason}; write its folder into"):
            lora.base_of(str(adapter), str(adapter))
    assert compared([str(adapter)], str(base))[1] == str(base)


def test_an_evaluation_puts_an_adapter_on_the_start_policy_that_is_named(
    make_vlm: Make, base: Path, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    expected = logits(by_peft(make_vlm, tmp_path / "adapter", "/of/another/machine"), picture)
    load = loader(str(base), "", "sdpa", torch.float32, torch.device("cpu"))
    start, policy = load(str(base)), load(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(policy, picture), expected, rtol=1e-4, atol=1e-4)
    assert (logits(start, picture) - expected).abs().max() > 0.01


def test_an_adapter_that_does_not_fit_is_one_sentence(
    make_vlm: Make, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_peft(make_vlm, tmp_path / "deep", str(base))
    weights = tmp_path / "deep/adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name.replace("layers.2", "layers.7"): tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ModelError, match="deep is an adapter of another model: .*layers.7"):
        VisionLanguageModel.load(str(tmp_path / "deep"), torch.float32)
    weights.unlink()
    with pytest.raises(ModelError, match="deep has no adapter weights that can be used"):
        VisionLanguageModel.load(str(tmp_path / "deep"), torch.float32)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING", "base_model_name_or_path": str(base),
                                                                      "task_type": "CAUSAL_LM", "num_virtual_tokens": 3}))  # fmt: skip
    with pytest.raises(
        ModelError, match="strange is an adapter of the kind PROMPT_TUNING; those that can be merged are LORA, "
    ):
        VisionLanguageModel.load(str(tmp_path / "strange"), torch.float32)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="is an adapter, which needs peft"):
        VisionLanguageModel.load(str(tmp_path / "deep"), torch.float32)


def test_nothing_to_adapt_is_one_sentence(make_vlm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--train_only visual matches no matrix"):
        lora.add(make_vlm("qwen3_vl"), 4, "visual")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="--lora needs peft"):
        lora.add(make_vlm("qwen3_vl"), 4, "")


@pytest.fixture
def config(make_vlm: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainConfig]:
    """A run of four steps with adapters, on this process alone."""
    for name, value in rank_environment(0, 1).items():
        monkeypatch.setenv(name, value)
    prepare(monkeypatch)
    make_vlm("qwen3_vl").save(tmp_path / "start")
    yield TrainConfig(
        model=str(tmp_path / "start"), ds_config=finely_sharded(tmp_path), steps=4, save_every=2, prompts=2, micro_prompts=1,
        group=2, max_new_tokens=12, task_max_new_tokens=8, lora=2, train_only="", lr=0.01, warmup=0, samples_every=0,
        eval_examples=2, output_dir=str(tmp_path / "run"),
    )  # fmt: skip


def test_a_run_with_adapters_can_be_cut_off_and_leaves_a_plain_model(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "KEPT", 1.5)  # float32 loses nothing that would be worth a word
        train.main(config)
    assert capsys.readouterr().out.count("its weights hold 100% of what the adapters have learned") == 2  # checkpoints
    rows = rows_of(tmp_path / "run")
    assert rows[0]["kl"] == 0 and rows[-1]["kl"] > 0  # the reference is the policy without its adapters
    cut = replace(config, steps=2, output_dir=str(tmp_path / "cut"))
    train.main(cut)
    train.main(replace(cut, steps=4))
    assert rows_of(tmp_path / "cut") == rows
    weights = [VisionLanguageModel.load(str(tmp_path / folder), torch.float32).model.state_dict()
               for folder in ("start", "run/checkpoint-4", "cut/checkpoint-4")]  # fmt: skip
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    moved = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert moved and all("language_model" in name and "norm" not in name for name in moved)
    alone = VisionLanguageModel.load(
        str(tmp_path / "run/checkpoint-4/adapters"), torch.float32
    )  # float32 holds all of a correction
    assert (
        all(torch.equal(tensor, weights[1][name]) for name, tensor in alone.model.state_dict().items())
        and alone.trained_here
    )
    assert compared([str(tmp_path / "run/checkpoint-4/adapters")])[1] == str(tmp_path / "start")


def test_a_block_inside_a_gathered_block_changes_nothing(
    config: TrainConfig, tmp_path: Path, picture: Callable
) -> None:
    ranks = engine.start(tmp_path / "run")
    policy = checkpoints.load_policy(ranks, config)
    start = engine.WithoutAdapters(policy)
    with policy.gathered() as vlm, start.gathered() as task_model:
        assert torch.equal(logits(vlm, picture), logits(task_model, picture))  # nothing learned yet
    packed = policy.vlm.pack(policy.vlm.encode([picture(64, 64)], ["Where?"]), [[[100, 101]]])
    with torch.no_grad():
        assert torch.equal(policy.logits(packed), start.logits(packed))
