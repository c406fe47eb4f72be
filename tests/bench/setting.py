"""What every contender of the benchmark gets: the same weights, pictures, question, optimiser and reward.

The policy is a Qwen2.5-VL with random weights, saved to a folder and loaded from there by each contender's
own means. All contenders share its parameters, one frozen reference and one AdamW: they take turns at
training the same policy, and a large one fits its memory once.
"""

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Protocol, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from activeo3.model import VisionLanguageModel

sys.path.insert(0, str(Path(__file__).parents[2] / "data" / "tiny"))  # scripts that make the tiny policies

from tiny_model import SPECIAL_TOKENS, build_tokenizer  # noqa: E402

PATCH, MERGE = 14, 2
QUESTION = "Where could a red star be?"
BETA, CLIP, LR, GRAD_CLIP = 0.04, 0.2, 1e-6, 1.0

# name: vocabulary, hidden, MLP, layers, heads, key-value heads, tied head; vision depth, hidden, MLP, heads
SIZES: dict[str, tuple[int, int, int, int, int, int, bool, int, int, int, int]] = {
    "toy": (512, 128, 96, 2, 8, 2, True, 2, 32, 48, 2),
    "mini": (512, 64, 96, 2, 4, 2, True, 2, 32, 48, 2),
    "small": (512, 256, 640, 4, 4, 2, True, 4, 192, 576, 3),
    "3b-slice": (151936, 2048, 11008, 4, 16, 2, True, 4, 1280, 3420, 16),  # a ninth and an eighth of the layers
    "3b-half": (151936, 2048, 11008, 18, 16, 2, True, 32, 1280, 3420, 16),
    "3b": (151936, 2048, 11008, 36, 16, 2, True, 32, 1280, 3420, 16),
    "7b": (152064, 3584, 18944, 28, 28, 4, False, 32, 1280, 3420, 16),
}


@dataclass(frozen=True)
class Point:
    """One point of the grid. ``micro`` prompts go through one forward pass of reference and update."""

    image_tokens: int
    prompts: int
    group: int
    tokens: int
    micro: int


@dataclass
class Stopwatch:
    """Seconds by phase of one step, of the wall and (for the whole step) of this process's cores.

    With ``memory``, also how far the memory of tensors rises above its level at the start of the update;
    on a CPU that takes the profiler, so such a step is not one to time.
    """

    device: torch.device
    memory: bool = False
    phases: dict[str, float] = field(default_factory=dict)
    peak_mb: float = 0.0
    _began: dict[str, float] = field(default_factory=dict)

    def start(self, phase: str) -> None:
        """Begin a phase, unless it has begun."""
        if phase in self._began:
            return
        if self.memory and phase == "update":
            self._watch_memory()
        self._began[phase] = self._now()

    def stop(self, phase: str) -> None:
        """End a phase; several stretches of one phase add up."""
        self.phases[phase] = self.phases.get(phase, 0.0) + self._now() - self._began.pop(phase)
        if self.memory and phase == "update":
            self._read_memory()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.start(phase)
        yield
        self.stop(phase)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _watch_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._level = torch.cuda.memory_allocated()
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.start()

    def _read_memory(self) -> None:
        if self.device.type == "cuda":
            self.peak_mb = (torch.cuda.max_memory_allocated() - self._level) / 2**20
        else:
            self._profile.stop()
            events = [e for e in self._profile.profiler.kineto_results.events() if e.name() == "[memory]"]
            changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
            self.peak_mb = float(np.cumsum(changes).max()) / 2**20


@dataclass(frozen=True)
class Scored:
    """What a contender computes for given answers: (P, G, T) log-probabilities, loss, gradient by parameter."""

    logp: Tensor
    ref_logp: Tensor
    loss: float
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """The folder of the start policy, the models loaded from it, and the optimiser of the policy."""

    folder: Path
    policy: VisionLanguageModel
    reference: VisionLanguageModel
    optimizer: torch.optim.Optimizer
    checkpointing: bool

    @classmethod
    def make(
        cls,
        size: str,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        checkpointing: bool,
        frozen_vision: bool = False,
    ) -> "Setting":
        """A policy of ``size`` near its reference, so that the KL penalty and its gradient are not 0."""
        save_start(size, folder, dtype, device)
        policy, reference = (VisionLanguageModel.load(str(folder), dtype, attention="sdpa") for _ in range(2))
        for vlm in (policy, reference):
            vlm.model.to(device).eval()
        reference.model.requires_grad_(False)
        policy.suppressed_ids = (*policy.suppressed_ids, *policy.end_tokens)  # no answer ends early
        policy.model.model.visual.requires_grad_(not frozen_vision)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in learning(policy):
                parameter += 0.1 * policy.model.config.text_config.initializer_range * torch.randn_like(parameter)
        if checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            policy.model.train()  # it has no dropout; in evaluation mode nothing would be recomputed
        policy.vision_cache.keep_if_frozen()
        optimizer = torch.optim.AdamW(learning(policy), lr=LR, weight_decay=0.0)
        return cls(folder, policy, reference, optimizer, checkpointing)

    def apply(self) -> None:
        """The optimiser's part of an update: clip the gradient, move the weights, forget the gradient."""
        torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def take_gradients(self) -> dict[str, Tensor]:
        """The gradient of every parameter that learns; they are cleared."""
        taken = {name: p.grad.float().cpu() for name, p in self.policy.model.named_parameters() if p.requires_grad}
        self.optimizer.zero_grad()
        return taken


def learning(vlm: VisionLanguageModel) -> list[torch.nn.Parameter]:
    """The parameters that an update moves."""
    return [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]


class Contender(Protocol):
    """One way to make a GRPO step."""

    name: str

    def step(self, clock: Stopwatch) -> None:
        """A whole step, from pictures to new weights; the phases are timed by ``clock``."""

    def score(self, answers: Sequence[Sequence[tuple[int, ...]]], advantage: Tensor) -> Scored:
        """What its update computes for P x G given answers with advantages (P, G); the weights stay."""


def random_model(
    size: str, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Qwen2VLImageProcessorPil]:
    """A Qwen2.5-VL with random weights, made on the device, the tiny policy's tokenizer, and an image processor."""
    V, hidden, mlp, layers, heads, kv_heads, tied, depth, vision_hidden, vision_mlp, vision_heads = SIZES[size]
    tokenizer = build_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    half = hidden // heads // 2  # a head's rotary pairs, shared out to time, height and width
    spread = hidden**-0.5  # weights wide enough that every token and picture changes the logits
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=V,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=tied,
            initializer_range=spread,
            rope_parameters=dict(
                rope_type="default", rope_theta=1e6, mrope_section=[half // 4, half * 3 // 8, half * 3 // 8]
            ),
            bos_token_id=None,
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
        ),
        vision_config=dict(
            depth=depth,
            hidden_size=vision_hidden,
            intermediate_size=vision_mlp,
            num_heads=vision_heads,
            out_hidden_size=hidden,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
            temporal_patch_size=2,
            window_size=8 * PATCH,
            fullatt_block_indexes=list(range(7, depth, 8)) or [depth - 1],  # the others see windows
            initializer_range=vision_hidden**-0.5,
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    limits = {"shortest_edge": 1, "longest_edge": 2**30}  # pictures come in the size at which they are seen
    return (
        model,
        tokenizer,
        Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, size=limits),
    )


def save_start(size: str, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Write a random model as a checkpoint is written."""
    for part in random_model(size, dtype, device):
        part.save_pretrained(folder)


def pictures(count: int, image_tokens: int) -> list[Image.Image]:
    """``count`` different mosaics that make exactly ``image_tokens`` tokens, as near to a square as that allows."""
    high = max(side for side in range(1, int(image_tokens**0.5) + 1) if image_tokens % side == 0)
    cells = (high * 4, image_tokens // high * 4, 3)
    size = (image_tokens // high * PATCH * MERGE, high * PATCH * MERGE)
    mosaics = [np.random.default_rng(i).integers(0, 256, cells, dtype=np.uint8) for i in range(count)]
    return [Image.fromarray(mosaic).resize(size, Image.Resampling.NEAREST) for mosaic in mosaics]


def reward(ids: Sequence[int]) -> float:
    """The share of even ids: a reward that costs nothing and differs between answers."""
    return sum(i % 2 == 0 for i in ids) / len(ids)
