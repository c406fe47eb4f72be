"""The jobs of an evaluation: what is proposed for a block of pictures, and what is found in its regions.

A block of BATCH examples is one job, worked on in the same way wherever and whenever that is. So a table is
the same on any number of ranks, and after any interruption (ledger.py). Results travel as plain values:
pictures, which are large, stay where they are.
"""

import time
from dataclasses import replace
from itertools import chain
from typing import Any, Sequence

import numpy as np
from PIL import Image

from activeo3 import geometry
from activeo3.config import _Config
from activeo3.ledger import Job, Share, alone
from activeo3.models import VisionLanguageModel
from activeo3.proposals import ASKED, Regions, propose
from activeo3.schema import Action, Example, Outcome, Region, Rollout
from activeo3.taskmodels import TaskModel, act

BATCH = 16  # pictures that are looked at together, and then zoomed into

Expert = VisionLanguageModel | TaskModel
Part = tuple[Sequence[Example], Sequence[Sequence[Region]]]
"""Examples and the regions of each."""


def blocks(examples: Sequence[Any]) -> list[Sequence[Any]]:
    """Examples, or what belongs to them, in order, BATCH at a time."""
    return [examples[first : first + BATCH] for first in range(0, len(examples), BATCH)]


# ---------------------------------------------------------------------- looking


def proposed(
    method: str,
    examples: Sequence[Example],
    policy: VisionLanguageModel | None,
    config: _Config,
    fixed: np.ndarray | None = None,
    share: Share = alone,
) -> tuple[list[Rollout], float]:
    """What a method proposes for every example, and the seconds it took; rules take none."""
    if method not in ASKED:
        return propose(method, examples, policy, config, fixed), 0.0

    def work(block: Sequence[Example]) -> tuple[list[Any], float]:
        began = time.perf_counter()
        answers = [_told(rollout) for rollout in propose(method, block, policy, config)]
        return answers, time.perf_counter() - began

    told, seconds = zip(*share(Job(("look", method == "repeat", policy, config), work), blocks(examples)))
    return [_rollout(*pair) for pair in zip(examples, chain(*told), strict=True)], sum(seconds)


def _told(rollout: Rollout) -> tuple[Any, ...]:
    action = rollout.action
    strict = action.strict and (action.strict.boxes_text, action.strict.labels, action.strict.error)
    read = (action.boxes_text, action.labels, action.error, strict)
    return rollout.token_ids, rollout.text, rollout.finished, read, rollout.regions


def _rollout(example: Example, told: Sequence[Any]) -> Rollout:
    ids, text, finished, read, regions = told
    return Rollout(example, tuple(ids), text, finished, _action(*read), tuple(Region(*box) for box in regions))


def _action(boxes: Sequence[Any], labels: Sequence[str], error: str | None, strict: Sequence[Any] | None = None) -> Action:
    return Action(tuple(map(tuple, boxes)), tuple(labels), error, strict and _action(*strict))


# ---------------------------------------------------------------------- acting


def found(
    expert: Expert,
    examples: Sequence[Example],
    regions: Regions,
    config: _Config,
    share: Share = alone,
    black: bool = False,
) -> tuple[list[Outcome], float]:
    """What a task model finds for every example in its regions, and the seconds it took.

    With ``black`` it gets black crops: what it finds then does not come from looking.
    """
    if black:
        examples = blackened(examples)
    outcomes, seconds = zip(*found_in(expert, list(zip(blocks(examples), blocks(regions), strict=True)), config, share))
    return list(chain(*outcomes)), sum(seconds)


def found_in(expert: Expert, parts: Sequence[Part], config: _Config, share: Share = alone) -> list[tuple[list[Outcome], float]]:
    """The outcomes of every part, one per example, and the seconds they took."""

    def work(part: Part) -> tuple[list[Any], float]:
        began = time.perf_counter()
        outcomes = act(expert, *part, config)
        return [_plain(outcome) for outcome in outcomes], time.perf_counter() - began

    return [
        ([_outcome(*told) for told in plain], seconds) for plain, seconds in share(Job(("act", expert, config), work), parts)
    ]


def _plain(o: Outcome) -> tuple[Any, ...]:
    return o.boxes_px.tolist(), o.scores.tolist(), o.texts, o.calls, o.tokens, o.lenient_only, o.strict and _plain(o.strict)


def _outcome(
    boxes: Sequence[Any], scores: Sequence[float], texts: Sequence[str], calls: int, tokens: int, lenient_only: int,
    strict: Sequence[Any] | None,
) -> Outcome:  # fmt: skip
    return Outcome(
        geometry.as_boxes(boxes), np.array(scores, dtype=np.float64), tuple(texts), calls, tokens,
        strict=strict and _outcome(*strict), lenient_only=lenient_only,
    )  # fmt: skip


def blackened(examples: Sequence[Example]) -> list[Example]:
    """The same questions about black pictures; those of one size share their pixels."""
    black = {size: Image.new("RGB", size) for size in {example.size_px for example in examples}}
    return [replace(example, image=black[example.size_px]) for example in examples]
