"""memory.py: sizes against transformers, kept activations against torch's own count, floors by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig

from activeo3 import attention, memory
from activeo3.config import ConfigError, TrainConfig
from activeo3.families import FAMILIES
from activeo3.memory import KNOWN, Sizes, Work
from activeo3.model import VisionLanguageModel
from activeo3.packing import Prompt

sys.path.insert(0, str(Path(__file__).parent / "bench"))  # scripts beside the tests

import floor  # noqa: E402

PAPER = TrainConfig.from_args(["--preset", "paper", "--data", "scenes", "--recompute", "false"])
# What is published of the 7B: its config.json.
SEVEN = dict(
    hidden_size=3584, num_hidden_layers=28, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064,
)  # fmt: skip
SEVEN_VISION = dict(
    depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584, patch_size=14,
    window_size=112, fullatt_block_indexes=[7, 15, 23, 31], spatial_merge_size=2,
)  # fmt: skip


def counted(config: Any) -> int:
    """Parameters of a model that is built without memory."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_7b_has_the_parameters_that_transformers_builds() -> None:
    config = Qwen2_5_VLConfig(text_config=SEVEN, vision_config=SEVEN_VISION, tie_word_embeddings=False)
    assert KNOWN["7B"].parameters == pytest.approx(counted(config), rel=1e-3)
    assert Sizes.of(config.to_dict()) == KNOWN["7B"]


def test_qwen2_vl_has_the_parameters_that_transformers_builds() -> None:
    """With the numbers of the 2B's config.json, whose vision tower names its widths differently."""
    text = dict(
        hidden_size=1536,
        num_hidden_layers=28,
        intermediate_size=8960,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
    )
    vision = dict(
        depth=32, embed_dim=1280, hidden_size=1536, mlp_ratio=4, num_heads=16, patch_size=14, spatial_merge_size=2
    )
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    sizes = Sizes.of(config.to_dict())
    assert (sizes.vision_hidden, sizes.vision_mlp) == (1280, 5120) and sizes.tied
    assert sizes.parameters == pytest.approx(counted(config), rel=2e-3)


def test_the_shipped_policy_has_the_parameters_of_its_file() -> None:
    sizes = memory.sizes_of("data/tiny")
    assert sizes.family == "qwen3_vl"
    assert sizes.parameters == pytest.approx(counted(AutoConfig.from_pretrained("data/tiny")), rel=5e-3)


def kept(vlm: VisionLanguageModel, prompts: list, answers: int) -> int:
    """Bytes that a packed forward pass keeps for its backward pass, weights apart."""
    packed = vlm.pack(prompts, [[[100] * answers]])
    own = {parameter.untyped_storage().data_ptr() for parameter in vlm.model.parameters()}
    storages: dict[int, tuple[int, torch.Tensor]] = {}  # with the tensors, so that no address is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        vlm.forward_packed(packed)
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.saved])
def test_a_layer_keeps_what_torch_counts(
    family: str, make_vlm: Callable[..., VisionLanguageModel], picture: Callable
) -> None:
    """Longer answers and larger pictures, so that what is kept once for all layers drops out."""
    vlm = make_vlm(family)
    vlm.model.to(torch.bfloat16)
    sizes = Sizes.of(vlm.model.config.to_dict())
    short, long = (kept(vlm, vlm.encode([picture(64, 64)], ["Find every disc."]), answers) for answers in (100, 200))
    work = Work.of(sizes, replace(PAPER, sensing_side=1, crop_side=1))
    by_layers = memory.activations(sizes, work.patches, 200, False) - memory.activations(
        sizes, work.patches, 100, False
    )
    # Embeddings, the head and the mask are no layers: with the few layers of this model they are up to a quarter.
    assert 1.0 <= (long - short) / by_layers < 1.45


def test_memory_at_rest_is_16_bytes_a_parameter_and_2_for_the_reference() -> None:
    needed = memory.memory(KNOWN["7B"], PAPER, gpus=1)
    assert needed["policy"] + needed["reference"] == pytest.approx(149.2, abs=0.1)
    assert memory.memory(KNOWN["7B"], PAPER, gpus=8)["policy"] == pytest.approx(needed["policy"] / 8)


def test_adapters_learn_what_peft_would_add(make_vlm: Callable[..., VisionLanguageModel]) -> None:
    pytest.importorskip("peft")
    from activeo3 import lora

    vlm = make_vlm("qwen3_vl")
    lora.add(vlm, 3, "")
    added = sum(parameter.numel() for name, parameter in vlm.model.named_parameters() if lora.NAMES in name)
    assert memory.trained(Sizes.of(vlm.model.config.to_dict()), replace(PAPER, lora=3)) == added
    assert memory.memory(KNOWN["7B"], replace(PAPER, lora=16), 1)["reference"] == 0


def test_the_sum_is_the_larger_of_acting_and_learning() -> None:
    needed = memory.memory(KNOWN["3B"], PAPER, gpus=4)
    policy, reference, whole, cache, activations, mask, logits, most = needed.values()
    assert most == pytest.approx(policy + reference + max(whole + cache, activations + mask + logits))


def test_another_task_model_needs_room_of_its_own(make_vlm: Callable[..., VisionLanguageModel], tmp_path: Path) -> None:
    make_vlm("qwen2_5_vl").model.config.save_pretrained(tmp_path)
    small = Sizes.of(json.loads((tmp_path / "config.json").read_text()))
    config = replace(PAPER, task_checkpoint=str(tmp_path))
    for gpus in (1, 4):
        one, other = memory.memory(KNOWN["3B"], PAPER, gpus), memory.memory(KNOWN["3B"], config, gpus)
        assert other["reference"] - one["reference"] == pytest.approx(2 * small.parameters / gpus / 1e9)
        whole = other["gathered models"] - one["gathered models"]
        assert whole == pytest.approx(2 * small.parameters / 1e9 if gpus > 1 else 0)


def test_the_mask_is_the_one_that_a_packed_row_has(make_vlm: Callable[..., VisionLanguageModel]) -> None:
    """A prompt in two calls, and a short one under a mask of its own."""
    assert memory.SHORT == attention.SHORT
    for tokens in (memory.SHORT - 1, memory.SHORT + 50):
        vlm = make_vlm("qwen3_vl")
        vlm.model.set_attn_implementation({"text_config": attention.TWO_CALLS})
        prompt = Prompt(torch.full((tokens,), 20), torch.zeros(0, 4), torch.zeros((0, 3), dtype=torch.long))
        mask = vlm.pack([prompt], [[(21,) * 30] * 4]).inputs["attention_mask"]
        queries = 4 * 30 + (1 if tokens >= memory.SHORT else tokens)
        assert mask.shape == (1, 1, queries, tokens + 4 * 30)
    config = replace(PAPER, task="zoom_qa", recompute=True)
    work = Work.of(KNOWN["7B"], config)
    behind = 8 * (work.answer + work.shown)
    held = memory.memory(KNOWN["7B"], config, 8)["mask"]
    assert held * 1e9 == 2 * (behind + 1) * (work.prompt + behind) and held > 3.9  # rows of 45,000 columns
    assert memory.memory(KNOWN["7B"], replace(config, attention="flex"), 8)["mask"] == 0


def test_what_other_ways_of_scoring_hold() -> None:
    """Rows read the prompt, and a tower that learns sees its picture, once for every answer; a cache is repeated for
    each."""
    whole = replace(PAPER, train_only="")
    work, sizes, G = Work.of(KNOWN["7B"], whole), KNOWN["7B"], whole.group

    def held(scoring: str) -> tuple[float, float]:
        found = memory.memory(sizes, replace(whole, scoring=scoring), 8)
        return found["activations"] * memory.GB / whole.micro_prompts, found["mask"]

    packed, mask = held("packed")
    assert (packed, mask) == held("auto") and mask > 0
    assert held("cached") == (pytest.approx(packed + G * work.prompt * sizes.cache), 0)
    rows = memory.activations(sizes, G * work.patches, G * (work.prompt + work.answer), False)
    assert held("rows") == (pytest.approx(rows), 0)
    update = [
        floor.seconds(sizes, replace(whole, scoring=way), 1e15, 5e12)["update"] for way in ("packed", "cached", "rows")
    ]
    assert update[0] == update[1] < update[2] / 3


def test_how_many_models_are_whole() -> None:
    def whole(gpus: int, **flags) -> float:
        return memory.memory(KNOWN["7B"], replace(PAPER, **flags), gpus)["gathered models"]

    weights = 2 * KNOWN["7B"].parameters / 1e9
    assert (whole(1), whole(8), whole(8, lora=8), whole(8, eval_examples=0)) == pytest.approx(
        (0, 2 * weights, weights, weights)
    )


def test_recomputing_keeps_less_and_takes_longer() -> None:
    sparing = replace(PAPER, recompute=True)
    kept_whole, kept_little = (memory.memory(KNOWN["7B"], config, 8)["activations"] for config in (PAPER, sparing))
    assert kept_little < kept_whole / 5
    slower, faster = (floor.seconds(KNOWN["7B"], config, 1e15, 5e12)["update"] for config in (sparing, PAPER))
    assert 1.2 < slower / faster < 1.4


def test_the_time_of_a_small_step_by_hand() -> None:
    """One prompt, one picture of 1300 visual tokens, eight answers of 100 tokens, on paper."""
    sizes, peak = KNOWN["7B"], 989e12
    row = 0.0
    for tokens, before, scored in [(1400, 0, 1)] + [(100, 1400, 100)] * 8:
        pairs = sum(before + k for k in range(1, tokens + 1))
        row += 2 * 6.525e9 * tokens + 2 * 0.545e9 * scored + 4 * pairs * 28 * 128 * 28
    ours = floor.text_flops(sizes, 1400, 0, 1) + 8 * floor.text_flops(sizes, 100, 1400, 100)
    assert ours == pytest.approx(row, rel=1e-3)
    view = 2 * 0.630e9 * 5200 + 2 * 0.0446e9 * 1300 + 4 * 1280 * (4 * 5200**2 + 28 * 5200 * 64)
    assert floor.vision_flops(sizes, 5200) == pytest.approx(view, rel=1e-3)
    assert 4 * (ours + view) / peak == pytest.approx(0.153, abs=0.002)  # a forward pass over four such prompts


def test_an_episode_is_counted_with_what_it_is_shown_and_nobody_acts() -> None:
    """Two crops more are, in each of eight episodes, two crops more of patches and of tokens."""
    sizes, peak, bandwidth = KNOWN["3B"], 989e12, 4.8e12
    one, three = (replace(PAPER, task="zoom_qa", max_turns=4, max_zooms=zooms) for zooms in (1, 3))
    first, last = Work.of(sizes, one), Work.of(sizes, three)
    assert (last.shown - first.shown, last.shown_patches - first.shown_patches) == (2 * 960, 2 * 60 * 60)
    grown = memory.memory(sizes, three, 8)["activations"] - memory.memory(sizes, one, 8)["activations"]
    row = PAPER.group * (last.shown - first.shown)
    assert grown * 1e9 == pytest.approx(memory.activations(sizes, PAPER.group * 7200, row, False))
    slow, fast = (floor.seconds(sizes, config, peak, bandwidth) for config in (three, one))
    assert (
        slow["task model"] == 0
        and slow["reference"] - fast["reference"] > 8 * 2 * floor.vision_flops(sizes, 3600) / peak
    )
    assert floor.seconds(sizes, replace(PAPER, task="grounding"), peak, bandwidth)["task model"] == 0


def test_decoding_is_bound_by_reading_the_weights() -> None:
    sizes = KNOWN["7B"]
    assert floor.decoding(sizes, 1, 0, 100, 989e12, 4.8e12) == pytest.approx(100 * 14.14e9 / 4.8e12, rel=2e-3)


def test_the_floor_counts_what_ranks_send_each_other_and_what_the_optimizer_moves() -> None:
    """By hand, for the 7B on 8 GPUs: 7/8 of 16.6 GB in 32 ms, twice; the optimizer's 30 bytes a weight, an eighth each;
    and a link so slow that reference and update wait for it."""
    sizes, peak, bandwidth = KNOWN["7B"], 989e12, 4.8e12
    alone = floor.seconds(sizes, PAPER, peak, bandwidth)
    eight = floor.seconds(sizes, PAPER, peak, bandwidth, floor.Ranks(8, 450e9))
    for phase in ("rollout", "task model"):
        assert eight[phase] - alone[phase] == pytest.approx(0.0322, rel=2e-2)
    assert alone["optimizer"] == pytest.approx(30 * 8.29e9 / 4.8e12, rel=2e-3)
    assert alone["optimizer"] == pytest.approx(8 * eight["optimizer"])
    assert all(eight[phase] == alone[phase] for phase in ("reference", "update"))
    slow = floor.seconds(sizes, PAPER, peak, bandwidth, floor.Ranks(8, 1e9))
    micro = PAPER.prompts // PAPER.micro_prompts
    assert slow["reference"] == pytest.approx(micro * 14.5, rel=1e-2)
    assert slow["update"] == pytest.approx(3 * slow["reference"])


def test_what_would_help_is_enough() -> None:
    sizes, config, room = KNOWN["3B"], replace(PAPER, prompts=4, micro_prompts=4), 80.0
    assert memory.memory(sizes, config, 4)["sum"] > room
    flags = memory.remedies(sizes, config, 4, room)[0].split()
    helped = TrainConfig.from_args(["--preset", "paper", "--data", "scenes", "--prompts", "4", *flags])
    assert memory.memory(sizes, helped, 4)["sum"] <= room


def test_a_model_that_fits_nowhere_is_said_so() -> None:
    (sentence,) = memory.remedies(KNOWN["72B"], PAPER, 8, 80.0)
    assert "GPUs with more memory" in sentence


def test_the_commands_print_memory_and_time(capsys: pytest.CaptureFixture) -> None:
    memory.main(["--model", "Qwen/Qwen2.5-VL-7B-Instruct", "--gpus", "8x80", "--group", "16"])
    printed = capsys.readouterr().out
    assert "8.29 billion parameters on 8 x 80 GB; 1 prompts x 16 answers" in printed
    assert "activations" in printed and "It fits: 57 of 80 GB." in printed
    floor.main(["--model", "7B", "--group", "16"])
    assert "update" in capsys.readouterr().out


def test_a_training_run_is_told_what_it_needs_before_it_loads() -> None:
    assert memory.forecast(replace(PAPER, model="Qwen/Qwen2.5-VL-7B-Instruct"), 1, 141.0).startswith(
        "activeo3: memory per GPU. It does not fit: "
    )
    assert memory.forecast(replace(PAPER, model="Qwen/Qwen2.5-VL-3B-Instruct"), 8, 80.0).startswith(
        "activeo3: memory per GPU. It fits"
    )
    assert memory.forecast(replace(PAPER, model="somebody/else"), 1, 141.0) == ""
    assert memory.forecast(PAPER, 1, 0.0) == ""  # on a CPU


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--model", "9B"], "--model 9B is neither a folder nor one of: 3B, 7B, 32B, 72B."),
        (["--gpus", "eight"], "--gpus is 'eight'"),
    ],
)
def test_a_flag_that_cannot_be_used_is_one_sentence(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        memory.main(argv)


def test_a_folder_with_another_or_a_half_config_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="is a bert model"):
        memory.sizes_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl", "vision_config": {"depth": 2}}')
    with pytest.raises(ConfigError, match="has no 'hidden_size'"):
        memory.sizes_of(str(tmp_path))
