"""Detectors of transformers as task models: open-vocabulary ones, which take the query as text, and closed-set ones, in
whose label set the query is looked up (label_set.py). What a checkpoint is, its ``model_type`` says:

    grounding-dino, mm-grounding-dino, owlvit, owlv2, omdet-turbo                               open vocabulary
    detr, conditional_detr, deformable_detr, table-transformer, yolos, rt_detr, rt_detr_v2,
    d_fine, rf_detr                                                                             closed set

Deviations from the official use of these models, and readings of what the paper leaves open:
  1. A detector sees a crop as its image processor would resize it (Grounding DINO: 800 pixels on the shorter side, 1333
     at most on the longer; others squeeze it to a square), but resampled once, from the original pixels, and where the
     shape is kept with sides in whole strides of 32. So crops of one size form a batch without padding, which group
     norms would let through to every box. The paper says "official preprocessing" and names neither checkpoint nor
     thresholds.
  2. ``--task_options box_threshold`` is the least score of a box for all of them. A detector that chooses one label for
     every box (DETR, YOLOS: a softmax) has found the query where it chose its label; one that scores every label apart
     (a sigmoid) has found it wherever the score is enough, also beyond the number of boxes that its own
     post-processing keeps.
  3. RF-DETR's image processor exists for torchvision only. All that is asked of it is to rescale and to normalise,
     which DETR's does with the same numbers.
"""

from typing import Any, Callable, ClassVar, NamedTuple, Self, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.utils import is_timm_available

from activeo3 import geometry, label_set, prompts
from activeo3.config import Config
from activeo3.generate import in_batches
from activeo3.geometry import Frame
from activeo3.model import ModelError, family_of, part_of
from activeo3.model_files import whole
from activeo3.task_models import SAME_THING, Crop, Detections, TaskModel, mapped_back, of_no_numbers
from activeo3.types import Region

MOST_VIEWS = 16  # of a detector at once: each is about a megapixel
STRIDE = 32  # pixels per cell of a detector's coarsest feature map


class Thresholds(NamedTuple):
    """From which score on a ``box`` counts, and (Grounding DINO) from which match on a word of the ``text``."""

    box: float
    text: float


class Scored(NamedTuple):
    """One crop's boxes: ``scores`` (boxes,), which of them are the query, ``kept`` (boxes,), and ``name(k)``."""

    scores: Tensor
    kept: Tensor
    name: Callable[[int], str]


class Detector(TaskModel):
    """A frozen detector in float32, whatever --dtype says: these models are small, and a reward should not hang on
    rounding."""

    auto_class: ClassVar[Any] = AutoModelForZeroShotObjectDetection
    pads: ClassVar[bool] = False
    """Whether its image processor pads a picture to a square, in which its boxes are."""

    def __init__(self, model: nn.Module, image_processor: Any, tokenizer: Any, thresholds: Thresholds) -> None:
        self.model = model.eval().requires_grad_(False)
        self.image_processor, self.tokenizer, self.thresholds = image_processor, tokenizer, thresholds

    @classmethod
    def load(cls, source: str, device: torch.device, thresholds: Thresholds) -> Self:
        """Load a checkpoint folder or hub id of this class; no part of this needs torchvision.

        Raises ModelError if it is not there, incomplete or damaged.
        """
        model = whole(source, cls.auto_class, dtype=torch.float32).to(device)
        return cls(model, _image_processor(source), cls.load_tokenizer(source), thresholds)

    @classmethod
    def load_tokenizer(cls, source: str) -> Any:
        """What reads the query."""
        return part_of(source, "tokenizer", AutoTokenizer.from_pretrained, trust_remote_code=False)

    def find(self, crops: Sequence[Crop], config: Config) -> list[Detections]:
        """Detect every crop's query in its crop, best first, with the detector's own scores."""
        of_size: dict[tuple[int, int], list[int]] = {}
        for place, crop in enumerate(crops):
            of_size.setdefault(self.view_size(crop.window), []).append(place)
        most, found = min(config.task_batch, MOST_VIEWS), {}
        for size, places in of_size.items():
            detected = in_batches(lambda part: self._detect([crops[k] for k in part], size, config.words), places, most)  # noqa: B023
            found |= zip(places, detected, strict=True)
        return [found[place] for place in range(len(crops))]

    def view_size(self, window: Region) -> tuple[int, int]:
        """(width, height) at which the detector sees a window: its processor's, in whole strides where it keeps the
        shape."""
        limits, sides = dict(self.image_processor.size), (window.x2 - window.x1, window.y2 - window.y1)
        if limits.get("shortest_edge"):
            scale = min(limits["shortest_edge"] / min(sides), limits["longest_edge"] / max(sides))
            width, height = (STRIDE * max(1, round(side * scale / STRIDE)) for side in sides)
            return width, height
        size = limits.get("width") or limits["max_width"], limits.get("height") or limits["max_height"]
        if not self.pads and limits.get("width"):
            return size
        scale = min(most / side for most, side in zip(size, sides))
        return tuple(max(1, round(side * scale)) for side in sides)

    @torch.no_grad()
    def _detect(self, crops: Sequence[Crop], size: tuple[int, int], wording: str) -> list[Detections]:
        """One forward pass over the views, all of one (width, height)."""
        views = [geometry.crop(crop.example.image, crop.window, size) for crop in crops]
        pictures = self.image_processor(images=views, do_resize=False, do_pad=self.pads, return_tensors="pt")
        words = {name: tensor.to(self.model.device) for name, tensor in self.words(crops, wording).items()}
        logits, boxes = self.outputs(self.model(pixel_values=pictures.pixel_values.to(self.model.device), **words))
        sound = boxes.isfinite().all(dim=(1, 2)) & ~(logits.isnan() | logits.isposinf()).any(dim=(1, 2))  # (crops,)
        for crop, fine in zip(crops, sound.tolist()):
            if not fine:  # a threshold would pass over them in silence; -inf is what is no word
                raise of_no_numbers("boxes or scores", crop.example)
        centre, side = boxes.double().cpu().chunk(2, dim=-1)  # (crops, boxes, 2) each, in 0-1 of what it sees
        corners = torch.cat([centre - side / 2, centre + side / 2], dim=-1)
        longest = max(size) if self.pads else None
        scale = tuple(edge / (longest or edge) for edge in size)  # the view in what it sees
        scored = self.scored(crops, words, logits.cpu())
        return [self._read(crop, *one, scale) for crop, *one in zip(crops, scored, corners, strict=True)]

    def _read(self, crop: Crop, scored: Scored, boxes: Tensor, scale: tuple[float, float]) -> Detections:
        """One crop's detections from its boxes (boxes, 4), best first."""
        order = scored.scores.argsort(descending=True, stable=True)
        kept = order[(scored.scores[order] > self.thresholds.box) & scored.kept[order]]
        kept = kept[self.apart(boxes[kept], scored.scores[kept])]
        text = "; ".join(f"{scored.name(k)} {scored.scores[k]:.2f}" for k in kept.tolist())
        scores = scored.scores[kept].double().numpy()
        return mapped_back(crop, Frame(tuple(crop.window), scale), boxes[kept].numpy(), scores, text)

    # ------------------------------------------------------------------ what the kinds of detectors differ in

    def words(self, crops: Sequence[Crop], wording: str) -> dict[str, Tensor]:
        """The inputs of the model beside the pixels."""
        raise NotImplementedError

    def outputs(self, out: Any) -> tuple[Tensor, Tensor]:
        """Logits (crops, boxes, classes or words), and boxes (crops, boxes, 4) as centre and sides in 0-1."""
        return out.logits, out.pred_boxes

    def scored(self, crops: Sequence[Crop], words: dict[str, Tensor], logits: Tensor) -> list[Scored]:
        """What the logits say of every crop; by default the one class that was asked for is the last axis."""
        every = torch.ones(logits.shape[1], dtype=torch.bool)
        return [Scored(one[:, 0].sigmoid(), every, lambda k, crop=crop: crop.example.query)
                for crop, one in zip(crops, logits, strict=True)]  # fmt: skip

    def apart(self, boxes: Tensor, scores: Tensor) -> Any:
        """Which boxes (boxes, 4), best first, stay beside each other: by default all of them."""
        return slice(None)


# ---------------------------------------------------------------------- open vocabulary


class GroundingDino(Detector):
    """A Grounding DINO or MM-Grounding-DINO; the query is its one category.

    ``thresholds.box`` is the least match of a box with any word; ``thresholds.text`` with a word of the query itself.
    """

    def words(self, crops: Sequence[Crop], wording: str) -> dict[str, Tensor]:
        asked = [prompts.detector_prompt(crop.example.query, wording=wording) for crop in crops]
        limit = self.model.config.max_text_len
        return dict(self.tokenizer(asked, padding=True, truncation=True, max_length=limit, return_tensors="pt"))

    def scored(self, crops: Sequence[Crop], words: dict[str, Tensor], logits: Tensor) -> list[Scored]:
        ids = words["input_ids"].cpu()  # (crops, words)
        match = logits.sigmoid()[..., : ids.shape[1]]  # (crops, boxes, words)
        named = (match > self.thresholds.text) & self._words_of_the_query(ids)[:, None]
        return [
            Scored(best, own.any(dim=1), lambda k, own=own, of=of: self.tokenizer.decode(of[own[k]]))
            for best, own, of in zip(match.amax(dim=2), named, ids, strict=True)
        ]

    def _words_of_the_query(self, ids: Tensor) -> Tensor:
        """True (crops, words) on the tokens of a query: neither special nor the full stop behind it."""
        other = [*self.tokenizer.all_special_ids, self.tokenizer.convert_tokens_to_ids(".")]
        return ~torch.isin(ids, torch.tensor(other))


class Owl(Detector):
    """An OWL-ViT; the query is its one class."""

    def words(self, crops: Sequence[Crop], wording: str) -> dict[str, Tensor]:
        asked = [prompts.detector_prompt(crop.example.query, "owl", wording) for crop in crops]
        limit = self.model.config.text_config.max_position_embeddings
        read = self.tokenizer(asked, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        return {name: read[name] for name in ("input_ids", "attention_mask")}


class Owl2(Owl):
    """An OWLv2, which sees a picture in the upper left of a square."""

    pads = True


class OmDet(Detector):
    """An OmDet-Turbo; the query is its one class, and its task to detect it."""

    def words(self, crops: Sequence[Crop], wording: str) -> dict[str, Tensor]:
        limit, found = self.model.config.text_config.max_position_embeddings, {}
        for part, template in (("classes", "omdet_class"), ("tasks", "omdet_task")):
            asked = [prompts.detector_prompt(crop.example.query, template, wording) for crop in crops]
            read = self.tokenizer(asked, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
            found |= {f"{part}_{name}": read[name] for name in ("input_ids", "attention_mask")}
        return found | {"classes_structure": torch.ones(len(crops), dtype=torch.long)}

    def outputs(self, out: Any) -> tuple[Tensor, Tensor]:
        return out.decoder_class_logits, out.decoder_coord_logits

    def apart(self, boxes: Tensor, scores: Tensor) -> Any:
        """Its queries repeat each other: non-maximum suppression at IoU 0.5, as its own post-processing does."""
        return geometry.nms(boxes.numpy(), scores.double().numpy(), SAME_THING)


# ---------------------------------------------------------------------- closed set


class ClosedSet(Detector):
    """A detector of fixed labels: the query means those that label_set.py finds for it."""

    auto_class = AutoModelForObjectDetection

    @classmethod
    def load_tokenizer(cls, source: str) -> None:
        """It reads no text."""

    def words(self, crops: Sequence[Crop], wording: str) -> dict[str, Tensor]:
        return {}

    def scored(self, crops: Sequence[Crop], words: dict[str, Tensor], logits: Tensor) -> list[Scored]:
        labels = self.model.config.id2label
        if logits.shape[-1] == len(labels) + 1:  # the last one is "no object", and a box has one label
            of_label = logits.softmax(dim=-1)[..., :-1]
            of_label = of_label * (of_label == of_label.amax(dim=-1, keepdim=True))
        else:
            of_label = logits.sigmoid()  # (crops, boxes, labels)
        found = []
        for crop, one in zip(crops, of_label, strict=True):
            meant = label_set.found(crop.example.query, labels)
            if not meant:
                raise ModelError(f"example {crop.example.id}: {label_set.unknown(crop.example.query, labels)}")
            scores, best = one[:, meant].max(dim=1)
            found.append(Scored(scores, scores > 0, lambda k, meant=meant, best=best: labels[meant[best[k]]]))
        return found


# ---------------------------------------------------------------------- a checkpoint

KINDS: dict[str, type[Detector]] = {
    **dict.fromkeys(("grounding-dino", "mm-grounding-dino"), GroundingDino),
    "owlvit": Owl,
    "owlv2": Owl2,
    "omdet-turbo": OmDet,
    **dict.fromkeys(
        ("detr", "conditional_detr", "deformable_detr", "table-transformer", "yolos", "rt_detr", "rt_detr_v2", "d_fine",
         "rf_detr"), ClosedSet,
    ),
}  # fmt: skip
"""The class of every ``model_type`` that is supported."""
WITH_THE_SAME_NUMBERS = {"RfDetrImageProcessor": DetrImageProcessorPil}
"""Image processors that exist for torchvision only, and one that rescales and normalises alike (deviation 3)."""


def load(source: str, device: torch.device, thresholds: Thresholds) -> Detector:
    """The detector of a checkpoint folder or hub id, of one of KINDS. Raises ModelError if it is not there, incomplete
    or damaged, of another architecture, or needs a library that is not here."""
    kind = KINDS[family_of(source, KINDS)]
    config = _config(source)
    if (
        getattr(getattr(config, "backbone_config", None), "model_type", "") == "timm_backbone"
        and not is_timm_available()
    ):
        raise ModelError(
            f"{source} has a backbone of timm: pip install timm, or name a checkpoint whose backbone is one of "
            "transformers."
        )
    return kind.load(source, device, thresholds)


def check_queries(source: str, queries: Sequence[str]) -> None:
    """Raise ModelError for the first query that is none of the labels of a closed-set checkpoint; of others, every
    query can be asked. Reads its config.json only."""
    if KINDS[family_of(source, KINDS)] is not ClosedSet:
        return
    labels = _config(source).id2label
    for query in queries:
        if not label_set.found(query, labels):
            raise ModelError(f"{source}: {label_set.unknown(query, labels)}")


def _config(source: str) -> Any:
    return part_of(source, "config.json", AutoConfig.from_pretrained, trust_remote_code=False)


def _image_processor(source: str) -> Any:
    """The image processor of a checkpoint, on Pillow. Raises ModelError if there is none that works without
    torchvision."""
    settings, _ = part_of(source, "image processor", ImageProcessingMixin.get_image_processor_dict)
    kind = str(settings.get("image_processor_type")).removesuffix("Fast")
    if kind in WITH_THE_SAME_NUMBERS:
        return part_of(source, "image processor", lambda _: WITH_THE_SAME_NUMBERS[kind].from_dict(settings))
    return part_of(
        source, "image processor", AutoImageProcessor.from_pretrained, backend="pil", trust_remote_code=False
    )
