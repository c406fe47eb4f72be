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

cuDNN's attention is never used. On Hopper torch 2.11 and newer prefer it, its backward pass gives NaN for masked rows
whose number of keys is 64 modulo 128 (pytorch issue 196678, trl issue 7181), and it makes a plan for every new shape,
which decoding and packed rows have at every step.

The vision tower needs no masks: pictures, and windows of them, are pieces that see themselves alone. Flash-attention
takes all of them in one call. Where it does not work, pieces of one length are a batch.
"""

from collections import Counter
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from activeo3.packing import Rule, branching_mask

torch.backends.cuda.enable_cudnn_sdp(False)  # one switch for the whole process; does nothing on a CPU

TWO_CALLS = "sdpa_in_two_calls"
"""The name under which transformers knows ``in_two_calls``."""

FLEX = "flex_for_packed_rows"
"""The name under which transformers knows ``flex_or_sdpa``."""

TOGETHER = "sdpa_in_the_place_of_flash"
"""The name under which transformers knows ``together``. What is called flash is given all pieces at once."""

CHOOSE = ("auto", "flex")
"""Those of ``--attention`` that leave it to this room how the vision tower attends."""

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
    """FlexAttention under a mask of blocks, which only packed rows have, and sdpa under any other; as
    ``in_two_calls``."""
    attend = flex_attention_forward if isinstance(attention_mask, BlockMask) else sdpa_attention_forward
    return attend(module, query, key, value, attention_mask, **options)


def together(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None,
    cu_seq_lens_q: Tensor | None = None, **options,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' own sdpa for the vision tower, in which pictures, or windows of one, see themselves alone.

    Their patches stand in one row, ``query`` (1, heads, N, d), and ``cu_seq_lens_q`` (pieces + 1,) says where each
    begins. All of one length are a batch: a call for each length instead of one for each piece.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    shapes, order, back = _by_length(tuple(cu_seq_lens_q.diff().tolist()), query.device)
    alike = len(shapes) == 1
    rows = (x if alike else x.index_select(2, order) for x in (query, key, value))
    batches = zip(*(x.split([pieces * length for pieces, length in shapes], dim=2) for x in rows))
    seen = []
    for shape, parts in zip(shapes, batches):
        batch = (x[0].unflatten(1, shape).transpose(0, 1) for x in parts)  # (pieces, heads, length, d)
        seen.append(sdpa_attention_forward(module, *batch, None, **options)[0].flatten(0, 1))  # (columns, heads, d)
    whole = torch.cat(seen)
    return (whole if alike else whole.index_select(0, back))[None], None


@lru_cache(maxsize=16)  # every layer asks
def _by_length(lengths: tuple[int, ...], device: torch.device) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """Pieces of a row sorted by length: (pieces, length) of each length, the columns (N,) in that order, and the way
    back."""
    of_column = torch.repeat_interleave(
        torch.tensor(lengths), torch.tensor(lengths)
    )  # (N,) the length of a column's piece
    order = of_column.argsort(stable=True)
    shapes = [(count, length) for length, count in sorted(Counter(lengths).items())]
    return shapes, order.to(device), order.argsort().to(device)


for name, attend in ((TWO_CALLS, in_two_calls), (FLEX, flex_or_sdpa), (TOGETHER, together)):
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)  # for plain rows, whose mask transformers makes


def free_columns(attention: str, prefix: int) -> int:
    """How many leading columns of a packed row need no line in its mask under an ``attention``.

    All of a prefix but its last: that one and the branches are the columns that predict, and padding stands before it.
    """
    return prefix - 1 if attention == TWO_CALLS and prefix >= SHORT else 0


def packed_mask(attention: str, rule: Rule, ids: Tensor, free: int, dtype: torch.dtype) -> BlockMask | Tensor:
    """The mask of packed rows ``ids`` (R, S + W) in the form that an ``attention`` takes, without lines for ``free``
    columns.

    Raises ValueError if it takes none (``mask_for``).
    """
    if attention == FLEX:
        return create_block_mask(rule, len(ids), None, ids.shape[1], ids.shape[1], ids.device)
    return mask_for(attention, branching_mask(rule, *ids.shape, ids.device, free), dtype)


def mask_for(attention: str, allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask (R, 1, queries, keys), True where a query may look, as what is added to scores of a ``dtype``.

    sdpa would take the booleans, but make this of them in every layer, and keep it there for the backward pass. So it
    is made once, with lines that begin where the kernels for GPUs want them: at multiples of 8. Some attentions, like
    flash attention, have no place for such a mask and would ignore it in silence: they raise ValueError.
    """
    if attention not in ("sdpa", "eager", TWO_CALLS, FLEX):
        raise ValueError(
            f"packed rows need attention 'sdpa', 'flex' or 'eager', but the model was loaded with {attention!r}"
        )
    *lines, keys = allowed.shape
    room = torch.zeros(*lines, keys + -keys % 8, dtype=dtype, device=allowed.device)
    return room[..., :keys].masked_fill_(~allowed, -torch.inf)


def of_towers(wanted: str, dtype: torch.dtype) -> dict[str, str]:
    """What transformers is told for an ``--attention``: the wanted one is for vision, the text tower has its own."""
    vision = _fastest(dtype)[0] if wanted in CHOOSE else wanted
    return {"text_config": FLEX if wanted == "flex" else TWO_CALLS, "vision_config": vision}


def see_together(model: nn.Module, wanted: str) -> None:
    """Let a vision tower that was loaded with sdpa attend to pieces of one length ``together``, unless sdpa was wanted.

    Not by name when it is loaded: for one with flash in it transformers would look for a package.
    """
    if wanted in CHOOSE and model.config.vision_config._attn_implementation == "sdpa":
        model.config.vision_config._attn_implementation = TOGETHER


def described(text: str, vision: str, dtype: torch.dtype, scoring: str = "packed") -> str:
    """How groups are scored and the attention of both towers, in words, with the reason why it is not a faster one."""
    if scoring != "packed":  # rows of one answer need no mask of ours: plain sdpa
        text = "sdpa"
    ways = {
        TWO_CALLS: f"sdpa, in two calls for prompts from {SHORT} tokens on", FLEX: "FlexAttention",
        TOGETHER: f"sdpa, those of one size together ({_fastest(dtype)[1]})",
    }  # fmt: skip
    rows = {"packed": "packed rows", "cached": "answers behind their prompt's cache", "rows": "a row for every answer"}
    return f"{rows[scoring]} with {ways.get(text, text)}; pictures with {ways.get(vision, vision)}"


def _fastest(dtype: torch.dtype) -> tuple[str, str]:
    """The fastest attention without a mask that works here, and what flash-attention lacks if it is not that."""
    if not torch.cuda.is_available():
        return "sdpa", "flash-attention needs a GPU"
    if dtype == torch.float32:
        return "sdpa", "flash-attention takes no float32"
    if is_flash_attn_3_available():
        return "flash_attention_3", ""
    if is_flash_attn_2_available():
        return "flash_attention_2", ""
    return "sdpa", "flash-attn is not installed"
