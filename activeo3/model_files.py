"""The files of a model folder beside its weights: read as transformers' own processor reads them, and saved as they
were read.

Qwen-VL folders come in several layouts, by the version of transformers that wrote them:

    chat template      4.x: chat_template.json, and a text-only one with tools in tokenizer_config.json
                       5.x: chat_template.jinja, additional_chat_templates/ for further ones
    picture settings   4.x: preprocessor_config.json          5.x: also nested in processor_config.json
    config             to 4.51: flat, with rope_scaling "mrope" and torch_dtype; later: text_config and rope_parameters

Training changes weights. So a saved model is the folder it began from with other weights: config, tokenizer and picture
settings are written as they were read, and whatever version of transformers loads the one loads the other. A run's
checkpoint then gets the limits of its view and its own way of generating (model_card.py).

Deviations from transformers' processor:
  1. A chat template without a place for a picture, or one that fails, is passed over for the next one.
  2. min_pixels and max_pixels (or ``size``) are read, kept and saved, but a view has the size that the method asks for:
     --sensing_side and --crop_side (paper E.2), --max_view_pixels in questions. Mean, std, rescaling, patch and merge
     size hold.

Weights are loaded as they were saved, or a sentence says which are not: transformers draws weights at random where a
folder has none, and leaves out what it has no place for. A policy would then be trained, or asked, in part at random.
"""

import json
import math
import re
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils import cached_file, logging

from activeo3 import processes
from activeo3.terminal import OneLine

IMAGE_PROCESSOR = "Qwen2VLImageProcessor"
"""The class that all supported families name, with or without "Fast": Qwen3-VL's is the same with other numbers."""
MORE_TEMPLATES = "additional_chat_templates"
KEPT = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
"""Files that are saved again as they were read; chat templates are written in both forms, see ``saved_again``."""


class ModelError(OneLine):
    """A checkpoint that cannot be used, in one sentence that says what to do."""


def part_of(source: str, part: str, load: Callable[..., Any], **options: Any) -> Any:
    """One part of a checkpoint folder or hub id. Raises ModelError whatever the matter is.

    For a file that is missing, damaged or of another version, each library raises errors of its own.
    """
    try:
        return load(source, **options)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(f"{source} has no {part} that can be used ({type(error).__name__}: {reason}).") from None


def read(source: str, name: str) -> bytes | None:
    """A file of a checkpoint folder or hub id; None if it has no such file."""
    path = cached_file(
        source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return Path(path).read_bytes() if path else None


def read_json(source: str, name: str) -> dict[str, Any]:
    """A json file of a checkpoint folder or hub id; empty if it has no such file.

    Raises ModelError if it holds no json object.
    """
    content = part_of(source, name, lambda source: json.loads(read(source, name) or b"{}"))
    if not isinstance(content, dict):
        raise ModelError(f"{source} has no {name} that can be used: it holds no json object.")
    return content


def kernels_of(config: Mapping[str, Any]) -> Iterator[str]:
    """What a config and its parts say about attention and experts that comes from the hub: transformers would fetch it
    and run it."""
    for key, value in config.items():
        if key.endswith(("_implementation", "_implementation_internal")) and "/" in str(value):
            yield f"{key} {value}"
        elif isinstance(value, dict):
            yield from kernels_of(value)


# ---------------------------------------------------------------------- chat template


def templates(source: str) -> Iterator[tuple[str, str]]:
    """(file, chat template) of all that a folder has, in the order in which transformers' processor, then its
    tokenizer, takes them."""
    for name in ("processor_config.json", "chat_template.json"):
        yield from ((name, text) for text in _named(read_json(source, name).get("chat_template")))
    for name in ("chat_template.jinja", *more_templates(source)):
        text = part_of(source, name, read, name=name)
        yield from [(name, part_of(source, name, lambda _: text.decode()))] if text else []
    name = "tokenizer_config.json"
    yield from ((name, text) for text in _named(read_json(source, name).get("chat_template")))


def more_templates(source: str) -> list[str]:
    """The files of ``additional_chat_templates/``, the one named "default" first; of a hub id, those that came with its
    tokenizer."""
    folder = Path(source) if Path(source).is_dir() else Path(cached_file(source, "config.json")).parent
    names = sorted(folder.glob(f"{MORE_TEMPLATES}/*.jinja"), key=lambda path: (path.stem != "default", path.name))
    return [f"{MORE_TEMPLATES}/{path.name}" for path in names]


def _named(templates: Any) -> list[str]:
    """One template, or several by name, as a list with the one named "default" first."""
    if isinstance(templates, list):
        templates = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, dict)}
    named = templates if isinstance(templates, dict) else {"default": templates}
    return [text for _, text in sorted(named.items(), key=lambda item: item[0] != "default") if isinstance(text, str)]


_TRIED: dict[str, bool] = {}
"""Chat templates that came to an end in this process, and whether they have a place for a picture."""


def picture_template(source: str, tokenizer: Any) -> str:
    """The first chat template that has a place for a picture; it has written prompts of all forms in a process of its
    own.

    A template is tried once in a process: the copy is cheap before the weights of a first model are there, and dear
    later.

    Raises ModelError if none has, naming those there are, or if one does not come to an end.
    """
    none, failed = [], []
    for name, template in templates(source):
        try:
            if template not in _TRIED:
                _TRIED[template] = processes.run_limited(lambda: _shows_a_picture(tokenizer, template))  # noqa: B023
            if _TRIED[template]:
                return template
            none.append(name)
        except processes.Failed as error:
            failed.append(f"{name} fails with {str(error).rstrip('.')}")
        except TimeoutError:
            raise ModelError(
                f"{source}: the chat template in {name} does not come to an end; copy it from the original model."
            ) from None
    has_none = [f"{', '.join(none)} {'has' if len(none) == 1 else 'have'} none"] if none else []
    there = f" ({'; '.join(has_none + failed)})" if none or failed else ""
    raise ModelError(
        f"{source} has no chat template with a place for a picture{there}; "
        f"copy chat_template.jinja or chat_template.json from the original model."
    )


def _shows_a_picture(tokenizer: Any, template: str) -> bool:
    """Does a template put one place where a user shows one picture, and as many in any other prompt of encoding.py?"""
    write = partial(tokenizer.apply_chat_template, chat_template=template, tokenize=False, add_generation_prompt=True)
    before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "?"}]

    def places(pictures: int, turns: Sequence[dict[str, Any]]) -> int:
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": "?"}]
        return write([*turns, {"role": "user", "content": content}]).count("<|image_pad|>")

    try:
        shown = places(1, [])
    except (TypeError, AttributeError):  # a template that takes nothing but texts
        return False
    return shown == 1 and all(places(pictures, turns) == pictures for pictures in (0, 2) for turns in ([], before))


# ---------------------------------------------------------------------- pictures


def image_processor(source: str, vision: Any) -> Any:
    """The image processor of a folder, on Pillow, for a vision tower with the config ``vision``.

    Raises ModelError if the folder has none, names a class that does not exist here, or other patches than the tower.
    """
    nested = read_json(source, "processor_config.json").get("image_processor")
    name = "processor_config.json" if isinstance(nested, dict) else "preprocessor_config.json"
    settings = nested if isinstance(nested, dict) else read_json(source, name)
    kind = settings.get("image_processor_type")
    if kind is not None and str(kind).removesuffix("Fast").removesuffix("Pil") != IMAGE_PROCESSOR:
        raise ModelError(
            f'{source}: {name} names the image processor {kind}; write "image_processor_type": "{IMAGE_PROCESSOR}" '
            "instead."
        )
    processor = part_of(
        source, "image processor", AutoImageProcessor.from_pretrained, backend="pil", trust_remote_code=False
    )
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size",) * 2,
    ):
        if getattr(processor, ours) != getattr(vision, theirs):
            raise ModelError(
                f"{source}: {ours} is {getattr(processor, ours)} in {name} and {getattr(vision, theirs)} in "
                f"config.json; copy {name} from the original model."
            )
    return processor


# ---------------------------------------------------------------------- vocabulary


def check_vocabulary(source: str, tokenizer: Any, config: Any, rows: int) -> None:
    """Raise ModelError unless the tokenizer fits to an embedding of ``rows`` rows and has the tokens that the config
    means."""
    highest = max([len(tokenizer) - 1, *tokenizer.added_tokens_decoder])
    if highest >= rows:
        raise ModelError(
            f"{source}: the tokenizer has tokens up to {highest} and the model's embedding {rows} rows; "
            f"copy the tokenizer's files from the original model, or resize the embedding and train it."
        )
    for token, meant in (("<|image_pad|>", config.image_token_id), ("<|im_end|>", None)):
        found = tokenizer.convert_tokens_to_ids(token)
        missing = found in (None, tokenizer.unk_token_id)
        if missing or meant not in (None, found):
            should = "" if meant is None else f" and {meant} in config.json"
            raise ModelError(
                f"{source}: {token} is {'missing' if missing else found} in the tokenizer{should}; "
                f"copy the tokenizer's files from the original model."
            )


def check_ends(source: str, stated: Any) -> None:
    """Raise ModelError unless what a folder calls the end of an answer is the number of a token, several or none."""
    several = stated if isinstance(stated, (list, tuple)) else [stated]
    wrong = [token for token in several if token is not None and type(token) is not int]
    if wrong:
        raise ModelError(
            f"{source}: eos_token_id is {wrong[0]!r} in generation_config.json; write the number of a token."
        )


# ---------------------------------------------------------------------- saving


def kept(source: str, template: str) -> dict[str, bytes]:
    """The files of a folder that training does not change, by name; ``template`` is the chat template that is used.

    It is there in the form of transformers 5.x and in that of 4.x, except beside additional templates, where 5.x
    refuses the latter. No file has an ``auto_map``: code of the folder's own is neither run nor saved.
    """
    more = more_templates(source)
    found = {name: part_of(source, name, read, name=name) for name in (*KEPT, *more)}
    files = {name: content for name, content in found.items() if content is not None}
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        content = read_json(source, name)
        if content.pop("auto_map", None) or name == "processor_config.json" and content.pop("chat_template", None):
            files[name] = _json(content)
    files["chat_template.jinja"] = template.encode()
    return files if more else files | {"chat_template.json": _json({"chat_template": template})}


def save(files: Mapping[str, bytes], folder: Path, dtype: torch.dtype) -> None:
    """Write the files beside new weights of ``dtype``, which config.json then names."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    if "config.json" in files:
        config = json.loads(files["config.json"])
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            part |= {key: str(dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in part}
        (folder / "config.json").write_bytes(_json(config))


def first_names(model: nn.Module) -> dict[str, str]:
    """The name of every parameter, and the first name of the same one: a tied head's is the embedding's."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(one), name) for name, one in model.named_parameters(remove_duplicate=False)}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


# ---------------------------------------------------------------------- weights


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


LONGEST_LIST = 100_000_000  # bytes, as in the safetensors library


def check_size(source: str) -> None:
    """Raise ModelError if config.json means a much larger language model than the folder's weights are, before it is
    made.

    transformers fills up what a config.json leaves out with the numbers of a large model, whose memory may not be
    there: the system would end the process without a word.
    """
    config = part_of(source, "config.json", AutoConfig.from_pretrained, trust_remote_code=False)
    shapes: dict[str, list[int]] = {}
    for path in Path(source).glob("model*.safetensors"):
        with suppress(Exception), open(path, "rb") as file:  # a damaged one is named by who loads it
            length = int.from_bytes(file.read(8), "little")  # of the list of tensors in front of them
            listed = json.loads(file.read(min(length, LONGEST_LIST)))
            shapes |= {name: tensor["shape"] for name, tensor in listed.items() if "shape" in tensor}
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    wanted = [text.vocab_size, text.hidden_size]
    for name, shape in shapes.items():
        if name.endswith("embed_tokens.weight") and shape != wanted:
            raise ModelError(
                f"{source}: {name} has the shape {tuple(shape)}, and config.json means {tuple(wanted)}; they are of "
                "two models."
            )
    for kind, meant in (("layers", text.num_hidden_layers), ("blocks", getattr(vision, "depth", 0))):
        numbers = [int(found) for name in shapes for found in re.findall(rf"\.{kind}\.(\d+)\.", name)]
        if numbers and meant > 4 * max(numbers) + 16:
            raise ModelError(
                f"{source}: config.json means {meant} {kind}, and the weights have {max(numbers) + 1}; they are of two "
                "models."
            )


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
