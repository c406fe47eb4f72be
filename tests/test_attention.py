"""attention.py: two calls are one call under the whole mask, and a mask that says too little is refused.

That both are what separate rows compute is tested where packed rows are: the tests that use ``calls``.
"""

from typing import Callable, Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from activeo3 import attention
from activeo3.attention import TWO_CALLS, in_two_calls
from activeo3.grpo import answer_logps
from activeo3.models import VisionLanguageModel
from activeo3.packing import Prompt, padded

Picture = Callable[..., Image.Image]
BRANCHES = [[[40, 41, 42, 43], [50, 51], [52]], [[60], [61, 62], [70, 71, 72, 73, 74]]]


def prompts_of(vlm: VisionLanguageModel, picture: Picture, texts: Sequence[str]) -> list[Prompt]:
    return vlm.encode([picture(32, 48, 1), picture(64, 32, 2)], texts)


def with_gradients(vlm: VisionLanguageModel, prompts: list[Prompt], attend: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Log-probabilities of BRANCHES, the gradients of their weighted sum, and the mask that was given."""
    vlm.model.set_attn_implementation({"text_config": attend})
    packed = vlm.pack(prompts, BRANCHES)
    logps, _ = answer_logps(vlm.forward_packed(packed), packed.tokens, packed.columns, 1.0, vlm.forbidden, packed.kept)
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1))
    (weights * logps)[packed.real].sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in vlm.model.named_parameters()}
    vlm.model.zero_grad()
    vlm.model.set_attn_implementation({"text_config": "sdpa"})
    return logps.detach()[packed.real], gradients, packed.inputs["attention_mask"]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("texts", [("as long", "the same"), ("a", "much longer than the first")], ids=["even", "padded"])
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
        with pytest.raises(ValueError, match=f"a mask of {lines} lines does not say what 6 queries may see of {columns} keys"):
            in_two_calls(layer, query, held, held, torch.ones(1, 1, lines, columns, dtype=torch.bool), scaling=1.0)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    whole, _ = in_two_calls(layer, query, keys, keys, causal, scaling=1.0)
    for free in range(6):
        split, _ = in_two_calls(layer, query, keys, keys, causal[:, :, free:], scaling=1.0)
        torch.testing.assert_close(split, whole)
