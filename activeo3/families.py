"""What a family of models is, in one table: everything that the supported ones do differently.

A family is a ``model_type`` of transformers. Every other room asks this table and none compares names of families; what
they have in common, and how another one is added, is told in docs/families.md.

Qwen2-VL writes boxes in special tokens of its own; ``as_json`` and ``marked`` translate.
"""

import json
import re
from dataclasses import dataclass
from typing import Iterator, Literal, NamedTuple, Sequence

from activeo3.answer_text import limited
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
    """how it writes them: as JSON, or in special tokens (families.py). It is asked for what it is used to; both are
    read"""
    states: bool = False
    """layers of the text tower keep a running state: no mask can hide a token that has gone into it"""
    deepstack: bool = False
    """the vision tower also gives features to lower layers of the text tower, as many for each picture"""
    experts: bool = False
    """layers of the text tower choose experts for each token"""
    gated_vision: bool = False
    """the MLP of a vision layer has three matrices, not two"""
    saved: Saved | None = None
    """for memory.py, which says nothing about a family without it. Where queries are as wide as the hidden states, they
    are counted there"""

    @property
    def scoring(self) -> str:
        """How a group of answers is scored (model.py): as packed rows, if a mask can separate the siblings."""
        return "cached" if self.states else "packed"


FAMILIES = {
    "qwen2_vl": Family("thousandths", boxes="tokens", saved=Saved(18, 0, 12, 8, 22, 4)),
    "qwen2_5_vl": Family("pixels", gated_vision=True, saved=Saved(18, 0, 12, 8, 30, 8)),
    "qwen3_vl": Family("thousandths", deepstack=True, saved=Saved(16, 14, 18, 8, 22, 4)),
    "qwen3_vl_moe": Family("thousandths", deepstack=True, experts=True),
    "qwen3_5": Family("thousandths", states=True),
    "qwen3_5_moe": Family("thousandths", states=True, experts=True),
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


# ---------------------------------------------------------------------- boxes in special tokens


BEGIN = "<|box_start|>"
_NAME = r"<\|object_ref_start\|>((?:[^<]++|<(?!\|))*+)<\|object_ref_end\|>"
_NUMBER = r"\s*+(-?\d++(?:\.\d++)?)\s*+"
_BOX = rf"<\|box_start\|>\s*+\({_NUMBER},{_NUMBER}\)\s*+(?:,\s*+)?\({_NUMBER},{_NUMBER}\)\s*+<\|box_end\|>"
_PART = re.compile(rf"{_NAME}|{_BOX}")
_RUN = re.compile(rf"(?:{_NAME}\s*+)?{_BOX}(?:[\s,;]*+(?:{_NAME}\s*+)?{_BOX})*+")


def as_json(text: str) -> str:
    """A text with each run of boxes in special tokens as a JSON list of ``bbox_2d``; other text stays as it is.

    >>> as_json("<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|> 1")
    '[{"bbox_2d":[1.0,2.0,3.0,4.0],"label":"cup"}] 1'
    """
    text = limited(text)
    if BEGIN not in text:
        return text
    return _RUN.sub(lambda run: json.dumps(list(_boxes_of(run.group())), separators=(",", ":")), text)


def _boxes_of(run: str) -> Iterator[dict[str, list[float] | str]]:
    """The boxes of a run, each with the name before it, if there was one."""
    name: str | None = None
    for part in _PART.finditer(run):
        if part[1] is not None:
            name = part[1].strip()
            continue
        box = {"bbox_2d": [float(number) for number in part.groups()[1:]]}
        yield box if name is None else box | {"label": name}


def marked(boxes_text: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Boxes as Qwen2-VL writes them, each behind its name.

    >>> marked([(1, 2, 3, 4)], ["cup"])
    '<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>'
    """
    return "".join(
        f"<|object_ref_start|>{name}<|object_ref_end|>{BEGIN}({x1},{y1}),({x2},{y2})<|box_end|>"
        for (x1, y1, x2, y2), name in zip(boxes_text, names, strict=True)
    )
