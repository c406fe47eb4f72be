"""Rows that decode side by side, with the key-value cache of what each has read and written so far.

A batch of rows is rectangular, episodes are not: some rows end their turn early, look at something and go on.
So rows can be left behind, set aside and put together again; what does not belong to a row (padding on the
left, and what a batch wrote behind its end) stays as columns that are never attended to. Positions count
the attended columns alone, so such holes change nothing.
"""

from dataclasses import dataclass
from typing import Callable, Collection, Self, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor
from transformers.cache_utils import DynamicCache

from activeo3.packing import Prompt

Observe = Callable[[Sequence[tuple[int, tuple[int, ...]]]], Sequence[Prompt | None]]
"""What rows are shown after the turns they have just ended, given as (row, ids of the turn); None: nothing
more, the row is done. Rows are numbered prompt by prompt, the first answer to the first prompt being 0."""


@dataclass(eq=False)
class DecodeBatch:
    """Rows of one batch, L columns wide.

    ``row_ids`` says which answer of the whole rollout each row is. ``ids`` (rows, L) is all of it so far, ``attended``
    (rows, L) is 1 on the columns that belong to the row and can be seen; ``cache`` holds all columns but the last,
    whose id is what the model reads next. ``deltas`` (rows, 1): a row's next position is the number of its attended
    columns plus this (a picture has fewer positions than tokens, and none is lost with it).
    """

    row_ids: list[int]
    ids: Tensor
    attended: Tensor
    deltas: Tensor
    cache: DynamicCache

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
        """Leave all but some rows behind."""
        if len(rows) == len(self.row_ids):
            return  # selecting copies, and with large models the cache is large
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


def truncate_at_eos(ids: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """The ids up to and with the first end token, or all of them: what follows an end is padding."""
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[: first + 1])
