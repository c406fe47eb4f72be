"""How the two towers attend, and above all a packed row: the prefix to itself, and the branches to prefix and
branches, in two calls.

A prompt is read causally, and for that attention needs no mask; only the branches, which must not see their siblings,
need one. So the mask of a packed row has no lines for the columns before them: with an image of 1300 tokens and 8
answers of 64 it is a quarter of the whole, and the larger part of the row goes through the kernel that is made for
causal attention, without a mask and without the half of the scores that would be masked out.

What has to be known for it is the shape of the mask alone. It is one of the arguments that transformers hands down to
every layer, and no other comes with it, so sharded weights, recomputed activations and adapters need no care.

The other way is FlexAttention, whose mask is a rule, known block by block: what siblings may not see of each other is
never computed. That pays where the branches outweigh the prompt, G T against S. Flash-attention itself takes no such
mask; sdpa's own call for a prefix without one is the same kernel.
"""

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from activeo3.packing import Rule, branching_mask

TWO_CALLS = "sdpa_in_two_calls"
"""The name under which transformers knows ``in_two_calls``."""

FLEX = "flex_for_packed_rows"
"""The name under which transformers knows ``flex_or_sdpa``."""

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


def flex_or_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: BlockMask | Tensor | None, **options
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention under a mask of blocks, which only packed rows have, and sdpa under any other; as ``in_two_calls``."""
    attend = flex_attention_forward if isinstance(attention_mask, BlockMask) else sdpa_attention_forward
    return attend(module, query, key, value, attention_mask, **options)


for name, attend in ((TWO_CALLS, in_two_calls), (FLEX, flex_or_sdpa)):
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)  # for plain rows, whose mask transformers makes


def free_columns(attention: str, prefix: int) -> int:
    """How many leading columns of a packed row need no line in its mask under an ``attention``.

    All of a prefix but its last: that one and the branches are the columns that predict, and padding stands before it.
    """
    return prefix - 1 if attention == TWO_CALLS and prefix >= SHORT else 0


def packed_mask(attention: str, rule: Rule, rows: int, columns: int, free: int, device: torch.device) -> BlockMask | Tensor:
    """The mask of packed rows in the form that an ``attention`` takes, without lines for ``free`` columns.

    Raises ValueError if it takes none (``mask_for``).
    """
    if attention == FLEX:
        return create_block_mask(rule, rows, None, columns, columns, device)
    return mask_for(attention, branching_mask(rule, rows, columns, device, free))


def mask_for(attention: str, allowed: Tensor) -> Tensor:
    """A mask (R, 1, queries, keys), True where a query may look, in the form that an ``attention`` takes.

    sdpa takes the booleans. Eager attention adds the mask to its scores, and would add True as 1.
    Others, like flash attention, have no place for such a mask and would ignore it in silence: they raise ValueError.
    """
    if attention in ("sdpa", TWO_CALLS, FLEX):
        return allowed
    if attention == "eager":
        return torch.zeros_like(allowed, dtype=torch.float32).masked_fill(~allowed, -1e9)
    raise ValueError(f"packed rows need attention 'sdpa', 'flex' or 'eager', but the model was loaded with {attention!r}")


def of_towers(wanted: str) -> dict[str, str]:
    """What transformers is told for an ``--attention``: the wanted one is for vision, the text tower has its own."""
    vision = _fastest()[0] if wanted in ("auto", "flex") else wanted
    return {"text_config": FLEX if wanted == "flex" else TWO_CALLS, "vision_config": vision}


def described(text: str, vision: str) -> str:
    """The attention of both towers in words, with the reason why it is not a faster one."""
    ways = {TWO_CALLS: f"sdpa, in two calls for prompts from {SHORT} tokens on", FLEX: "FlexAttention"}
    fastest, reason = _fastest()
    why = f" ({reason})" if vision == fastest == "sdpa" else ""
    return f"packed rows with {ways.get(text, text)}; pictures with {vision}{why}"


def _fastest() -> tuple[str, str]:
    """The fastest attention without a mask that works here, and what flash-attention lacks if it is not that."""
    if not torch.cuda.is_available():
        return "sdpa", "flash-attention needs a GPU"
    if is_flash_attn_3_available():
        return "flash_attention_3", ""
    if is_flash_attn_2_available():
        return "flash_attention_2", ""
    return "sdpa", "flash-attn is not installed"
