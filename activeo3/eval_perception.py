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
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from activeo3 import eval_output, intervals, log, metrics, text_metrics
from activeo3.data_loader import readable
from activeo3.data_set import Dataset
from activeo3.eval_config import EvalConfig
from activeo3.eval_core import Runner
from activeo3.eval_parsing import parser_of, shares, strict_columns, strictly_read
from activeo3.eval_rollouts import answers
from activeo3.geometry import as_boxes, iou
from activeo3.intervals import Metric
from activeo3.matching import plain
from activeo3.model import VisionLanguageModel
from activeo3.tasks import Task, prepared, task_of
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
    """Per example: whether the number is right, and how far off it is; a number that cannot be read is as far off as none."""
    pairs = [(answer.action.count, example.count.number) for example, answer in zip(examples, answers, strict=True)]  # type: ignore[attr-defined]
    return {
        "exact": [float(said == true) for said, true in pairs],
        "MAE": [float(abs(max(0, said) - true)) for said, true in pairs],
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
        said = np.array([plain(name) for name in answer.action.labels], dtype=object)[:counted]
        boxes = answer.result.boxes_px[:counted] if answer.result else as_boxes([])
        checked, partly = (
            {plain(name) for name in names or ()} for names in (example.objects.checked, example.objects.partly)
        )
        areas = example.areas
        crowd = np.zeros(len(true), dtype=bool) if example.crowd is None else example.crowd
        names = {*true, *said} & checked if example.objects.checked is not None else {*true, *said}
        for name in sorted(names) or [plain(example.objects.categories[0])]:
            own, found = true == name, said == name
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


# ---------------------------------------------------------------------- policies beside each other


def compare(
    task: Task,
    policies: Mapping[str, VisionLanguageModel],
    benchmark: str,
    examples: Sequence[Example],
    runner: Runner,
    resamples: int = 1000,
    say: Callable[[str], None] = print,
) -> tuple[list[dict[str, Any]], dict[str, list[Rollout]]]:
    """A table row for every policy, as eval_output.py takes it, and its answers; ``runner`` as in suites.run."""
    rows, kept = [], {}
    for name, policy in policies.items():
        kept[name] = answers(task, policy, examples, runner)
        found, first = measure(task.name, examples, kept[name], resamples), COLUMNS[task.name][0]
        if task.config.parser != "strict":
            strict = measure(task.name, examples, [strictly_read(answer) for answer in kept[name]], resamples)
            found |= strict_columns(strict, [first]) | shares(kept[name])
        rows.append({"benchmark": benchmark, "method": name, "checkpoint": "", "task_model": "", "n": len(examples), "columns": COLUMNS[task.name],
                     "parser": parser_of(task.config, [policy]), "metrics": found, "failures": {}})  # fmt: skip
        say(f"{benchmark} {task.name} {name}: {first} {found[first].value:.3f}, form {found['form'].value:.3f}")
    return rows, kept


def passes(config: EvalConfig, policies: int) -> int:
    """How often ``evaluate`` works on every question."""
    return policies


def evaluate(
    opened: Mapping[str, Dataset],
    sources: Mapping[str, str],
    load: Callable[[str], VisionLanguageModel],
    task_models: Mapping[str, Any],
    config: EvalConfig,
    folder: Path,
    runner: Runner,
) -> None:
    """Every benchmark: start policy and checkpoints in the task's own table; they answer themselves, not ``task_models``.

    Policies are given by title and source; ``load(source)`` gives one, and they are loaded one after the other.
    """
    task, rows = task_of(config), []
    for name, dataset in opened.items():
        examples, found = readable(prepared(dataset, task), folder, runner.ranks.all_gather, runner.writes), []
        for title, source in sources.items():
            policy = {title: load(source)}
            found += compare(task, policy, name, examples, runner, config.resamples, runner.say)[0]
        rows += found
        if not runner.writes:
            continue
        style = eval_output.TableStyle(config.columns, config.digits)
        eval_output.write_results(folder, rows, style=style)
        title = f"{name}, {config.task}, {len(examples)} questions"
        runner.say(log.table(*eval_output.first_table(found, style.columns), title, style.digits))
    runner.say(f"numbers: {folder / 'results.json'}")
