"""What an evaluation compares, settled before any model is loaded: checkpoints, their start policy, data sets, and the
benchmark of each.

A checkpoint folder of a run says in its ``activeo3.json`` what it was trained from and for, an adapter in its
``adapter_config.json`` what it belongs to; any other model folder is its own start.
"""

import os
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Callable, Iterable, NamedTuple, Sequence

import torch

from activeo3 import data, eval_demo, eval_output, eval_page, log, lora, model_hub, paths
from activeo3.checkpoint_files import identity, run_state
from activeo3.cli import is_code
from activeo3.config import TASK_ROLE, Config, ConfigError, TrainConfig
from activeo3.data_loader import Gather, one_rank, readable
from activeo3.data_set import HUB, Dataset, label
from activeo3.eval_config import ABSENT, EvalConfig
from activeo3.eval_core import Benchmark, Models, evaluate
from activeo3.eval_detection import DetectionBenchmark
from activeo3.eval_perception import PerceptionBenchmark
from activeo3.eval_reward import RewardBenchmark
from activeo3.eval_runner import Model, Runner, digest
from activeo3.eval_segmentation import SegmentationBenchmark
from activeo3.eval_vqa import OF_DATA, VQABenchmark
from activeo3.eval_zoom_qa import ZoomQABenchmark
from activeo3.families import FAMILIES, check_notes
from activeo3.model import VisionLanguageModel, family_of, trained_here
from activeo3.monitor import lost
from activeo3.tasks import check_queries, prepared, task_of
from activeo3.types import Example

BENCHMARKS: dict[str, type[Benchmark]] = {
    **dict.fromkeys(("sense", *TASK_ROLE), DetectionBenchmark),
    **dict.fromkeys(("grounding", "counting", "ocr", "detection"), PerceptionBenchmark),
    "segment": SegmentationBenchmark,
    "zoom_qa": ZoomQABenchmark,
    "vqa": VQABenchmark,
}
"""The benchmark of each task; "vqa" are questions with one right answer, for any policy that says where to look."""
OWN: dict[str, type[Benchmark]] = dict(OF_DATA)
"""Data sets that have metrics of their own."""


class Checkpoint(NamedTuple):
    """A checkpoint in the table: its ``label`` is empty if it is the only one; ``task`` is what its run was for ("":
    not known)."""

    source: str
    label: str
    task: str


# ---------------------------------------------------------------------- checkpoints


def compared(checkpoints: Sequence[str], start: str = "") -> tuple[list[Checkpoint], str]:
    """(all checkpoints, the start policy that they share); ``start`` names it, or they must agree.

    A start policy is looked for as its run names it, and beside the run. One folder has one spelling in what is
    returned.

    Raises ConfigError if a checkpoint is named twice, says nothing of its run, or was trained from another
    start policy than the others: then no row could be compared with the next.
    """
    *sources, start = paths.unified([*checkpoints, start])
    twice = [
        f"{source} twice, also as {name}" if source != name else f"{source} twice"
        for place, (source, name) in enumerate(zip(sources, checkpoints))
        if source in sources[:place]
    ]
    if twice:
        raise ConfigError(f"--checkpoint names {twice[0]}; name every checkpoint once.")
    runs = {source: _run_config(source) for source in sources}
    own = [
        paths.beside(Path(source), config.get("model") or lora.base_of(source, start) or source)
        for source, config in runs.items()
    ]
    starts = paths.unified([*sources, *([start] * len(sources) if start else own)])[len(sources) :]
    different = sorted(set(starts))
    if len(different) > 1:
        raise ConfigError(
            f"--checkpoint: these were trained from different start policies, {' and '.join(different)}; "
            f"evaluate them apart, or name one for all with --start."
        )
    names = labels(sources) if len(sources) > 1 else [""]
    return [Checkpoint(s, name, runs[s].get("task", "")) for s, name in zip(sources, names)], different[0]


def _run_config(source: str) -> dict[str, Any]:
    """The config of the training run that left a checkpoint; nothing for any other model."""
    checkpoint = Path(source)
    return run_state(checkpoint)["config"] if (checkpoint / "activeo3.json").is_file() else {}


def labels(sources: Sequence[str]) -> list[str]:
    """Short names for checkpoints, all different: the folder of the run, and what else they differ in.

    >>> labels(["runs/seed-0/checkpoint-160", "runs/seed-1/checkpoint-160"])
    ['seed-0', 'seed-1']
    >>> labels(["runs/a/checkpoint-40", "runs/a/checkpoint-80", "data/tiny"])
    ['a-40', 'a-80', 'tiny']
    >>> labels(["x/a/checkpoint-40", "y/a/checkpoint-40"])
    ['x-a-40', 'y-a-40']
    """
    parts_of = [Path(paths.cached(source) or os.path.normpath(source)).parts for source in sources]
    for deep in range(max(map(len, parts_of)) + 1):
        names = [_name(parts, deep) for parts in parts_of]
        if len(set(names)) == len(names):
            return names
    return ["-".join(map(str, pair)) for pair in enumerate(names, start=1)]


def _name(parts: Sequence[str], deep: int) -> str:
    """A path in one word: its run, from the first depth on also its step, then one parent more each."""
    step = parts[-1].removeprefix("checkpoint-")
    if step == parts[-1] or len(parts) == 1:
        return "-".join(parts[-1 - max(0, deep - 1) :])
    run = list(parts[max(0, len(parts) - 2 - max(0, deep - 1)) : -1])
    return "-".join([*run, step] if deep else run)


# ---------------------------------------------------------------------- tasks and benchmarks


def settled(config: EvalConfig, checkpoints: Sequence[Checkpoint]) -> EvalConfig:
    """The config with its task: --task, or what the data sets are made for, or what the checkpoints were trained for.

    Raises ConfigError if these are several.
    """
    if config.image:
        return eval_demo.as_trained(config, checkpoints[0].task)
    names = config.benchmark or config.data
    asked = {name: task_of_data(name) for name in names}
    if config.mode and config.task == "sense":
        config = replace(config, task="zoom_qa")
    if is_code(config.task):
        return config
    if own := [one for one in checkpoints if is_code(one.task)]:
        raise ConfigError(f"{own[0].source} was trained for a task of yours: name it, --task {own[0].task}.")
    if config.task != "sense":
        fitting = {"", config.task} | ({"vqa"} if config.task == "zoom_qa" else set())
        for name, task in asked.items():
            if task not in fitting:
                raise ConfigError(f"--benchmark {name} is made for another task: leave out --task {config.task}.")
        return config
    if len(set(asked.values())) > 1:
        shown = ", ".join(f"{name} ({task or 'boxes'})" for name, task in asked.items())
        raise ConfigError(f"--benchmark names data sets of several tasks, {shown}: evaluate them apart.")
    trained = {one.task: one.source for one in checkpoints if one.task not in ("", "sense", *TASK_ROLE)}
    wanted = {task for task in asked.values() if task} or set(trained)
    if wanted != {"vqa"}:
        for task, source in trained.items():
            if {task} != wanted:
                other = next(iter(wanted - {task}))
                raise ConfigError(
                    f"{source} was trained for {task}, and this evaluation is of {other}: name one --task to evaluate "
                    "all the same."
                )
        return replace(config, task=next(iter(wanted), "sense"))
    return config


def task_of_data(name: str) -> str:
    """The task that a data set is made for; "vqa" if its questions have one right answer, "" if it has boxes for
    several tasks."""
    known = data.DATASETS.get(name.partition(":")[0])
    return {"boxes": "", "words": "vqa", "text": "zoom_qa"}.get(known.answers, known.answers) if known else ""


def benchmark_of(name: str, config: EvalConfig, rewards: TrainConfig | None = None) -> Benchmark:
    """The benchmark of a data set: one of its own, or that of the task."""
    if is_code(config.task):
        return RewardBenchmark(label(name), config, rewards)
    task = "vqa" if config.task == "sense" and task_of_data(name) == "vqa" else config.task
    kind = OWN.get(name.partition(":")[0], BENCHMARKS[task]) if task == "vqa" or task == "sense" else BENCHMARKS[task]
    return kind(label(name), config, rewards)


def opened(name: str, split: str, limit: int, config: EvalConfig) -> Dataset:
    """The first ``limit`` questions of a split (0: all), no image read yet; ``name:split`` has a split of its own."""
    name, own = (name, "") if name.startswith(HUB) else name.split(":", 1) if ":" in name else (name, "")
    split = own if own and split == config.split else split
    dataset = data.open_dataset(name, split, config.data_root, limit or None, **config.dataset_options)
    if not task_of_data(name):
        check_queries(dataset, task_of(config))
    return (
        dataset if config.task == "zoom_qa" else prepared(dataset, task_of(config))
    )  # episodes may ask without evidence


# ---------------------------------------------------------------------- models


def load_models(
    config: EvalConfig,
    checkpoints: Sequence[Checkpoint],
    start: str,
    dtype: torch.dtype,
    device: torch.device,
    quiet: Callable[[], Any],
) -> Models:
    """The start policy and the task models; checkpoints are loaded one after the other, when their turn comes.

    ``quiet()`` is a context in which loading bars are not shown. Raises ModelError for a checkpoint that is no model.
    """
    load = loader(start, config.other_mllm, config.attention, dtype, device, quiet)
    load(start)
    for one in checkpoints:
        check_notes(
            family_of(one.source, FAMILIES, start), config
        )  # it is named now if it is no model, not when its turn comes
    mllm = load(config.other_mllm or start)
    task_models = {
        name: mllm if name == "mllm" else task_of(config).load_task_model(name, device) for name in config.task_model
    }
    for name, task_model in task_models.items():
        if name != "mllm" and not task_model.identity and config.task_checkpoint:
            task_model.identity = identity(config.task_checkpoint)
    load(checkpoints[0].source)  # damaged weights are named before the work, too
    titles = {one.source: "start" if one.source == start else one.label or "trained" for one in checkpoints}
    return Models(
        {"start": start} | {title: source for source, title in titles.items()},
        {config.expert_name(name): task_model for name, task_model in task_models.items()},
        load,
        list(titles.values()),
        {titles[one.source]: one.task for one in checkpoints},
    )


def loader(
    start: str,
    other: str,
    attention: str,
    dtype: torch.dtype,
    device: torch.device,
    quiet: Callable[[], Any] = nullcontext,
) -> Callable[[str], VisionLanguageModel]:
    """``load(source)``: the start policy and the ``other`` model, which are kept, or a checkpoint, kept until another
    one is wanted."""
    kept: dict[str, VisionLanguageModel] = {}

    def load(source: str) -> VisionLanguageModel:
        if source not in kept:
            for unwanted in set(kept) - {start, other}:
                del kept[unwanted]
            model_hub.download(source)
            with quiet():
                model = kept[source] = VisionLanguageModel.load(source, dtype, attention, start)
            model.model.to(device)
            base = lora.base_of(source, start)
            commit = str(getattr(model.model.config, "_commit_hash", ""))
            model.identity = digest(identity(source), identity(base) if base else "", commit, f"{dtype} {device.type}")
        return kept[source]

    return load


def announced(config: EvalConfig, sources: Iterable[str]) -> str:
    """How the answers of the models of these folders or hub ids are read, and why, in a line."""
    if config.parser in ("strict", "lenient"):
        return f"answers are read by the {config.parser} reader (--parser)"
    kinds: dict[bool, list[str]] = {}
    for source in dict.fromkeys(sources):
        kinds.setdefault(trained_here(source), []).append(source)
    told = {
        True: "the strict reader: trained here",
        False: "the lenient reader: not trained here, no activeo3.json (--parser)",
    }
    return "\n".join(f"answers of {', '.join(of_kind)} are read by {told[ours]}" for ours, of_kind in kinds.items())


# ---------------------------------------------------------------------- the end of a training run


def held_out(config: TrainConfig, gather: Gather = one_rank, speaks: bool = True) -> list[Example]:
    """The images of the table at the end of a run: the first ones of the held-out split, the same on all ranks.

    ``gather`` and ``speaks`` as in ``data_loader.readable``.
    """
    if not config.eval_examples:
        return []
    at_the_end(config)  # what the table needs is named before the training
    options = replace(config, absent=max(config.absent, ABSENT)).dataset_options
    dataset = data.open_dataset(config.data, config.eval_split, config.data_root, config.eval_examples, **options)
    check_queries(dataset, task_of(config))
    return readable(prepared(dataset, task_of(config)), Path(config.output_dir), gather, speaks)


def at_the_end(config: TrainConfig) -> Benchmark:
    """The benchmark of the table at the end of a run."""
    shared = {one.name: getattr(config, one.name) for one in fields(Config)}
    methods = {
        "sense": ("direct", "random", "grid", "cot", "active", "oracle-regions"),
        **dict.fromkeys(TASK_ROLE, ("direct" if config.crop_shape == "square" else "direct-native", "oracle-regions")),
    }.get(config.task, ())
    flags = {
        "checkpoint": (config.model,),
        "methods": methods,
        "split": config.eval_split,
        "task_model": (config.task_model,),
    }
    kind = RewardBenchmark if is_code(config.task) else BENCHMARKS[config.task]
    return kind("+".join(map(label, config.data)), EvalConfig(**shared, **flags), config)


def compare_start_and_trained(
    policy: VisionLanguageModel,
    start: VisionLanguageModel,
    task_model: Model,
    examples: Sequence[Example],
    config: TrainConfig,
    runner: Runner,
) -> tuple[eval_output.Finished, list[Example]]:
    """The start policy and the trained one on held-out images: the rows, and the examples as they were prepared.

    All ranks come here and share the work. Where the answer is the result, the two policies stand in the place of the
    task model: on the whole image, and on the best crops.
    """
    benchmark = at_the_end(config)
    runner.say(f"evaluating on {len(examples)} held-out images ({benchmark.name}, {config.eval_split})")
    named = (
        {"start": start, "trained": policy}
        if config.task in TASK_ROLE
        else {config.expert_name(config.task_model): task_model}
    )
    models = Models({"start": start, "trained": policy}, named)
    examples = benchmark.prepare(examples, models)
    rows = evaluate(benchmark, examples, models, runner)
    return eval_output.Finished(benchmark, config.eval_split, rows), examples


def write_end(
    one: eval_output.Finished, examples: Sequence[Example], config: TrainConfig, say: Callable[[str], None]
) -> None:
    """Leave the table of a run's end as files and a page, and ``say`` it; on one rank."""
    folder = Path(config.output_dir)
    steps = log.read_rows(folder / "metrics.jsonl")
    eval_output.write_results(folder, [one])
    eval_output.write_records(folder, one, examples)
    eval_page.end_run_page(folder, one, examples, lost(steps))
    eval_output.say_tables(one, say)
    say(log.where(folder))
