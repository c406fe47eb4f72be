"""Where the time of one GRPO step of ours goes: seconds by phase and by kind of operation.

    python tests/bench/where.py                                       # a small model, half a minute
    python tests/bench/where.py --size 3b-slice --image_tokens 1300 --tokens 100   # layers as wide as the paper's, minutes
    python tests/bench/where.py --size 3b --prompts 4 --image_tokens 1300 --tokens 100 --micro 1   # on a GPU

One step to warm up, then one under torch's profiler, which takes time itself. An operation counts for what it does,
without those that it calls; what is left of the wall is Python, and on a GPU also waiting for it.
"""

import argparse
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

import torch
from contenders import Ours
from setting import SIZES, Point, Setting, Stopwatch
from step import PHASES, environment, quiet
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "matrix products": r"mm|bmm|addmm|mkldnn_linear|.*convolution.*",
    "attention": r".*(?:scaled_dot_product|flash_attention|efficient_attention).*",
    "softmax of the vocabulary": r".*(?:log_softmax|logsumexp|_softmax|multinomial|sort|topk).*",
    "optimizer": r"_fused_adamw_|_foreach_.*|addcdiv_|addcmul_|lerp_|sqrt",
    "copies": r"copy_|cat|clone|index.*|gather|scatter.*|slice_backward|repeat.*|constant_pad_nd|fill_|zero_|masked_fill.*",
    "element by element": r".*",
}
"""Kinds of operations by a pattern of their names, which is tried in this order."""


@dataclass
class Watching(Stopwatch):
    """A stopwatch that also profiles what happens in every phase: ``kinds[phase][kind]`` are seconds."""

    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    _profiles: dict[str, profile] = field(default_factory=dict)

    def start(self, phase: str) -> None:
        if phase not in self._began:
            activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (self.device.type == "cuda")]
            self._profiles[phase] = profile(activities=activities)
            self._profiles[phase].start()
        super().start(phase)

    def stop(self, phase: str) -> None:
        super().stop(phase)
        watched, cuda = self._profiles.pop(phase), self.device.type == "cuda"
        watched.stop()
        of_phase = self.kinds.setdefault(phase, Counter())
        for operation in watched.key_averages():
            micro = operation.self_device_time_total if cuda else operation.self_cpu_time_total
            if operation.key.startswith("aten::"):
                of_phase[kind_of(operation.key.removeprefix("aten::"))] += micro / 1e6


def kind_of(operation: str) -> str:
    """The kind of an operation of torch, by its name."""
    return next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, operation))


def table(clock: Watching) -> str:
    """Seconds by kind (lines) and phase (columns), and every kind's share of the step, as Markdown."""
    phases = [phase for phase in PHASES if phase in clock.phases]
    whole = sum(clock.phases.values())
    rest = [clock.phases[phase] - sum(clock.kinds[phase].values()) for phase in phases]
    rows = {kind: [clock.kinds[phase][kind] for phase in phases] for kind in KINDS}
    rows |= {"Python, and the rest": rest, "whole": [clock.phases[phase] for phase in phases]}
    lines = ["| | " + " | ".join(f"{phase}, s" for phase in phases) + " | share |", "|" + " --- |" * (len(phases) + 2)]
    for name, values in rows.items():
        cells = [name, *(f"{value:.2f}" for value in values), f"{sum(values) / whole:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="the random Qwen2.5-VL [small, 6M parameters]")
    parser.add_argument("--image_tokens", type=int, default=256, help="of one picture [256]")
    parser.add_argument("--prompts", type=int, default=1, help="P, prompts per step [1]")
    parser.add_argument("--group", type=int, default=8, help="G, answers per prompt [8]")
    parser.add_argument("--tokens", type=int, default=64, help="T, tokens of every answer [64]")
    parser.add_argument("--micro", type=int, default=1, help="prompts per forward of reference and update [1]")
    parser.add_argument(
        "--frozen_vision", action="store_true", help="the vision tower does not learn, as in train.py by default"
    )
    options = parser.parse_args(words)
    if options.micro < 1 or options.prompts % options.micro:
        parser.error(f"--micro {options.micro} must divide --prompts {options.prompts}.")
    if options.group < 2 or min(options.image_tokens, options.prompts, options.tokens) < 1:
        parser.error("--group must be at least 2, --image_tokens, --prompts and --tokens at least 1.")
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.make(options.size, Path(folder), dtype, device, False, options.frozen_vision)
        print(f"{options.size}, {setting.policy.parameters / 1e6:.0f} million parameters, {environment(device)}")
        point = Point(options.image_tokens, options.prompts, options.group, options.tokens, options.micro)
        ours, clock = Ours(setting, point), Watching(device)
        for name, stopwatch in (("to warm up", Stopwatch(device)), ("under the profiler", clock)):
            ours.step(stopwatch)
            print(f"a step {name}: {sum(stopwatch.phases.values()):.2f} s")
    print("\n" + table(clock))


if __name__ == "__main__":
    main()
