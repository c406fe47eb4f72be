"""The tiny policy that ships with the project, and its warm start.

``python -m activeo3.tiny --out DIR`` makes the policy from nothing: a real transformers Qwen3-VL of five
million parameters with a 512-token byte-level BPE tokenizer, loaded by the same code as an 8B. It goes
through the chat format, the image processor and the coordinate convention of the real one.

The warm start teaches what GRPO cannot find from a random network, and nothing more:

  stage 1, ``see``    every visual token says whether a thing's centre lies in it and, if so, its colour,
                      its shape and the digits of its box. The logits are dot products with the *word
                      embeddings* of the colours, shapes and digits, so the text tower can read them.
  stage 2, ``speak``  next-token prediction of answers. Task role: the boxes of all X in a crop, or ``[]``.
                      Sensing role: the *form* of an answer with three mediocre regions, around things
                      chosen at random, jittered, some anywhere, never chosen by the query.

Nothing tells the policy which regions are good for a query: that is GRPO's to find.
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from activeo3 import geometry, prompts, scenes
from activeo3.models import Prompt, VisionLanguageModel
from activeo3.schema import Sampling

PATCH, MERGE = 8, 2
SENSING_SIDE = 96  # shorter side of the sensing view, pixels
CROP_VIEW = (128, 128)  # every crop is seen at this size

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)
# Qwen's own split: words with one leading mark or space, single digits, runs of punctuation.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# ---------------------------------------------------------------------- the model, from nothing


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens with Qwen's split, special tokens and chat format."""
    kinds = [f"{colour} {shape}" for colour in scenes.COLOURS for shape in scenes.SHAPES]
    corpus = [ask(kind, "short") for ask in (prompts.sensing_prompt, prompts.task_prompt) for kind in kinds]
    corpus += [prompts.sensing_answer([(i, 2 * i, 3 * i, 40 + i)] * 3, f" {kind}") for i, kind in enumerate(kinds)]
    corpus += ["user\n", "assistant\n", "system\n", "[]"] * 50
    corpus += [prompts.sensing_prompt("", "paper"), prompts.task_prompt("", "paper")] * 3
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def build(seed: int = 0) -> VisionLanguageModel:
    """The untrained tiny policy: a Qwen3-VL with a 4-layer vision and a 4-layer text tower."""
    tokenizer = build_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            # A small theta: with 10,000 the width axis of a 32-dimensional head hardly turns over 10 columns.
            rope_parameters=dict(rope_type="default", rope_theta=1000.0, mrope_section=[12, 10, 10], mrope_interleaved=True),
            bos_token_id=None,
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
        ),
        vision_config=dict(
            depth=4,
            hidden_size=192,
            intermediate_size=576,
            num_heads=3,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
            temporal_patch_size=2,
            out_hidden_size=256,
            num_position_embeddings=256,
            deepstack_visual_indexes=[],
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    processor = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2,
                                         image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return VisionLanguageModel(model, tokenizer, processor)


# ---------------------------------------------------------------------- what it is taught from


@dataclass(frozen=True, eq=False)
class Lesson:
    """One view with what is in it. ``boxes`` (M, 4) are thousandths of the view, ``kinds`` their (colour,
    shape) names, in reading order of the visual tokens that hold their centres; ``hidden`` (H, 4) are
    things that the border cuts too much to be asked for; ``dialogue`` are (question, answer) texts."""

    view: Image.Image
    boxes: np.ndarray
    kinds: tuple[tuple[str, str], ...]
    hidden: np.ndarray
    dialogue: tuple[tuple[str, str], ...]


class Pool:
    """A sliding window over rendered pictures: rendering is dear, cropping is cheap.

    Which pictures step s may use, and which it does, follows from the step and its random numbers alone.
    ``source`` maps a picture's number to its scene.
    """

    def __init__(self, source: Callable[[int], scenes.Scene], fresh: int = 1, depth: int = 64) -> None:
        self.source, self.fresh, self.depth = source, fresh, depth
        self._rendered: dict[int, tuple[scenes.Scene, Image.Image]] = {}

    def draw(self, step: int, count: int, rng: np.random.Generator) -> list[tuple[scenes.Scene, Image.Image]]:
        """``count`` (scene, picture) pairs of the window of ``step``."""
        last = self.depth + step * self.fresh
        self._rendered = {i: pair for i, pair in self._rendered.items() if i > last - self.depth}
        return [self._picture(int(i)) for i in rng.integers(last - self.depth + 1, last + 1, count)]

    def _picture(self, index: int) -> tuple[scenes.Scene, Image.Image]:
        if index not in self._rendered:
            scene = self.source(index)
            self._rendered[index] = (scene, scene.render())
        return self._rendered[index]


def practice_sheet(seed: int, index: int) -> scenes.Scene:
    """A table packed with things of every kind: many lessons for the price of one picture."""
    rng = np.random.default_rng([seed, 1, index])
    size = (640, 640)
    centres, diameters = np.zeros((0, 2)), np.zeros(0)
    for _ in range(500):
        point, diameter = rng.uniform(40, 600, 2), rng.uniform(*scenes.DIAMETERS)
        if (np.hypot(*(centres - point).T) > 0.54 * (diameters + diameter)).all():
            centres, diameters = np.vstack([centres, point]), np.append(diameters, diameter)
    things = tuple(
        scenes.Thing(
            list(scenes.COLOURS)[rng.integers(len(scenes.COLOURS))],
            scenes.SHAPES[rng.integers(len(scenes.SHAPES))],
            (float(x), float(y)), float(diameter), float(rng.uniform(-0.25, 0.25)), 0,
        )
        for (x, y), diameter in zip(centres, diameters)
    )
    return scenes.Scene(size, things, things[0].colour, things[0].shape, "", (0, 0, 0, 0), int(rng.integers(2**31)))


def crop_lesson(scene: scenes.Scene, picture: Image.Image, rng: np.random.Generator, most: int) -> Lesson:
    """A random crop and questions about it: kinds that are there, and kinds that are almost there."""
    width, height = picture.size
    w, h = rng.uniform(190, 460, 2) * max(1.0, min(picture.size) / 896)
    thing = scene.things[rng.integers(len(scene.things))]
    x = np.clip(thing.centre[0] + w * rng.uniform(-0.5, 0.5), w / 2, width - w / 2)
    y = np.clip(thing.centre[1] + h * rng.uniform(-0.5, 0.5), h / 2, height - h / 2)
    window = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    view = geometry.crop(picture, window, CROP_VIEW)
    boxes, kinds, hidden = _seen(scene, window)
    asked = _questions(kinds, rng, most)
    dialogue = tuple(
        (
            prompts.task_prompt(" ".join(kind), "short"),
            prompts.boxes_answer([rounded(box) for box, other in zip(boxes, kinds) if other == kind]),
        )
        for kind in asked
    )
    return Lesson(view, boxes, kinds, hidden, dialogue)


def sensing_lesson(scene: scenes.Scene, picture: Image.Image, rng: np.random.Generator, size: tuple[int, int]) -> Lesson:
    """The whole picture at sensing size, and the form of a sensing answer with mediocre regions."""
    window = (0.0, 0.0, float(picture.width), float(picture.height))
    boxes, kinds, hidden = _seen(scene, window)
    dialogue = []
    for _ in range(3):
        # Any kind may be asked for, and the regions do not listen to it.
        query = f"{list(scenes.COLOURS)[rng.integers(6)]} {scenes.SHAPES[rng.integers(6)]}"
        answer = prompts.sensing_answer(mediocre_regions(scene, rng), f" {query}")
        dialogue.append((prompts.sensing_prompt(query, "short"), answer))
    return Lesson(geometry.crop(picture, window, size), boxes, kinds, hidden, tuple(dialogue))


def mediocre_regions(scene: scenes.Scene, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Three regions in thousandths: around things of any kind, jittered; every fourth anywhere."""
    width, height = scene.size
    groups = list(rng.permutation(1 + max(thing.group for thing in scene.things)))[:3]
    regions = []
    for group in groups:
        members = [thing for thing in scene.things if thing.group == group]
        w, h = rng.uniform(0.2, 0.45, 2) * min(scene.size)
        centre = np.array(members[rng.integers(len(members))].centre) + rng.uniform(-0.3, 0.3, 2) * (w, h)
        if rng.random() < 0.25:
            centre = rng.uniform((0, 0), scene.size)
        x, y = np.clip(centre, (w / 2, h / 2), (width - w / 2, height - h / 2))
        box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * 1000 / np.array([width, height] * 2)
        regions.append(rounded(box))
    return regions


def rounded(box: np.ndarray) -> tuple[int, ...]:
    """A box in thousandths as the tiny policy writes it: whole hundredths, at most 990.

    The last digit is always 0, which costs half a percent of the view and saves the policy a digit of noise.
    """
    return tuple(int(v) for v in np.clip(np.round(box / 10) * 10, 0, 990))


def _seen(scene: scenes.Scene, window: Sequence[float]) -> tuple[np.ndarray, tuple, np.ndarray]:
    """Things in a window: (boxes in thousandths, kinds) of the ones at least half inside, boxes of the rest."""
    frame = geometry.Frame(tuple(window), (1000, 1000))
    boxes_px = geometry.as_boxes([thing.box_px for thing in scene.things])
    inside = geometry.containment(boxes_px, geometry.as_boxes([window]))[:, 0]
    boxes = np.clip(frame.to_text(boxes_px), 0, 1000)
    cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / 1000 * (CROP_VIEW[0] // (PATCH * MERGE)))
    order = [i for i in np.lexsort((cells[:, 0], cells[:, 1])) if inside[i] >= 0.5]
    hidden = boxes[(inside > 0.02) & (inside < 0.5)]
    return boxes[order], tuple((scene.things[i].colour, scene.things[i].shape) for i in order), hidden


def _questions(kinds: Sequence[tuple[str, str]], rng: np.random.Generator, most: int) -> list[tuple[str, str]]:
    """Up to ``most`` different kinds to ask for: about two thirds are there, the others share a trait."""
    there = sorted(set(kinds))
    there = [there[i] for i in rng.permutation(len(there))][: max(1, math.ceil(most * 2 / 3))]
    asked = list(there)
    while len(asked) < most:
        colour, shape = list(scenes.COLOURS)[rng.integers(6)], scenes.SHAPES[rng.integers(6)]
        if there and rng.random() < 0.8:
            near = kinds[rng.integers(len(kinds))]
            colour, shape = (near[0], shape) if rng.random() < 0.6 else (colour, near[1])
        if (colour, shape) not in asked and (colour, shape) not in kinds:
            asked.append((colour, shape))
    return asked


# ---------------------------------------------------------------------- stage 1: see


class Sight(nn.Module):
    """Linear readings of a visual token, as logits over word embeddings; dropped after the warm start."""

    DIGITS = 8  # two leading digits of each of x1, y1, x2, y2

    def __init__(self, vlm: VisionLanguageModel) -> None:
        super().__init__()
        hidden = vlm.model.config.text_config.hidden_size
        self.there = nn.Linear(hidden, 1)
        self.trait = nn.Linear(hidden, 2 * hidden, bias=False)
        self.digit = nn.Linear(hidden, self.DIGITS * hidden, bias=False)
        self.box = nn.Linear(hidden, 4)
        word = lambda text: vlm.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
        for name in (*scenes.COLOURS, *scenes.SHAPES):
            if len(word(f" {name}")) != 1:
                raise RuntimeError(f"the tokenizer splits the word {name!r}")
        self.colours = [word(f" {name}")[0] for name in scenes.COLOURS]
        self.shapes = [word(f" {name}")[0] for name in scenes.SHAPES]
        self.figures = [word(str(figure))[0] for figure in range(10)]

    def loss(self, features: Tensor, lessons: Sequence[Lesson], grids: Tensor, words: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Dense supervision of visual tokens (all images', N_tokens, hidden); ``words`` (V, hidden) embeds."""
        cells, targets, ignored = _dense_targets(lessons, grids)
        logit = self.there(features)[:, 0]
        present = torch.zeros_like(logit)
        present[cells] = 1.0
        keep = torch.ones_like(logit)
        keep[ignored] = 0.0
        keep[cells] = 1.0
        objectness = (F.binary_cross_entropy_with_logits(logit, present, reduction="none") * keep).sum() / keep.sum()
        chosen = features[cells]
        colour, shape = self.trait(chosen).chunk(2, dim=-1)
        digits = self.digit(chosen).view(len(cells), self.DIGITS, -1)
        words = 4 * F.normalize(words, dim=-1)  # young embeddings are short and would teach slowly
        colour_logits, shape_logits = colour @ words[self.colours].T, shape @ words[self.shapes].T
        digit_logits = digits @ words[self.figures].T  # (cells, 8, 10)
        colour_loss = F.cross_entropy(colour_logits, targets[:, 0])
        shape_loss = F.cross_entropy(shape_logits, targets[:, 1])
        digit_loss = F.cross_entropy(digit_logits.flatten(0, 1), targets[:, 2:].flatten())
        exact = (targets[:, 2::2] * 100 + targets[:, 3::2] * 10) / 1000  # (cells, 4)
        box_loss = F.smooth_l1_loss(self.box(chosen), exact, beta=0.02)
        right = lambda logits, target: float((logits.argmax(-1) == target).float().mean())  # noqa: E731
        return 4 * objectness + colour_loss + shape_loss + 4 * digit_loss + 10 * box_loss, {
            "box": float((self.box(chosen) - exact).abs().mean().detach()),
            "there": float(objectness.detach()),
            "colour": right(colour_logits, targets[:, 0]),
            "shape": right(shape_logits, targets[:, 1]),
            "hundreds": right(digit_logits[:, 0::2], targets[:, 2::2]),
            "tens": right(digit_logits[:, 1::2], targets[:, 3::2]),
        }


def _dense_targets(lessons: Sequence[Lesson], grids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(token indices (C,), classes (C, 10) = colour, shape, 4 x (hundreds, tens); token indices to ignore)."""
    cells, classes, ignored, start = [], [], [], 0
    for lesson, (_, patch_rows, patch_columns) in zip(lessons, grids.tolist(), strict=True):
        rows, columns = patch_rows // MERGE, patch_columns // MERGE
        seen: dict[int, list[int]] = {}
        for box, (colour, shape) in zip(lesson.boxes, lesson.kinds):
            figures = [digit for v in rounded(box) for digit in (v // 100, v // 10 % 10)]
            seen[start + _cell(box, rows, columns)] = [list(scenes.COLOURS).index(colour), scenes.SHAPES.index(shape), *figures]
        cells += list(seen)
        classes += list(seen.values())
        ignored += [start + _cell(box, rows, columns) for box in lesson.hidden]
        start += rows * columns
    return torch.tensor(cells), torch.tensor(classes).view(-1, 10), torch.tensor(ignored, dtype=torch.long)


def _cell(box: np.ndarray, rows: int, columns: int) -> int:
    """The visual token, in reading order, that holds the centre of a box in thousandths."""
    row = min(rows - 1, int((box[1] + box[3]) / 2000 * rows))
    return row * columns + min(columns - 1, int((box[0] + box[2]) / 2000 * columns))


# ---------------------------------------------------------------------- stage 2: speak


def speak_loss(vlm: VisionLanguageModel, lessons: Sequence[Lesson], prefixes: Sequence[Prompt], seen) -> tuple[Tensor, float]:
    """Next-token loss of all answers, the questions of a picture being branches on one shared prefix."""
    tokenize = lambda text: vlm.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    most = max(len(lesson.dialogue) for lesson in lessons)
    branches, starts = [], []
    for lesson in lessons:
        dialogue = list(lesson.dialogue) + [lesson.dialogue[0]] * (most - len(lesson.dialogue))
        asked = [tokenize(f"{question}<|im_end|>\n<|im_start|>assistant\n") for question, _ in dialogue]
        told = [tokenize(f"{answer}<|im_end|>") for _, answer in dialogue]
        branches.append([a + t for a, t in zip(asked, told)])
        starts.append([len(a) if i < len(lesson.dialogue) else 10**6 for i, a in enumerate(asked)])
    packed = vlm.pack(prefixes, branches)
    inputs = {k: v for k, v in packed.inputs.items() if k not in ("pixel_values", "image_grid_thw")}
    columns = torch.arange(packed.prefix, packed.inputs["input_ids"].shape[1])
    logits = vlm.model(**inputs, mm_encoder_outputs={"image": seen}, logits_to_keep=columns, use_cache=False).logits
    rows, B, T = packed.tokens.shape
    told = packed.real & (torch.arange(T) >= torch.tensor(starts)[..., None])  # (R, B, T)
    logits = logits.view(rows, B, T, -1)[:, :, :-1][told[:, :, 1:]].float()
    targets = packed.tokens[:, :, 1:][told[:, :, 1:]]
    loss = F.cross_entropy(logits, targets)
    return loss, float((logits.argmax(-1) == targets).float().mean())


def picture_prefix(vlm: VisionLanguageModel, prompt: Prompt) -> Prompt:
    """The part of a prompt that every question about its picture shares: all up to the picture's end."""
    end = int((prompt.ids == vlm.image_token).nonzero()[-1]) + 2
    return Prompt(prompt.ids[:end], prompt.pixels, prompt.grid)


# ---------------------------------------------------------------------- the warm start


@dataclass(frozen=True)
class WarmStart:
    """What decides the result; written beside the checkpoint, and a run only goes on under the same."""

    seed: int = 0
    see_steps: int = 1500
    speak_steps: int = 4000
    crops: int = 16
    views: int = 4
    questions: int = 4
    see_lr: float = 1.5e-3
    speak_lr: float = 1.0e-3
    bf16: bool = True

    @property
    def steps(self) -> int:
        return self.see_steps + self.speak_steps

    def lr(self, step: int) -> float:
        """Linear warm-up over 100 steps and a cosine to a tenth, in each stage; a cosine to nothing at the end."""
        if step < self.see_steps:
            peak, done, total, floor = self.see_lr, step, self.see_steps, 0.3
        else:
            peak, done, total, floor = self.speak_lr, step - self.see_steps, self.speak_steps, 0.02
        ramp = min(1.0, (done + 1) / 100)
        return peak * ramp * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done / total)))


def lessons_of(config: WarmStart, pools: tuple[Pool, Pool], step: int) -> tuple[list[Lesson], list[Lesson]]:
    """The (crop, sensing) lessons of a step."""
    rng = np.random.default_rng([config.seed, step])
    pages, pictures = pools
    sheets = round(config.crops * (0.75 if step < config.see_steps else 0.4))
    pairs = pages.draw(step, sheets, rng) + pictures.draw(step, config.crops - sheets, rng)
    crops = [crop_lesson(*pair, rng, config.questions) for pair in pairs]
    views = []
    for scene, picture in pictures.draw(step, config.views, rng):
        size = geometry.fitted(geometry.with_shorter_side(picture.size, SENSING_SIDE), PATCH * MERGE, 1, 2**30)
        views.append(sensing_lesson(scene, picture, rng, size))
    return crops, views


def train_step(vlm: VisionLanguageModel, sight: Sight, config: WarmStart, lessons: tuple[list[Lesson], list[Lesson]], step: int):
    """Loss and readings of one step: both stages see, the second also speaks."""
    total, readings = torch.zeros(()), {}
    words = vlm.model.get_input_embeddings().weight
    for name, batch in zip(("crop", "view"), lessons):
        encoded = vlm.encode([lesson.view for lesson in batch], [""] * len(batch))
        pixels, grids = torch.cat([p.pixels for p in encoded]), torch.stack([p.grid for p in encoded])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            seen = vlm.model.model.get_image_features(pixels, grids, return_dict=True)
            loss, seeing = sight.loss(torch.cat(list(seen.pooler_output)).float(), batch, grids, words)
            weight = 1.0 if step < config.see_steps else 0.15
            total = total + (weight if name == "crop" else 0.3 * weight) * loss
            readings |= {f"{name}/{key}": value for key, value in seeing.items()}
            if step >= config.see_steps:
                prefixes = [picture_prefix(vlm, prompt) for prompt in encoded]
                spoken, right = speak_loss(vlm, batch, prefixes, seen)
                total = total + (4.0 if name == "crop" else 1.0) * spoken
                readings |= {f"{name}/loss": float(spoken.detach()), f"{name}/token": right}
    return total, readings


def task_scores(vlm: VisionLanguageModel, pictures: int, seed: int = 1) -> dict[str, float]:
    """Precision and recall at IoU 0.5 of the task role, asked for present kinds in unseen validation crops."""
    rng = np.random.default_rng(seed)
    lessons = []
    for index in range(pictures):
        scene = scenes.scene("val", index)
        picture = scene.render()
        lessons += [crop_lesson(scene, picture, rng, 3) for _ in range(2)]
    asked = [(lesson, question, answer) for lesson in lessons for question, answer in lesson.dialogue]
    found = matched = true = false_alarm = negatives = 0
    for start in range(0, len(asked), 96):
        part = asked[start : start + 96]
        encoded = vlm.encode([lesson.view for lesson, _, _ in part], [question for _, question, _ in part])
        answers = vlm.generate(encoded, 1, Sampling(temperature=0, max_new_tokens=160))
        for (_, _, answer), ((ids,),) in zip(part, zip(answers)):
            text = vlm.tokenizer.decode(ids, skip_special_tokens=True)
            boxes = geometry.as_boxes(prompts.read_boxes(text).boxes_text)
            truth = geometry.as_boxes(prompts.read_boxes(answer).boxes_text)
            hits = geometry.iou(boxes, truth) >= 0.5
            found, true = found + len(boxes), true + len(truth)
            matched += int(min(hits.any(0).sum(), hits.any(1).sum())) if hits.size else 0
            negatives += len(truth) == 0
            false_alarm += len(truth) == 0 and len(boxes) > 0
    return {"precision": matched / max(1, found), "recall": matched / max(1, true), "false_alarms": false_alarm / max(1, negatives)}


def warm_start(out: Path, config: WarmStart, save_every: int = 200) -> None:
    """Train from nothing, or go on from ``out/state.pt``; leave a checkpoint that plain transformers loads."""
    vlm = build(config.seed)
    sight = Sight(vlm)
    parameters = [*vlm.model.parameters(), *sight.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02)
    pools = (
        Pool(lambda index: practice_sheet(config.seed, index)),
        # Each seed walks through the split from another place.
        Pool(lambda index: scenes.scene("train", (index + config.seed * 7919) % scenes.SIZES["train"])),
    )
    first, state = 0, out / "state.pt"
    out.mkdir(parents=True, exist_ok=True)
    if state.exists():
        saved = torch.load(state, weights_only=True)
        vlm.model.load_state_dict(saved["model"])
        sight.load_state_dict(saved["sight"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    print(f"{sum(p.numel() for p in vlm.model.parameters()) / 1e6:.2f} M parameters, {len(vlm.tokenizer)} tokens, from step {first}", flush=True)
    began, window = time.time(), {}
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr(step)
        t0 = time.time()
        lessons = lessons_of(config, pools, step)
        t1 = time.time()
        loss, readings = train_step(vlm, sight, config, lessons, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        readings |= {"s/data": t1 - t0, "s/step": time.time() - t0}
        for key, value in readings.items():
            window.setdefault(key, []).append(value)
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}/{config.steps} {time.time() - began:.0f}s " + " ".join(f"{k} {np.mean(v):.3f}" for k, v in window.items()), flush=True)
            window = {}
        if (step + 1) % save_every == 0 or step + 1 == config.steps:
            torch.save({"model": vlm.model.state_dict(), "sight": sight.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, f"{state}.tmp")
            os.replace(f"{state}.tmp", state)
            if step >= config.see_steps:
                print(f"step {step + 1} task role {task_scores(vlm, 16)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--see_steps", type=int, default=WarmStart.see_steps)
    parser.add_argument("--speak_steps", type=int, default=WarmStart.speak_steps)
    options = parser.parse_args()
    warm_start(options.out, WarmStart(see_steps=options.see_steps, speak_steps=options.speak_steps))
