"""Which checkpoints a table compares: their names in it, what they were trained from and for.

A checkpoint folder of a run says so in its ``activeo3.json``, an adapter in its ``adapter_config.json``; any other model
folder is its own start.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple, Sequence

from activeo3 import lora, paths
from activeo3.checkpoints import run_state
from activeo3.config import ConfigError


class Checkpoint(NamedTuple):
    """A checkpoint in the table. ``label`` is empty if it is the only one; ``answers``: it was trained to
    answer itself, without a zoom (Direct RFT)."""

    source: str
    label: str
    answers: bool


def contest(checkpoints: Sequence[str], start: str = "") -> tuple[list[Checkpoint], str]:
    """(all rivals, the start policy that they share); ``start`` names it, or they must agree.

    A start policy is looked for as its run names it, and beside the run. One folder has one spelling in what is returned.

    Raises ConfigError if a checkpoint is named twice, says nothing of its run, or was trained from another
    start policy than the others: then no row could be compared with the next.
    """
    *sources, start = paths.unified([*checkpoints, start])
    twice = [f"{source} twice, also as {name}" if source != name else f"{source} twice"
             for place, (source, name) in enumerate(zip(sources, checkpoints)) if source in sources[:place]]  # fmt: skip
    if twice:
        raise ConfigError(f"--checkpoint names {twice[0]}; name every checkpoint once.")
    trained = {source: _trained(source) for source in sources}
    own = [
        paths.beside(Path(source), config.get("model") or lora.base_of(source, start) or source)
        for source, config in trained.items()
    ]
    starts = paths.unified([*sources, *([start] * len(sources) if start else own)])[len(sources) :]
    different = sorted(set(starts))
    if len(different) > 1:
        raise ConfigError(
            f"--checkpoint: these were trained from different start policies, {' and '.join(different)}; "
            f"evaluate them apart, or name one for all with --start."
        )
    names = labels(sources) if len(sources) > 1 else [""]
    rivals = [Checkpoint(source, name, trained[source].get("task") == "direct") for source, name in zip(sources, names)]
    return rivals, different[0]


def trained_task(source: str) -> str:
    """The task that a checkpoint was trained for; "" for a model folder that no run left."""
    return _trained(source).get("task", "")


def _trained(source: str) -> dict[str, Any]:
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
