"""Pictures that need 0, 1 or 2 looks: floors and ceilings by construction, and for the shipped policy as a reader."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import rows_of

import train
from activeo3 import engine
from activeo3.config import TrainConfig
from activeo3.data_mixed import LOOKS, Plate, bar_of, example, looks, plates_of
from activeo3.data_scenes import PLATE_SIDES, Scene, scene
from activeo3.eval_baselines import greedy_rollouts
from activeo3.eval_zoom_qa import CropShown
from activeo3.geometry import crop
from activeo3.model import VisionLanguageModel
from activeo3.presets import PRESETS
from activeo3.task_zoom_qa import ZoomQA, rightness
from activeo3.tasks import Task, task_of
from activeo3.types import Example

FIRST_VIEW, CROP_VIEW = 96, 128  # pixels: --sensing_side and --crop_side
READ = (
    44 // 8 * CROP_VIEW / PLATE_SIDES[1]
)  # pixels of a figure's dot in the widest crop that the policy learned to read
INDICES = range(60)


def world(needed: int) -> list[tuple[Scene, list[Plate]]]:
    """The pictures that need so many looks, with their plates."""
    return [plates_of("test", index) for index in INDICES if looks("test", index) == needed]


def dot(picture: Scene, plate: Plate, view: float) -> float:
    """How many pixels a dot of a figure has in a view whose shorter side is the picture's."""
    return (plate[3] - plate[1]) // 8 * view / min(picture.size)


def middle(plate: Plate) -> np.ndarray:
    return np.array([plate[0] + plate[2], plate[1] + plate[3]]) / 2


def test_a_third_of_the_questions_each_needs_0_1_and_2_looks() -> None:
    drawn = [looks("train", index) for index in range(1200)]
    assert [drawn.count(needed) / len(drawn) for needed in LOOKS] == pytest.approx([1 / 3] * 3, abs=0.05)
    assert [example("test", index).vqa.category for index in range(3)] == ["2 looks", "2 looks", "0 looks"]


def test_only_large_plates_can_be_read_in_the_first_view() -> None:
    for picture, (plate,) in world(0):
        assert dot(picture, plate, FIRST_VIEW) >= READ
        x1, y1, x2, y2 = plate
        assert 0 <= x1 < x2 <= picture.size[0] and 0 <= y1 < y2 <= picture.size[1]
        assert all(t.box_px[2] <= x1 or t.box_px[0] >= x2 or t.box_px[3] <= y1 or t.box_px[1] >= y2
                   for t in picture.things)  # fmt: skip
    for picture, plates in world(1) + world(2):
        unit = min(picture.size) / 896
        for plate in plates:
            assert dot(picture, plate, FIRST_VIEW) <= 0.6
            assert dot(picture, plate, CROP_VIEW * 896 / PLATE_SIDES[1]) >= READ
            assert all(np.abs(middle(plate) - t.centre).max() > 40 * unit for t in picture.things)


def test_no_readable_crop_shows_both_plates_and_the_number_is_on_either() -> None:
    first = []
    for index in INDICES:
        if looks("test", index) == 2:
            picture, (numbered, other) = plates_of("test", index)
            width = PLATE_SIDES[1] * min(picture.size) / 896
            assert np.abs(middle(numbered) - middle(other)).max() > width
            assert picture.plate_px == numbered
            first.append(numbered == scene("test", index).plate_px)
    assert 0.25 < np.mean(first) < 0.75


def test_the_two_plates_differ_in_a_crop_and_not_in_the_first_view() -> None:
    index = next(index for index in INDICES if looks("test", index) == 2)
    picture, plates = plates_of("test", index)
    image = example("test", index).image
    pixels = np.asarray(image)
    number, bar = (pixels[bar_of(plate, picture.number)] for plate in plates)
    assert set(number[..., 0].flat) == {40, 225} and np.ptp(bar) == 0
    assert number.mean() == pytest.approx(bar.mean(), abs=0.5)
    width, height = plates[0][2] - plates[0][0], plates[0][3] - plates[0][1]
    apart = []
    for view in (FIRST_VIEW, CROP_VIEW * 896 / PLATE_SIDES[1]):
        size = (round(width * view / min(picture.size)), round(height * view / min(picture.size)))
        shown = [np.asarray(crop(image, tuple(map(float, plate)), size), dtype=float) for plate in plates]
        apart.append(np.abs(shown[0] - shown[1]).mean())
    assert 2 * apart[0] < apart[1]


def settings(**values: object) -> TrainConfig:
    return replace(TrainConfig(**PRESETS["mixed"]), **values)


def accuracy(task: Task, policy: VisionLanguageModel, examples: list[Example]) -> float:
    answers = [one.episode.answer for one in greedy_rollouts(policy, task, examples)]
    return float(np.mean([rightness(answer, one.vqa) for answer, one in zip(answers, examples)]))


def test_the_shipped_policy_reads_what_construction_says() -> None:
    """Without a look the large plates and nothing else; shown the place, all."""
    policy = VisionLanguageModel.load("data/tiny-tasks", torch.float32)
    examples = [example("val", index) for index in range(18)]
    at_once = settings(max_zooms=0, max_turns=1)
    apart = [[one for one in examples if one.vqa.category == f"{needed} looks"] for needed in LOOKS]
    without = [accuracy(ZoomQA(at_once), policy, part) for part in apart]
    assert without[0] >= 0.7 and max(without[1:]) <= 0.2
    assert min(accuracy(CropShown(at_once), policy, part) for part in apart[1:]) >= 0.8


def test_the_preset_runs_and_a_resumed_run_is_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "stop", lambda: None)
    config = settings(
        preset=("mixed",), steps=2, prompts=1, micro_prompts=1, group=2, save_every=1, eval_examples=0, samples_every=0,
        reward_weights=("calls=0.1", "evidence=0"), divide_costs=False, zooms_target=0.5,
    )  # fmt: skip
    straight, halves = (replace(config, output_dir=str(tmp_path / name)) for name in ("straight", "halves"))
    train.main(straight)
    train.main(replace(halves, steps=1))
    train.main(halves)
    assert rows_of(tmp_path / "straight") == rows_of(tmp_path / "halves")
    models = [(tmp_path / name / "checkpoint-2" / "model.safetensors").read_bytes() for name in ("straight", "halves")]
    assert models[0] == models[1] and task_of(config).weights == {"answer": 1.0, "evidence": 0.0, "calls": 0.1}
    first, second = rows_of(tmp_path / "halves")
    assert first["price"] == 0.1 != second["price"] == 0.1 + 0.01 * (-first["reward/calls"] - 0.5)
