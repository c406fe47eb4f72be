"""activeo3 in a notebook: a policy looks at a picture of yours.

    import activeo3

    policy = activeo3.load("runs/tiny/checkpoint-160")      # a checkpoint, or a hub id
    look = policy.look("photo.jpg", "red ring", group=8)    # eight sampled answers; by default a greedy one
    look                                                    # drawn, where a notebook shows the value of a cell
    look.best.regions, look.best.boxes, look.best.crops()

With ``boxes=`` (or ``answer=`` for a policy that answers in words) the truth is known: answers then have a reward, and
those of a group an advantage. What is measured is what train.py measures, one step without its update; views and
prompts are those of the checkpoint's run.
"""

import base64
import html
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from activeo3 import engine, eval_setup, grpo
from activeo3.checkpoint_files import run_state
from activeo3.cli import is_code
from activeo3.config import ConfigError, TrainConfig
from activeo3.data_io import DataError, read_picture
from activeo3.drawing import annotated_picture, contact_sheet
from activeo3.eval_config import EvalConfig
from activeo3.geometry import as_boxes, crop
from activeo3.model import VisionLanguageModel
from activeo3.presets import PRESETS
from activeo3.rollout import sample_rollouts
from activeo3.samples import Sample, group_picture, jpeg
from activeo3.task_models import TaskModel, is_valid_region
from activeo3.tasks import Task, task_of
from activeo3.terminal import one_line, printable
from activeo3.types import VQA, Count, Example, Region, Reward, Rollout, TaskResult

OF_A_RUN = set(
    "task sensing_side max_view_pixels crop_side crop_shape wording thinking regions max_new_tokens max_turns "
    "max_zooms min_zooms regions_per_turn memory episode_tokens least_zoom most_zoom task_max_new_tokens merge "
    "least_seen".split()
)
"""Flags that a checkpoint takes over from its run: what the policy sees, how it is asked and how it answers."""
OF_A_REWARD = set("reward_weights coverage evidence evidence_gate perception_reward matching iou_power places".split())
TASKS = ("sense", "direct", "zoom_qa", "grounding", "counting", "ocr")
"""Tasks that can be asked about any picture."""


def load(checkpoint: str | Path, **flags: Any) -> "Policy":
    """A policy that looks at pictures, with the frozen model that works on its crops.

    Args:
        checkpoint: a checkpoint folder of a run, a shipped policy such as ``data/tiny``, any other model folder, or a
            hub id. A model that was not trained here is asked as --preset paper says.
        flags: fields of evaluate.py's config that differ, as ``regions=2`` or ``task_model=("detector",),
            task_checkpoint="..."``.

    Raises ConfigError for a flag that cannot be used, ModelError for a model that cannot.
    """
    source = str(checkpoint)
    checkpoints, start = eval_setup.compared([source], str(flags.pop("start", "")))
    ours = (Path(source) / "activeo3.json").is_file()
    stored = run_state(Path(source))["config"] if ours else PRESETS["paper"]
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    config = EvalConfig(**{
        **{name: value for name, value in known.items() if name in OF_A_RUN}, "checkpoint": (source,), **flags
    })  # fmt: skip
    rewards = TrainConfig(**{name: value for name, value in known.items() if name in OF_A_REWARD and ours})
    if config.task not in TASKS and not is_code(flags.get("task", "")):
        raise ConfigError(f"{source}: --task {config.task} needs more than a picture and words; try evaluate.py.")
    task = type(task_of(config))(config, rewards)
    engine.prepare()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = eval_setup.load_models(config, checkpoints, start, engine.pick_dtype(config.dtype), device, nullcontext)
    return Policy(source, task, models[models.trained[0]], next(iter(models.task_models.values())))


@dataclass(frozen=True, eq=False)
class Policy:
    """A loaded policy: its ``task`` says what it is asked, ``task_model`` works on the crops."""

    source: str
    task: Task
    model: VisionLanguageModel
    task_model: TaskModel

    def look(
        self,
        image: Image.Image | np.ndarray | str | Path,
        query: str,
        *,
        group: int = 1,
        boxes: Any = None,
        answer: str | None = None,
        seed: int = 0,
    ) -> "Look":
        """Ask about a picture: one greedy answer, or a ``group`` of answers sampled at temperature 1.

        Args:
            image: a picture of PIL, an array (H, W, 3) of bytes, or a file.
            query: what to find, or the question of a policy that answers in words (zoom_qa).
            boxes: the true boxes (N, 4), xyxy in pixels, if they are known; of a question, where its answer is.
            answer: the right answer in words (zoom_qa), or the text to read (ocr), if it is known.
            seed: draws the answers of a group.

        Raises DataError for a picture or boxes that cannot be used, ConfigError for a group of less than one.
        """
        known = boxes is not None or answer is not None
        return self.ask(_example(self.task, _picture(image), query, boxes, answer), group, seed, known)

    def ask(self, example: Example, group: int = 1, seed: int = 0, known: bool = True) -> "Look":
        """``look`` at an example of a data set, whose truth is ``known``."""
        if group < 1:
            raise ConfigError(f"group is {group}; at least one answer must be asked for.")
        if known:
            (example,) = self.task.prepare_batch(self.task_model, [self.task.prepare(example)])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sampling = self.task.sampling(1.0 if group > 1 else 0.0)
            _, (rollouts,) = sample_rollouts(self.model, self.task, [example], group, sampling)
        results = self.task.act(self.task_model, rollouts)
        rewards = _rewards(self.task, rollouts, results) if known else [None] * group
        view = self.task.prompt(self.model, example).first_view
        return Look(example, view, tuple(map(Answer, rollouts, results, rewards)))

    def __repr__(self) -> str:
        return f"activeo3 policy {self.source} (task {self.task.name}); .look(image, query, group=8)"


def _picture(image: Any) -> Image.Image:
    """A picture in RGB, however it was given."""
    if isinstance(image, (str, Path)):
        return read_picture(Path(image).expanduser())
    if not isinstance(image, Image.Image):
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise DataError(f"the image is an array {image.shape} of {image.dtype}; give (H, W, 3) of uint8.")
        image = Image.fromarray(image)
    return image.convert("RGB")


def _example(task: Task, image: Image.Image, query: str, boxes: Any, answer: str | None) -> Example:
    """The picture as an example of the task, with what is known of the truth."""
    try:
        true = as_boxes([] if boxes is None else boxes)
    except (TypeError, ValueError):
        raise DataError("boxes must be a list of x1, y1, x2, y2.") from None
    vqa = VQA(query, (answer or "",), evidence_px=true) if task.turns else None
    return Example("image", image, query, true, vqa=vqa, text=answer or "", count=Count(len(true), true))


def _rewards(task: Task, rollouts: Sequence[Rollout], results: Sequence[TaskResult]) -> list[Reward]:
    """What train.py's reward gives for each answer, and if there are several, their advantages."""
    rewards = [task.reward(rollout, result) for rollout, result in zip(rollouts, results, strict=True)]
    if len(rewards) == 1:
        return rewards
    advantages = grpo.advantages(torch.tensor([[reward.total for reward in rewards]]))[0].tolist()
    return [replace(reward, advantage=value) for reward, value in zip(rewards, advantages)]


@dataclass(frozen=True, eq=False)
class Answer:
    """What was sampled (``rollout``), what came of it (``result``), and its reward if the truth is known."""

    rollout: Rollout
    result: TaskResult
    reward: Reward | None = None

    @property
    def text(self) -> str:
        """The answer as the policy wrote it."""
        return self.rollout.text

    @property
    def regions(self) -> tuple[Region, ...]:
        """Where it wants to look, xyxy in pixels of the picture."""
        return self.rollout.regions

    @property
    def boxes(self) -> np.ndarray:
        """What was found (M, 4), xyxy in pixels of the picture, best first."""
        return self.result.boxes_px

    @property
    def scores(self) -> np.ndarray:
        """How sure the task model is of each box (M,)."""
        return self.result.scores

    @property
    def said(self) -> str | None:
        """The answer in words of a policy that gives one."""
        return self.rollout.episode and self.rollout.episode.answer

    def crops(self) -> list[Image.Image]:
        """Its regions, cut from the original pixels."""
        image = self.rollout.example.image
        shown = filter(is_valid_region, self.regions)
        return [crop(image, r, (round(r.x2 - r.x1), round(r.y2 - r.y1))) for r in shown]

    def sample(self) -> Sample:
        """The answer as pages draw it."""
        return Sample.of(self.rollout, self.result, self.reward or Reward({}, math.nan))

    def picture(self) -> Image.Image:
        """The picture with regions and boxes drawn into it, above its crops."""
        sample = self.sample()
        drawn = annotated_picture(
            sample.example, sample.regions, sample.outcome, said=sample.said, truth=self.reward is not None
        )
        return contact_sheet([drawn, *filter(None, [sample.crops()])], columns=1)


@dataclass(frozen=True, eq=False)
class Look:
    """What came of one question: the ``answers``, and the ``view`` that the policy saw of ``example.image``."""

    example: Example
    view: Image.Image
    answers: tuple[Answer, ...]

    @property
    def best(self) -> Answer:
        """The answer with the highest reward; without rewards the first."""
        return max(
            self.answers, key=lambda one: one.reward.total if one.reward and not one.reward.faults else -math.inf
        )

    def picture(self) -> Image.Image:
        """One answer above its crops; of a group with rewards all of them, best first, with their advantages."""
        if len(self.answers) == 1:
            return self.answers[0].picture()
        if self.answers[0].reward:
            return group_picture([answer.sample() for answer in self.answers], self.view)
        return contact_sheet([answer.sample().plain_picture() for answer in self.answers])

    def show(self) -> None:
        """Show the picture in a notebook; elsewhere print the answers, and the file that the picture is in."""
        if notebook := sys.modules.get("IPython"):
            return notebook.display.display(self)
        with tempfile.NamedTemporaryFile(prefix="activeo3-", suffix=".png", delete=False) as file:
            self.picture().save(file)
        print(f"{self}\ndrawn in {file.name}")

    def rows(self) -> list[dict[str, str]]:
        """A row for every answer, in words."""
        found = []
        for number, answer in enumerate(self.answers, start=1):
            row = {"#": str(number)}
            if answer.reward:
                row["reward"] = f"{answer.reward.total:.2f}"
                row["terms"] = " ".join(f"{name} {value:.2f}" for name, value in answer.reward.terms.items())
            if answer.reward and answer.reward.advantage is not None:
                row["advantage"] = f"{answer.reward.advantage:+.2f}"
            row["regions"] = "; ".join(" ".join(f"{edge:.0f}" for edge in region) for region in answer.regions)
            row["found"] = str(len(answer.boxes)) if answer.said is None else answer.said
            found.append(row | {"text": answer.text})
        return found

    def __repr__(self) -> str:
        lines = [" | ".join(f"{name} {one_line(text, 200)}" for name, text in row.items()) for row in self.rows()]
        return "\n".join([f"activeo3: {one_line(self.example.query, 200)}", *lines])

    def _repr_html_(self) -> str:
        """The picture and the answers, for a notebook. Everything that a model wrote is escaped."""
        rows = self.rows()
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        cells = [[f"<td>{html.escape(printable(text, 1000))}</td>" for text in line] for line in lines]
        body = "".join(f"<tr>{''.join(line)}</tr>" for line in cells)
        code = base64.b64encode(jpeg(self.picture(), quality=88)).decode()
        query = html.escape(printable(self.example.query, 300))
        return f'<p>{query}</p><img style="max-width:100%" src="data:image/jpeg;base64,{code}"><table>{body}</table>'
