"""Scoring answers: each prompt is paid for once.

A prompt and its G answers are one packed row, ``prefix | branch 1 | ... | branch G``, in which a branch sees the
prefix and itself but not its siblings, and in which positions restart after the prefix. The result is that of G
separate rows.
"""

from typing import Sequence

import torch
from torch import Tensor, nn

from activeo3.attention import free_columns, packed_mask
from activeo3.encoding import Encoder
from activeo3.packing import Branch, Layout, Packed, Prompt, branching_rule, lay_out


class Scorer(Encoder):
    """A model that says how probable answers are."""

    def pack(self, prompts: Sequence[Prompt], branches: Sequence[Sequence[Branch | Sequence[int]]]) -> Packed:
        """Lay out R prompts with their branches as one row each (see ``Packed``).

        A plain sequence of ids is a branch of one turn. Branches of a row stand close together, so unequal
        lengths cost nothing inside a row; rows are padded on the right to the longest. Every row needs the
        same number B of branches.

        Raises ValueError unless the text tower's attention takes a mask of this kind.
        """
        rows = [[Branch.of(branch) for branch in row] for row in branches]
        free = free_columns(self._attention, max(len(prompt.ids) for prompt in prompts))
        ids, attended = self._padded(prompts, before_last=free > 0)  # (R, S)
        laid = lay_out(rows, self.end_token, ids.device)
        everything = torch.cat([ids, laid.ids], dim=1)  # (R, S + W)
        given = [[prompt, *(seen for branch in row for seen in branch.shown)] for prompt, row in zip(prompts, rows)]
        visual = self._visual(given, everything)
        positions, _ = self._rope_index(ids, attended, prompts)  # (3, R, S)
        after = positions.amax(dim=(0, 2))[:, None] + 1 + self._depth(rows, laid)  # (3, R, W)
        rule = branching_rule(attended.bool(), laid.owner, laid.era, everything == self.image_token)
        inputs = {
            "input_ids": everything,
            "position_ids": torch.cat([positions, after], dim=2),  # (3, R, S + W)
            "attention_mask": packed_mask(self._attention, rule, everything, free, self.model.dtype),
            **visual,
        }
        return Packed(inputs, ids.shape[1], laid.tokens, laid.real, laid.columns, laid.kept)

    def _depth(self, rows: Sequence[Sequence[Branch]], laid: Layout) -> Tensor:
        """Positions (3, R, W) inside the branches, counted from 0: a picture spans rows and columns."""
        depth = laid.depth.expand(3, -1, -1).clone()
        for r, row in enumerate(rows):
            for b, branch in enumerate(row):
                if any(len(seen.grids) for seen in branch.shown):
                    ids = torch.tensor([branch.ids], device=depth.device)
                    inside, _ = self._rope_index(ids, torch.ones_like(ids), branch.shown)  # (3, 1, length)
                    depth[:, r, laid.owner[r] == b] = inside[:, 0]
        return depth

    def forward_packed(self, packed: Packed, module: nn.Module | None = None) -> Tensor:
        """Logits (R, 1 + W, V) of the prefix's last column and of the W branch columns, or (R, K, V) of those
        of them that are ``kept``.

        The head runs on these columns alone: the prefix is most of the row and needs no logits.
        ``module`` is the model as the engine wraps it; by default the bare model.
        """
        kept = packed.kept
        if kept is None:
            kept = torch.arange(packed.inputs["input_ids"].shape[1] - packed.prefix + 1, device=packed.tokens.device)
        out = (module or self.model)(**packed.inputs, logits_to_keep=packed.prefix - 1 + kept, use_cache=False)
        return out.logits
