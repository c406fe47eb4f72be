"""Shared by all tests: tiny random-weight models of the supported families, and pictures for them.

The weights are drawn wide enough that positions, pictures and siblings visibly change every logit, so a
test that compares two ways of computing something would notice if one of them were wrong.
"""

import runpy
import sys
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from launch import rank_environment
from PIL import Image
from refcoco_folders import NAME
from scripted import USUAL
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from activeo3 import attention, engine, processes
from activeo3.engine import Distributed
from activeo3.families import FAMILIES
from activeo3.model import VisionLanguageModel

sys.path.insert(0, str(Path(__file__).parent.parent))  # train.py and evaluate.py
sys.path.insert(0, str(Path(__file__).parent.parent / "data" / "tiny"))  # scripts that make the tiny policies

from tiny_model import build_tokenizer  # noqa: E402

torch.set_num_threads(1)  # these models are too small to share out, and a busy machine makes threads wait

# The same examples on every run, however busy the machine is.
settings.register_profile("activeo3", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("activeo3")

PATCH, MERGE = 8, 2
SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def _config(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """The smallest configuration that still has every part of its family: windows or deepstack, M-RoPE, GQA,
    experts."""
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        initializer_range=0.15,
    )
    rope = dict(rope_type="default", rope_theta=1000.0)
    vision = dict(
        depth=3,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=2,
        out_hidden_size=64,
        initializer_range=0.12,
    )
    special = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
    halves, thirds = dict(mrope_section=[2, 3, 3]), dict(mrope_section=[4, 2, 2], mrope_interleaved=True)
    places = dict(num_position_embeddings=64)
    task_models = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    match family:
        case "qwen2_vl":  # its vision tower names its own width differently, and the text tower's hidden_size
            of_vision = dict(embed_dim=32, hidden_size=64, mlp_ratio=2)
            kind, of_text, tied = Qwen2VLConfig, dict(rope_parameters=rope | halves), False
        case (
            "qwen2_5_vl"
        ):  # a window of 32 pixels is 2 x 2 visual tokens, so a picture has several, ragged at its border
            of_vision = dict(window_size=32, fullatt_block_indexes=[1])
            kind, of_text, tied = Qwen2_5_VLConfig, dict(rope_parameters=rope | halves), False
        case "qwen3_vl":
            of_vision = places | dict(deepstack_visual_indexes=[0, 1])
            kind, of_text, tied = Qwen3VLConfig, dict(head_dim=16, rope_parameters=rope | thirds), True
        case "qwen3_vl_moe":  # the middle layer is one without experts
            of_vision = places | dict(deepstack_visual_indexes=[0, 1])
            of_text = dict(head_dim=16, rope_parameters=rope | thirds, mlp_only_layers=[1]) | task_models
            kind, tied = Qwen3VLMoeConfig, False
        case (
            "qwen3_5" | "qwen3_5_moe"
        ):  # two layers with a running state before one that attends; fewer keys than values
            of_vision = places
            of_text = dict(
                head_dim=16, layer_types=["linear_attention", "linear_attention", "full_attention"], linear_conv_kernel_dim=4,
                linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=16,
                rope_parameters=rope | thirds | dict(partial_rotary_factor=1.0),
            )  # fmt: skip
            if family == "qwen3_5_moe":
                of_text |= task_models | dict(shared_expert_intermediate_size=32)
            kind, tied = (Qwen3_5Config, True) if family == "qwen3_5" else (Qwen3_5MoeConfig, False)
        case _:
            raise ValueError(f"no tiny {family} is described here")
    return kind(text_config=text | of_text, vision_config=vision | of_vision, tie_word_embeddings=tied, **special)


@pytest.fixture(scope="session", autouse=True)
def signals() -> Iterator[None]:
    """A script that runs inside the tests' own process leaves its signals alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "watch", lambda: None)
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny policy's own tokenizer: 512 tokens, Qwen's chat format."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_vlm(tokenizer: PreTrainedTokenizerFast) -> Callable[..., VisionLanguageModel]:
    """``make_vlm(family, seed=0)``: a new model with random fp32 weights, for tests that change weights."""
    return partial(random_vlm, tokenizer)


def random_vlm(tokenizer: PreTrainedTokenizerFast, family: str, seed: int = 0) -> VisionLanguageModel:
    """See ``make_vlm``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(_config(family, tokenizer)).float().eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases start at 0 and norms at 1, which hides what they do
                parameter.data += 0.1 * torch.randn_like(parameter)
    processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return VisionLanguageModel(model, tokenizer, processor)


@pytest.fixture(scope="session", params=USUAL)
def vlm(request: pytest.FixtureRequest, make_vlm: Callable[..., VisionLanguageModel]) -> VisionLanguageModel:
    """One shared model of each usual family; a test that uses it leaves it as it was."""
    return make_vlm(request.param)


@pytest.fixture(scope="session", params=FAMILIES)
def every_family(request: pytest.FixtureRequest, make_vlm: Callable[..., VisionLanguageModel]) -> VisionLanguageModel:
    """One shared model of every family that is supported, for tests that compare ways of computing."""
    return make_vlm(request.param)


@pytest.fixture(params=["one call", "two calls"])
def calls(request: pytest.FixtureRequest, vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How packed rows of ``vlm`` attend: under one mask, or also the shortest prefix without one."""
    monkeypatch.setattr(attention, "SHORT", 1)
    vlm.model.set_attn_implementation({"text_config": "sdpa" if request.param == "one call" else attention.TWO_CALLS})
    yield request.param
    vlm.model.set_attn_implementation({"text_config": "sdpa"})


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """``picture(width, height, seed=0)``: a coarse random mosaic, so that every visual token differs."""

    def paint(width: int, height: int, seed: int = 0) -> Image.Image:
        cells = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        return Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)

    return paint


@pytest.fixture(scope="session")
def biased() -> Callable[[VisionLanguageModel, Mapping[int, float]], AbstractContextManager[None]]:
    """``with biased(vlm, {id: amount}):`` adds amounts to the logits of ids, to make answers end, or misbehave."""

    @contextmanager
    def add(vlm: VisionLanguageModel, amounts: Mapping[int, float]) -> Iterator[None]:
        offset = torch.zeros(vlm.model.config.text_config.vocab_size)
        offset[list(amounts)] = torch.tensor(list(amounts.values()))
        hook = vlm.model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + offset)
        try:
            yield
        finally:
            hook.remove()

    return add


def save_detector(family: str, folder: Path) -> None:
    """Make the folder of a tiny detector with random weights, all parts of the real ones.

    Its pictures have 96 pixels on the shorter side and at most 160 on the longer. Its vocabulary has the
    special tokens of BERT at their own ids, which the model's attention between words relies on.
    """
    classes = {
        "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection),
        "mm-grounding-dino": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
    }
    words = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
    words |= dict(enumerate("red green blue star ring cup small circle square triangle cross".split(), start=500))
    vocabulary = [words.get(i, f"[unused{i}]") for i in range(1100)]
    config_class, model_class = classes[family]
    config = config_class(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
        ),
        text_config=BertConfig(
            vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=12, max_text_len=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = model_class(config).eval()
        for name, parameter in model.named_parameters():  # boxes start all alike, and deaf to picture and words
            if "bbox_embed" in name or parameter.ndim > 1:
                parameter.data += (0.1 if "bbox_embed" in name else 0.3) * torch.randn_like(parameter)
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160}).save_pretrained(folder)


@pytest.fixture(scope="session")
def make_detector(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """``make_detector(family)``: the folder of ``save_detector``."""

    @lru_cache(maxsize=None)
    def make(family: str) -> str:
        folder = tmp_path_factory.mktemp(family)
        save_detector(family, folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def checkpoint(make_vlm, tmp_path_factory) -> str:
    """A model folder as a training run leaves it, with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_vlm("qwen3_vl").save(folder)
    return str(folder)


@pytest.fixture
def evaluate(monkeypatch, capsys) -> Callable[..., tuple[str, str]]:
    """``evaluate("--checkpoint", ...)`` runs the script: (what it printed, how it complained or "")."""

    def run(*argv: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *argv])
        complaint = ""
        try:
            runpy.run_path(str(Path(__file__).parent.parent / "evaluate.py"), run_name="__main__")
        except SystemExit as stop:
            complaint = stop.code
        return capsys.readouterr().out, complaint

    return run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distributed]:
    """This process as a group of one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1).items():
            patch.setenv(name, value)
        yield engine.start(tmp_path_factory.mktemp("alone"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the one picture."""
    (tmp_path / "coco" / "train2014").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "coco" / "train2014" / NAME)
    return tmp_path
