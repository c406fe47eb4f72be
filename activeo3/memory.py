"""What a training run needs: memory per GPU, and the shortest time that a step can take.

    python -m activeo3.memory --model 7B --gpus 8x80
    python -m activeo3.memory --model 3B --gpus 1x141 --prompts 4 --recompute true
    python -m activeo3.memory --model FOLDER --gpus 4x48 --group 16

``--gpus 8x80`` is eight GPUs of 80 GB; all other flags are those of train.py, on top of ``--preset paper``.
Nothing is loaded: the numbers follow from the sizes in a model's config.json.

Memory is the largest of what the three parts of a step hold, beside what lies there all the time. Weights and
gradients are bfloat16 (2 bytes each), the optimizer's copy and both moments float32 (12), all of it divided
among the GPUs by ZeRO-3; the frozen reference is divided as well. While a rank looks or acts it holds one
model whole and a key-value cache, and two models for the table at the end; while it learns, the activations and the mask
of one packed row per prompt.

The time is a floor, not a forecast: every phase does its arithmetic at the GPU's peak or moves its bytes at
full bandwidth, whichever takes longer, and nothing is lost between kernels or ranks. A good run takes three
to four times as long.

Readings: a picture is square, with the pixels of a sensing view; answers are as long as the limit allows in
``memory`` and half as long in ``seconds``; every answer proposes as many regions as it may, and an episode
(--task zoom_qa) is shown as many crops. Not counted: the allocator's gaps, the CUDA context (about 1 GB) and the
buffers of collectives.
"""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Self, Sequence

from activeo3 import processes, terminal
from activeo3.cli import read_object
from activeo3.config import ConfigError, TrainConfig
from activeo3.families import FAMILIES

GB = 1e9

SHORT = 256
"""attention.SHORT, which would load torch."""


@dataclass(frozen=True)
class Sizes:
    """What decides memory and time about an architecture: numbers of its config.json."""

    family: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    key_value_heads: int
    head: int
    """width of one head"""
    vocabulary: int
    tied: bool
    """the output head is the embedding"""
    vision_layers: int
    vision_hidden: int
    vision_mlp: int
    vision_full: int
    """vision layers in which every patch sees every other; in the rest it sees its window"""
    window: int
    """patches in a window"""
    patch: int
    """pixels per patch and axis"""
    merge: int
    """patches per visual token and axis"""
    deepstack: int = 0
    """how many further mergers feed lower layers of the text tower (Qwen3-VL)"""
    vision_places: int = 0
    """learned positions of the vision tower (Qwen3-VL)"""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read a config.json of a supported family. Raises KeyError for a number that is not there."""
        text, vision = config.get("text_config", config), config["vision_config"]
        full, depth = vision.get("fullatt_block_indexes"), vision["depth"]
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
            vision_layers=depth,
            vision_hidden=(
                width := vision["embed_dim" if "embed_dim" in vision else "hidden_size"]
            ),  # Qwen2-VL's hidden_size is the text tower's
            vision_mlp=vision["mlp_ratio"] * width if "mlp_ratio" in vision else vision["intermediate_size"],
            vision_full=depth if full is None else len(full),
            window=(vision.get("window_size", 0) // vision["patch_size"]) ** 2,
            patch=vision["patch_size"],
            merge=vision.get("spatial_merge_size", 2),
            deepstack=len(vision.get("deepstack_visual_indexes", ())),
            vision_places=vision.get("num_position_embeddings", 0),
        )

    @property
    def body(self) -> int:
        """Weights of the text tower's matrices: the ones that every token is multiplied with."""
        attention = 2 * self.hidden * self.head * (self.heads + self.key_value_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def output(self) -> int:
        """Weights of the output head, which only some columns are multiplied with."""
        return self.hidden * self.vocabulary

    @property
    def vision_body(self) -> int:
        """Weights of the vision tower's matrices, apart from mergers and patch embedding."""
        matrices = 3 if FAMILIES[self.family].gated_vision else 2
        return self.vision_layers * (4 * self.vision_hidden**2 + matrices * self.vision_hidden * self.vision_mlp)

    @property
    def merger(self) -> int:
        """Weights of one merger of patches to a visual token."""
        merged = self.merge**2 * self.vision_hidden
        return merged * merged + merged * self.hidden

    @property
    def parameters(self) -> int:
        """All weights; norms and biases, a thousandth of them, are not counted."""
        embeddings = self.output * (1 if self.tied else 2)
        first = 3 * 2 * self.patch**2 * self.vision_hidden + self.vision_places * self.vision_hidden
        return self.body + embeddings + self.vision_body + self.merger * (1 + self.deepstack) + first

    @property
    def cache(self) -> int:
        """Bytes of the key-value cache per token."""
        return 2 * 2 * self.layers * self.key_value_heads * self.head


def _qwen(
    layers: int,
    hidden: int,
    mlp: int,
    heads: int,
    key_value_heads: int,
    vocabulary: int = 152_064,
    vision_mlp: int = 3_420,
) -> Sizes:
    """A member of the Qwen2.5-VL family; they share nearly all of the vision tower."""
    return Sizes("qwen2_5_vl", layers, hidden, mlp, heads, key_value_heads, 128, vocabulary, hidden == 2048,
                 32, 1280, vision_mlp, 4, 64, 14, 2)  # fmt: skip


KNOWN = {
    "3B": _qwen(36, 2048, 11_008, 16, 2, vocabulary=151_936),
    "7B": _qwen(28, 3584, 18_944, 28, 4),
    "32B": _qwen(64, 5120, 27_648, 40, 8, vision_mlp=3_456),
    "72B": _qwen(80, 8192, 29_568, 64, 8, vision_mlp=3_456),
}
"""Qwen2.5-VL by size; every other model is read from its folder."""


def sizes_of(model: str) -> Sizes:
    """Sizes of a folder's model, or of a Qwen2.5-VL by size (``7B``) or hub id.

    Raises ConfigError for anything else.
    """
    folder = Path(model)
    if folder.is_dir():
        found = read_object(folder / "config.json", f"--model {folder / 'config.json'}")
        counted = [name for name, family in FAMILIES.items() if family.saved]
        if found.get("model_type") not in counted:
            raise ConfigError(
                f"--model {model} is a {found.get('model_type')} model; supported are {', '.join(counted)}."
            )
        try:
            return Sizes.of(found)
        except KeyError as missing:
            raise ConfigError(
                f"--model {folder / 'config.json'} has no {missing}; copy it from the original model."
            ) from None
    size = re.fullmatch(r"(?:Qwen/Qwen2\.5-VL-)?(\d+B)(?:-Instruct)?", model)
    if not size or size[1] not in KNOWN:
        raise ConfigError(f"--model {model} is neither a folder nor one of: {', '.join(KNOWN)}.")
    return KNOWN[size[1]]


# ---------------------------------------------------------------------- the work of a step


@dataclass(frozen=True)
class Work:
    """Tokens and patches of one step on one rank."""

    patches: int
    """of a sensing view"""
    crop_patches: int
    prompt: int
    """tokens of a sensing prompt"""
    crop_prompt: int
    answer: int
    task_answer: int
    crops: int
    """that the task model works on in one step"""
    shown: int = 0
    """tokens that an episode is shown between its turns"""
    shown_patches: int = 0
    """of the crops among them"""

    @classmethod
    def of(cls, sizes: Sizes, config: TrainConfig) -> Self:
        """For square pictures with the pixels of a sensing view, and as many regions as allowed."""
        words = {"paper": (260, 60), "short": (20, 20), "zoom_roi": (260, 60)}[
            config.wording
        ]  # of the prompts, template included
        views = [min(side * side, most) // sizes.patch**2 for side, most in
                 ((config.sensing_side, config.max_view_pixels), (config.crop_side, 2**40))]  # fmt: skip
        prompts = [patches // sizes.merge**2 + text for patches, text in zip(views, words)]
        if config.task == "zoom_qa":
            shown = min(config.max_zooms * prompts[1], config.episode_tokens)
            answer = min(config.max_turns * config.max_new_tokens, config.episode_tokens - shown)
            return cls(*views, *prompts, answer, 0, 0, shown, config.max_zooms * views[1])
        crops = config.prompts * config.group * config.regions if config.task in ("sense", "segment") else 0
        return cls(*views, *prompts, config.max_new_tokens, config.task_max_new_tokens, crops)


def standing(parameters: int, learning: int, half: bool = True) -> int:
    """Bytes of a model that lie there all through a run, on all ranks together.

    Every weight, in bfloat16 (``half``) or float32. For one that learns a gradient as wide, and in float32 the optimizer's
    two moments and DeepSpeed's copy, which it makes of float32 weights as well.
    """
    width = 2 if half else 4
    return parameters * width + learning * (width + 3 * 4)


def memory(sizes: Sizes, config: TrainConfig, gpus: int) -> dict[str, float]:
    """GB on each of so many GPUs, by what holds them; ``sum`` is the most at any time."""
    work, weights = Work.of(sizes, config), 2 * sizes.parameters
    branch = work.answer + work.shown
    again = prompts_read(config)
    row = again * work.prompt + config.group * branch
    seen = again * work.patches + config.group * work.shown_patches if learns_to_see(config) else 0
    repeated = config.group * work.prompt * sizes.cache if config.scoring == "cached" else 0
    looking = config.prompts * config.group * (work.prompt + branch) * sizes.cache
    other = sizes_of(config.other_mllm) if config.other_mllm else None  # acts in the place of the reference
    acting = min(work.crops, config.task_batch) * (work.crop_prompt + work.task_answer) * (other or sizes).cache
    queries = row if work.prompt < SHORT else config.group * branch + 1  # attention.free_columns
    # Where the models are looked at side by side, in the table at the end, two of them are whole; on one GPU they are anyway.
    whole = 0 if gpus == 1 else 2 * weights if config.eval_examples and not config.lora else weights
    another = 2 * other.parameters if other else 0
    whole += 0 if gpus == 1 else another if config.eval_examples else max(0, another - weights)
    found = {
        "policy": standing(sizes.parameters, trained(sizes, config)) / gpus,
        "reference": (0 if config.lora else weights / gpus) + another / gpus,  # and the other task model
        "models whole, to look, act, compare": whole,
        "its key-value cache": max(looking, acting if config.task_model == "mllm" else 0),
        "activations, to learn": config.micro_prompts * (activations(sizes, seen, row, config.recompute) + repeated),
        # added to scores in bfloat16, one for all layers (attention.mask_for); FlexAttention's is small
        "mask, to learn": 0
        if config.attention == "flex" or separate(config)
        else config.micro_prompts * 2 * queries * row,
        # the head's bfloat16 logits, those of the answers' tokens, and both gradients (grpo.answer_logps)
        "logits, to learn": config.micro_prompts * 8 * config.group * work.answer * sizes.vocabulary,
    }
    policy, reference, gathered, cache, saved, mask, logits = found.values()
    found["sum"] = policy + reference + max(gathered + cache, saved + mask + logits)
    return {name: number / GB for name, number in found.items()}


def trained(sizes: Sizes, config: TrainConfig) -> int:
    """How many weights learn: all, those of the text tower, or those of adapters beside all of its matrices."""
    if config.lora:
        attention = 4 * sizes.hidden + 2 * sizes.head * (sizes.heads + sizes.key_value_heads)
        return sizes.layers * config.lora * (attention + 3 * (sizes.hidden + sizes.mlp))
    return sizes.body if config.train_only else sizes.parameters


def separate(config: TrainConfig) -> bool:
    """Whether every answer is scored in a row of its own, under a small mask of transformers' own."""
    return config.scoring in ("cached", "rows")


def prompts_read(config: TrainConfig) -> int:
    """How often a prompt is read to score its group (scoring.py)."""
    return config.group if config.scoring == "rows" else 1


def learns_to_see(config: TrainConfig) -> bool:
    """Whether the vision tower learns; if not, what the rollout has seen is all that the update needs (vision.py)."""
    return not (config.train_only or config.lora)


def activations(sizes: Sizes, patches: int, row: int, recompute: bool) -> float:
    """Bytes that a packed row of so many tokens and its patches keep for the backward pass of both towers."""
    each = FAMILIES[sizes.family].saved
    layer = (
        each.hidden * sizes.hidden
        + each.query * sizes.heads * sizes.head
        + each.key_value * sizes.key_value_heads * sizes.head
        + each.mlp * sizes.mlp
    )
    vision = each.vision_hidden * sizes.vision_hidden + each.vision_mlp * sizes.vision_mlp
    if recompute:  # the input of every layer, and all of the one layer that is being recomputed
        layers, towers = 2 * sizes.layers * sizes.hidden, 2 * sizes.vision_layers * sizes.vision_hidden
        return max(row * (layers + layer) + patches * towers, patches * (towers + vision))
    return row * sizes.layers * layer + patches * sizes.vision_layers * vision


def remedies(sizes: Sizes, config: TrainConfig, gpus: int, room: float) -> list[str]:
    """What would make it fit into ``room`` GB: each way that alone is enough, without superfluous parts."""
    smaller, again, adapters = {"micro_prompts": 1}, {"recompute": True}, {"lora": 16}
    found: list[dict[str, int]] = []
    for way in (smaller, again, smaller | again, adapters, again | adapters, smaller | again | adapters):
        fits = memory(sizes, replace(config, **way), gpus)["sum"] <= room
        if fits and not any(part.items() <= way.items() for part in found):
            found.append(way)
    said = [" ".join(f"--{name} {str(value).lower()}" for name, value in way.items()) for way in found]
    sparing = replace(config, **smaller, **again)
    enough = next((n for n in range(gpus + 1, 1025) if memory(sizes, sparing, n)["sum"] <= room), None)
    if enough and all("lora" in way for way in found):
        said.append(f"--micro_prompts 1 --recompute true on {enough} GPUs")
    return said or [
        f"GPUs with more memory: even divided among many, this model needs {memory(sizes, sparing, 1024)['sum']:.0f} GB on each"
    ]


def seconds(sizes: Sizes, config: TrainConfig, peak: float, bandwidth: float) -> dict[str, float]:
    """Shortest times of one step's phases at ``peak`` FLOP/s and ``bandwidth`` bytes/s, on one rank."""
    work, P, G = Work.of(sizes, config), config.prompts, config.group
    answer, task_answer = work.answer // 2, work.task_answer // 2
    see_crop = vision_flops(sizes, work.crop_patches)
    see = vision_flops(sizes, work.patches) + G * see_crop * (
        work.shown_patches // work.crop_patches
    )  # with an episode's crops
    prefill, prefill_crop = text_flops(sizes, work.prompt, 0, 1), text_flops(sizes, work.crop_prompt, 0, 1)
    branch = text_flops(sizes, answer + work.shown, work.prompt, answer)
    row = P * (prompts_read(config) * text_flops(sizes, work.prompt, 0, 1) + G * branch)
    batches = -(-work.crops // config.task_batch)
    read = G * text_flops(sizes, work.shown, work.prompt, 0)
    look = P * (see + prefill + read) / peak + decoding(sizes, P * G, work.prompt + work.shown, answer, peak, bandwidth)
    act = work.crops * (see_crop + prefill_crop) / peak
    act += batches * decoding(sizes, work.crops // max(1, batches), work.crop_prompt, task_answer, peak, bandwidth)
    again = 1 if config.recompute else 0
    see_again = P * prompts_read(config) * see if learns_to_see(config) else 0.0
    found = {
        "look": look,
        "act": act if config.task_model == "mllm" else 0.0,
        "reference": (row + see_again) / peak if config.beta else 0.0,
        "update": (3 + again) * (row + see_again) / peak,
        "optimizer": 28 * trained(sizes, config) / bandwidth,
    }
    return found | {"sum": sum(found.values())}


def text_flops(sizes: Sizes, tokens: int, before: int, scored: int) -> float:
    """FLOPs of the text tower on a causal run of tokens behind ``before`` others, with the head on ``scored``."""
    pairs = tokens * before + tokens * (tokens + 1) / 2
    return 2 * sizes.body * tokens + 2 * sizes.output * scored + 4 * pairs * sizes.heads * sizes.head * sizes.layers


def vision_flops(sizes: Sizes, patches: int) -> float:
    """FLOPs of the vision tower and its mergers on one picture."""
    windowed = sizes.vision_layers - sizes.vision_full
    pairs = sizes.vision_full * patches**2 + windowed * patches * min(sizes.window, patches)
    tokens = patches // sizes.merge**2
    return (
        2 * sizes.vision_body * patches
        + 2 * sizes.merger * (1 + sizes.deepstack) * tokens
        + 4 * sizes.vision_hidden * pairs
    )


def decoding(sizes: Sizes, rows: int, prompt: int, tokens: int, peak: float, bandwidth: float) -> float:
    """Seconds to write ``tokens`` tokens in each of so many rows: weights once a token, caches once a row."""
    weights = 2 * (sizes.body + sizes.output) * tokens
    cached = sizes.cache * rows * (prompt * tokens + tokens * (tokens + 1) / 2)
    flops = rows * text_flops(sizes, tokens, prompt, tokens)
    return max((weights + cached) / bandwidth, flops / peak)


# ---------------------------------------------------------------------- for people


def plan(sizes: Sizes, config: TrainConfig, gpus: int, room: float, peak: float, bandwidth: float) -> str:
    """Memory and time as two small tables, with what would make it fit if it does not."""
    needed, floor = memory(sizes, config, gpus), seconds(sizes, config, peak, bandwidth)
    lines = [
        f"{sizes.parameters / 1e9:.2f} billion parameters on {gpus} x {room:.0f} GB; {config.prompts} prompts x {config.group} answers on each",
        "",
        "memory per GPU, GB",
    ]
    lines += [f"  {name:<38}{number:8.1f}" for name, number in needed.items()]
    lines += [
        "",
        verdict(sizes, config, gpus, room),
        "",
        f"one step cannot be faster than, seconds (at {peak / 1e12:.0f} TFLOP/s and {bandwidth / 1e12:.1f} TB/s)",
    ]
    return "\n".join(lines + [f"  {name:<38}{number:8.2f}" for name, number in floor.items()])


def verdict(sizes: Sizes, config: TrainConfig, gpus: int, room: float) -> str:
    """One sentence: it fits, or what would make it fit."""
    needed = memory(sizes, config, gpus)["sum"]
    if needed <= room:
        return f"It fits: {needed:.0f} of {room:.0f} GB."
    return f"It does not fit: {needed:.0f} of {room:.0f} GB. What would help: {'; or '.join(remedies(sizes, config, gpus, room))}."


def forecast(config: TrainConfig, gpus: int, room: float) -> str:
    """What train.py says before it loads anything; nothing without a GPU (``room`` 0) or for a hub id that is not known here."""
    try:
        return f"activeo3: memory per GPU. {verdict(sizes_of(config.model), config, gpus, room)}" if room else ""
    except ConfigError:  # about the model, which loading will say better
        return ""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: train.py's flags and the machine's."""
    parser = argparse.ArgumentParser(
        description="Memory per GPU and shortest step time of a training run.", allow_abbrev=False
    )
    parser.add_argument("--gpus", default="8x80", help="how many GPUs, of how many GB each [8x80]")
    parser.add_argument("--peak", type=float, default=989.0, help="bfloat16 TFLOP/s of one GPU [989]")
    parser.add_argument("--bandwidth", type=float, default=4.8, help="TB/s of its memory [4.8]")
    own, rest = parser.parse_known_args(argv)
    machine = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", own.gpus)
    if not machine:
        raise ConfigError(f"--gpus is {own.gpus!r}; write how many and how many GB each, as in 8x80.")
    if not (own.peak > 0 and own.bandwidth > 0):
        raise ConfigError("--peak and --bandwidth must be above 0.")
    config = TrainConfig.from_args(["--preset", "paper", "--data", "scenes", *rest])
    gpus, room = map(int, machine.groups())
    print(plan(sizes_of(config.model), config, gpus, float(room), own.peak * 1e12, own.bandwidth * 1e12))


if __name__ == "__main__":
    terminal.protect()
    processes.watch()
    processes.tell(kept=lambda: "nothing was loaded, and nothing is written")
    with processes.one_sentence(ConfigError):
        main()
