"""One GRPO step on pictures: ours, TRL's GRPOTrainer and a naive one, timed in turn on the same weights.

    pip install -e ".[bench]" && python tests/bench/step.py          # a few minutes on two CPU cores
    python tests/bench/step.py --image_tokens 256 1300 --tokens 64   # the flags that take several make a grid
    python tests/bench/step.py --peers naive                         # without TRL
    python tests/bench/step.py --size 3b --prompts 4 --image_tokens 1300 --tokens 100 --micro 1   # on a GPU

At every point of the grid it first proves that all compute the same: the log-probabilities of policy and
reference, the loss and the gradient of every parameter, for the same answers and advantages. Only then does
it time whole steps with answers of a forced length, in turn, after one to warm up, and measures the memory
of one more. The last lines are a Markdown table; ``--out`` keeps every single time.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Sequence

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own lines; read when torch is loaded
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from contenders import Naive, Ours  # noqa: E402
from setting import SIZES, Contender, Point, Scored, Setting, Stopwatch  # noqa: E402

from activeo3 import engine  # noqa: E402

PHASES = ("generate", "reward", "reference", "update", "other")
# What rounding leaves: largest difference of log-probabilities, relative difference of loss and gradients.
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.2, 0.2)}


def main(options: argparse.Namespace) -> None:
    """Every point of the grid: agreement, times, memory; then the table."""
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    dtype = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    kinds: list[Any] = [Ours, Naive] if "naive" in options.peers else [Ours]
    if "trl" in options.peers:
        from trl_peer import Trl

        kinds.append(Trl)
    quiet()
    print(f"{options.size}, {str(dtype)[6:]}, sdpa, {environment(device)}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.make(options.size, Path(folder), dtype, device, options.checkpointing, options.frozen_vision)
        print(f"{setting.policy.parameters / 1e6:.1f} million parameters")
        for values in product(options.image_tokens, options.prompts, options.group, options.tokens):
            point = Point(*values, micro=min(options.micro or values[1], values[1]))
            contenders = [kind(setting, point) for kind in kinds]
            seen = agreement(contenders, TOLERANCE[dtype])
            result = measure(contenders, device, options.repeats, point)
            results.append({"point": asdict(point), "agreement": seen, "contenders": result})
            if options.out:
                write(options, device, results)
    print("\n" + table(results))


def agreement(contenders: Sequence[Contender], tolerance: tuple[float, float]) -> dict[str, dict[str, float]]:
    """How far the others are from ours for the same answers; stops with a sentence if that is not rounding."""
    ours = contenders[0]
    assert isinstance(ours, Ours)
    torch.manual_seed(2)
    _, answers = ours.sample()
    advantage = torch.randn(ours.point.prompts, ours.point.group)
    first, seen = ours.score(answers, advantage), {}
    for contender in contenders[1:]:
        found = differences(first, contender.score(answers, advantage))
        seen[contender.name] = found
        limits = [tolerance[0] if "log" in name else tolerance[1] for name in found]
        line = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        print(f"ours and {contender.name} differ by: {line} (allowed: {tolerance[0]:.0e}, relative {tolerance[1]:.0e})")
        if not all(value <= limit for value, limit in zip(found.values(), limits)):  # NaN is not within
            sys.exit(f"step.py: ours and {contender.name} do not compute the same thing, and no times are taken.")
    return seen


def differences(ours: Scored, other: Scored) -> dict[str, float]:
    """Largest absolute difference of log-probabilities; relative ones of the loss and of the worst gradient.

    A gradient's is that of its norm; one that is all but 0 is held against a thousandth of the largest.
    """
    norms = {name: float(gradient.norm()) for name, gradient in ours.gradients.items()}
    floor = 1e-3 * max(norms.values())
    apart = {name: float((other.gradients[name] - gradient).norm()) for name, gradient in ours.gradients.items()}
    worst = max(apart[name] / max(norms[name], floor) for name in norms)
    return {
        "log-probabilities": float((ours.logp - other.logp).abs().max()),
        "reference log-probabilities": float((ours.ref_logp - other.ref_logp).abs().max()),
        "loss": abs(ours.loss - other.loss) / max(abs(ours.loss), 0.1),
        "gradients": worst,
    }


def measure(
    contenders: Sequence[Contender], device: torch.device, repeats: int, point: Point
) -> dict[str, dict[str, Any]]:
    """Seconds per phase of ``repeats`` steps of each, taken in turn, and the update's memory of one more."""
    columns = (*PHASES, "step", "cpu")
    taken: dict[str, dict[str, list[float]]] = {c.name: {name: [] for name in columns} for c in contenders}
    for repeat in range(repeats + 1):
        turn = repeat % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            times = one_step(contender, Stopwatch(device))
            if repeat:  # the first is to warm up
                for name, value in times.items():
                    taken[contender.name][name].append(value)
    results: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        clock = Stopwatch(device, memory=True)
        one_step(contender, clock)
        step = float(np.median(taken[contender.name]["step"]))
        results[contender.name] = {
            "seconds": taken[contender.name],
            "update_mb": clock.peak_mb,
            "tokens_per_second": point.prompts * point.group * point.tokens / step,
        }
        print(f"{point}: {contender.name} {step:.2f} s")
    return results


def one_step(contender: Contender, clock: Stopwatch) -> dict[str, float]:
    """Seconds by phase, of the rest, of the whole step, and of all cores for this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    contender.step(clock)
    step, cpu = time.perf_counter() - wall, time.process_time() - cpu
    other = step - sum(clock.phases.values())
    return clock.phases | {"other": other, "step": step, "cpu": cpu}


# ---------------------------------------------------------------------- what is printed


def table(results: Sequence[dict[str, Any]]) -> str:
    """Medians with half the interquartile range behind each, as Markdown; ratios are to ours at the same point."""
    heads = ["image tokens", "P", "G", "T", "step of", *(f"{name}, s" for name in PHASES), "whole, s", "ratio",
             "CPU, s", "ratio", "update, MB", "ratio", "tokens/s"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for result in results:
        point, ours = result["point"], result["contenders"]["ours"]
        for name, found in result["contenders"].items():
            times = found["seconds"]
            cells = [str(point[key]) for key in ("image_tokens", "prompts", "group", "tokens")] + [name]
            cells += [spread(times[phase]) for phase in (*PHASES, "step")]
            cells += [ratio(np.median(times["step"]), np.median(ours["seconds"]["step"]))]
            cells += [spread(times["cpu"]), ratio(np.median(times["cpu"]), np.median(ours["seconds"]["cpu"]))]
            cells += [f"{found['update_mb']:.0f}", ratio(found["update_mb"], ours["update_mb"])]
            lines.append("| " + " | ".join([*cells, f"{found['tokens_per_second']:.0f}"]) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Median ± half the interquartile range."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    decimals = 3 if middle < 1 else 2
    return f"{middle:.{decimals}f} ± {(high - low) / 2:.{decimals}f}"


def ratio(value: float, ours: float) -> str:
    """How many times ours a value is."""
    return f"{value / ours:.1f}×" if ours else "–"


def environment(device: torch.device) -> str:
    """Device, threads and the versions that matter, in one line."""
    packages = [name for name in ("torch", "transformers", "trl") if importlib.util.find_spec(name)]
    threads = f"{platform.machine()} with {torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name() if device.type == "cuda" else threads
    return ", ".join([where, f"load {os.getloadavg()[0]:.1f}", *(f"{name} {version(name)}" for name in packages)])


def write(options: argparse.Namespace, device: torch.device, results: Sequence[dict[str, Any]]) -> None:
    """Everything that was measured so far, for later tables."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    content = {"flags": flags, "environment": environment(device), "process_peak_mb": peak, "results": list(results)}
    options.out.write_text(json.dumps(content, indent=1) + "\n")


def quiet() -> None:
    """No chatter of the libraries between the lines that are to be read."""
    sys.stdout.reconfigure(line_buffering=True)  # also into a pipe, so that a long grid shows where it is
    engine.prepare()
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; exits with a sentence for one that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="the random Qwen2.5-VL [small, 6M parameters]")
    parser.add_argument("--image_tokens", type=int, nargs="+", default=[64, 256], help="of one picture [64 256]")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1], help="P, prompts per step [1]")
    parser.add_argument("--group", type=int, nargs="+", default=[8], help="G, answers per prompt [8]")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32], help="T, tokens of every answer [32]")
    parser.add_argument("--micro", type=int, default=0, help="prompts per forward of reference and update; 0: all [0]")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument(
        "--frozen_vision", action="store_true", help="the vision tower does not learn, as in train.py by default"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each, after one to warm up [5]")
    parser.add_argument(
        "--peers", nargs="+", choices=("trl", "naive"), help="beside ours [naive, and trl if installed]"
    )
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
                        help="auto: bfloat16 on a GPU, float32 on a CPU [auto]")  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--out", type=Path, help="write every single time into this json file")
    options = parser.parse_args(words)
    installed = importlib.util.find_spec("trl") is not None
    options.peers = options.peers or (["trl", "naive"] if installed else ["naive"])
    if "trl" in options.peers and not installed:
        parser.error('TRL is not installed; pip install -e ".[bench]" does that, or leave it out with --peers naive.')
    if min(options.group) < 2:
        parser.error("--group must be at least 2: the answers of a group are compared.")
    if min(*options.image_tokens, *options.prompts, *options.tokens, options.repeats) < 1 or options.micro < 0:
        parser.error("--image_tokens, --prompts, --tokens and --repeats must be at least 1, --micro at least 0.")
    if options.micro and any(count % min(options.micro, count) for count in options.prompts):
        parser.error(f"--micro {options.micro} must divide every number of --prompts.")
    return options


if __name__ == "__main__":
    main(parse())
