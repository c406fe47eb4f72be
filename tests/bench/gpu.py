"""Settle on one GPU, in nine minutes and without a network, what tests on a CPU cannot.

    python tests/bench/gpu.py                          # all sections, each in a process of its own with a time limit
    python tests/bench/gpu.py --sections decode sdpa   # some of them
    python tests/bench/gpu.py --tiny                   # the same code at toy sizes, on a CPU: two to five minutes

Every finding is one line of results.jsonl in the folder --out the moment it is known, so a section that is killed loses
only what it had not yet found. The last lines printed are a table of all of them. Weights are random: numbers and times
do not depend on what a model knows. tests/bench/README.md says how a machine without a network gets what is missing
there. Sections, most important first:

    env      card, versions, which SDPA backend torch tries first, bf16 matrix rate, copy bandwidth
    sdpa     which kernel each of the project's four kinds of attention gets, how long a new length takes against a seen
             one, whether gradients are finite where the number of keys is 64 modulo 128, errors against float32
    equal    packed rows against plain rows, log-probabilities and gradients, float32 and bfloat16; FlexAttention
    decode   ms a token of the sampler (8 and 32 rows, even and padded, cuDNN attention on and off), kernels a token, a
             prototype with CUDA graphs, and the sampler's log-probabilities against the scorer's
    default  `deepspeed train.py` as it is: 4 steps in bfloat16, 2 more after a resume, 2 in float32
    zero3    policy and reference under ZeRO-3: standing memory and peak against the planner, gather, hooks, train.update
    update   one packed update without DeepSpeed, by attention and recompute: ms, MFU, peak memory against the planner
    vision   the vision tower on one view and on 24 crops, by attention; crops and patches on the CPU
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Sequence

ROOT = Path(__file__).parent.parent.parent
LIMITS = {"env": 45, "sdpa": 70, "equal": 70, "decode": 110, "default": 110, "zero3": 110, "update": 80, "vision": 40}
"""Seconds that a section may take on a GPU; at toy size on a CPU six times as many."""


def run_section(name: str, out: Path, tiny: bool) -> None:
    """Run one section in this process."""
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    os.chdir(ROOT)
    warnings.filterwarnings("ignore")
    from probe import Probe

    probe = Probe(name, out, tiny)
    with probe.trying(name):
        rooms = (importlib.import_module(room) for room in ("gpu_kernels", "gpu_sections"))
        next(getattr(room, name) for room in rooms if hasattr(room, name))(probe)


def start_section(name: str, out: Path, tiny: bool, limit: float) -> None:
    """Run one section in a process of its own, which is killed after ``limit`` seconds; its findings are printed as
    they come."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--out", str(out), "--one", name, *["--tiny"] * tiny]
    with open(out / f"{name}.log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        killer = threading.Timer(limit, process.kill)
        killer.start()
        for line in process.stdout:
            if line.startswith("["):
                print(line, end="", flush=True)
        process.wait()
        killer.cancel()
    ended = {"seconds": round(time.perf_counter() - began, 1)} | (
        {"failed": f"exit code {process.returncode}"} if process.returncode else {}
    )
    with open(out / "results.jsonl", "a") as file:
        file.write(json.dumps({"section": name, "what": "section"} | ended) + "\n")


def findings(out: Path) -> list[dict]:
    """All findings so far."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: Sequence[dict]) -> str:
    """All findings, a line each."""
    lines = []
    for row in rows:
        values = ((name, value) for name, value in row.items() if name not in ("section", "what"))
        said = "  ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values
        )
        lines.append(f"{row['section']:8} {row['what'][:78]:78} {said}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """The command line; exits with 1 if a section or a part of it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="the folder of results.jsonl and logs [runs/gpu]"
    )
    parser.add_argument("--sections", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--tiny", action="store_true", help="toy sizes, for a CPU")
    parser.add_argument(
        "--seconds", type=float, default=540, help="no section begins when it could not end by then [540]"
    )
    parser.add_argument("--one", choices=LIMITS, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if given.one:
        return run_section(given.one, out, given.tiny)
    (out / "results.jsonl").unlink(missing_ok=True)
    began = time.perf_counter()
    for name in given.sections:
        left = given.seconds - (time.perf_counter() - began)
        if given.tiny:
            start_section(name, out, True, 6 * LIMITS[name])
        elif left >= 20:
            start_section(name, out, False, min(LIMITS[name], left))
        else:
            print(f"[{name}] left out: no time")
    rows = findings(out)
    print("\n" + table(rows))
    if failed := [f"{row['section']}: {row['what']}" for row in rows if "failed" in row]:
        sys.exit("gpu.py: failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
