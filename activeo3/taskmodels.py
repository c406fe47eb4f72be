"""Steps 2 and 3 of train.py: zoom and act. Who works on the crops, and what comes back.

A region is cut from the *original* pixels and resized to the task model's view (paper E.2: 840 x 840).
The task model answers in its own coordinates; boxes are mapped back through the crop's frame and the
crops of one rollout are merged.

Deviations from the paper, and readings of what it leaves open:
  1. The task model in training is the frozen start policy, that is the reference in a second role: a
     stationary reward that needs no further memory. The paper says "fixed" and names no weights.
  2. Boxes of several crops are merged by non-maximum suppression at IoU 0.5 (the same thing seen in two
     crops is one thing). ``merge="concat"`` is the authors' demo.
  3. Boxes of a language model carry no score: all are 1.0 and rank by their order.
"""

import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np
from PIL import Image

from activeo3 import geometry, prompts
from activeo3.config import _Config
from activeo3.geometry import Frame
from activeo3.models import VisionLanguageModel
from activeo3.schema import Example, Outcome, Region, Sampling

SMALLEST_SIDE = 2.0  # pixels: a region thinner than this shows nothing and is not looked at
SAME_THING = 0.5  # IoU above which boxes of two crops are one thing


@dataclass(frozen=True, eq=False)
class Look:
    """One crop's worth of work: an example and the window of its picture to search."""

    example: Example
    window: Region


def act(
    expert: VisionLanguageModel, examples: Sequence[Example], regions: Sequence[Sequence[Region]], config: _Config
) -> list[Outcome]:
    """Zoom into each example's regions, find the query there, and merge: one Outcome per example.

    All crops of all examples form one batch, and a crop that is asked for twice (the same picture,
    window and query) is worked on once.
    """
    wanted = [
        [Look(example, region) for region in of_example if _visible(region)]
        for example, of_example in zip(examples, regions, strict=True)
    ]
    unique = {_key(look): look for looks in wanted for look in looks}
    found = dict(zip(unique, find(expert, list(unique.values()), config)))
    return [_merge(example, [found[_key(look)] for look in looks], config) for example, looks in zip(examples, wanted)]


def find(expert: VisionLanguageModel, looks: Sequence[Look], config: _Config) -> list[tuple[np.ndarray, str]]:
    """The task role on every crop: boxes (M, 4) in original pixels and the answer's text."""
    sampling = Sampling(temperature=0.0, max_new_tokens=config.task_max_new_tokens)
    found: list[tuple[np.ndarray, str]] = []
    for start in range(0, len(looks), config.task_batch):
        part = looks[start : start + config.task_batch]
        views, frames = zip(*(crop_view(expert, look.example.image, look.window, config) for look in part))
        asked = [prompts.task_prompt(look.example.query, config.wording) for look in part]
        answers = expert.generate(expert.encode(views, asked), 1, sampling)
        for look, frame, (ids,) in zip(part, frames, answers, strict=True):
            finished = bool(ids) and ids[-1] == expert.end_token
            text = expert.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=False)
            boxes = geometry.ordered(geometry.as_boxes(prompts.read_boxes(text, finished).boxes_text))
            inside = geometry.clipped(boxes, frame.scale)  # a box cannot be seen outside its crop
            boxes_px = geometry.clipped(frame.to_px(inside), look.example.size_px)
            found.append((boxes_px[geometry.area(boxes_px) > 0], text))
    return found


def crop_view(
    expert: VisionLanguageModel, image: Image.Image, window: Region, config: _Config
) -> tuple[Image.Image, Frame]:
    """A window of the original picture at the task model's size, and its frame."""
    side = config.crop_side
    if config.crop_shape == "square":
        size = expert.view_size((side, side))
    else:
        width, height = window.x2 - window.x1, window.y2 - window.y1
        thinnest = math.ceil(max(width, height) / geometry.MOST_ELONGATED)  # a sliver is widened, not refused
        shape = (max(thinnest, round(width)), max(thinnest, round(height)))
        size = expert.view_size(shape, pixels=(side * side, 2**40))
    return geometry.crop(image, window, size), Frame(tuple(window), expert.text_scale(size))


def _merge(example: Example, found: Sequence[tuple[np.ndarray, str]], config: _Config) -> Outcome:
    """The boxes of one example's crops as one ranked list."""
    boxes = np.concatenate([boxes for boxes, _ in found]) if found else np.zeros((0, 4))
    scores = np.ones(len(boxes))
    if config.merge == "nms":
        kept = geometry.nms(boxes, scores, SAME_THING)
        boxes, scores = boxes[kept], scores[kept]
    return Outcome(boxes, scores, tuple(text for _, text in found))


def _visible(region: Region) -> bool:
    return min(region.x2 - region.x1, region.y2 - region.y1) >= SMALLEST_SIDE


def _key(look: Look) -> tuple[int, Region, str]:
    return id(look.example.image), look.window, look.example.query
