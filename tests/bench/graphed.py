"""A prototype of decoding in CUDA graphs: what a token would cost without the launch of every kernel."""

import contextlib
from typing import Iterator

import torch
from probe import CUDA, DEVICE
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import sdpa_mask

from activeo3.decoding import DecodeBatch
from activeo3.model import VisionLanguageModel


class Graphed:
    """Rows that decode greedily in one CUDA graph per token, cache and mask in place. On a CPU, without a graph.

    What a real one needs beyond this: noise in place of argmax, a flag per row that has ended, a graph per number of
    rows and of columns, and to be captured anew after every ``gathered`` (the weights have moved).
    """

    def __init__(self, vlm: VisionLanguageModel, rows: DecodeBatch, columns: int, attend: str) -> None:
        AttentionInterface.register("matmul_decode", attend_by_products)
        AttentionMaskInterface.register("matmul_decode", sdpa_mask)
        self.vlm, self.attend = vlm, "sdpa" if attend == "sdpa" else "matmul_decode"
        held, n = rows.ids.shape[1] - 1, len(rows.ids)
        self.slot = torch.full((1,), held, device=DEVICE)
        self.ids = rows.ids[:, -1:].clone()
        self.position = (rows.attended.sum(1, keepdim=True) - 1 + rows.deltas)[None].expand(3, -1, -1).clone()
        self.mask = torch.full((n, 1, 1, columns), -torch.inf, device=DEVICE, dtype=vlm.model.dtype)
        self.mask[:, 0, 0, :held].masked_fill_(rows.attended[:, :held].bool(), 0.0)
        self.out = torch.zeros(n, columns, dtype=torch.long, device=DEVICE)
        self.banned = torch.tensor(vlm.suppressed_ids, device=DEVICE)
        self.cache = FixedCache(rows.cache, columns, self.slot)
        self.start, self.graph = held, None
        self.parts = [self.slot, self.ids, self.position, self.mask]
        self.kept = [part.clone() for part in self.parts]

    @contextlib.contextmanager
    def _attending(self) -> Iterator[None]:
        """The text tower with this decoder's attention, for the block."""
        config = self.vlm.model.config.get_text_config()
        before, config._attn_implementation = config._attn_implementation, self.attend
        try:
            yield
        finally:
            config._attn_implementation = before

    @torch.no_grad()
    def token(self) -> None:
        """Write one token into every row."""
        self.mask.index_fill_(3, self.slot, 0.0)
        logits = self.vlm.model(
            input_ids=self.ids, attention_mask={"full_attention": self.mask}, position_ids=self.position,
            past_key_values=self.cache, use_cache=True, logits_to_keep=1,
        ).logits[:, -1].float()  # fmt: skip
        logits.index_fill_(1, self.banned, -torch.inf)
        self.ids.copy_(logits.argmax(-1, keepdim=True))
        self.slot.add_(1)
        self.position.add_(1)
        self.out.index_copy_(1, self.slot, self.ids)

    def capture(self) -> None:
        """Record ``token`` as a graph; afterwards everything is as it was."""
        if not CUDA:
            return
        with self._attending():
            side = torch.cuda.TrainingOrder()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.token()
            torch.cuda.current_stream().wait_stream(side)
            self._reset()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.token()
            self._reset()

    def _reset(self) -> None:
        for part, kept in zip(self.parts, self.kept):
            part.copy_(kept)

    def run(self, count: int) -> list[list[int]]:
        """Write ``count`` tokens into every row, and return them."""
        with self._attending():
            for _ in range(count):
                self.graph.replay() if self.graph else self.token()
        return self.out[:, self.start + 1 : self.start + 1 + count].tolist()


class FixedCache:
    """As much of a transformers cache as a forward pass with prepared mask and positions asks for."""

    is_compileable = False

    def __init__(self, grown: DynamicCache, columns: int, slot: Tensor) -> None:
        self.slot = slot
        self.layers = []
        for layer in grown.layers:
            rooms = []
            for part in (layer.keys, layer.values):
                room = part.new_zeros(*part.shape[:2], columns, part.shape[3])
                room[:, :, : part.shape[2]] = part
                rooms.append(room)
            self.layers.append(rooms)

    def update(self, key: Tensor, value: Tensor, layer: int, *args, **options) -> tuple[Tensor, Tensor]:
        """Write one column in place; returns all of them, those not yet written included."""
        keys, values = self.layers[layer]
        keys.index_copy_(2, self.slot, key)
        values.index_copy_(2, self.slot, value)
        return keys, values

    def get_seq_length(self, *args) -> int:
        return 1  # only "not empty" is asked for


def attend_by_products(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **options
) -> tuple[Tensor, None]:
    """One query per row: two batched products and a softmax, the heads of one key head together."""
    rows, heads, _, width = query.shape
    grouped = query.view(rows, key.shape[1], -1, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)).float() * scaling + attention_mask.float()
    seen = torch.matmul(scores.softmax(-1).to(value.dtype), value)
    return seen.reshape(rows, 1, heads, width), None
