"""A Qwen-VL model: loaded, saved, and scoring answers; generate.py samples them.

Scoring answers: how probable they are, for a prompt and its G answers in one of three ways.

    packed   one row for a prompt and its answers, ``prefix | branch 1 | ... | branch G``, in which a branch sees the
             prefix and itself but not its siblings, and in which positions restart after the prefix
    cached   the prompt once, with a cache, and then the answers as a batch behind the repeated cache (decoding.py)
    rows     the prompt again for every answer: the naive way, which the others are compared with

All three give the same log-probabilities and gradients. ``packed`` pays for each prompt once and for no padding between
answers, and is the default. A mask is all that separates the siblings there, and it cannot where the text tower keeps
a running state: such families are ``cached``.
"""

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from typing import Iterable, Mapping, Self, Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig, PreTrainedConfig

from activeo3 import lora, model_files, model_hub
from activeo3.attention import free_columns, mask_for, of_towers, packed_mask, see_together
from activeo3.checkpoint_files import damage_of_model
from activeo3.decoding import PromptCache
from activeo3.encoding import Encoder
from activeo3.families import FAMILIES
from activeo3.model_files import ModelError, check_finite, part_of, quietly, whole
from activeo3.packing import PADDING, Branch, Layout, Packed, Prompt, branching_mask, lay_out, mask_mod
from activeo3.task_models import Mllm
from activeo3.vision import multiply_patches

Rows = Sequence[Sequence[Branch]]


class Scorer(Encoder):
    """A model that says how probable answers are."""

    def pack(self, prompts: Sequence[Prompt], branches: Sequence[Sequence[Branch | Sequence[int]]]) -> Packed:
        """Lay out R prompts with their branches in the way of ``scoring`` (see ``Packed``).

        A plain sequence of ids is a branch of one turn. Every prompt needs the same number B of branches.

        Raises ValueError unless the text tower's attention takes a mask of this kind.
        """
        ways = {"packed": self._side_by_side, "cached": self._behind_a_cache, "rows": self._one_by_one}
        return ways[self.scoring](prompts, [[Branch.of(branch) for branch in row] for row in branches])

    def forward_packed(self, packed: Packed, module: nn.Module | None = None) -> Tensor:
        """Logits (R, 1 + W, V) of the prefix's last column and of the W branch columns, or (R, K, V) of those
        of them that are ``logit_columns``. R is R B if every answer has a row of its own.

        The head runs on these columns alone: the prefix is most of the row and needs no logits.
        ``module`` is the model as the engine wraps it; by default the bare model.
        """
        module, logit_columns, behind = module or self.model, packed.logit_columns, {}
        if logit_columns is None:
            logit_columns = torch.arange(
                packed.inputs["input_ids"].shape[1] - packed.prefix + 1, device=packed.tokens.device
            )
        if packed.prompts is not None:
            read = PromptCache(self.model.config.get_text_config())
            module(**packed.prompts, past_key_values=read, logits_to_keep=1, use_cache=False)
            behind = {"past_key_values": read.behind(packed.tokens.shape[1])}
        out = module(**packed.inputs, **behind, logits_to_keep=packed.prefix - 1 + logit_columns, use_cache=False)
        return out.logits

    # ------------------------------------------------------------------ packed

    def _side_by_side(self, prompts: Sequence[Prompt], rows: Rows) -> Packed:
        """Branches of a row stand close together, so unequal lengths cost nothing inside a row; rows are padded on
        the right to the longest."""
        free = free_columns(self._attention, max(len(prompt.ids) for prompt in prompts))
        ids, attended = self._padded(prompts, before_last=free > 0)  # (R, S)
        laid = lay_out(rows, self.end_token, ids.device)
        everything = torch.cat([ids, laid.ids], dim=1)  # (R, S + W)
        given = [[prompt, *(seen for branch in row for seen in branch.shown)] for prompt, row in zip(prompts, rows)]
        visual = self._visual(given, everything)
        positions, _ = self._rope_index(ids, attended, prompts)  # (3, R, S)
        after = positions.amax(dim=(0, 2))[:, None] + 1 + self._depth(rows, laid)  # (3, R, W)
        rule = mask_mod(attended.bool(), laid.branch_id, laid.image_epoch, everything == self.image_token)
        inputs = {
            "input_ids": everything,
            "position_ids": torch.cat([positions, after], dim=2),  # (3, R, S + W)
            "attention_mask": packed_mask(self._attention, rule, everything, free, self.model.dtype),
            **visual,
        }
        return Packed(inputs, ids.shape[1], laid.tokens, laid.completion_mask, laid.columns, laid.logit_columns)

    def _depth(self, rows: Rows, laid: Layout) -> Tensor:
        """Positions (3, R, W) inside the branches, counted from 0: a picture spans rows and columns."""
        position_in_branch = laid.position_in_branch.expand(3, -1, -1).clone()
        for r, row in enumerate(rows):
            for b, branch in enumerate(row):
                if any(len(seen.grids) for seen in branch.shown):
                    ids = torch.tensor([branch.ids], device=position_in_branch.device)
                    inside, _ = self._rope_index(ids, torch.ones_like(ids), branch.shown)  # (3, 1, length)
                    position_in_branch[:, r, laid.branch_id[r] == b] = inside[:, 0]
        return position_in_branch

    # ------------------------------------------------------------------ cached, rows

    def _behind_a_cache(self, prompts: Sequence[Prompt], rows: Rows) -> Packed:
        """A batch of prompts up to their last token, which predicts the first of each branch and is read with it: the
        answers' pass has all logits that are needed."""
        ids, attended = self._padded(prompts)  # (R, S)
        positions, _ = self._rope_index(ids, attended, prompts)  # (3, R, S)
        read = {
            "input_ids": ids[:, :-1],
            "position_ids": positions[:, :, :-1],
            "attention_mask": attended[:, :-1],
            **self._visual([[prompt] for prompt in prompts], ids[:, :-1]),
        }
        return replace(self._one_by_one(prompts, rows, cached=ids.shape[1] - 1), prompts=read)

    def _one_by_one(self, prompts: Sequence[Prompt], rows: Rows, cached: int = 0) -> Packed:
        """R B rows of ``prompt | branch``, padded on both sides, without the columns that are ``cached``."""
        group, alone = len(rows[0]), [[branch] for row in rows for branch in row]
        ids, attended = self._padded(prompts)  # (R, S)
        positions, _ = self._rope_index(ids, attended, prompts)  # (3, R, S)
        ids, attended, positions = (x.repeat_interleave(group, dim=-2) for x in (ids, attended, positions))  # (R B, S)
        laid = lay_out(alone, self.end_token, ids.device)
        after = positions.amax(dim=(0, 2))[:, None] + 1 + self._depth(alone, laid)  # (3, R B, W)
        everything = torch.cat([ids, laid.ids], dim=1)  # (R B, S + W)
        begin = [[] if cached else [prompt] for prompt in prompts for _ in range(group)]
        given = [[*first, *branch.shown] for first, (branch,) in zip(begin, alone)]
        inputs = {
            "input_ids": everything[:, cached:],
            "position_ids": torch.cat([positions, after], dim=2)[:, :, cached:],
            "attention_mask": self._seen(attended, laid, everything, cached),
            **self._visual(given, everything[:, cached:]),
        }
        tokens, completion_mask, columns = (
            x.view(len(rows), group, -1) for x in (laid.tokens, laid.completion_mask, laid.columns)
        )
        return Packed(inputs, ids.shape[1] - cached, tokens, completion_mask, columns, laid.logit_columns)

    def _seen(self, attended: Tensor, laid: Layout, everything: Tensor, cached: int) -> Tensor:
        """What rows of one branch may see: 1 on real columns (rows, S + W), or if views were replaced, a mask of its
        own for every column behind the cached ones."""
        if laid.image_epoch is None:
            return torch.cat([attended, (laid.branch_id != PADDING).to(attended)], dim=1)
        rule = mask_mod(attended.bool(), laid.branch_id, laid.image_epoch, everything == self.image_token)
        return mask_for(
            self._attention, branching_mask(rule, *everything.shape, everything.device, cached), self.model.dtype
        )


# ---------------------------------------------------------------------- load and save


class VisionLanguageModel(Mllm, Scorer):
    """A model with its tokenizer and image processor, loaded from a checkpoint: a policy, or a task model."""

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
        if sum(tensor.nbytes for tensor in vlm.model.parameters()) >= LARGE:
            return_freed_memory()
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
            model_files.check_size(source)
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
        # The copies of a tied head that come from a GPU are two, and would be saved twice.
        first = model_files.first_names(self.model)
        weights = {name: weights.get(first.get(name, name), tensor) for name, tensor in weights.items()}
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
    model_hub.check_there(source)
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


LARGE = 2**30
"""Bytes of weights from which memory is scarcer than the time to map it."""


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


def return_freed_memory() -> None:
    """Let every tensor of 1 MB and more have memory of its own, which returns to the system when it is freed.

    Freed memory that is kept lies in pieces between what is in use, and new tensors do not fit into them. One step of
    Qwen2.5-VL-3B in bfloat16 took 19 GB so, and takes 10. It takes longer by the mapping of pages; where the weights
    fill much of the machine, arithmetic is still most of it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and not torch.cuda.is_available():  # glibc
        libc.mallopt(-4, 65536)  # M_MMAP_MAX
        libc.mallopt(-3, 2**20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**17)  # M_TRIM_THRESHOLD
