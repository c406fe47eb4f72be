"""adapters.py: on is the policy, off is the start policy, merged is a plain model; and whole runs with them."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator

import pytest
import torch
from PIL import Image
from test_engine import finely_sharded, rank_environment
from test_train import prepare, rows_of

from activeo3 import adapters, checkpoints, engine
from activeo3.config import ConfigError, TrainConfig
from activeo3.models import VisionLanguageModel

pytest.importorskip("peft")
import train  # noqa: E402
from scripted import USUAL  # noqa: E402

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
    adapters.add(vlm, 3, "self_attn|mlp")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return vlm


def test_new_adapters_change_nothing(make_vlm: Make, picture: Callable[..., Image.Image]) -> None:
    vlm = make_vlm("qwen3_vl")
    before = logits(vlm, picture)
    adapters.add(vlm, 4, "")
    assert torch.equal(logits(vlm, picture), before)
    named = {name for name, _ in vlm.model.named_parameters() if adapters.NAMES in name}
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
    weights, share = adapters.merged(adapted.model)
    assert share == pytest.approx(1.0, abs=1e-4)
    adapted.save(tmp_path, weights)
    plain = VisionLanguageModel.load(str(tmp_path), torch.float32)
    assert not any(adapters.NAMES in name or "base_layer" in name for name, _ in plain.model.named_parameters())
    torch.testing.assert_close(logits(plain, picture), expected, rtol=1e-4, atol=1e-4)


def test_merging_without_adapters_is_the_state_dict(make_vlm: Make) -> None:
    model = make_vlm("qwen2_5_vl").model
    (merged, share), plain = adapters.merged(model), model.state_dict()
    assert share == 1 and merged.keys() == plain.keys() and all(torch.equal(merged[name], plain[name]) for name in plain)


def test_how_much_of_a_correction_bfloat16_holds(make_vlm: Make) -> None:
    """Half a step of a weight near 1 is 0.002: what is far below is gone, what is far above stays."""
    for size, least, most in ((1e-4, 0.0, 0.01), (0.5, 0.98, 1.02)):
        vlm = make_vlm("qwen3_vl")
        for name, parameter in vlm.model.named_parameters():
            parameter.data.fill_(1.0)
        adapters.add(vlm, 1, "q_proj")
        for name, parameter in vlm.model.named_parameters():
            if adapters.NAMES in name:
                parameter.data.fill_((size / adapters.SCALE) ** 0.5)
        vlm.model.to(torch.bfloat16)
        weights, share = adapters.merged(vlm.model)
        assert least <= share <= most
        changed = {name for name, tensor in weights.items() if not torch.equal(tensor, torch.ones_like(tensor))}
        assert bool(changed) == (size > 0.1) and all("q_proj" in name for name in changed)


def test_adapters_are_saved_as_peft_loads_them(adapted: VisionLanguageModel, tmp_path: Path, make_vlm: Make, picture: Callable) -> None:
    from peft import PeftModel

    adapters.save(adapted.model, "start", tmp_path)
    again = make_vlm(adapted.family)
    assert (logits(again, picture) - logits(adapted, picture)).abs().max() > 0.01
    PeftModel.from_pretrained(again.model, str(tmp_path))  # it puts them into the model that it is given
    assert torch.equal(logits(again, picture), logits(adapted, picture))


def test_nothing_to_adapt_is_one_sentence(make_vlm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--train_only visual matches no matrix"):
        adapters.add(make_vlm("qwen3_vl"), 4, "visual")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="--lora needs peft"):
        adapters.add(make_vlm("qwen3_vl"), 4, "")


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
    assert (tmp_path / "run/checkpoint-4/adapters/adapter_model.bin").exists()


def test_a_block_inside_a_gathered_block_changes_nothing(config: TrainConfig, tmp_path: Path, picture: Callable) -> None:
    ranks = engine.start(tmp_path / "run")
    policy = train.start_policy(ranks, config, learns=True)
    start = engine.WithoutAdapters(policy)
    with policy.gathered() as actor, start.gathered() as expert:
        assert torch.equal(logits(actor, picture), logits(expert, picture))  # nothing learned yet
    packed = policy.vlm.pack(policy.vlm.encode([picture(64, 64)], ["Where?"]), [[[100, 101]]])
    with torch.no_grad():
        assert torch.equal(policy.logits(packed), start.logits(packed))
