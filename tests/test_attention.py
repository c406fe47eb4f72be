"""attention.py: two calls are one call under the whole mask, FlexAttention is sdpa, and a mask that says too little is
refused.

That both are what separate rows compute is tested where packed rows are: the tests that use ``calls``.
"""

from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator, Sequence

import pytest
import torch
from PIL import Image
from scripted import painted
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from activeo3 import attention
from activeo3.attention import FLEX, TOGETHER, TWO_CALLS, described, in_two_calls, mask_for, of_towers, packed_mask
from activeo3.grpo import answer_logps
from activeo3.model import ModelError, VisionLanguageModel
from activeo3.packing import Branch, Prompt, mask_mod, padded
from activeo3.types import Sampling

Picture = Callable[..., Image.Image]
BRANCHES = [[[40, 41, 42, 43], [50, 51], [52]], [[60], [61, 62], [70, 71, 72, 73, 74]]]


def prompts_of(vlm: VisionLanguageModel, picture: Picture, texts: Sequence[str]) -> list[Prompt]:
    return vlm.encode([picture(32, 48, 1), picture(64, 32, 2)], texts)


def with_gradients(
    vlm: VisionLanguageModel, prompts: list[Prompt], attend: str
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Log-probabilities of BRANCHES, the gradients of their weighted sum, and the mask that was given."""
    vlm.model.set_attn_implementation({"text_config": attend})
    packed = vlm.pack(prompts, BRANCHES)
    logps, _ = answer_logps(
        vlm.forward_packed(packed), packed.tokens, packed.columns, 1.0, vlm.suppressed_ids, packed.logit_columns
    )
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1))
    (weights * logps)[packed.completion_mask].sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in vlm.model.named_parameters()}
    vlm.model.zero_grad()
    vlm.model.set_attn_implementation({"text_config": "sdpa"})
    return logps.detach()[packed.completion_mask], gradients, packed.inputs["attention_mask"]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "texts", [("as long", "the same"), ("a", "much longer than the first")], ids=["even", "padded"]
)
def test_two_calls_are_one_call_under_the_whole_mask(
    texts: Sequence[str], recompute: bool, vlm: VisionLanguageModel, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(vlm, picture, texts)
    longest = max(len(prompt.ids) for prompt in prompts)
    expected, gradients, whole = with_gradients(vlm, prompts, "sdpa")
    monkeypatch.setattr(attention, "SHORT", longest + 1)
    same, _, mask = with_gradients(vlm, prompts, TWO_CALLS)
    assert torch.equal(same, expected) and torch.equal(mask, whole)  # a short prefix stays as it was, bit for bit

    monkeypatch.setattr(attention, "SHORT", longest)
    if recompute:
        vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
        vlm.model.train()
    found, ours, mask = with_gradients(vlm, prompts, TWO_CALLS)
    vlm.model.gradient_checkpointing_disable()
    vlm.model.eval()
    lines = whole.shape[2] - longest + 1
    assert mask.shape == (2, 1, lines, whole.shape[2])  # those that predict: the prompt's last and the branches'
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((ours[name] - gradient).abs().max()) <= 1e-5 * scale, name


def test_padding_stands_where_no_mask_is_needed() -> None:
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([1, 2, 3, 4])]
    ids, attended = padded(rows, 0, torch.device("cpu"))
    assert ids.tolist() == [[0, 5, 6, 7], [0, 0, 0, 8], [1, 2, 3, 4]]
    assert attended.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
    ids, attended = padded(rows, 0, torch.device("cpu"), before_last=True)
    assert ids.tolist() == [[5, 6, 0, 7], [0, 0, 0, 8], [1, 2, 3, 4]]
    assert attended.tolist() == [[1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]]


def test_a_mask_that_does_not_say_what_a_query_may_see_is_refused(vlm: VisionLanguageModel) -> None:
    layer = vlm.model.model.language_model.layers[0].self_attn
    heads = lambda count, length: torch.randn(1, count, length, layer.head_dim)  # noqa: E731
    query, keys = heads(4, 6), heads(2, 6)
    for lines, columns in ((7, 6), (3, 9)):  # more lines than queries; fewer, with a cache
        held = torch.cat([keys, heads(2, columns - 6)], dim=2)
        with pytest.raises(
            ValueError, match=f"a mask of {lines} lines does not say what 6 queries may see of {columns} keys"
        ):
            in_two_calls(layer, query, held, held, torch.ones(1, 1, lines, columns, dtype=torch.bool), scaling=1.0)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    whole, _ = in_two_calls(layer, query, keys, keys, causal, scaling=1.0)
    for free in range(6):
        split, _ = in_two_calls(layer, query, keys, keys, causal[:, :, free:], scaling=1.0)
        torch.testing.assert_close(split, whole)


@pytest.fixture
def flexible(vlm: VisionLanguageModel) -> Iterator[VisionLanguageModel]:
    """FlexAttention without its compiler: on a CPU it can be read forwards only."""
    vlm.model.set_attn_implementation({"text_config": FLEX})
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        yield vlm
    vlm.model.set_attn_implementation({"text_config": "sdpa"})


def logps_of(
    vlm: VisionLanguageModel, prompts: list[Prompt], branches: Sequence[Sequence[Branch | list[int]]]
) -> Tensor:
    packed = vlm.pack(prompts, branches)
    logps, _ = answer_logps(
        vlm.forward_packed(packed), packed.tokens, packed.columns, 1.0, vlm.suppressed_ids, packed.logit_columns
    )
    return logps[packed.completion_mask]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("replaces", [False, True], ids=["views", "notes"])
def test_flex_attention_is_sdpa(flexible: VisionLanguageModel, picture: Picture, replaces: bool) -> None:
    """Rows of unequal lengths, some of them episodes; with notes a new view takes the place of those before it."""
    prompts = prompts_of(flexible, picture, ("a", "much longer than the first"))
    seen = flexible.encode_next([picture(48, 32, 3), None], ["Closer.", "That is no box."])
    seen = [replace(one, replaces=replaces and len(one.grids) > 0) for one in seen]
    episode = Branch(((40, 41), (42, 43), (44,)), (seen[1], seen[0]))
    branches = [[episode, [50, 51]], [[60, 61, 62], Branch(((70,), (71, 72)), (seen[0],))]]
    assert isinstance(flexible.pack(prompts, branches).inputs["attention_mask"], BlockMask)
    found = logps_of(flexible, prompts, branches)
    sampled = flexible.generate(prompts, 2, Sampling(temperature=0, max_new_tokens=6))
    flexible.model.set_attn_implementation({"text_config": "sdpa"})
    torch.testing.assert_close(found, logps_of(flexible, prompts, branches), rtol=0, atol=1e-5)
    assert sampled == flexible.generate(prompts, 2, Sampling(temperature=0, max_new_tokens=6))


def test_blocks_that_nobody_may_see_are_left_out() -> None:
    """Eight answers of 128 columns behind a prompt of 128: of each only the prompt's block and its own."""
    attended, owner = torch.ones(1, 128, dtype=torch.bool), torch.arange(8).repeat_interleave(128)[None]
    mask = packed_mask(FLEX, mask_mod(attended, owner), torch.zeros(1, 9 * 128), 0, torch.float32)
    assert mask.kv_num_blocks.tolist() == [[[1] * 9]]  # on the diagonal: partly seen
    assert mask.full_kv_num_blocks.tolist() == [[[0] + [1] * 8]]  # the prompt: seen whole by all answers


def test_who_attends_how_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    half, whole = torch.bfloat16, torch.float32
    assert of_towers("auto", half) == {"text_config": TWO_CALLS, "vision_config": "sdpa"}
    assert of_towers("eager", half) == {"text_config": TWO_CALLS, "vision_config": "eager"}
    assert (
        described(FLEX, "sdpa", half, "cached") == "answers behind their prompt's cache with sdpa; pictures with sdpa"
    )
    assert described(TWO_CALLS, TOGETHER, half).endswith(
        "pictures with sdpa, those of one size together (flash-attention needs a GPU)"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert described(FLEX, "sdpa", half) == "packed rows with FlexAttention; pictures with sdpa"
    assert described(FLEX, TOGETHER, half).endswith("together (flash-attn is not installed)")
    for wanted in ("auto", "flex"):
        assert of_towers(wanted, half)["vision_config"] == "sdpa"
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    assert of_towers("auto", half) == {"text_config": TWO_CALLS, "vision_config": "flash_attention_2"}
    assert of_towers("flex", half) == {"text_config": FLEX, "vision_config": "flash_attention_2"}
    assert of_towers("auto", whole)["vision_config"] == "sdpa"
    assert described(TWO_CALLS, TOGETHER, whole).endswith("together (flash-attention takes no float32)")
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: True)
    assert of_towers("auto", half)["vision_config"] == "flash_attention_3"
    assert described(TWO_CALLS, "flash_attention_3", half).endswith("pictures with flash_attention_3")


@pytest.mark.parametrize(
    "sizes", [[(112, 112)] * 3, [(280, 168), (112, 112), (168, 280), (28, 28)]], ids=["alike", "mixed"]
)
def test_pieces_together_are_pieces_one_by_one(
    vlm: VisionLanguageModel, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of one size or several, windows whole and cut off: the same features and gradients, in fewer calls."""
    views = [painted(vlm.view_size(size), []) for size in sizes]
    for place, view in enumerate(views):
        view.putpixel((place, 3), (255, 0, 0))
    prompts = vlm.encode(views, ["?"] * len(views))
    tower, config = vlm.model.model.visual, vlm.model.config.vision_config
    plain, calls, found = attention.sdpa_attention_forward, [], {}
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda *given, **options: calls.append(1) or plain(*given, **options)
    )
    for name in ("sdpa", TOGETHER):
        config._attn_implementation = name
        seen = vlm.model.model.get_image_features(
            vlm.vision_cache._pixels(prompts), vlm.vision_cache._grids(prompts), return_dict=True
        )
        features = torch.cat(list(seen.pooler_output))
        features.square().sum().backward()
        found[name] = (
            features.detach(),
            {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None},
        )
        vlm.model.zero_grad()
    config._attn_implementation = "sdpa"
    (one_by_one, gradients), (together, ours) = found["sdpa"], found[TOGETHER]
    assert torch.equal(one_by_one, together)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    lengths = (
        len(set(sizes)) if vlm.family == "qwen3_vl" else 4
    )  # at most: of pictures, or of windows with those cut off
    assert config.depth <= len(calls) <= config.depth * lengths


def test_a_model_is_loaded_so(tmp_path: Path, vlm: VisionLanguageModel) -> None:
    vlm.save(tmp_path)
    for wanted, held in (("auto", TOGETHER), ("sdpa", "sdpa"), ("eager", "eager")):
        loaded = VisionLanguageModel.load(str(tmp_path), torch.float32, wanted)
        assert loaded.model.config.vision_config._attn_implementation == held
        assert {block.attn.config._attn_implementation for block in loaded.model.model.visual.blocks} == {held}
        loaded.save(tmp_path / held)
        assert "attn_implementation" not in (tmp_path / held / "config.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_that_is_added_is_that_of_booleans(dtype: torch.dtype) -> None:
    """Bit for bit, forwards and backwards; its lines begin at multiples of 8."""
    allowed = torch.ones(7, 13, dtype=torch.bool).tril(6)[None, None]
    mask = mask_for("sdpa", allowed, dtype)
    assert mask.shape == allowed.shape and mask.stride(-2) == 16 and torch.equal(mask == 0, allowed)
    made = []
    for given in (allowed, mask):
        query, key, value = (
            torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)).to(dtype).requires_grad_()
            for n in (7, 13, 13)
        )
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, given)
        out.float().square().sum().backward()
        made.append((out, query.grad, key.grad, value.grad))
    assert all(map(torch.equal, *made))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_flex_without_a_gpu_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="--attention flex needs a GPU.*leave it at auto"):
        VisionLanguageModel.load("data/tiny", torch.float32, "flex")


def test_cudnns_attention_is_off() -> None:
    """It gives NaN on some GPUs; torch has it on unless told otherwise."""
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
