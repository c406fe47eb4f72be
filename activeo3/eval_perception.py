"""The tables of the one-shot tasks: what policies answer at once, greedily, in the numbers of Perception-R1.

    grounding   Acc50, Acc75, Acc95: IoU of at least so much; Avg, their mean; mIoU, the mean IoU
    counting    exact: the share of right numbers; MAE: how far off they are
    ocr         edit_distance, precision, recall, F1, BLEU, METEOR (text_metrics.py)
    detection   AP, AP50, AP75, AP_s, AR as pycocotools has them, over all categories and all pictures

``form`` is the share of answers that fit their form. A wrong form costs nothing else: what can be read of an
answer counts. Intervals are 95 %, bootstrapped over pictures.

Deviations from the reference's evaluation:
  1. No picture is left out: its slice for "all" ends before the last one. A picture with nothing in it is
     there for the false positives.
  2. Decoding is greedy without a penalty for repetition (the reference: 1.05).
  3. An answer that says no number counts as the number of the things it lists, as in the reference.
"""

from dataclasses import replace
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from activeo3 import intervals, metrics, text_metrics
from activeo3.config import TrainConfig
from activeo3.eval_baselines import greedy_rollouts
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import (
    Benchmark,
    Map,
    Method,
    Models,
    Setting,
    blackened,
    rollout_of,
    rollout_record,
    shares,
    strict_columns,
    strictly_read,
)
from activeo3.eval_detection import KNOWN_COLUMNS
from activeo3.eval_runner import Record
from activeo3.geometry import as_boxes, iou
from activeo3.intervals import Metric
from activeo3.matching import plain
from activeo3.samples import Sample
from activeo3.types import Example, Rollout, TaskResult

ACCURACIES = {"Acc50": 0.5, "Acc75": 0.75, "Acc95": 0.95}
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "grounding": (*ACCURACIES, "Avg", "mIoU", "form"),
    "counting": ("exact", "MAE", "form"),
    "ocr": (*text_metrics.COLUMNS, "form"),
    "detection": ("AP", "AP50", "AP75", "AP_s", "AR", "form"),
}
"""The columns of each task's table."""


def ready(task: str) -> None:
    """Raise DataError if the table of a task needs a package that is not there: to be called before long work."""
    if task == "ocr":
        text_metrics.need_packages("the table of --task ocr")


def measure(
    task: str, examples: Sequence[Example], answers: Sequence[Rollout], resamples: int = 1000
) -> dict[str, Metric]:
    """COLUMNS of the task, from one answer per posed example; of detection all that metrics.py measures.

    Raises DataError for ocr without nltk or jieba.
    """
    pictures = [example.image_id for example in examples]
    values = _PER_EXAMPLE[task](examples, answers) | {
        "form": [float(answer.action.error is None) for answer in answers]
    }
    found = {name: intervals.bootstrap_interval(of_each, pictures, resamples) for name, of_each in values.items()}
    if task == "detection":
        found |= metrics.evaluate_detections(*per_category(examples, answers), resamples=resamples)
    return {name: found[name] for name in dict.fromkeys([*COLUMNS[task], *found])}


def _located(examples: Sequence[Example], answers: Sequence[Rollout]) -> dict[str, Sequence[float]]:
    """Per example: IoU of its one box, and whether that is enough."""
    ious = np.zeros(len(examples))
    for place, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        boxes = answer.result.boxes_px if answer.result else as_boxes([])
        ious[place] = iou(boxes[:1], example.boxes_px)[0, 0] if len(boxes) else 0.0
    enough = {name: (ious >= least).astype(float) for name, least in ACCURACIES.items()}
    return enough | {"Avg": np.mean(list(enough.values()), axis=0), "mIoU": ious}


def _counted(examples: Sequence[Example], answers: Sequence[Rollout]) -> dict[str, Sequence[float]]:
    """Per example: whether the number is right, and how far off it is; a number that cannot be read is as far off as
    none."""
    pairs = [(answer.action.count, example.count.number) for example, answer in zip(examples, answers, strict=True)]  # type: ignore[attr-defined]
    return {
        "exact": [float(stated == true) for stated, true in pairs],
        "MAE": [float(abs(max(0, stated) - true)) for stated, true in pairs],
    }


def _transcribed(examples: Sequence[Example], answers: Sequence[Rollout]) -> dict[str, Sequence[float]]:
    """Per page: transcripts.COLUMNS."""
    pairs = zip(examples, answers, strict=True)
    rows = [text_metrics.page_metrics(answer.action.text, example.text) for example, answer in pairs]  # type: ignore[attr-defined]
    return {name: [row[name] for row in rows] for name in text_metrics.COLUMNS}


_PER_EXAMPLE: dict[str, Callable[[Sequence[Example], Sequence[Rollout]], dict[str, Sequence[float]]]] = {
    "grounding": _located, "counting": _counted, "ocr": _transcribed, "detection": lambda examples, answers: {},
}  # fmt: skip


def per_category(examples: Sequence[Example], answers: Sequence[Rollout]) -> tuple[list[Example], list[TaskResult]]:
    """Detection as questions of metrics.py: each category that is in a picture, or is said to be, is one.

    Categories that are neither there nor said to be change no number of COCO's, so they are not asked. A
    picture with nothing there or said keeps one question, so that it is among those that are resampled. In a
    federated set only the categories that the picture was checked for are questions.
    """
    questions: list[Example] = []
    outcomes: list[TaskResult] = []
    for example, answer in zip(examples, answers, strict=True):
        true = np.array([plain(name) for name in example.objects.labels], dtype=object)
        counted = example.rules.of_picture  # without scores the first ones of an answer are the best
        stated = np.array([plain(name) for name in answer.action.labels], dtype=object)[:counted]
        boxes = answer.result.boxes_px[:counted] if answer.result else as_boxes([])
        checked, partly = (
            {plain(name) for name in names or ()} for names in (example.objects.checked, example.objects.partly)
        )
        areas = example.areas
        crowd = np.zeros(len(true), dtype=bool) if example.crowd is None else example.crowd
        names = {*true, *stated} & checked if example.objects.checked is not None else {*true, *stated}
        for name in sorted(names) or [plain(example.objects.categories[0])]:
            own, found = true == name, stated == name
            questions.append(
                replace(
                    example,
                    query=name,
                    boxes_px=example.boxes_px[own],
                    crowd=crowd[own],
                    areas=None if areas is None else np.asarray(areas)[own],
                    exhaustive=name not in partly and bool(names),
                )
            )
            outcomes.append(TaskResult(boxes[found], np.ones(int(found.sum()))))
    return questions, outcomes


# ---------------------------------------------------------------------- the benchmark


class PerceptionBenchmark(Benchmark):
    """The table of a single-turn task: one greedy answer of every policy, which is the result."""

    methods = {"answer": Method(policy="every", zooms=False)}
    in_memory = 500
    default_methods = ("answer",)

    def __init__(self, name: str, config: EvalConfig, rewards: TrainConfig | None = None) -> None:
        self.columns, self.best = COLUMNS[config.task], {"ocr": "F1", "grounding": "mIoU"}.get(config.task, "")
        self.known_columns = KNOWN_COLUMNS if config.task == "detection" else frozenset()
        super().__init__(name, config, rewards)
        ready(config.task)

    def predict(self, setting: Setting, examples: Sequence[Example], models: Models, map: Map) -> list[Record]:
        policy = models[setting.policy]

        def work(block: Sequence[Example]) -> list[Record]:
            block = blackened(block) if setting.blind else block
            return [rollout_record(rollout) for rollout in greedy_rollouts(policy, self.task, block)]

        return map(work, examples, ("answer", self.config.task, policy, self.config, setting.blind))

    def metrics(self, setting: Setting, examples: Sequence[Example], records: Sequence[Record]) -> dict[str, Any]:
        """COLUMNS of the task; with a lenient reader also what the strict one would have left."""
        answers = [rollout_of(*pair) for pair in zip(examples, records, strict=True)]
        found: dict[str, Any] = measure(self.config.task, examples, answers, self.config.resamples)
        if self.config.parser != "strict":
            strict = measure(self.config.task, examples, [strictly_read(a) for a in answers], self.config.resamples)
            found |= strict_columns(strict, self.columns[:1]) | shares(answers)
        return found | {"seconds": float(np.mean([record["seconds"] for record in records]))}

    def sample(self, example: Example, record: Record, title: str) -> Sample:
        rollout = rollout_of(example, record)
        return Sample.of(rollout, rollout.result, self.task.reward(rollout, rollout.result), title)
