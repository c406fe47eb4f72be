"""What the sections of gpu.py share: findings, clocks, and what the profiler says about kernels."""

import contextlib
import json
import re
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
Work = Callable[[], Any]


@dataclass(frozen=True)
class Probe:
    """One section of the check: where its findings go, and whether sizes are those of a toy."""

    section: str
    out: Path
    tiny: bool

    def note(self, what: str, **found: Any) -> None:
        """Write one finding to results.jsonl the moment it is known, and print it."""
        rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}
        with open(self.out / "results.jsonl", "a") as file:
            file.write(json.dumps({"section": self.section, "what": what} | rounded) + "\n")
        print(
            f"[{self.section}] {what}: " + ", ".join(f"{name} {value}" for name, value in rounded.items()), flush=True
        )

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """A failure inside the block is a finding, and the section goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.note(what, failed=f"{type(error).__name__}: {str(error)[:300]}")


def sync() -> None:
    """Wait for the GPU."""
    if CUDA:
        torch.cuda.synchronize()


def once(work: Work) -> float:
    """Seconds of one call, by the wall."""
    sync()
    began = time.perf_counter()
    work()
    sync()
    return time.perf_counter() - began


def ms(work: Work, repeats: int = 10, warm: int = 2) -> float:
    """Median milliseconds of a call, after some to warm up."""
    for _ in range(warm):
        work()
    return 1e3 * sorted(once(work) for _ in range(repeats))[repeats // 2]


def peak(work: Work) -> float:
    """GB by which a call raises the memory of tensors above what it finds; 0 on a CPU."""
    if not CUDA:
        work()
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def watched(work: Work) -> list:
    """The profiler's events of a call, by name."""
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * CUDA]) as seen:
        work()
        sync()
    return list(seen.key_averages())


def kernels(work: Work) -> list[tuple[str, int, float]]:
    """(name, calls, microseconds on the device) of what a call ran there; on a CPU, of torch's operations."""
    events = watched(work)
    if CUDA:
        return [(e.key, e.count, e.self_device_time_total) for e in events if str(e.device_type).endswith("CUDA")]
    return [(e.key, e.count, e.self_cpu_time_total) for e in events if e.key.startswith("aten::")]


def backend(work: Work) -> str:
    """Which of SDPA's backends answered a call, and its first kernel."""
    names = [e.key for e in watched(work)]
    ways = sorted(
        {m[1] for n in names if (m := re.search(r"_scaled_dot_product_(\w+?)(?:_for_cpu)?(?:_backward)?$", n))}
    )
    held = [
        n[:60]
        for n in names
        if re.search(r"fmha|flash|sdpa|attention", n, re.I) and not n.startswith("aten::") and "autograd" not in n
    ]
    return "+".join(ways) + (f" [{held[0]}]" if held else "")


def cudnn_attention(on: bool) -> None:
    """Let torch use cuDNN's attention, as it does by default and the project does not (attention.py)."""
    torch.backends.cuda.enable_cudnn_sdp(on)
