"""The warm start of the tiny policy: what GRPO cannot find from a random network, and nothing more.

  stage 1, see     every visual token says whether a thing's centre lies in it and, if so, its colour, its
                   shape and its box. The logits are dot products with the *word embeddings* of colours,
                   shapes and digits, so that the text tower can read them off the visual tokens.
  stage 2, speak   next-token prediction of answers, all questions of a picture being branches on one
                   packed row; stage 1 goes on with a small weight.
  stage 3, settle  the same with more whole pictures than crops and a small learning rate, without stage 1:
                   the form of the sensing role is easy, and learned late it does not crowd out the task role.

Next-token loss alone leaves a model of this size at the entropy of random coordinates.
"""

import math
import os
import re
import time
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Callable, Mapping, Protocol, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activeo3 import data_scenes, geometry
from activeo3.answer_parsing import read_boxes
from activeo3.grpo import answer_logps
from activeo3.lessons import MERGE, PATCH, Lesson, Pool, cell_of, crop_lesson, lessons_of, practice_sheet, rounded
from activeo3.model import VisionLanguageModel
from activeo3.packing import Packed, Prompt
from activeo3.types import Sampling

# Heads of the text tower, as (layer, head), that are shown where to look while a box is written: the first
# layer fetches the words that name what it is about, the second finds all things that the words fit, the later
# ones the things in the box. Those come in pairs with different values, because one head is too narrow to
# carry a whole box. Without the words, a model of this size writes good boxes of whatever it likes.
WORD_GAZE = ((0, 0), (0, 2))  # the colour and the shape in a question; twice the colour in a thought
KIN_GAZE = (1, 0)
THING_GAZE = ((2, 0), (2, 2), (3, 0), (3, 2))


@dataclass(frozen=True)
class WarmStart:
    """What decides the result; an interrupted run goes on only under the same numbers."""

    seed: int = 0
    see_steps: int = 1200
    speak_steps: int = 2000
    settle_steps: int = 1000
    crops: int = 16
    views: int = 4
    questions: int = 5
    see_lr: float = 1.5e-3
    speak_lr: float = 1.0e-3
    settle_lr: float = 5e-4
    bf16: bool = True

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return self.see_steps + self.speak_steps + self.settle_steps

    def stage(self, step: int) -> tuple[str, float]:
        """(stage, how much of it is done, 0-1) at a step."""
        for name, length in (("see", self.see_steps), ("speak", self.speak_steps), ("settle", self.settle_steps)):
            if step < length:
                return name, step / length
            step -= length
        raise IndexError(f"there are {self.steps} steps only")

    def lr(self, step: int) -> float:
        """In each stage a linear warm-up over 100 steps at most, then a cosine: to 30 % of the peak when seeing
        is done, to 10 % when speaking is and to 2 % when all is."""
        stage, done = self.stage(step)
        peak, length, floor = {
            "see": (self.see_lr, self.see_steps, 0.3),
            "speak": (self.speak_lr, self.speak_steps, 0.1),
            "settle": (self.settle_lr, self.settle_steps, 0.02),
        }[stage]
        ramp = min(1.0, (done * length + 1) / min(100, length / 10))
        return peak * ramp * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


class Schedule(Protocol):
    """What ``train`` asks of its numbers, a dataclass."""

    seed: int
    steps: int

    def lr(self, step: int) -> float:
        """The learning rate of a step."""


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
        for name in (*data_scenes.COLOURS, *data_scenes.SHAPES):
            if len(word(f" {name}")) != 1:
                raise RuntimeError(f"the tokenizer splits the word {name!r}")
        self.colours = [word(f" {name}")[0] for name in data_scenes.COLOURS]
        self.shapes = [word(f" {name}")[0] for name in data_scenes.SHAPES]
        self.figures = [word(str(figure))[0] for figure in range(10)]

    def loss(
        self, features: Tensor, lessons: Sequence[Lesson], grids: Tensor, words: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Dense supervision of visual tokens (all images', N_tokens, hidden); ``words`` (V, hidden) embeds."""
        cells, targets, ignored = (x.to(features.device) for x in _dense_targets(lessons, grids))
        logit = self.there(features)[:, 0]
        present = torch.zeros_like(logit)
        present[cells] = 1.0
        keep = torch.ones_like(logit)
        keep[ignored] = 0.0
        keep[cells] = 1.0
        objectness = (F.binary_cross_entropy_with_logits(logit, present, reduction="none") * keep).sum() / keep.sum()
        if not len(cells):
            return 4 * objectness, {"there": float(objectness.detach())}
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
            seen[start + cell_of(box, rows, columns)] = [
                list(data_scenes.COLOURS).index(colour),
                data_scenes.SHAPES.index(shape),
                *figures,
            ]
        cells += list(seen)
        classes += list(seen.values())
        ignored += [start + cell_of(box, rows, columns) for box in lesson.hidden]
        start += rows * columns
    return (
        torch.tensor(cells, dtype=torch.long),
        torch.tensor(classes).view(-1, 10),
        torch.tensor(ignored, dtype=torch.long),
    )


def speak_loss(
    vlm: VisionLanguageModel, lessons: Sequence[Lesson], prefixes: Sequence[Prompt], seen: Any
) -> tuple[Tensor, Tensor]:
    """(next-token loss of all answers, loss of the gaze), all questions of a picture being branches on one
    shared prefix. A prefix may show more than one picture; the lesson's view is its last.

    The gaze: while a box is written, some heads are told what to attend to (see ``WORD_GAZE`` and the others
    beside it). Left alone, heads of this size take very long to find it.
    ``seen`` is the vision tower's output for the lessons' views, which the caller has already computed.
    """
    branches, starts, told = tokenized(vlm, lessons)
    packed = vlm.pack(prefixes, branches)
    inputs = {k: v for k, v in packed.inputs.items() if k not in ("pixel_values", "image_grid_thw")}
    columns = torch.arange(packed.prefix - 1, packed.inputs["input_ids"].shape[1])
    out = vlm.model(
        **inputs, mm_encoder_outputs={"image": seen}, logits_to_keep=columns, use_cache=False, output_attentions=True
    )
    logp, _ = answer_logps(out.logits, packed.tokens, packed.columns)  # (R, B, T)
    place = torch.arange(packed.completion_mask.shape[-1], device=logp.device)  # (T,)
    taught = packed.completion_mask & (place >= torch.tensor(starts, device=logp.device)[..., None])  # (R, B, T)
    gaze = _gaze_loss(out.attentions, _gaze_targets(vlm, lessons, packed, starts, told))
    return -logp[taught].mean(), gaze


def tokenized(vlm: VisionLanguageModel, lessons: Sequence[Lesson]) -> tuple[list, list, list]:
    """The dialogues as ids, [lesson][turn]: (question and answer, where the answer starts, the answer).

    A lesson with fewer turns than the others repeats its first one, with a start that is never reached.
    """
    tokenize = lambda text: vlm.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    most = max(len(lesson.dialogue) for lesson in lessons)
    branches, starts, told = [], [], []
    for lesson in lessons:
        dialogue = list(lesson.dialogue) + [lesson.dialogue[0]] * (most - len(lesson.dialogue))
        questions = [tokenize(f"{turn.question}<|im_end|>\n<|im_start|>assistant\n") for turn in dialogue]
        answers = [tokenize(f"{turn.answer}<|im_end|>") for turn in dialogue]
        branches.append([question + answer for question, answer in zip(questions, answers)])
        starts.append([len(q) if i < len(lesson.dialogue) else 10**6 for i, q in enumerate(questions)])
        told.append(answers)
    return branches, starts, told


_CALL = re.compile(r'(<zoom_roi(?:[^<>"]*+")++)')


def _box_spans(vlm: VisionLanguageModel, told: Sequence[int]) -> list[tuple[int, int]]:
    """Where each box of an answer stands in it: (the token that opens it, the last one of its numbers and name)."""
    words = vlm.tokenizer.convert_ids_to_tokens(told)
    if "<zoom_roi" in (text := "".join(words)):  # every byte is a character of a token
        ends = list(accumulate(map(len, words)))
        return [(bisect_right(ends, tag.start()), bisect_right(ends, tag.end(1) - 1)) for tag in _CALL.finditer(text)]
    opened = [i for i, word in enumerate(words) if word.endswith('{"')]
    return [(i, next(j for j in range(i + 1, len(words)) if "}" in words[j]) - 1) for i in opened]


@dataclass
class GazeTargets:
    """One entry for every column that writes a box or reads a figure: where it is, and the columns it should attend to."""

    rows: list[int] = field(default_factory=list)
    queries: list[int] = field(default_factory=list)
    words: list[tuple[int, int] | None] = field(default_factory=list)  # that say what the box is about, if any do
    things: list[list[int]] = field(default_factory=list)  # visual tokens of the things in the box
    kin: list[list[int]] = field(default_factory=list)  # visual tokens of all things that the words fit


def _gaze_targets(
    vlm: VisionLanguageModel, lessons: Sequence[Lesson], packed: Packed, starts: Sequence[Sequence[int]],
    told: Sequence[Sequence[Sequence[int]]],
) -> GazeTargets:  # fmt: skip
    """From the decision to write a box to the decision what comes after it, for every box of every answer."""
    targets = GazeTargets()
    figures = [vlm.tokenizer.convert_tokens_to_ids(str(figure)) for figure in range(10)]
    for r, lesson in enumerate(lessons):
        height, width = lesson.view.height // (PATCH * MERGE), lesson.view.width // (PATCH * MERGE)
        image_end = int((packed.inputs["input_ids"][r] == vlm.image_token).nonzero()[-1]) + 1  # of the last picture
        cells = [image_end - height * width + cell_of(box, height, width) for box in lesson.boxes]
        for b, turn in enumerate(lesson.dialogue):
            columns = [packed.prefix + column for column in packed.columns[r, b].tolist()]
            start = starts[r][b]
            decided = start - 1  # the column that decides whether there is a first or next box
            for written, (opens, last) in zip(turn.about, _box_spans(vlm, told[r][b]), strict=True):
                if not written.named:
                    words = None
                elif (
                    written.said is None
                ):  # the question ends "... colour shape . <end> newline <start> assistant newline"
                    words = (start - 8, start - 7)
                else:  # the answer begins "<think > colour , colour ..."
                    words = (start + 2 + 2 * written.said,) * 2
                    decided = max(decided, start + opens - 1)
                if written.things:
                    for token in range(decided, start + last):  # a token's column predicts the next one
                        targets.rows.append(r)
                        targets.queries.append(columns[token])
                        targets.words.append(words and (columns[words[0]], columns[words[1]]))
                        targets.things.append([cells[row] for row in written.things])
                        targets.kin.append([cells[row] for row in written.kin])
                decided = start + last
            if turn.read is not None:
                repeated = [i for i, told_token in enumerate(told[r][b]) if told_token in figures][:2]
                for cell, token in zip(cells[turn.read :], repeated):
                    targets.rows.append(r)
                    targets.queries.append(columns[start + token - 1])
                    targets.words.append(None)
                    targets.things.append([cell])
                    targets.kin.append([cell])
    return targets


def _gaze_loss(attentions: Sequence[Tensor], targets: GazeTargets) -> Tensor:
    """Mean of -log attention to the words, to any of the kin and to any of the things in the box."""
    if not targets.rows:
        return attentions[0].new_zeros(())
    rows, queries = targets.rows, targets.queries
    looks = lambda layer, head: attentions[layer][rows, head, queries]  # noqa: E731  (targets, columns)
    named = torch.tensor([words is not None for words in targets.words])
    words = torch.tensor([words or (0, 0) for words in targets.words])
    paid = [
        looks(layer, head).gather(1, words[:, i : i + 1].to(attentions[layer].device))[:, 0]
        for i, (layer, head) in enumerate(WORD_GAZE)
    ]
    paid = [torch.where(named.to(look.device), look, 1.0) for look in paid]  # without words there is nothing to learn
    for heads, wanted in ((THING_GAZE, targets.things), ((KIN_GAZE,), targets.kin)):
        mark = torch.zeros(len(rows), attentions[0].shape[-1], device=attentions[0].device)
        for i, cells in enumerate(wanted):
            mark[i, cells] = 1.0
        paid += [(looks(layer, head) * mark).sum(dim=-1) for layer, head in heads]
    return -(torch.stack(paid).float() + 1e-4).log().mean()


def picture_prefix(vlm: VisionLanguageModel, prompt: Prompt) -> Prompt:
    """The part of a prompt that every question about its picture, or its last, shares: all up to the picture's end."""
    end = int((prompt.ids == vlm.image_token).nonzero()[-1]) + 2
    return Prompt(prompt.ids[:end], prompt.pixels, prompt.grids)


def step_loss(
    vlm: VisionLanguageModel,
    sight: Sight,
    config: WarmStart,
    crops: Sequence[Lesson],
    views: Sequence[Lesson],
    step: int,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and readings of one step, as its stage wants it."""
    device = vlm.model.device
    total, readings = torch.zeros((), device=device), {}
    words = vlm.model.get_input_embeddings().weight
    stage, _ = config.stage(step)
    # (name, lessons, weight of seeing, weight of speaking): the task role is the harder of the two.
    for name, batch, see, speak in (("crop", crops, 1.0, 4.0), ("view", views, 0.3, 4.0 if stage == "settle" else 1.0)):
        encoded = vlm.encode([lesson.view for lesson in batch], [""] * len(batch))
        pixels, grids = torch.cat([p.pixels for p in encoded]), torch.cat([p.grids for p in encoded])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
            seen = vlm.model.model.get_image_features(pixels.to(device), grids.to(device), return_dict=True)
            if stage != "settle":
                loss, seeing = sight.loss(torch.cat(list(seen.pooler_output)).float(), batch, grids, words)
                total = total + see * (0.3 if stage == "speak" else 1.0) * loss
                readings |= {f"{name}/{key}": value for key, value in seeing.items()}
            if stage != "see":
                prefixes = [picture_prefix(vlm, prompt) for prompt in encoded]
                spoken, gaze = speak_loss(vlm, batch, prefixes, seen)
                total = total + speak * spoken + gaze
                readings |= {f"{name}/loss": float(spoken.detach()), f"{name}/gaze": float(gaze.detach())}
    return total, readings


def warm_start(vlm: VisionLanguageModel, config: WarmStart, folder: Path, save_every: int = 100) -> None:
    """Train ``vlm`` from nothing, or go on from ``folder/state.pt``, printing its readings as it goes.

    Raises ValueError if the state was made under other numbers.
    """
    device = _device()
    sight = Sight(vlm).to(device)
    sheets = Pool(lambda index: practice_sheet(config.seed, index))
    pictures = training_pictures(config.seed)

    def loss_of(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        stage, _ = config.stage(step)
        crops, views = (config.crops * 3 // 8, config.views * 3) if stage == "settle" else (config.crops, config.views)
        sheet_share = 0.75 if stage == "see" else 0.4
        lessons = lessons_of(sheets, pictures, step, rng, crops, views, config.questions, sheet_share)
        return step_loss(vlm, sight, config, *lessons, step)

    train(vlm, {"sight": sight}, config, folder, loss_of, save_every)


def training_pictures(seed: int) -> Pool:
    """The training pictures; each seed walks through them from another place."""
    return Pool(lambda index: data_scenes.scene("train", (index + seed * 7919) % data_scenes.SIZES["train"]))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    vlm: VisionLanguageModel,
    heads: Mapping[str, nn.Module],
    config: Schedule,
    folder: Path,
    loss_of: Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]],
    save_every: int = 100,
) -> None:
    """Train ``vlm`` and ``heads`` on ``loss_of(step, random numbers)``, from ``folder/state.pt`` if there is one.

    Raises ValueError if the state was made under other numbers.
    """
    device = _device()
    vlm.model.to(device).train()
    vlm.model.set_attn_implementation({"text_config": "eager"})  # the gaze needs attention weights
    parameters = [*vlm.model.parameters(), *(p for head in heads.values() for p in head.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr(0), betas=(0.9, 0.98), weight_decay=0.02)
    folder.mkdir(parents=True, exist_ok=True)
    state, parts = folder / "state.pt", {"model": vlm.model, **heads, "optimizer": optimizer}
    first = 0
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        if saved["config"] != asdict(config):
            raise ValueError(f"{state} was made with {saved['config']}; remove it to start anew with {asdict(config)}")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["step"]
    print(
        f"{vlm.parameters / 1e6:.2f} M parameters, {len(vlm.tokenizer)} tokens; steps {first + 1} to {config.steps}",
        flush=True,
    )
    window: dict[str, list[float]] = {}
    for step in range(first, config.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = config.lr(step)
        rng = np.random.default_rng([config.seed, step])
        loss, readings = loss_of(step, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for key, value in (readings | {"seconds": time.perf_counter() - began}).items():
            window.setdefault(key, []).append(value)
        if (step + 1) % 25 == 0:
            words = "  ".join(f"{key} {np.mean(values):.3f}" for key, values in window.items())
            left = (config.steps - step - 1) * np.mean(window["seconds"]) / 60
            print(f"step {step + 1}/{config.steps}  {words}  ETA {left:.0f} min", flush=True)
            window = {}
        if (step + 1) % save_every == 0 or step + 1 == config.steps:
            saved = {name: part.state_dict() for name, part in parts.items()} | {
                "step": step + 1,
                "config": asdict(config),
            }
            torch.save(saved, folder / "state.tmp")
            os.replace(folder / "state.tmp", state)
    vlm.model.eval()
    vlm.model.set_attn_implementation({"text_config": "sdpa"})


def task_scores(vlm: VisionLanguageModel, pictures: int, seed: int = 1) -> dict[str, float]:
    """Precision and recall at IoU 0.5 of the task role, asked for present kinds in unseen validation crops."""
    rng = np.random.default_rng(seed)
    lessons = []
    for index in range(pictures):
        scene = data_scenes.scene("val", index)
        picture = scene.render()
        lessons += [crop_lesson(scene, picture, rng, 3) for _ in range(2)]
    asked = [(lesson, turn.question, turn.answer) for lesson in lessons for turn in lesson.dialogue]
    found = matched = true = false_alarm = negatives = 0
    for start in range(0, len(asked), 96):
        part = asked[start : start + 96]
        encoded = vlm.encode([lesson.view for lesson, _, _ in part], [question for _, question, _ in part])
        answers = vlm.generate(encoded, 1, Sampling(temperature=0, max_new_tokens=160))
        for (_, _, answer), (ids,) in zip(part, answers):
            text = vlm.tokenizer.decode(ids, skip_special_tokens=True)
            boxes = geometry.as_boxes(read_boxes(text).boxes_text)
            truth = geometry.as_boxes(read_boxes(answer).boxes_text)
            hits = geometry.iou(boxes, truth) >= 0.5
            found, true = found + len(boxes), true + len(truth)
            matched += int(min(hits.any(0).sum(), hits.any(1).sum())) if hits.size else 0
            negatives += len(truth) == 0
            false_alarm += len(truth) == 0 and len(boxes) > 0
    return {
        "precision": matched / max(1, found),
        "recall": matched / max(1, true),
        "false_alarms": false_alarm / max(1, negatives),
    }
