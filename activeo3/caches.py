"""What a text tower remembers of the tokens that it has read: keys and values, and the running states of linear
attention.

There are two uses. Decoding writes one token after the other into a cache without gradient (``new_cache``). Scoring
reads a prompt once, with gradient, and then its answers as a batch behind it (``PromptCache``): the answers only read
what the prompt left, so gradients reach the prompt through it, and a layer that is computed again for the backward pass
(``--recompute``) finds what it found the first time.

A layer of linear attention (the gated delta net of Qwen3.5) holds no column for each token but one state for all of
them, and the last few columns of a short convolution. A state cannot be asked to forget a token, so such rows are never
padded between two tokens; on the left, padding leaves the state at zero, and behind the last token nothing reads it.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

ROOM = 64
"""Columns that a cache makes room for at once."""

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

    _front: Tensor | None = None  # ``keys`` as this layer left them, at the front of ``_rooms``
    _rooms: tuple[Tensor, Tensor] | None = None  # (rows, heads, columns and room, d) of keys and values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write keys and values (rows, heads, new, d) behind the others; returns all keys and all values."""
        held = self.get_seq_length()
        total = held + key_states.shape[-2]
        if not held:
            return super().update(key_states, value_states, *args, **kwargs)
        # Rows that were repeated or selected since the last token are new tensors, without room.
        if self.keys is not self._front or total > self._rooms[0].shape[-2]:
            self._rooms = tuple(pad(part, (0, 0, 0, total - held + ROOM)) for part in (self.keys, self.values))
        for room, new in zip(self._rooms, (key_states, value_states)):
            room[:, :, held:total] = new
        self.keys, self.values = (room[:, :, :total] for room in self._rooms)
        self._front = self.keys
        return self.keys, self.values


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
