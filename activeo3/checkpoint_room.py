"""Is there room on the disk for the checkpoints of a run? Asked before the work, and when one could not be written."""

from pathlib import Path

from activeo3 import checkpoint_files, outputs
from activeo3.config import ConfigError, TrainConfig
from activeo3.engine import Zero3Model
from activeo3.log import counted

SMALL_FILES = 2**20  # bytes: more than all parts of a checkpoint have that are not weights or states


def bytes_of(sharded: Zero3Model, optimizer: bool = True) -> int:
    """How large a checkpoint is, in bytes, without its small files.

    The weights and, to go on from it, the ``optimizer``'s float32 copy and two moments of each parameter that learns,
    and the shards of the frozen ones.
    """
    vlm, each = sharded.vlm, sharded.vlm.model.dtype.itemsize
    frozen = vlm.parameters - vlm.trainable_parameters
    return vlm.parameters * each + optimizer * (vlm.trainable_parameters * 12 + frozen * each)


def at_once(config: TrainConfig, first: int, there: int) -> int:
    """How many checkpoints more than those that are ``there`` lie in the folder at once, of a run from step ``first``
    on: an old one is removed when a new one is whole.

    >>> at_once(TrainConfig(steps=160, save_every=40, keep=2), 1, 0), at_once(TrainConfig(steps=160, keep=0), 1, 0)
    (3, 4)
    >>> at_once(TrainConfig(steps=160, save_every=40, keep=2), 81, 2)
    1
    """
    coming = -(-config.steps // config.save_every) - (first - 1) // config.save_every
    return min(coming, max(1, config.keep + 1 - there)) if config.keep else coming


def check_room(sharded: Zero3Model, config: TrainConfig, first: int) -> None:
    """Raise ConfigError, before the work, if there is no room in ``--output_dir`` for the checkpoints of a run from
    step ``first`` on; say how large they are if that is a GB or more. A collective."""
    folder, ranks = Path(config.output_dir), sharded.ranks
    count = at_once(config, first, len(checkpoint_files.complete(folder)))
    each, free = bytes_of(sharded, config.save_optimizer), outputs.free_bytes(folder)
    if each >= 1e9:
        ranks.print(f"activeo3: a checkpoint takes {each / 1e9:.3g} GB, {count} at once, {free / 1e9:.3g} GB are free")
    full = free < count * each
    if any(ranks.all_gather(full)):
        where = f"--output_dir {folder} has no room for {counted(count, 'checkpoint')}"
        raise ConfigError(f"{where}: {_room(count * each, folder, full)}." if full else f"{where} on another machine.")


def not_written(
    sharded: Zero3Model, config: TrainConfig, building: Path, target: Path, error: Exception
) -> ConfigError | None:
    """What to say if ``target`` could not be written while it was in ``building``; None if the ``error`` is about
    something else."""
    folder, needed = target.parent, bytes_of(sharded, config.save_optimizer)
    left = needed - sum(path.stat().st_size for path in building.rglob("*") if path.is_file())
    full = outputs.is_full(error) or outputs.free_bytes(folder) < max(left, SMALL_FILES)
    closed = outputs.why_closed(folder)
    if not (full or closed or isinstance(error, OSError)):
        return None
    reason = "" if full else f" ({closed or error.strerror})"  # type: ignore[attr-defined]
    return ConfigError(f"{target} could not be written{reason}: {_room(needed, folder, full)}.")


def _room(needed: int, folder: Path, full: bool) -> str:
    """Room that is needed and that there is, what to do, and what is kept."""
    free, whole = outputs.free_bytes(folder), checkpoint_files.complete(folder)
    kept = f"; {whole[-1].name} is whole, and the same command goes on from it" if whole else ""
    advice = (
        "make room, lower --keep, or leave the optimizer out with --save_optimizer false"
        if full
        else "see to its folder, or choose another --output_dir"
    )
    return f"it needs about {needed / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; {advice}{kept}"
