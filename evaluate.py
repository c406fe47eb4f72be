"""Put checkpoints beside every floor and ceiling, in one table; or let one look at a picture of yours.

    python evaluate.py --checkpoint runs/tiny/checkpoint-160                     # the embedded world
    python evaluate.py --checkpoint runs/a/checkpoint-160 runs/b/checkpoint-160  # two rows of one table
    python evaluate.py --preset paper --checkpoint DIR --benchmark coco --data_root FOLDER --split val
    deepspeed evaluate.py --checkpoint DIR                                       # the same table, on all GPUs
    python evaluate.py --checkpoint DIR --image photo.jpg --find "red star"      # draws photo.jpg.looked.png
    python evaluate.py --checkpoint DIR --image photo.jpg --question "What number is on the traffic light?"
    python evaluate.py --checkpoint DIR --task segment --task_model oracle       # masks, corrected zoom by zoom
    python evaluate.py --checkpoint DIR --mode baseline default strict_zoom      # questions in words, with and without zooms
    python evaluate.py --help

The same command again continues an evaluation that was interrupted.
"""

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Mapping, Sequence

from activeo3 import processes, terminal
from activeo3.cli import ConfigError
from activeo3.data import DATASETS
from activeo3.data_io import DataError
from activeo3.eval_config import EvalConfig

if __name__ == "__main__":  # flags are read before torch is imported, so a wrong one is answered at once
    terminal.protect()
    processes.watch()
    with processes.one_sentence(ConfigError, DataError):
        CONFIG = EvalConfig.from_args(known={"data": DATASETS, "benchmark": DATASETS})
    if os.environ.get("RANK", "0") == "0":
        print("activeo3: loading torch and transformers takes some seconds", file=sys.stderr, flush=True)

from activeo3 import (
    contest,
    data,
    data_images,
    engine,
    eval_baselines,
    eval_demo,
    eval_detection,
    eval_output,
    eval_parsing,
    eval_perception,
    eval_segmentation,
    eval_vqa,
    eval_zoom_qa,
    log,
    modes,
    outputs,
    paths,
    rivals,
)
from activeo3.cli import writable_folder
from activeo3.data_loader import readable
from activeo3.data_set import Dataset
from activeo3.engine import Distributed
from activeo3.eval_core import Runner
from activeo3.families import FAMILIES, check_notes
from activeo3.html_report import write_page
from activeo3.model import ModelError, VisionLanguageModel, family_of
from activeo3.plots import draw_curve
from activeo3.progress import Progress
from activeo3.tasks import task_of
from activeo3.types import Example

FITTED_ON = 40  # training pictures that the fixed regions are chosen on


def main(config: EvalConfig) -> None:
    """Run every method of every checkpoint on every benchmark, print and write the tables."""
    config = eval_demo.as_trained(as_meant(config), rivals.trained_task(config.checkpoint[0]))
    data_images.limit_pixels(config.max_image_pixels)
    folder, task = output_folder(config), task_of(config)
    processes.tell(kept=lambda: kept(folder, config))
    ranks = engine.join(folder)
    # Before the work, so that nothing is refused at its end.
    own(folder, config, ranks)
    outputs.claim(folder, *(eval_demo.names(config) if config.image else outputs.OF_AN_EVALUATION))
    rows, start_source = rivals.contest(config.checkpoint, config.start)
    start_source = rows[0].source if config.question else start_source  # one model looks and answers
    benchmarks = config.benchmark or config.data
    evaluation = evaluation_of(config, benchmarks)
    check_columns(config, evaluation)
    # Before the models, so that a wrong path is named at once; pictures are read when everything else is there.
    opened = (
        {} if config.image else {name: opened_split(name, config.split, config.limit, config) for name in benchmarks}
    )
    to_fit = {
        name: opened_split(name, "train", FITTED_ON, replace(config, absent=0.0))
        for name in opened
        if "fixed" in config.methods and not evaluation
    }
    picture = eval_demo.own_picture(config) if config.image else None
    load = loader(config, ranks, start_source, config.other_mllm)
    start = load(start_source)
    for rival in rows:
        check_notes(
            family_of(rival.source, FAMILIES, start_source), config
        )  # it is named now if it is no model, not when its turn comes
    mllm = load(config.other_mllm) if config.other_mllm else start
    task_models = {
        config.expert_name(name): mllm if name == "mllm" else task.load_task_model(name, ranks.device) for name in config.task_model
    }  # fmt: skip
    own(writable_folder(folder), config, ranks)  # before the work whose results go there
    if picture and ranks.rank:
        return None  # one process shows it
    if picture:
        return eval_demo.show(picture, load(rows[0].source), next(iter(task_models.values())), config, folder)
    load(rows[0].source)  # damaged weights are named before the work, too
    if ranks.rank == 0:
        print(
            eval_parsing.announced(
                config, filter(None, [start_source, config.other_mllm, *(rival.source for rival in rows)])
            )
        )
    policies = policies_of(rows, start_source)
    if evaluation:
        total = sum(map(len, opened.values())) * evaluation.passes(config, len(policies))
    else:
        total = sum(
            contest.work_of(len(data), rows, config, len(eval_baselines.fixed_candidates()) * FITTED_ON)
            for data in opened.values()
        )
    runner = Runner(ranks, folder / "unfinished", Progress(total, ranks.world, speaks=ranks.rank == 0))
    if evaluation:
        evaluation.evaluate(opened, policies, load, task_models, config, folder, runner)
    else:
        boxes(opened, to_fit, rows, load, start, task_models, config, folder, runner)
    ranks.barrier()
    runner.close()
    if ranks.world > 1:
        engine.stop()


def own(folder: Path, config: EvalConfig, ranks: Distributed) -> None:
    """Lock a folder, if there is one, for the tables of this evaluation; pictures of the user's have files of their own names."""
    if ranks.rank == 0 and not config.image and folder.is_dir():
        outputs.lock(folder)
        outputs.sweep(folder)


def kept(folder: Path, config: EvalConfig) -> str:
    """What an evaluation that is ended now leaves behind."""
    if not config.image and any((folder / "unfinished").glob("*.json")):
        return f"what was measured is kept in {folder / 'unfinished'}, and the same command goes on from it"
    return f"{'nothing was drawn' if config.image else 'nothing was measured'} yet, and the same command begins anew"


def boxes(
    opened: Mapping[str, Dataset], to_fit: Mapping[str, Dataset], rows: Sequence[rivals.Checkpoint],
    load: Callable[[str], VisionLanguageModel], start: VisionLanguageModel, task_models: Mapping[str, Any], config: EvalConfig,
    folder: Path, runner: Runner,
) -> None:  # fmt: skip
    """The tables of boxes: every benchmark in turn."""
    made: list[eval_detection.Line] = []
    for name, dataset in opened.items():
        examples = readable(dataset, folder, runner.ranks.all_gather, runner.writes)
        training = readable(to_fit[name], folder, runner.ranks.all_gather, runner.writes) if to_fit else []
        made += contest.compare(name, examples, training, rows, load, start, task_models, config, runner, runner.say)
        if runner.writes:
            write(folder, name, examples, made, config, runner.say)
    pages = ", ".join(str(folder / f"{name}.html") for name in opened)
    runner.say(f"\nnumbers: {folder / 'results.json'}; pictures: {pages}")


def evaluation_of(config: EvalConfig, benchmarks: Sequence[str]) -> ModuleType | None:
    """The module that makes the tables of a task or benchmark whose results are not the boxes of one query; None for those.

    It has ``evaluate``, and ``passes``: how often every question is worked on. Raises ConfigError for flags that do not go together.
    """
    readers = [data.DATASETS.get(name.partition(":")[0]) for name in benchmarks]
    in_words = [name for name, reader in zip(benchmarks, readers) if reader and reader.answers == "words"]
    task = task_of(config)
    by_task = (
        eval_zoom_qa
        if task.turns
        else eval_perception
        if task.benchmark == "perception"
        else eval_segmentation
        if config.task == "segment"
        else None
    )
    if config.image or not (in_words or by_task):
        return None
    if task.turns:
        modes.ways(task, config.mode)
    elif in_words and (by_task or len(in_words) < len(benchmarks)):
        raise ConfigError(
            f"--benchmark {' '.join(in_words)} is answered in words: evaluate it apart from boxes and masks."
        )
    if config.task == "segment":
        eval_segmentation.rows_of(config)
    eval_perception.ready(config.task)
    return by_task or eval_vqa


def check_columns(config: EvalConfig, evaluation: ModuleType | None) -> None:
    """Raise ConfigError for a name in --columns that no table of this evaluation can have."""
    if not config.columns:
        return
    known = eval_output.BOX_COLUMNS if evaluation is None else frozenset()
    if evaluation is eval_perception:
        known = {
            *eval_perception.COLUMNS[config.task],
            *(eval_output.BOX_COLUMNS if config.task == "detection" else ()),
        }
    unknown = [name for name in config.columns if name not in known]
    if unknown:
        usual = eval_perception.COLUMNS[config.task] if evaluation is eval_perception else eval_output.COLUMNS[1:]
        there_are = (
            f"there are {', '.join(usual)} and what else results.json has"
            if known
            else "these tables have columns of their own"
        )
        raise ConfigError(f"--columns {' '.join(unknown)}: {there_are}.")


def as_meant(config: EvalConfig) -> EvalConfig:
    """``--mode`` asks for episodes, and so do data sets whose answers are free text: both mean ``--task zoom_qa``.

    Raises ConfigError if only some of the data sets are of that kind and nobody said what is meant.
    """
    names = config.benchmark or config.data
    readers = [data.DATASETS.get(name.partition(":")[0]) for name in names]
    free = [name for name, reader in zip(names, readers) if reader and reader.answers == "text"]
    if config.image or config.task != "sense" or not (config.mode or free):
        return config
    if not config.mode and len(free) < len(names):
        raise ConfigError(
            f"--benchmark {' '.join(free)} is answered in free text: evaluate it apart, or all with --mode."
        )
    return replace(config, task="zoom_qa")


def policies_of(rows: Sequence[rivals.Checkpoint], start: str) -> dict[str, str]:
    """Where the policies of a table are, by title: the start policy, and the checkpoints that are another one."""
    return {"start": start} | {row.label or "trained": row.source for row in rows if row.source != start}


def output_folder(config: EvalConfig) -> Path:
    """Where results go: never into the hub's cache, nor a new folder with the name of a hub id, which would hide its model."""
    checkpoint = Path(config.checkpoint[0])
    beside = len(config.checkpoint) == 1 and checkpoint.is_dir() and not paths.cached(config.checkpoint[0])
    return Path(config.output_dir or (checkpoint / "eval" if beside else "eval"))


def opened_split(name: str, split: str, limit: int, config: EvalConfig) -> Dataset:
    """The first ``limit`` questions of a split (0: all), no picture read yet; ``name:split`` has a split of its own."""
    name, _, own = name.partition(":")
    split = own if own and split == config.split else split
    return data.open_dataset(name, split, config.data_root, limit or None, *config.dataset_options)


def loader(config: EvalConfig, ranks: Distributed, start: str, *others: str) -> Callable[[str], VisionLanguageModel]:
    """``load(source)``: the start policy and ``others``, which are kept, or a checkpoint, kept until another one is wanted."""
    kept: dict[str, VisionLanguageModel] = {}

    def load(source: str) -> VisionLanguageModel:
        if source not in kept:
            for other in set(kept) - {start, *others}:
                del kept[other]
            with ranks.redirect_output() if ranks.world > 1 else nullcontext():  # one loading bar is enough
                kept[source] = VisionLanguageModel.load(
                    source, engine.pick_dtype(config.dtype), config.attention, start
                )
                kept[source].model.to(ranks.device)
        return kept[source]

    return load


def write(
    folder: Path,
    name: str,
    examples: Sequence[Example],
    made: Sequence[eval_detection.Line],
    config: EvalConfig,
    say: Callable[[str], None],
) -> None:
    """The tables of all benchmarks so far; the tables, files and page of the newest one, ``name``."""
    main_rows = [line for line in made if line.row["budget"] in (0, config.regions)]
    every_budget = [line.row for line in made] if config.budgets else []
    style = eval_output.TableStyle(config.columns, config.digits)
    eval_output.write_results(folder, [line.row for line in main_rows], every_budget, style)
    own = [line for line in main_rows if line.row["benchmark"] == name]
    rows, shown = [line.row for line in own], eval_detection.shown(own)
    eval_output.write_coco(folder, f"truth-{name}", eval_output.truth(examples))
    for label, (_, outcomes) in shown.items():
        eval_output.write_coco(folder, f"predictions-{name}-{label}", eval_output.predictions(examples, outcomes))
    curve_rows = [row for row in every_budget if row["benchmark"] == name]
    for title, cells, columns in eval_output.titled(rows, curve_rows, style.columns):
        say("\n" + log.table(cells, columns, title.replace(name, f"{name} ({config.split})", 1), style.digits))
    curve = draw_curve(curve_rows, f"{name}, {len(examples)} questions") if curve_rows else None
    if curve:
        outputs.leave_picture(folder / f"budgets-{name}.png", curve)
    titles = {label: label for row, label in zip(rows, shown) if row["method"] in ("cot", "active")}
    summary = [f"checkpoint: {source}" for source in config.checkpoint] + [f"data: {name} ({config.split})"]
    pairs = eval_detection.gallery(shown, titles, task_of(config))
    write_page(
        folder / f"{name}.html",
        f"activeo3: {name}",
        summary,
        (),
        *eval_output.first_table(rows, style.columns),
        pairs,
        curve,
    )


if __name__ == "__main__":
    with processes.one_sentence(ConfigError, DataError, ModelError):
        main(CONFIG)
