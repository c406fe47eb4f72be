"""The shortest time that a step of training can take, by the arithmetic of its phases.

    python tests/bench/floor.py --model 7B --peak 989 --bandwidth 4.8
    python tests/bench/floor.py --model 3B --prompts 4 --recompute true

All other flags are those of train.py, on top of ``--preset paper``. A floor, not a forecast: every phase does its
arithmetic at the GPU's peak or moves its bytes at full bandwidth, whichever takes longer, and nothing is lost between
kernels or ranks. A good run takes three to four times as long. Answers are half as long as the limit allows.
"""

import argparse
import sys
from typing import Sequence

from activeo3.cli import ConfigError
from activeo3.config import TrainConfig
from activeo3.memory import Sizes, Work, prompts_read, sizes_of, trained, trains_vision

WINDOWED = {"qwen2_5_vl": (4, 64)}
"""Families whose vision layers see windows: (layers in which every patch sees every other, patches in a window)."""


def seconds(sizes: Sizes, config: TrainConfig, peak: float, bandwidth: float) -> dict[str, float]:
    """Shortest times of one step's phases at ``peak`` FLOP/s and ``bandwidth`` bytes/s, on one rank."""
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
    found = {
        "rollout": rollout,
        "task model": act if config.task_model == "mllm" else 0.0,
        "reference": (row + see_again) / peak if config.beta else 0.0,
        "update": (4 if config.recompute else 3) * (row + see_again) / peak,
        "optimizer": 28 * trained(sizes, config) / bandwidth,
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
    own, rest = parser.parse_known_args(argv)
    if not (own.peak > 0 and own.bandwidth > 0):
        parser.error("--peak and --bandwidth must be above 0")
    try:
        config = TrainConfig.from_args(["--preset", "paper", "--data", "scenes", *rest])
        found = seconds(sizes_of(config.model), config, own.peak * 1e12, own.bandwidth * 1e12)
    except ConfigError as error:
        sys.exit(f"activeo3: {error}")
    print(f"one step cannot be faster than, seconds (at {own.peak:.0f} TFLOP/s and {own.bandwidth:.1f} TB/s)")
    for name, number in found.items():
        print(f"  {name:<20}{number:8.2f}")


if __name__ == "__main__":
    main()
