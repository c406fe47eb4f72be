"""A run that can be cut off at any moment: checkpoints that are whole or not there, and going on from them.

A checkpoint is a model folder for plain transformers, with DeepSpeed's state and every random generator's
beside it. DeepSpeed itself stays behind ``Sharded``.
"""

import json
import os
import random
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

from activeo3 import adapters, outputs
from activeo3.config import ConfigError, TrainConfig
from activeo3.engine import Ranks, Sharded
from activeo3.flags import read_object
from activeo3.report import counted


_STEP = re.compile(r"checkpoint-(\d+)")
KEPT = 0.98
"""Merged weights that hold less of the adapters' corrections are worth a word."""


def save(sharded: Sharded, config: TrainConfig, step: int, say: Callable[[str], None] = print) -> Path:
    """Write ``checkpoint-<step>``: a model folder for plain transformers, and all that a resumed run needs.

    It is built under another name and renamed when complete, so a checkpoint that can be seen is whole. ``say`` is told
    of adapters that have lost something in merged weights.

    Raises ConfigError if the disk is full: earlier checkpoints stay as they are.
    """
    ranks, folder = sharded.ranks, Path(config.output_dir)
    target, building = folder / f"checkpoint-{step}", folder / f"building-checkpoint-{step}"
    if ranks.rank == 0:
        _remove_unfinished(folder)
        building.mkdir(parents=True)
    ranks.wait()
    try:
        share = _write(sharded, config, step, building)
    except Exception as error:  # each library raises its own when it cannot write
        shutil.rmtree(building, ignore_errors=True)  # what is half written takes the room that is missing
        missing = _no_room(sharded, folder, f"{target} could not be written", error)
        raise (missing or error) from None
    if ranks.rank == 0:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
        for old in complete(folder)[: -config.keep] if config.keep else []:
            shutil.rmtree(old.rename(folder / f"building-{old.name}"))  # half a deletion is no checkpoint
        if share < KEPT:
            say(f"{target}: its weights hold {share:.0%} of what the adapters have learned, {sharded.vlm.model.dtype} rounds "
                f"the rest away; {target / 'adapters'} has all of it")
    ranks.wait()
    return target


def _write(sharded: Sharded, config: TrainConfig, step: int, building: Path) -> float:
    """Write all parts of a checkpoint; the share of the adapters' corrections that the weights hold (1 without)."""
    ranks, share = sharded.ranks, 1.0
    with ranks.quietly():
        sharded.engine.save_checkpoint(str(building), tag="deepspeed", save_latest=False)
        with sharded.gathered() as whole:
            if ranks.rank == 0 and config.lora:
                weights, share = adapters.merged(whole.model)
                whole.save(building, weights)
                adapters.save(whole.model, config.model, building / "adapters")
            elif ranks.rank == 0:
                whole.save(building)
    torch.save(_random_state(), building / f"random-{ranks.rank}.pt")
    ranks.wait()
    if ranks.rank == 0:
        state = {"step": step, "world": ranks.world, "config": asdict(config)}
        (building / "activeo3.json").write_text(json.dumps(state, indent=1))
    return share


def _remove_unfinished(folder: Path) -> None:
    """Remove what a run left that was killed while it wrote or deleted a checkpoint."""
    for left in folder.glob("building-checkpoint-*"):
        if _STEP.fullmatch(left.name.removeprefix("building-")):
            shutil.rmtree(left)


def bytes_of(sharded: Sharded) -> int:
    """How large a checkpoint is, in bytes, without its small files.

    The weights, the optimizer's float32 copy and two moments of each parameter that learns, and the shards of the frozen ones.
    """
    vlm, each = sharded.vlm, sharded.vlm.model.dtype.itemsize
    return vlm.parameters * each + vlm.learning * 12 + (vlm.parameters - vlm.learning) * each


def check_room(sharded: Sharded, config: TrainConfig) -> None:
    """Raise ConfigError, before the work, if there is no room for even one checkpoint in ``--output_dir``."""
    folder = Path(config.output_dir)
    if sharded.ranks.rank == 0:
        _remove_unfinished(folder)
    sharded.ranks.wait()
    missing = _no_room(sharded, folder, f"--output_dir {folder} has no room for a checkpoint")
    if any(sharded.ranks.gather(missing is not None)):
        raise missing or ConfigError(f"--output_dir {folder} has no room for a checkpoint on another machine.")


def _no_room(sharded: Sharded, folder: Path, what: str, error: Exception | None = None) -> ConfigError | None:
    """What to say if the disk is full; None if it is not, and the ``error`` is about something else."""
    needed, free = bytes_of(sharded), shutil.disk_usage(folder).free
    if not (error and outputs.is_full(error)) and free >= needed:
        return None
    whole = [path.name for path in complete(folder)]
    kept = f"; {whole[-1]} is whole, and the same command goes on from it" if whole else ""
    return ConfigError(
        f"{what}: it needs about {needed / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; make room, or lower --keep{kept}."
    )


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path.parent for path in folder.glob("checkpoint-*/activeo3.json")]
    numbered = {path.name.removeprefix("checkpoint-"): path for path in found}
    return [numbered[step] for step in sorted(filter(str.isdecimal, numbered), key=int)]


def run_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its run: the ``step``, the ``world`` size and the ``config``.

    Raises ConfigError if its ``activeo3.json`` cannot be read or lacks one of them.
    """
    path = checkpoint / "activeo3.json"
    state = read_object(path, str(path))
    for name, kind in (("step", int), ("world", int), ("config", dict)):
        if not isinstance(state.get(name), kind):
            raise ConfigError(f"{path} does not say the {name!r} of its run; delete {checkpoint} to use an earlier one.")
    return state


def resumable(config: TrainConfig, ranks: Ranks) -> dict[str, Any] | None:
    """The state of the newest checkpoint of ``output_dir``, or None for a fresh start.

    Raises ConfigError when that run had another world size or other numbers: it would not be the same run.
    """
    found = complete(Path(config.output_dir))
    _refuse_foreign(config, {path.name for path in found})
    if not found:
        return None
    state = run_state(found[-1])
    if state["world"] != ranks.world:
        raise ConfigError(
            f"{found[-1]} was made by {counted(state['world'], 'process', 'processes')}, and there are now "
            f"{ranks.world}; start as many, or choose another --output_dir."
        )
    different = config.differences(state["config"])
    if different:
        raise ConfigError(f"{found[-1]} belongs to another run: {'; '.join(different)}. Choose another --output_dir.")
    return state | {"path": found[-1]}


def _refuse_foreign(config: TrainConfig, complete: set[str]) -> None:
    """Raise ConfigError if a checkpoint would take the place of a folder that no run of ours left."""
    for path in Path(config.output_dir).glob("checkpoint-*"):
        match = _STEP.fullmatch(path.name)
        step = int(match.group(1)) if match else 0
        saved = step == config.steps or 0 < step < config.steps and step % config.save_every == 0
        if saved and path.name not in complete:
            raise ConfigError(f"{path} is no checkpoint of activeo3 and would be replaced; move it, or choose another --output_dir.")


def restore(sharded: Sharded, state: dict[str, Any]) -> None:
    """Put weights, optimizer and every random generator back to where the checkpoint was made.

    Raises ConfigError when parts of the checkpoint are gone.
    """
    path, rank = state["path"], sharded.ranks.rank
    parts = [f"random-{rank}.pt", *(f"deepspeed/*zero_pp_rank_{rank}_*_{kind}_states.pt" for kind in ("model", "optim"))]
    if not all(list(path.glob(part)) for part in parts):
        raise ConfigError(f"{path} has lost a part and cannot be continued; delete it to go on from an earlier one.")
    with sharded.ranks.quietly():
        sharded.engine.load_checkpoint(str(path), tag="deepspeed")
    _set_random_state(torch.load(path / parts[0], weights_only=False))


def seed_everything(seed: int, rank: int) -> None:
    """Seed all generators, differently on every rank, so that ranks do not draw the same answers."""
    random.seed(seed * 1000 + rank)
    np.random.seed(seed * 1000 + rank)
    torch.manual_seed(seed * 1000 + rank)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
