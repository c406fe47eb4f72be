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
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np
from PIL import Image

from activeo3.metric_rules import COCO, MetricRules

LARGEST_REWARD = 1e30
"""Beyond it, rewards overflow in single precision when they are compared."""


class Region(NamedTuple):
    """A rectangle worth zooming into, xyxy in pixels of the original picture."""

    x1: float
    y1: float
    x2: float
    y2: float


def no_boxes() -> np.ndarray:
    """An empty array (0, 4) of boxes."""
    return np.zeros((0, 4))


@dataclass(frozen=True, eq=False)
class VQA:
    """A question that is answered in words, with what its answer is scored by.

    ``answers`` are the right answer and its aliases, with ``options`` the letter of the right one (A is the first);
    there are none if they are not public. ``kind`` is one of evidence.KINDS; empty, it is "choice" with options, else
    "exact". ``tolerance`` is a number's, relative to the right one. ``hint`` should be known beforehand.
    ``evidence_px`` (E, 4) are the places that show the answer. ``category`` is the kind of question and ``ability``
    what it is a part of (MMBench's l2_category). Questions of one ``group`` count together (MME's two about a picture,
    a question with rotated options); ``rotations`` is how many the file has of this one, 0 if it lacks the one without
    rotation. ``columns`` is the published row of a question without a public answer, to be submitted.
    """

    question: str
    answers: tuple[str, ...] = ()
    kind: str = ""
    options: tuple[str, ...] = ()
    tolerance: float = 0.0
    hint: str = ""
    evidence_px: np.ndarray = field(default_factory=no_boxes)
    category: str = ""
    ability: str = ""
    group: str = ""
    rotations: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def scored_by(self) -> str:
        """The kind, with its default filled in."""
        return self.kind or ("choice" if self.options else "exact")

    @property
    def answer(self) -> str | None:
        """The right answer, None if it is not public."""
        return self.answers[0] if self.answers else None


class Phrase(NamedTuple):
    """A phrase that refers to one thing, and the box xyxy of that thing in pixels."""

    text: str
    box_px: tuple[float, float, float, float]


class Count(NamedTuple):
    """How many there are, and where: ``places_px`` (N, 4), a point being a box without sides; None if not known."""

    number: int
    places_px: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Objects:
    """All objects of an image: ``boxes_px`` (N, 4), ``labels`` (N), ``crowd`` and ``areas`` (N,) as in ``Example``.

    ``categories`` are all names of the data set. In a federated one (LVIS), only the ``checked`` names can be missed or
    invented, and of the names in ``partly`` not every instance has a box; elsewhere ``checked`` is None.
    """

    boxes_px: np.ndarray
    labels: tuple[str, ...]
    categories: tuple[str, ...]
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None
    checked: frozenset[str] | None = None
    partly: frozenset[str] = frozenset()


class WholeImage(NamedTuple):
    """The question that a tile's question is a part of: all boxes (N, 4) of a category in the whole image, with
    ``areas`` and ``crowd`` (N,), and in how many ``tiles`` it is asked."""

    boxes_px: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    tiles: int


@dataclass(frozen=True, eq=False)
class SourceImage:
    """Where an image is from: its ``file_name`` and the file's own ids where these are no numbers of 64 bits.

    A tile has its ``window_px`` (x1, y1, x2, y2) in the image ``whole_id``, and the question about the ``whole`` if
    that is known.
    """

    file_name: str = ""
    image_id: int | str | None = None
    category_id: int | str | None = None
    window_px: tuple[int, int, int, int] | None = None
    whole_id: int | str | None = None
    whole: WholeImage | None = None


class Aside(NamedTuple):
    """What an example keeps of an image that is not in memory: its size (width, height), and a digest of its
    pixels."""

    size: tuple[int, int]
    pixels: str


@dataclass(frozen=True, eq=False)
class Example:
    """One question about one image: where is every ``query``? Data sets of other kinds fill in what they know beside
    it.

    ``boxes_px`` (N, 4) holds the true boxes and may be empty. ``crowd`` (N,) is True for a box that is neither asked
    for nor punished (COCO's ``iscrowd``). ``areas`` (N,) in square pixels are those of the boxes if None; ``masks()``
    returns one RLE per box. ``rules`` say how the set is scored; ``exhaustive`` is False if not every instance has a
    box; ``frequency`` is LVIS's r, c or f. ``text`` is all that can be read. ``draft`` holds the true mask and the one
    to correct as RLE (task_segmentation). ``place`` is the index in a data set whose images are put ``aside``
    (data_set).
    """

    id: str
    image: Image.Image
    query: str
    boxes_px: np.ndarray = field(default_factory=no_boxes)
    image_id: int = 1
    category_id: int = 1
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None
    masks: Callable[[], list[dict[str, Any]]] | None = None
    rules: MetricRules = COCO
    exhaustive: bool = True
    frequency: str = ""
    objects: Objects | None = None
    vqa: VQA | None = None
    phrase: Phrase | None = None
    count: Count | None = None
    text: str = ""
    source: SourceImage = SourceImage()
    draft: tuple[dict[str, Any], dict[str, Any]] | None = None
    place: int | None = None
    aside: Aside | None = None

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of the original picture."""
        return self.aside.size if self.aside else self.image.size

    @property
    def asks_in_words(self) -> bool:
        """Whether the query is the question to answer, and not the name of something to find."""
        return self.vqa is not None and self.vqa.question == self.query

    @property
    def asked_for(self) -> np.ndarray:
        """(N,) True for the boxes that count: all but the crowds."""
        none = np.zeros(len(self.boxes_px), dtype=bool)
        return ~(none if self.crowd is None else np.asarray(self.crowd, dtype=bool))


@dataclass(frozen=True)
class ParsedAnswer:
    """A model's answer, read. ``error`` names what is wrong with it, or is None; it never raises.

    ``boxes_text`` are finite numbers exactly as the model wrote them, in the order it wrote them. ``strict`` is what
    the strict reader made of an answer of which only the lenient one could read (all) that is here, else None.
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
    """A reward with its parts: ``terms`` unweighted by name, ``total`` = sum of weight x term.

    ``advantage`` is what the update weighs the answer with; None before it is compared with its group. ``cost`` is the
    part of ``total`` that is compared without being divided by the group's spread (--update_options divide_costs).
    """

    terms: Mapping[str, float]
    total: float
    advantage: float | None = None
    cost: float = 0.0

    @property
    def parts(self) -> tuple[float, float]:
        """The total without ``cost``, and ``cost``. The difference is exact in single precision."""
        return self.total - self.cost, self.cost

    @property
    def faults(self) -> tuple[str, ...]:
        """Which terms, or else ``total``, are no finite numbers of single precision; none in a reward that can be
        compared.

        >>> Reward({"format": 1.0, "task": float("nan")}, float("nan")).faults, Reward({"task": 2.0}, 2.0).faults
        (('task',), ())
        """
        wrong = tuple(name for name, term in self.terms.items() if not abs(term) <= LARGEST_REWARD)
        return wrong or (() if abs(self.total) <= LARGEST_REWARD else ("total",))


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. ``temperature`` 0 means greedy; there is no top-k and no top-p, so a
    log-probability is always that of the distribution that was sampled. ``decoder`` is graph or hf (decoders.py). A
    turn that ends in ``stop_repeats`` copies of one piece (answer_text.repeats) is cut off; 0: none is."""

    temperature: float = 1.0
    max_new_tokens: int = 512
    decoder: str = "graph"
    stop_repeats: int = 0
