"""Put checkpoints beside every floor and ceiling, in one table; or let one look at a picture of yours.

    python evaluate.py --checkpoint runs/tiny/checkpoint-160                     # the embedded world
    python evaluate.py --checkpoint runs/a/checkpoint-160 runs/b/checkpoint-160  # two rows of one table
    python evaluate.py --preset paper --checkpoint DIR --benchmark coco --data_root FOLDER --split val
    deepspeed evaluate.py --checkpoint DIR                                       # the same table, on all GPUs
    python evaluate.py --checkpoint DIR --image photo.jpg --find "red star"      # draws photo.jpg.looked.png
    python evaluate.py --checkpoint DIR --image photo.jpg --question "What number is on the traffic light?"
    python evaluate.py --checkpoint DIR --task segment --task_model oracle       # masks, corrected zoom by zoom
    python evaluate.py --checkpoint DIR --mode baseline default strict_zoom      # questions with and without zooms
    python evaluate.py --help

The same command again continues an evaluation that was interrupted.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from activeo3 import cli, processes
from activeo3.data import DATASETS
from activeo3.eval_config import EvalConfig

if __name__ == "__main__":  # flags are read before torch is imported, so a wrong one is answered at once
    CONFIG = cli.read_command_line(EvalConfig, {"data": DATASETS, "benchmark": DATASETS})

from activeo3 import data_images, engine, eval_demo, eval_output, eval_page, eval_setup, outputs, paths
from activeo3.data_loader import readable
from activeo3.engine import Distributed
from activeo3.eval_core import evaluate, total_work
from activeo3.eval_runner import Runner


def main(config: EvalConfig) -> None:
    """Evaluate every method of every checkpoint on every benchmark; print and write the tables."""
    checkpoints, start = eval_setup.compared(config.checkpoint, config.start)
    config = eval_setup.settled(config, checkpoints)
    start = checkpoints[0].source if config.question else start  # one model looks and answers
    data_images.limit_pixels(config.max_image_pixels)
    folder = output_folder(config)
    processes.tell(kept=lambda: kept(folder, config))
    ranks = engine.join(folder)
    own(folder, config, ranks)
    outputs.claim(folder, *(eval_demo.names(config) if config.image else outputs.OF_AN_EVALUATION))
    # Before the models, so that a wrong flag or path is named at once.
    names = () if config.image else config.benchmark or config.data
    benchmarks = [eval_setup.benchmark_of(name, config) for name in names]
    datasets = [eval_setup.opened(name, config.split, config.limit, config) for name in names]
    to_fit = {
        one.name: eval_setup.opened(one.name, "train", one.fitted_on, replace(config, absent=0.0))
        for one in benchmarks if one.fitted_on
    }  # fmt: skip
    image = eval_demo.own_picture(config) if config.image else None
    quiet = ranks.redirect_output if ranks.world > 1 else nullcontext  # one loading bar is enough
    models = eval_setup.load_models(config, checkpoints, start, engine.pick_dtype(config.dtype), ranks.device, quiet)
    own(cli.writable_folder(folder), config, ranks)  # before the work whose results go there
    if image:
        return eval_demo.show(image, models, config, folder) if ranks.rank == 0 else None  # one process shows it
    total = sum(total_work(benchmark, len(dataset), models) for benchmark, dataset in zip(benchmarks, datasets))
    runner, finished = Runner(ranks, folder / "unfinished", total), []
    runner.say(
        eval_setup.announced(config, filter(None, [start, config.other_mllm, *(one.source for one in checkpoints)]))
    )
    for benchmark, dataset in zip(benchmarks, datasets):
        load = dataset.with_image if len(dataset) > benchmark.in_memory else None
        examples = benchmark.prepare(
            readable(dataset.without_images() if load else dataset, folder, ranks.all_gather, runner.writes), models
        )
        if fitted := to_fit.get(benchmark.name):
            benchmark.training = readable(fitted, folder, ranks.all_gather, runner.writes)
        rows = evaluate(benchmark, examples, models, runner, load)
        finished.append(eval_output.Finished(benchmark, dataset.split, rows))
        if runner.writes:
            eval_page.write(folder, finished, examples, load, config.checkpoint, runner.say)
    ranks.barrier()
    runner.close()
    if ranks.world > 1:
        engine.stop()


def own(folder: Path, config: EvalConfig, ranks: Distributed) -> None:
    """Lock a folder, if there is one, for the tables of this evaluation; a user's image has files of its own."""
    if ranks.rank == 0 and not config.image and folder.is_dir():
        outputs.lock(folder)
        outputs.sweep(folder)


def kept(folder: Path, config: EvalConfig) -> str:
    """What an evaluation that is ended now leaves behind."""
    if not config.image and any((folder / "unfinished").glob("*.json")):
        return f"what was measured is kept in {folder / 'unfinished'}, and the same command goes on from it"
    return f"{'nothing was drawn' if config.image else 'nothing was measured'} yet, and the same command begins anew"


def output_folder(config: EvalConfig) -> Path:
    """Where results go: not into the hub's cache, nor a new folder named as a hub id, which would hide its model."""
    checkpoint = Path(config.checkpoint[0])
    beside = len(config.checkpoint) == 1 and checkpoint.is_dir() and not paths.cached(config.checkpoint[0])
    return Path(config.output_dir or (checkpoint / "eval" if beside else "eval"))


if __name__ == "__main__":
    with processes.one_sentence(cli.OneLine):
        main(CONFIG)
