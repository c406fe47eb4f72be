"""How the shipped policies are taught: what GRPO cannot find from a random network, and nothing more.

  see     every visual token says whether a thing's centre lies in it and, if so, its colour, its shape and its box,
          and whether a plate's centre does, and its digits. The logits are dot products with the *word embeddings* of
          colours, shapes and digits, so that the text tower can read them off the visual tokens.
  speak   next-token prediction of answers, all questions of a picture being branches of one packed row.

Next-token loss alone leaves a model of this size at the entropy of random coordinates.
"""

import os
import re
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from views import MERGE, PATCH, Lesson, Rng, Turn, cell_of, rounded

from activeo3 import data_scenes
from activeo3.grpo import answer_logps
from activeo3.model import VisionLanguageModel
from activeo3.packing import Packed, Prompt

# Heads of the text tower, as (layer, head), whose attention is supervised while a box is written: the first layer
# fetches the words that name what it is about, the second finds all things that the words fit, the later ones the
# things in the box. Those come in pairs with different values, because one head is too narrow to carry a whole box.
# Without the words, a model of this size writes good boxes of anything.
WORD_HEADS = ((0, 0), (0, 2))  # the colour and the shape in a question; twice the colour in a thought
QUERY_HEAD = (1, 0)
THING_HEADS = ((2, 0), (2, 2), (3, 0), (3, 2))


@dataclass(frozen=True)
class Batch:
    """Lessons of one kind in a step. A loss whose weight is 0 is not computed.

    ``plates``: the dense head also looks for plates; ``digits``: and reads them, as they are large enough.
    """

    name: str
    lessons: Sequence[Lesson]
    see: float
    speak: float
    plates: bool = False
    digits: bool = False


class Recipe(ABC):
    """What decides the result, a dataclass; an interrupted run goes on only under the same values."""

    seed: int
    bf16: bool
    plates: ClassVar[bool]

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of all stages together."""

    @abstractmethod
    def lr(self, step: int) -> float:
        """The learning rate of a step."""

    @abstractmethod
    def batches(self, step: int, rng: Rng) -> list[Batch]:
        """The lessons of a step."""


# ---------------------------------------------------------------------- seeing


class DenseHead(nn.Module):
    """Linear readings of a visual token, as logits over word embeddings; dropped after the training."""

    BOX_DIGITS = 8  # two leading digits of each of x1, y1, x2, y2

    def __init__(self, vlm: VisionLanguageModel, plates: bool) -> None:
        super().__init__()
        hidden = vlm.model.config.text_config.hidden_size
        self.there = nn.Linear(hidden, 1)
        self.trait = nn.Linear(hidden, 2 * hidden, bias=False)
        self.digit = nn.Linear(hidden, self.BOX_DIGITS * hidden, bias=False)
        self.box = nn.Linear(hidden, 4)
        if plates:
            self.plate = nn.Linear(hidden, 1)
            self.first, self.second = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        ids = lambda words: [vlm.tokenizer(word, add_special_tokens=False).input_ids for word in words]  # noqa: E731
        names = [f" {name}" for name in (*data_scenes.COLOURS, *data_scenes.SHAPES)]
        if split := [name for name, tokens in zip(names, ids(names)) if len(tokens) != 1]:
            raise RuntimeError(f"the tokenizer splits the word {split[0].strip()!r}")
        words = [tokens[0] for tokens in ids(names)]
        self.colours, self.shapes = words[: len(data_scenes.COLOURS)], words[len(data_scenes.COLOURS) :]
        self.digits = [tokens[0] for tokens in ids(map(str, range(10)))]

    def losses(
        self, features: Tensor, batch: Batch, grids: Tensor, words: Tensor
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Losses of visual tokens (N, hidden) of all views of a batch, one after the other: of things, times
        ``batch.see``, and of plates, and the readings; ``words`` (V, hidden) are the word embeddings."""
        loss, readings = self._things(features, batch.lessons, grids, words)
        if not batch.plates:
            return [batch.see * loss], readings
        of_plates, more = self._plates(features, batch, grids, words)
        return [batch.see * loss, of_plates], readings | more

    def _things(
        self, features: Tensor, lessons: Sequence[Lesson], grids: Tensor, words: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        cells, targets, ignored = (x.to(features.device) for x in thing_targets(lessons, grids))
        logit = self.there(features)[:, 0]
        present, keep = torch.zeros_like(logit), torch.ones_like(logit)
        present[cells] = 1.0
        keep[ignored] = 0.0
        keep[cells] = 1.0
        there = (F.binary_cross_entropy_with_logits(logit, present, reduction="none") * keep).sum() / keep.sum()
        if not len(cells):
            return 4 * there, {}
        chosen, words = features[cells], _lengthened(words)
        colour, shape = self.trait(chosen).chunk(2, dim=-1)
        digits = self.digit(chosen).view(len(cells), self.BOX_DIGITS, -1) @ words[self.digits].T  # (cells, 8, 10)
        shape = shape @ words[self.shapes].T
        colour_loss = F.cross_entropy(colour @ words[self.colours].T, targets[:, 0])
        shape_loss = F.cross_entropy(shape, targets[:, 1])
        digit_loss = F.cross_entropy(digits.flatten(0, 1), targets[:, 2:].flatten())
        exact = (targets[:, 2::2] * 100 + targets[:, 3::2] * 10) / 1000  # (cells, 4)
        box_loss = F.smooth_l1_loss(self.box(chosen), exact, beta=0.02)
        total = 4 * there + colour_loss + shape_loss + 4 * digit_loss + 10 * box_loss
        return total, {
            "shape": _accuracy(shape, targets[:, 1]),
            "hundreds": _accuracy(digits[:, 0::2], targets[:, 2::2]),
        }

    def _plates(self, features: Tensor, batch: Batch, grids: Tensor, words: Tensor) -> tuple[Tensor, dict[str, float]]:
        centres, cells, numbers = plate_targets(batch.lessons, grids)
        logit, present = self.plate(features)[:, 0], torch.zeros(len(features), device=features.device)
        present[torch.tensor(centres, dtype=torch.long)] = 1.0
        weight = 1.0 + 20.0 * present  # a plate is one token of hundreds
        there = F.binary_cross_entropy_with_logits(logit, present, weight=weight)
        readings = {"plate": float(there.detach())}
        if not (cells and batch.digits):
            return there, readings
        read = [head(features[[pair[i] for pair in cells]]) for i, head in enumerate((self.first, self.second))]
        logits = torch.stack(read, dim=1) @ _lengthened(words)[self.digits].T  # (plates, 2, 10)
        truth = torch.tensor(numbers, device=features.device)
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
        return there + 2 * loss, readings | {"digits": _accuracy(logits, truth)}


def _lengthened(words: Tensor) -> Tensor:
    """Word embeddings of length 4: young ones are short and would teach slowly."""
    return 4 * F.normalize(words, dim=-1)


def _accuracy(logits: Tensor, truth: Tensor) -> float:
    return float((logits.argmax(-1) == truth).float().mean())


def _grids_of(lessons: Sequence[Lesson], grids: Tensor) -> list[tuple[Lesson, int, int, int]]:
    """(lesson, its first visual token, rows of tokens, columns of tokens) of each view."""
    sides = [(rows // MERGE, columns // MERGE) for _, rows, columns in grids.tolist()]
    starts = [0, *accumulate(rows * columns for rows, columns in sides)]
    return [(lesson, start, *side) for lesson, start, side in zip(lessons, starts[:-1], sides, strict=True)]


def thing_targets(lessons: Sequence[Lesson], grids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(token indices (C,), classes (C, 10) = colour, shape, 4 x (hundreds, tens); token indices to ignore)."""
    cells, ignored = {}, []
    for lesson, start, rows, columns in _grids_of(lessons, grids):
        for box, (colour, shape) in zip(lesson.boxes, lesson.kinds):
            kind = [list(data_scenes.COLOURS).index(colour), data_scenes.SHAPES.index(shape)]
            digits = [digit for v in rounded(box) for digit in (v // 100, v // 10 % 10)]
            cells[start + cell_of(box, rows, columns)] = kind + digits
        ignored += [start + cell_of(box, rows, columns) for box in lesson.truncated]
    return (
        torch.tensor(list(cells), dtype=torch.long),
        torch.tensor(list(cells.values())).view(-1, 10),
        torch.tensor(ignored, dtype=torch.long),
    )


def plate_targets(lessons: Sequence[Lesson], grids: Tensor) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Of every plate: the token of its centre, the tokens of its two digits, and the digits."""
    centres, cells, numbers = [], [], []
    for lesson, start, rows, columns in _grids_of(lessons, grids):
        for boxes, number in lesson.plates:
            centre, *digits = (start + cell_of(box, rows, columns) for box in boxes)
            centres.append(centre)
            cells.append(digits)
            numbers.append([int(digit) for digit in number])
    return centres, cells, numbers


# ---------------------------------------------------------------------- speaking


def prefixes_of(vlm: VisionLanguageModel, lessons: Sequence[Lesson]) -> list[Prompt]:
    """What every question about a lesson's view shares: the past turns, and all up to the end of the view itself."""
    prefixes = []
    for lesson in lessons:
        shown = [*((turn.views, turn.text) for turn in lesson.past), ((*lesson.beside, lesson.view), "")]
        parts = vlm.encode([shown[0][0]], [shown[0][1]])
        if lesson.past:
            parts += vlm.encode_next([views for views, _ in shown[1:]], [text for _, text in shown[1:]])
        ids = parts[0].ids.tolist()
        for turn, part in zip(lesson.past, parts[1:]):
            ids += vlm.tokenizer(f"{turn.answer}<|im_end|>", add_special_tokens=False).input_ids + part.ids.tolist()
        end = max(i for i, token in enumerate(ids) if token == vlm.image_token) + 2  # behind the end-of-image token
        pixels, grids = torch.cat([part.pixels for part in parts]), torch.cat([part.grids for part in parts])
        prefixes.append(Prompt(torch.tensor(ids[:end]), pixels, grids))
    return prefixes


@dataclass(frozen=True)
class Tokenized:
    """The turns of lessons as ids, [lesson][turn]: question and answer, where the answer starts, and the answer.

    A lesson with fewer turns than the others repeats its first one, with a start that is never reached.
    """

    branches: list[list[list[int]]]
    starts: list[list[int]]
    answers: list[list[list[int]]]


def tokenize(vlm: VisionLanguageModel, lessons: Sequence[Lesson]) -> Tokenized:
    """See ``Tokenized``."""
    ids = lambda text: vlm.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    most, done = max(len(lesson.turns) for lesson in lessons), Tokenized([], [], [])
    for lesson in lessons:
        turns = [*lesson.turns, *lesson.turns[:1] * (most - len(lesson.turns))]
        questions = [ids(f"{turn.question}<|im_end|>\n<|im_start|>assistant\n") for turn in turns]
        answers = [ids(f"{turn.answer}<|im_end|>") for turn in turns]
        done.branches.append([question + answer for question, answer in zip(questions, answers)])
        done.starts.append([len(q) if i < len(lesson.turns) else 10**6 for i, q in enumerate(questions)])
        done.answers.append(answers)
    return done


def answer_loss(
    vlm: VisionLanguageModel, lessons: Sequence[Lesson], prefixes: Sequence[Prompt], seen: Any
) -> tuple[Tensor, Tensor]:
    """(next-token loss of all answers, loss of the supervised attention), all questions of a view being branches on
    one shared prefix. ``seen`` is the vision tower's output for the images of the prefixes."""
    tokens = tokenize(vlm, lessons)
    packed = vlm.pack(prefixes, tokens.branches)
    inputs = {k: v for k, v in packed.inputs.items() if k not in ("pixel_values", "image_grid_thw")}
    columns = torch.arange(packed.prefix - 1, packed.inputs["input_ids"].shape[1])
    out = vlm.model(
        **inputs, mm_encoder_outputs={"image": seen}, logits_to_keep=columns, use_cache=False, output_attentions=True
    )
    logp, _ = answer_logps(out.logits, packed.tokens, packed.columns)  # (R, B, T)
    place = torch.arange(packed.completion_mask.shape[-1], device=logp.device)  # (T,)
    in_answer = place >= torch.tensor(tokens.starts, device=logp.device)[..., None]  # (R, B, T)
    attention = attention_loss(out.attentions, attention_targets(vlm, lessons, packed, tokens))
    return -logp[packed.completion_mask & in_answer].mean(), attention


# ---------------------------------------------------------------------- supervised attention


@dataclass
class AttentionTargets:
    """One entry for every column that writes a box or reads a digit: where it is, and the columns to attend to."""

    rows: list[int] = field(default_factory=list)
    queries: list[int] = field(default_factory=list)
    words: list[tuple[int, int] | None] = field(default_factory=list)  # that name what the box is about, if any do
    things: list[list[int]] = field(default_factory=list)  # visual tokens of the things in the box
    same_query: list[list[int]] = field(default_factory=list)  # visual tokens of all things that the words fit

    def add(self, row: int, query: int, words: tuple[int, int] | None, things: list[int], same: list[int]) -> None:
        """Append an entry."""
        for column, value in zip(vars(self).values(), (row, query, words, things, same)):
            column.append(value)


def attention_targets(
    vlm: VisionLanguageModel, lessons: Sequence[Lesson], packed: Packed, tokens: Tokenized
) -> AttentionTargets:
    """From the decision to write a box to the decision what comes after it, for every box of every answer."""
    targets = AttentionTargets()
    for r, lesson in enumerate(lessons):
        height, width = lesson.view.height // (PATCH * MERGE), lesson.view.width // (PATCH * MERGE)
        image_end = int((packed.inputs["input_ids"][r] == vlm.image_token).nonzero()[-1]) + 1  # of the last image
        cells = [image_end - height * width + cell_of(box, height, width) for box in lesson.boxes]
        for b, turn in enumerate(lesson.turns):
            columns = [packed.prefix + column for column in packed.columns[r, b].tolist()]
            _add_boxes(targets, r, turn, columns, cells, tokens.starts[r][b], _box_spans(vlm, tokens.answers[r][b]))
            if turn.digits is not None:
                digits = vlm.tokenizer.convert_tokens_to_ids(list("0123456789"))
                repeated = [i for i, token in enumerate(tokens.answers[r][b]) if token in digits][:2]
                for cell, place in zip(cells[turn.digits :], repeated):
                    targets.add(r, columns[tokens.starts[r][b] + place - 1], None, [cell], [cell])
    return targets


def _add_boxes(
    targets: AttentionTargets, row: int, turn: Turn, columns: list[int], cells: list[int], start: int,
    spans: list[tuple[int, int]],
) -> None:  # fmt: skip
    """The entries of all boxes of an answer that starts at ``start`` of ``columns``."""
    decided = start - 1  # the column that decides whether there is a first or next box
    for label, (opens, last) in zip(turn.labels, spans, strict=True):
        if not label.named:
            words = None
        elif label.word is None:  # the question ends "... colour shape . <end> newline <start> assistant newline"
            words = (columns[start - 8], columns[start - 7])
        else:  # the answer begins "<think > colour , colour ..."
            words = (columns[start + 2 + 2 * label.word],) * 2
            decided = max(decided, start + opens - 1)
        if label.things:
            things, same = ([cells[i] for i in rows] for rows in (label.things, label.same_query))
            for token in range(decided, start + last):  # a token's column predicts the next one
                targets.add(row, columns[token], words, things, same)
        decided = start + last


_ZOOM_TAG = re.compile(r'(<zoom_roi(?:[^<>"]*+")++)')


def _box_spans(vlm: VisionLanguageModel, answer: Sequence[int]) -> list[tuple[int, int]]:
    """Where each box of an answer stands in it: (the token that opens it, the last one of its numbers and name)."""
    words = vlm.tokenizer.convert_ids_to_tokens(answer)
    if "<zoom_roi" in (text := "".join(words)):  # every byte is a character of a token
        ends = list(accumulate(map(len, words)))
        tags = _ZOOM_TAG.finditer(text)
        return [(bisect_right(ends, tag.start()), bisect_right(ends, tag.end(1) - 1)) for tag in tags]
    opened = [i for i, word in enumerate(words) if word.endswith('{"')]
    return [(i, next(j for j in range(i + 1, len(words)) if "}" in words[j]) - 1) for i in opened]


def attention_loss(attentions: Sequence[Tensor], targets: AttentionTargets) -> Tensor:
    """Mean of -log attention to the words, to any thing of the same query and to any of the things in the box."""
    if not targets.rows:
        return attentions[0].new_zeros(())
    paid = lambda layer, head: attentions[layer][targets.rows, head, targets.queries]  # noqa: E731  (entries, columns)
    device = attentions[0].device
    named = torch.tensor([words is not None for words in targets.words], device=device)
    words = torch.tensor([words or (0, 0) for words in targets.words], device=device)
    shares = [paid(*head).gather(1, words[:, i : i + 1])[:, 0] for i, head in enumerate(WORD_HEADS)]
    shares = [torch.where(named, share, 1.0) for share in shares]  # without words there is nothing to learn
    for heads, wanted in ((THING_HEADS, targets.things), ((QUERY_HEAD,), targets.same_query)):
        mark = torch.zeros(len(wanted), attentions[0].shape[-1], device=device)
        for i, cells in enumerate(wanted):
            mark[i, cells] = 1.0
        shares += [(paid(*head) * mark).sum(dim=-1) for head in heads]
    return -(torch.stack(shares).float() + 1e-4).log().mean()


# ---------------------------------------------------------------------- the loop


def step_loss(
    vlm: VisionLanguageModel, head: DenseHead, batches: Sequence[Batch], bf16: bool
) -> tuple[Tensor, dict[str, float]]:
    """Loss and readings of one step; a batch without lessons is left out."""
    device = vlm.model.device
    total, readings = torch.zeros((), device=device), {}
    for batch in filter(lambda batch: batch.lessons, batches):
        prefixes = prefixes_of(vlm, batch.lessons)
        pixels, grids = torch.cat([p.pixels for p in prefixes]), torch.cat([p.grids for p in prefixes])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            seen = vlm.model.model.get_image_features(pixels.to(device), grids.to(device), return_dict=True)
            if batch.see:
                features = torch.cat(list(seen.pooler_output)).float()
                losses, found = head.losses(features, batch, grids, vlm.model.get_input_embeddings().weight)
                total = sum(losses, total)
                readings |= {f"{batch.name}/{key}": value for key, value in found.items()}
            if batch.speak:
                loss, attention = answer_loss(vlm, batch.lessons, prefixes, seen)
                total = total + batch.speak * loss + attention
                readings |= {f"{batch.name}/loss": float(loss.detach())}
                readings |= {f"{batch.name}/attention": float(attention.detach())}
    return total, readings


def train(vlm: VisionLanguageModel, recipe: Recipe, folder: Path, save_every: int = 100) -> None:
    """Train ``vlm`` by a recipe, or go on from ``folder/state.pt``, printing readings.

    Raises ValueError if the state was made by another recipe.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = DenseHead(vlm, recipe.plates).to(device)
    vlm.model.to(device).train()
    vlm.model.set_attn_implementation({"text_config": "eager"})  # the loss needs attention weights
    parameters = [*vlm.model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr(0), betas=(0.9, 0.98), weight_decay=0.02)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"model": vlm.model, "head": head, "optimizer": optimizer}
    first = _load_state(folder / "state.pt", parts, recipe, device)
    print(f"{vlm.parameters / 1e6:.2f} M parameters; steps {first + 1} to {recipe.steps}", flush=True)
    window: dict[str, list[float]] = {}
    for step in range(first, recipe.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr(step)
        loss, readings = step_loss(
            vlm, head, recipe.batches(step, np.random.default_rng([recipe.seed, step])), recipe.bf16
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for key, value in (readings | {"seconds": time.perf_counter() - began}).items():
            window.setdefault(key, []).append(value)
        if (step + 1) % 25 == 0:
            _print_readings(step + 1, recipe.steps, window)
            window = {}
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            _save_state(folder / "state.pt", parts, recipe, step + 1)
    vlm.model.eval()
    vlm.model.set_attn_implementation({"text_config": "sdpa"})


def _load_state(path: Path, parts: dict[str, Any], recipe: Recipe, device: torch.device) -> int:
    """Fill the parts from a state, if there is one, and return the number of its steps."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    if state["config"] != asdict(recipe):
        raise ValueError(f"{path} was made with {state['config']}; remove it to start anew with {asdict(recipe)}")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def _save_state(path: Path, parts: dict[str, Any], recipe: Recipe, step: int) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save(state | {"step": step, "config": asdict(recipe)}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _print_readings(step: int, steps: int, window: dict[str, list[float]]) -> None:
    words = "  ".join(f"{key} {np.mean(values):.3f}" for key, values in window.items())
    left = (steps - step) * np.mean(window["seconds"]) / 60
    print(f"step {step}/{steps}  {words}  {left:.0f} min left", flush=True)
