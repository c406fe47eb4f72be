"""What a family of models is, in one table: everything that the supported ones do differently.

A family is a ``model_type`` of transformers. Every other room asks this table and none compares names of families; what
they have in common, and how another one is added, is told in docs/families.md.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from activeo3.config import Config, ConfigError, TrainConfig


class Saved(NamedTuple):
    """Bytes that a layer keeps for its backward pass, per token and unit of width, in bfloat16 with sdpa:
    counted with torch's saved_tensors_hooks, and counted again by a test."""

    hidden: int
    query: int
    key_value: int
    mlp: int
    vision_hidden: int
    vision_mlp: int


@dataclass(frozen=True)
class Family:
    """What has to be known about a model beside its weights."""

    coordinates: Literal["pixels", "thousandths"]
    """the unit of boxes in text: pixels of the view that the model saw, or thousandths of the view's sides"""
    boxes: Literal["json", "tokens"] = "json"
    """how it writes them: as JSON, or in special tokens (box_tokens.py). It is asked for what it is used to; both are
    read"""
    states: bool = False
    """layers of the text tower keep a running state: no mask can hide a token that has gone into it"""
    deepstack: bool = False
    """the vision tower also gives features to lower layers of the text tower, as many for each picture"""
    gated_vision: bool = False
    """the MLP of a vision layer has three matrices, not two"""
    saved: Saved | None = None
    """for memory.py, which says nothing about a family without it. Where queries are as wide as the hidden states, they
    are counted there"""

    @property
    def scoring(self) -> str:
        """How a group of answers is scored (scoring.py): as packed rows, if a mask can separate the siblings."""
        return "cached" if self.states else "packed"


FAMILIES = {
    "qwen2_vl": Family("thousandths", boxes="tokens", saved=Saved(18, 0, 12, 8, 22, 4)),
    "qwen2_5_vl": Family("pixels", gated_vision=True, saved=Saved(18, 0, 12, 8, 30, 8)),
    "qwen3_vl": Family("thousandths", deepstack=True, saved=Saved(16, 14, 18, 8, 22, 4)),
    "qwen3_vl_moe": Family("thousandths", deepstack=True),
    "qwen3_5": Family("thousandths", states=True),
    "qwen3_5_moe": Family("thousandths", states=True),
}
"""The families that are supported, by their ``model_type``."""


def check_notes(family: str, config: Config) -> None:
    """Raise ConfigError if views are to be hidden from a model of a family that cannot forget one."""
    if FAMILIES[family].states and config.task == "zoom_qa" and config.memory == "notes":
        raise ConfigError(
            f"--memory notes lets later turns no longer see a view, but a {family} model takes every view into a "
            "running state, from which nothing can be removed; use --memory views."
        )


def scoring_of(family: str, config: TrainConfig, sees: bool) -> str:
    """How a run scores its groups: as --scoring says, or for ``auto`` as the family needs it. ``sees``: the vision
    tower learns.

    Raises ConfigError for a way that would be wrong, or in which ranks would wait for each other.
    """
    states, crops = FAMILIES[family].states, config.task == "zoom_qa"
    if config.scoring == "packed" and states:
        raise ConfigError(
            f"--scoring packed separates the answers of a row by a mask, and a {family} model has layers with a "
            "running state that no mask reaches; leave --scoring at auto."
        )
    # A rank whose answers were shown no crop would not call the sharded vision tower in their pass, and others would
    # wait.
    if config.scoring == "cached" and sees and crops:
        raise ConfigError(
            "--scoring cached reads the crops of episodes apart from the prompts, which needs a vision tower that "
            "does not learn; set --train_only to the text tower, or use --scoring rows."
        )
    if config.scoring != "auto":
        return config.scoring
    return "rows" if states and sees and crops else FAMILIES[family].scoring
