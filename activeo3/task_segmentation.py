"""Segmentation: propose regions in which a mask is wrong; it is corrected there, and the IoU is the reward.

The policy is shown the image under a first mask and proposes exactly K regions; they are zoomed into one after the
other, and the task model (task_model_sam.py) corrects the mask in each (ACTIVE-O3, section 5.4, E.3 and Fig. 6). Two
reward terms differ from those of boxes (rewards.py):

    coverage    share of the mask's wrong pixels that lie in a region x share of the image that lies in none
    task        IoU of the corrected mask with the true one, 0 to 1                      (4.4, R_seg)

Readings of what the paper leaves open:
  1. It does not say where a first mask comes from. Ours, ``coarse``, is the truth as a model of low resolution
     would see it (COARSE cells along the longer side, so that thin parts are lost), with some discs cut out of
     the object and some leaking over its border; on the embedded world it has the paper's mean IoU, 0.80. It is
     the same for the same example, wherever it is made.
     The other kind, ``sam``, is SAM's answer to one click.
  2. The overlay is pure green, half transparent. A pixel of the view takes as much of it as of its area lies
     in the mask, so a mask that is shrunk with its picture fades as the picture does; one that is enlarged
     keeps its pixels.
  3. The paper uses an oracle in the place of its task model, without saying of what kind: here it is ``sam`` under an
     oracle's clicks, or ``oracle``, which makes every region as right as its view can show it.
  4. Coverage of a mask's errors: 4.4 words it as the share of mask pixels in a region, B.4 a as the share of
     regions with enough of them, and neither says of which mask. Ours is the first, of the wrong pixels, which
     is what the prompt asks for and grows with every error that is found, less for large regions: three tiles hold
     every error of every picture. Regions that ignore the picture hold a share u of it and about as much of its
     errors: u (1 - u), 0.25 at most. ``recall`` is the first as it is worded, of which the tiles earn all;
     ``purity`` is the second, with ERROR_ENOUGH, because errors are thin.
"""

from dataclasses import dataclass, replace
from typing import Any, Self, Sequence

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_erosion

from activeo3 import metrics, prompts, rewards
from activeo3.answer_parsing import read_regions
from activeo3.config import Config, ConfigError
from activeo3.data_io import DataError
from activeo3.geometry import as_boxes, mask_to_rle, rle_to_mask
from activeo3.model import VisionLanguageModel
from activeo3.task_model_sam import ClickCrop, Corrector, Perfect, Sam, drawn_in_cells, windows
from activeo3.tasks import PromptSpec, Task, regions_of, sensing_view
from activeo3.types import Example, Parsed, Region, Rollout, TaskResult

GREEN, ALPHA = (0, 255, 0), 0.5
COARSE = 160  # cells along the longer side of a picture
HOLES, LEAKS = 2, 2
RADII = (0.08, 0.2)  # of a hole or leak, in sides of a square as large as the object
_KIND = 1  # part of every seed: raise it when coarse masks change, so that old numbers are not mixed with new
ERROR_ENOUGH = 0.01  # share of a region's pixels that are wrong, for coverage ``purity``
SQUARE = 1 / 4  # side of the squares of ``error_regions``, in shorter sides of the picture


class Segment(Task):
    """Propose exactly K regions in which the mask is wrong."""

    name = "segment"
    terms = dict.fromkeys(rewards.SENSING_TERMS, 1.0)
    benchmark = "segmentation"
    task_models = ("sam", "oracle")

    def prepare_batch(self, task_model: Corrector, examples: Sequence[Example]) -> list[Example]:
        """The examples with their first masks. Raises DataError for one without a true mask."""
        return with_first_masks(task_model, examples, self.config)

    def load_task_model(self, name: str, device: torch.device) -> Corrector:
        """``sam`` or ``oracle``."""
        return Perfect.of(self.config) if name == "oracle" else Sam.load(self.config.task_checkpoint, device)

    def prompt(self, vlm: VisionLanguageModel, example: Example) -> PromptSpec:
        """The whole image under its first mask, and: where is that wrong?"""
        config = self.config
        view, frame = sensing_view(vlm, example.image, config.sensing_side, config.max_view_pixels)
        words = prompts.segmentation_prompt(example.query, config.words, config.regions, vlm.boxes)
        return PromptSpec(overlaid(view, Draft.of(example).mask), frame, words)

    def parse(self, text: str, finished: bool, prompt: PromptSpec, example: Example) -> Parsed:
        """The regions of an answer; their number is part of its format."""
        count = self.config.regions
        action = read_regions(text, finished, most=count, least=count, parser=self.config.parser)
        return Parsed(action, regions_of(action, prompt.frame, example.size_px))

    def act(self, task_model: Corrector, rollouts: Sequence[Rollout]) -> list[TaskResult]:
        """Every rollout's mask after all of its zooms."""
        return [TaskResult(as_boxes([]), np.zeros(0), mask=masks[-1]) for masks in self.zoom(task_model, rollouts)]

    def zoom(self, task_model: Corrector, rollouts: Sequence[Rollout]) -> list[list[np.ndarray]]:
        """The masks (H, W) of every rollout after 0, 1, 2, ... of its zooms."""
        drafts = {id(rollout.example): Draft.of(rollout.example) for rollout in rollouts}  # a group shares one
        regions = [rollout.regions for rollout in rollouts]
        return zoom_and_click(task_model, [drafts[id(one.example)] for one in rollouts], regions, self.config.clicks)

    def reward_terms(self, rollout: Rollout, result: TaskResult) -> dict[str, float]:
        """The heuristic terms, coverage of the mask's errors, and R_seg."""
        draft = Draft.of(rollout.example)
        return rewards.region_terms(rollout) | {
            "coverage": covered_mask(rollout, draft.error, self.reward_config.coverage),
            "task": metrics.mask_iou(result.mask, draft.true) if rollout.action.readable else 0.0,
        }

    def check(self) -> None:
        """Raise ConfigError for flags that do not go with --task segment."""
        names = self.config.task_model_names
        unfit = [name for name in names if name not in self.task_models]
        if unfit:
            raise ConfigError(
                f"--task segment corrects masks, and {unfit[0]} makes none: give --task_model sam or oracle."
            )
        if self.config.first_mask == "sam" and "sam" not in names:
            raise ConfigError("--first_mask sam needs --task_model sam, which makes it.")
        if self.reward_config.coverage == "iou":
            raise ConfigError("--coverage iou compares boxes: with --task segment choose contain, recall or purity.")
        super().check()


# ---------------------------------------------------------------------- masks


@dataclass(frozen=True, eq=False)
class Draft:
    """A picture's mask so far and the true one, both (H, W) booleans."""

    image: Image.Image
    true: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, example: Example) -> Self:
        """What ``with_mask`` packed."""
        return cls(example.image, *map(rle_to_mask, example.draft))

    @property
    def error(self) -> np.ndarray:
        """(H, W) True where the mask is wrong."""
        return self.true ^ self.mask


def true_mask(example: Example) -> np.ndarray:
    """Everything that was asked for as one mask (H, W), crowds apart. Raises DataError if there are no masks."""
    if example.masks is None:
        raise DataError(
            f"--task segment needs masks, and example {example.id} has none: choose thinobject5k or scenes", example.id
        )
    width, height = example.size_px
    union = np.zeros((height, width), dtype=bool)
    for rle, asked in zip(example.masks(), example.asked_for, strict=True):
        union |= rle_to_mask(rle) & asked
    return union


def with_mask(example: Example, true: np.ndarray, mask: np.ndarray) -> Example:
    """The example with its true mask and the one to correct, both (H, W), in its field ``draft``.

    They are packed as run lengths: a benchmark keeps them all.
    """
    return replace(example, draft=(mask_to_rle(true), mask_to_rle(mask)))


def coarse_mask(true: np.ndarray, name: str) -> np.ndarray:
    """A first mask (H, W) for a true one: coarse, with holes and leaks that follow from ``name`` (reading 1)."""
    if not true.any():
        return true.copy()
    rng = np.random.default_rng([_KIND, *name.encode()])
    height, width = true.shape
    cells = (max(1, round(width * COARSE / max(true.shape))), max(1, round(height * COARSE / max(true.shape))))
    mask = drawn_in_cells(true, cells)
    inside, border = np.flatnonzero(true), np.flatnonzero(true & ~binary_erosion(true))
    for places, value in ((inside, False),) * HOLES + ((border, True),) * LEAKS:
        y, x = divmod(int(places[rng.integers(len(places))]), width)
        _paint_disc(mask, x, y, rng.uniform(*RADII) * len(inside) ** 0.5, value)
    return mask


def _paint_disc(mask: np.ndarray, x: int, y: int, radius: float, value: bool) -> None:
    """Set the pixels of ``mask`` (H, W) within ``radius`` of a pixel, in place."""
    reach = int(radius)
    low_x, low_y = max(0, x - reach), max(0, y - reach)
    part = mask[low_y : y + reach + 1, low_x : x + reach + 1]
    rows, columns = np.ogrid[low_y - y : low_y - y + part.shape[0], low_x - x : low_x - x + part.shape[1]]
    part[columns**2 + rows**2 <= radius**2] = value


def overlaid(view: Image.Image, mask: np.ndarray) -> Image.Image:
    """A view of the whole picture under a translucent green ``mask`` (H, W) of that picture (reading 2)."""
    share = Image.fromarray(mask.astype(np.uint8) * 255).resize(view.size, Image.Resampling.BOX)
    weight = ALPHA * np.asarray(share, dtype=np.float32)[..., None] / 255  # (h, w, 1)
    pixels = np.asarray(view.convert("RGB"), dtype=np.float32)
    return Image.fromarray(np.rint(pixels + weight * (np.array(GREEN, dtype=np.float32) - pixels)).astype(np.uint8))


def covered_error(error: np.ndarray, regions: Any) -> float:
    """Share of the wrong pixels of ``error`` (H, W) that lie in at least one region (K, 4); 1 if nothing is wrong.

    >>> covered_error(np.array([[1, 1, 0, 1]], dtype=bool), [(0, 0, 2, 1), (1, 0, 3, 1)])
    0.6666666666666666
    """
    total, seen = np.count_nonzero(error), np.zeros_like(error)
    for window in windows(regions, error.shape):
        seen[window] = True
    return float(np.count_nonzero(error & seen) / total) if total else 1.0


def wrong_share(error: np.ndarray, regions: Any) -> list[float]:
    """The share of every region's pixels that are wrong; 0 for a region without a pixel."""
    parts = [error[window] for window in windows(regions, error.shape)]
    return [float(part.mean()) if part.size else 0.0 for part in parts]


def error_regions(error: np.ndarray, count: int) -> tuple[Region, ...]:
    """Up to ``count`` squares around the largest errors of a mask, each taken where most wrong pixels are left.

    A square has SQUARE of the picture's shorter side and is centred on the errors in it, as far as the
    picture's border allows. Fewer come back when nothing is left.
    """
    height, width = error.shape
    side, left, found = max(1, round(SQUARE * min(error.shape))), error.copy(), []
    while left.any() and len(found) < count:
        total = np.pad(left.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))
        held = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
        y, x = np.unravel_index(np.argmax(held), held.shape)
        places = np.argwhere(left[y : y + side, x : x + side]) + (y, x)
        middle = (places.min(axis=0) + places.max(axis=0) + 1) / 2
        top, start = np.clip(np.rint(middle - side / 2), 0, (height - side, width - side)).astype(int).tolist()
        left[top : top + side, start : start + side] = False
        found.append(Region(float(start), float(top), float(start + side), float(top + side)))
    return tuple(found)


# ---------------------------------------------------------------------- first masks and zooms


def with_first_masks(task_model: Corrector, examples: Sequence[Example], config: Config) -> list[Example]:
    """The examples, each with a first mask (``--first_mask``); one that has a mask keeps it.

    Raises DataError for an example without a true mask.
    """
    return [example if example.draft else _first_mask(task_model, example, config) for example in examples]


def _first_mask(task_model: Corrector, example: Example, config: Config) -> Example:
    true = true_mask(example)
    if config.first_mask == "coarse":
        return with_mask(example, true, coarse_mask(true, example.id))
    nothing = Draft(example.image, true, np.zeros_like(true))
    # One picture at a time, so that its first mask is the same whatever stands beside it in a batch.
    ((_, mask),) = zoom_and_click(task_model, [nothing], [[Region(0.0, 0.0, *map(float, example.size_px))]], clicks=1)
    return with_mask(example, true, mask)


def zoom_and_click(
    task_model: Corrector, drafts: Sequence[Draft], regions: Sequence[Sequence[Region]], clicks: int, batch: int = 16
) -> list[list[np.ndarray]]:
    """The masks (H, W) of every draft after 0, 1, 2, ... zooms, one more than it has regions.

    The k-th regions of all drafts are worked on together; a region without a whole pixel changes nothing.
    """
    steps = [[draft.mask] for draft in drafts]
    for k in range(max(map(len, regions), default=0)):
        turn = [i for i, of_one in enumerate(regions) if k < len(of_one)]
        for start in range(0, len(turn), batch):
            part = turn[start : start + batch]
            crops = [ClickCrop.of(drafts[i].image, drafts[i].true, steps[i][-1], regions[i][k]) for i in part]
            task_model.correct([crop for crop in crops if crop.mask.size], clicks)
            for i, crop in zip(part, crops):
                steps[i].append(crop.pasted(steps[i][-1]))
    return steps


def covered_mask(rollout: Rollout, error: np.ndarray, mode: str) -> float:
    """R_coverage in [0, 1] of the wrong pixels of a mask, ``error`` (H, W), read as ``mode`` says (reading 4)."""
    if not rollout.regions:
        return 0.0
    match mode:
        case "contain":
            return covered_error(error, rollout.regions) * (1 - covered_error(np.ones_like(error), rollout.regions))
        case "recall":
            return covered_error(error, rollout.regions)
        case "purity":
            return float(np.mean([share >= ERROR_ENOUGH for share in wrong_share(error, rollout.regions)]))
    raise ValueError(f"unknown coverage mode {mode!r} of a mask's errors: use contain, recall or purity")
