"""Loading a Qwen-VL model, which is used in two ways: to sample answers (generate.py) and to score them (scoring.py)."""

import ctypes
from pathlib import Path
from typing import Any, Callable, Iterable, Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from activeo3.attention import of_towers, see_together
from activeo3.families import FAMILIES
from activeo3.generate import Generator
from activeo3.patches import multiply_patches
from activeo3.scoring import Scorer


class ModelError(Exception):
    """A checkpoint that cannot be used, in one sentence that says what to do."""


class VisionLanguageModel(Generator, Scorer):
    """A model with its tokenizer and image processor, loaded from a checkpoint."""

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, attention: str = "auto") -> Self:
        """Load a checkpoint folder or a hub id of one of FAMILIES.

        ``attention`` is that of the vision tower; the text tower has its own, for packed rows (attention.py), which
        is another one only with ``flex``. No part of this needs torchvision.

        Raises:
            ModelError: the folder is not there, not a model or damaged, the hub cannot be reached, or the
                architecture is another one; ``flex`` without a GPU.
        """
        family_of(source, FAMILIES)
        if attention == "flex" and not torch.cuda.is_available():
            raise ModelError("--attention flex needs a GPU, FlexAttention has no backward pass on a CPU; leave it at auto.")
        load = AutoModelForImageTextToText.from_pretrained
        model = part_of(source, "weights", load, dtype=dtype, attn_implementation=of_towers(attention, dtype))
        multiply_patches(model)
        see_together(model, attention)
        tokenizer = part_of(source, "tokenizer", AutoTokenizer.from_pretrained)
        if "<|image_pad|>" not in (tokenizer.chat_template or ""):
            raise ModelError(f"{source} has no chat template with a place for a picture; copy it from the original model.")
        return cls(model, tokenizer, part_of(source, "image processor", AutoImageProcessor.from_pretrained, backend="pil"))

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write a folder that plain transformers loads, with ``weights`` or the model's own, whole on this rank."""
        weights = weights or {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        self.model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def family_of(source: str, supported: Iterable[str]) -> str:
    """The architecture of a checkpoint folder or hub id, one of ``supported``.

    Raises ModelError if there is no model or one of another architecture.
    """
    if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/"))):
        raise ModelError(f"the model folder {source} does not exist; name a checkpoint folder or a hub id.")
    inside = sorted((path.parent.name for path in Path(source).glob("*/config.json")), key=lambda name: (len(name), name))
    if inside and not (Path(source) / "config.json").exists():
        raise ModelError(f"{source} is no model itself, it holds {', '.join(inside)}: name one of these folders.")
    family = part_of(source, "config.json", AutoConfig.from_pretrained).model_type
    if family not in supported:
        raise ModelError(f"{source} is a {family} model; supported are {', '.join(supported)}.")
    return family


def part_of(source: str, part: str, load: Callable[..., Any], **options: Any) -> Any:
    """One part of a checkpoint folder or hub id. Raises ModelError whatever the matter is.

    For a file that is missing, damaged or of another version, each library raises errors of its own.
    """
    try:
        return load(source, **options)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(f"{source} has no {part} that can be used ({type(error).__name__}: {reason}).") from None


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors give back, instead of returning it to the system.

    On a CPU every large result would otherwise be mapped and zeroed page by page, which costs more than
    computing it: a product of two big tensors is seven times faster for these two lines. Beside a GPU it would
    only be the room of the weights that have passed through.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and not torch.cuda.is_available():  # glibc
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no allocation has a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
