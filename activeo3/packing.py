"""What is said and what is shown, in tensors: prompts, branches, and the packed rows that model.py makes of them.

A row of a forward pass is ``prompt | branch 1 | ... | branch B``. A branch is one answer, or an episode of
several: turns that the policy sampled, and between two of them an observation that it was shown.

    turn 1 (sampled) | observation (given: words, perhaps a picture) | turn 2 (sampled) | ...

Observations are attended to like everything before them, but they are nobody's choice: ``Packed.tokens``
holds the sampled ids alone, so no loss that is made of it can train an observation.

Memory. An observation may take the place of all views before it (``Prompt.replaces``). From its first token on nothing
can attend to the image tokens of those views any more, the first one included, while the text of the dialogue stays:
what the policy thought, the coordinates that it wrote, the words that it was shown. This stands in the branch and
nowhere else, so the sampler (decoding.Rows.forget) and the update (``branching_mask``) cannot disagree. What it is not:
  1. Text keeps what it took in. The question and the turns were read and written while the old view could be
     seen, and their keys and values remain; a prompt made anew of the text alone would have lost that as well.
  2. Positions stay as they are, and so does the length: the old image tokens are hidden, not removed.
"""

from dataclasses import dataclass
from typing import Callable, Self, Sequence

import torch
from torch import Tensor

PREFIX, PADDING = -1, -2  # owners of columns that belong to no branch

Rule = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]
"""May it look? A function of row, head, query and key (all are columns, as index tensors that broadcast)."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A user turn: the words and pictures that are given to the model, encoded once for all uses.

    ``ids`` (S_i,) has one image token per visual feature. ``pixels`` (patches, patch values) are those of
    all its pictures one after the other, ``grids`` (N, 3) = (time, height, width) in patches of each; a turn
    without a picture has none of either. ``name`` is what a complaint calls it: the example's id. From one that
    ``replaces`` on, the pictures of earlier turns cannot be seen any more.
    """

    ids: Tensor
    pixels: Tensor
    grids: Tensor
    name: str = ""
    replaces: bool = False


@dataclass(frozen=True, eq=False)
class Branch:
    """What follows a prompt: the turns that were sampled, and what was shown between them.

    ``turns`` (one or more) are sampled ids, the end token included unless the turn was cut off;
    ``shown[i]`` stands between turn i and turn i + 1. ``logps`` are the sampler's log-probabilities of all sampled ids
    in order, or none if it was greedy.

    >>> Branch(((5, 6), (7,)), (Prompt(torch.tensor([1, 2, 3]), torch.zeros(0, 4), torch.zeros(0, 3)),)).ids
    (5, 6, 1, 2, 3, 7)
    """

    turns: tuple[tuple[int, ...], ...]
    shown: tuple[Prompt, ...] = ()
    logps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.turns) != len(self.shown) + 1:
            raise ValueError(f"{len(self.shown)} observations do not stand between {len(self.turns)} turns")

    @classmethod
    def of(cls, said: "Branch | Sequence[int]") -> Self:
        """A branch as it is, or a plain answer as the branch of one turn."""
        return said if isinstance(said, cls) else cls((tuple(said),))

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens in order, those of observations included."""
        ids = self.turns[0]
        for observation, turn in zip(self.shown, self.turns[1:]):
            ids += tuple(observation.ids.tolist()) + turn
        return ids

    @property
    def sampled(self) -> tuple[bool, ...]:
        """For each of ``ids``: did the policy choose it?"""
        flags = [True] * len(self.turns[0])
        for observation, turn in zip(self.shown, self.turns[1:]):
            flags += [False] * len(observation.ids) + [True] * len(turn)
        return tuple(flags)

    @property
    def eras(self) -> tuple[int, ...]:
        """For each of ``ids``: how often all views before it had been replaced; an observation counts itself."""
        image_epoch, eras = 0, [0] * len(self.turns[0])
        for observation, turn in zip(self.shown, self.turns[1:]):
            image_epoch += observation.replaces
            eras += [image_epoch] * (len(observation.ids) + len(turn))
        return tuple(eras)

    @property
    def answer(self) -> tuple[int, ...]:
        """The sampled ids of all turns, without what was shown."""
        return sum(self.turns, ())


def dialogue(prompt: Prompt, turns: Sequence[Sequence[int]], shown: Sequence[Prompt]) -> list[Prompt]:
    """A prompt and the turns and observations that followed it, in order; a turn is given like words without a
    picture."""
    spoken = [Prompt(torch.tensor(turn), prompt.pixels[:0], prompt.grids[:0]) for turn in turns]
    return [prompt, *(part for pair in zip(spoken, shown, strict=True) for part in pair)]


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of ``prefix | branches`` as one forward pass wants them, and where the sampled tokens are.

    ``inputs`` are the model's keyword arguments; ``prefix`` is S, the columns that hold prompts
    (padded so that every prompt ends in column S - 1). ``tokens`` (R, B, T) are the ids that were
    sampled, branch by branch, ``completion_mask`` (R, B, T) is True where there is one and False on padding, and
    ``columns`` (R, B, T) says which of the W columns behind the prefix holds the token.

    ``logit_columns`` (K,) are the columns whose logits are needed, in ascending order: 0 is the prefix's last one,
    w + 1 is column w. Those inside an observation predict nothing that was sampled; None keeps all.

    If every answer has a row of its own (model.py), there are R B rows of ``prefix | branch``, prompt by prompt. What
    ``prompts`` are the arguments of is read before them, as a batch of R; then the prefix is a prompt's last token.
    """

    inputs: dict[str, Tensor]
    prefix: int
    tokens: Tensor
    completion_mask: Tensor
    columns: Tensor
    logit_columns: Tensor | None = None
    prompts: dict[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """R rows of branches, side by side: where everything stands in the W columns behind the prefix.

    ``tokens``, ``completion_mask``, ``columns`` and ``logit_columns`` are those of ``Packed``; ``ids`` (R, W) is what
    stands there, ``branch_id`` (R, W) the branch that a column belongs to, ``position_in_branch`` (R, W) how far into
    it; ``image_epoch`` (R, W) is that of ``Branch``, or None if no view was replaced.
    """

    tokens: Tensor
    completion_mask: Tensor
    columns: Tensor
    logit_columns: Tensor | None
    ids: Tensor
    branch_id: Tensor
    position_in_branch: Tensor
    image_epoch: Tensor | None


def lay_out(rows: Sequence[Sequence[Branch]], pad: int, device: torch.device) -> Layout:
    """Lay the branches of every row close together; rows are padded on the right with ``pad``.

    Every row needs the same number B of branches.
    """
    R, B = len(rows), len(rows[0])
    T = max(len(branch.answer) for row in rows for branch in row)
    W = max(sum(len(branch.ids) for branch in row) for row in rows)
    tokens, columns = torch.full((R, B, T), pad), torch.zeros((R, B, T), dtype=torch.long)
    ids, branch_id, position_in_branch = (
        torch.full((R, W), pad),
        torch.full((R, W), PADDING),
        torch.zeros((R, W), dtype=torch.long),
    )
    image_epoch = torch.zeros((R, W), dtype=torch.long)
    needed = torch.zeros(
        1 + W, dtype=torch.bool
    )  # which logits some row needs: of the prefix's last column, of each column
    needed[0] = True
    for r, row in enumerate(rows):
        begin = 0
        for b, branch in enumerate(row):
            sampled = torch.tensor(branch.sampled, dtype=torch.bool)
            end, count = begin + len(sampled), int(sampled.sum())
            ids[r, begin:end] = torch.tensor(branch.ids)
            tokens[r, b, :count] = torch.tensor(branch.answer)
            columns[r, b, :count] = held = torch.arange(begin, end)[sampled]
            needed[held[1:]] = True  # the column before a token predicts it; the first is predicted by the prefix
            branch_id[r, begin:end] = b
            position_in_branch[r, begin:end] = torch.arange(len(sampled))
            image_epoch[r, begin:end] = torch.tensor(branch.eras)
            begin = end
    lengths = torch.tensor([[len(branch.answer) for branch in row] for row in rows])  # (R, B)
    completion_mask = torch.arange(T) < lengths[..., None]  # (R, B, T)
    logit_columns = needed.nonzero()[:, 0] if any(branch.shown for row in rows for branch in row) else None
    parts = dict(
        tokens=tokens,
        completion_mask=completion_mask,
        columns=columns,
        logit_columns=logit_columns,
        ids=ids,
        branch_id=branch_id,
        position_in_branch=position_in_branch,
    )
    parts["image_epoch"] = image_epoch if image_epoch.any() else None
    return Layout(**{name: part if part is None else part.to(device) for name, part in parts.items()})


def sampler_logps(rows: Sequence[Sequence[Branch]]) -> Tensor:
    """The sampler's log-probabilities (R, B, T) of R rows of B branches, laid out as ``Packed.tokens``; NaN where there
    is none."""
    longest = max(len(branch.answer) for row in rows for branch in row)
    return torch.tensor(
        [[[*branch.logps, *[torch.nan] * (longest - len(branch.logps))] for branch in row] for row in rows]
    )


def padded(rows: Sequence[Tensor], pad: int, device: torch.device, before_last: bool = False) -> tuple[Tensor, Tensor]:
    """Ids (R, S) of rows of unequal lengths and the mask (R, S) that is 1 on real tokens.

    All end in the last column. Padding stands on the left or, with ``before_last``, in front of the last token: then
    the others have none before them, and need no mask to read from left to right.
    """
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad)
    attended = torch.zeros((len(rows), length), dtype=torch.long)
    for r, row in enumerate(rows):
        columns = torch.arange(length - len(row), length)
        if before_last:
            columns[:-1] = torch.arange(len(row) - 1)
        ids[r, columns] = row
        attended[r, columns] = 1
    return ids.to(device), attended.to(device)


def mask_mod(
    attended: Tensor, branch_id: Tensor, image_epoch: Tensor | None = None, picture: Tensor | None = None
) -> Rule:
    """Who may see whom in ``prefix | branches``: True where the query may look.

    ``attended`` (R, S) is True on a prefix's real tokens, ``branch_id`` (R, W) names the branch of a column. Causal; a
    branch sees the prefix and itself only; padding is seen by nobody but itself (a query that sees nothing would have a
    softmax of NaN). With ``image_epoch`` (R, W) of the columns behind the prefix, a column that holds a ``picture`` (R,
    S + W) is seen by those of its own era only.
    """
    branch = torch.cat([torch.full_like(attended, PREFIX, dtype=branch_id.dtype), branch_id], dim=1)  # (R, S + W)
    completion_mask = torch.cat([attended, branch_id != PADDING], dim=1)
    read = (
        None
        if image_epoch is None
        else torch.cat([torch.zeros_like(attended, dtype=image_epoch.dtype), image_epoch], dim=1)
    )

    def may_see(row: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        family = (branch[row, key] == PREFIX) | (branch[row, key] == branch[row, query])
        allowed = (key <= query) & family & completion_mask[row, key] | (key == query)
        if read is not None:  # the prefix is read first
            allowed = allowed & ~(picture[row, key] & (read[row, key] < read[row, query]))
        return allowed

    return may_see


def branching_mask(rule: Rule, rows: int, columns: int, device: torch.device, first: int = 0) -> Tensor:
    """A rule written out: True (R, 1, Q, L) where a query may look; queries are the columns from ``first`` on."""
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return rule(row[:, None, None], None, column[first:, None], column)[:, None]
