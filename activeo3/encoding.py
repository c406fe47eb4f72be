"""Pictures and text become prompts: what both uses of a model, sampling and scoring, share.

Some families write boxes in pixels of the view that they saw, others in thousandths of its sides; that is a property of
the loaded model (``text_scale``), and families.py is where it is known.
"""

import re
from functools import cached_property
from typing import Any, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from activeo3.attention import described
from activeo3.families import FAMILIES, as_json
from activeo3.geometry import fitted
from activeo3.packing import Prompt, padded
from activeo3.vision import VisionCache

PICTURE = {"type": "image"}
QUOTED = re.compile("\ue000([0-9]{1,4})\ue001")  # a special token that stands in a text of the data's, by its number
NO_PICTURES = {"image_grid_thw": torch.zeros((0, 3), dtype=torch.long), "pixel_values": torch.zeros(0, 0)}

Images = Image.Image | Sequence[Image.Image]
"""A picture, or several that are shown one after the other."""


def _pictures(shown: Images | None) -> list[Image.Image]:
    """What is shown, as a list."""
    return [] if shown is None else [shown] if isinstance(shown, Image.Image) else list(shown)


def _stated_ends(model: nn.Module, tokenizer) -> set[int]:
    """The ids that a checkpoint's own files call the end of an answer: one, several or none."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = stated if isinstance(stated, (list, tuple)) else [stated]
    return {int(token) for token in (*several, tokenizer.eos_token_id) if token is not None}


def _words(text: str) -> dict[str, str]:
    """A text as part of a turn."""
    return {"type": "text", "text": text}


class Encoder:
    """A model with its tokenizer and image processor: everything that a picture and a text pass through."""

    name = "the model"
    """What errors call it: the folder or hub id that it was loaded from, or its part in a run."""

    def __init__(self, model: nn.Module, tokenizer, image_processor) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.vision_cache = VisionCache(model)
        config = model.config
        self.family: str = config.model_type
        self.states: bool = FAMILIES[self.family].states
        self.scoring: str = FAMILIES[self.family].scoring
        self.image_token: int = config.image_token_id
        self.end_token: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.end_tokens: frozenset[int] = frozenset({self.end_token, *_stated_ends(model, tokenizer)})
        # A sampled image token would announce features that do not exist: these ids are never drawn.
        self.suppressed_ids: tuple[int, ...] = tuple(
            sorted(
                {config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id}
            )
        )

    @property
    def parameters(self) -> int:
        """How many parameters the model has, on all ranks together."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())

    @property
    def trainable_parameters(self) -> int:
        """How many of them learn."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters() if p.requires_grad)

    # ------------------------------------------------------------------ tokens -> text

    @cached_property
    def opening(self) -> str:
        """How the chat template itself begins an answer, e.g. "<think>" for models that always think; mostly nothing.

        A thought that the template also ends, as for models that are not to think, is no part of the answer.
        """
        begun = self._chat([_words("?")]).rpartition("<|im_start|>")[2]
        opened = begun.partition("\n")[2]  # behind the line that names the role
        return "" if "</think>" in opened else opened

    def is_finished(self, turn: Sequence[int]) -> bool:
        """Did a turn end by itself, and not by the length limit?"""
        return bool(turn) and turn[-1] in self.end_tokens

    def decode(self, turn: Sequence[int]) -> str:
        """A turn as text: what the template began it with, and what was sampled, without its end token."""
        return self.opening + self.tokenizer.decode(
            turn[:-1] if self.is_finished(turn) else turn, skip_special_tokens=False
        )

    def answer_of(self, turn: Sequence[int]) -> str:
        """A turn for its reader: ``decode``, with boxes in special tokens as the JSON that every reader reads."""
        return as_json(self.decode(turn)) if self.boxes == "tokens" else self.decode(turn)

    # ------------------------------------------------------------------ pictures and text -> prompts

    @property
    def factor(self) -> int:
        """Pixels per visual token and axis: patch size x merge size."""
        return self.image_processor.patch_size * self.image_processor.merge_size

    def view_size(self, size: tuple[int, int], pixels: tuple[int, int] = (1, 2**40)) -> tuple[int, int]:
        """The (width, height) at which the model sees a picture of ``size``: whole visual tokens only."""
        return fitted(size, self.factor, *pixels)

    @property
    def boxes(self) -> str:
        """How the model writes boxes, see ``Family.boxes``."""
        return FAMILIES[self.family].boxes

    def text_scale(self, view: tuple[int, int]) -> tuple[int, int]:
        """The coordinate system of boxes in text for a view of (width, height): see ``Family.coordinates``."""
        return view if FAMILIES[self.family].coordinates == "pixels" else (1000, 1000)

    def encode(self, views: Sequence[Images], texts: Sequence[str], names: Sequence[str] | None = None) -> list[Prompt]:
        """One prompt per (view, text), or (views, text): several pictures are shown before the text, in order.

        Every view already has a size that ``view_size`` returned. ``names`` are the examples' ids, to be named
        if something is wrong with a prompt.
        """
        shown = [_pictures(view) for view in views]
        chats = [
            self._chat([PICTURE] * len(of_one) + [_words(self._masked(text))])
            for of_one, text in zip(shown, texts, strict=True)
        ]
        return self._encoded(shown, chats, names)

    def encode_next(
        self, views: Sequence[Images | None], texts: Sequence[str], names: Sequence[str] | None = None
    ) -> list[Prompt]:
        """What a policy is shown after a turn of its own, in a user turn: words, and a picture unless None.

        Such a prompt begins behind the end token that the policy sampled. The role is the user's because the
        chat templates of Qwen leave out pictures of a tool.
        """
        shown = [_pictures(view) for view in views]
        contents = [
            [PICTURE] * len(of_one) + [_words(self._masked(text))] for of_one, text in zip(shown, texts, strict=True)
        ]
        spoken = "before"  # by the policy: what the template writes behind it is the same whatever it said
        chats = [
            self._chat(content, [{"role": "user", "content": "?"}, {"role": "assistant", "content": spoken}])
            for content in contents
        ]
        return self._encoded(shown, [chat.partition(f"{spoken}<|im_end|>")[2] for chat in chats], names)

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
            text = before + "".join(
                "<|image_pad|>" * (n // merged) + part for n, part in zip(patches, after, strict=True)
            )
            ids = self._tokens(text)
            pixels = processed["pixel_values"][start : start + sum(patches)]
            prompts.append(Prompt(torch.tensor(ids), pixels, of_one, name))
            start += sum(patches)
        return prompts

    @cached_property
    def _special(self) -> list[str]:
        """The tokenizer's special tokens as text, longer ones first, so that none is taken for its own beginning."""
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return sorted(tokens, key=len, reverse=True)

    def _masked(self, text: str) -> str:
        """A text of the data's with a mark in the place of every special token that it quotes: it must not act as
        one."""
        for number, token in enumerate(self._special):
            text = text.replace(token, f"\ue000{number}\ue001")
        return text

    def _tokens(self, chat: str) -> list[int]:
        """The ids of a chat: the template's special tokens are one id each, those that the data quotes are plain
        text."""
        ids: list[int] = []
        for place, part in enumerate(QUOTED.split(chat)):
            quoted = place % 2 == 1 and int(part) < len(self._special)
            text = self._special[int(part)] if quoted else part
            ids += self.tokenizer(text, add_special_tokens=False, split_special_tokens=quoted).input_ids if text else []
        return ids

    def _chat(self, content: list[dict[str, str]], before: Sequence[dict[str, str]] = ()) -> str:
        """The chat template's own words around a user turn, up to where the model speaks."""
        turns = [*before, {"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    # ------------------------------------------------------------------ helpers

    @property
    def _attention(self) -> str:
        """The text tower's attention, by its name in transformers."""
        return self.model.config.get_text_config()._attn_implementation

    @property
    def attention_summary(self) -> str:
        """How the model works on packed rows and on pictures, in words."""
        once = "; a picture is seen once a step, as its tower is frozen" if self.vision_cache.keep else ""
        return (
            described(
                self._attention, self.model.config.vision_config._attn_implementation, self.model.dtype, self.scoring
            )
            + once
        )

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
            wrong = [(row and row[0].name) or f"row {r}" for r, row in enumerate(given) if features[r] != announced[r]]
            raise RuntimeError(
                f"image tokens {announced} do not match visual features {features}, see {', '.join(wrong)}"
            )
        return self.vision_cache.model_inputs([turn for row in given for turn in row])

    def _rope_index(self, ids: Tensor, attended: Tensor, given: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """transformers' own positions (3, R, S) of texts with the pictures of ``given``, and by how much (R, 1)
        the position after a text differs from its number of tokens."""
        grids = torch.cat([turn.grids for turn in given]).to(ids.device)
        kinds = (ids == self.image_token).long()
        return self.model.model.get_rope_index(ids, kinds, image_grid_thw=grids, attention_mask=attended)
