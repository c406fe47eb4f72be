"""Log-probabilities of branches, one plain row each."""

from dataclasses import replace
from typing import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from activeo3.grpo import answer_logps
from activeo3.model import VisionLanguageModel
from activeo3.packing import Branch, Packed, Prompt

Picture = Callable[..., Image.Image]


def ids_of(length: int, seed: int, end: int) -> tuple[int, ...]:
    """A random turn that ends with the end token."""
    generator = torch.Generator().manual_seed(seed)
    return (*torch.randint(10, 500, (length - 1,), generator=generator).tolist(), end)


def naive_mask(vlm: VisionLanguageModel, prompt: Prompt, branch: Branch) -> Tensor:
    """(1, 1, L, L) True where a token may look, one token after the other as they are read."""
    rows: list[list[bool]] = []
    pictures: list[int] = []
    hidden: set[int] = set()

    def read(ids: Sequence[int]) -> None:
        for token in ids:
            if token == vlm.image_token:
                pictures.append(len(rows))
            rows.append([place not in hidden for place in range(len(rows) + 1)])

    read(prompt.ids.tolist())
    read(branch.turns[0])
    for seen, turn in zip(branch.shown, branch.turns[1:]):
        if seen.replaces:
            hidden |= set(pictures)
        read(seen.ids.tolist())
        read(turn)
    return torch.tensor([row + [False] * (len(rows) - len(row)) for row in rows])[None, None]


def naive_logits(vlm: VisionLanguageModel, prompt: Prompt, branch: Branch) -> Tensor:
    """(1, L, V) from one plain forward pass over the episode, its mask written out only where views were replaced."""
    ids = torch.tensor([*prompt.ids.tolist(), *branch.ids])[None]
    given = [turn for turn in (prompt, *branch.shown) if len(turn.grids)]
    grids = torch.cat([turn.grids for turn in given])
    kinds = (ids == vlm.image_token).int()
    how = {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    if any(seen.replaces for seen in branch.shown):
        positions, _ = vlm.model.model.get_rope_index(ids, kinds, image_grid_thw=grids)
        how = {"attention_mask": naive_mask(vlm, prompt, branch), "position_ids": positions}
    pixels = torch.cat([turn.pixels for turn in given])
    return vlm.model(input_ids=ids, pixel_values=pixels, image_grid_thw=grids, use_cache=False, **how).logits


def naive_logps(vlm: VisionLanguageModel, prompt: Prompt, branch: Branch) -> Tensor:
    """(sampled tokens,): the log-probabilities of what was sampled, from one plain forward pass over the episode."""
    logits = naive_logits(vlm, prompt, branch)[
        0, len(prompt.ids) - 1 : -1
    ]  # of the column before each token of the branch
    keep = [i for i in range(logits.shape[-1]) if i not in vlm.suppressed_ids]
    logps = logits - logits[:, keep].exp().sum(dim=-1, keepdim=True).log()
    chosen = [(place, token) for place, (token, sampled) in enumerate(zip(branch.ids, branch.sampled)) if sampled]
    return torch.stack([logps[place, token] for place, token in chosen])


def packed_logps(vlm: VisionLanguageModel, packed: Packed) -> Tensor:
    logits = vlm.forward_packed(packed)
    return answer_logps(logits, packed.tokens, packed.columns, 1.0, vlm.suppressed_ids, packed.logit_columns)[0]


class Shows:
    """An ``Observe`` that shows row r, after its turn t, ``pictures[(r + t) % 4]``, and notes what it was asked."""

    def __init__(self, vlm: VisionLanguageModel, picture: Picture, most: int, notes: bool = False) -> None:
        views = [picture(48, 32, 2), picture(32, 64, 3), None, [picture(16, 16, 4), picture(48, 16, 6)]]
        self.seen = vlm.encode_next(views, ["Closer.", "And closer, please.", "That is no box.", "Both."])
        self.seen = [replace(one, replaces=notes and len(one.grids) > 0) for one in self.seen]
        self.most, self.asked = most, {}

    def after(self, row: int, turn: int) -> Prompt | None:
        return self.seen[(row + turn) % 4] if turn < self.most and (row + turn) % 3 else None

    def __call__(self, ended: Sequence[tuple[int, tuple[int, ...]]]) -> list[Prompt | None]:
        for row, ids in ended:
            self.asked.setdefault(row, []).append(ids)
        return [self.after(row, len(self.asked[row])) for row, _ in ended]
