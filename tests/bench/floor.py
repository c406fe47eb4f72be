"""The shortest time that a step of training can take, by the arithmetic of its phases.

    python tests/bench/floor.py --model 7B --gpus 8 --peak 989 --bandwidth 4.8 --link 450
    python tests/bench/floor.py --model 3B --prompts 4 --recompute true

All other flags are those of train.py, on top of ``--preset paper``. A floor, not a forecast: every phase does its
arithmetic at the GPU's peak or moves its bytes at full bandwidth, whichever takes longer, and nothing is lost between
kernels or ranks. ZeRO-3's weights come from the other ranks: before rollout and task model, when there is nothing else
to do, and layer by layer under the arithmetic of reference and update. A good run takes three to four times as long.
Answers are half as long as the limit allows.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Sequence

from activeo3.cli import ConfigError
from activeo3.config import TrainConfig
from activeo3.memory import Sizes, Work, prompts_read, sizes_of, trained, trains_vision

WINDOWED = {"qwen2_5_vl": (4, 64)}
"""Families whose vision layers see windows: (layers in which every patch sees every other, patches in a window)."""


@dataclass(frozen=True)
class Ranks:
    """How many GPUs share a model, and the bytes per second that each of them receives from the others."""

    gpus: int = 1
    link: float = 450e9

    def gather(self, parameters: int) -> float:
        """Seconds to make a model whole in bfloat16, or to add up its gradients: the part that others hold moves."""
        return 2 * parameters * (self.gpus - 1) / self.gpus / self.link


def seconds(
    sizes: Sizes, config: TrainConfig, peak: float, bandwidth: float, ranks: Ranks = Ranks()
) -> dict[str, float]:
    """Shortest times of one step's phases at ``peak`` FLOP/s and ``bandwidth`` bytes/s, on one of the ``ranks``."""
    work, P, G = Work.of(sizes, config), config.prompts, config.group
    answer, task_answer = work.answer // 2, work.task_answer // 2
    see_crop = vision_flops(sizes, work.crop_patches)
    see = vision_flops(sizes, work.patches) + G * see_crop * (work.shown_patches // work.crop_patches)
    prefill, prefill_crop = text_flops(sizes, work.prompt, 0, 1), text_flops(sizes, work.crop_prompt, 0, 1)
    branch = text_flops(sizes, answer + work.shown, work.prompt, answer)
    row = P * (prompts_read(config) * prefill + G * branch)
    batches = -(-work.crops // config.task_batch)
    read = G * text_flops(sizes, work.shown, work.prompt, 0)
    rollout = P * (see + prefill + read) / peak
    rollout += decoding(sizes, P * G, work.prompt + work.shown, answer, peak, bandwidth)
    act = work.crops * (see_crop + prefill_crop) / peak
    act += batches * decoding(sizes, work.crops // max(1, batches), work.crop_prompt, task_answer, peak, bandwidth)
    see_again = P * prompts_read(config) * see if trains_vision(config) else 0.0
    learning, micro = trained(sizes, config), P // config.micro_prompts
    width = 2 if micro == 1 else 4  # bytes of a gradient
    whole = ranks.gather(sizes.parameters)  # once for each pass through the model
    other = ranks.gather(sizes_of(config.other_mllm).parameters) if config.other_mllm else whole
    found = {
        "rollout": rollout + whole,
        "task model": act + other if config.task_model == "mllm" and work.crops else 0.0,
        "reference": max((row + see_again) / peak, micro * whole) if config.beta else 0.0,
        "update": max(
            (4 if config.recompute else 3) * (row + see_again) / peak, micro * (2 * whole + ranks.gather(learning))
        ),
        # gradients are read twice, once for their norm; weight and moments are read and written, bfloat16 is written
        "optimizer": (2 * width + 2 * 12 + 2) * learning / ranks.gpus / bandwidth,
    }
    return found | {"sum": sum(found.values())}


def text_flops(sizes: Sizes, tokens: int, before: int, scored: int) -> float:
    """FLOPs of the text tower on a causal run of tokens behind ``before`` others, with the head on ``scored``."""
    pairs = tokens * before + tokens * (tokens + 1) / 2
    output = 2 * sizes.hidden * sizes.vocabulary * scored
    return 2 * sizes.body * tokens + output + 4 * pairs * sizes.heads * sizes.head * sizes.layers


def vision_flops(sizes: Sizes, patches: int) -> float:
    """FLOPs of the vision tower and its mergers on one picture."""
    full, window = WINDOWED.get(sizes.family, (sizes.vision_layers, 0))
    pairs = full * patches**2 + (sizes.vision_layers - full) * patches * min(window, patches)
    merged = 2 * sizes.merger * (1 + sizes.deepstack) * (patches // sizes.merge**2)
    return 2 * sizes.vision_body * patches + merged + 4 * sizes.vision_hidden * pairs


def decoding(sizes: Sizes, rows: int, prompt: int, tokens: int, peak: float, bandwidth: float) -> float:
    """Seconds to write ``tokens`` tokens in each of so many rows: weights once a token, caches once a row."""
    weights = 2 * (sizes.body + sizes.hidden * sizes.vocabulary) * tokens
    cached = sizes.cache * rows * (prompt * tokens + tokens * (tokens + 1) / 2)
    flops = rows * text_flops(sizes, tokens, prompt, tokens)
    return max((weights + cached) / bandwidth, flops / peak)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the floor of one step, by phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=989.0, help="bfloat16 TFLOP/s of one GPU [989]")
    parser.add_argument("--bandwidth", type=float, default=4.8, help="TB/s of its memory [4.8, an H200; H100: 3.35]")
    parser.add_argument("--gpus", type=int, default=8, help="how many GPUs share the models [8]")
    parser.add_argument("--link", type=float, default=450.0, help="GB/s that a GPU receives from the others [450]")
    own, rest = parser.parse_known_args(argv)
    if not (own.peak > 0 and own.bandwidth > 0 and own.gpus > 0 and own.link > 0):
        parser.error("--peak, --bandwidth, --gpus and --link must be above 0")
    try:
        config = TrainConfig.from_args(["--preset", "paper", "--data", "scenes", *rest])
        ranks = Ranks(own.gpus, own.link * 1e9)
        found = seconds(sizes_of(config.model), config, own.peak * 1e12, own.bandwidth * 1e12, ranks)
    except ConfigError as error:
        sys.exit(f"activeo3: {error}")
    print(f"one step cannot be faster than, seconds (at {own.peak:.0f} TFLOP/s and {own.bandwidth:.1f} TB/s)")
    for name, number in found.items():
        print(f"  {name:<20}{number:8.2f}")


if __name__ == "__main__":
    main()
