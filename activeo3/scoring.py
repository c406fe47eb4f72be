"""Scoring answers: how probable they are, for a prompt and its G answers in one of three ways.

    packed   one row for a prompt and its answers, ``prefix | branch 1 | ... | branch G``, in which a branch sees the
             prefix and itself but not its siblings, and in which positions restart after the prefix
    cached   the prompt once, with a cache, and then the answers as a batch behind the repeated cache (decoding.py)
    rows     the prompt again for every answer: the naive way, which the others are compared with

All three give the same log-probabilities and gradients. ``packed`` pays for each prompt once and for no padding between
answers, and is the default. A mask is all that separates the siblings there, and it cannot where the text tower keeps
a running state: such families are ``cached``.
"""

from dataclasses import replace
from typing import Sequence

import torch
from torch import Tensor, nn

from activeo3.attention import free_columns, mask_for, packed_mask
from activeo3.decoding import PromptCache
from activeo3.encoding import Encoder
from activeo3.packing import PADDING, Branch, Layout, Packed, Prompt, branching_mask, lay_out, mask_mod

Rows = Sequence[Sequence[Branch]]


class Scorer(Encoder):
    """A model that says how probable answers are."""

    def pack(self, prompts: Sequence[Prompt], branches: Sequence[Sequence[Branch | Sequence[int]]]) -> Packed:
        """Lay out R prompts with their branches in the way of ``scoring`` (see ``Packed``).

        A plain sequence of ids is a branch of one turn. Every prompt needs the same number B of branches.

        Raises ValueError unless the text tower's attention takes a mask of this kind.
        """
        ways = {"packed": self._side_by_side, "cached": self._behind_a_cache, "rows": self._one_by_one}
        return ways[self.scoring](prompts, [[Branch.of(branch) for branch in row] for row in branches])

    def forward_packed(self, packed: Packed, module: nn.Module | None = None) -> Tensor:
        """Logits (R, 1 + W, V) of the prefix's last column and of the W branch columns, or (R, K, V) of those
        of them that are ``logit_columns``. R is R B if every answer has a row of its own.

        The head runs on these columns alone: the prefix is most of the row and needs no logits.
        ``module`` is the model as the engine wraps it; by default the bare model.
        """
        module, logit_columns, behind = module or self.model, packed.logit_columns, {}
        if logit_columns is None:
            logit_columns = torch.arange(
                packed.inputs["input_ids"].shape[1] - packed.prefix + 1, device=packed.tokens.device
            )
        if packed.prompts is not None:
            read = PromptCache(self.model.config.get_text_config())
            module(**packed.prompts, past_key_values=read, logits_to_keep=1, use_cache=False)
            behind = {"past_key_values": read.behind(packed.tokens.shape[1])}
        out = module(**packed.inputs, **behind, logits_to_keep=packed.prefix - 1 + logit_columns, use_cache=False)
        return out.logits

    # ------------------------------------------------------------------ packed

    def _side_by_side(self, prompts: Sequence[Prompt], rows: Rows) -> Packed:
        """Branches of a row stand close together, so unequal lengths cost nothing inside a row; rows are padded on
        the right to the longest."""
        free = free_columns(self._attention, max(len(prompt.ids) for prompt in prompts))
        ids, attended = self._padded(prompts, before_last=free > 0)  # (R, S)
        laid = lay_out(rows, self.end_token, ids.device)
        everything = torch.cat([ids, laid.ids], dim=1)  # (R, S + W)
        given = [[prompt, *(seen for branch in row for seen in branch.shown)] for prompt, row in zip(prompts, rows)]
        visual = self._visual(given, everything)
        positions, _ = self._rope_index(ids, attended, prompts)  # (3, R, S)
        after = positions.amax(dim=(0, 2))[:, None] + 1 + self._depth(rows, laid)  # (3, R, W)
        rule = mask_mod(attended.bool(), laid.branch_id, laid.image_epoch, everything == self.image_token)
        inputs = {
            "input_ids": everything,
            "position_ids": torch.cat([positions, after], dim=2),  # (3, R, S + W)
            "attention_mask": packed_mask(self._attention, rule, everything, free, self.model.dtype),
            **visual,
        }
        return Packed(inputs, ids.shape[1], laid.tokens, laid.completion_mask, laid.columns, laid.logit_columns)

    def _depth(self, rows: Rows, laid: Layout) -> Tensor:
        """Positions (3, R, W) inside the branches, counted from 0: a picture spans rows and columns."""
        position_in_branch = laid.position_in_branch.expand(3, -1, -1).clone()
        for r, row in enumerate(rows):
            for b, branch in enumerate(row):
                if any(len(seen.grids) for seen in branch.shown):
                    ids = torch.tensor([branch.ids], device=position_in_branch.device)
                    inside, _ = self._rope_index(ids, torch.ones_like(ids), branch.shown)  # (3, 1, length)
                    position_in_branch[:, r, laid.branch_id[r] == b] = inside[:, 0]
        return position_in_branch

    # ------------------------------------------------------------------ cached, rows

    def _behind_a_cache(self, prompts: Sequence[Prompt], rows: Rows) -> Packed:
        """A batch of prompts up to their last token, which predicts the first of each branch and is read with it: the
        answers' pass has all logits that are needed."""
        ids, attended = self._padded(prompts)  # (R, S)
        positions, _ = self._rope_index(ids, attended, prompts)  # (3, R, S)
        read = {
            "input_ids": ids[:, :-1],
            "position_ids": positions[:, :, :-1],
            "attention_mask": attended[:, :-1],
            **self._visual([[prompt] for prompt in prompts], ids[:, :-1]),
        }
        return replace(self._one_by_one(prompts, rows, cached=ids.shape[1] - 1), prompts=read)

    def _one_by_one(self, prompts: Sequence[Prompt], rows: Rows, cached: int = 0) -> Packed:
        """R B rows of ``prompt | branch``, padded on both sides, without the columns that are ``cached``."""
        group, alone = len(rows[0]), [[branch] for row in rows for branch in row]
        ids, attended = self._padded(prompts)  # (R, S)
        positions, _ = self._rope_index(ids, attended, prompts)  # (3, R, S)
        ids, attended, positions = (x.repeat_interleave(group, dim=-2) for x in (ids, attended, positions))  # (R B, S)
        laid = lay_out(alone, self.end_token, ids.device)
        after = positions.amax(dim=(0, 2))[:, None] + 1 + self._depth(alone, laid)  # (3, R B, W)
        everything = torch.cat([ids, laid.ids], dim=1)  # (R B, S + W)
        begin = [[] if cached else [prompt] for prompt in prompts for _ in range(group)]
        given = [[*first, *branch.shown] for first, (branch,) in zip(begin, alone)]
        inputs = {
            "input_ids": everything[:, cached:],
            "position_ids": torch.cat([positions, after], dim=2)[:, :, cached:],
            "attention_mask": self._seen(attended, laid, everything, cached),
            **self._visual(given, everything[:, cached:]),
        }
        tokens, completion_mask, columns = (
            x.view(len(rows), group, -1) for x in (laid.tokens, laid.completion_mask, laid.columns)
        )
        return Packed(inputs, ids.shape[1] - cached, tokens, completion_mask, columns, laid.logit_columns)

    def _seen(self, attended: Tensor, laid: Layout, everything: Tensor, cached: int) -> Tensor:
        """What rows of one branch may see: 1 on real columns (rows, S + W), or if views were replaced, a mask of its
        own for every column behind the cached ones."""
        if laid.image_epoch is None:
            return torch.cat([attended, (laid.branch_id != PADDING).to(attended)], dim=1)
        rule = mask_mod(attended.bool(), laid.branch_id, laid.image_epoch, everything == self.image_token)
        return mask_for(
            self._attention, branching_mask(rule, *everything.shape, everything.device, cached), self.model.dtype
        )
