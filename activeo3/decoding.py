"""Rows that decode side by side, with the key-value cache of what each has read and written so far.

A batch of rows is rectangular, episodes are not: some rows end their turn early, look at something and go on.
So rows can be left behind, set aside and put together again; what does not belong to a row (padding on the
left, and what a batch wrote behind its end) stays as columns that are never attended to. Positions count
the attended columns alone, so such holes change nothing.

The caches hold keys and values, and the running states of linear attention. Decoding writes one token after the other
into a cache without gradient (``new_cache``). Scoring reads a prompt once, with gradient, and then its answers as a
batch behind it (``PromptCache``): gradients reach the prompt through it, and a layer that is computed again for the
backward pass (``--recompute``) finds what it found the first time. A layer of linear attention (the gated delta net of
Qwen3.5) holds one state for all tokens and the last columns of a short convolution. A state cannot forget a token, so
such rows are never padded between two tokens.
"""

from dataclasses import dataclass
from typing import Any, Callable, Collection, Self, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

from activeo3.packing import Prompt

Observe = Callable[[Sequence[tuple[int, tuple[int, ...]]]], Sequence[Prompt | None]]
"""What rows are shown after the turns they have just ended, given as (row, ids of the turn); None: nothing
more, the row is done. Rows are numbered prompt by prompt, the first answer to the first prompt being 0."""

GONE = -1
"""In place of the number of a row that was left behind and whose place stays."""


@dataclass(eq=False)
class DecodeBatch:
    """Rows of one batch, L columns wide.

    ``row_ids`` says which answer of the whole rollout each row is. ``ids`` (rows, L) is all of it so far, ``attended``
    (rows, L) is 1 on the columns that belong to the row and can be seen; ``cache`` holds all columns but the last,
    whose id is what the model reads next. ``deltas`` (rows, 1): a row's next position is the number of its attended
    columns plus this (a picture has fewer positions than tokens, and none is lost with it). ``loop`` is what writes
    into them in place (decoders.TokenLoop), if something does.
    """

    row_ids: list[int]
    ids: Tensor
    attended: Tensor
    deltas: Tensor
    cache: DynamicCache
    loop: Any = None

    @property
    def places(self) -> list[int]:
        """Where the rows stand that have not been left behind."""
        return [place for place, row in enumerate(self.row_ids) if row != GONE]

    def extend(self, ids: Tensor, attended: Tensor) -> None:
        """Write columns (rows, n) behind the others; they are not in the cache yet."""
        self.ids = torch.cat([self.ids, ids], dim=1)
        self.attended = torch.cat([self.attended, attended.to(self.attended)], dim=1)

    def hide_old_images(self, row_ids: Sequence[bool], image_token: int) -> Tensor | None:
        """In the rows for which ``row_ids`` is True, hide the image tokens so far from all that is to come.

        Their keys stay in the cache, as columns that are not attended to. They still count as positions.
        Returns what was attended to before, or None if nothing is to be forgotten.
        """
        if not any(row_ids):
            return None
        before = self.attended
        gone = (self.ids == image_token) & before.bool() & torch.tensor(row_ids, device=self.ids.device)[:, None]
        self.attended = before.masked_fill(gone, 0)
        self.deltas = self.deltas + gone.sum(dim=1, keepdim=True)
        return before

    def visibility_mask(self, before: Tensor) -> Tensor:
        """Where the columns may look that are read after views were forgotten: True (rows, 1, new, L - 1).

        These are the columns that are not in the cache yet, without the very last. The first of them is the last
        token of a turn, or stands behind it: it sees what was attended to ``before`` (rows, columns up to it).
        """
        known, total = before.shape[1], self.ids.shape[1] - 1
        column = torch.arange(total, device=self.ids.device)
        causal = column <= column[known - 1 :, None]  # (new, L - 1)
        allowed = causal & self.attended[:, None, :total].bool()  # (rows, new, L - 1)
        allowed[:, 0, :known] = before.bool()
        return allowed[:, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Leave all but some rows behind. Where a token is a CUDA graph, their places stay until half can go: every
        number of rows has a graph of its own."""
        gone = set(self.places) - set(rows)
        if not gone:
            return  # selecting copies, and with large models the cache is large
        if self.loop is not None and self.loop.fixed and 2 * len(rows) > len(self.row_ids):
            self.loop.leave(sorted(gone))
            self.row_ids = [GONE if place in gone else row for place, row in enumerate(self.row_ids)]
            return
        self.loop = None
        at = torch.tensor(rows, dtype=torch.long, device=self.ids.device)
        self.row_ids = [self.row_ids[row] for row in rows]
        self.ids, self.attended, self.deltas = self.ids[at], self.attended[at], self.deltas[at]
        self.cache.batch_select_indices(at)

    def copy(self, rows: Sequence[int], unread: bool = False) -> Self:
        """Some rows as a batch of their own, which the others do not touch; ``unread`` with an empty cache."""
        at = torch.tensor(rows, dtype=torch.long, device=self.ids.device)
        cache = _empty(self.cache)
        for number, layer in enumerate([] if unread else self.cache.layers):
            cache.update(layer.keys[at], layer.values[at], number)
        row_ids = [self.row_ids[row] for row in rows]
        return type(self)(row_ids, self.ids[at], self.attended[at], self.deltas[at], cache)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Batches of different lengths as one, padded on the left."""
        longest = max(part.ids.shape[1] for part in parts)
        missing = [longest - part.ids.shape[1] for part in parts]
        ids, attended = (
            torch.cat([pad(getattr(part, name), (few, 0)) for part, few in zip(parts, missing)])
            for name in ("ids", "attended")
        )
        cache = _empty(parts[0].cache)
        for number in range(len(parts[0].cache.layers)):
            layers = [part.cache.layers[number] for part in parts]
            keys, values = (
                torch.cat([pad(getattr(layer, name), (0, 0, few, 0)) for layer, few in zip(layers, missing)])
                for name in ("keys", "values")
            )
            cache.update(keys, values, number)
        row_ids = [row for part in parts for row in part.row_ids]
        return cls(row_ids, ids, attended, torch.cat([part.deltas for part in parts]), cache)


def _empty(cache: DynamicCache) -> DynamicCache:
    """An empty cache with layers as those of another one."""
    new = DynamicCache()
    new.layers = [type(layer)() for layer in cache.layers]
    return new


def truncate_at_eos(ids: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """The ids up to and with the first end token, or all of them: what follows an end is padding."""
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[: first + 1])


# ---------------------------------------------------------------------- caches


ROOM = 64
"""Columns that a cache makes room for at once."""

FIXED_ROOM = 256
"""A cache that is read whole has a multiple of so many columns: few enough to read, and few graphs for an answer."""

LINEAR = "linear_attention"
"""How transformers calls layers with a running state, in ``config.layer_types``."""


def has_states(config: PreTrainedConfig) -> bool:
    """Has a text tower of this configuration layers with a running state?"""
    return LINEAR in _kinds(config)


def _kinds(config: PreTrainedConfig) -> list[str]:
    """The kind of every layer of a text tower."""
    return getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers


# ---------------------------------------------------------------------- decoding


class PreallocatedLayer(DynamicLayer):
    """One layer of a cache, with room behind its columns: a token is written there.

    transformers' own layer is put together anew for every token. With a picture in the prompt that moves more
    memory than the attention to it reads.
    """

    rooms: tuple[Tensor, Tensor] | None = None  # (rows, heads, columns and room, d) of keys and values
    _front: Tensor | None = None  # ``keys`` as this layer left them, at the front of ``rooms``

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write keys and values (rows, heads, new, d) behind the others; returns all keys and all values."""
        held = self.get_seq_length()
        total = held + key_states.shape[-2]
        if not held:
            return super().update(key_states, value_states, *args, **kwargs)
        self.reserve(total)
        for room, new in zip(self.rooms, (key_states, value_states)):
            room[:, :, held:total] = new
        self.hold(total)
        return self.keys, self.values

    def reserve(self, columns: int, fixed: bool = False) -> None:
        """Have room for so many columns; ``fixed``: for a multiple of FIXED_ROOM."""
        held = self.get_seq_length()
        # Rows that were repeated or selected since the last token are new tensors, without room.
        room = self.rooms[0].shape[-2] if self.keys is self._front and self.rooms else 0
        if room < columns or fixed and room % FIXED_ROOM:
            wanted = -(-columns // FIXED_ROOM) * FIXED_ROOM if fixed else columns + ROOM
            self.rooms = tuple(pad(part, (0, 0, 0, wanted - held)) for part in (self.keys, self.values))

    def hold(self, columns: int) -> None:
        """So many columns of the room are written."""
        self.keys, self.values = (room[:, :, :columns] for room in self.rooms)
        self._front = self.keys


class State(LinearAttentionLayer):
    """One layer's running state, whose rows can be repeated and selected like those of keys and values."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times, next to each other."""
        self._take(lambda held: held.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the rows ``indices`` (rows,)."""
        self._take(lambda held: held[indices])

    def _take(self, rows) -> None:
        for states in (self.conv_states, self.recurrent_states):
            states.update({i: rows(held) for i, held in states.items() if held is not None})


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a text tower of this configuration."""
    cache = DynamicCache()
    cache.layers = [State() if kind == LINEAR else PreallocatedLayer() for kind in _kinds(config)]
    return cache


# ---------------------------------------------------------------------- scoring


class Kept(DynamicLayer):
    """Keys and values of prompts, as they were first computed; a pass that computes them again does not add to them."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Keep the keys and values (R, heads, S, d) of the prompts, and return them."""
        if self.keys is None:
            self.keys, self.values = key_states, value_states
        return key_states, value_states

    def behind(self, group: int) -> "Behind":
        """What ``group`` answers to each prompt find."""
        return Behind(self.keys.repeat_interleave(group, dim=0), self.values.repeat_interleave(group, dim=0))


class Behind(DynamicLayer):
    """Keys and values of answers behind those of their prompts, which stay as they are."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """All keys and values (rows, heads, S + new, d)."""
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


class KeptState(LinearAttentionLayer):
    """The running state behind prompts, as it was first computed (see ``Kept``)."""

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int = 0, **kwargs) -> Tensor:
        """Keep the last ``conv_kernel_size`` columns of (R, channels, S), and return all."""
        if self.conv_states[0] is None:
            short = max(0, conv_kernel_size - conv_states.shape[-1])
            self.conv_states[0] = pad(conv_states, (short, 0))[..., -conv_kernel_size:]
        return conv_states

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs) -> Tensor:
        """Keep the state (R, heads, d, d) behind the prompts."""
        if self.recurrent_states[0] is None:
            self.recurrent_states[0] = recurrent_states
        return recurrent_states

    def behind(self, group: int) -> "BehindState":
        """What ``group`` answers to each prompt find."""
        return BehindState(
            *(held[0].repeat_interleave(group, dim=0) for held in (self.conv_states, self.recurrent_states))
        )


class BehindState(LinearAttentionLayer):
    """The running state that answers begin with, and which they do not change."""

    def __init__(self, columns: Tensor, state: Tensor) -> None:
        super().__init__()
        self.conv_states[0], self.recurrent_states[0], self.has_previous_state[0] = columns, state, True
        self.record_past = True  # or an answer of one token would be written into ``columns``

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs) -> Tensor:
        """The new columns (rows, channels, new) behind those of the prompt."""
        return torch.cat([self.conv_states[0], conv_states], dim=-1)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs) -> Tensor:
        """The state, which is kept nowhere."""
        return recurrent_states


class PromptCache(DynamicCache):
    """What prompts leave in every layer of a text tower, and can be differentiated through."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.layers = [KeptState() if kind == LINEAR else Kept() for kind in _kinds(config)]

    def behind(self, group: int) -> DynamicCache:
        """The cache of ``group`` answers to each prompt, row by row."""
        cache = DynamicCache()
        cache.layers = [layer.behind(group) for layer in self.layers]
        return cache


def recompute_with_cache(text_tower: nn.Module) -> None:
    """Let checkpointed layers have the caches of scoring; transformers would take any cache away from them."""
    for layer in text_tower.layers:
        layer._can_checkpoint_with_cache = True
