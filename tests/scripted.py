"""For tests: a vision-language model that says what a test wants, and painted pictures for it to see.

Only the network is missing: tokens, view sizes and coordinate systems are those of the real class, so
that what is tested is everything between a model's ids and boxes in original pixels.
"""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from activeo3 import eval_setup
from activeo3.config import Config, TrainConfig
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import Benchmark, Models, Row, evaluate
from activeo3.eval_detection import DetectionBenchmark
from activeo3.eval_output import Finished
from activeo3.eval_runner import OneProcess, Runner
from activeo3.model import VisionLanguageModel
from activeo3.packing import Branch, Prompt
from activeo3.prompts import boxes_answer, sensing_answer
from activeo3.samples import Sample
from activeo3.types import Example, Region, Reward, Sampling, TaskResult

END = "<|im_end|>"


def end_of_run(policy: Any, start: Any, task_model: Any, examples: Sequence[Example], config: TrainConfig, ranks: Any):
    """The table and the page of a run's end, as eval_training.py makes them."""
    runner = Runner(ranks)
    one, prepared = eval_setup.compare_start_and_trained(policy, start, task_model, examples, config, runner)
    if runner.writes:
        eval_setup.write_end(one, prepared, config, runner.say)


PATCH = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}  # as in the real models; a visual token is twice as wide

USUAL = ("qwen2_5_vl", "qwen3_vl")
"""The families with which everything is tested. All of them (families.FAMILIES) are where ways of computing are
compared: tests that use ``every_family``."""

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40)}
BACKGROUND = (20, 20, 90)


class Backwards(OneProcess):
    """A process that does the last part first, as other ranks might."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def map(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        return [work(part) for part in reversed(parts)][::-1]


def backwards() -> Runner:
    """A Runner that works on the last block first and keeps nothing."""
    return Runner(Backwards())


Box = Sequence[float]


@dataclass(frozen=True, eq=False)
class Seen(Prompt):
    """A user turn of which a scripted model sees picture and words themselves."""

    view: Image.Image | None = None
    words: str = ""


class Scripted(VisionLanguageModel):
    """Answers a (view, question) with ``says(model, view, question)``: text, END included, or token ids.

    ``shown`` lists the (view, question) pairs of every ``encode``, ``batches`` the (number of prompts,
    group, sampling) of every ``generate``. After an observation it is asked again, with what it is shown.
    Where several pictures are shown, the view is a list of them.
    """

    def __init__(self, family: str, tokenizer, says: Callable[..., str | Sequence[int]]) -> None:
        self.family, self.tokenizer, self.says = family, tokenizer, says
        self.image_processor = SimpleNamespace(patch_size=PATCH[family], merge_size=2)
        self.end_token, self.image_token = tokenizer.convert_tokens_to_ids([END, "<|image_pad|>"])
        self.end_tokens = frozenset({self.end_token})
        self.shown: list[tuple[Image.Image, str]] = []
        self.batches: list[tuple[int, int, Sampling]] = []

    def encode(self, views: Sequence[Image.Image], texts: Sequence[str], names=None) -> list[Seen]:
        flat = [view for of_one in views for view in (of_one if isinstance(of_one, list) else [of_one])]
        assert all(side % self.factor == 0 for view in flat for side in view.size)
        self.shown += zip(views, texts, strict=True)
        return self.encode_next(views, texts, names)

    def encode_next(self, views: Sequence[Image.Image | None], texts: Sequence[str], names=None) -> list[Seen]:
        seen = []
        for view, words in zip(views, texts, strict=True):
            pictures = view if isinstance(view, list) else [view] if view else []
            features = sum(one.width * one.height for one in pictures) // self.factor**2
            ids = torch.tensor([*self.ids(words), *[self.image_token] * features], dtype=torch.long)
            seen.append(Seen(ids, torch.zeros(0, 0), torch.zeros((0, 3), dtype=torch.long), view=view, words=words))
        return seen

    def generate_multi_turn(
        self, prompts: Sequence[Seen], group: int, sampling: Sampling, observe=None
    ) -> list[list[Branch]]:
        self.batches.append((len(prompts), group, sampling))
        branches = []
        for row, prompt in enumerate([prompt for prompt in prompts for _ in range(group)]):
            turns, shown = [self.ids(self.says(self, prompt.view, prompt.words))], []
            while observe and turns[-1][-1:] == (self.end_token,) and (seen := observe([(row, turns[-1])])[0]):
                shown.append(seen)
                turns.append(self.ids(self.says(self, seen.view, seen.words)))
            branches.append(Branch(tuple(turns), tuple(shown)))
        return [branches[i : i + group] for i in range(0, len(branches), group)]

    def ids(self, answer: str | Sequence[int]) -> tuple[int, ...]:
        tokens = self.tokenizer(answer, add_special_tokens=False).input_ids if isinstance(answer, str) else answer
        return tuple(tokens)


def painted(size: tuple[int, int], things: Sequence[tuple[str, Box]]) -> Image.Image:
    """A dark blue picture with rectangles: (colour, xyxy in whole pixels)."""
    canvas = np.full((size[1], size[0], 3), BACKGROUND, dtype=np.uint8)
    for colour, (x1, y1, x2, y2) in things:
        canvas[y1:y2, x1:x2] = COLOURS[colour]
    return Image.fromarray(canvas)


def blobs(view: Image.Image, colour: str) -> list[Box]:
    """Boxes, in pixels of the view, of the runs of columns that hold ``colour``."""
    pixels = np.asarray(view, dtype=int)
    near, far = (np.abs(pixels - shade).sum(axis=2) for shade in (COLOURS[colour], BACKGROUND))
    there = near < far  # (H, W)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], there.any(axis=0), [0]])))
    boxes = []
    for x1, x2 in edges.reshape(-1, 2):
        rows = np.flatnonzero(there[:, x1:x2].any(axis=1))
        boxes.append((x1, rows[0], x2, rows[-1] + 1))
    return boxes


def written(model: VisionLanguageModel, view: Image.Image, boxes_view: Sequence[Box]) -> list[list[int]]:
    """Boxes in pixels of the view as whole numbers in the model's own coordinates."""
    scale = np.array(model.text_scale(view.size)) / np.array(view.size)
    return np.rint(np.reshape(boxes_view, (-1, 4)) * np.tile(scale, 2)).astype(int).tolist()


def colour_asked(question: str) -> str:
    return next(colour for colour in COLOURS if colour in question)


def finds(model: VisionLanguageModel, view: Image.Image, question: str) -> str:
    """A perfect task model: the boxes of everything in the view that has the colour asked for."""
    return boxes_answer(written(model, view, blobs(view, colour_asked(question)))) + END


def looks(model: VisionLanguageModel, view: Image.Image, question: str) -> str:
    """A perfect sensing policy: a region around everything of the colour asked for, with a margin."""
    things = np.reshape(blobs(view, colour_asked(question)), (-1, 4))
    if not len(things):
        return sensing_answer([], "nowhere") + END
    region = np.concatenate([things[:, :2].min(axis=0) - 3, things[:, 2:].max(axis=0) + 3])
    return sensing_answer(written(model, view, [region]), "there") + END


# ---------------------------------------------------------------------- what people see

GREY = (128, 128, 128)
NOTHING = TaskResult(np.zeros((0, 4)), np.zeros(0))


def grey_example(size: tuple[int, int] = (400, 300), boxes: object = ((40, 40, 80, 80),)) -> Example:
    """A grey picture with these true boxes."""
    true = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Example("a/1", Image.new("RGB", size, GREY), "every <b>red</b> star", true)


def sample_of(
    text: str = "[]",
    regions: tuple[Region, ...] = (Region(20, 20, 120, 120),),
    outcome: TaskResult = NOTHING,
    title: str = "start",
) -> Sample:
    """An answer about ``grey_example``, as people see it."""
    score = Reward({"format": 1.0, "task": 0.25}, 1.25)
    return Sample(grey_example(), text, regions, outcome, score, title)


# ---------------------------------------------------------------------- tables


def table(
    kind: type[Benchmark],
    examples: Sequence[Example],
    policies: Mapping[str, VisionLanguageModel],
    config: EvalConfig | TrainConfig,
    task_models: Mapping[str, Any] | None = None,
    runner: Runner | None = None,
    name: str = "toys",
    load: Callable[[Example], Example] | None = None,
    **flags: Any,
) -> list[Row]:
    """The rows of a benchmark with models that are in memory."""
    benchmark, models = kind(name, evaluated(config, **flags)), Models(policies, task_models)
    return evaluate(benchmark, benchmark.prepare(examples, models), models, runner or Runner(), load)


def evaluated(config: EvalConfig | TrainConfig, **flags: Any) -> EvalConfig:
    """The flags of a run or an evaluation as those of an evaluation, with others in their place."""
    shared = {one.name: getattr(config, one.name) for one in fields(Config)}
    return (
        replace(config, **flags)
        if isinstance(config, EvalConfig)
        else EvalConfig(**shared | {"checkpoint": ("x",)} | flags)
    )


def finished(
    rows: Sequence[Row], kind: type[Benchmark] = DetectionBenchmark, name: str = "toys", **flags: Any
) -> Finished:
    """Rows as an evaluation has finished them."""
    return Finished(kind(name, EvalConfig(**{"checkpoint": ("x",)} | flags)), "test", list(rows))


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The rows of a results.json, with what their settings are beside them."""
    return [row | row["setting"] for row in json.loads((folder / "results.json").read_text())["rows"]]
