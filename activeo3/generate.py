"""Sampling answers: each prompt is paid for once.

Every prompt is prefilled, its key-value cache is repeated G times, and all P x G answers decode as one batch.

An answer may be an episode of several turns with observations in between (packing.py). One turn is the
special case: rows that are shown something go on with their cache, in the same batch and the same loop.
"""

from typing import Sequence

import torch

from activeo3.attention import mask_for
from activeo3.decoding import Observe, Rows, new_cache, until
from activeo3.encoding import Encoder
from activeo3.packing import Branch, Prompt
from activeo3.schema import Sampling


class Generator(Encoder):
    """A model that samples answers."""

    def generate(self, prompts: Sequence[Prompt], group: int, sampling: Sampling) -> list[list[tuple[int, ...]]]:
        """Sample ``group`` answers of one turn to every prompt (see ``converse``)."""
        return [[branch.answer for branch in row] for row in self.converse(prompts, group, sampling)]

    @torch.no_grad()
    def converse(
        self, prompts: Sequence[Prompt], group: int, sampling: Sampling, observe: Observe | None = None
    ) -> list[list[Branch]]:
        """Sample ``group`` answers to every prompt; a turn's ids end with the end token unless cut off.

        All prompts are prefilled together up to their last token, the cache is repeated ``group`` times,
        and P x G rows decode as one batch, from which rows that have ended their turn are dropped. With
        ``observe``, those that it shows something wait until all have ended, read what they are shown, and
        decode their next turn together, of up to ``max_new_tokens`` again. A turn that was cut off is the
        last. Weights must be whole on this rank (engine.gathered).
        """
        with self._evaluating():
            rows = self._prefilled(prompts, group)
            turns: list[list[tuple[int, ...]]] = [[()] for _ in rows.which]
            shown: list[list[Prompt]] = [[] for _ in rows.which]
            waiting: list[Rows] = []
            written = 0
            while rows.which:
                # In stretches that double, so that answers which have ended do not wait for the longest.
                stretch = min(max(4, written), 32, sampling.max_new_tokens - written)
                fresh = self._decode(rows, stretch, sampling)
                written += stretch
                for row, tokens in zip(rows.which, fresh):
                    turns[row][-1] += tokens
                ended = [i for i, tokens in enumerate(fresh) if tokens[-1] == self.end_token]
                if observe and ended:
                    seen = observe([(rows.which[i], turns[rows.which[i]][-1]) for i in ended])
                    going_on = [i for i, observation in zip(ended, seen, strict=True) if observation]
                    for i, observation in zip(going_on, filter(None, seen)):
                        shown[rows.which[i]].append(observation)
                    if going_on:
                        waiting.append(rows.copy(going_on))
                over = written >= sampling.max_new_tokens
                rows.keep([] if over else [i for i in range(len(fresh)) if i not in ended])
                if not rows.which and waiting:
                    rows, waiting, written = Rows.joined(waiting), [], 0
                    self._show(rows, [shown[row][-1] for row in rows.which])
                    for row in rows.which:
                        turns[row].append(())
        branches = [Branch(tuple(said), tuple(seen)) for said, seen in zip(turns, shown)]
        return [branches[i : i + group] for i in range(0, len(branches), group)]

    def _prefilled(self, prompts: Sequence[Prompt], group: int) -> Rows:
        """P x G rows that have read their prompt: each prompt is paid for once and its cache repeated."""
        ids, attended = self._padded(prompts)  # (P, S)
        self.eyes.look(prompts)
        cache = new_cache(self.model.config.get_text_config().num_hidden_layers)
        self.model(
            input_ids=ids[:, :-1],
            attention_mask=attended[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            mm_token_type_ids=(ids[:, :-1] == self.image_token).long(),
            **self._visual([[prompt] for prompt in prompts], ids[:, :-1]),
        )
        cache.batch_repeat_interleave(group)
        ids, attended, deltas = (
            x.repeat_interleave(group, dim=0) for x in (ids, attended, self.model.model.rope_deltas)
        )
        return Rows(list(range(len(ids))), ids, attended, deltas, cache)

    def _decode(self, rows: Rows, stretch: int, sampling: Sampling) -> list[tuple[int, ...]]:
        """Write up to ``stretch`` tokens into every row; returns those of each, up to its end token."""
        self.model.model.rope_deltas = rows.deltas
        out = self.model.generate(
            input_ids=rows.ids,
            attention_mask=rows.attended,
            past_key_values=rows.cache,
            max_new_tokens=stretch,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            top_k=0 if sampling.temperature > 0 else None,
            top_p=1.0 if sampling.temperature > 0 else None,
            repetition_penalty=1.0,
            suppress_tokens=list(self.forbidden),
            eos_token_id=self.end_token,
            pad_token_id=self.end_token,
        )
        new = out[:, rows.ids.shape[1] :]  # (rows, up to stretch)
        fresh = [until(ids, self.end_token) for ids in new.tolist()]
        lengths = torch.tensor([[len(tokens)] for tokens in fresh], device=new.device)
        rows.extend(new, torch.arange(new.shape[1], device=new.device) < lengths)
        return fresh

    def _show(self, rows: Rows, observations: Sequence[Prompt]) -> None:
        """Let every row read its observation, all but the last token, which ``_decode`` reads next."""
        ids, attended = self._padded(observations)  # (rows, O)
        self.eyes.look(observations)
        visual = self._visual([[observation] for observation in observations], ids[:, :-1])
        positions, deltas = self._rope_index(ids, attended, observations)  # (3, rows, O), counted from 0
        before = rows.forget([seen.replaces for seen in observations], self.image_token)
        first = rows.attended.sum(dim=1, keepdim=True) + rows.deltas  # (rows, 1) the position after the turn
        pending = rows.ids[:, -1:]  # the turn's last token is not in the cache yet
        rows.extend(ids, attended)
        self.model(
            input_ids=torch.cat([pending, ids[:, :-1]], dim=1),
            position_ids=torch.cat([(first - 1).expand(3, -1, 1), (first + positions)[:, :, :-1]], dim=2),
            attention_mask=rows.attended[:, :-1] if before is None else mask_for(self._attention, rows.sight(before), self.model.dtype),
            past_key_values=rows.cache,
            use_cache=True,
            logits_to_keep=1,
            **visual,
        )
        rows.deltas = rows.deltas + deltas

    def ends(self, turn: Sequence[int]) -> bool:
        """Did a turn end by itself, and not by the length limit?"""
        return bool(turn) and turn[-1] == self.end_token

    def words_of(self, turn: Sequence[int]) -> str:
        """A turn as text, without its end token."""
        return self.tokenizer.decode(turn[:-1] if self.ends(turn) else turn, skip_special_tokens=False)
