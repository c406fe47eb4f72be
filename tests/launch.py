"""Ranks, runs and commands that several tests start."""

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import Any, Callable

import torch

from activeo3.engine import Zero3Model

ROOT = Path(__file__).parent.parent
SMALL = "--crop_side 32 --sensing_side 32 --max_new_tokens 5 --task_max_new_tokens 5 --resamples 20".split()


def rank_environment(rank: int, world: int) -> dict[str, str]:
    """What a launcher tells each process, with a port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip


def on_ranks(
    world: int, folder: Path, work: Callable[..., Any], *args: Any, seconds: float = 300, ends: int = 0
) -> list[Any]:
    """What ``work(*args)`` returns on each of ``world`` new processes.

    Fails if they are not done after ``seconds``, or end with another exit code than ``ends``.
    """
    context = multiprocessing.get_context("spawn")
    shared = rank_environment(0, world)
    processes = []
    for rank in range(world):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        target = folder / f"returned-{rank}.pt"
        processes.append(context.Process(target=_one_rank, args=(environment, target, work, args)))
        processes[-1].start()
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [ends] * world, (
        f"exit codes {codes}; None is a process that was still waiting after {seconds:.0f} s"
    )
    return [torch.load(folder / f"returned-{rank}.pt", weights_only=False) for rank in range(world)] if not ends else []


def _one_rank(environment: dict[str, str], target: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    torch.save(work(*args), target)


def finely_sharded(folder: Path) -> str:
    """The path of a ds_config.json in which no parameter is small enough to stay whole."""
    settings = json.loads((ROOT / "ds_config.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    # DeepSpeed's own 2 GB of address space for each engine add up here, until a process this large cannot be copied
    # (processes.run_limited).
    settings["zero_optimization"]["reduce_bucket_size"] = 1_000_000
    path = folder / "ds_config.json"
    path.write_text(json.dumps(settings))
    return str(path)


def whole_weights(sharded: Zero3Model) -> dict[str, torch.Tensor]:
    """A copy of the weights, put together from all ranks; a collective."""
    with sharded.gathered() as whole:
        return {name: tensor.detach().clone() for name, tensor in whole.model.state_dict().items()}
