"""The task role as a policy, and both roles in turn: crops, right answers against transformers' own loss, rounds."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import pytest
import torch
from launch import finely_sharded, rank_environment
from PIL import Image
from small_runs import look_somewhere, prepare, rows_of, small_pictures

import train
from activeo3 import engine, grpo, prompts, task_act
from activeo3.alternation import rounds
from activeo3.config import ConfigError, TrainConfig
from activeo3.geometry import Frame, as_boxes, held
from activeo3.packing import Branch
from activeo3.rollout import right_answers
from activeo3.task_act import Act, cropped, one_region
from activeo3.tasks import task_of
from activeo3.types import Example, ParsedAnswer, Region, Rollout

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's
SFT = TrainConfig.from_args(["--preset", "sft"])
ON_THE_CROP = as_boxes([[30, 40, 60, 60], [10, 10, 30, 30], [70, 90, 110, 110]])


def question() -> Example:
    return Example(
        "a", Image.effect_noise((120, 100), 90).convert("RGB"), "star", ON_THE_CROP + np.array([8, 5, 8, 5]),
        crowd=np.array([False, False, True]),
    )  # fmt: skip


# ---------------------------------------------------------------------- crops


def test_a_crop_is_an_example_of_its_own() -> None:
    example = question()
    crop = cropped(example, Region(7.6, 5.2, 71.3, 65.8))
    assert crop.size_px == (65, 61)  # out to whole pixels: from 7, 5 to 72, 66
    assert np.array_equal(np.asarray(crop.image), np.asarray(example.image)[5:66, 7:72])
    assert crop.boxes_px.tolist() == [[31, 40, 61, 60], [11, 10, 31, 30]] and crop.crowd.tolist() == [False, False]


def test_a_box_that_is_cut_belongs_to_the_crop_from_nine_tenths_on() -> None:
    """Boxes of 20 x 20 px: one pixel less is 95 % of them, three are 85 %."""
    example = replace(question(), boxes_px=as_boxes([[10, 10, 30, 30], [10, 40, 30, 60]]), crowd=None)
    assert cropped(example, Region(11, 0, 90, 90)).boxes_px.tolist() == [[0, 10, 19, 30], [0, 40, 19, 60]]
    assert not len(cropped(example, Region(13, 0, 90, 90)).boxes_px)


def test_crops_are_regions_of_the_frozen_policy(monkeypatch: pytest.MonkeyPatch, make_vlm: Callable) -> None:
    class Frozen:
        def gathered(self) -> Any:
            return nullcontext(make_vlm("qwen3_vl"))

    monkeypatch.setattr(task_act, "sample_rollouts", look_somewhere)
    task = Act(replace(SFT, sensing_side=32, max_new_tokens=4))
    torch.manual_seed(0)
    crops = task.prepare_batch(Frozen(), small_pictures()[:3])
    assert [crop.size_px for crop in crops] == [(32, 24)] * 3


def test_the_truth_is_what_the_reward_pays_in_full(make_vlm: Callable) -> None:
    """Read from the top to the bottom, without the crowd."""
    vlm, task, example = make_vlm("qwen3_vl"), Act(replace(SFT, crop_side=64)), question()
    assert task.truth(example, Frame((0, 0, 120, 100), (1000, 1000))) == prompts.boxes_answer(
        [(150, 150, 317, 350), (317, 450, 567, 650)]
    )
    _, ((rollout, _),) = right_answers(vlm, task, [example], 2)
    assert rollout.finished and rollout.token_ids[-1] == vlm.end_token
    assert dict(task.reward(rollout, rollout.result).terms) == {"format": 1.0, "task": 2.0}


# ---------------------------------------------------------------------- right answers


def test_without_a_region_it_is_a_random_one() -> None:
    example = replace(question(), boxes_px=as_boxes([[90, 70, 100, 80]]), crowd=None)
    nowhere = Rollout(example, (), "", True, ParsedAnswer(()), (Region(5, 5, 6, 50),))
    torch.manual_seed(0)
    found = np.array([one_region(nowhere) for _ in range(400)])
    assert 0.75 < held(example.boxes_px, found).mean() < 0.9  # three of four by intention, some by chance
    assert found.min() >= 0 and (found[:, 2:] <= (120, 100)).all()
    shares = np.prod(found[:, 2:] - found[:, :2], axis=1) / 12_000
    assert shares.min() >= 0.04 and shares.max() <= 0.5 and 0.25 < shares.mean() < 0.29
    assert np.allclose((found[:, 2] - found[:, 0]) / (found[:, 3] - found[:, 1]), 1.2)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_right_answers_are_learned_by_the_cross_entropy_of_transformers(family: str, make_vlm: Callable) -> None:
    vlm, examples = (
        make_vlm(family),
        [question(), replace(question(), id="b", query="disc", boxes_px=ON_THE_CROP[:1], crowd=None)],
    )
    prompts_, groups = right_answers(vlm, Act(replace(SFT, crop_side=64)), examples)
    branches = [[Branch.of(one.branch) for one in group] for group in groups]
    packed = vlm.pack(prompts_, branches)
    logits = vlm.forward_packed(packed, vlm.model)
    logp, _ = grpo.answer_logps(
        logits, packed.tokens, packed.columns, 1.0, (), packed.logit_columns, packed.completion_mask
    )
    advantages = grpo.advantages(torch.tensor([[3.0], [0.0]]), "one")
    weight = grpo.token_weights(packed.completion_mask, "response", 2, 0, 0)
    loss, _ = grpo.policy_loss(logp, logp.detach(), None, advantages, weight, 0.2, 0.2, 0.0, "none")

    theirs = []
    for prompt, (rollout,) in zip(prompts_, (group for group in groups)):
        ids = torch.cat([prompt.ids, torch.tensor(rollout.token_ids)])[None]
        labels = ids.clone()
        labels[0, : len(prompt.ids)] = -100
        kinds = {"mm_token_type_ids": (ids == vlm.image_token).long()}
        theirs.append(
            vlm.model(
                input_ids=ids, labels=labels, pixel_values=prompt.pixels, image_grid_thw=prompt.grids, **kinds
            ).loss
        )
    assert loss.item() == pytest.approx(torch.stack(theirs).mean().item(), rel=1e-5)


# ---------------------------------------------------------------------- both roles in turn


def test_rounds_name_each_others_last_checkpoints() -> None:
    config = TrainConfig(steps=5, alternate=2, task="act", task_update="sft", model="start", output_dir="runs/a")
    first, second, third = rounds(config)
    of = [(run.task, run.steps, run.output_dir, run.model, run.task_checkpoint) for run in (first, second, third)]
    assert of == [
        ("act", 2, "runs/a/round-1-act", "start", ""),
        ("sense", 2, "runs/a/round-2-sense", "start", "runs/a/round-1-act/checkpoint-2"),
        ("act", 1, "runs/a/round-3-act", "runs/a/round-1-act/checkpoint-2", "runs/a/round-2-sense/checkpoint-2"),
    ]
    assert (first.advantage, first.ratio, first.beta, first.group) == ("one", "none", 0.0, 1)
    assert (second.advantage, second.task_update, second.beta, second.group) == ("group", "rl", 0.04, 8)
    assert [run.seed for run in (first, second, third)] == [0, 1, 2]  # no round asks what the one before it asked
    assert list(rounds(SFT)) == [SFT]


@pytest.mark.parametrize("flags, sentence", [
    ("--alternate 5 --task zoom_qa", "--alternate trains sense and act in turn, and --task is zoom_qa"),
    ("--task_update sft", "--task_update sft goes with --task act"),
    ("--task act --task_update sft", "take the preset sft"),
    ("--preset act --task_model oracle", "--task act has its crops from a sensing policy, and --task_model is oracle"),
])  # fmt: skip
def test_what_does_not_go_together_is_said(flags: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        task_of(TrainConfig.from_args(flags.split()))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1).items():
            patch.setenv(name, value)
        prepare(patch)
        patch.setattr(task_act, "sample_rollouts", look_somewhere)
        engine.start(tmp_path / "alone")
        yield


def test_alternation_goes_on_where_it_was_interrupted(alone: None, make_vlm: Callable, tmp_path: Path) -> None:
    """Killed in the second step of the second round; the weights and rows of all rounds are those of one go."""
    make_vlm("qwen3_vl", 0).save(tmp_path / "start")
    config = TrainConfig(
        model=str(tmp_path / "start"), ds_config=finely_sharded(tmp_path), steps=4, save_every=1, alternate=2,
        task_update="sft", prompts=1, micro_prompts=1, group=2, max_new_tokens=6, task_max_new_tokens=4, sensing_side=32,
        crop_side=32, lr=1e-3, warmup=2, eval_examples=0, samples_every=0, output_dir=str(tmp_path / "whole"),
    )  # fmt: skip
    for run in rounds(config):
        train.main(run)
    again = replace(config, output_dir=str(tmp_path / "cut"))
    step_of = train.train_step

    def die(step: int, examples: Any, policy: Any, reference: Any, task_model: Any, task: Any, config: Any) -> Any:
        if step == 2 and task.name == "act":
            raise KeyboardInterrupt
        return step_of(step, examples, policy, reference, task_model, task, config)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "train_step", die)
        for run in rounds(again):
            train.main(run)
    assert not list((tmp_path / "cut").glob("round-2-act/checkpoint-2"))
    for run in rounds(again):
        train.main(run)
    for folder in sorted(path.name for path in (tmp_path / "whole").iterdir()):
        mine, theirs = tmp_path / "cut" / folder, tmp_path / "whole" / folder
        assert rows_of(mine) == rows_of(theirs) and len(rows_of(mine)) == 2
        weights = [(run / "checkpoint-2" / "model.safetensors").read_bytes() for run in (mine, theirs)]
        assert weights[0] == weights[1]
