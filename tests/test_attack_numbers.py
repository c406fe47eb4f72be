"""tests/attack/numbers.py at small size, and what it attacks, held to single numbers."""

import math
import random
from typing import Iterator

import numpy as np
import pytest
import torch
from attack.numbers import ATTACKS, World, learning_rate, weight
from launch import rank_environment
from small_runs import prepare, small_pictures
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from activeo3 import lora
from activeo3.config import ConfigError, TrainConfig
from activeo3.decoders import FiniteScores
from activeo3.model import ModelError, VisionLanguageModel
from activeo3.model_files import largest
from activeo3.task_models import Detections, TaskModel, act
from activeo3.types import Region

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # DeepSpeed's


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1).items():
            patch.setenv(name, value)
        prepare(patch)
        yield World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name, trials", [("reward", 2), ("logit", 6), ("detection", 4)])
def test_numbers_that_are_none_are_named(name: str, trials: int, world: World) -> None:
    for trial in range(trials):
        assert not ATTACKS[name](world, random.Random(f"{name} {trial}"))


@pytest.mark.parametrize("exponent", [17.5, 30])
def test_a_learning_rate_beyond_sense_leaves_no_checkpoint_that_cannot_be_used(exponent: float, world: World) -> None:
    assert not learning_rate(world, random.Random(0), exponent)


@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e38])
def test_a_checkpoint_with_a_weight_beyond_sense_is_refused_by_the_name_of_the_weight(
    value: float, world: World
) -> None:
    assert not weight(world, random.Random(f"{value}"), value)


# ---------------------------------------------------------------------- single numbers


def test_scores_that_are_a_distribution_are_left_as_they_are() -> None:
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    scores[1, :8] = -torch.inf  # one allowed token
    finite = FiniteScores(1.0)
    assert torch.equal(finite(torch.zeros(4, 1, dtype=torch.long), scores), scores) and not finite.broken()


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("bad", [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3, [1e38, 0.0, 0.0]])
def test_a_row_is_broken_exactly_when_its_probabilities_are(bad: list[float], temperature: float) -> None:
    """As transformers would draw from it: a row that is broken cannot be drawn from, and what it becomes can be."""
    finite, ids = FiniteScores(temperature), torch.zeros(2, 1, dtype=torch.long)
    scores = torch.tensor([[0.0, 1.0, 2.0], bad])
    drawn_from = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    broken = bool(drawn_from(ids, scores.clone()).softmax(dim=-1).isnan().any())
    mended = finite(ids, scores.clone())
    assert finite.broken() == broken
    assert drawn_from(ids, mended).softmax(dim=-1).isfinite().all() and torch.equal(mended[0], scores[0])


def test_the_largest_weight_is_named_with_its_sign_and_nan_is_the_largest() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.data[1, 2], model.bias.data[0] = -7.0, 5.0
    assert largest(model) == ("weight", -7.0)
    model.bias.data[1] = math.nan
    name, value = largest(model)
    assert name == "bias" and math.isnan(value)


def test_numbers_of_a_task_model_are_named_by_their_example() -> None:
    """Any task model's: a box or score that is none would be dropped by a threshold, or rank by chance."""

    class Odd(TaskModel):
        def find(self, looks: list, config: TrainConfig) -> list[Detections]:
            return [
                Detections(
                    np.array([[0.0, 0.0, 4.0, 4.0]]), np.array([math.nan if look.example.id == "mosaic/1" else 1.0]), ""
                )
                for look in looks
            ]

    with pytest.raises(
        ModelError, match="^the task model gives boxes or scores that are not finite for example mosaic/1; .*\\.$"
    ):
        act(Odd(), small_pictures()[:3], [[Region(0, 0, 32, 32)]] * 3, TrainConfig())


def test_adapters_whose_product_overflows_are_no_policy(world: World) -> None:
    """A and B of 1e25 are numbers, and what they add to a matrix is not."""
    pytest.importorskip("peft")
    vlm = VisionLanguageModel.load(world.config.model, torch.float32)
    lora.add(vlm, 2, "q_proj")
    lora.check_finite("the policy", vlm.model)
    for name, parameter in vlm.model.named_parameters():
        if "layers.1." in name and "lora_" in name:
            parameter.data.fill_(1e25)
    with pytest.raises(
        ModelError,
        match=r"^the policy has adapters .* not finite, in model.language_model.layers.1.self_attn.q_proj; .*\.$",
    ):
        lora.check_finite("the policy", vlm.model)


@pytest.mark.parametrize("flag", ["lr", "beta", "update_options clip_high", "update_options weight_decay"])
def test_a_flag_that_overflows_single_precision_is_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--{flag} is 1e\+31; it must be a finite number of at most 1e\+30\.$"):
        TrainConfig(**{flag.split()[-1]: 1e31})


def test_so_is_a_weight_of_a_reward() -> None:
    sentence = r"^--reward_weights task=1e31: it must be a finite number of at most 1e\+30\.$"
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(reward_weights=("task=1e31",))
