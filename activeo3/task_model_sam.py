"""Task models that correct masks in crops: Segment Anything under simulated clicks, and the ground truth.

    sam       the click simulator clicks, and SAM, SAM 2 or the tracker of SAM 3 turns the clicks into a mask
    oracle    the true mask inside the region, as fine as its view shows it: the ceiling

The next click goes to the point of an error that is farthest from the error's border. Of the two kinds of error,
missing object and surplus mask, the one with the farther such point is corrected first: a positive click on missing
object, a negative one on surplus mask. task_segmentation.py says which masks and crops these are (ACTIVE-O3, section
5.4 and E.3).

Deviations from the paper, and readings of what it leaves open:
  1. It names neither SAM variant nor number of clicks; both are arguments.
  2. SAM is told the mask so far, as logits of +-10, unless it is empty in the crop; after a click its own
     logits go back in. Of several masks that it offers, the one that it scores highest counts.
  3. Windows are widened to whole pixels, because a mask has no others.
  4. A first mask by SAM is its answer to one oracle click on the whole picture, which it sees squeezed to its
     own size; so thin parts are wrong until they are zoomed into.
  5. The paper's oracle "simulates perfect click feedback". Ours is perfect in the view of the crop, which has CELLS
     cells of a mask to a visual token (``--task_options least_seen``) along each side, as SAM has (64 tokens and 256
     logits along 1024 pixels). So a small region mends fine errors, and a large one draws over them. An oracle that is
     right to the pixel (0) makes every picture right with the same three tiles.
  6. "Perfect click feedback" is no rule. The one above is the usual rule of interactive segmentation; the border of the
     window counts as an error's border, a tie goes to the missing object, and among equal points to the first in
     reading order.

The processors of SAM 2 and SAM 3 need torchvision. They only resize and normalise, which is done here, so
none of this needs it.
"""

from typing import Any, NamedTuple, Self, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from transformers import AutoModelForMaskGeneration
from transformers.image_processing_base import ImageProcessingMixin

from activeo3 import geometry
from activeo3.config import Config
from activeo3.geometry import Frame
from activeo3.model import ModelError, family_of, part_of
from activeo3.model_files import whole
from activeo3.task_models import TaskModel
from activeo3.types import Region

FAMILIES = ("sam", "sam2", "sam2_video", "sam3_tracker", "sam3_video")
CELLS = 4  # of a mask along a side of a visual token
SURE = 10.0  # logit of a pixel of a mask that came without logits


class Corrector(TaskModel):
    """Base class of task models that correct masks in crops."""

    def correct(self, crops: Sequence["ClickCrop"], clicks: int) -> None:
        """Correct the mask of every crop in place, with up to ``clicks`` clicks."""
        raise NotImplementedError


class Perfect(Corrector):
    """The oracle: inside a region the mask becomes the true one, however few the clicks, as it looks in ``cells`` x
    ``cells`` cells that span the region; None: to the pixel (reading 5)."""

    def __init__(self, cells: int | None = None) -> None:
        self.cells = cells

    @classmethod
    def of(cls, config: Config) -> Self:
        """An oracle that sees crops at the size that the config says."""
        return cls(max(1, round(CELLS * config.crop_side / config.least_seen)) if config.least_seen else None)

    def correct(self, crops: Sequence["ClickCrop"], clicks: int) -> None:
        """Draw the true mask of every crop."""
        for crop in crops:
            height, width = crop.true.shape
            cells = (min(self.cells or width, width), min(self.cells or height, height))
            crop.mask = drawn_in_cells(crop.true, cells)


class Click(NamedTuple):
    """A pixel of a mask, and whether it belongs to the object."""

    x: int
    y: int
    positive: bool


def next_click(true: np.ndarray, mask: np.ndarray, before: Sequence[Click] = ()) -> Click | None:
    """The click that corrects ``mask`` (H, W) towards ``true`` (H, W), or None if nothing is left to correct.

    A pixel is never clicked twice: those of ``before`` are passed over.

    >>> next_click(np.array([[1, 1, 1, 0]], dtype=bool), np.array([[0, 0, 0, 1]], dtype=bool))
    Click(x=0, y=0, positive=True)
    """
    depths = []
    for error in (true & ~mask, mask & ~true):
        depth = depth_inside(error)
        for click in before:
            depth[click.y, click.x] = 0
        depths.append(depth)
    missing, surplus = depths
    deepest = max(missing.max(initial=0), surplus.max(initial=0))
    if deepest == 0:
        return None
    positive = bool(missing.max() == deepest)
    y, x = np.unravel_index(np.argmax(missing if positive else surplus), true.shape)
    return Click(int(x), int(y), positive)


def depth_inside(region: np.ndarray) -> np.ndarray:
    """The Euclidean distance of each pixel's centre to the nearest pixel outside ``region`` (H, W), 0 outside itself.
    Beyond the array everything is outside."""
    return distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]


def drawn_in_cells(mask: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) as a model of low resolution draws it: (columns, rows) of ``cells`` hold their share of it, which
    is interpolated between them and cut at one half."""
    share = Image.fromarray(mask.astype(np.uint8) * 255).resize(cells, Image.Resampling.BOX)
    return np.asarray(share.resize(mask.shape[::-1], Image.Resampling.BILINEAR)) > 127


def windows(regions: Any, shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The (rows, columns) of a mask of ``shape`` (H, W) that each region (K, 4) touches: whole pixels, perhaps none."""
    found = []
    for region in regions:
        x1, y1 = np.clip(np.floor(region[:2]), 0, shape[::-1]).astype(int).tolist()
        x2, y2 = np.clip(np.ceil(region[2:]), 0, shape[::-1]).astype(int).tolist()
        found.append(np.s_[y1:y2, x1:x2])
    return found


class ClickCrop:
    """One zoom's worth of work: a window of whole pixels, its true mask, its mask and the clicks so far."""

    def __init__(
        self, image: Image.Image, window: tuple[int, int, int, int], true: np.ndarray, mask: np.ndarray
    ) -> None:
        self.image, self.window, self.true, self.mask = image, window, true, mask
        self.clicks: list[Click] = []
        self.logits: Tensor | None = None  # (1, h, w) of the last prediction, as SAM wants them back

    @classmethod
    def of(cls, image: Image.Image, true: np.ndarray, mask: np.ndarray, region: Region) -> Self:
        """The part of two masks (H, W) that a region shows, in whole pixels; empty for a region without area or
        outside."""
        ((rows, columns),) = windows([region], mask.shape)
        window = (columns.start, rows.start, columns.stop, rows.stop)
        return cls(image, window, true[rows, columns], mask[rows, columns].copy())

    def pasted(self, mask: np.ndarray) -> np.ndarray:
        """A copy of the picture's mask (H, W) with this crop's part replaced."""
        x1, y1, x2, y2 = self.window
        whole = mask.copy()
        whole[y1:y2, x1:x2] = self.mask
        return whole


class Sam(Corrector):
    """A frozen Segment Anything model of transformers, prompted with points, in float32.

    ``mean`` and ``std`` (3,) normalise pixels of 0-1. SAM keeps a crop's shape and pads it to a square;
    its successors squeeze it.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.keeps_shape = model.config.model_type == "sam"
        self.side = int(model.prompt_encoder.input_image_size)
        self.coarse = 4 * model.prompt_encoder.image_embedding_size[0]  # side of the logits
        self.mean, self.std = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)

    @classmethod
    def load(cls, source: str, device: torch.device) -> Self:
        """Load a checkpoint folder or hub id of one of FAMILIES.

        Raises ModelError if it is not there, incomplete or damaged, or another architecture.
        """
        family_of(source, FAMILIES)
        model = whole(source, AutoModelForMaskGeneration, dtype=torch.float32)
        settings, _ = part_of(source, "image processor", ImageProcessingMixin.get_image_processor_dict)
        for name in ("image_mean", "image_std"):
            if name not in settings:
                raise ModelError(f"{source} is incomplete: its preprocessor_config.json has no {name!r}.")
        return cls(model.to(device), settings["image_mean"], settings["image_std"])

    @torch.no_grad()
    def correct(self, crops: Sequence[ClickCrop], clicks: int) -> None:
        """Up to ``clicks`` clicks and corrections in every crop; the picture is encoded once for all of them."""
        if not crops:
            return
        pixels = torch.from_numpy(np.stack([self.pixels(crop) for crop in crops]))
        seen = self.model.get_image_embeddings(pixels.to(self.model.device))
        for crop in crops:
            crop.logits = self.as_logits(crop) if crop.mask.any() else None
        for _ in range(clicks):
            wrong = [i for i, crop in enumerate(crops) if _clicked(crop)]
            # Those without a mask so far are asked apart: a mask prompt is all or nothing in a batch.
            for with_mask in (True, False):
                group = [i for i in wrong if (crops[i].logits is not None) == with_mask]
                if group:
                    self._predict([crops[i] for i in group], _rows(seen, group), with_mask)

    def _predict(self, crops: Sequence[ClickCrop], seen: Any, with_mask: bool) -> None:
        """New logits and masks of crops that have equally many clicks."""
        device = self.model.device
        prompts = {
            "input_points": torch.tensor(np.stack([self.points(crop) for crop in crops]), device=device)[:, None],
            "input_labels": torch.tensor([[[int(c.positive) for c in crop.clicks]] for crop in crops], device=device),
        }
        if with_mask:
            prompts["input_masks"] = torch.stack([crop.logits for crop in crops]).to(device)
        # One click can mean a thing or its part, so SAM offers several masks; a mask so far has settled that.
        out = self.model(image_embeddings=seen, multimask_output=not with_mask, **prompts)
        best = out.iou_scores[:, 0].argmax(dim=-1)  # (crops,)
        for crop, masks, k in zip(crops, out.pred_masks[:, 0], best.tolist()):
            if not masks[k].isfinite().all():
                raise ModelError(
                    "the task model gives masks that are not finite; try --task_model oracle, or another "
                    "--task_checkpoint."
                )
            crop.logits = masks[k : k + 1].cpu()
            crop.mask = self.as_mask(crop)

    # ------------------------------------------------------------------ between a crop and SAM's square

    def view_size(self, crop: ClickCrop) -> tuple[int, int]:
        """(width, height) that the crop has inside the square."""
        if not self.keeps_shape:
            return self.side, self.side
        height, width = crop.true.shape
        scale = self.side / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def pixels(self, crop: ClickCrop) -> np.ndarray:
        """The crop as SAM sees it, (3, side, side): resampled, normalised, padded with 0 to the right and below."""
        width, height = self.view_size(crop)
        view = np.asarray(geometry.crop(crop.image.convert("RGB"), crop.window, (width, height)), dtype=np.float32)
        square = np.zeros((3, self.side, self.side), dtype=np.float32)
        square[:, :height, :width] = ((view / 255 - self.mean) / self.std).transpose(2, 0, 1)
        return square

    def points(self, crop: ClickCrop) -> np.ndarray:
        """The clicks (clicks, 2) in pixels of the square. SAM itself adds the half pixel to a pixel's centre."""
        height, width = crop.true.shape
        centres = np.array([(c.x + 0.5, c.y + 0.5) * 2 for c in crop.clicks])
        frame = Frame((0, 0, width, height), self.view_size(crop))
        return (frame.to_text(centres)[:, :2] - 0.5).astype(np.float32)

    def as_logits(self, crop: ClickCrop) -> Tensor:
        """The crop's mask as logits (1, coarse, coarse) of a prediction that is sure of itself."""
        width, height = (max(1, round(side * self.coarse / self.side)) for side in self.view_size(crop))
        share = F.interpolate(torch.from_numpy(crop.mask).float()[None, None], (height, width), mode="area")[0]
        logits = torch.full((1, self.coarse, self.coarse), -SURE)
        logits[:, :height, :width] = SURE * (2 * share - 1)
        return logits

    def as_mask(self, crop: ClickCrop) -> np.ndarray:
        """The crop's logits as a mask at its own size."""
        width, height = self.view_size(crop)
        logits = crop.logits[None]
        if (width, height) != (self.side, self.side):  # leave out what was padded
            logits = F.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
            logits = logits[..., :height, :width]
        whole = F.interpolate(logits, crop.true.shape, mode="bilinear", align_corners=False)
        return (whole[0, 0] > 0).numpy()


def _clicked(crop: ClickCrop) -> bool:
    """Add the oracle's next click; False if there is nothing left to correct."""
    click = next_click(crop.true, crop.mask, crop.clicks)
    crop.clicks += [click] if click else []
    return click is not None


def _rows(seen: Any, rows: list[int]) -> Any:
    """The image embeddings of some crops; those of SAM 2 and 3 come in several resolutions."""
    return [level[rows] for level in seen] if isinstance(seen, list) else seen[rows]
