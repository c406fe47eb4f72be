"""Interactive segmentation: zoom into an error of a mask, click, and let a Segment Anything model correct it.

The counterpart of ``taskmodels.act`` for masks (ACTIVE-O3, section 5.4 and E.3): the sensing policy proposes
regions in which a mask is wrong (task_segmentation.py says which mask); each is zoomed into in turn; the mask of the crop
is corrected and replaces that part of the picture's. Who corrects:

    sam       an oracle clicks (clicks.py), and SAM, SAM 2 or the tracker of SAM 3 turns the clicks into a mask
    oracle    the true mask inside the region, as fine as its view shows it: the ceiling

Deviations from the paper, and readings of what it leaves open:
  1. It names neither SAM variant nor number of clicks; both are arguments.
  2. SAM is told the mask so far, as logits of +-10, unless it is empty in the crop; after a click its own
     logits go back in. Of several masks that it offers, the one that it scores highest counts.
  3. Windows are widened to whole pixels, because a mask has no others.
  4. A first mask by SAM is its answer to one oracle click on the whole picture, which it sees squeezed to its
     own size; so thin parts are wrong until they are zoomed into.
  5. The paper's oracle "simulates perfect click feedback". Ours is perfect in the view of the crop, which has CELLS cells of a
     mask to a visual token (``--least_seen``) along each side, as SAM has (64 tokens and 256 logits along 1024 pixels). So a small
     region mends fine errors, and a large one draws over them. An oracle that is right to the pixel (0) makes every
     picture right with the same three tiles.

The processors of SAM 2 and SAM 3 need torchvision. They only resize and normalise, which is done here, so
none of this needs it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForMaskGeneration
from transformers.image_processing_base import ImageProcessingMixin

from activeo3 import geometry
from activeo3.clicks import Click, next_click
from activeo3.config import Config
from activeo3.geometry import Frame
from activeo3.model import ModelError, family_of, part_of
from activeo3.model_weights import whole
from activeo3.task_segmentation import Draft, coarse_mask, drawn_in_cells, true_mask, windows, with_mask
from activeo3.types import Example, Region

FAMILIES = ("sam", "sam2", "sam2_video", "sam3_tracker", "sam3_video")
CELLS = 4  # of a mask along a side of a visual token
SURE = 10.0  # logit of a pixel of a mask that came without logits


class Corrector:
    """Whoever corrects masks in crops; a whole copy is on every rank."""

    def correct(self, crops: Sequence["ClickCrop"], clicks: int) -> None:
        """Correct the mask of every crop in place, with up to ``clicks`` clicks."""
        raise NotImplementedError

    def gathered(self) -> AbstractContextManager[Self]:
        """As ``Zero3Model.gathered`` of the language model; here there is nothing to gather."""
        return nullcontext(self)


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


def corrector(name: str, config: Config, device: torch.device) -> Corrector:
    """The task model ``name`` of segmentation: sam or oracle."""
    return Perfect.of(config) if name == "oracle" else Sam.load(config.task_checkpoint, device)


def prepared(task_model: Corrector, examples: Sequence[Example], config: Config) -> list[Example]:
    """The examples, each with the first mask that ``config.first_mask`` says; one that has a mask keeps it.

    Raises DataError for an example without a true mask.
    """
    return [example if example.draft else _prepared(task_model, example, config) for example in examples]


def _prepared(task_model: Corrector, example: Example, config: Config) -> Example:
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
            crops = [ClickCrop.of(drafts[i], steps[i][-1], regions[i][k]) for i in part]
            task_model.correct([crop for crop in crops if crop.mask.size], clicks)
            for i, crop in zip(part, crops):
                steps[i].append(crop.pasted(steps[i][-1]))
    return steps


class ClickCrop:
    """One zoom's worth of work: a window of whole pixels, its true mask, its mask and the clicks so far."""

    def __init__(
        self, image: Image.Image, window: tuple[int, int, int, int], true: np.ndarray, mask: np.ndarray
    ) -> None:
        self.image, self.window, self.true, self.mask = image, window, true, mask
        self.clicks: list[Click] = []
        self.logits: Tensor | None = None  # (1, h, w) of the last prediction, as SAM wants them back

    @classmethod
    def of(cls, draft: Draft, mask: np.ndarray, region: Region) -> Self:
        """The part of a draft that a region shows, in whole pixels; empty for a region without area or outside."""
        ((rows, columns),) = windows([region], mask.shape)
        window = (columns.start, rows.start, columns.stop, rows.stop)
        return cls(draft.image, window, draft.true[rows, columns], mask[rows, columns].copy())

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
            for told in (True, False):
                group = [i for i in wrong if (crops[i].logits is not None) == told]
                if group:
                    self._predict([crops[i] for i in group], _rows(seen, group), told)

    def _predict(self, crops: Sequence[ClickCrop], seen: Any, told: bool) -> None:
        """New logits and masks of crops that have equally many clicks."""
        device = self.model.device
        prompts = {
            "input_points": torch.tensor(np.stack([self.points(crop) for crop in crops]), device=device)[:, None],
            "input_labels": torch.tensor([[[int(c.positive) for c in crop.clicks]] for crop in crops], device=device),
        }
        if told:
            prompts["input_masks"] = torch.stack([crop.logits for crop in crops]).to(device)
        # One click can mean a thing or its part, so SAM offers several masks; a mask so far has settled that.
        out = self.model(image_embeddings=seen, multimask_output=not told, **prompts)
        best = out.iou_scores[:, 0].argmax(dim=-1)  # (crops,)
        for crop, masks, k in zip(crops, out.pred_masks[:, 0], best.tolist()):
            if not masks[k].isfinite().all():
                raise ModelError(
                    "the task model gives masks that are not finite; try --task_model oracle, or another --task_checkpoint."
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
