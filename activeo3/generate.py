"""Sampling answers: each prompt is paid for once.

Every prompt is prefilled, its key-value cache is repeated G times, and all P x G answers decode as one batch.

An answer may be an episode of several turns with observations in between (packing.py). One turn is the
special case: rows that are shown something go on with their cache, in the same batch and the same loop.
"""

import warnings
from contextlib import contextmanager
from typing import Callable, Iterator, Sequence, TypeVar

import torch
from transformers import GenerationConfig

from activeo3.answer_text import repeats
from activeo3.attention import mask_for
from activeo3.decoders import Drawing, write_by_generate, write_in_place
from activeo3.decoding import GONE, DecodeBatch, Observe, new_cache, truncate_at_eos
from activeo3.encoding import Encoder
from activeo3.families import FAMILIES
from activeo3.model_files import of_no_use
from activeo3.packing import Branch, Prompt, dialogue, padded
from activeo3.types import Sampling

# transformers renamed the cache's argument; the old name works in every version that is supported.
warnings.filterwarnings("ignore", message=".*past_key_values.* is deprecated", category=FutureWarning)

T, R = TypeVar("T"), TypeVar("R")


def in_batches(work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], most: int) -> list[R]:
    """``work`` on up to ``most`` items at a time, and on half as many as soon as a GPU's memory is not enough."""
    found: list[R] = []
    while len(found) < len(items):
        part = items[len(found) : len(found) + most]
        try:
            found += work(part)
            continue
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
        most = len(part) // 2  # behind the except block, whose traceback holds the tensors
        torch.cuda.empty_cache()
    return found


class Generator(Encoder):
    """A model that samples answers."""

    def generate(self, prompts: Sequence[Prompt], group: int, sampling: Sampling) -> list[list[tuple[int, ...]]]:
        """Sample ``group`` answers of one turn to every prompt (see ``generate_multi_turn``)."""
        return [[branch.answer for branch in row] for row in self.generate_multi_turn(prompts, group, sampling)]

    @torch.no_grad()
    def generate_multi_turn(
        self, prompts: Sequence[Prompt], group: int, sampling: Sampling, observe: Observe | None = None
    ) -> list[list[Branch]]:
        """Sample ``group`` answers to every prompt; a turn's ids end with the end token unless cut off.

        All prompts are prefilled together up to their last token, the cache is repeated ``group`` times,
        and P x G rows decode as one batch, from which rows that have ended their turn are dropped. With
        ``observe``, those that it shows something wait until all have ended, read what they are shown, and
        decode their next turn together, of up to ``max_new_tokens`` again. A turn that was cut off, by its
        length or because it repeats itself, is the last. Weights must be whole on this rank (engine.gathered).

        Raises ValueError if an observation ``replaces`` views in the running state of such a family; ModelError if
        logits are not finite.
        """
        with self._evaluating():
            rows = self._prefilled([[prompt] for prompt in prompts], group)
            turns: list[list[tuple[int, ...]]] = [[()] for _ in rows.row_ids]
            logps: list[tuple[float, ...]] = [()] * len(rows.row_ids)
            shown: list[list[Prompt]] = [[] for _ in rows.row_ids]
            waiting: list[DecodeBatch] = []
            written, times = 0, sampling.stop_repeats
            while rows.row_ids:
                # In stretches that double, so that answers which have ended do not wait for the longest.
                stretch = min(max(4, written), 32, sampling.max_new_tokens - written)
                fresh, probable = self._decode(rows, stretch, sampling)
                written += stretch
                for place in rows.places:
                    turns[rows.row_ids[place]][-1] += fresh[place]
                    logps[rows.row_ids[place]] += probable[place]
                ended = [place for place in rows.places if self.is_finished(fresh[place])]
                if observe and ended:
                    seen = observe([(rows.row_ids[i], turns[rows.row_ids[i]][-1]) for i in ended])
                    going_on = [i for i, observation in zip(ended, seen, strict=True) if observation]
                    for i, observation in zip(going_on, filter(None, seen)):
                        shown[rows.row_ids[i]].append(observation)
                    if going_on:
                        waiting.append(rows.copy(going_on, self.states))
                over = written >= sampling.max_new_tokens
                lost = [place for place in rows.places if times and repeats(turns[rows.row_ids[place]][-1], times)]
                rows.keep([] if over else [place for place in rows.places if place not in ended + lost])
                if not rows.row_ids and waiting:
                    if self.states:
                        row_ids = [row for part in waiting for row in part.row_ids]
                        rows = self._read_again(
                            row_ids, [dialogue(prompts[row // group], turns[row], shown[row]) for row in row_ids]
                        )
                    else:
                        rows = DecodeBatch.joined(waiting)
                        self._show(rows, [shown[row][-1] for row in rows.row_ids])
                    waiting, written = [], 0
                    for row in rows.row_ids:
                        turns[row].append(())
        branches = [Branch(tuple(said), tuple(seen), values) for said, seen, values in zip(turns, shown, logps)]
        return [branches[i : i + group] for i in range(0, len(branches), group)]

    def _prefilled(self, given: Sequence[Sequence[Prompt]], group: int = 1) -> DecodeBatch:
        """P x G rows that have read what each of P was given, one after the other: it is paid for once and its cache
        repeated."""
        ids, attended = padded(
            [torch.cat([turn.ids for turn in turns]) for turns in given], self.end_token, self.model.device
        )  # (P, S)
        self.vision_cache.encode([turn for turns in given for turn in turns])
        cache = new_cache(self.model.config.get_text_config())
        self.model(
            input_ids=ids[:, :-1],
            attention_mask=attended[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            mm_token_type_ids=(ids[:, :-1] == self.image_token).long(),
            **self._visual(given, ids[:, :-1]),
        )
        cache.batch_repeat_interleave(group)
        ids, attended, deltas = (
            x.repeat_interleave(group, dim=0) for x in (ids, attended, self.model.model.rope_deltas)
        )
        return DecodeBatch(list(range(len(ids))), ids, attended, deltas, cache)

    def _read_again(self, row_ids: Sequence[int], dialogues: Sequence[Sequence[Prompt]]) -> DecodeBatch:
        """Rows that have read their dialogue so far from its beginning. A running state has already taken in what the
        batch wrote behind the end of a turn, and has no place for padding behind it."""
        if any(turn.replaces for turns in dialogues for turn in turns):
            raise ValueError(f"a {self.family} model cannot forget a view that its running state has taken in")
        rows = self._prefilled(dialogues)
        rows.row_ids = list(row_ids)
        return rows

    def _decode(
        self, rows: DecodeBatch, stretch: int, sampling: Sampling
    ) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
        """Write up to ``stretch`` tokens into every row; returns those of each, up to its end token, and their
        log-probabilities, none if greedy. A row that was left behind gets none."""
        ends = tuple(sorted(self.end_tokens))
        drawing = Drawing(sampling.temperature, self.suppressed_ids, ends, self.end_token)
        if sampling.decoder == "hf" or self.states:
            new, values, broken = write_by_generate(self.model, rows, stretch, drawing)
        else:
            new, values, broken = write_in_place(self.model, rows, stretch, drawing, self.fixed_room)
        if broken:
            raise of_no_use(self.name, self.model)
        fresh = [() if row == GONE else truncate_at_eos(ids, ends) for row, ids in zip(rows.row_ids, new.tolist())]
        logps = values.tolist() if values is not None else [()] * len(fresh)
        lengths = torch.tensor([[len(tokens)] for tokens in fresh], device=new.device)
        rows.extend(new, torch.arange(new.shape[1], device=new.device) < lengths)
        return fresh, [tuple(values[: len(tokens)]) for values, tokens in zip(logps, fresh)]

    @property
    def fixed_room(self) -> bool:
        """Whether a token reads all columns of its cache, to be a CUDA graph: on a GPU, unless layers choose experts by
        the token's values."""
        return self.model.device.type == "cuda" and not FAMILIES[self.family].experts

    def _show(self, rows: DecodeBatch, observations: Sequence[Prompt]) -> None:
        """Let every row read its observation, all but the last token, which ``_decode`` reads next."""
        ids, attended = self._padded(observations)  # (rows, O)
        self.vision_cache.encode(observations)
        visual = self._visual([[observation] for observation in observations], ids[:, :-1])
        positions, deltas = self._rope_index(ids, attended, observations)  # (3, rows, O), counted from 0
        before = rows.hide_old_images([seen.replaces for seen in observations], self.image_token)
        first = rows.attended.sum(dim=1, keepdim=True) + rows.deltas  # (rows, 1) the position after the turn
        pending = rows.ids[:, -1:]  # the turn's last token is not in the cache yet
        rows.extend(ids, attended)
        self.model(
            input_ids=torch.cat([pending, ids[:, :-1]], dim=1),
            position_ids=torch.cat([(first - 1).expand(3, -1, 1), (first + positions)[:, :, :-1]], dim=2),
            attention_mask=rows.attended[:, :-1]
            if before is None
            else mask_for(self._attention, rows.visibility_mask(before), self.model.dtype),
            past_key_values=rows.cache,
            use_cache=True,
            logits_to_keep=1,
            **visual,
        )
        rows.deltas = rows.deltas + deltas

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for the block; afterwards, also after an error, the model is as it was.

        The checkpoint's generation settings are put aside: transformers fills up with them what a call leaves open.
        """
        training, stated = self.model.training, self.model.generation_config
        self.model.eval()
        self.model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            self.model.train(training)
            self.model.generation_config = stated
            self.model.model.rope_deltas = None  # state of one rollout; a later forward must not inherit it
