"""LoRA: learn a small correction beside each frozen matrix, so that one model in memory is three.

    W' = W + scale B A,    A (rank, in) random, B (out, rank) zero at the start    (arXiv 2106.09685)

With the adapters on, the model is the policy; with them off it is the start policy, which is the reference
and the task model. Nothing but A and B has gradients and optimizer states. The matrices are those of the text
tower whose names match ``--train_only``; the layers are peft's, which is needed for this only.

A checkpoint holds the merged weights W', so that it is a plain model folder. In bfloat16 merging rounds, and a
correction smaller than half a step of W's is gone: so a checkpoint says how much of the corrections its weights hold,
and has A and B as well, in ``adapters/``, as peft saves them.

A folder that holds an adapter only, of peft's or of a checkpoint's ``adapters/``, is a model too: its base model with
the adapter merged in.
"""

import re
import warnings
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor, nn

from activeo3 import paths
from activeo3.config import ConfigError
from activeo3.encoding import Encoder
from activeo3.model_files import ModelError, part_of, read_json

SCALE = 2.0
"""Of the correction, whatever the rank: alpha = 2 x rank, as is usual."""
NAMES = "lora_"
"""The parameters of adapters have this in their names, and no others have."""
MERGED = ("LORA", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3", "VERA", "HRA")
"""Kinds of adapters that can be merged into weights. Others, like learned prompts, load tokenizers and models that they
name."""
NAMES_TODAY = {r"^visual\.": "model.visual.", r"^model\.(?!visual\.|language_model\.)": "model.language_model."}
"""What modules were called up to transformers 4.51, and are called since."""


def add(vlm: Encoder, rank: int, which: str) -> None:
    """Put adapters beside the text tower's matrices whose name matches the regular expression ``which``.

    Raises ConfigError if peft is not installed, or no matrix matches.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError('--lora needs peft: pip install -e ".[lora]".') from None
    linear = [name for name, module in vlm.model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if "language_model" in name and re.search(which, name)]
    if not chosen:
        raise ConfigError(f"--train_only {which} matches no matrix of the text tower that --lora could work on.")
    wanted = LoraConfig(r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0, target_modules=chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # A is the same on every rank, and in a run that is continued
        inject_adapter_in_model(wanted, vlm.model)


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """The model without its adapters, for the block."""
    layers = list(_adapted(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(model: nn.Module) -> tuple[dict[str, Tensor], float]:
    """The weights of the model as if it never had adapters, corrections added; they must be whole on this rank.

    Also the share of the corrections that is left after rounding: the rounded ones projected on what they should be.
    """
    weights, held, meant = {}, 0.0, 0.0
    layers = _adapted(model)
    for name, tensor in model.state_dict().items():
        if NAMES in name:
            continue
        owner, _, kind = name.rpartition(".")
        owner = owner.removesuffix(".base_layer")
        if owner in layers and kind == "weight":
            (adapter,) = layers[owner].active_adapters
            before, correction = tensor.float(), layers[owner].get_delta_weight(adapter).float()
            tensor = (before + correction).to(tensor.dtype)
            held += float(((tensor.float() - before) * correction).sum())
            meant += float(correction.square().sum())
        weights[f"{owner}.{kind}"] = tensor.detach().cpu()
    return weights, held / meant if meant else 1.0


def check_finite(name: str, model: nn.Module) -> None:
    """Raise ModelError if a corrected matrix would not be finite: A and B can be, and their product not. They must be
    whole."""
    for layer, module in _adapted(model).items():
        (adapter,) = module.active_adapters
        merged = module.get_base_layer().weight.detach().float() + module.get_delta_weight(adapter).detach().float()
        if not merged.isfinite().all():
            raise ModelError(
                f"{name} has adapters that make weights which are not finite, in {layer}; its training went wrong, use "
                "an earlier one."
            )


def save(model: nn.Module, start: str, folder: Path) -> None:
    """Write the adapters alone, as peft loads them beside the model ``start``; they must be whole on this rank."""
    from peft import get_peft_model_state_dict

    config = copy(model.peft_config["default"])
    config.target_modules, config.base_model_name_or_path, config.inference_mode = (
        sorted(config.target_modules),
        start,
        True,
    )
    config.save_pretrained(folder)
    parts = get_peft_model_state_dict(model).items()
    torch.save(
        {f"base_model.model.{name}": part.detach().cpu().contiguous() for name, part in parts},
        folder / "adapter_model.bin",
    )


# ---------------------------------------------------------------------- a folder that holds an adapter


def base_of(source: str, start: str = "") -> str:
    """The base model of a folder that holds an adapter only; "" for any other folder or hub id.

    It is the one that the adapter names, as it stands or seen from the folders above; else ``start``, the start policy
    that the user names; else a hub id.

    Raises ModelError if there is an adapter beside whole weights, or its base model is not to be found.
    """
    folder = Path(source)
    if not (folder / "adapter_config.json").is_file():
        return ""
    if whole := sorted(
        path.name for pattern in ("model*.safetensors*", "pytorch_model*") for path in folder.glob(pattern)
    ):
        raise ModelError(
            f"{source} has whole weights ({whole[0]}) and an adapter beside them; take adapter_config.json away if "
            "they are merged already, or the whole weights if the adapter is meant."
        )
    config = read_json(source, "adapter_config.json")
    if (kind := str(config.get("peft_type")).upper()) not in MERGED:
        raise ModelError(
            f"{source} is an adapter of the kind {kind}; those that can be merged are {', '.join(MERGED)}."
        )
    if config.get("megatron_config"):
        raise ModelError(f"{source} is an adapter for Megatron, whose modules it names; train it with transformers.")
    named = str(config.get("base_model_name_or_path") or "")
    found = paths.beside(folder, named) if named else ""
    if Path(found).is_dir() and found:
        return found
    start = "" if paths.same(source, start) else start
    if start or (named.count("/") == 1 and not named.startswith((".", "/"))):
        return start or named
    reason = (
        f"is an adapter of {named}, which is not there" if named else "is an adapter that does not name its base model"
    )
    raise ModelError(
        f"{source} {reason}; write its folder into adapter_config.json as base_model_name_or_path, or evaluate with "
        "--start."
    )


def merge(model: nn.Module, source: str) -> None:
    """Add the adapter of a folder to the weights of its base model, in their dtype.

    The matrices are those that the folder has weights for, by today's names: an adapter that was trained with
    transformers 4 has others, and a regular expression in its config may mean more than it meant there.

    Raises ConfigError if peft is not installed; ModelError for an adapter of another model or of a kind that cannot be
    merged.
    """
    try:
        from peft import LoraConfig, PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
    except ImportError:
        raise ConfigError(f'{source} is an adapter, which needs peft: pip install -e ".[lora]".') from None
    config = part_of(source, "adapter_config.json", PeftConfig.from_pretrained)
    weights = part_of(source, "adapter weights", load_peft_weights, device="cpu", key_mapping=NAMES_TODAY)
    if isinstance(config, LoraConfig):
        config.target_modules = {
            name.removeprefix("base_model.model.").partition(f".{NAMES}")[0] for name in weights if NAMES in name
        }
        for pattern in (config.rank_pattern, config.alpha_pattern):
            renamed = {_today(name): value for name, value in pattern.items()}
            pattern.clear()
            pattern.update(renamed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers has new words that peft does not know yet
        adapted = part_of(source, "adapter", lambda _: get_peft_model(model, config))
    seen = part_of(source, "adapter", lambda _: set_peft_model_state_dict(adapted, weights))
    wrong = sorted(seen.unexpected_keys) or sorted(name for name in seen.missing_keys if NAMES in name)
    if wrong:
        raise ModelError(
            f"{source} is an adapter of another model: {wrong[0]} is {'not in' if seen.unexpected_keys else 'in'} this "
            "one."
        )
    part_of(source, "adapter", lambda _: adapted.merge_and_unload())


def _today(name: str) -> str:
    """The name of a module of transformers 4, or the beginning of one, as it is today."""
    for before, now in NAMES_TODAY.items():
        name = re.sub(before, now, name)
    return name


def _adapted(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have adapters, by name; none in a model without them."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
