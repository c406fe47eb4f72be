"""Forecast of a training run's memory per GPU, from the sizes in a model's config.json; nothing is loaded.

    python -m activeo3.memory --model 7B --gpus 8x80
    python -m activeo3.memory --model FOLDER --gpus 4x48 --group 16 --recompute true

``--gpus 8x80`` is eight GPUs of 80 GB; all other flags are those of train.py, on top of ``--preset paper``.

Memory is the largest of what the parts of a step hold, beside what is resident all the time. Weights and gradients are
bfloat16 (2 bytes each; a sum of micro-batches has 4), the optimizer's copy and both moments float32 (12), all of it
divided among the GPUs by ZeRO-3, as is the frozen reference. During rollout and task model a rank holds one model
whole and a key-value cache, and two models for the table at the end; during the update, the activations and the mask
of one packed row per prompt.

A picture is square, with the pixels of a sensing view; answers are as long as the limit allows; every answer proposes
as many regions as it may, and an episode (--task zoom_qa) is shown as many crops. Not counted: the allocator's gaps,
the CUDA context (about 1 GB) and the buffers of collectives.
"""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Self, Sequence

from activeo3 import processes, terminal
from activeo3.cli import read_object
from activeo3.config import TASK_ROLE, ConfigError, TrainConfig
from activeo3.families import FAMILIES

GB = 1e9
SHORT = 256  # attention.SHORT, which would load torch
PROMPT_WORDS = {"paper": (260, 60), "short": (20, 20), "zoom_roi": (260, 60)}
"""Tokens of a sensing and of a task prompt beside the image, template included."""


@dataclass(frozen=True)
class Sizes:
    """What decides memory about an architecture: numbers of its config.json."""

    family: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    key_value_heads: int
    head: int  # width of one head
    vocabulary: int
    tied: bool  # the output head is the embedding
    vision_layers: int
    vision_hidden: int
    vision_mlp: int
    patch: int  # pixels per axis
    merge: int  # patches per visual token and axis
    deepstack: int = 0  # further mergers that feed lower layers of the text tower (Qwen3-VL)
    vision_places: int = 0  # learned positions of the vision tower (Qwen3-VL)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read a config.json of a supported family. Raises KeyError for a number that is not there."""
        text, vision = config.get("text_config", config), config["vision_config"]
        width = vision["embed_dim" if "embed_dim" in vision else "hidden_size"]  # Qwen2-VL's is the text tower's
        return cls(
            family=config["model_type"],
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            mlp=text["intermediate_size"],
            heads=text["num_attention_heads"],
            key_value_heads=text["num_key_value_heads"],
            head=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            vocabulary=text["vocab_size"],
            tied=config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
            vision_layers=vision["depth"],
            vision_hidden=width,
            vision_mlp=vision["mlp_ratio"] * width if "mlp_ratio" in vision else vision["intermediate_size"],
            patch=vision["patch_size"],
            merge=vision.get("spatial_merge_size", 2),
            deepstack=len(vision.get("deepstack_visual_indexes", ())),
            vision_places=vision.get("num_position_embeddings", 0),
        )

    @property
    def body(self) -> int:
        """Weights of the text tower's matrices, that every token is multiplied with."""
        attention = 2 * self.hidden * self.head * (self.heads + self.key_value_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def vision_body(self) -> int:
        """Weights of the vision tower's matrices, apart from mergers and patch embedding."""
        matrices = 3 if FAMILIES[self.family].gated_vision else 2
        return self.vision_layers * (4 * self.vision_hidden**2 + matrices * self.vision_hidden * self.vision_mlp)

    @property
    def merger(self) -> int:
        """Weights of one merger of patches to a visual token."""
        merged = self.merge**2 * self.vision_hidden
        return merged * (merged + self.hidden)

    @property
    def parameters(self) -> int:
        """All weights; norms and biases, a thousandth of them, are not counted."""
        embeddings = self.hidden * self.vocabulary * (1 if self.tied else 2)
        first = (6 * self.patch**2 + self.vision_places) * self.vision_hidden
        return self.body + embeddings + self.vision_body + self.merger * (1 + self.deepstack) + first

    @property
    def cache(self) -> int:
        """Bytes of the key-value cache per token."""
        return 2 * 2 * self.layers * self.key_value_heads * self.head

    def adapters(self, rank: int) -> int:
        """Weights of adapters of this rank beside all of the text tower's matrices."""
        attention = 4 * self.hidden + 2 * self.head * (self.heads + self.key_value_heads)
        return self.layers * rank * (attention + 3 * (self.hidden + self.mlp))


KNOWN = {
    "3B": Sizes("qwen2_5_vl", 36, 2048, 11_008, 16, 2, 128, 151_936, True, 32, 1280, 3_420, 14, 2),
    "7B": Sizes("qwen2_5_vl", 28, 3584, 18_944, 28, 4, 128, 152_064, False, 32, 1280, 3_420, 14, 2),
    "32B": Sizes("qwen2_5_vl", 64, 5120, 27_648, 40, 8, 128, 152_064, False, 32, 1280, 3_456, 14, 2),
    "72B": Sizes("qwen2_5_vl", 80, 8192, 29_568, 64, 8, 128, 152_064, False, 32, 1280, 3_456, 14, 2),
}
"""Qwen2.5-VL by size; every other model is read from its folder."""


def sizes_of(model: str) -> Sizes:
    """Sizes of a folder's model, or of a Qwen2.5-VL by size (``7B``) or hub id. Raises ConfigError for anything
    else."""
    folder = Path(model)
    if not folder.is_dir():
        size = re.fullmatch(r"(?:Qwen/Qwen2\.5-VL-)?(\d+B)(?:-Instruct)?", model)
        if not size or size[1] not in KNOWN:
            raise ConfigError(f"--model {model} is neither a folder nor one of: {', '.join(KNOWN)}.")
        return KNOWN[size[1]]
    path = folder / "config.json"
    found, counted = read_object(path, f"--model {path}"), [name for name, family in FAMILIES.items() if family.saved]
    if found.get("model_type") not in counted:
        raise ConfigError(f"--model {model} is a {found.get('model_type')} model; supported are {', '.join(counted)}.")
    try:
        return Sizes.of(found)
    except KeyError as missing:
        raise ConfigError(f"--model {path} has no {missing}; copy it from the original model.") from None


@dataclass(frozen=True)
class Work:
    """Tokens and patches of one step on one rank."""

    patches: int  # of a sensing view
    crop_patches: int
    prompt: int  # tokens of a sensing prompt
    crop_prompt: int
    answer: int
    task_answer: int
    crops: int  # that the task model works on in one step
    shown: int = 0  # tokens that an episode is shown between its turns
    shown_patches: int = 0  # of the crops among them

    @classmethod
    def of(cls, sizes: Sizes, config: TrainConfig) -> Self:
        """For square pictures with the pixels of a sensing view, and as many regions as allowed."""
        pixels = (min(config.sensing_side**2, config.max_view_pixels), config.crop_side**2)
        views = [part // sizes.patch**2 for part in pixels]
        prompts = [view // sizes.merge**2 + words for view, words in zip(views, PROMPT_WORDS[config.wording])]
        if config.task == "zoom_qa":
            shown = min(config.max_zooms * prompts[1], config.episode_tokens)
            answer = min(config.max_turns * config.max_new_tokens, config.episode_tokens - shown)
            return cls(*views, *prompts, answer, 0, 0, shown, config.max_zooms * views[1])
        if config.task in TASK_ROLE:
            return cls(views[1], views[1], prompts[1], prompts[1], config.task_max_new_tokens, 0, 0)
        crops = config.prompts * config.group * config.regions if config.task in ("sense", "segment") else 0
        return cls(*views, *prompts, config.max_new_tokens, config.task_max_new_tokens, crops)


def trained(sizes: Sizes, config: TrainConfig) -> int:
    """How many weights are trained: all, those of the text tower, or those of adapters."""
    return sizes.adapters(config.lora) if config.lora else sizes.body if config.train_only else sizes.parameters


def prompts_read(config: TrainConfig) -> int:
    """How often a prompt is read to score its group (model.py)."""
    return config.group if config.scoring == "rows" else 1


def trains_vision(config: TrainConfig) -> bool:
    """Whether the vision tower is trained; if not, its features of the rollout are all that the update needs."""
    return not (config.train_only or config.lora)


def activations(sizes: Sizes, patches: int, row: int, recompute: bool) -> float:
    """Bytes that a packed row of so many tokens and its patches keep for the backward pass of both towers."""
    each = FAMILIES[sizes.family].saved
    layer = each.hidden * sizes.hidden + each.query * sizes.heads * sizes.head
    layer += each.key_value * sizes.key_value_heads * sizes.head + each.mlp * sizes.mlp
    vision = each.vision_hidden * sizes.vision_hidden + each.vision_mlp * sizes.vision_mlp
    if recompute:  # the input of every layer, and all of the one layer that is being recomputed
        layers, towers = 2 * sizes.layers * sizes.hidden, 2 * sizes.vision_layers * sizes.vision_hidden
        return max(row * (layers + layer) + patches * towers, patches * (towers + vision))
    return row * sizes.layers * layer + patches * sizes.vision_layers * vision


def standing(parameters: int, learning: int, width: int = 2, gradient: int = 2) -> int:
    """Bytes of a model that DeepSpeed trains, between two steps, over all ranks.

    Weights have ``width`` bytes and gradients ``gradient``; the optimizer's weights and its two moments have 4 each."""
    return parameters * width + learning * (gradient + 3 * 4)


def memory(sizes: Sizes, config: TrainConfig, gpus: int) -> dict[str, float]:
    """GB on each of so many GPUs, by what holds them; ``sum`` is the most at any time."""
    work, weights = Work.of(sizes, config), 2 * sizes.parameters
    other = sizes_of(config.other_mllm) if config.other_mllm else None  # task model in place of the reference
    more = 2 * other.parameters if other else 0
    # The table at the end gathers two models at once; on one GPU every model is whole anyway.
    whole = 2 * weights if config.eval_examples and not config.lora else weights
    whole += more if config.eval_examples else max(0, more - weights)
    branch, again = work.answer + work.shown, prompts_read(config)
    sampled = config.prompts * config.group * (work.prompt + branch) * sizes.cache
    cropped = min(work.crops, config.task_batch) * (work.crop_prompt + work.task_answer) * (other or sizes).cache
    row = again * work.prompt + config.group * branch
    seen = again * work.patches + config.group * work.shown_patches if trains_vision(config) else 0
    saved = activations(sizes, seen, row, config.recompute)
    saved += config.group * work.prompt * sizes.cache if config.scoring == "cached" else 0
    queries = row if work.prompt < SHORT else config.group * branch + 1  # attention.free_columns
    summed = config.micro_prompts < config.prompts  # in float32 (engine.ds_config)
    small_mask = config.attention == "flex" or config.scoring in ("cached", "rows")
    found = {
        "policy": standing(sizes.parameters, trained(sizes, config), 2, 4 if summed else 2) / gpus,
        "reference": (0 if config.lora else weights / gpus) + more / gpus,  # and the other task model
        "gathered models": whole if gpus > 1 else 0,
        "key-value cache": max(sampled, cropped if config.task_model == "mllm" else 0),
        "activations": config.micro_prompts * saved,
        # added to scores in bfloat16, one for all layers (attention.mask_for)
        "mask": 0 if small_mask else config.micro_prompts * 2 * queries * row,
        # the head's bfloat16 logits, those of the answers' tokens, and both gradients (grpo.answer_logps)
        "logits": config.micro_prompts * 8 * config.group * work.answer * sizes.vocabulary,
    }
    policy, reference, gathered, cache, *update = found.values()
    found["sum"] = policy + reference + max(gathered + cache, sum(update))
    return {name: number / GB for name, number in found.items()}


def remedies(sizes: Sizes, config: TrainConfig, gpus: int, room: float) -> list[str]:
    """What would make it fit into ``room`` GB: each change that alone is enough, without superfluous parts."""
    smaller, again, adapters = {"micro_prompts": 1}, {"recompute": True}, {"lora": 16}
    found: list[dict[str, int]] = []
    for change in (smaller, again, smaller | again, adapters, again | adapters, smaller | again | adapters):
        fits = memory(sizes, replace(config, **change), gpus)["sum"] <= room
        if fits and not any(part.items() <= change.items() for part in found):
            found.append(change)
    flags = [" ".join(f"--{name} {str(value).lower()}" for name, value in change.items()) for change in found]
    sparing = replace(config, **smaller, **again)
    enough = next((n for n in range(gpus + 1, 1025) if memory(sizes, sparing, n)["sum"] <= room), None)
    if enough and all("lora" in change for change in found):
        flags.append(f"--micro_prompts 1 --recompute true on {enough} GPUs")
    least = memory(sizes, sparing, 1024)["sum"]
    return flags or [f"GPUs with more memory: even divided among many, this model needs {least:.0f} GB on each"]


def verdict(sizes: Sizes, config: TrainConfig, gpus: int, room: float) -> str:
    """One sentence: it fits, or what would make it fit."""
    needed = memory(sizes, config, gpus)["sum"]
    if needed <= room:
        return f"It fits: {needed:.0f} of {room:.0f} GB."
    help = "; or ".join(remedies(sizes, config, gpus, room))
    return f"It does not fit: {needed:.0f} of {room:.0f} GB. What would help: {help}."


def forecast(config: TrainConfig, gpus: int, room: float) -> str:
    """What train.py prints before it loads anything; nothing without a GPU (``room`` 0) or for an unknown hub id."""
    try:
        return f"activeo3: memory per GPU. {verdict(sizes_of(config.model), config, gpus, room)}" if room else ""
    except ConfigError:  # about the model, which loading will say better
        return ""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: train.py's flags and the machine's."""
    parser = argparse.ArgumentParser(description="Memory per GPU of a training run.", allow_abbrev=False)
    parser.add_argument("--gpus", default="8x80", help="how many GPUs, of how many GB each [8x80]")
    own, rest = parser.parse_known_args(argv)
    if not (machine := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", own.gpus)):
        raise ConfigError(f"--gpus is {own.gpus!r}; write how many and how many GB each, as in 8x80.")
    config = TrainConfig.from_args(["--preset", "paper", "--data", "scenes", *rest])
    gpus, room = map(int, machine.groups())
    sizes = sizes_of(config.model)
    print(
        f"{sizes.parameters / 1e9:.2f} billion parameters on {gpus} x {room} GB; {config.prompts} prompts x "
        f"{config.group} answers on each\n\nmemory per GPU, GB"
    )
    for name, number in memory(sizes, config, gpus).items():
        print(f"  {name:<20}{number:8.1f}")
    print("\n" + verdict(sizes, config, gpus, room))


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    processes.tell(kept=lambda: "nothing was loaded, and nothing is written")
    with processes.one_sentence(ConfigError):
        main()
