"""The weights of a model folder: all of them as they were saved, or a sentence that says which are not.

transformers draws weights at random where a folder has none, and leaves out what it has no place for. That is right for
a new head, and wrong for a policy: it would be trained, or asked, in part at random and without a word.
"""

import math
import re
from contextlib import contextmanager
from functools import partial
from typing import Any, Iterator, Mapping

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging

from activeo3.model_files import ModelError, part_of

WRAPPERS = {
    "module.": "inside torch's DistributedDataParallel",
    "_orig_mod.": "inside torch.compile",
    "_fsdp_wrapped_module.": "inside FSDP",
    "base_model.model.": "inside peft, adapters not merged",
}
"""What the names of weights begin with when a wrapper was saved in place of its model."""


def whole(source: str, auto_class: Any, **options: Any) -> nn.Module:
    """The model of a checkpoint folder or hub id, as ``auto_class`` of transformers loads it; no code of the folder's
    own is run.

    Raises ModelError if weights are missing, misnamed, of another shape or not finite, or more than config.json has
    layers.
    """
    part_of(source, "config.json", AutoConfig.from_pretrained, trust_remote_code=False)
    load = partial(
        auto_class.from_pretrained, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
    )
    with quietly():
        model, seen = part_of(source, "weights", load, **options)
    _check_names(source, seen, model)
    check_finite(source, model)
    return model


def _check_names(source: str, seen: Mapping[str, Any], model: nn.Module) -> None:
    """Raise ModelError if weights were not found, were of another shape, or have names that the model should know."""
    extra, missing, own = sorted(seen["unexpected_keys"]), sorted(seen["missing_keys"]), model.state_dict()
    if missing:
        wrapper = next((prefix for prefix in WRAPPERS if extra and extra[0].startswith(prefix)), "")
        cause = f": saved {WRAPPERS[wrapper]}, take {wrapper!r} off every name" if wrapper else ""
        instead = f"; it has {_first(extra)} instead{cause}" if extra else ""
        raise ModelError(f"{source} lacks {len(missing)} of {len(own)} weights, {_first(missing)}{instead}.")
    if seen["mismatched_keys"]:
        name, found, wanted = sorted(seen["mismatched_keys"])[0]
        raise ModelError(
            f"{source}: {name} has the shape {tuple(found)}, and config.json means {tuple(wanted)}; they are of two "
            "models."
        )
    known = {_numberless(name) for name in own}
    unused = [name for name in extra if _numberless(name) in known or ".lora_" in name]
    if unused:
        raise ModelError(f"{source} has {len(unused)} weights that config.json leaves no place for, {_first(unused)}.")


def check_finite(source: str, model: nn.Module) -> None:
    """Raise ModelError if a weight is NaN or infinite. One pass over the weights, without a copy of them."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.numel()}
    wrong = [name for name, weight in weights.items() if not torch.stack(weight.aminmax()).isfinite().all()]
    if wrong:
        raise ModelError(
            f"{source} has weights that are not finite, {_first(wrong)}; its training went wrong, use an earlier "
            "checkpoint."
        )


def of_no_use(name: str, model: nn.Module) -> ModelError:
    """What to say of a model whose logits are not finite: its largest weight, which must be whole on this rank."""
    weight, value = largest(model)
    return ModelError(
        f"{name} gives logits that are not finite, so no token can be chosen; its largest weight is {value:.3g}, "
        f"in {weight}; its training went wrong, use an earlier checkpoint."
    )


def largest(model: nn.Module) -> tuple[str, float]:
    """The parameter that holds a model's largest weight, and that weight with its sign; NaN is the largest of all."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.numel()}
    ends = [(name, end) for name, weight in weights.items() for end in torch.stack(weight.aminmax()).tolist()]
    return max(ends, key=lambda of: (math.isnan(of[1]), abs(of[1])))


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' reports: what is wrong with a checkpoint is said here, in one sentence; its warnings are
    about spellings."""
    said = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(said)


def _numberless(name: str) -> str:
    """The name of a weight, whatever the number of its layer."""
    return re.sub(r"\.\d+\.", ".#.", name)


def _first(names: list[str]) -> str:
    """The first few of many names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
