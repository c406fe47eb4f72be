"""What policies propose and task models find, example by example, as records that a Runner divides and keeps.

A record is plain JSON without images:

    rollout_of(example, rollout_record(rollout)) == rollout        but for its ``branch``, which only an update needs
    outcome_of(outcome_record(outcome)) == outcome
"""

import time
from dataclasses import replace
from typing import Any, Callable, Mapping, Sequence, TypeVar

import numpy as np
from PIL import Image

from activeo3.config import Config
from activeo3.data_loader import Whole, as_it_is
from activeo3.eval_core import Record, Runner
from activeo3.geometry import as_boxes, mask_to_rle, rle_to_mask
from activeo3.model import VisionLanguageModel
from activeo3.proposals import ASKED, Regions, propose
from activeo3.rollout import sample_rollouts
from activeo3.task_models import TaskModel, act
from activeo3.task_perception_words import Answer
from activeo3.tasks import Task
from activeo3.types import Example, ParsedAnswer, Region, Rollout, TaskResult

Expert = VisionLanguageModel | TaskModel
Looked = tuple[Example, Sequence[Region]]
"""An example and the regions to look at."""
T = TypeVar("T")


def timed(work: Callable[[Sequence[T]], Sequence[dict[str, Any]]]) -> Callable[[Sequence[T]], list[Record]]:
    """``work``, whose records also say the ``seconds`` that they took, an equal part of their block each."""

    def timing(block: Sequence[T]) -> list[Record]:
        began = time.perf_counter()
        records = work(block)
        seconds = (time.perf_counter() - began) / len(block)
        return [record | {"seconds": seconds} for record in records]

    return timing


def seconds_of(records: Sequence[Record]) -> float:
    """The seconds that all records took."""
    return sum(record["seconds"] for record in records)


# ---------------------------------------------------------------------- look and act


def proposed(
    method: str,
    examples: Sequence[Example],
    policy: VisionLanguageModel | None,
    config: Config,
    runner: Runner,
    fixed: np.ndarray | None = None,
    whole: Whole = as_it_is,
) -> tuple[list[Rollout], float]:
    """What a method proposes for every example, and the seconds it took; rules take none.

    ``whole`` gives an example its image, if that was put aside (Dataset.without_images).
    """
    if method not in ASKED and whole is as_it_is:
        return propose(method, examples, policy, config, fixed), 0.0

    def work(block: Sequence[Example]) -> list[Record]:
        return [
            rollout_record(rollout)
            for rollout in propose(method, [whole(example) for example in block], policy, config)
        ]

    how = "greedy" if method in ("cot", "active") else method
    records = runner.map(timed(work), examples, ("look", how, policy, config))
    return [rollout_of(*pair) for pair in zip(examples, records, strict=True)], seconds_of(records)


def answers(task: Task, policy: VisionLanguageModel, examples: Sequence[Example], runner: Runner) -> list[Rollout]:
    """One greedy answer of a policy to every example."""

    def work(block: Sequence[Example]) -> list[Record]:
        _, groups = sample_rollouts(policy, task, block)
        return [rollout_record(rollout) for (rollout,) in groups]

    records = runner.map(work, examples, ("answer", task.name, policy, task.config))
    return [rollout_of(*pair) for pair in zip(examples, records, strict=True)]


def found(
    task_model: Expert,
    examples: Sequence[Example],
    regions: Regions,
    config: Config,
    runner: Runner,
    black: bool = False,
) -> tuple[list[TaskResult], float]:
    """What a task model finds for every example in its regions, and the seconds it took.

    With ``black`` it gets black crops: what it finds then does not come from looking.
    """
    if black:
        examples = blackened(examples)
    return found_in(task_model, list(zip(examples, regions, strict=True)), config, runner)


def found_in(
    task_model: Expert, looked: Sequence[Looked], config: Config, runner: Runner, **block: int
) -> tuple[list[TaskResult], float]:
    """The outcomes of examples with regions, in order, and the seconds they took; ``block`` as in ``Runner.map``."""

    def work(block: Sequence[Looked]) -> list[Record]:
        return [outcome_record(outcome) for outcome in act(task_model, *zip(*block), config)]

    records = runner.map(timed(work), looked, ("act", task_model, config), **block)
    return [outcome_of(record) for record in records], seconds_of(records)


def blackened(examples: Sequence[Example]) -> list[Example]:
    """The same questions about black pictures; those of one size share their pixels."""
    black = {size: Image.new("RGB", size) for size in {example.size_px for example in examples}}
    return [replace(example, image=black[example.size_px]) for example in examples]


# ---------------------------------------------------------------------- records


def rollout_record(rollout: Rollout) -> dict[str, Any]:
    """A rollout of one turn without its example."""
    return {
        "token_ids": rollout.token_ids, "text": rollout.text, "finished": rollout.finished, "action": _action_record(rollout.action),
        "regions": rollout.regions, "result": rollout.result and outcome_record(rollout.result),
    }  # fmt: skip


def rollout_of(example: Example, record: Mapping[str, Any]) -> Rollout:
    """The rollout of a record."""
    return Rollout(
        example, tuple(record["token_ids"]), record["text"], record["finished"], _action_of(record["action"]),
        regions_of(record["regions"]), record["result"] and outcome_of(record["result"]),
    )  # fmt: skip


def regions_of(boxes: Sequence[Sequence[float]]) -> tuple[Region, ...]:
    """Regions from lists of four numbers."""
    return tuple(Region(*box) for box in boxes)


def outcome_record(outcome: TaskResult) -> dict[str, Any]:
    """An outcome, its mask as run lengths."""
    return {
        "boxes_px": outcome.boxes_px.tolist(), "scores": outcome.scores.tolist(), "texts": outcome.texts, "calls": outcome.calls,
        "tokens": outcome.tokens, "lenient_only": outcome.lenient_only, "strict": outcome.strict and outcome_record(outcome.strict),
        "mask": None if outcome.mask is None else mask_to_rle(outcome.mask),
    }  # fmt: skip


def outcome_of(record: Mapping[str, Any]) -> TaskResult:
    """The outcome of a record."""
    return TaskResult(
        as_boxes(record["boxes_px"]), np.array(record["scores"], dtype=np.float64), tuple(record["texts"]), record["calls"],
        record["tokens"], None if record["mask"] is None else rle_to_mask(record["mask"]),
        record["strict"] and outcome_of(record["strict"]), record["lenient_only"],
    )  # fmt: skip


def _action_record(action: ParsedAnswer) -> dict[str, Any]:
    record = {"boxes_text": action.boxes_text, "labels": action.labels, "error": action.error}
    record |= {"strict": action.strict and _action_record(action.strict)}
    return record | ({"count": action.count, "text": action.text} if isinstance(action, Answer) else {})


def _action_of(record: Mapping[str, Any]) -> ParsedAnswer:
    boxes, strict = tuple(map(tuple, record["boxes_text"])), record["strict"] and _action_of(record["strict"])
    common = (boxes, tuple(record["labels"]), record["error"], strict)
    return Answer(*common, count=record["count"], text=record["text"]) if "count" in record else ParsedAnswer(*common)
