"""Sensing and task role, trained in turn: ``--alternate N`` (ACTIVE-O3's open question of joint optimisation, D.2).

    round-1-sense/  N steps of --task sense with the task role frozen
    round-2-act/    N steps of --task act on crops that the sensing policy of round 1 proposes
    round-3-sense/  and so on, until --steps are made

With ``--task act`` the task role goes first. Every round is a run in a folder of its own under ``--output_dir``. So it
has its log, its page and its checkpoints, and goes on where it was interrupted; the same command passes over the rounds
that are complete. Both roles begin as ``--model``. A round's policy and its frozen reference are its role's own last
checkpoint, and the frozen other role is that role's last checkpoint: from the second round on, three models are in
memory in place of two.

What this means for the update: the KL pulls towards the beginning of the round, not towards the start policy, and
AdamW's means begin anew. With ``--lora`` each round merges its adapters into its checkpoint and adds new ones.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

from activeo3.config import TrainConfig
from activeo3.presets import PRESETS

ROLES = ("sense", "act")


def rounds(config: TrainConfig) -> Iterator[TrainConfig]:
    """The runs that a command asks for: itself, or the rounds of ``--alternate``, of which the last may be shorter."""
    if not config.alternate:
        yield config
        return
    newest = {role: "" for role in ROLES}  # the last checkpoint of each role
    role = config.task
    for number, first in enumerate(range(0, config.steps, config.alternate), 1):
        steps = min(config.alternate, config.steps - first)
        other = ROLES[1 - ROLES.index(role)]
        folder = Path(config.output_dir) / f"round-{number}-{role}"
        yield replace(
            config, alternate=0, steps=steps, output_dir=str(folder), seed=config.seed + number - 1,
            model=newest[role] or config.model, task_checkpoint=newest[other] or config.task_checkpoint,
            **_of_role(role, config.task_update),
        )  # fmt: skip
        newest[role], role = str(folder / f"checkpoint-{steps}"), other


def _of_role(role: str, task_update: str) -> dict[str, Any]:
    """The values that make a run one of this role."""
    if role == "sense":
        return {"task": "sense", "task_update": "rl"}
    return PRESETS["sft" if task_update == "sft" else "act"]
