"""A checkpoint with transformers alone: the lines of its card, run as they stand, give our answer token for token."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from activeo3 import model_card
from activeo3.config import TrainConfig
from activeo3.data_scenes import example as scene_example
from activeo3.eval_baselines import greedy_rollouts
from activeo3.model import VisionLanguageModel
from activeo3.tasks import task_of

ROOT = Path(__file__).parent.parent
CONFIG = TrainConfig(model=str(ROOT / "data" / "tiny"), max_new_tokens=48, task_max_new_tokens=24)


@pytest.fixture(scope="module")
def tiny() -> VisionLanguageModel:
    return VisionLanguageModel.load(str(ROOT / "data" / "tiny"), torch.float32)


@pytest.mark.parametrize("task", ["sense", "direct"])
def test_the_lines_of_the_card_give_our_answer(
    task: str, tiny: VisionLanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, task=task)
    tiny.save(tmp_path)
    model_card.write(tmp_path, tiny, config, step=3)
    text = (tmp_path / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert "activeo3" not in lines and len(lines.splitlines()) <= 18
    for place in (0, 3):
        example = scene_example("val", place)
        example.image.save(tmp_path / "photo.png")
        (ours,) = greedy_rollouts(tiny, task_of(config), [example])
        copied = lines.replace('"CHECKPOINT"', repr(str(tmp_path))).replace(
            '"photo.jpg"', repr(str(tmp_path / "photo.png"))
        )
        (tmp_path / "copied.py").write_text(copied.replace("red ring", example.query))
        found = runpy.run_path(str(tmp_path / "copied.py"))
        assert tuple(found["answer"].tolist()) == tuple(ours.token_ids), place
        assert capsys.readouterr().out.strip().endswith(tiny.decode(ours.token_ids).strip())


def test_plain_use_shows_nearly_the_view_of_the_training(tiny: VisionLanguageModel, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    model_card.write(tmp_path, tiny, CONFIG, step=3)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for size, wanted in {(1152, 896): (8, 6), (896, 1152): (6, 8), (1344, 896): (9, 6), (64, 48): (8, 6)}.items():
        _, height, width = processor(images=Image.new("RGB", size), return_tensors="pt")["image_grid_thw"][0].tolist()
        assert (width // 2, height // 2) == wanted, size  # visual tokens of 16 pixels; the shorter side is 96


def test_limits_have_every_name_that_a_processor_reads(tiny: VisionLanguageModel, tmp_path: Path) -> None:
    """The nested settings of transformers 5 and the older names of 4 as well."""
    settings = json.loads((ROOT / "data" / "tiny" / "preprocessor_config.json").read_text())
    old = {name: value for name, value in settings.items() if name != "size"} | {"min_pixels": 1, "max_pixels": 2}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings, "processor_class": "X"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    model_card.write(tmp_path, tiny, CONFIG, step=3)
    nested = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    least, most = nested["size"]["shortest_edge"], nested["size"]["longest_edge"]
    assert (least, most) == (10560, 14144)
    flat = Qwen2VLImageProcessorPil(**json.loads((tmp_path / "preprocessor_config.json").read_text()))
    assert dict(flat.size) == {"shortest_edge": least, "longest_edge": most}


def test_generation_ends_answers_and_has_no_settings_of_the_start(tiny: VisionLanguageModel, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.1, "repetition_penalty": 1.05}')
    model_card.write(tmp_path, tiny, CONFIG, step=3)
    settings = GenerationConfig.from_pretrained(tmp_path)
    assert tiny.end_token in settings.eos_token_id and settings.max_new_tokens == 48 and not settings.do_sample
    assert settings.repetition_penalty in (None, 1.0) and settings.suppress_tokens == list(tiny.suppressed_ids)


@pytest.mark.parametrize("task", ["segment", "zoom_qa", "grounding", "counting", "ocr", "detection"])
def test_every_task_has_a_card(task: str, tiny: VisionLanguageModel) -> None:
    config = replace(CONFIG, task=task, model="Qwen/Qwen2.5-VL-7B-Instruct")
    text = model_card.card(tiny, config, step=7)
    assert text.startswith("---\n") and 'base_model: "Qwen/Qwen2.5-VL-7B-Instruct"' in text and "license:" in text
    assert "| steps | 7 of 160" in text and model_card.prompt_of(tiny, config) and f"`--task {task}`" in text
    compile(model_card.code_of(tiny, config, "x"), "card", "exec")


def test_a_task_of_the_users_has_a_card_without_lines(tiny: VisionLanguageModel) -> None:
    config = replace(CONFIG)
    object.__setattr__(config, "task", "own.py:Corner")
    text = model_card.card(tiny, config, step=7)
    assert "The prompt is that of the task own.py:Corner" in text and "```" not in text


def test_a_card_takes_a_table_and_a_newer_one(tiny: VisionLanguageModel) -> None:
    card = model_card.card(tiny, replace(CONFIG, data=("<b>|x",), data_root="x"), step=7)
    assert "<b>" not in card
    once = model_card.with_table(card, "| AP |\n| 0.5 |")
    twice = model_card.with_table(once, "| AP |\n| 0.6 |")
    assert (
        "0.5" in once and "0.5 |" not in twice.split("## Use")[0] and twice.count("## Use") == 1 == twice.count("0.6")
    )
