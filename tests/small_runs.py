"""Small training runs: pictures, a scripted rollout, a reward that is easy to learn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import train
from activeo3 import (
    curriculum,
    engine,
    eval_setup,
)
from activeo3.log import read_rows
from activeo3.model import VisionLanguageModel
from activeo3.packing import Prompt
from activeo3.rollout import sample_rollouts
from activeo3.tasks import Task, known_tasks
from activeo3.types import Example, Region, Reward, Rollout, Sampling, TaskResult

TASKS = known_tasks()


def small_pictures() -> list[Example]:
    """Eight questions about mosaics of different shape."""
    examples = []
    for i in range(8):
        rng = np.random.default_rng(i)
        width, height = [(96, 64), (64, 96), (80, 80)][i % 3]
        mosaic = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        image = Image.fromarray(mosaic).resize((width, height), Image.Resampling.NEAREST)
        boxes = np.array([[8, 8, 24, 24], [40, 40, 56, 64]], dtype=float)
        examples.append(Example(f"mosaic/{i}", image, ["red star", "blue disc"][i % 2], boxes, image_id=i + 1))
    return examples


class World(list[Example]):
    """Examples as a data set that left none out."""

    name, split = "mosaics", "val"
    dropped: tuple[str, ...] = ()


def look_somewhere(
    actor: VisionLanguageModel, task: Task, examples: list[Example], group: int = 1, sampling: Sampling | None = None
) -> tuple[list[Prompt], list[list[Rollout]]]:
    """sample_rollouts, with a region that follows from the sampled ids."""
    prompts, rollouts = sample_rollouts(actor, task, examples, group, sampling)

    def aimed(answer: Rollout) -> Rollout:
        x, y = (float(part % 32) for part in divmod(sum(answer.token_ids), 32))
        return replace(answer, regions=(Region(x, y, x + 32, y + 24),))

    return prompts, [[aimed(answer) for answer in of_one] for of_one in rollouts]


def reward_of_ids(task: Task, answer: Rollout, outcome: TaskResult) -> Reward:
    """Something that differs between answers, and depends on what the task model said."""
    terms = {"format": float(sum(answer.token_ids) % 7), "task": float(sum(map(len, outcome.texts)) % 5)}
    return Reward(terms, sum(terms.values()))


def prepare(patch: pytest.MonkeyPatch) -> None:
    """Put the small world in the place of scenes, and keep the process group for the next run."""
    patch.setattr(train, "sample_rollouts", look_somewhere)
    for name in ("sense", "direct"):
        patch.setattr(TASKS[name], "reward", reward_of_ids)
    patch.setattr(curriculum, "open_dataset", lambda *_, **__: World(small_pictures()))
    patch.setattr(eval_setup.data, "open_dataset", lambda *_, **__: World(small_pictures()[:2]))
    patch.setattr(engine, "stop", lambda: None)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the machine."""
    rows = read_rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/") and k != "memory_gb"} for row in rows]
