"""From easy to hard: questions ranked by what the start policy earns on them, and the stages that they are trained in.

    python -m activeo3.curriculum --preset coco_det --data_root FOLDER --curriculum order.json    # rank
    deepspeed train.py --preset coco_det curriculum_1 --data_root FOLDER --curriculum order.json  # train a stage

Perception-R1 (arXiv 2504.07954) trains detection so: an offline reward, the number reward, ranks the data; training
goes from easy to hard while the number of answers grows. docs/curriculum.md has all commands, one for each stage.

Readings of what the paper leaves open:
  1. A question is ranked by one greedy answer of ``--model``. Detection counts the reward ``number`` alone, as the
     paper does; other tasks count the whole reward.
  2. There are three stages of equal size, with 8, 12 and 16 answers per question (presets.py).
  3. The checkpoint of a stage is the start policy of the next, and so its reference: KL is measured from there.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Sequence

from activeo3 import data_images, engine, outputs, processes, terminal
from activeo3.cli import read_object, writable_folder
from activeo3.config import ConfigError, TrainConfig
from activeo3.data import open_dataset
from activeo3.data_io import DataError, is_number
from activeo3.data_set import Dataset
from activeo3.eval_baselines import greedy_rollouts
from activeo3.eval_runner import Runner
from activeo3.log import strict_json
from activeo3.model import ModelError, VisionLanguageModel
from activeo3.tasks import Task, check_queries, prepared, task_of
from activeo3.types import Example

RANKED_BY = {"detection": "number"}
"""The reward term that ranks the questions of a task; without one, the whole reward does."""
LEARNS_FROM_BOXES = ("sense", "direct")
"""Tasks that cannot be trained on a question whose answer is not known; the others say so themselves."""
BLOCK = 16  # questions that are asked together
_DECIDED_BY = ("task", "data", "split", "limit", "tile", "tile_overlap", "selection_seed", "absent",
               "holdout", "box_format", "data_columns", "subset")  # fmt: skip
"""The flags that decide which questions there are, and what they ask."""


# ---------------------------------------------------------------------- rank


def rank(dataset: Dataset, vlm: VisionLanguageModel, config: TrainConfig, runner: Runner) -> list[float | None]:
    """The reward of a greedy answer to every question of a posed data set, in its order; None where the picture cannot
    be read."""

    def work(places: Sequence[int]) -> list[float | None]:
        examples = {place: example for place in places if (example := _read(dataset, place))}
        earned = dict(zip(examples, rewards_of(list(examples.values()), vlm, config)))
        return [earned.get(place) for place in places]

    return runner.map(work, range(len(dataset)), ("rank", vlm, repr(config)), BLOCK)


def rewards_of(examples: Sequence[Example], vlm: VisionLanguageModel, config: TrainConfig) -> list[float]:
    """What one greedy answer to each example earns; the model also works on its own crops where a task has some."""
    task, term = task_of(config), RANKED_BY.get(config.task)
    answers = greedy_rollouts(vlm, task, examples) if examples else []
    scores = (
        [task.reward(answer, outcome) for answer, outcome in zip(answers, task.act(vlm, answers))] if answers else []
    )
    return [score.terms[term] if term else score.total for score in scores]


def _read(dataset: Dataset, place: int) -> Example | None:
    try:
        return dataset[place]
    except DataError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None


def _questions(dataset: Dataset, config: TrainConfig) -> dict[str, Any]:
    """What identifies the questions that are ranked, in the plain values of a json file."""
    said = {name: getattr(config, name) for name in _DECIDED_BY} | {"questions": len(dataset)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}


# ---------------------------------------------------------------------- train a stage


def open_questions(config: TrainConfig, task: Task) -> Dataset:
    """The questions of a run, before they are divided into stages."""
    limit = config.limit or None
    dataset = open_dataset(
        config.data,
        config.split,
        config.data_root,
        limit,
        **config.dataset_options,
        boxed=config.task in LEARNS_FROM_BOXES,
    )
    check_queries(dataset, task)
    return prepared(dataset, task)


def stage_of(dataset: Dataset, config: TrainConfig) -> Dataset:
    """The questions that stage ``--stage`` of ``--stages`` trains on; all of them if there is one stage only.

    Raises ConfigError without a ranking, or if it is one of other questions.
    """
    if config.stages == 1:
        return dataset
    if not config.curriculum:
        raise ConfigError(
            "--stage needs a ranking: make one with python -m activeo3.curriculum, and name it with --curriculum FILE."
        )
    path = Path(config.curriculum)
    found = read_object(path, f"--curriculum {path}")
    different = [name for name, value in _questions(dataset, config).items() if found.get(name) != value]
    if different:
        names = ", ".join(different)
        raise ConfigError(
            f"--curriculum {path} ranks other questions, see its {names}; rank again with the flags of this run."
        )
    rewards = found.get("rewards")
    if (
        not isinstance(rewards, list)
        or len(rewards) != len(dataset)
        or not all(reward is None or is_number(reward) for reward in rewards)
    ):
        raise ConfigError(
            f"--curriculum {path} has no list 'rewards' with a number for each of {len(dataset)} questions; rank again."
        )
    chosen = stage(rewards, config.stage, config.stages)
    if not chosen:
        raise ConfigError(f"--curriculum {path}: stage {config.stage} of {config.stages} has no question.")
    return dataset.select(chosen)


def stage(rewards: Sequence[float | None], number: int, stages: int) -> list[int]:
    """The places of a stage's questions, easiest first; equals keep their order. What has no reward is in no stage.

    >>> stage([0.1, 0.9, None, 0.5, 0.9, 0.0], 1, 2), stage([0.1, 0.9, None, 0.5, 0.9, 0.0], 2, 2)
    ([1, 4], [3, 0, 5])
    """
    known = [place for place, reward in enumerate(rewards) if reward is not None]
    order = sorted(known, key=lambda place: -rewards[place])
    return order[len(order) * (number - 1) // stages : len(order) * number // stages]


# ---------------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> None:
    """Rank the training questions of a run, whose flags these are, into the file ``--curriculum``.

    Several processes share the work (``deepspeed --module activeo3.curriculum``); an interrupted ranking goes on.
    """
    config = TrainConfig.from_args(argv)
    if not config.curriculum:
        raise ConfigError(
            "--curriculum is missing: name the file that the ranking is written to, e.g. --curriculum order.json."
        )
    data_images.limit_pixels(config.max_image_pixels)
    task, path = task_of(config), Path(config.curriculum)
    if config.task == "segment" or config.task_model != "mllm":
        raise ConfigError(
            f"questions are ranked by --model alone: leave out --task segment and --task_model {config.task_model}."
        )
    folder = writable_folder(path.parent)
    outputs.claim(folder, path.name)
    ranks = engine.join(folder)
    dataset = open_questions(config, task)
    with ranks.redirect_output() if ranks.world > 1 else nullcontext():  # one loading bar is enough
        vlm = VisionLanguageModel.load(config.model, engine.pick_dtype(config.dtype), config.attention)
    vlm.model.to(ranks.device)
    runner = Runner(ranks, folder / f".{path.name}.unfinished", len(dataset))
    runner.expect(len(dataset))
    rewards = rank(dataset, vlm, config, runner)
    if ranks.rank == 0:
        by = RANKED_BY.get(config.task, "reward")
        content = {"by": by, "model": config.model} | _questions(dataset, config) | {"rewards": rewards}
        outputs.leave(path, (strict_json(content) + "\n").encode())
        known = [reward for reward in rewards if reward is not None]
        mean = sum(known) / max(1, len(known))
        runner.say(f"{len(known)} of {len(rewards)} questions ranked by {by}, mean {mean:.2f}: {path}")
    ranks.barrier()
    runner.close()
    if ranks.world > 1:
        engine.stop()


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    processes.tell(kept=lambda: "what was ranked is kept, and the same command goes on from it")
    with processes.one_sentence(ConfigError, DataError, ModelError):
        main()
