"""A run that can be cut off at any moment: checkpoints that are whole or not there, and going on from them.

A checkpoint is a model folder for plain transformers, with DeepSpeed's state and every random generator's
beside it, and the digests of all its files. DeepSpeed itself stays behind ``Zero3Model``.
"""

import dataclasses
import errno
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from activeo3 import (
    checkpoint_files,
    data_images,
    engine,
    lora,
    model_card,
    model_hub,
    outputs,
    paths,
    processes,
    trackers,
    user_code,
)
from activeo3.checkpoint_files import STATE, complete
from activeo3.checkpoint_room import check_room, not_written
from activeo3.cli import fields_of, is_code
from activeo3.config import ConfigError, TrainConfig
from activeo3.engine import Distributed, Zero3Model
from activeo3.log import counted
from activeo3.model import ModelError, VisionLanguageModel
from activeo3.paths import Place
from activeo3.task_models import TaskModel
from activeo3.tasks import Task

_STEP = re.compile(r"checkpoint-(\d+)")
KEPT = 0.98
"""Merged weights that hold less of the adapters' corrections are worth a word."""


def open_run(config: TrainConfig) -> tuple[Distributed, dict[str, Any] | None]:
    """Join the process group and take the run's folder: the ranks, and the state to go on from as ``resumable``
    says."""
    trackers.check(config)
    data_images.limit_pixels(config.max_image_pixels)
    processes.tell(kept=lambda: kept(config))
    ranks = engine.start(Path(config.output_dir), config.group_timeout)
    outputs.claim(Path(config.output_dir), *outputs.OF_A_RUN)
    return ranks, resumable(config, ranks)


def load_models(
    ranks: Distributed, task: Task, config: TrainConfig
) -> tuple[Zero3Model, Zero3Model, TaskModel | Zero3Model]:
    """The policy, the frozen reference and the frozen task model of a run."""
    policy = load_policy(ranks, config)
    reference = load_reference(policy, config)
    return policy, reference, load_task_model(task, reference, config)


def load_policy(ranks: Distributed, config: TrainConfig) -> Zero3Model:
    """The start policy under ZeRO-3, to be trained."""
    return _load(ranks, config, config.model, learns=True)


def load_frozen(ranks: Distributed, config: TrainConfig, source: str) -> Zero3Model:
    """A frozen model under ZeRO-3."""
    return _load(ranks, config, source, learns=False)


def load_reference(policy: Zero3Model, config: TrainConfig) -> Zero3Model:
    """The frozen start policy: with adapters the policy without them, else a model of its own."""
    return engine.WithoutAdapters(policy) if config.lora else load_frozen(policy.ranks, config, config.model)


def load_task_model(task: Task, reference: Zero3Model, config: TrainConfig) -> TaskModel | Zero3Model:
    """The frozen model that works on the crops: by default the reference itself, in its second role."""
    if not task.crops:
        return TaskModel()
    if config.task_model == "mllm":
        return load_frozen(reference.ranks, config, config.other_mllm) if config.other_mllm else reference
    if config.task_checkpoint and config.task_model != "oracle":
        model_hub.download(config.task_checkpoint)
    with reference.ranks.redirect_output():
        return task.load_task_model(config.task_model, reference.ranks.device)


def _load(ranks: Distributed, config: TrainConfig, source: str, learns: bool) -> Zero3Model:
    model_hub.download(source)
    with ranks.redirect_output():
        vlm = VisionLanguageModel.load(source, engine.pick_dtype(config.dtype), config.attention)
    return Zero3Model(vlm, ranks, config, learns)


def begin(policy: Zero3Model, saved: dict[str, Any] | None, config: TrainConfig) -> int:
    """Seed or restore the run and return its next step, from 1. Raises ConfigError without room for a checkpoint."""
    checkpoint_files.seed_everything(config.seed, policy.ranks.rank)
    if saved:
        restore(policy, saved)
    first = saved["step"] + 1 if saved else 1
    if first <= config.steps:
        check_room(policy, config, first)
    return first


@contextmanager
def naming_last_good(config: TrainConfig, step: int, updates: int) -> Iterator[None]:
    """Add to a ModelError of the block in which ``step`` it was raised, and the last checkpoint from before update
    ``updates``.

    A learning rate that is too high makes weights of 1e18 in one update: finite numbers, whose logits are not.
    """
    try:
        yield
    except ModelError as error:
        earlier = [
            path for path in complete(Path(config.output_dir)) if int(path.name.removeprefix("checkpoint-")) < updates
        ]
        last = f"{earlier[-1]} is the last good one" if earlier else f"there is none, only {config.model}"
        raise ModelError(
            f"step {step}: {str(error).rstrip('.')}: {last}. Begin from it with a lower --lr in a new --output_dir."
        ) from None


def check_and_save(
    policy: Zero3Model,
    config: TrainConfig,
    step: int,
    say: Callable[[str], None],
    check: Callable[[VisionLanguageModel], None],
) -> None:
    """``save``, after ``check`` of the whole policy: raises ModelError on all ranks if one of them finds it
    unusable."""
    with naming_last_good(config, step, step), policy.gathered() as vlm, processes.together(policy.ranks.all_gather):
        check(vlm)
    with processes.held("the checkpoint that is being written"):
        say(f"step {step}: checkpoint {save(policy, config, step, say)}")


def save(sharded: Zero3Model, config: TrainConfig, step: int, say: Callable[[str], None] = print) -> Path:
    """Write ``checkpoint-<step>``: a model folder for plain transformers, and all that a resumed run needs.

    It is built under another name, put on the disk, and renamed when complete, so a checkpoint that can be seen is
    whole, also after a power cut. ``say`` is told of adapters that have lost something in merged weights.

    Raises ConfigError if it cannot be written: earlier checkpoints stay as they are.
    """
    ranks, folder = sharded.ranks, Path(config.output_dir)
    target, building = folder / f"checkpoint-{step}", folder / f"building-checkpoint-{step}"
    try:
        if ranks.rank == 0:
            sweep(folder)
            building.mkdir()
            (building / STATE).mkdir()
        ranks.barrier()
        share = _write(sharded, config, step, building)
        if ranks.rank == 0:
            # It was removed, and what was written then made it anew.
            if missing := checkpoint_files.missing_part(building, ranks.world, config.save_optimizer):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), missing)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(building, target)
            outputs.sync(folder)
    except Exception as error:  # each library raises its own when it cannot write
        refused = not_written(sharded, config, building, target, error)
        shutil.rmtree(building, ignore_errors=True)  # what is half written takes the room that is missing
        raise (refused or error) from None
    if ranks.rank == 0:
        _prune(folder, config.keep)
        if share < KEPT:
            say(
                f"{target}: its weights hold {share:.0%} of what the adapters have learned, {sharded.vlm.model.dtype} "
                f"rounds the rest away; {target / 'adapters'} has all of it"
            )
    ranks.barrier()
    return target


def _write(sharded: Zero3Model, config: TrainConfig, step: int, building: Path) -> float:
    """Write all parts of a checkpoint; the share of the adapters' corrections that the weights hold (1 without)."""
    ranks, share = sharded.ranks, 1.0
    with ranks.redirect_output():
        if config.save_optimizer:
            sharded.save(building / STATE)
        with sharded.gathered() as whole:
            if ranks.rank == 0 and config.lora:
                weights, share = lora.merged(whole.model)
                whole.save(building, weights)
                lora.save(whole.model, config.model, building / "adapters")
            elif ranks.rank == 0:
                whole.save(building)
    (building / STATE).mkdir(parents=True, exist_ok=True)  # it was removed: save says so when all is written
    checkpoint_files.save_random_states(building / STATE / f"random-{ranks.rank}.pt")
    ranks.barrier()
    if ranks.rank == 0:
        model_card.write(building, sharded.vlm, config, step)
        checkpoint_files.open_to_readers(building)
        state = {"step": step, "world": ranks.world, "sealed": True, "config": dataclasses.asdict(config)}
        state |= {"files": config.own_files} if config.own_files else {}
        state |= {} if config.save_optimizer else {"optimizer": False}
        (building / "activeo3.json").write_text(json.dumps(state, indent=1))
        if (rows := building.parent / "metrics.jsonl").is_file():
            outputs.sync(rows)  # its rows up to this step belong to the checkpoint
    ranks.barrier()
    checkpoint_files.seal(building, ranks.map, ranks.rank == 0)
    return share


def sweep(folder: Path) -> None:
    """Remove what a run left that was killed while it wrote or deleted a checkpoint, a file or samples."""
    unfinished = [
        path for path in folder.glob("building-checkpoint-*") if _STEP.fullmatch(path.name.removeprefix("building-"))
    ]
    with outputs.enough_room(folder):
        outputs.sweep(folder)
        for left in [*unfinished, *folder.glob("samples/.step-*.tmp")]:
            shutil.rmtree(left)


def _prune(folder: Path, keep: int) -> None:
    """Remove all complete checkpoints but the newest ``keep``, the one that ``best`` points to (eval_training.py), and
    those that are being evaluated just now; 0: none."""
    best = (folder / "best").resolve()
    for old in complete(folder)[:-keep] if keep else []:
        if old.resolve() == best or outputs.in_use(old):
            continue
        with outputs.enough_room(old):
            shutil.rmtree(old.rename(folder / f"building-{old.name}"))  # half a deletion is no checkpoint


def resumable(config: TrainConfig, ranks: Distributed, say: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The state of the checkpoint of ``output_dir`` to go on from, or None for a fresh start; a collective.

    ``say`` is told, on one rank, if it is not the newest, or cannot be checked. Raises ConfigError when the checkpoint
    is damaged, or its run had another world size or other numbers: it would not be the same run.
    """
    folder = Path(config.output_dir)
    if ranks.rank == 0:
        sweep(folder)
    found = complete(folder)
    _refuse_foreign(config, {path.name for path in found})
    if not found:
        return None
    path, damaged = _newest_whole(found, config, ranks)
    if ranks.rank == 0:
        _set_aside(damaged, path, say)
        _prune(folder, config.keep)  # a run that was killed between a new checkpoint and the removal of an old one
        if not checkpoint_files.is_sealed(path):
            say(f"activeo3: {path} was made by an older version and has no digests: it is used unchecked")
    return checkpoint_files.run_state(path) | {"path": path}


def _newest_whole(found: Sequence[Path], config: TrainConfig, ranks: Distributed) -> tuple[Path, list[Path]]:
    """The newest whole checkpoint, and the damaged ones that are newer. Raises ConfigError if there are any and it was
    not asked for."""
    damaged: dict[Path, str] = {}
    for path in reversed(found):
        if not (damage := _damage(path, config, ranks)):
            break
        damaged[path] = damage
    whole = [path for path in found if path not in damaged]
    if damaged and not (whole and config.resume_from == "earlier"):
        advice = (
            "go on from {} with --resume_from earlier"
            if whole
            else "no earlier one is whole, start in another --output_dir"
        )
        raise ConfigError(f"{damaged[found[-1]]}; {advice.format(path)}.")
    return path, list(damaged)


def _damage(path: Path, config: TrainConfig, ranks: Distributed) -> str:
    """What is wrong with a checkpoint, as the beginning of a sentence that names a file; "" if nothing is.

    Raises ConfigError for one of another run, before gigabytes are read.
    """
    try:
        state = checkpoint_files.run_state(path)
    except ConfigError as error:
        return str(error).removesuffix(".")
    if str(state["step"]) != path.name.removeprefix("checkpoint-"):
        return f"{path / 'activeo3.json'} is of step {state['step']}: it is damaged, or of another folder"
    if not state["config"]:  # a start policy has none, a run has
        return f"{path / 'activeo3.json'} does not say the 'config' of its run: it is damaged"
    sealed = state.get("sealed") or checkpoint_files.is_sealed(path)
    if sealed and (damage := checkpoint_files.damage(path, wanted="activeo3.json".__eq__)):
        return damage
    _refuse_another_run(path, state, config, ranks)
    if sealed and (damage := checkpoint_files.damage(path, ranks.map, checkpoint_files.CARD.__ne__)):
        return damage
    missing = checkpoint_files.missing_part(path, ranks.world)
    return f"{missing} is missing" if missing else ""


def _refuse_another_run(path: Path, state: dict[str, Any], config: TrainConfig, ranks: Distributed) -> None:
    """Raise ConfigError if a checkpoint was made by another number of processes, with other numbers, or without its
    optimizer."""
    if not state.get("optimizer", True):
        raise ConfigError(
            f"{path} was saved without its optimizer (--save_optimizer false), so no run goes on from it; start "
            f"another one from it, --model {path}, in another --output_dir."
        )
    if state["world"] != ranks.world:
        raise ConfigError(
            f"{path} was made by {counted(state['world'], 'process', 'processes')}, and there are now "
            f"{ranks.world}; start as many, or choose another --output_dir."
        )
    own_files = config.own_files
    different = differences(config, state["config"]) + [
        f"the file of {flag} has changed"
        for flag, digest in state.get("files", {}).items()
        if own_files.get(flag, digest) != digest
    ]
    if different:
        raise ConfigError(f"{path} belongs to another run: {'; '.join(different)}. Choose another --output_dir.")


FREE = set(
    "preset output_dir data_root save_every keep save_on_exit samples_every eval_examples eval_split ds_config "
    "max_skipped report_to eval_every best_metric group_timeout save_optimizer "
    "max_image_pixels task_batch steps recompute scoring resume_from".split()
)
"""Fields that may change when a run is continued: where things lie and how much is kept or shown."""


def differences(config: TrainConfig, stored: dict[str, Any]) -> list[str]:
    """Sentences for the fields that decide the result and differ from an earlier run's."""
    mine = json.loads(json.dumps(dataclasses.asdict(config)))  # as the other's: with lists for tuples
    found = []
    for field in dataclasses.fields(config):
        now, then = mine[field.name], stored.get(field.name)
        same = now == then or field.type is Place and _same_place(now, then, config) or _same_code(now, then, config)
        if field.name not in FREE and not same:
            found.append(f"{fields_of(type(config))[field.name].flag} was {then!r} and is now {now!r}")
    return found


def _same_place(now: Any, then: Any, config: TrainConfig) -> bool:
    """Whether two spellings name one place; an earlier one may have been seen from the run's folder."""
    return isinstance(then, str) and paths.same(now, paths.beside(Path(config.output_dir), then))


def _same_code(now: Any, then: Any, config: TrainConfig) -> bool:
    """Whether two values name the same code of the user's (FILE.py:NAME), or lists of it, with files spelled in two
    ways."""
    if isinstance(now, list):
        pairs = isinstance(then, list) and len(now) == len(then) and list(zip(now, then))
        return bool(pairs) and all(_same_code(*pair, config) for pair in pairs)
    if not (is_code(now) and is_code(then)):
        return False
    (path, name), (other, earlier) = user_code.parts_of(now), user_code.parts_of(then)
    return name == earlier and _same_place(str(path), str(other), config)


def _set_aside(damaged: Sequence[Path], used: Path, say: Callable[[str], None]) -> None:
    """Rename checkpoints that are newer than the one that is used, so that they are neither taken for the newest nor
    kept in its place."""
    for path in damaged:
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        say(f"activeo3: going on from {used}; damaged and now called damaged-...: {names}")


def _refuse_foreign(config: TrainConfig, complete: set[str]) -> None:
    """Raise ConfigError if a checkpoint would take the place of a folder that no run of ours left."""
    for path in Path(config.output_dir).glob("checkpoint-*"):
        match = _STEP.fullmatch(path.name)
        step = int(match.group(1)) if match else 0
        saved = (
            step == config.steps or 0 < step < config.steps and (config.save_on_exit or step % config.save_every == 0)
        )
        if saved and path.name not in complete:
            raise ConfigError(
                f"{path} is no checkpoint of activeo3 and would be replaced; move it, or choose another --output_dir."
            )


def kept(config: TrainConfig) -> str:
    """What a run that is ended now leaves behind."""
    found = complete(Path(config.output_dir))
    return (
        f"{found[-1]} is kept, and the same command goes on from it"
        if found
        else "nothing was saved yet, and the same command begins anew"
    )


def restore(sharded: Zero3Model, state: dict[str, Any]) -> None:
    """Put weights, optimizer and every random generator back to where the checkpoint was made; nothing in it is run.

    Raises ConfigError when parts of the checkpoint are damaged.
    """
    with sharded.ranks.redirect_output():
        sharded.load(checkpoint_files.state_of(state["path"]))
    random_states = checkpoint_files.state_of(state["path"]) / f"random-{sharded.ranks.rank}.pt"
    checkpoint_files.restore_random_states(random_states)
