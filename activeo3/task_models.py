"""Steps 2 and 3 of train.py: zoom and act. Who works on the crops, and what comes back.

A region is cut from the *original* pixels and resized to the task model's view (paper E.2: 840 x 840).
The task model answers in its own coordinates; boxes are mapped back through the crop's frame and the
crops of one rollout are merged. The task models M_A:

    mllm             a vision-language model, asked in words; its boxes carry no score
    grounding-dino   a Grounding DINO or MM-Grounding-DINO checkpoint, whose boxes carry scores
    oracle           the ground truth inside the regions, as far as their views show it: the ceiling

Deviations from the paper, and readings of what it leaves open:
  1. The task model in training is the frozen start policy, that is the reference in a second role: a
     stationary reward that needs no further memory. The paper says "fixed" and names no weights.
  2. Boxes of several crops are merged by non-maximum suppression at IoU 0.5 (the same thing seen in two
     crops is one thing). ``merge="concat"`` is the authors' demo.
  3. Boxes of a language model carry no score: all are 1.0 and rank by their order.
  4. A detector sees a crop at its own size, shape kept (800 pixels on the shorter side, 1333 at most on
     the longer), but resampled once, from the original pixels, and with sides in whole strides of 32.
     So crops of one size form a batch without padding, which its group norms would let through to every
     box. The paper says "official preprocessing" and names neither checkpoint nor thresholds.
  5. The oracle overlooks what is smaller than a visual token in a crop's view (``--task_options least_seen``), as
     models do: in random windows around its things, the shipped tiny policy finds 21 % of those below 12 pixels, 67 %
     of those up to 16, and 79 % of the larger ones. An oracle that sees everything (0) finds as much in three
     overlapping strips, for every picture the same ones, as in the best regions.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Self, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

from activeo3 import geometry, prompts
from activeo3.answer_parsing import read_boxes
from activeo3.config import Config
from activeo3.generate import in_batches
from activeo3.geometry import Frame
from activeo3.metrics import asked_boxes
from activeo3.model import ModelError, VisionLanguageModel, family_of, part_of
from activeo3.model_files import whole
from activeo3.types import Example, ParsedAnswer, Region, Sampling, TaskResult

SMALLEST_SIDE = 2.0  # pixels: a region thinner than this shows nothing and is not looked at
SAME_THING = 0.5  # IoU above which boxes of two crops are one thing
DETECTORS = ("grounding-dino", "mm-grounding-dino")
MOST_VIEWS = 16  # of a detector at once: each is about a megapixel
STRIDE = 32  # pixels per cell of a detector's coarsest feature map


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
    task_model: VisionLanguageModel | TaskModel,
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
    seen = (
        ask(task_model, crops, config)
        if isinstance(task_model, VisionLanguageModel)
        else task_model.find(crops, config)
    )
    for crop, one in zip(crops, seen, strict=True):
        if not (np.isfinite(one.boxes_px).all() and np.isfinite(one.scores).all()):
            raise of_no_numbers("boxes or scores", crop.example)
    found = dict(zip(unique, seen, strict=True))
    return [merge_crops([found[_key(crop)] for crop in crops], config.merge) for crops in wanted]


# ---------------------------------------------------------------------- a vision-language model


def ask(task_model: VisionLanguageModel, crops: Sequence[Crop], config: Config) -> list[Detections]:
    """The task role of a language model: greedy answers to "find every ...", read and mapped back."""
    config = config.decided(task_model.trained_here)
    return in_batches(lambda part: _ask_together(task_model, part, config), crops, config.task_batch)


def _ask_together(task_model: VisionLanguageModel, crops: Sequence[Crop], config: Config) -> list[Detections]:
    """``ask`` about crops that form one batch."""
    sampling = Sampling(temperature=0.0, max_new_tokens=config.task_max_new_tokens)
    views, frames = zip(*(crop_view(task_model, crop.example.image, crop.window, config) for crop in crops))
    asked = [prompts.task_prompt(crop.example.query, config.wording, task_model.boxes) for crop in crops]
    answers = task_model.generate(task_model.encode(views, asked), 1, sampling)
    found: list[Detections] = []
    for crop, frame, (ids,) in zip(crops, frames, answers, strict=True):
        text = task_model.decode(ids)
        action = read_boxes(task_model.answer_of(ids), task_model.is_finished(ids), parser=config.parser)
        found.append(said_to_be_there(action, crop, frame, text)._replace(tokens=len(ids)))
    return found


def said_to_be_there(action: ParsedAnswer, crop: Crop, frame: Frame, text: str) -> Detections:
    """The boxes of an answer in words about one crop, in its frame's own numbers, as Detections."""
    boxes = geometry.ordered(geometry.as_boxes(action.boxes_text))
    strict = action.strict and said_to_be_there(action.strict, crop, frame, text)
    return mapped_back(crop, frame, boxes, np.ones(len(boxes)), text)._replace(strict=strict)


def crop_view(
    task_model: VisionLanguageModel, image: Image.Image, window: Region, config: Config
) -> tuple[Image.Image, Frame]:
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


# ---------------------------------------------------------------------- a detector


class GroundingDino(TaskModel):
    """A frozen open-vocabulary detector of transformers, in float32; the query is its one category.

    ``box_threshold`` is the least score of a box, that is its best match with any word;
    ``text_threshold`` the least match with a word of the query itself.
    """

    def __init__(
        self, model: nn.Module, tokenizer, image_processor, box_threshold: float, text_threshold: float
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.box_threshold, self.text_threshold = box_threshold, text_threshold

    @classmethod
    def load(cls, source: str, device: torch.device, box_threshold: float, text_threshold: float) -> Self:
        """Load a checkpoint folder or hub id of one of DETECTORS; no part of this needs torchvision.

        Raises ModelError if it is not there, incomplete or damaged, or another architecture.
        """
        family_of(source, DETECTORS)
        # float32 whatever --dtype says: these models are small, and a reward should not hang on rounding.
        model = whole(source, AutoModelForZeroShotObjectDetection, dtype=torch.float32)
        tokenizer = part_of(source, "tokenizer", AutoTokenizer.from_pretrained, trust_remote_code=False)
        image_processor = part_of(
            source, "image processor", AutoImageProcessor.from_pretrained, backend="pil", trust_remote_code=False
        )
        return cls(model.to(device), tokenizer, image_processor, box_threshold, text_threshold)

    def find(self, crops: Sequence[Crop], config: Config) -> list[Detections]:
        """Detect every crop's query in its crop, best first, with the detector's own scores."""
        of_size: dict[tuple[int, int], list[int]] = {}
        for place, crop in enumerate(crops):
            of_size.setdefault(self.view_size(crop.window), []).append(place)
        most, found = min(config.task_batch, MOST_VIEWS), {}
        for size, places in of_size.items():
            detected = in_batches(lambda part: self._detect([crops[place] for place in part], size), places, most)  # noqa: B023
            found |= zip(places, detected, strict=True)
        return [found[place] for place in range(len(crops))]

    @torch.no_grad()
    def _detect(self, crops: Sequence[Crop], size: tuple[int, int]) -> list[Detections]:
        """One forward pass over the views, all of one (width, height)."""
        views = [geometry.crop(crop.example.image, crop.window, size) for crop in crops]
        pictures = self.image_processor(images=views, do_resize=False, return_tensors="pt")
        limit = self.model.config.max_text_len
        asked = [prompts.detector_prompt(crop.example.query) for crop in crops]
        words = self.tokenizer(asked, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        out = self.model(**pictures.to(self.model.device), **words.to(self.model.device))
        match = out.logits.sigmoid()[..., : words.input_ids.shape[1]].cpu()  # (crops, boxes, words)
        sound = out.pred_boxes.isfinite().all(dim=(1, 2)) & ~(out.logits.isnan() | out.logits.isposinf()).any(
            dim=(1, 2)
        )  # (crops,)
        for crop, fine in zip(crops, sound.tolist()):
            if not fine:  # a threshold would pass over them in silence; -inf is what is no word
                raise of_no_numbers("boxes or scores", crop.example)
        centre, side = out.pred_boxes.double().cpu().chunk(2, dim=-1)  # (crops, boxes, 2) each, in 0-1 of the view
        boxes = torch.cat([centre - side / 2, centre + side / 2], dim=-1)
        own = self._words_of_the_query(words.input_ids.cpu())  # (crops, words)
        rows = zip(crops, words.input_ids.cpu(), match, boxes, own, strict=True)
        return [self._read(*row) for row in rows]

    def _read(self, crop: Crop, ids: Tensor, match: Tensor, boxes: Tensor, own: Tensor) -> Detections:
        """One crop's detections from matches (boxes, words) and boxes (boxes, 4), best first."""
        scores, named = match.amax(dim=1), (match > self.text_threshold) & own
        order = scores.argsort(descending=True, stable=True)
        kept = order[(scores[order] > self.box_threshold) & named[order].any(dim=1)]
        text = "; ".join(f"{self.tokenizer.decode(ids[named[k]])} {scores[k]:.2f}" for k in kept)
        frame = Frame(tuple(crop.window), (1, 1))
        return mapped_back(crop, frame, boxes[kept].numpy(), scores[kept].double().numpy(), text)

    def _words_of_the_query(self, ids: Tensor) -> Tensor:
        """True (crops, words) on the tokens of a query: neither special nor the full stop behind it."""
        other = [*self.tokenizer.all_special_ids, self.tokenizer.convert_tokens_to_ids(".")]
        return ~torch.isin(ids, torch.tensor(other))

    def view_size(self, window: Region) -> tuple[int, int]:
        """(width, height) at which the detector sees a window: its processor's limits, in whole strides."""
        limits, sides = self.image_processor.size, (window.x2 - window.x1, window.y2 - window.y1)
        scale = min(limits["shortest_edge"] / min(sides), limits["longest_edge"] / max(sides))
        width, height = (STRIDE * max(1, round(side * scale / STRIDE)) for side in sides)
        return width, height


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


def load_task_model(name: str, config: Config, device: torch.device) -> TaskModel:
    """The task model ``name`` that is not the language model: grounding-dino or oracle."""
    if name == "oracle":
        return Oracle()
    return GroundingDino.load(config.task_checkpoint, device, config.box_threshold, config.text_threshold)


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
