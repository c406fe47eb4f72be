"""Model folders as their publishers leave them: random weights and the real vocabulary, in every layout that is in use.

Not the files themselves but their form: the names of files, keys and weights, and what is in them of a kind (eos ids as
a list, a text-only template with tools in tokenizer_config.json, pixels as limits or as ``size``). The sources are the
folders of Qwen2-VL-7B, Qwen2.5-VL-7B-Instruct and Qwen3-VL-4B-Instruct, and what ``save_pretrained`` of transformers
4.51, 4.57 and 5.x writes. ACTIVE-O3's release was made with 4.51.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig
from vocabulary import ROWS, SPECIAL_TOKENS, rebuilt_vocabulary

# Both templates in our own words; they render as the published ones do.
WITH_PICTURES = (
    "{%- set seen = namespace(pictures=0) -%}{%- for turn in messages -%}"
    "{%- if loop.first and turn.role != 'system' and SYSTEM -%}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif -%}"
    "{{ '<|im_start|>' + turn.role + '\\n' }}{%- if turn.content is string -%}{{ turn.content }}{%- else -%}"
    "{%- for part in turn.content -%}{%- if part.type == 'image' or 'image' in part -%}{%- set seen.pictures = "
    "seen.pictures + 1 -%}{%- if add_vision_id -%}{{ 'Picture ' ~ seen.pictures ~ ': ' }}{%- endif -%}{{ "
    "'<|vision_start|><|image_pad|><|vision_end|>' }}{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}{%- "
    "endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ "
    "'<|im_start|>assistant\\n' }}{%- endif -%}"
)
TEXT_ONLY = (
    "{%- if tools -%}{{ '<|im_start|>system\\n# Tools\\n<tools>' }}{%- for tool in tools -%}{{ tool | tojson }}{%- "
    "endfor -%}{{ '</tools><|im_end|>\\n' }}{%- endif -%}"
    "{%- for turn in messages -%}{{ '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>' + '\\n' }}{%- "
    "endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
CLIP = dict(
    patch_size=14, image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711]
)
PICTURES = {
    "qwen2_vl": CLIP,
    "qwen2_5_vl": CLIP,
    "qwen3_vl": dict(patch_size=16, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]),
}
PIXELS = {"qwen2_vl": (3136, 12845056), "qwen2_5_vl": (3136, 12845056), "qwen3_vl": (65536, 16777216)}
PROCESSOR = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
CLASSES = {
    "qwen2_vl": (Qwen2VLConfig, "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": (Qwen2_5_VLConfig, "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": (Qwen3VLConfig, "Qwen3VLForConditionalGeneration"),
}
IDS = dict(image_token_id=151655, video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653)


@dataclass(frozen=True)
class Layout:
    """One way in which a model folder is published."""

    family: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"
    config: Literal["flat", "4.51", "4.57", "5"] = "flat"
    names: Literal["old", "new"] = "old"  # model.layers, visual  |  model.language_model.layers, model.visual
    shards: int = 1
    template: Literal[
        "chat_template.json", "chat_template.jinja", "tokenizer_config.json", "additional", "processor_config.json"
    ] = "chat_template.json"
    text_only: bool = True  # in tokenizer_config.json
    pictures: Literal["limits", "size", "nested"] = "limits"
    tied: bool = False
    base: bool = False  # no chat model: an answer of its own ends with <|endoftext|>


LAYOUTS = {
    "Qwen2.5-VL-7B": Layout(shards=3),
    "Qwen2.5-VL-3B": Layout(tied=True),
    "ACTIVE-O3": Layout(config="4.51", shards=3, pictures="size"),
    "Qwen2.5-VL, 4.57": Layout(config="4.57", template="chat_template.jinja", pictures="size", tied=True),
    "Qwen2.5-VL, 5": Layout(config="5", names="new", template="chat_template.jinja", text_only=False, pictures="nested"),
    "state dict of 5 in a folder of 4": Layout(names="new"),
    "tokenizer's template": Layout(template="tokenizer_config.json", text_only=False),
    "additional templates": Layout(config="5", template="additional", text_only=False, pictures="nested"),
    "processor's template": Layout(template="processor_config.json"),
    "Qwen2-VL-7B, base": Layout("qwen2_vl", shards=2, text_only=False, base=True),
    "Qwen3-VL-4B": Layout("qwen3_vl", "4.57", "new", 2, "chat_template.json", False, "size", True),
    "Qwen3-VL, 5": Layout("qwen3_vl", "5", "new", 1, "chat_template.jinja", False, "nested"),
}  # fmt: skip


def write(layout: Layout, folder: Path) -> Path:
    """Make the folder; the same seed gives the same weights in every layout of a family."""
    folder.mkdir(parents=True)
    files = config_of(layout) | pictures_of(layout) | tokenizer_of(layout)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(
            content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
        )
    weights = named(weights_of(layout.family, layout.tied), layout.names)
    count, names = layout.shards, sorted(weights)
    for number in range(count):
        part = {name: weights[name] for name in names[number::count]}
        save_file(part, folder / shard(number, count), metadata={"format": "pt"})
    if count > 1:
        where = {name: shard(number, count) for number in range(count) for name in names[number::count]}
        size = sum(tensor.numel() * 2 for tensor in weights.values())
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": size}, "weight_map": where})
        )
    return folder


def shard(number: int, count: int) -> str:
    """The name of one file of weights."""
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


# ---------------------------------------------------------------------- weights


@lru_cache
def weights_of(family: str, tied: bool) -> dict[str, Tensor]:
    """Random weights in bfloat16, by the names of transformers 5; an untied model has a head of its own."""
    text, vision, extra = sizes(family)
    kind, _ = CLASSES[family]
    config = kind(
        text_config=text | dict(rope_parameters=rope(family, "5")),
        vision_config=vision | extra,
        tie_word_embeddings=tied,
        **IDS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).bfloat16()
        state = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if not (tied and name == "lm_head.weight")}


def named(weights: dict[str, Tensor], names: str) -> dict[str, Tensor]:
    """The weights by the names of transformers up to 4.51, or those of 5."""
    if names == "new":
        return weights
    return {re.sub(r"^model\.(visual|language_model)", lambda part: {"visual": "visual", "language_model": "model"}[part[1]], name): tensor
            for name, tensor in weights.items()}  # fmt: skip


# ---------------------------------------------------------------------- config.json and generation_config.json


def sizes(family: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(text tower, vision tower, what only the family's vision tower has): two layers each, and sixteen channels."""
    text = dict(
        vocab_size=ROWS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=128000, rms_norm_eps=1e-6, hidden_act="silu", attention_dropout=0.0, initializer_range=0.02,
        use_cache=True, bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip
    vision = dict(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=16, spatial_merge_size=2, temporal_patch_size=2,
        patch_size=PICTURES[family]["patch_size"],
    )  # fmt: skip
    if family == "qwen2_vl":  # hidden_size is that of the text tower here
        vision = {key: value for key, value in vision.items() if key not in ("intermediate_size", "out_hidden_size")}
        vision |= dict(embed_dim=16, mlp_ratio=2)
    if family != "qwen3_vl":
        text |= dict(max_window_layers=28, sliding_window=32768, use_sliding_window=False)
        return text, vision, dict(hidden_act="quick_gelu") if family == "qwen2_vl" else dict(
            hidden_act="silu", window_size=112, fullatt_block_indexes=[1], tokens_per_second=2
        )  # fmt: skip
    return text | dict(head_dim=8, attention_bias=False), vision, dict(
        hidden_act="gelu_pytorch_tanh", num_position_embeddings=2304, deepstack_visual_indexes=[0], initializer_range=0.02
    )  # fmt: skip


def rope(family: str, version: str) -> dict[str, Any]:
    """The rotary positions: "mrope" under rope_scaling at first, later "default", now with theta under
    rope_parameters."""
    section = dict(mrope_section=[2, 1, 1])
    if family == "qwen3_vl":
        section["mrope_interleaved"] = True
    kind = {"flat": dict(type="mrope"), "4.51": dict(type="default", rope_type="default")}.get(
        version, dict(rope_type="default")
    )
    return section | kind | (dict(rope_theta=1e6) if version == "5" else {})


def config_of(layout: Layout) -> dict[str, Any]:
    """config.json and generation_config.json."""
    family, version = layout.family, layout.config
    text, vision, extra = sizes(family)
    common = dict(
        architectures=[CLASSES[family][1]],
        model_type=family, tie_word_embeddings=layout.tied, **IDS,
    )  # fmt: skip
    own = (
        vision
        | extra
        | {"flat": dict(in_chans=3, spatial_patch_size=vision["patch_size"])}.get(version, dict(in_channels=3))
    )
    if version != "flat":
        own["model_type"] = f"{family}_vision" if version == "5" else family
    old_rope = dict(rope_scaling=rope(family, version), rope_theta=1e6)
    if version in ("flat", "4.51"):
        config = (
            common | text | old_rope | dict(torch_dtype="bfloat16", transformers_version="4.41.2", vision_config=own)
        )
    elif version == "4.57":
        inner = text | old_rope | dict(model_type=f"{family}_text", dtype="bfloat16", tie_word_embeddings=layout.tied)
        config = common | dict(text_config=inner, vision_config=own, dtype="bfloat16", transformers_version="4.57.1")
        if family == "qwen2_5_vl":  # what was read flat is saved twice, and the name of the class inside
            inner["architectures"] = config.pop("architectures")
            del config["tie_word_embeddings"]
            inside_only = ("attention_dropout", "hidden_act", "initializer_range", "use_cache")
            config |= {key: value for key, value in text.items() if key not in inside_only} | old_rope
    else:
        inner = text | dict(rope_parameters=rope(family, "5"), model_type=f"{family}_text")
        config = common | dict(text_config=inner, vision_config=own, dtype="bfloat16", transformers_version="5.2.0")
    generation = dict(bos_token_id=151643, pad_token_id=151643, do_sample=True, eos_token_id=[151645, 151643], repetition_penalty=1.05,
                      temperature=1e-6, transformers_version="4.49.0")  # fmt: skip
    if family == "qwen3_vl":
        generation |= dict(repetition_penalty=1.0, temperature=0.7, top_k=20, top_p=0.8)
    if layout.base:
        generation = dict(
            bos_token_id=151643,
            do_sample=False,
            eos_token_id=151643,
            max_new_tokens=2048,
            transformers_version="4.45.0",
        )
    return {"config.json": config, "generation_config.json": generation}


# ---------------------------------------------------------------------- pictures


def pictures_of(layout: Layout) -> dict[str, Any]:
    """preprocessor_config.json, or processor_config.json with it inside, and the video processor's beside it."""
    family, (least, most) = layout.family, PIXELS[layout.family]
    numbers = PICTURES[family] | dict(temporal_patch_size=2, merge_size=2, processor_class=PROCESSOR[family])
    size = dict(size=dict(shortest_edge=least, longest_edge=most))
    if layout.pictures == "limits":
        return {
            "preprocessor_config.json": numbers
            | dict(min_pixels=least, max_pixels=most, image_processor_type="Qwen2VLImageProcessor")
        }
    steps = dict(
        do_resize=True, do_rescale=True, do_normalize=True, do_convert_rgb=True, resample=3, rescale_factor=1 / 255
    )
    if layout.pictures == "size":
        saved = numbers | size | steps | dict(min_pixels=None, max_pixels=None, data_format="channels_first", default_to_square=True,
                                              device=None, crop_size=None, image_processor_type="Qwen2VLImageProcessorFast")  # fmt: skip
        video = numbers | size | steps | dict(fps=2, video_processor_type="Qwen2VLVideoProcessor")
        return {"preprocessor_config.json": saved, "video_preprocessor_config.json": video}
    del numbers["processor_class"]
    image, video = (
        numbers | size | steps,
        numbers | size | steps | dict(fps=2, video_processor_type="Qwen2VLVideoProcessor"),
    )
    return {"processor_config.json": dict(image_processor=image | dict(image_processor_type="Qwen2VLImageProcessor"),
                                          video_processor=video, processor_class=PROCESSOR[family])}  # fmt: skip


# ---------------------------------------------------------------------- tokenizer and chat template


@lru_cache
def vocabulary_files() -> dict[str, str]:
    """tokenizer.json, vocab.json and merges.txt; the tokens for code and tools are added ones that are not special."""
    content = json.loads(rebuilt_vocabulary().to_str())
    for token in content["added_tokens"]:
        token["special"] = token["id"] < 151657
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    return {
        "tokenizer.json": json.dumps(content, ensure_ascii=False),
        "vocab.json": json.dumps(content["model"]["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
    }


def tokenizer_of(layout: Layout) -> dict[str, Any]:
    """The files of the tokenizer, and the chat template where this layout keeps it."""
    special = list(SPECIAL_TOKENS[1:14])
    settings: dict[str, Any] = dict(
        add_prefix_space=False, bos_token=None, clean_up_tokenization_spaces=False, eos_token="<|im_end|>", errors="replace",
        model_max_length=131072, pad_token="<|endoftext|>", split_special_tokens=False, tokenizer_class="Qwen2Tokenizer", unk_token=None,
    )  # fmt: skip
    if layout.base:
        settings["eos_token"] = "<|endoftext|>"
    if layout.config == "5":
        settings |= dict(
            backend="tokenizers", extra_special_tokens=special, is_local=False, processor_class=PROCESSOR[layout.family]
        )
        files = {"tokenizer.json": vocabulary_files()["tokenizer.json"]}
    else:
        added = {str(151643 + i): dict(content=token, lstrip=False, normalized=False, rstrip=False, single_word=False, special=i < 14)
                 for i, token in enumerate(SPECIAL_TOKENS)}  # fmt: skip
        settings |= dict(add_bos_token=False, added_tokens_decoder=added, additional_special_tokens=special)
        files = dict(vocabulary_files())
    if layout.config in ("4.51", "4.57"):
        settings |= dict(extra_special_tokens={}, processor_class=PROCESSOR[layout.family])
        files["added_tokens.json"] = {token: 151643 + i for i, token in enumerate(SPECIAL_TOKENS)}
        files["special_tokens_map.json"] = dict(
            additional_special_tokens=special, eos_token=added["151645"], pad_token=added["151643"]
        )
    template = WITH_PICTURES.replace("SYSTEM", "false" if layout.family == "qwen3_vl" else "true")
    if layout.text_only:
        settings["chat_template"] = TEXT_ONLY
    if layout.template == "tokenizer_config.json":
        settings["chat_template"] = template
    elif layout.template == "additional":
        files |= {"chat_template.jinja": template, "additional_chat_templates/tool_use.jinja": TEXT_ONLY}
    elif layout.template == "chat_template.jinja":
        files["chat_template.jinja"] = template
    else:
        files[layout.template] = {"chat_template": template}
        if layout.template == "processor_config.json":
            files[layout.template] |= {"processor_class": PROCESSOR[layout.family]}
    return files | {"tokenizer_config.json": settings}
