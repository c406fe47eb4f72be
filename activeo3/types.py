"""The nouns that two or more rooms share, and the glossary of shapes.

Shape glossary, used at the end of tensor lines everywhere in this project:

    P  prompts on this rank           S  tokens of the longest prompt (image tokens included)
    G  answers sampled per prompt     T  tokens of the longest answer (its end token included)
    V  vocabulary                     N  ground-truth boxes of one example
    K  regions proposed in an answer  M  detections of the task model

Boxes are ``xyxy`` floats. A name ends in the frame its numbers live in: ``_px`` pixels of the original
picture, ``_view`` pixels of the resized picture that a model saw, ``_text`` the numbers a model writes
(view pixels for Qwen2.5-VL, 0-1000 for Qwen3-VL), ``_unit`` 0-1.
"""

from dataclasses import dataclass, field
from typing import Any, Mapping, NamedTuple

import numpy as np
from PIL import Image

LARGEST_REWARD = 1e30
"""Beyond it, rewards overflow in single precision when they are compared."""


class Region(NamedTuple):
    """A rectangle worth zooming into, xyxy in pixels of the original picture."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, eq=False)
class Example:
    """One question about one picture: where is every ``query``?

    ``boxes_px`` (N, 4) holds the true boxes and may be empty. ``crowd`` (N,) is True for a box that
    is neither asked for nor punished (COCO's ``iscrowd``). ``fields`` carries whatever a later task
    needs: a count, a word to read, a referring phrase, masks as RLE.
    """

    id: str
    image: Image.Image
    query: str
    boxes_px: np.ndarray
    image_id: int = 1
    category_id: int = 1
    crowd: np.ndarray | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of the original picture."""
        return self.image.size

    @property
    def asked_for(self) -> np.ndarray:
        """(N,) True for the boxes that count: all but the crowds."""
        none = np.zeros(len(self.boxes_px), dtype=bool)
        return ~(none if self.crowd is None else np.asarray(self.crowd, dtype=bool))


@dataclass(frozen=True)
class ParsedAnswer:
    """A model's answer, read. ``error`` names what is wrong with it, or is None; it never raises.

    ``boxes_text`` are finite numbers exactly as the model wrote them, in the order it wrote them. ``strict`` is what the
    strict reader made of an answer of which only the lenient one could read (all) that is here, else None.
    """

    boxes_text: tuple[tuple[float, float, float, float], ...]
    labels: tuple[str, ...] = ()
    error: str | None = None
    strict: "ParsedAnswer | None" = field(default=None, repr=False)

    @property
    def readable(self) -> bool:
        """Whether anything can be read of it. A list that is there and empty can; what breaks the form and names no box
        is no answer, not even "nothing"."""
        return self.error in (None, "empty") or bool(self.boxes_text)


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What came of one answer, in the original picture: found by a task model, or said by the answer itself.

    ``boxes_px`` (M, 4) and ``scores`` (M,) in descending rank. ``texts`` are raw answers for people to
    read: the task model's, one per region, or the policy's own. What it cost: ``calls``, the crops that were
    looked at, each counted once, and ``tokens``, what the task model wrote about them. A task whose result is
    of another kind adds a field with a default here: ``mask`` (H, W) is what a mask has become that was to be
    corrected. Where only the lenient reader could read some of the answers, ``strict`` is what the strict one would
    have left, and ``lenient_only`` how many of them there are.
    """

    boxes_px: np.ndarray
    scores: np.ndarray
    texts: tuple[str, ...] = ()
    calls: int = 0
    tokens: int = 0
    mask: np.ndarray | None = None
    strict: "TaskResult | None" = None
    lenient_only: int = 0


class Zoom(NamedTuple):
    """A request to look closer, and what came of it: ``status`` is one of zooms.STATUSES.

    ``window_px`` is the region in the original picture, None if there is none in the view; ``share`` is its
    part of the area of the view that it was chosen in. Only a region that was executed was shown.
    """

    status: str
    window_px: Region | None = None
    share: float = 0.0


class Episode(NamedTuple):
    """What a policy did in several turns: the ``statuses`` of the turns, its zooms in order (those that came
    to nothing included), and its answer in words, None if it gave none."""

    statuses: tuple[str, ...]
    zooms: tuple[Zoom, ...]
    answer: str | None

    @property
    def looked_at(self) -> tuple[Region, ...]:
        """The regions that it was shown."""
        return tuple(zoom.window_px for zoom in self.zooms if zoom.status == "zoom_executed" and zoom.window_px)


class Parsed(NamedTuple):
    """A sampled answer, read by its task: it either asks to look closer, or is the result itself.

    ``regions`` are where it wants to zoom, in original pixels; ``result`` is what it says is there,
    None in a task where the answer only says where to look. ``episode`` is what happened in a task
    that goes on over several turns.
    """

    action: ParsedAnswer
    regions: tuple[Region, ...] = ()
    result: TaskResult | None = None
    episode: Episode | None = None


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled answer: its tokens are the record, everything else is read off them.

    ``token_ids`` are the ids the sampler drew, of all turns, the end token included when ``finished``; an
    answer that hit the length limit has ``finished`` False. ``regions``, ``result`` and ``episode`` as in
    ``Parsed``. ``branch`` is what the update lays behind the prompt, a packing.Branch with all that was
    shown between the turns; None is an answer of one turn, its ids alone.
    """

    example: Example
    token_ids: tuple[int, ...]
    text: str
    finished: bool
    action: ParsedAnswer
    regions: tuple[Region, ...]
    result: TaskResult | None = None
    episode: Episode | None = None
    branch: Any = None


@dataclass(frozen=True)
class Reward:
    """A reward with its parts: ``terms`` unweighted by name, ``total`` = sum of weight x term."""

    terms: Mapping[str, float]
    total: float

    @property
    def faults(self) -> tuple[str, ...]:
        """Which terms, or else ``total``, are no finite numbers of single precision; none in a reward that can be compared.

        >>> Score({"format": 1.0, "task": float("nan")}, float("nan")).faults, Score({"task": 2.0}, 2.0).faults
        (('task',), ())
        """
        wrong = tuple(name for name, term in self.terms.items() if not abs(term) <= LARGEST_REWARD)
        return wrong or (() if abs(self.total) <= LARGEST_REWARD else ("total",))


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. ``temperature`` 0 means greedy; there is no top-k and no top-p, so a
    log-probability is always that of the distribution that was sampled."""

    temperature: float = 1.0
    max_new_tokens: int = 512
