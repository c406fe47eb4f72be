"""Loading a Qwen-VL model, and the two ways it is used: sampling answers and scoring them.

Both ways pay for a prompt once. **Sampling** prefills each prompt, repeats its key-value cache G times
and decodes all P x G answers as one batch. **Scoring** lays a prompt and its G answers out as one packed
row, ``prefix | branch 1 | ... | branch G``, in which a branch sees the prefix and itself but not its
siblings, and in which positions restart after the prefix. The result is that of G separate rows.

Qwen2.5-VL writes boxes in pixels of the view it saw, Qwen3-VL in thousandths of the view's sides; that
is a property of the loaded model (``text_scale``), and this file is where it is known.
"""

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Self, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
from transformers.cache_utils import DynamicCache
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from activeo3.geometry import fitted
from activeo3.schema import Sampling

FAMILIES = {"qwen2_5_vl": "pixels", "qwen3_vl": "thousandths"}
"""The architectures that are supported, and the unit in which each writes coordinates."""


PREFIX, PADDING = -1, -2  # owners of columns that belong to no branch


class ModelError(Exception):
    """A checkpoint that cannot be used, in one sentence that says what to do."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One user turn, encoded once for sampling, reference and update.

    ``ids`` (S_i,) has one image token per visual feature; ``pixels`` (patches, patch values) and
    ``grid`` (3,) = (time, height, width) in patches are the image processor's output for its picture;
    a prompt with several pictures has one row of ``grid`` (pictures, 3) for each.
    """

    ids: Tensor
    pixels: Tensor
    grid: Tensor


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of ``prefix | branches`` as one forward pass wants them, and where the branches are.

    ``inputs`` are the model's keyword arguments; ``prefix`` is S, the columns that hold prompts
    (left-padded, so that every prompt ends in column S - 1). ``tokens`` (R, B, T) are the branches' ids,
    ``real`` (R, B, T) is True where a token is one and False where it is padding, and ``columns``
    (R, B, T) says which of the W columns behind the prefix holds the token.
    """

    inputs: dict[str, Tensor]
    prefix: int
    tokens: Tensor
    real: Tensor
    columns: Tensor


class VisionLanguageModel:
    """A model with its tokenizer and image processor: everything that a picture and a text pass through."""

    def __init__(self, model: nn.Module, tokenizer, image_processor) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        config = model.config
        self.family: str = config.model_type
        self.image_token: int = config.image_token_id
        self.end_token: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        # A sampled image token would announce features that do not exist: these ids are never drawn.
        self.forbidden: tuple[int, ...] = tuple(
            sorted({config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id})
        )

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, attention: str = "auto") -> Self:
        """Load a checkpoint folder or a hub id of one of FAMILIES.

        ``attention`` is that of the vision tower; the text tower always uses sdpa, because a packed row
        needs a mask that flash-attention does not take. No part of this needs torchvision.

        Raises:
            ModelError: the folder is not there, not a model or damaged, the hub cannot be reached, or the
                architecture is another one.
        """
        family_of(source, FAMILIES)
        attentions = {"text_config": "sdpa", "vision_config": vision_attention(attention)}
        load = AutoModelForImageTextToText.from_pretrained
        model = part_of(source, "weights", load, dtype=dtype, attn_implementation=attentions)
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

    @property
    def parameters(self) -> int:
        """How many parameters the model has, on all ranks together."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())

    # ------------------------------------------------------------------ pictures and text -> prompts

    @property
    def factor(self) -> int:
        """Pixels per visual token and axis: patch size x merge size."""
        return self.image_processor.patch_size * self.image_processor.merge_size

    def view_size(self, size: tuple[int, int], pixels: tuple[int, int] = (1, 2**40)) -> tuple[int, int]:
        """The (width, height) at which the model sees a picture of ``size``: whole visual tokens only."""
        return fitted(size, self.factor, *pixels)

    def text_scale(self, view: tuple[int, int]) -> tuple[int, int]:
        """The coordinate system of boxes in text for a view of (width, height): see FAMILIES."""
        return view if FAMILIES[self.family] == "pixels" else (1000, 1000)

    def encode(self, views: Sequence[Image.Image | Sequence[Image.Image]], texts: Sequence[str]) -> list[Prompt]:
        """One prompt per (view, text), or (views, text): several pictures are shown before the text, in order.

        Every view already has a size that ``view_size`` returned.
        """
        shown = [[view] if isinstance(view, Image.Image) else list(view) for view in views]
        flat = [view for of_prompt in shown for view in of_prompt]
        processed = self.image_processor(images=flat, do_resize=False, return_tensors="pt")
        grids = processed["image_grid_thw"].split([len(of_prompt) for of_prompt in shown])  # (pictures, 3) each
        merged = self.image_processor.merge_size**2
        prompts, start = [], 0
        for text, grid in zip(texts, grids, strict=True):
            patches = grid.prod(dim=1)  # (pictures,)
            ids = self.tokenizer(self._chat(text, (patches // merged).tolist()), add_special_tokens=False).input_ids
            end = start + int(patches.sum())
            pixels = processed["pixel_values"][start:end]
            prompts.append(Prompt(torch.tensor(ids), pixels, grid[0] if len(grid) == 1 else grid))
            start = end
        return prompts

    def _chat(self, text: str, image_tokens: Sequence[int]) -> str:
        """The chat template's own words, with each image placeholder repeated per visual feature."""
        content = [{"type": "image"}] * len(image_tokens) + [{"type": "text", "text": text}]
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, *after = chat.split("<|image_pad|>", len(image_tokens))
        return before + "".join("<|image_pad|>" * count + part for count, part in zip(image_tokens, after, strict=True))

    # ------------------------------------------------------------------ sampling: one prefill per prompt

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], group: int, sampling: Sampling) -> list[list[tuple[int, ...]]]:
        """Sample ``group`` answers to every prompt; each answer's ids end with the end token unless cut off.

        All prompts are prefilled together up to their last token, the cache is repeated ``group`` times,
        and P x G rows decode as one batch, from which rows that have ended are dropped. Weights must be
        whole on this rank (engine.gathered).
        """
        ids, attended = self._left_padded([prompt.ids for prompt in prompts])  # (P, S)
        cache = DynamicCache(config=self.model.config.get_text_config())
        with self._evaluating():
            self.model(
                input_ids=ids[:, :-1],
                attention_mask=attended[:, :-1],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **self._visual(prompts, ids[:, :-1]),
            )
            cache.batch_repeat_interleave(group)
            inner = self.model.model
            inner.rope_deltas = inner.rope_deltas.repeat_interleave(group, dim=0)  # (P*G, 1)
            ids, attended = (x.repeat_interleave(group, dim=0) for x in (ids, attended))  # (P*G, S)
            answers: list[tuple[int, ...]] = [()] * len(ids)
            unfinished, written = list(range(len(ids))), 0
            while unfinished and written < sampling.max_new_tokens:
                # In stretches that double, so that answers which have ended do not wait for the longest.
                stretch = min(max(4, written), 32, sampling.max_new_tokens - written)
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=attended,
                    past_key_values=cache,
                    max_new_tokens=stretch,
                    do_sample=sampling.temperature > 0,
                    temperature=sampling.temperature or None,
                    top_k=0 if sampling.temperature > 0 else None,
                    top_p=1.0 if sampling.temperature > 0 else None,
                    repetition_penalty=1.0,
                    suppress_tokens=list(self.forbidden),
                    eos_token_id=self.end_token,
                    pad_token_id=self.end_token,
                )
                fresh = [_until(row, self.end_token) for row in out[:, ids.shape[1] :].tolist()]
                for row, tokens in zip(unfinished, fresh):
                    answers[row] += tokens
                written += stretch
                going = [i for i, tokens in enumerate(fresh) if tokens[-1] != self.end_token]
                unfinished = [unfinished[i] for i in going]
                rows = torch.tensor(going, dtype=torch.long, device=out.device)
                ids, inner.rope_deltas = out[rows], inner.rope_deltas[rows]
                attended = torch.nn.functional.pad(attended[rows], (0, out.shape[1] - attended.shape[1]), value=1)
                if len(going) < len(fresh):  # selecting copies, and with large models the cache is large
                    cache.batch_select_indices(rows)
        return [answers[i : i + group] for i in range(0, len(answers), group)]

    # ------------------------------------------------------------------ scoring: one packed row per prompt

    def pack(self, prompts: Sequence[Prompt], branches: Sequence[Sequence[Sequence[int]]]) -> Packed:
        """Lay out R prompts with their branches as one row each (see ``Packed``).

        Branches of a row stand close together, so unequal lengths cost nothing inside a row; rows are
        padded on the right to the longest. Every row needs the same number B of branches.

        Raises ModelError unless the text tower's attention takes a mask of this kind (``_mask_for``).
        """
        ids, attended = self._left_padded([prompt.ids for prompt in prompts])  # (R, S)
        rows, B, T = len(prompts), len(branches[0]), max(len(branch) for row in branches for branch in row)
        width = max(sum(map(len, row)) for row in branches)  # W, columns that hold branches
        tokens = torch.full((rows, B, T), self.end_token)
        columns = torch.zeros((rows, B, T), dtype=torch.long)
        laid = torch.full((rows, width), self.end_token)
        owner = torch.full((rows, width), PADDING)  # which branch a column belongs to
        depth = torch.zeros((rows, width), dtype=torch.long)  # how far into its branch it is
        for r, row in enumerate(branches):
            begin = 0
            for b, branch in enumerate(row):
                end = begin + len(branch)
                tokens[r, b, : len(branch)] = laid[r, begin:end] = torch.tensor(branch)
                columns[r, b, : len(branch)] = torch.arange(begin, end)
                owner[r, begin:end] = b
                depth[r, begin:end] = torch.arange(len(branch))
                begin = end
        lengths = torch.tensor([[len(branch) for branch in row] for row in branches])  # (R, B)
        real = torch.arange(T) < lengths[..., None]  # (R, B, T)
        tokens, columns, real, laid, owner, depth = (x.to(ids.device) for x in (tokens, columns, real, laid, owner, depth))
        visual = self._visual(prompts, ids)
        positions, _ = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=visual["mm_token_type_ids"],
            image_grid_thw=visual["image_grid_thw"],
            attention_mask=attended,
        )  # (3, R, S)
        after = positions.amax(dim=(0, 2))[:, None] + 1 + depth  # (R, W)
        inputs = {
            "input_ids": torch.cat([ids, laid], dim=1),  # (R, S + W)
            "position_ids": torch.cat([positions, after.expand(3, rows, width)], dim=2),  # (3, R, S + W)
            "attention_mask": self._mask_for(_branching_mask(attended.bool(), owner)),  # (R, 1, S + W, S + W)
            "pixel_values": visual["pixel_values"],
            "image_grid_thw": visual["image_grid_thw"],
        }
        return Packed(inputs, ids.shape[1], tokens, real, columns)

    def forward_packed(self, packed: Packed, module: nn.Module | None = None) -> Tensor:
        """Logits (R, 1 + W, V) of the prefix's last column and of the W branch columns.

        The head runs on these columns alone: the prefix is most of the row and needs no logits.
        ``module`` is the model as the engine wraps it; by default the bare model.
        """
        columns = torch.arange(packed.prefix - 1, packed.inputs["input_ids"].shape[1])
        out = (module or self.model)(
            **packed.inputs, logits_to_keep=columns.to(packed.tokens.device), use_cache=False
        )
        return out.logits

    # ------------------------------------------------------------------ helpers

    def _mask_for(self, allowed: Tensor) -> Tensor:
        """A mask (R, 1, L, L), True where a query may look, in the form that the text tower takes.

        sdpa takes the booleans. Eager attention adds the mask to its scores, and would add True as 1.
        Others, like flash attention, have no place for such a mask and would ignore it in silence.
        """
        attention = self.model.config.get_text_config()._attn_implementation
        if attention == "sdpa":
            return allowed
        if attention == "eager":
            return torch.zeros_like(allowed, dtype=torch.float32).masked_fill(~allowed, -1e9)
        raise ModelError(f"packed rows need attention 'sdpa' or 'eager', but the model was loaded with {attention!r}")

    def _left_padded(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Ids (R, S) padded on the left and the mask (R, S) that is 1 on real tokens."""
        length, device = max(len(row) for row in rows), self.model.device
        ids = torch.full((len(rows), length), self.end_token)
        attended = torch.zeros((len(rows), length), dtype=torch.long)
        for r, row in enumerate(rows):
            ids[r, length - len(row) :] = row
            attended[r, length - len(row) :] = 1
        return ids.to(device), attended.to(device)

    def _visual(self, prompts: Sequence[Prompt], ids: Tensor) -> dict[str, Tensor]:
        """The image arguments of a forward pass over ``ids`` (R, S), checked against its image tokens."""
        of_prompt = [prompt.grid.reshape(-1, 3) for prompt in prompts]
        grids, is_image = torch.cat(of_prompt), ids == self.image_token
        patches = torch.stack([grid.prod(dim=1).sum() for grid in of_prompt])
        features, announced = patches // self.image_processor.merge_size**2, is_image.sum(dim=1).cpu()
        if not torch.equal(features, announced):
            raise RuntimeError(f"image tokens {announced.tolist()} do not match visual features {features.tolist()}")
        return {
            "pixel_values": torch.cat([prompt.pixels for prompt in prompts]).to(ids.device, self.model.dtype),
            "image_grid_thw": grids.to(ids.device),
            "mm_token_type_ids": is_image.long(),
        }

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for the block; afterwards, also after an error, the model is as it was."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)
            self.model.model.rope_deltas = None  # state of one rollout; a later forward must not inherit it


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
    computing it: a product of two big tensors is seven times faster for these two lines.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no allocation has a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def vision_attention(wanted: str) -> str:
    """The attention of the vision tower: ``auto`` is flash-attention 2 or 3 if it works here, else sdpa."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        if is_flash_attn_3_available():
            return "flash_attention_3"
        if is_flash_attn_2_available():
            return "flash_attention_2"
    return "sdpa"


def _until(ids: list[int], end: int) -> tuple[int, ...]:
    """The ids up to and with the first end token, or all of them: what follows an end is padding."""
    return tuple(ids[: ids.index(end) + 1]) if end in ids else tuple(ids)


def _branching_mask(attended: Tensor, owner: Tensor) -> Tensor:
    """Who may see whom in ``prefix | branches``: True (R, 1, L, L) where the query row may look.

    ``attended`` (R, S) is True on a prefix's real tokens, ``owner`` (R, W) names the branch of a column.
    Causal; a branch sees the prefix and itself only; padding is seen by nobody but itself (a row of the
    mask must not be empty, or its softmax would be NaN).
    """
    rows, prefix = attended.shape
    branch = torch.cat([torch.full_like(owner[:, :1], PREFIX).expand(rows, prefix), owner], dim=1)  # (R, L)
    total = branch.shape[1]
    causal = torch.ones(total, total, dtype=torch.bool, device=owner.device).tril()  # (query, key)
    key, query = branch[:, None, :], branch[:, :, None]
    family = (key == PREFIX) | (key == query)  # (R, query, key)
    visible = torch.cat([attended, owner != PADDING], dim=1)[:, None, :]  # (R, 1, key)
    itself = torch.eye(total, dtype=torch.bool, device=owner.device)
    return ((causal & family & visible) | itself)[:, None]
