"""Steps 2 and 3 of train.py: zoom and act. Who works on the crops, and what comes back.

A region is cut from the *original* pixels and resized to the task model's view (paper E.2: 840 x 840).
The task model answers in its own coordinates; boxes are mapped back through the crop's frame and the
crops of one rollout are merged. The task models M_A:

    mllm             a vision-language model, asked in words; its boxes carry no score
    detector         a detector of transformers, whose boxes carry scores (task_model_detectors.py)
    my_file.py:find  a function of the user's
    oracle           the ground truth inside the regions, as far as their views show it: the ceiling

Deviations from the paper, and readings of what it leaves open:
  1. The task model in training is the frozen start policy, that is the reference in a second role: a
     stationary reward that needs no further memory. The paper says "fixed" and names no weights.
  2. Boxes of several crops are merged by non-maximum suppression at IoU 0.5 (the same thing seen in two
     crops is one thing). ``merge="concat"`` is the authors' demo.
  3. Boxes of a language model carry no score: all are 1.0 and rank by their order.
  4. The oracle overlooks what is smaller than a visual token in a crop's view (``--task_options least_seen``), as
     models do: in random windows around its things, the shipped tiny policy finds 21 % of those below 12 pixels, 67 %
     of those up to 16, and 79 % of the larger ones. An oracle that sees everything (0) finds as much in three
     overlapping strips, for every picture the same ones, as in the best regions.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple, Self, Sequence

import numpy as np
from PIL import Image

from activeo3 import geometry, prompts, user_code
from activeo3.answer_parsing import read_boxes
from activeo3.config import Config, ConfigError
from activeo3.encoding import Encoder
from activeo3.generate import Generator, in_batches
from activeo3.geometry import Frame
from activeo3.metrics import asked_boxes
from activeo3.model_files import ModelError
from activeo3.types import Example, ParsedAnswer, Region, TaskResult

SMALLEST_SIDE = 2.0  # pixels: a region thinner than this shows nothing and is not looked at
SAME_THING = 0.5  # IoU above which boxes of two crops are one thing


@dataclass(frozen=True, eq=False)
class Crop:
    """One crop's worth of work: an example and the window of its picture to search."""

    example: Example
    window: Region


class Detections(NamedTuple):
    """What a task model found in one crop: boxes (M, 4) in original pixels, scores (M,), and in words.

    ``tokens`` is how many it wrote; ``strict`` is what the strict reader would have found, where that is less.
    """

    boxes_px: np.ndarray
    scores: np.ndarray
    text: str
    tokens: int = 0
    strict: "Detections | None" = None  # type: ignore[misc]


class TaskModel:
    """Base class of task models: a whole copy is on every rank. Tasks without crops use it as it is."""

    identity = ""
    """A name for the files that it was loaded from; "" if it is known in this process only."""

    def find(self, crops: Sequence[Crop], config: Config) -> list[Detections]:
        """Search every crop's window for its example's query: one Detections per crop."""
        raise NotImplementedError

    def gathered(self) -> AbstractContextManager[Self]:
        """As ``Zero3Model.gathered`` of the language model; here there is nothing to gather."""
        return nullcontext(self)


def of_no_numbers(what: str, example: Example) -> ModelError:
    """What to say of a task model that gives numbers which are not finite: no box and no mask would be a wrong
    answer."""
    return ModelError(
        f"the task model gives {what} that are not finite for example {example.id}; try it on this picture alone, or "
        "another one."
    )


def act(
    task_model: TaskModel,
    examples: Sequence[Example],
    regions: Sequence[Sequence[Region]],
    config: Config,
) -> list[TaskResult]:
    """Zoom into each example's regions, find the query there, and merge: one Outcome per example.

    All crops of all examples form one batch, and a crop that is asked for twice (the same example and
    window, as siblings of a group do) is worked on once.
    """
    wanted = [
        [Crop(example, region) for region in of_example if is_valid_region(region)]
        for example, of_example in zip(examples, regions, strict=True)
    ]
    unique = {_key(crop): crop for crops in wanted for crop in crops}
    crops = list(unique.values())
    seen = task_model.find(crops, config)
    for crop, one in zip(crops, seen, strict=True):
        if not (np.isfinite(one.boxes_px).all() and np.isfinite(one.scores).all()):
            raise of_no_numbers("boxes or scores", crop.example)
    found = dict(zip(unique, seen, strict=True))
    return [merge_crops([found[_key(crop)] for crop in crops], config.merge) for crops in wanted]


# ---------------------------------------------------------------------- a language model


class Mllm(TaskModel, Generator):
    """The task role of a language model: greedy answers to "find every ...", read and mapped back."""

    trained_here: bool

    def find(self, crops: Sequence[Crop], config: Config) -> list[Detections]:
        """As ``TaskModel.find``; --parser auto asks whether the model was trained here."""
        config = config.decided(self.trained_here)
        return in_batches(lambda part: self._find_together(part, config), crops, config.task_batch)

    def _find_together(self, crops: Sequence[Crop], config: Config) -> list[Detections]:
        """``find`` in crops that form one batch."""
        sampling = config.sampling(0.0, config.task_max_new_tokens)
        views, frames = zip(*(crop_view(self, crop.example.image, crop.window, config) for crop in crops))
        asked = [prompts.task_prompt(crop.example.query, config.words, self.boxes) for crop in crops]
        answers = self.generate(self.encode(views, asked), 1, sampling)
        found: list[Detections] = []
        for crop, frame, (ids,) in zip(crops, frames, answers, strict=True):
            text = self.decode(ids)
            action = read_boxes(self.answer_of(ids), self.is_finished(ids), parser=config.parser)
            found.append(said_to_be_there(action, crop, frame, text)._replace(tokens=len(ids)))
        return found


def said_to_be_there(action: ParsedAnswer, crop: Crop, frame: Frame, text: str) -> Detections:
    """The boxes of an answer in words about one crop, in its frame's own numbers, as Detections."""
    boxes = geometry.ordered(geometry.as_boxes(action.boxes_text))
    strict = action.strict and said_to_be_there(action.strict, crop, frame, text)
    return mapped_back(crop, frame, boxes, np.ones(len(boxes)), text)._replace(strict=strict)


def crop_view(task_model: Encoder, image: Image.Image, window: Region, config: Config) -> tuple[Image.Image, Frame]:
    """A window of the original picture at the task model's size, and its frame."""
    side = config.crop_side
    if config.crop_shape == "square":
        size = task_model.view_size((side, side))
    else:
        width, height = window.x2 - window.x1, window.y2 - window.y1
        thinnest = math.ceil(max(width, height) / geometry.MOST_ELONGATED)  # a sliver is widened, not refused
        shape = (max(thinnest, round(width)), max(thinnest, round(height)))
        size = task_model.view_size(shape, pixels=(side * side, 2**40))
    return geometry.crop(image, window, size), Frame(tuple(window), task_model.text_scale(size))


def mapped_back(crop: Crop, frame: Frame, boxes: np.ndarray, scores: np.ndarray, text: str) -> Detections:
    """Boxes (M, 4) in the frame's own numbers as Detections; those without area in crop and picture go."""
    inside = geometry.clipped(boxes, frame.scale)  # a box cannot be seen outside its crop
    boxes_px = geometry.clipped(frame.to_px(inside), crop.example.size_px)
    real = geometry.area(boxes_px) > 0
    return Detections(boxes_px[real], scores[real], text)


# ---------------------------------------------------------------------- the ground truth


class Oracle(TaskModel):
    """Finds exactly the true boxes that a window holds (90 % of their area) and shows large enough, and nothing
    else."""

    def find(self, crops: Sequence[Crop], config: Config) -> list[Detections]:
        """The true boxes, crowds apart, inside each window, from ``config.least_seen`` pixels of its view on (reading
        5)."""
        found = []
        for crop in crops:
            true = asked_boxes(crop.example)
            shown = np.sqrt(geometry.area(true)) * least_scale(crop.window, config) >= config.least_seen
            boxes = true[shown & geometry.held(true, geometry.as_boxes([crop.window]))[:, 0]]
            found.append(Detections(boxes, np.ones(len(boxes)), f"{len(boxes)} of {len(true)} true boxes"))
        return found


def least_scale(window: Region, config: Config) -> float:
    """Pixels of the view per pixel of the picture, along the axis of the window that ``crop_view`` squeezes most."""
    width, height = window.x2 - window.x1, window.y2 - window.y1
    if config.crop_shape == "square":
        return config.crop_side / max(width, height)
    return max(1.0, config.crop_side / math.sqrt(width * height))


# ---------------------------------------------------------------------- a function of the user's


class UserFunction(TaskModel):
    """A function ``find(crops, queries)`` that a file of the user's defines, named ``FILE.py:NAME``.

    ``crops`` are pictures of PIL, cut from the original at its own pixels, and ``queries`` as many texts. It returns as
    many pairs (boxes, scores): boxes (M, 4) xyxy in pixels of the crop and scores (M,), as lists, arrays or tensors.
    """

    def __init__(self, named: str) -> None:
        self.named, self.path = named, user_code.parts_of(named)[0]
        self.function: Callable[..., Any] = user_code.load_function("--task_model", named, ("crops", "queries"))
        self.identity = f"{Path(self.path).name} {user_code.digest(self.path)}"

    def find(self, crops: Sequence[Crop], config: Config) -> list[Detections]:
        """What the function finds. Raises ConfigError, naming an example, if it fails or returns something else."""
        return in_batches(self._find_together, crops, config.task_batch)

    def _find_together(self, crops: Sequence[Crop]) -> list[Detections]:
        sizes = [tuple(max(1, round(edge)) for edge in (window.x2 - window.x1, window.y2 - window.y1))
                 for window in (crop.window for crop in crops)]  # fmt: skip
        views = [geometry.crop(crop.example.image, crop.window, size) for crop, size in zip(crops, sizes)]
        others = f" and {len(crops) - 1} more crops" * (len(crops) > 1)
        what = f"--task_model {self.named}, for example {crops[0].example.id}{others},"
        find = lambda *given: list(self.function(*given))  # noqa: E731
        found = user_code.call(what, self.path, find, views, [crop.example.query for crop in crops])
        if len(found) != len(crops):
            raise ConfigError(f"{what} returns {len(found)} results for {len(crops)} crops.")
        return [self._checked(*pair) for pair in zip(crops, sizes, found)]

    def _checked(self, crop: Crop, size: tuple[int, int], pair: Any) -> Detections:
        """One crop's result as Detections."""
        try:
            boxes, scores = (np.asarray(on_cpu(part), dtype=float) for part in pair)
        except (TypeError, ValueError):
            raise self._refused(crop, "returns no pair of boxes and scores, two lists of numbers") from None
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
            shapes = f"boxes of shape {boxes.shape} and scores of shape {scores.shape}"
            raise self._refused(crop, f"returns {shapes}, which must be (M, 4) and (M,)")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise self._refused(crop, "returns boxes or scores that are not finite")
        order = np.argsort(-scores, kind="stable")
        text = " ".join(f"{score:.2f}" for score in scores[order])
        return mapped_back(crop, Frame(tuple(crop.window), size), boxes[order], scores[order], text)

    def _refused(self, crop: Crop, what: str) -> ConfigError:
        return ConfigError(f"--task_model {self.named}, for example {crop.example.id}, {what}.")


def on_cpu(part: Any) -> Any:
    """A tensor without its graph and on the CPU; anything else as it is."""
    return part.detach().cpu() if hasattr(part, "detach") else part


# ---------------------------------------------------------------------- many crops, one picture


def merge_crops(found: Sequence[Detections], merge: str) -> TaskResult:
    """The boxes of one example's crops as one list, best first; equals keep the order of the crops."""
    boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes_px for one in found)])
    scores = np.concatenate([np.zeros(0), *(one.scores for one in found)])
    kept = geometry.nms(boxes, scores, SAME_THING) if merge == "nms" else np.argsort(-scores, kind="stable")
    calls = {id(one): one.tokens for one in found}  # a crop that was asked for twice was worked on once
    texts = tuple(one.text for one in found)
    lenient = {id(one) for one in found if one.strict}
    strict = merge_crops([one.strict or one for one in found], merge) if lenient else None
    return TaskResult(
        boxes[kept], scores[kept], texts, len(calls), sum(calls.values()), strict=strict, lenient_only=len(lenient)
    )


def is_valid_region(region: Region) -> bool:
    """Whether a region shows anything."""
    return min(region.x2 - region.x1, region.y2 - region.y1) >= SMALLEST_SIDE


def _key(crop: Crop) -> tuple[int, Region]:
    return id(crop.example), crop.window
