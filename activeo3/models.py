"""Loading a Qwen-VL model, and the two ways it is used: sampling answers and scoring them.

Both ways pay for a prompt once. **Sampling** prefills each prompt, repeats its key-value cache G times
and decodes all P x G answers as one batch. **Scoring** lays a prompt and its G answers out as one packed
row, ``prefix | branch 1 | ... | branch G``, in which a branch sees the prefix and itself but not its
siblings, and in which positions restart after the prefix. The result is that of G separate rows.

An answer may be an episode of several turns with observations in between (packing.py). One turn is the
special case: rows that are shown something go on with their cache, in the same batch and the same loop.

Qwen2.5-VL writes boxes in pixels of the view it saw, Qwen3-VL in thousandths of the view's sides; that
is a property of the loaded model (``text_scale``), and this file is where it is known.
"""

import ctypes
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Self, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from activeo3.attention import described, free_columns, mask_for, of_towers, packed_mask, see_together
from activeo3.decoding import Observe, Rows, new_cache, until
from activeo3.eyes import Eyes
from activeo3.geometry import fitted
from activeo3.packing import Branch, Layout, Packed, Prompt, branching_rule, lay_out, padded
from activeo3.patches import multiply_patches
from activeo3.schema import Sampling

FAMILIES = {"qwen2_5_vl": "pixels", "qwen3_vl": "thousandths"}
"""The architectures that are supported, and the unit in which each writes coordinates."""


PICTURE = {"type": "image"}
NO_PICTURES = {"image_grid_thw": torch.zeros((0, 3), dtype=torch.long), "pixel_values": torch.zeros(0, 0)}

Shown = Image.Image | Sequence[Image.Image]
"""A picture, or several that are shown one after the other."""


def _pictures(shown: Shown | None) -> list[Image.Image]:
    """What is shown, as a list."""
    return [] if shown is None else [shown] if isinstance(shown, Image.Image) else list(shown)


def _words(text: str) -> dict[str, str]:
    """A text as part of a turn."""
    return {"type": "text", "text": text}


class ModelError(Exception):
    """A checkpoint that cannot be used, in one sentence that says what to do."""


class VisionLanguageModel:
    """A model with its tokenizer and image processor: everything that a picture and a text pass through."""

    def __init__(self, model: nn.Module, tokenizer, image_processor) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.eyes = Eyes(model)
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

    @property
    def parameters(self) -> int:
        """How many parameters the model has, on all ranks together."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())

    @property
    def learning(self) -> int:
        """How many of them learn."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad)

    @property
    def half(self) -> bool:
        """Are the weights bfloat16, and not float32?"""
        return self.model.dtype == torch.bfloat16

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

    def encode(
        self, views: Sequence[Shown], texts: Sequence[str], names: Sequence[str] | None = None
    ) -> list[Prompt]:
        """One prompt per (view, text), or (views, text): several pictures are shown before the text, in order.

        Every view already has a size that ``view_size`` returned. ``names`` are the examples' ids, to be named
        if something is wrong with a prompt.
        """
        shown = [_pictures(view) for view in views]
        chats = [self._chat([PICTURE] * len(of_one) + [_words(text)]) for of_one, text in zip(shown, texts, strict=True)]
        return self._encoded(shown, chats, names)

    def encode_next(
        self, views: Sequence[Shown | None], texts: Sequence[str], names: Sequence[str] | None = None
    ) -> list[Prompt]:
        """What a policy is shown after a turn of its own, in a user turn: words, and a picture unless None.

        Such a prompt begins behind the end token that the policy sampled. The role is the user's because the
        chat templates of Qwen leave out pictures of a tool.
        """
        shown = [_pictures(view) for view in views]
        contents = [[PICTURE] * len(of_one) + [_words(text)] for of_one, text in zip(shown, texts, strict=True)]
        said = "before"  # by the policy: what the template writes behind it is the same whatever it said
        chats = [self._chat(content, [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]) for content in contents]
        return self._encoded(shown, [chat.partition(f"{said}<|im_end|>")[2] for chat in chats], names)

    def _encoded(
        self, shown: Sequence[Sequence[Image.Image]], chats: Sequence[str], names: Sequence[str] | None
    ) -> list[Prompt]:
        """Prompts from texts that have one image placeholder for each of their pictures."""
        flat = [view for of_one in shown for view in of_one]
        processed = self.image_processor(images=flat, do_resize=False, return_tensors="pt") if flat else NO_PICTURES
        grids = processed["image_grid_thw"].split([len(of_one) for of_one in shown])  # (pictures, 3) each
        merged, start, prompts = self.image_processor.merge_size**2, 0, []
        for chat, of_one, name in zip(chats, grids, names or [""] * len(chats), strict=True):
            patches = of_one.prod(dim=1).tolist()  # of each picture
            before, *after = chat.split("<|image_pad|>", len(patches))
            text = before + "".join("<|image_pad|>" * (n // merged) + part for n, part in zip(patches, after, strict=True))
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            pixels = processed["pixel_values"][start : start + sum(patches)]
            prompts.append(Prompt(torch.tensor(ids), pixels, of_one, name))
            start += sum(patches)
        return prompts

    def _chat(self, content: list[dict[str, str]], before: Sequence[dict[str, str]] = ()) -> str:
        """The chat template's own words around a user turn, up to where the model speaks."""
        turns = [*before, {"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    # ------------------------------------------------------------------ sampling: one prefill per prompt

    def generate(self, prompts: Sequence[Prompt], group: int, sampling: Sampling) -> list[list[tuple[int, ...]]]:
        """Sample ``group`` answers of one turn to every prompt (see ``converse``)."""
        return [[branch.answer for branch in row] for row in self.converse(prompts, group, sampling)]

    @torch.no_grad()
    def converse(
        self, prompts: Sequence[Prompt], group: int, sampling: Sampling, observe: Observe | None = None
    ) -> list[list[Branch]]:
        """Sample ``group`` answers to every prompt; a turn's ids end with the end token unless cut off.

        All prompts are prefilled together up to their last token, the cache is repeated ``group`` times,
        and P x G rows decode as one batch, from which rows that have ended their turn are dropped. With
        ``observe``, those that it shows something wait until all have ended, read what they are shown, and
        decode their next turn together, of up to ``max_new_tokens`` again. A turn that was cut off is the
        last. Weights must be whole on this rank (engine.gathered).
        """
        with self._evaluating():
            rows = self._prefilled(prompts, group)
            turns: list[list[tuple[int, ...]]] = [[()] for _ in rows.which]
            shown: list[list[Prompt]] = [[] for _ in rows.which]
            waiting: list[Rows] = []
            written = 0
            while rows.which:
                # In stretches that double, so that answers which have ended do not wait for the longest.
                stretch = min(max(4, written), 32, sampling.max_new_tokens - written)
                fresh = self._decode(rows, stretch, sampling)
                written += stretch
                for row, tokens in zip(rows.which, fresh):
                    turns[row][-1] += tokens
                ended = [i for i, tokens in enumerate(fresh) if tokens[-1] == self.end_token]
                if observe and ended:
                    seen = observe([(rows.which[i], turns[rows.which[i]][-1]) for i in ended])
                    going_on = [i for i, observation in zip(ended, seen, strict=True) if observation]
                    for i, observation in zip(going_on, filter(None, seen)):
                        shown[rows.which[i]].append(observation)
                    if going_on:
                        waiting.append(rows.copy(going_on))
                over = written >= sampling.max_new_tokens
                rows.keep([] if over else [i for i in range(len(fresh)) if i not in ended])
                if not rows.which and waiting:
                    rows, waiting, written = Rows.joined(waiting), [], 0
                    self._show(rows, [shown[row][-1] for row in rows.which])
                    for row in rows.which:
                        turns[row].append(())
        branches = [Branch(tuple(said), tuple(seen)) for said, seen in zip(turns, shown)]
        return [branches[i : i + group] for i in range(0, len(branches), group)]

    def _prefilled(self, prompts: Sequence[Prompt], group: int) -> Rows:
        """P x G rows that have read their prompt: each prompt is paid for once and its cache repeated."""
        ids, attended = self._padded(prompts)  # (P, S)
        self.eyes.look(prompts)
        cache = new_cache(self.model.config.get_text_config().num_hidden_layers)
        self.model(
            input_ids=ids[:, :-1],
            attention_mask=attended[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            mm_token_type_ids=(ids[:, :-1] == self.image_token).long(),
            **self._visual([[prompt] for prompt in prompts], ids[:, :-1]),
        )
        cache.batch_repeat_interleave(group)
        ids, attended, deltas = (
            x.repeat_interleave(group, dim=0) for x in (ids, attended, self.model.model.rope_deltas)
        )
        return Rows(list(range(len(ids))), ids, attended, deltas, cache)

    def _decode(self, rows: Rows, stretch: int, sampling: Sampling) -> list[tuple[int, ...]]:
        """Write up to ``stretch`` tokens into every row; returns those of each, up to its end token."""
        self.model.model.rope_deltas = rows.deltas
        out = self.model.generate(
            input_ids=rows.ids,
            attention_mask=rows.attended,
            past_key_values=rows.cache,
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
        new = out[:, rows.ids.shape[1] :]  # (rows, up to stretch)
        fresh = [until(ids, self.end_token) for ids in new.tolist()]
        lengths = torch.tensor([[len(tokens)] for tokens in fresh], device=new.device)
        rows.extend(new, torch.arange(new.shape[1], device=new.device) < lengths)
        return fresh

    def _show(self, rows: Rows, observations: Sequence[Prompt]) -> None:
        """Let every row read its observation, all but the last token, which ``_decode`` reads next."""
        ids, attended = self._padded(observations)  # (rows, O)
        self.eyes.look(observations)
        visual = self._visual([[observation] for observation in observations], ids[:, :-1])
        positions, deltas = self._rope_index(ids, attended, observations)  # (3, rows, O), counted from 0
        before = rows.forget([seen.replaces for seen in observations], self.image_token)
        first = rows.attended.sum(dim=1, keepdim=True) + rows.deltas  # (rows, 1) the position after the turn
        pending = rows.ids[:, -1:]  # the turn's last token is not in the cache yet
        rows.extend(ids, attended)
        self.model(
            input_ids=torch.cat([pending, ids[:, :-1]], dim=1),
            position_ids=torch.cat([(first - 1).expand(3, -1, 1), (first + positions)[:, :, :-1]], dim=2),
            attention_mask=rows.attended[:, :-1] if before is None else mask_for(self._attention, rows.sight(before), self.model.dtype),
            past_key_values=rows.cache,
            use_cache=True,
            logits_to_keep=1,
            **visual,
        )
        rows.deltas = rows.deltas + deltas

    def ends(self, turn: Sequence[int]) -> bool:
        """Did a turn end by itself, and not by the length limit?"""
        return bool(turn) and turn[-1] == self.end_token

    def words_of(self, turn: Sequence[int]) -> str:
        """A turn as text, without its end token."""
        return self.tokenizer.decode(turn[:-1] if self.ends(turn) else turn, skip_special_tokens=False)

    # ------------------------------------------------------------------ scoring: one packed row per prompt

    def pack(self, prompts: Sequence[Prompt], branches: Sequence[Sequence[Branch | Sequence[int]]]) -> Packed:
        """Lay out R prompts with their branches as one row each (see ``Packed``).

        A plain sequence of ids is a branch of one turn. Branches of a row stand close together, so unequal
        lengths cost nothing inside a row; rows are padded on the right to the longest. Every row needs the
        same number B of branches.

        Raises ValueError unless the text tower's attention takes a mask of this kind.
        """
        rows = [[Branch.of(branch) for branch in row] for row in branches]
        free = free_columns(self._attention, max(len(prompt.ids) for prompt in prompts))
        ids, attended = self._padded(prompts, before_last=free > 0)  # (R, S)
        laid = lay_out(rows, self.end_token, ids.device)
        everything = torch.cat([ids, laid.ids], dim=1)  # (R, S + W)
        given = [[prompt, *(seen for branch in row for seen in branch.shown)] for prompt, row in zip(prompts, rows)]
        visual = self._visual(given, everything)
        positions, _ = self._rope_index(ids, attended, prompts)  # (3, R, S)
        after = positions.amax(dim=(0, 2))[:, None] + 1 + self._depth(rows, laid)  # (3, R, W)
        rule = branching_rule(attended.bool(), laid.owner, laid.era, everything == self.image_token)
        inputs = {
            "input_ids": everything,
            "position_ids": torch.cat([positions, after], dim=2),  # (3, R, S + W)
            "attention_mask": packed_mask(self._attention, rule, everything, free, self.model.dtype),
            **visual,
        }
        return Packed(inputs, ids.shape[1], laid.tokens, laid.real, laid.columns, laid.kept)

    def _depth(self, rows: Sequence[Sequence[Branch]], laid: Layout) -> Tensor:
        """Positions (3, R, W) inside the branches, counted from 0: a picture spans rows and columns."""
        depth = laid.depth.expand(3, -1, -1).clone()
        for r, row in enumerate(rows):
            for b, branch in enumerate(row):
                if any(len(seen.grids) for seen in branch.shown):
                    ids = torch.tensor([branch.ids], device=depth.device)
                    inside, _ = self._rope_index(ids, torch.ones_like(ids), branch.shown)  # (3, 1, length)
                    depth[:, r, laid.owner[r] == b] = inside[:, 0]
        return depth

    def forward_packed(self, packed: Packed, module: nn.Module | None = None) -> Tensor:
        """Logits (R, 1 + W, V) of the prefix's last column and of the W branch columns, or (R, K, V) of those
        of them that are ``kept``.

        The head runs on these columns alone: the prefix is most of the row and needs no logits.
        ``module`` is the model as the engine wraps it; by default the bare model.
        """
        kept = packed.kept
        if kept is None:
            kept = torch.arange(packed.inputs["input_ids"].shape[1] - packed.prefix + 1, device=packed.tokens.device)
        out = (module or self.model)(**packed.inputs, logits_to_keep=packed.prefix - 1 + kept, use_cache=False)
        return out.logits

    # ------------------------------------------------------------------ helpers

    @property
    def _attention(self) -> str:
        """The text tower's attention, by its name in transformers."""
        return self.model.config.get_text_config()._attn_implementation

    @property
    def manner(self) -> str:
        """How the model works on packed rows and on pictures, in words."""
        once = "; a picture is seen once a step, as its tower is frozen" if self.eyes.keep else ""
        return described(self._attention, self.model.config.vision_config._attn_implementation, self.model.dtype) + once

    def _padded(self, prompts: Sequence[Prompt], before_last: bool = False) -> tuple[Tensor, Tensor]:
        """``packing.padded`` of prompts, with end tokens."""
        return padded([prompt.ids for prompt in prompts], self.end_token, self.model.device, before_last)

    def _visual(self, given: Sequence[Sequence[Prompt]], ids: Tensor) -> dict[str, Any]:
        """The image arguments of a forward pass over ``ids`` (R, S): the pictures of all that each row was given.

        Raises RuntimeError, naming the rows, unless each has as many image tokens as visual features.
        """
        is_image = ids == self.image_token
        announced = is_image.sum(dim=1).tolist()
        merged = self.image_processor.merge_size**2
        features = [sum(int(turn.grids.prod(dim=1).sum()) // merged for turn in row) for row in given]
        if features != announced:
            wrong = [row[0].name or f"row {r}" for r, row in enumerate(given) if features[r] != announced[r]]
            raise RuntimeError(
                f"image tokens {announced} do not match visual features {features}, see {', '.join(wrong)}"
            )
        return self.eyes.shown([turn for row in given for turn in row])

    def _rope_index(self, ids: Tensor, attended: Tensor, given: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """transformers' own positions (3, R, S) of texts with the pictures of ``given``, and by how much (R, 1)
        the position after a text differs from its number of tokens."""
        grids = torch.cat([turn.grids for turn in given]).to(ids.device)
        kinds = (ids == self.image_token).long()
        return self.model.model.get_rope_index(ids, kinds, image_grid_thw=grids, attention_mask=attended)

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
    computing it: a product of two big tensors is seven times faster for these two lines. Beside a GPU it would
    only be the room of the weights that have passed through.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and not torch.cuda.is_available():  # glibc
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no allocation has a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
