"""Put a checkpoint beside every floor and ceiling, in one table; or let it look at a picture of yours.

    python evaluate.py --checkpoint runs/tiny/checkpoint-160                     # the embedded world
    python evaluate.py --preset paper --checkpoint DIR --benchmark coco --data_root FOLDER --split val
    python evaluate.py --checkpoint DIR --image photo.jpg --find "red star"      # draws look.png
    python evaluate.py --help
"""

import sys
from pathlib import Path

import numpy as np
import torch

from activeo3 import checkpoints, datasets, engine, files, measures, pictures, report, results, suites
from activeo3.config import ConfigError, EvalConfig, TrainConfig, writable_folder
from activeo3.files import DataError, Dataset
from activeo3.models import ModelError, VisionLanguageModel
from activeo3.page import write_page
from activeo3.sampler import look
from activeo3.schema import Example, Sampling
from activeo3.stream import readable
from activeo3.taskmodels import act, separate
from activeo3.tasks import Task, posed, task_of

FITTED_ON = 40  # training pictures that the fixed regions are chosen on


def main(config: EvalConfig) -> None:
    """Load both policies, run every method on every benchmark, print and write the tables."""
    engine.prepare()
    folder, task = output_folder(config), task_of(config)
    measures.ready(config.task)
    benchmarks = config.benchmark or config.data
    # Before the models, so that a wrong path is named at once; pictures are read when everything else is there.
    opened = {} if config.image else {name: opened_split(name, config.split, config.limit, config) for name in benchmarks}
    to_fit = {name: opened_split(name, "train", FITTED_ON, config) for name in opened if "fixed" in config.methods and not task.measured}
    picture = own_picture(config) if config.image else None
    actor, start = policies(config)
    experts = {name: start if name == "mllm" else separate(name, config, start.model.device) for name in config.task_model}
    writable_folder(folder)  # before the work whose results go there
    if picture:
        return look_once(picture, actor, next(iter(experts.values())), config, folder)
    if task.measured:
        return at_once(task, actor, start, opened, config, folder)
    rows = []
    for name, dataset in opened.items():
        examples = readable(dataset)
        training = readable(to_fit[name]) if to_fit else []
        found, shown = suites.run(
            name, config.methods, examples, actor, start, config, training, config.resamples, experts=experts, black=config.black
        )
        rows += found
        results.write_results(folder, rows)
        results.write_coco(folder, f"truth-{name}", results.truth(examples))
        for label, (_, outcomes) in shown.items():
            results.write_coco(folder, f"predictions-{name}-{label}", results.predictions(examples, outcomes))
        table = results.first_table(found)
        print(report.table(*table, f"{name} ({config.split}), {len(examples)} questions"))
        print(report.table(*results.second_table(found), "sensing apart from task"))
        titles = {label: label for row, label in zip(found, shown) if row["method"] in ("cot", "active")}
        pairs = suites.gallery(shown, titles, TrainConfig().weights)
        summary = [f"checkpoint: {config.checkpoint}", f"data: {name} ({config.split})"]
        write_page(folder / f"{name}.html", f"activeo3: {name}", summary, (), *table, pairs)
    print(f"numbers: {folder / 'results.json'}; pictures: {', '.join(str(folder / f'{name}.html') for name in opened)}")


def at_once(
    task: Task, actor: VisionLanguageModel, start: VisionLanguageModel, opened: dict[str, Dataset], config: EvalConfig, folder: Path
) -> None:
    """A task whose answers are the results: start policy and checkpoint in the task's own table."""
    policies, rows = {"start": start, "trained": actor} if actor is not start else {"start": start}, []
    for name, dataset in opened.items():
        examples = readable(posed(dataset, task))
        found, _ = measures.compare(config.task, task, policies, name, examples, config, suites.alone, config.resamples)
        rows += found
        results.write_results(folder, rows)
        print(report.table(*results.first_table(found), f"{name}, {config.task}, {len(examples)} questions"))
    print(f"numbers: {folder / 'results.json'}")


def output_folder(config: EvalConfig) -> Path:
    """Where results go: never a new folder with the name of a hub id, which would then hide the hub's model."""
    checkpoint = Path(config.checkpoint)
    return Path(config.output_dir or (checkpoint / "eval" if checkpoint.is_dir() else "eval"))


def opened_split(name: str, split: str, limit: int, config: EvalConfig) -> Dataset:
    """The first ``limit`` questions of a split (0: all), no picture read yet; ``name:split`` has a split of its own."""
    name, _, own = name.partition(":")
    split = own if own and split == config.split else split
    return datasets.open_dataset(name, split, config.data_root, limit or None, config.tile, config.tile_overlap)


def policies(config: EvalConfig) -> tuple[VisionLanguageModel, VisionLanguageModel]:
    """(the checkpoint, what it was trained from); one model in two roles if there is no difference."""
    checkpoint = Path(config.checkpoint)
    trained = (checkpoint / "activeo3.json").is_file()
    start = config.start or (checkpoints.run_state(checkpoint)["config"]["model"] if trained else config.checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = {}
    for source in {config.checkpoint: None, start: None}:
        loaded[source] = VisionLanguageModel.load(source, engine.pick_dtype(config.dtype), config.attention)
        loaded[source].model.to(device)
    torch.manual_seed(config.seed)
    return loaded[config.checkpoint], loaded[start]


def own_picture(config: EvalConfig) -> Example:
    """A picture of the user's as an example without ground truth."""
    path = Path(config.image)
    return Example(path.stem, files.read_picture(path), config.find, np.zeros((0, 4)))


def look_once(example: Example, actor: VisionLanguageModel, expert: suites.Expert, config: EvalConfig, folder: Path) -> None:
    """Look, zoom and act on one picture; print the boxes and draw everything into a PNG."""
    _, ((rollout,),) = look(actor, [example], 1, Sampling(0.0, config.max_new_tokens), config)
    (outcome,) = act(expert, [example], [rollout.regions], config)
    print(f"answer:  {report.printable(rollout.text, 400)}")
    for name, boxes in (("region", rollout.regions), (config.find, outcome.boxes_px)):
        for x1, y1, x2, y2 in boxes:
            print(f"{name}:  ({x1:.0f}, {y1:.0f}) to ({x2:.0f}, {y2:.0f})")
    drawn = folder / f"{example.id}.png"
    sheet = [pictures.annotated_picture(example, rollout.regions, outcome), pictures.crops_strip(example, rollout.regions, outcome)]
    pictures.contact_sheet(sheet, columns=1).save(drawn)
    print(f"{len(outcome.boxes_px)} found in {len(rollout.regions)} regions; drawn in {drawn}")


if __name__ == "__main__":
    try:
        main(EvalConfig.from_args())
    except (ConfigError, DataError, ModelError) as error:
        sys.exit(f"activeo3: {error}")
