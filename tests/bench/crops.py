"""Crops in the reward path: all together against one after the other, timed in turn.

    python tests/bench/crops.py                   # some minutes on two CPU cores
    python tests/bench/crops.py --pictures 20

The tiny policy, in its task role, searches three random regions of each of 100 pictures, as an evaluation does
(taskmodels.act). First both ways must find the same boxes; only then are they timed. The last lines are a Markdown
table.
"""

import argparse
import sys
import time
from dataclasses import replace
from typing import Sequence

import numpy as np
import torch
from step import environment, quiet, ratio, spread

from activeo3 import data_scenes
from activeo3.eval_baselines import random_regions
from activeo3.eval_config import EvalConfig
from activeo3.model import VisionLanguageModel
from activeo3.task_models import act
from activeo3.types import Example, TaskResult


def main(options: argparse.Namespace) -> None:
    """Agreement, times, table."""
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    config = EvalConfig(checkpoint=(options.model,))
    task_model = VisionLanguageModel.load(options.model, torch.float32)
    task_model.model.to(device).eval()
    examples = [data_scenes.example(config.split, index) for index in range(options.pictures)]
    ways = {"together": config.task_batch, "one by one": 1}
    print(f"{options.model}, float32, {environment(device)}")

    def work(together: int) -> list[TaskResult]:
        return look(task_model, examples, replace(config, task_batch=together))

    found = {way: work(together) for way, together in ways.items()}  # also to warm up
    agree(examples, *found.values())
    crops = sum(outcome.calls for outcome in found["together"])
    boxes = sum(len(outcome.boxes_px) for outcome in found["together"])
    print(f"the same {boxes} boxes in {crops} crops of {options.pictures} pictures")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way, together in ways.items():
            began, used = time.perf_counter(), time.process_time()
            work(together)
            seconds[way].append(time.perf_counter() - began)
            cpu[way].append(time.process_time() - used)
    print("\n" + table(crops, seconds, cpu))


def look(task_model: VisionLanguageModel, examples: Sequence[Example], config: EvalConfig) -> list[TaskResult]:
    """What the expert finds in the random regions of every example."""
    return act(task_model, examples, [random_regions(example, config.regions) for example in examples], config)


def agree(examples: Sequence[Example], together: Sequence[TaskResult], alone: Sequence[TaskResult]) -> None:
    """Stops with a sentence that names a picture, unless both found the same boxes in all of them."""
    for example, one, other in zip(examples, together, alone, strict=True):
        if not np.array_equal(one.boxes_px, other.boxes_px):
            sys.exit(
                f"crops.py: together and one by one do not find the same boxes in {example.id}, and no times are taken."
            )


def table(crops: int, seconds: dict[str, list[float]], cpu: dict[str, list[float]]) -> str:
    """Medians with half the interquartile range behind each, as Markdown; ratios are to all crops together."""
    lines = [f"| {crops} crops | whole, s | ratio | CPU, s | ratio | crops/s |", "|" + " --- |" * 6]
    for way, taken in seconds.items():
        cells = [way]
        for of_way, of_all in ((taken, seconds["together"]), (cpu[way], cpu["together"])):
            cells += [spread(of_way), ratio(np.median(of_way), np.median(of_all))]
        lines.append("| " + " | ".join([*cells, f"{crops / np.median(taken):.0f}"]) + " |")
    return "\n".join(lines)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; exits with a sentence for one that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="data/tiny", help="the policy whose task role works on the crops [data/tiny]"
    )
    parser.add_argument("--pictures", type=int, default=100, help="of the embedded world, three crops each [100]")
    parser.add_argument("--repeats", type=int, default=3, help="how often each way is timed [3]")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    options = parser.parse_args(words)
    if min(options.pictures, options.repeats) < 1:
        parser.error("--pictures and --repeats must be at least 1.")
    return options


if __name__ == "__main__":
    main(parse())
