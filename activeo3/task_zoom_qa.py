"""Zoom, look again, answer: the policy may zoom several times before it answers a question in words.

    question + whole image | zoom | crop | zoom inside the crop | closer crop | answer

A turn requests zooms or gives the answer (zoom_calls.py reads it; a turn that does both requests zooms). Views nest:
coordinates refer to the view that was shown last. Every crop is cut from the original image at the task model's crop
size, so a crop of a crop is sharper, not blurrier. When a zoom request is rejected, the turn records a status code, the
policy is told why, and the view stays.

A turn may request up to ``regions_per_turn`` zooms in one view. Those that are executed are shown in one user turn, in
the order of the requests; the last of them is the next view. Each is a zoom of its own, with its status and its cost;
the turn is ``zoom_executed`` if any was, else it has the status of the first. Further requests count for nothing.

``--memory`` says which images stay visible: ``views``, all; ``notes``, only the latest: earlier ones are masked, their
text remains. packing.py says what exactly is masked.

    R = answer + evidence + calls      each times its weight
    answer     0 to 1, by the kind of question: exact, number, anls (DocVQA), choice
    evidence   answer x |U and E| / |E| x (1 - |U| / |image|)
               E: where the evidence is; U: all regions that were zoomed into, together
    calls      minus the number of zooms that were requested, executed or not; with ``cost_gate`` x answer

Active-Perception-R1's process reward pays for every call anew, counts recall alone and does not ask whether
the answer is right: three zooms at one place with a wrong answer earn more there than a right answer without
a zoom, and so does the whole picture three times. Here a place counts once (U is a union), what was not
narrowed down is subtracted (the whole picture earns 0), evidence for a wrong answer earns nothing (unless
``gated`` is False), and every call costs. Its own formula stays selectable, to compare: ``per_call``.

Readings of what that system leaves open:
  1. There, a region above 65 % of the view was shown at a discount. Where ours refuses it, ``per_call``
     still values the request as it would have.
  2. A call beyond the third costs there 0.10; we take it that it earns nothing besides.
  3. An episode without an answer that counts earns nothing for its zooms, whatever the evidence is worth otherwise; its
     costs stay. There, the last line of any text was an answer.

Deviation from DocVQA: its script divides the distance of two answers without surplus white space by the length of the
longer one as it was written. Here that is the length without it, too: spaces around an answer do not make it more
alike.

Differences from Active-Perception-R1 (commit 14f2841), beside those of zoom_calls.py and of the reward:
  1. What a policy is shown follows from its own action alone. There it learned which true region it had hit.
  2. A zoom is rejected if no turn is left to use it: ``zoom_limit``, as is one too many.
  3. Only what stands in ``<answer>`` is an answer; there, a last line was one too, as it is here for ``--parser
     lenient``.
"""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Mapping, Sequence

import numpy as np

from activeo3 import geometry, prompts
from activeo3.answer_parsing import read_letter
from activeo3.answer_text import normalised
from activeo3.config import Config
from activeo3.data_io import DataError
from activeo3.geometry import as_boxes
from activeo3.model import VisionLanguageModel
from activeo3.task_models import crop_view
from activeo3.tasks import Observation, PromptSpec, Task, sensing_view
from activeo3.text_metrics import edit_distance
from activeo3.types import VQA, Episode, Example, Parsed, ParsedAnswer, Rollout, TaskResult, Zoom
from activeo3.zoom_calls import Call, Limits, check_zoom, read_turn

KINDS = ("exact", "number", "anls", "choice")
ANLS_LEAST = 0.5  # tau of DocVQA (arXiv 2007.00398): an answer less alike than this is wrong


class ZoomQA(Task):
    """Answer a question in words after up to ``--max_zooms`` zooms."""

    name = "zoom_qa"
    terms = {"answer": 1.0, "evidence": 0.35, "calls": 0.05}
    costs = ("calls",)
    crops = False
    turns = True
    benchmark = "zoom_qa"

    def prepare(self, example: Example) -> Example:
        """The example as its question in words; its boxes are the evidence. Raises DataError if it asks nothing."""
        asked = asked_of(example)
        return replace(example, query=asked.question, boxes_px=asked.evidence_px, crowd=None)

    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        """The whole image and the question. Raises DataError if the example has none."""
        config = self.config
        view, frame = sensing_view(vlm, example.image, config.sensing_side, config.max_view_pixels)
        asked = asked_of(example)
        zooms = config.max_zooms if config.max_turns > 1 else 0
        question = prompts.question_text(asked.question, asked.options, asked.hint)
        limits = {"at_once": config.regions_per_turn, "least": config.min_zooms, "notes": config.memory == "notes"}
        words = prompts.episode_prompt(question, config.words, zooms, **limits, boxes=vlm.boxes)
        return PromptSpec(view, frame, words)

    def start(self, vlm: VisionLanguageModel, example: Example, prompt: PromptSpec) -> "ZoomDialogue":
        """Begin an episode."""
        return ZoomDialogue(vlm, example, prompt, self.config)

    def act(self, task_model: Any, rollouts: Sequence[Rollout]) -> list[TaskResult]:
        """The answers in words; no task model is needed."""
        return [TaskResult(as_boxes([]), np.zeros(0), (rollout.episode.answer or "",)) for rollout in rollouts]

    def settle(self, row: Mapping[str, float]) -> dict[str, float]:
        """The row with the price of a zoom in this step. The next step's is that of a Lagrangian (dual ascent): it
        rises while more zooms are paid for than ``zooms_target``, and falls while fewer are, down to 0."""
        target, price = self.reward_config.zooms_target, self.weights["calls"]
        if not target:
            return dict(row)
        if math.isfinite(paid := -row["reward/calls"]):
            self.weights["calls"] = max(0.0, price + self.reward_config.price_rate * (paid - target))
        return dict(row) | {"price": price}

    def reward_terms(self, rollout: Rollout, result: TaskResult) -> dict[str, float]:
        """Answer, evidence and calls."""
        asked, episode = asked_of(rollout.example), rollout.episode
        gated, per_call = self.reward_config.evidence_gate, self.reward_config.evidence == "per_call"
        found = terms(episode.answer, episode.zooms, asked, rollout.example.size_px, gated, per_call)
        return found | {"calls": found["calls"] * found["answer"]} if self.reward_config.cost_gate else found


# ---------------------------------------------------------------------- an episode


@dataclass
class ZoomDialogue:
    """One episode: ``prompt.frame`` is that of the first view, ``frame`` of the last, and ``zooms[begun:]``
    are those of the last turn that asked for any."""

    policy: VisionLanguageModel
    example: Example
    prompt: PromptSpec
    config: Config
    statuses: list[str] = field(default_factory=list)
    zooms: list[Zoom] = field(default_factory=list)
    begun: int = 0
    answer: str | None = None
    lenient_only: bool = False

    def __post_init__(self) -> None:
        self.frame = self.prompt.frame

    def step(self, text: str, finished: bool) -> Observation | None:
        """Read a turn and return its crops, or why there are none; None ends the episode."""
        turn, last = read_turn(text, self.config.parser), len(self.statuses) + 1 == self.config.max_turns
        self.lenient_only |= turn.lenient_only and finished
        if not finished:
            self.statuses.append("truncated")
        elif turn.zooms:
            return self._zoom(turn.calls[: self.config.regions_per_turn], last)
        elif turn.answer is not None:
            zooms = sum(zoom.status == "zoom_executed" for zoom in self.zooms)
            enough = zooms >= self.config.min_zooms
            self.answer = turn.answer if enough else None
            self.statuses.append(("answered" if zooms else "answered_without_zoom") if enough else "answered_early")
        else:
            self.statuses.append("missing_zoom")
        return None

    def _outcome(self, call: Call | None, last: bool) -> Zoom:
        """The zoom that a request becomes, with its status; ``last``: in the last turn."""
        limits = Limits(self.config.least_zoom, self.config.most_zoom)
        zoom = Zoom("malformed_zoom") if call is None else check_zoom(call, self.frame, limits)
        none_left = last or len(self.zooms) >= self.config.max_zooms
        return zoom._replace(status="zoom_limit") if none_left else zoom

    def _zoom(self, calls: Sequence[Call | None], last: bool) -> Observation | None:
        """The crops and words that follow a turn's requests; None after the last turn."""
        self.begun = len(self.zooms)
        for call in calls:  # all of them in the view that is there now
            self.zooms.append(self._outcome(call, last))
        statuses = [zoom.status for zoom in self.zooms[self.begun :]]
        self.statuses.append("zoom_executed" if "zoom_executed" in statuses else statuses[0])
        if last:
            return None
        views = []
        for zoom in self.zooms[self.begun :]:
            if zoom.status == "zoom_executed":
                view, self.frame = crop_view(self.policy, self.example.image, zoom.window_px, self.config)
                views.append(view)
        words = prompts.shown_together(statuses, self.config.words)
        replaces = bool(views) and self.config.memory == "notes"
        return Observation(views[0] if len(views) == 1 else views or None, words, replaces)

    def truncate(self) -> None:
        """Mark the zooms of the last turn as truncated: their crops did not fit."""
        for place, zoom in enumerate(self.zooms[self.begun :], start=self.begun):
            if zoom.status == "zoom_executed":
                self.zooms[place] = zoom._replace(status="truncated")
        self.statuses[-1] = "truncated"

    def result(self) -> Parsed:
        """The episode, its executed zooms as regions; without an answer, the last status is the error."""
        episode = Episode(tuple(self.statuses), tuple(self.zooms), self.answer)
        error = None if self.answer is not None else self.statuses[-1]
        # The strict reader would have shown something else after such a turn, or ended the episode.
        strict = ParsedAnswer((), error="missing_zoom") if self.lenient_only else None
        return Parsed(ParsedAnswer((), error=error, strict=strict), episode.looked_at, episode=episode)


# ---------------------------------------------------------------------- questions


def asked_of(example: Example) -> VQA:
    """The example's question in words. Raises DataError without a question or a public answer."""
    if example.vqa is None:
        raise DataError(f"example {example.id} asks nothing that is answered in words.", example.id)
    if not example.vqa.answers:
        raise DataError(
            f"example {example.id} has no public answer: its data set can only be asked and submitted.", example.id
        )
    if (kind := example.vqa.scored_by) not in KINDS:
        raise DataError(
            f"example {example.id} has an answer of kind {kind!r}; known are {', '.join(KINDS)}.", example.id
        )
    return example.vqa


# ---------------------------------------------------------------------- right answers


def rightness(stated: str | None, asked: VQA) -> float:
    """How right an answer is, 0 to 1; none at all is 0.

    >>> rightness('"Forty-two". ', VQA("?", ("42", "forty-two")))
    1.0
    """
    if stated is None:
        return 0.0
    match asked.scored_by:
        case "exact":
            return float(normal(stated) in map(normal, asked.answers))
        case "number":
            return float(any(same_number(stated, right, asked.tolerance) for right in asked.answers))
        case "anls":
            return max(likeness(stated, right) for right in asked.answers)
        case "choice":
            return float(read_letter(stated, asked.options).value in asked.answers)
    raise ValueError(f"unknown kind of answer {asked.scored_by!r}")


def normal(text: str) -> str:
    """A text without what says nothing: case, extra space, quotation marks around it, a full stop at its end."""
    text = " ".join(normalised(text).split()).casefold()
    return text.strip("\"'`“”‘’ ").removesuffix(".").strip("\"'`“”‘’ ")


_DIGITS = r"\d{1,3}(?:,\d{3})++(?:\.\d++)?|\d++(?:\.\d++)?|\.\d++"
_QUANTITY = re.compile(rf"([$€£¥]?) ?([+-]?) ?([$€£¥]?) ?({_DIGITS}) ?(%?)")  # of ``normal`` text


def quantity(text: str) -> tuple[float, str] | None:
    """(value, unit) of a number with thousands marked or not, and a currency before or a % behind it.

    >>> quantity("$1,284.50"), quantity("-12 %"), quantity("12 apples")
    ((1284.5, '$'), (-12.0, '%'), None)
    """
    match = _QUANTITY.fullmatch(normal(text))
    if not match:
        return None
    before, sign, between, digits, percent = match.groups()
    return float(sign + digits.replace(",", "")), before or between or percent


def same_number(stated: str, right: str, tolerance: float) -> bool:
    """Are both numbers, of one unit where both name one, and as far apart as the tolerance allows or less?"""
    a, b = quantity(stated), quantity(right)
    if a is None or b is None or (a[1] and b[1] and a[1] != b[1]):
        return False
    return abs(a[0] - b[0]) <= tolerance * abs(b[0]) + 1e-9


def likeness(stated: str, right: str) -> float:
    """DocVQA's normalised Levenshtein similarity of two answers, 0 below ANLS_LEAST.

    >>> likeness("Paris", "paris"), likeness("Pariss", "Paris"), likeness("Rome", "Paris")
    (1.0, 0.8333333333333334, 0.0)
    """
    alike = 1.0 - edit_distance(stated.lower(), right.lower())
    return alike if alike >= ANLS_LEAST else 0.0


# ---------------------------------------------------------------------- zooms that cover the evidence


def terms(
    stated: str | None,
    zooms: Sequence[Zoom],
    asked: VQA,
    size: tuple[int, int],
    gated: bool = True,
    per_call: bool = False,
) -> dict[str, float]:
    """The terms of the reward: ``answer``, ``evidence`` and ``calls`` (a count, negative).

    ``size`` is that of the picture. With ``per_call``, ``evidence`` is Active-Perception-R1's process reward
    and calls cost nothing, so that weights 1, 0.35 and any give that system's own score.
    """
    right = rightness(stated, asked)
    if per_call:
        process = process_per_call(zooms, asked.evidence_px)
        return {"answer": right, "evidence": process if stated is not None else min(0.0, process), "calls": 0.0}
    looked_at = geometry.as_boxes([zoom.window_px for zoom in zooms if zoom.status == "zoom_executed"])
    found = evidence(looked_at, asked.evidence_px, size)
    return {
        "answer": right,
        "evidence": found * (right if gated else float(stated is not None)),
        "calls": 0.0 - len(zooms),
    }


def evidence(regions_px: np.ndarray, evidence_px: np.ndarray, size: tuple[int, int]) -> float:
    """How much of the evidence the regions show together, times how much of the picture they leave out.

    Both in 0 to 1. Order, number and overlap of the regions change nothing; a region that shows no new
    evidence can only lower the value; the whole picture is worth 0, and so is a question without evidence.

    >>> box = geometry.as_boxes([[10, 10, 20, 20]])
    >>> evidence(geometry.as_boxes([[10, 10, 20, 15], [10, 10, 20, 15]]), box, (100, 100))
    0.4975
    """
    seen = geometry.union_area(regions_px)
    return covered(regions_px, evidence_px) * max(0.0, 1.0 - seen / (size[0] * size[1]))


def covered(regions_px: np.ndarray, evidence_px: np.ndarray) -> float:
    """The share of the evidence's area that the regions show together; 0 without evidence.

    >>> covered(geometry.as_boxes([[10, 10, 20, 15], [10, 10, 20, 15]]), geometry.as_boxes([[10, 10, 20, 20]]))
    0.5
    """
    truth, seen = geometry.union_area(evidence_px), geometry.union_area(regions_px)
    if truth == 0 or seen == 0:
        return 0.0
    shared = truth + seen - geometry.union_area(np.concatenate([evidence_px, regions_px]))
    return max(0.0, shared / truth)


MOST_CALLS = 3
_PER_CALL = {"malformed_zoom": -0.20, "invalid_zoom": -0.20, "too_small": -0.10, "zoom_limit": -0.10}
_VALID, _LARGE, _ABOVE, _NO_VALID = 0.10, -0.08, 0.65, -0.15


def process_per_call(zooms: Sequence[Zoom], evidence_px: np.ndarray) -> float:
    """The process reward of Active-Perception-R1 (reward file at commit 14f2841), which can be farmed.

    Every valid zoom earns 0.10 and the largest share of an evidence box that it shows, again and again.
    """
    total, valid = 0.0, 0
    for number, zoom in enumerate(zooms, start=1):
        status = "zoom_limit" if number > MOST_CALLS else zoom.status
        if status in _PER_CALL:
            total += _PER_CALL[status]
            continue
        shown = geometry.containment(evidence_px, geometry.as_boxes([zoom.window_px]))  # (E, 1)
        total += _VALID + _LARGE * (zoom.share > _ABOVE) + float(shown.max(initial=0.0))
        valid += 1
    return total + _NO_VALID * (valid == 0 and len(evidence_px) > 0)
