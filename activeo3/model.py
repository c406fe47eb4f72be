"""Loading a Qwen-VL model, which is used in two ways: to sample answers (generate.py) and to score them
(scoring.py)."""

import ctypes
import json
from pathlib import Path
from typing import Iterable, Mapping, Self

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig, PreTrainedConfig

from activeo3 import lora, model_files
from activeo3.attention import of_towers, see_together
from activeo3.checkpoint_files import damage_of_model
from activeo3.families import FAMILIES
from activeo3.generate import Generator
from activeo3.model_files import ModelError, check_finite, part_of, quietly, whole
from activeo3.scoring import Scorer
from activeo3.vision import multiply_patches


class VisionLanguageModel(Generator, Scorer):
    """A model with its tokenizer and image processor, loaded from a checkpoint."""

    files: Mapping[str, bytes] = {}
    """The files of the checkpoint beside its weights, as they were read; none if the model was made here."""
    trained_here = True
    """Whether it knows the forms that are asked for: see ``trained_here`` of its folder."""

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, attention: str = "auto", base: str = "") -> Self:
        """Load a checkpoint folder or a hub id of one of FAMILIES; of an adapter, with its base model, see
        ``adapters.base_of``.

        ``attention`` is that of the vision tower; the text tower has its own, for packed rows (attention.py), which
        is another one only with ``flex``. No part of this needs torchvision, or runs code of the checkpoint's own.

        Raises:
            ModelError: the folder is not there, not a model or damaged (of a checkpoint: by its digests), the hub
                cannot be reached, or the architecture is another one; weights are missing, misnamed, quantised or not
                finite; ``flex`` without a GPU.
        """
        vlm = cls._load(source, dtype, attention, base)
        vlm.name, vlm.trained_here = source, trained_here(source)
        return vlm

    @classmethod
    def _load(cls, source: str, dtype: torch.dtype, attention: str, base: str) -> Self:
        """``load``, without where the model is from."""
        if damage := damage_of_model(source):
            raise ModelError(
                f"{damage}; copy the checkpoint again, or delete its digests.json if it was changed on purpose."
            )
        family_of(source, FAMILIES, base)
        if attention == "flex" and not torch.cuda.is_available():
            raise ModelError(
                "--attention flex needs a GPU, FlexAttention has no backward pass on a CPU; leave it at auto."
            )
        if beneath := lora.base_of(source, base):
            vlm = cls._load(beneath, dtype, attention, "")
            lora.merge(vlm.model, source)
            check_finite(source, vlm.model)
            return vlm
        with quietly():
            model = whole(
                source, AutoModelForImageTextToText, dtype=dtype, attn_implementation=of_towers(attention, dtype)
            )
            tokenizer = part_of(source, "tokenizer", AutoTokenizer.from_pretrained, trust_remote_code=False)
            model_files.check_vocabulary(source, tokenizer, model.config, model.get_input_embeddings().num_embeddings)
            model_files.check_ends(source, model.generation_config.eos_token_id)
            tokenizer.chat_template = model_files.picture_template(source, tokenizer)
            image_processor = model_files.image_processor(source, model.config.vision_config)
        multiply_patches(model)
        see_together(model, attention)
        vlm = cls(model, tokenizer, image_processor)
        vlm.files = model_files.kept(source, tokenizer.chat_template)
        return vlm

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write a folder that plain transformers loads, with ``weights`` or the model's own, whole on this rank.

        Its other files are those of the checkpoint that was loaded, so that a version of transformers that loads the
        one loads the other. The weights have the names that they had there.
        """
        weights = weights or {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        if not self.files:
            self.model.save_pretrained(folder, state_dict=weights)
            self.tokenizer.save_pretrained(folder)
            self.image_processor.save_pretrained(folder)
            return
        own, self.model.generation_config = (
            self.model.generation_config,
            GenerationConfig(),
        )  # a wrong one would not be saved
        try:
            self.model.save_pretrained(folder, state_dict=weights)
        finally:
            self.model.generation_config = own
        (folder / "generation_config.json").unlink(missing_ok=True)
        model_files.save(self.files, folder, self.model.dtype)


def trained_here(source: str) -> bool:
    """Whether a model folder is a checkpoint of a run or a policy that ships with the project: it then has an
    activeo3.json.

    A checkpoint's ``adapters/`` is part of it.
    """
    folder = Path(source)
    return ((folder.parent if folder.name == "adapters" else folder) / "activeo3.json").is_file()


def mark_as_ours(folder: Path) -> None:
    """Say of the folder of a model that was made here, and by no run, that it was made here."""
    (folder / "activeo3.json").write_text(json.dumps({"step": 0, "world": 1, "config": {}}) + "\n")


def family_of(source: str, supported: Iterable[str], base: str = "") -> str:
    """The architecture of a checkpoint folder or hub id, one of ``supported``; of an adapter, its base model's.

    Raises ModelError if there is no model, one of another architecture or a quantised one.
    """
    if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/"))):
        raise ModelError(f"the model folder {source} does not exist; name a checkpoint folder or a hub id.")
    if beneath := lora.base_of(source, base):
        return family_of(beneath, supported)
    inside = sorted(
        (path.parent.name for path in Path(source).glob("*/config.json")), key=lambda name: (len(name), name)
    )
    if inside and not (Path(source) / "config.json").exists():
        raise ModelError(f"{source} is no model itself, it holds {', '.join(inside)}: name one of these folders.")
    config, _ = part_of(source, "config.json", PreTrainedConfig.get_config_dict)
    if not isinstance(config, dict):
        raise ModelError(f"{source} has no config.json that can be used: it holds no json object.")
    family = str(config.get("model_type") or "")
    if not family:
        why = "it names no model_type" if config else "it is not there"
        raise ModelError(f"{source} has no config.json that can be used: {why}.")
    if family not in supported:
        raise ModelError(f"{source} is a {family} model; supported are {', '.join(supported)}.")
    if quantised := config.get("quantization_config"):
        how = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ModelError(
            f"{source} is quantised ({how or 'in a way that it does not name'}); name the model it was made from."
        )
    if kernels := list(model_files.kernels_of(config)):
        raise ModelError(
            f"{source}: config.json names a kernel of the hub, which is code ({kernels[0]}); take it out of there."
        )
    return family


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
