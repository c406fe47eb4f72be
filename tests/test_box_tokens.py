"""families.py, and all roles of a family that writes boxes so: asked without JSON, and read like the others."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripted import END, Scripted
from transformers import PreTrainedTokenizerFast

from activeo3 import prompts, task_perception
from activeo3.config import TrainConfig
from activeo3.families import as_json, marked
from activeo3.rollout import sample_rollouts
from activeo3.task_models import Crop
from activeo3.tasks import known_tasks
from activeo3.types import VQA, Example, Objects, Region, Rollout, Sampling

TASKS = known_tasks()

CONFIG = TrainConfig(sensing_side=448, crop_side=448, wording="paper")
IMAGE = Image.new("RGB", (1344, 896))
BOX, REGION = (250, 250, 500, 500), (336.0, 224.0, 672.0, 448.0)  # in thousandths of that picture, and in its pixels


@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=1, max_size=4),
    names=st.lists(st.text(st.characters(exclude_characters="<|"), max_size=8), min_size=4, max_size=4),
    before=st.sampled_from(["", "<think>[1] (2,3)</think><answer>", "There: "]),
)
def test_what_is_written_is_read(boxes: list[tuple[int, ...]], names: list[str], before: str) -> None:
    text = as_json(before + marked(boxes, names[: len(boxes)]) + " 7</answer>")
    assert text.startswith(before) and text.endswith(" 7</answer>")
    items = json.loads(text.removeprefix(before).removesuffix(" 7</answer>"))
    assert [tuple(item["bbox_2d"]) for item in items] == boxes
    assert [item["label"] for item in items] == [name.strip() for name in names[: len(boxes)]]


@pytest.mark.parametrize(
    "text, read",
    [
        ("<|box_start|>(1,2),(3,4)<|box_end|>", '[{"bbox_2d":[1.0,2.0,3.0,4.0]}]'),
        ("<|box_start|>( 1.5 , 2 ) (3,-4)<|box_end|>", '[{"bbox_2d":[1.5,2.0,3.0,-4.0]}]'),
        # A name holds for all boxes up to the next one; commas and lines between boxes are no break.
        ("<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>,\n<|box_start|>(5,6),(7,8)<|box_end|>",
         '[{"bbox_2d":[1.0,2.0,3.0,4.0],"label":"a"},{"bbox_2d":[5.0,6.0,7.0,8.0],"label":"a"}]'),
        # What is cut short stays, and a reader takes the boxes before it.
        ("<|box_start|>(1,2),(3,4)<|box_end|><|box_start|>(5,6),(7", '[{"bbox_2d":[1.0,2.0,3.0,4.0]}]<|box_start|>(5,6),(7'),
        ("<|box_start|>(1,2,3,4)<|box_end|>", "<|box_start|>(1,2,3,4)<|box_end|>"),
        ("(1,2),(3,4)", "(1,2),(3,4)"),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', '[{"bbox_2d": [1, 2, 3, 4]}]'),
    ],
)  # fmt: skip
def test_forms(text: str, read: str) -> None:
    assert as_json(text) == read


@pytest.mark.parametrize("wording", prompts.WORDINGS)
def test_nobody_asks_for_json(wording: str) -> None:
    """In no role and wording is a family with box tokens asked for JSON; the others are asked as ever."""
    asks = [
        *(lambda boxes, ask=ask: ask("cup", wording, 3, boxes=boxes) for ask in (prompts.sensing_prompt, prompts.looking_prompt, prompts.segmentation_prompt)),
        lambda boxes: prompts.task_prompt("cup", wording, boxes=boxes),
        *(lambda boxes, at_once=at_once: prompts.episode_prompt("Why?", wording, 3, at_once=at_once, boxes=boxes) for at_once in (1, 3)),
        *(lambda boxes, task=task: task_perception.perception_prompt(task, "cup", wording, boxes=boxes) for task in task_perception.TASKS if task != "ocr"),
    ]  # fmt: skip
    for ask in asks:
        in_json, in_tokens = ask("json"), ask("tokens")
        assert not any(word in in_tokens for word in ("JSON", "bbox_2d", "point_2d", "[x1", "{", "list"))
        assert (in_tokens == in_json) == (wording == "short") == ("(x1,y1),(x2,y2) in your box tokens" not in in_tokens)


def rollout(
    task: str, answer: str, tokenizer: PreTrainedTokenizerFast, family: str = "qwen2_vl", **fields: Any
) -> tuple[Rollout, Scripted]:
    example = Example("one", IMAGE, "cup", np.array([REGION]), **fields)
    policy = Scripted(family, tokenizer, lambda *_: answer + END)
    _, (((found,)),) = sample_rollouts(policy, TASKS[task](replace(CONFIG, task=task)), [example], 1, Sampling(1.0, 96))
    return found, policy


def test_a_policy_with_box_tokens_looks_where_it_says(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = f"<think>there</think><answer>{marked([BOX], ['cup-dense region'])}</answer>"
    found, policy = rollout("sense", answer, tokenizer)
    assert found.action.error is None and found.action.labels == ("cup-dense region",)
    np.testing.assert_allclose(found.regions, [REGION])
    assert found.text == answer and "box tokens" in policy.shown[0][1]  # the record is what was sampled
    other, policy = rollout("sense", answer, tokenizer, family="qwen3_vl")
    assert other.action.error == "json" and "JSON" in policy.shown[0][1]
    cut, _ = rollout("sense", f"<think>there</think><answer>{marked([BOX], ['a'])[:-4]}</answer>", tokenizer)
    assert cut.action.error == "json" and not cut.regions


@pytest.mark.parametrize(
    "task, answer, count", [("grounding", marked([BOX], ["cup"]), 1), ("detection", marked([BOX] * 2, ["cup", "plate"]), 2), ("counting", marked([BOX] * 3, ["cup"] * 3) + " 3", 3)]
)  # fmt: skip
def test_one_shot_answers_are_read(task: str, answer: str, count: int, tokenizer: PreTrainedTokenizerFast) -> None:
    found, _ = rollout(task, answer, tokenizer, objects=Objects(np.array([REGION]), ("cup",), ("cup", "plate")))
    assert found.action.error is None and len(found.action.boxes_text) == count
    np.testing.assert_allclose(found.result.boxes_px, [REGION] * count)


def test_the_task_role_is_read(tokenizer: PreTrainedTokenizerFast) -> None:
    task_model = Scripted("qwen2_vl", tokenizer, lambda *_: marked([BOX], ["cup"]) + END)
    example = Example("one", IMAGE, "cup", np.array([REGION]))
    (found,) = task_model.find([Crop(example, Region(0, 0, 1344, 896))], CONFIG)
    np.testing.assert_allclose(found.boxes_px, [REGION])
    assert "box tokens" in task_model.shown[0][1]


def test_an_episode_zooms_by_box_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    said = iter([f"<think>closer</think>{marked([BOX], ['sign'])}", "<answer>7</answer>"])
    vqa = VQA("Which number?", ("7",), evidence_px=np.array([REGION]))
    example = Example("one", IMAGE, "cup", np.array([REGION]), vqa=vqa)
    policy = Scripted("qwen2_vl", tokenizer, lambda *_: next(said) + END)
    _, ((found,),) = sample_rollouts(
        policy, TASKS["zoom_qa"](replace(CONFIG, task="zoom_qa")), [example], 1, Sampling(1.0, 96)
    )
    assert found.episode.statuses[0] == "zoom_executed" and found.episode.answer == "7"
    np.testing.assert_allclose([found.episode.zooms[0].window_px], [REGION])
