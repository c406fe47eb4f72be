"""The only room that knows DeepSpeed and torch.distributed: start, shard, gather, step.

Two regimes. Inside ``with sharded.gathered() as whole`` the weights are whole on this rank and work is
rank-local and ragged: ranks may generate different lengths and take different branches. Outside it every
rank makes the same number of forwards, backwards and collectives, or ZeRO-3 waits for ever.
"""

import ctypes
import math
import os
import re
import resource
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor, nn

from activeo3 import families, grpo, lora, outputs, processes, terminal
from activeo3.checkpoint_files import read_plain
from activeo3.cli import read_object, writable_folder
from activeo3.config import ConfigError, TrainConfig
from activeo3.decoding import recompute_with_cache
from activeo3.model import VisionLanguageModel, keep_freed_memory
from activeo3.packing import Packed

# (package, lowest version that works, what is wrong with earlier ones): refused by name before any work starts.
_LOWEST = (
    ("transformers", "5.23", "an earlier one copies the key-value cache of padded batches for every token"),
    ("deepspeed", "0.19", "skipped steps and unmanaged accumulation need deepspeed 0.19"),
)
# ds_config.json says how DeepSpeed runs; these belong to the experiment and have their owner in TrainConfig.
_OWNED = (
    "optimizer",
    "scheduler",
    "gradient_clipping",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
)
GROUP_MINUTES = 60
"""Minutes that a rank waits for the others in an evaluation, which has no flag for it."""


def check_versions() -> None:
    """Raise ConfigError for an installed version that is known not to work."""
    for package, lowest, why in _LOWEST:
        if Version(version(package)) < Version(lowest):
            raise ConfigError(
                f"{package} {version(package)} is installed, and {why}; install {package}>={lowest} instead."
            )


@dataclass(frozen=True)
class Distributed:
    """Where this process stands among all of them. ``log`` takes the libraries' chatter."""

    rank: int
    world: int
    device: torch.device
    log: Path

    @contextmanager
    def redirect_output(self) -> Iterator[None]:
        """Send what libraries print inside the block, Python or not, to the log; errors still surface, but none of the
        log itself."""
        saved = [os.dup(1), os.dup(2)]
        sys.stdout.flush(), sys.stderr.flush()
        try:
            with (
                outputs.open_log(self.log) as log,
                redirect_stdout(terminal.Protected(log)),
                redirect_stderr(terminal.Protected(log)),
            ):
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                yield
        finally:
            ctypes.CDLL(None).fflush(None)  # C keeps what it prints to a pipe or file until it is asked
            for descriptor, copy in zip((1, 2), saved):
                os.dup2(copy, descriptor)
                os.close(copy)

    def all_reduce_sum(self, values: dict[str, float]) -> dict[str, float]:
        """The sum over ranks of every value; all ranks must name the same ones."""
        if self.world == 1:
            return dict(values)
        import torch.distributed as dist

        packed = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(packed)
        return dict(zip(values, packed.tolist()))

    def memory_gb(self) -> float:
        """The most memory this process has held so far: of its GPU if it has one, else of the machine."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def gpu_memory_gb(self) -> float:
        """How much memory this process's GPU has, in GB; 0 without one."""
        return torch.cuda.get_device_properties(self.device).total_memory / 1e9 if self.device.type == "cuda" else 0.0

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def largest(self, value: float) -> float:
        """The largest value of any rank; NaN if one is."""
        return float(np.max(self.all_gather(value)))

    def map(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        """``work(part)`` of every part, in order, on every rank; the ranks take turns at the parts.

        Ranks wait for each other as long as a part or two take, far below the limit after which the process
        group gives up (``--group_timeout``); waiting while one rank did all of them could be longer.
        """
        own: list[Any] = []
        with processes.together(self.all_gather):
            own += [work(part) for part in parts[self.rank :: self.world]]
        found = self.all_gather(own)
        return [found[index % self.world][index // self.world] for index in range(len(parts))]

    def print(self, text: str) -> None:
        """Print a text, if there is any, on one rank."""
        if self.rank == 0 and text:
            print(text, flush=True)

    def barrier(self) -> None:
        """Return when every rank has come here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


def prepare() -> None:
    """What both scripts do first: refuse versions that do not work, keep freed memory, and silence warnings
    that tell a user nothing."""
    check_versions()
    keep_freed_memory()
    # torch renamed a collective that DeepSpeed still calls by its old name, in every backward pass.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def start(output_dir: Path, minutes: int = GROUP_MINUTES) -> Distributed:
    """Join the process group (of one, without a launcher) and send the libraries' chatter to a log.

    A collective that some rank has not reached after so many ``minutes`` ends the run. torch's own limit is ten with
    NCCL, which one long rollout or the writing of a large checkpoint can take.

    Raises ConfigError, on every rank, if a version does not work, or another run has the folder or the port.
    """
    prepare()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(29500 + os.getpid() % 2000))
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    writable_folder(output_dir)
    in_use = outputs.lock_refusal(output_dir) if rank == 0 else ""
    if in_use and world == 1:
        raise ConfigError(in_use)
    processes.tell(at_end=outputs.unlock_all, speaks=lambda: rank == 0 or outputs.died_silently(output_dir))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    with Distributed(
        rank, world, device, Path(os.devnull)
    ).redirect_output():  # nothing is written before the folder is ours
        _init_distributed(device, in_use, minutes)
    ranks = Distributed(rank, world, device, output_dir / f"libraries-{rank}.log")
    if in_use := ranks.all_gather(in_use)[0]:
        raise ConfigError(in_use)
    outputs.claim(output_dir, ranks.log.name)
    outputs.log_to_file("DeepSpeed", ranks.log)
    return ranks


def _init_distributed(device: torch.device, in_use: str, minutes: int) -> None:
    """Join the process group. Raises ConfigError if the port is taken, or says ``in_use`` of the folder, which matters
    more."""
    import deepspeed

    # Shared-memory collectives are compiled on first use: a minute, and a compiler not everyone has.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        backend = "nccl" if device.type == "cuda" else "gloo"
        deepspeed.init_distributed(backend, verbose=False, timeout=timedelta(minutes=minutes))
    except torch.distributed.DistNetworkError:
        port = os.environ["MASTER_PORT"]
        raise ConfigError(
            in_use
            or f"the port {port} is in use, probably by a run in another folder, for no other one writes into this "
            f"folder; choose another port: deepspeed --master_port {int(port) + 1} train.py."
        ) from None


def join(output_dir: Path) -> Distributed:
    """``start`` if a launcher started several processes, else a group of one that needs no DeepSpeed.

    Raises ConfigError as ``start`` does.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return start(output_dir)
    prepare()
    processes.tell(at_end=outputs.unlock_all)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Distributed(0, 1, device, output_dir / "libraries-0.log")


def stop() -> None:
    """Leave the folder to other runs, and the process group, so that the interpreter ends without a warning."""
    outputs.unlock_all()
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


class Zero3Model:
    """A model under ZeRO-3: a policy that learns, or a frozen reference."""

    def __init__(self, vlm: VisionLanguageModel, ranks: Distributed, config: TrainConfig, learns: bool) -> None:
        import deepspeed

        self.vlm, self.ranks, self.learns = vlm, ranks, learns
        self._whole = False  # inside ``gathered``
        if learns and config.lora:
            lora.add(vlm, config.lora, config.train_only)
        vlm.model.to(ranks.device)
        which = lora.NAMES if config.lora else config.train_only
        for name, parameter in vlm.model.named_parameters():
            parameter.requires_grad_(learns and bool(re.search(which, name)))
        if learns and not any(parameter.requires_grad for parameter in vlm.model.parameters()):
            raise ConfigError(f"--train_only {config.train_only} matches no parameter of the model.")
        if learns:
            vlm.name = "the policy"
            families.check_notes(vlm.family, config)
            vlm.vision_cache.keep_if_frozen()
            vlm.scoring = families.scoring_of(vlm.family, config, sees=not vlm.vision_cache.keep)
        # Dropout would make old and new log-probabilities of the same weights differ; Qwen-VL has none.
        vlm.model.eval()
        if learns and config.recompute:
            with ranks.redirect_output():  # a new name for it is on its way
                vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
            recompute_with_cache(vlm.model.model.language_model)
            vlm.model.train()  # transformers recomputes in this mode only
        with ranks.redirect_output():
            self.engine, *_ = deepspeed.initialize(
                model=vlm.model,
                model_parameters=[p for p in vlm.model.parameters() if p.requires_grad] if learns else None,
                config=ds_config(config, ranks, vlm.model.dtype, learns),
            )

    @property
    def _offload(self) -> Any:
        """DeepSpeed's keeper of the hooks; a frozen model's optimizer is nothing else."""
        return getattr(self.engine.optimizer, "parameter_offload", self.engine.optimizer)

    @contextmanager
    def gathered(self) -> Iterator[VisionLanguageModel]:
        """The model with whole weights on this rank and without ZeRO-3's hooks, for the block only.

        One gather per block: with the hooks in place every generated token would gather every layer, and a rank that
        had no crop to look at would keep the others waiting. The hooks are put aside and come back as they were, also
        when the block raises: with them DeepSpeed keeps the order of layers that it has recorded, by which it fetches
        the next one early. So does its linear layer, which is there for sharded weights and makes sampling a sixth
        slower. A block inside a block changes nothing.
        """
        import deepspeed

        if self._whole:
            yield self.vlm
            return

        hooks = [self._offload.fwd_pre_hook, *self._offload.forward_hooks, *self._offload.backward_hooks]
        places = [(hook.hooks_dict_ref(), hook.id) for hook in hooks]
        with deepspeed.zero.GatheredParameters(list(self.vlm.model.parameters())):
            for parameter in self.vlm.model.parameters():
                parameter.ds_active_sub_modules.clear()  # no layer waits for it any more
            calls = [hooks_of_module.pop(key) for hooks_of_module, key in places]
            sharded_linear, torch.nn.functional.linear = torch.nn.functional.linear, torch._C._nn.linear
            self._whole = True
            try:
                yield self.vlm
            finally:
                self._whole = False
                torch.nn.functional.linear = sharded_linear
                for (hooks_of_module, key), call in zip(places, calls):
                    hooks_of_module[key] = call

    def logits(self, packed: Packed) -> Tensor:
        """Logits (R, 1 + W, V) of a packed batch; a collective: every rank calls it equally often."""
        return self.vlm.forward_packed(packed, self.engine)

    def token_logps(self, packed: Packed, temperature: float) -> tuple[Tensor, Tensor]:
        """(P, G, T) log-probabilities and entropies of the answers under the distribution that was sampled; a
        collective."""
        logits = self.logits(packed)  # (P, 1 + W, V), or the columns that are needed of an episode
        return grpo.answer_logps(
            logits, packed.tokens, packed.columns, temperature, self.vlm.suppressed_ids, packed.logit_columns,
            packed.completion_mask,
        )  # fmt: skip

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's share of the step's loss.

        The shares of all ranks and micro-batches sum to the loss of the step, but DeepSpeed averages
        gradients over ranks: hence the factor.
        """
        self.engine.backward(loss * self.ranks.world, scale_wrt_gas=False)

    def save(self, folder: Path) -> None:
        """Write the shards of weights and optimizer, each rank its own, into ``folder/deepspeed``; a collective."""
        self.engine.save_checkpoint(str(folder), tag="deepspeed", save_latest=False)

    def load(self, folder: Path) -> None:
        """Put weights and optimizer back from ``folder/deepspeed``; a collective.

        Raises ConfigError for files that are damaged, of another model, or hold more than tensors and plain values.
        """
        self.engine.checkpoint_engine.load = _read_state  # in place of DeepSpeed's own, which runs what a file names
        try:
            found, _ = self.engine.load_checkpoint(str(folder), tag="deepspeed")
        except ConfigError:
            raise
        except Exception as error:  # DeepSpeed takes a state apart without looking at it first
            raise ConfigError(f"{folder / 'deepspeed'} has no state of this model ({type(error).__name__}).") from error
        if found is None:
            raise ConfigError(f"{folder / 'deepspeed'} has no state of this model.")

    def step(self, lr: float) -> tuple[float, int]:
        """Update the weights: (gradient norm, how many updates were skipped since the run began).

        When a loss or gradient of any rank is not finite, so is the global norm, and DeepSpeed skips
        the update on all ranks: the weights stay as they were.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm if norm is not None else math.nan), self.engine.skipped_steps


def _read_state(path: str, map_location: Any = None) -> dict[str, Any]:
    """A file of DeepSpeed's: tensors and plain values, and two small objects of its own. Raises ConfigError as
    ``read_plain`` does."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    return read_plain(path, [LossScaler, ZeroStageEnum], map_location)


class Unadapted(VisionLanguageModel):
    """The start policy inside a policy with adapters: the same weights, with the adapters off while it works."""

    def __init__(self, adapted: VisionLanguageModel) -> None:
        self.__dict__.update(adapted.__dict__)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with lora.off(self.model), super()._evaluating():
            yield

    def forward_packed(self, packed, module: nn.Module | None = None) -> Tensor:
        with lora.off(self.model), torch.no_grad():  # a backward pass would come when they are on again
            return super().forward_packed(packed, module)


class WithoutAdapters(Zero3Model):
    """The frozen start policy inside a policy that learns adapters: it needs no memory of its own."""

    def __init__(self, policy: Zero3Model) -> None:
        self.policy, self.ranks, self.vlm = policy, policy.ranks, Unadapted(policy.vlm)

    @contextmanager
    def gathered(self) -> Iterator[VisionLanguageModel]:
        """As ``Zero3Model.gathered``, of the same weights."""
        with self.policy.gathered():
            yield self.vlm

    def logits(self, packed: Packed) -> Tensor:
        """As ``Zero3Model.logits``, without gradient."""
        return self.vlm.forward_packed(packed, self.policy.engine)


def pick_dtype(wanted: str) -> torch.dtype:
    """``auto``: bfloat16 on a GPU, float32 on a CPU."""
    if wanted == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, wanted)


def ds_config(config: TrainConfig, ranks: Distributed, dtype: torch.dtype, learns: bool) -> dict[str, Any]:
    """ds_config.json with the experiment's numbers filled in; it may not set them itself."""
    path = Path(config.ds_config)
    settings = read_object(path, f"--ds_config {path}")
    taken = [key for key in _OWNED if key in settings]
    if taken:
        raise ConfigError(f"{path} sets {', '.join(taken)}, which belongs to train.py's flags; remove it there.")
    _check_zero(path, settings.get("zero_optimization"))
    settings["train_micro_batch_size_per_gpu"] = config.prompts
    settings["gradient_accumulation_steps"] = 1
    settings["bf16"] = {"enabled": dtype == torch.bfloat16}
    if learns:
        if config.micro_prompts < config.prompts:  # in bfloat16 a sum of micro-batches loses what is 1/512 of it
            settings.setdefault("data_types", {"grad_accum_dtype": "fp32"})
        settings["gradient_clipping"] = config.grad_clip
        # torch's own AdamW: DeepSpeed's fused one is compiled on first use, which needs a compiler.
        parameters = {"lr": config.lr, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": config.weight_decay}
        settings["optimizer"] = {"type": "AdamW", "params": parameters | {"torch_adam": True}}
    return settings


def _check_zero(path: Path, zero: Any) -> None:
    """Raise ConfigError unless DeepSpeed takes the section ``zero_optimization`` and it asks for stage 3."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    if not isinstance(zero, dict) or zero.get("stage") != 3:  # gathered() is written for stage 3
        raise ConfigError(f'--ds_config {path} must hold "zero_optimization": {{"stage": 3, ...}}.')
    try:
        DeepSpeedZeroConfig(**zero)
    except ValueError as error:  # of pydantic, which adds the list of what is wrong
        wrong = error.errors()[0]
        name = ".".join(map(str, ("zero_optimization", *wrong["loc"])))
        raise ConfigError(f"--ds_config {path}: {name} is not taken by DeepSpeed ({wrong['msg']}).") from None
