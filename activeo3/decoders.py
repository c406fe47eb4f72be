"""Two ways to write tokens into rows that decode side by side: ``--decoder graph`` and ``--decoder hf``.

Both run transformers' forward pass on transformers' cache, forbid the same ids, draw from the same softmax and end at
the same end tokens. ``hf`` calls transformers' ``generate``: it is the reference, and the version to read first. For
every token it makes mask and positions anew, copies the ids, and on a GPU launches a thousand kernels one by one, which
takes longer than the kernels themselves.

``graph`` is a loop of our own. All that changes from token to token stands in tensors that are written in place:

    token     (rows, 1)              what the model reads next
    position  (3, rows, 1)           its position
    slot      (1,)                   the column of the cache in which its keys and values go
    mask      (rows, 1, 1, columns)  what is added to scores: 0 on columns that can be seen, else -inf
    noise     (rows, V)              what draws the next token
    ended     (rows, 1)              which rows write padding from now on
    ids, logps  (rows, columns)      what was drawn, each token in its own column

So one token is the same kernels at the same addresses as the one before it. On a GPU they are recorded once, as a CUDA
graph, and launched together from then on. A graph is recorded again when the tensors are others: when rows have left
(at least half of them; until then their places stay, decoding.DecodeBatch.keep) or the cache needs more columns, and in
the next rollout, whose weights lie elsewhere. Attention reads all columns of the cache, of which there are some more
than are written. On a CPU nothing is recorded, and attention reads the columns that are written and no more.

Noise. ``torch.multinomial`` divides every probability by exponential noise and takes the largest. Here that is done
with noise that is drawn before the token, for the rows that are still being written: the same random numbers give the
same tokens with both decoders.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from activeo3.decoding import DecodeBatch


@dataclass(frozen=True)
class Drawing:
    """How a token is drawn: at a ``temperature`` (0: the likeliest), never one of ``suppressed``. Behind one of
    ``ends`` a row is filled with ``padding``."""

    temperature: float
    suppressed: tuple[int, ...]
    ends: tuple[int, ...]
    padding: int


class Written(NamedTuple):
    """New tokens ``ids`` (rows, n), their log-probabilities ``logps`` (rows, n), None if greedy, and whether any scores
    were no distribution: NaN, infinite, or nothing allowed. Behind an end, ids and log-probabilities mean nothing."""

    ids: Tensor
    logps: Tensor | None
    broken: bool


# ---------------------------------------------------------------------- our own loop


def write_in_place(model: nn.Module, rows: DecodeBatch, most: int, drawing: Drawing, fixed: bool) -> Written:
    """Write up to ``most`` tokens into every row, fewer if all have ended.

    ``fixed``: every token reads all columns that the cache has room for, as a CUDA graph must; on a GPU it is one.
    """
    held = rows.ids.shape[1] - 1  # columns in the cache
    if rows.loop is None or not rows.loop.goes_on(held, most):
        rows.loop = TokenLoop(model, rows, most, drawing, fixed)
    return rows.loop.write(most)


class TokenLoop:
    """Rows that write tokens in place; see the top of this file for the tensors."""

    def __init__(self, model: nn.Module, rows: DecodeBatch, most: int, drawing: Drawing, fixed: bool) -> None:
        self.model, self.drawing, self.fixed = model, drawing, fixed
        self.held, device, count = rows.ids.shape[1] - 1, rows.ids.device, len(rows.ids)
        self.cache = InPlaceCache(rows.cache, self.held + most, fixed)
        self.slot = self.cache.slot
        self.token = rows.ids[:, -1:].clone()
        self.position = (rows.attended.sum(dim=1, keepdim=True) - 1 + rows.deltas).expand(3, -1, -1).clone()
        self.mask = self._mask(rows.attended)
        self.drawn_rows = torch.tensor(rows.places, device=device)  # (alive,)
        self.noise = torch.ones(count, model.config.get_text_config().vocab_size, device=device)
        self.ended = torch.ones(count, 1, dtype=torch.bool, device=device).index_fill_(0, self.drawn_rows, False)
        self.broken = torch.zeros(count, 1, dtype=torch.bool, device=device)
        self.ids = rows.ids.new_zeros(count, self.cache.columns + 1)
        self.logps = torch.zeros(count, self.cache.columns + 1, device=device)
        self.suppressed, self.ends = (torch.tensor(ids, device=device) for ids in (drawing.suppressed, drawing.ends))
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm = False

    def _mask(self, attended: Tensor) -> Tensor | None:
        """What is added to scores, of columns to come as well; None if a row sees all that is read."""
        if not self.fixed and bool(attended.all()):
            return None
        mask = torch.full((len(attended), 1, 1, self.cache.columns), -torch.inf, dtype=self.model.dtype)
        mask = mask.to(attended.device)
        mask[:, 0, 0, : attended.shape[1]].masked_fill_(attended.bool(), 0.0)
        return mask

    def goes_on(self, held: int, most: int) -> bool:
        """Whether the rows are still those of these tensors, which have room for so many tokens more."""
        return self.held == held and held + most <= self.cache.columns

    def leave(self, places: list[int]) -> None:
        """Write nothing more into the rows at these places; they stay where they are."""
        gone = torch.tensor(places, device=self.ended.device)
        self.ended.index_fill_(0, gone, True)
        self.drawn_rows = self.drawn_rows[~torch.isin(self.drawn_rows, gone)]

    @torch.no_grad()
    def write(self, most: int) -> Written:
        """Up to ``most`` tokens more."""
        first = self.held + 1
        for _ in range(most):
            self._draw_noise()
            self.cache.seen = self.cache.columns if self.fixed else self.held + 1
            self._next_token()
            self.held += 1
            if bool(self.ended.all()):
                break
        new = slice(first, self.held + 1)
        self.cache.hand_back(self.held)
        logps = self.logps[:, new].clone() if self.drawing.temperature else None
        return Written(self.ids[:, new].clone(), logps, bool(self.broken.any()))

    def _draw_noise(self) -> None:
        """Exponential noise for the rows that are still written, as ``torch.multinomial`` would draw it for them."""
        if self.drawing.temperature and len(self.drawn_rows) == len(self.noise):
            self.noise.exponential_()
        elif self.drawing.temperature:
            self.noise[self.drawn_rows] = torch.empty_like(self.noise[: len(self.drawn_rows)]).exponential_()

    def _next_token(self) -> None:
        """``_token``: as the recorded graph, once there is one. The first runs as it is, and a GPU gets warm by it."""
        if not (self.fixed and self.slot.is_cuda):
            self._token()
        elif not self.warm:
            self._token()
            self.warm = True
        else:
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):  # records and runs nothing
                    self._token()
            self.graph.replay()

    def _token(self) -> None:
        """One token into every row. No operation here makes the host wait, or depends on a number on the host."""
        if self.mask is not None:
            self.mask.index_fill_(3, self.slot, 0.0)
        scores = (
            self.model(
                input_ids=self.token,
                attention_mask=None if self.mask is None else self.mask[..., : self.cache.seen],
                position_ids=self.position,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .to(torch.float32)
        )  # (rows, V)
        token, logp = self._draw(scores.index_fill_(1, self.suppressed, -torch.inf))  # (rows, 1) each
        self.token.copy_(token.masked_fill_(self.ended, self.drawing.padding))
        self.ended.logical_or_(torch.isin(token, self.ends))
        self.slot.add_(1)
        self.position.add_(1)
        self.ids.index_copy_(1, self.slot, token)
        self.logps.index_copy_(1, self.slot, logp)

    def _draw(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """A token (rows, 1) of every row of scores (rows, V), and its log-probability; 0 if greedy.

        A row that is no distribution is noted and gets equal scores.
        """
        temperature = self.drawing.temperature
        broken = ~(scores.amax(dim=-1, keepdim=True) / (temperature or 1.0)).isfinite()
        self.broken.logical_or_(broken)
        scores = scores.masked_fill_(broken, 0.0)
        if not temperature:
            return (token := scores.argmax(dim=-1, keepdim=True)), torch.zeros_like(token, dtype=torch.float32)
        scores = scores / temperature
        token = (scores.softmax(dim=-1) / self.noise).argmax(dim=-1, keepdim=True)
        return token, scores.log_softmax(dim=-1).gather(1, token)


class InPlaceCache(Cache):
    """A cache with room (decoding.PreallocatedLayer) into which one token after the other is written.

    ``slot`` (1,) is the column of the next one; the first ``seen`` of all ``columns`` are what attention reads.
    """

    def __init__(self, cache: Cache, least: int, fixed: bool) -> None:
        super().__init__(layers=cache.layers)
        for layer in cache.layers:
            layer.reserve(least, fixed)
        self.rooms = [layer.rooms for layer in cache.layers]
        self.columns = self.seen = self.rooms[0][0].shape[2]
        self.slot = torch.full((1,), cache.get_seq_length(), device=self.rooms[0][0].device)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values (rows, heads, 1, d) of one token; returns all that are seen."""
        keys, values = self.rooms[layer_idx]
        keys.index_copy_(2, self.slot, key_states)
        values.index_copy_(2, self.slot, value_states)
        return keys[:, :, : self.seen], values[:, :, : self.seen]

    def hand_back(self, held: int) -> None:
        """Let the layers hold what was written: ``held`` columns."""
        for layer in self.layers:
            layer.hold(held)


# ---------------------------------------------------------------------- transformers' generate


def write_by_generate(model: nn.Module, rows: DecodeBatch, most: int, drawing: Drawing) -> Written:
    """As ``write_in_place``, by transformers."""
    model.model.rope_deltas = rows.deltas
    finite = FiniteScores(drawing.temperature or 1.0)
    drawn = DrawnLogps(drawing.temperature) if drawing.temperature else None
    out = model.generate(
        input_ids=rows.ids,
        attention_mask=rows.attended,
        past_key_values=rows.cache,
        generation_config=_settings(most, drawing),
        logits_processor=LogitsProcessorList([finite, drawn] if drawn else [finite]),
    )
    new = out[:, rows.ids.shape[1] :]  # (rows, up to most)
    return Written(new, drawn.of(new) if drawn else None, finite.broken())


def _settings(most: int, drawing: Drawing) -> GenerationConfig:
    """How transformers is to write: from the model's own distribution, with the temperature and without image tokens.

    A checkpoint's own settings (beams, a least probability, bans and penalties, no cache) have no part in it. What is
    scored would be another distribution than the one that was sampled.
    """
    settings = GenerationConfig(
        max_new_tokens=most,
        do_sample=drawing.temperature > 0,
        suppress_tokens=list(drawing.suppressed),
        eos_token_id=list(drawing.ends),
        pad_token_id=drawing.padding,
    )
    if drawing.temperature > 0:
        settings.temperature, settings.top_k, settings.top_p = drawing.temperature, 0, 1.0
    return settings


class DrawnLogps(LogitsProcessor):
    """Keeps the log-probability of every token that is drawn, at a ``temperature``; changes no score.

    It stands behind all that forbids tokens and before the temperature, and learns at the next token what was drawn.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._last: Tensor | None = None  # (rows, V) of the token that is being drawn
        self._kept: list[Tensor] = []  # (rows,) each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._keep(input_ids[:, -1])
        self._last = (scores / self.temperature).log_softmax(dim=-1)
        return scores

    def _keep(self, drawn: Tensor) -> None:
        if self._last is not None:
            self._kept.append(self._last.gather(1, drawn[:, None])[:, 0])

    def of(self, new: Tensor) -> Tensor:
        """Log-probabilities (rows, n) of ``new`` (rows, n), all tokens that were drawn; behind an end they mean
        nothing."""
        self._keep(new[:, -1])
        self._last = None
        return torch.stack(self._kept, dim=1)


class FiniteScores(LogitsProcessor):
    """Notes whether every row of scores, divided by a ``temperature``, was a distribution; changes no such score.

    A row that is none (NaN, infinite, or nothing allowed) gets equal scores: drawing from it would end the process, on
    a GPU without a word. The note stays on the device, so that no token waits for it.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._broken: list[Tensor] = []  # (rows,) each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken = ~(scores.amax(dim=-1) / self.temperature).isfinite()  # (rows,)
        self._broken.append(broken)
        if scores.device.type == "cpu" and not broken.any():
            return scores  # here it costs nothing to look, and a copy does
        return scores.masked_fill(broken[:, None], 0.0)

    def broken(self) -> bool:
        """Was any row of any token none?"""
        return bool(torch.stack(self._broken).any())
