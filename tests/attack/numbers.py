"""Numbers that are none: learning rates up to 1e30, and NaN, infinities and 1e38 planted where a run takes numbers from
others.

A trial ends well in one of two ways: in one sentence, or it goes on and what was planted is counted and named. It never
ends in a traceback, leaves a metrics.jsonl that is no JSON, or leaves a newest checkpoint that cannot be sampled from.

    python -m tests.attack.numbers --trials 200 --seed 0
"""

import argparse
import contextlib
import io
import json
import math
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests, whose small world this is
from conftest import random_vlm, save_detector
from launch import finely_sharded, rank_environment
from small_runs import prepare, small_pictures
from tiny_model import build_tokenizer  # conftest knows where

import train
from activeo3 import checkpoints
from activeo3.config import ConfigError, TrainConfig
from activeo3.data_io import DataError
from activeo3.model import ModelError, VisionLanguageModel
from activeo3.task_model_detectors import Thresholds, load
from activeo3.task_models import act
from activeo3.tasks import Task, known_tasks
from activeo3.types import Example, Region, Reward, Rollout, Sampling, TaskResult

PLANTED = (math.nan, math.inf, -math.inf)
SENTENCES = (ConfigError, DataError, ModelError)


class World:
    """A folder with a small policy and a detector, in which runs are short."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        random_vlm(build_tokenizer(), "qwen3_vl").save(folder / "policy")
        self.detector = str(folder / "detector")
        save_detector("grounding-dino", folder / "detector")
        self.config = TrainConfig(
            model=str(folder / "policy"), ds_config=finely_sharded(folder), steps=3, save_every=1, prompts=2, micro_prompts=2, group=2,
            max_new_tokens=10, task_max_new_tokens=4, sensing_side=32, crop_side=32, lr=1e-3, warmup=0, eval_examples=0, samples_every=0,
        )  # fmt: skip

    def new(self) -> Path:
        """A folder that is not there yet."""
        self.count += 1
        return self.folder / f"trial-{self.count}"


def ended(work: Callable[[], Any]) -> tuple[str, str]:
    """How a piece of work ended: ("sentence", what it said) or ("done", ""), and what it printed before."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            work()
    except SENTENCES as error:
        return "sentence" if "\n" not in str(error) and str(error).endswith(
            "."
        ) else "no sentence", f"{said.getvalue()}\n{error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}", said.getvalue()
    return "done", said.getvalue()


def can_answer(source: str, examples: list[Example]) -> tuple[str, str]:
    """How sampling from a model folder ends."""

    def work() -> None:
        vlm = VisionLanguageModel.load(source, torch.float32)
        prompts = vlm.encode([example.image for example in examples], [example.query for example in examples])
        vlm.generate(prompts, 2, Sampling(1.0, 10))

    return ended(work)


def left_behind(folder: Path) -> str:
    """What is wrong with the files of a run: rows that are no JSON, or a newest checkpoint that cannot be used."""
    refuse = lambda word: (_ for _ in ()).throw(ValueError(word))  # noqa: E731
    try:
        [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except ValueError as error:
        return f"metrics.jsonl holds {error}"
    newest = checkpoints.complete(folder)[-1:]
    how = can_answer(str(newest[0]), small_pictures()[:4]) if newest else ("done", "")
    return "" if how[0] == "done" else f"{newest[0].name} cannot be used: {how}"


# ---------------------------------------------------------------------- attacks: each returns what is wrong, or ""


def learning_rate(world: World, rng: random.Random, exponent: float | None = None) -> str:
    """A run with a learning rate of 10 to the power of -1 to 30."""
    lr = 10 ** (rng.uniform(-1, 30) if exponent is None else exponent)
    config = replace(
        world.config, lr=lr, output_dir=str(world.new()), keep=rng.choice((0, 1, 2)), seed=rng.randrange(1000)
    )
    how, said = ended(lambda: train.main(config))
    wrong = left_behind(Path(config.output_dir)) if how in ("done", "sentence") else how
    wanted = ("step ", "largest weight is", "with a lower --lr")
    if how == "sentence" and not all(word in said for word in wanted) and "skipped an update" not in said:
        wrong = f"the sentence lacks something: {said}"
    return wrong and f"--lr {lr:g} --seed {config.seed} --keep {config.keep}: {wrong}"


def reward(world: World, rng: random.Random) -> str:
    """A run in which some answers earn NaN or an infinity in one of their terms, or a sum that overflows."""
    most, share = rng.randint(1, 5), rng.choice((0.1, 0.5, 1.0))
    config = replace(
        world.config,
        output_dir=str(world.new()),
        max_skipped=most,
        advantage=rng.choice(("group", "batch", "rescaled")),
    )
    planted: list[str] = []
    sense = known_tasks()["sense"]
    honest = sense.reward

    def spoilt(task: Task, rollout: Rollout, result: TaskResult) -> Reward:
        earned = honest(task, rollout, result)
        if rng.random() > share:
            return earned
        planted.append(rollout.example.id)
        name, value = rng.choice([*earned.terms, "total"]), rng.choice((*PLANTED, 1e300))
        terms = {**earned.terms, **({name: value} if name != "total" else {})}
        return Reward(terms, value if name == "total" else sum(terms.values()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sense, "reward", spoilt)
        how, said = ended(lambda: train.main(config))
    rows = train.log.read_rows(Path(config.output_dir) / "metrics.jsonl")
    wrong = left_behind(Path(config.output_dir)) if how in ("done", "sentence") else how
    counted = sum(row["rewards_left_out"] for row in rows)
    in_a_row = [bool(row["rewards_left_out"]) for row in rows[-most:]]
    if counted != len(planted) or not all(f"{name} (" in said for name in planted):
        wrong = f"{len(planted)} planted, {counted} counted; said {said}"
    elif (how == "sentence") != (len(in_a_row) == most and all(in_a_row)):
        wrong = f"{in_a_row} and --max_skipped {most}: {how}"
    elif any(
        row[name] is None for row in rows for name in ("reward", "reward/task", "loss") if row["rewards_left_out"] < 4
    ):
        wrong = "a mean is poisoned"
    return wrong and f"{most} most, share {share}, {config.advantage}: {wrong}"


def weight(world: World, rng: random.Random, value: float | None = None) -> str:
    """A model folder in which one weight is NaN, infinite or very large: refused by the name of the weight, or it
    answers."""
    value = rng.choice((*PLANTED, 1e38, -1e38, 1e20)) if value is None else value
    folder = world.new()
    VisionLanguageModel.load(world.config.model, torch.float32).save(folder)
    weights = load_file(folder / "model.safetensors")
    name = rng.choice(sorted(weights))
    weights[name].view(-1)[rng.randrange(weights[name].numel())] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    how, said = can_answer(str(folder), small_pictures()[:2])
    named = name in said and str(folder) in said
    fine = how == "sentence" and named or how == "done" and math.isfinite(value)
    return "" if fine else f"{value:g} in {name}: {how} {said}"


def logit(world: World, rng: random.Random) -> str:
    """One logit, or all of a row, that is NaN or infinite at a random token, greedy or drawn, at a random
    temperature."""
    value, at, whole = rng.choice(PLANTED), rng.randrange(8), rng.random() < 0.5
    vlm = VisionLanguageModel.load(world.config.model, torch.float32)
    calls = iter(range(10**6))

    def spoil(module: Any, inputs: Any, logits: Tensor) -> Tensor:
        if next(calls) == at:
            row, token = rng.randrange(len(logits)), rng.randrange(30, logits.shape[-1])
            logits[row, -1, slice(None) if whole else token] = value
        return logits

    vlm.model.lm_head.register_forward_hook(spoil)
    example = small_pictures()[0]
    prompts = vlm.encode([example.image], [example.query])
    sampling = Sampling(rng.choice((0.0, 0.01, 1.0, 5.0)), 12)
    how, said = ended(lambda: vlm.generate(prompts, 3, sampling))
    # The first call is the prefill, whose logits nothing is drawn from; minus infinity alone is a token without a
    # chance.
    harmless = at == 0 or value == -math.inf and not whole
    reached = next(calls) > at
    fine = how == ("done" if harmless or not reached else "sentence")
    return "" if fine else f"{value} in {'a row' if whole else 'one logit'} of call {at}, {sampling}: {how} {said}"


def detection(world: World, rng: random.Random) -> str:
    """A detector that gives one NaN or infinite score or box: refused by the name of the example, not passed over."""
    value, of = rng.choice(PLANTED), rng.choice(("logits", "pred_boxes"))
    detector = load(world.detector, torch.device("cpu"), Thresholds(0.25, 0.25))

    def spoil(module: Any, inputs: Any, out: Any) -> Any:
        numbers = out[of]
        numbers[rng.randrange(len(numbers)), rng.randrange(numbers.shape[1]), rng.randrange(4)] = value
        return out

    detector.model.register_forward_hook(spoil)
    examples = small_pictures()[:3]
    regions = [[Region(0, 0, 32, 32)] for _ in examples]
    how, said = ended(lambda: act(detector, examples, regions, world.config))
    harmless = of == "logits" and value == -math.inf  # no word
    fine = how == ("done" if harmless else "sentence") and ("mosaic/" in said) == (how == "sentence")
    return "" if fine else f"{value} in {of}: {how} {said}"


ATTACKS: dict[str, Callable[[World, random.Random], str]] = {
    "learning_rate": learning_rate, "reward": reward, "weight": weight, "logit": logit, "detection": detection,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=200, help="of each attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attack", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    given = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1).items():
            patch.setenv(name, value)
        prepare(patch)
        world = World(Path(folder))
        for name in given.attack:
            for trial in range(given.trials):
                if found := ATTACKS[name](world, random.Random(f"{name} {given.seed} {trial}")):
                    faults.append(f"{name}, trial {trial} of seed {given.seed}: {found}")
                    print(faults[-1], flush=True)
    print(f"numbers {given.trials * len(given.attack)} {len(faults)}")


if __name__ == "__main__":
    main()
