"""How a packed row attends: the prefix to itself, and the branches to prefix and branches, in two calls.

A prompt is read causally, and for that attention needs no mask; only the branches, which must not see their siblings,
need one. So the mask of a packed row has no lines for the columns before them: with an image of 1300 tokens and 8
answers of 64 it is a quarter of the whole, and the larger part of the row goes through the kernel that is made for
causal attention, without a mask and without the half of the scores that would be masked out.

What has to be known for it is the shape of the mask alone. It is one of the arguments that transformers hands down to
every layer, and no other comes with it, so sharded weights, recomputed activations and adapters need no care.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

TWO_CALLS = "sdpa_in_two_calls"
"""The name under which transformers knows ``in_two_calls``."""

SHORT = 256
"""A prefix of fewer columns stays with one masked call: a second one then gains less than 2 % of an update."""


def in_two_calls(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options
) -> tuple[Tensor, None]:
    """transformers' own sdpa, but a mask (R, 1, M, K) may be that of the last M queries: those before attend causally.

    ``query`` (R, heads, N, d), ``key`` and ``value`` (R, key-value heads, K, d); returns (R, N, heads, d).

    Raises ValueError if some queries have no line in the mask and their keys are not those of the same columns, as
    with a cache: what they may see would be a guess.
    """
    free = 0 if attention_mask is None else query.shape[2] - attention_mask.shape[2]
    if not free:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if free < 0 or key.shape[2] != query.shape[2]:
        lines, queries, keys = attention_mask.shape[2], query.shape[2], key.shape[2]
        raise ValueError(f"a mask of {lines} lines does not say what {queries} queries may see of {keys} keys")
    alone = (part[:, :, :free] for part in (query, key, value))
    before, _ = sdpa_attention_forward(module, *alone, None, **options)
    behind, _ = sdpa_attention_forward(module, query[:, :, free:], key, value, attention_mask, **options)
    return torch.cat([before, behind], dim=1), None


AttentionInterface.register(TWO_CALLS, in_two_calls)
AttentionMaskInterface.register(TWO_CALLS, sdpa_mask)  # for plain rows, whose mask transformers makes


def free_columns(attention: str, prefix: int) -> int:
    """How many leading columns of a packed row need no line in its mask under an ``attention``.

    All of a prefix but its last: that one and the branches are the columns that predict, and padding stands before it.
    """
    return prefix - 1 if attention == TWO_CALLS and prefix >= SHORT else 0


def vision_attention(wanted: str) -> str:
    """The attention of the vision tower: ``auto`` is flash-attention 2 or 3 if it works here, else sdpa."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        if is_flash_attn_3_available():
            return "flash_attention_3"
        if is_flash_attn_2_available():
            return "flash_attention_2"
    return "sdpa"
