"""vision.py: what is kept of a picture is what a pass over its pixels gives, and nobody looks twice."""

import gc
from typing import Any, Callable, Sequence

import pytest
import torch
from PIL import Image
from scripted import USUAL
from torch import Tensor

from activeo3.grpo import answer_logps
from activeo3.model import VisionLanguageModel
from activeo3.packing import Branch, Prompt
from activeo3.types import Sampling

Picture = Callable[..., Image.Image]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(params=[*USUAL, "nothing deep"])
def frozen(request: pytest.FixtureRequest, make_vlm: Callable[..., VisionLanguageModel]) -> VisionLanguageModel:
    """A policy that learns in its text tower; one is a Qwen3-VL that adds nothing further in, like the tiny policy."""
    vlm = make_vlm("qwen3_vl" if request.param == "nothing deep" else request.param)
    if request.param == "nothing deep":
        vlm.model.model.visual.deepstack_visual_indexes = []
    vlm.model.model.visual.requires_grad_(False)
    vlm.vision_cache.keep_if_frozen()
    assert vlm.vision_cache.keep
    return vlm


@pytest.fixture
def glances(frozen: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each pass of the vision tower was about."""
    seen: list[int] = []
    look = frozen.model.model.get_image_features

    def counted(pixels: Tensor, grids: Tensor, **options: Any) -> Any:
        seen.append(len(grids))
        return look(pixels, grids, **options)

    monkeypatch.setattr(frozen.model.model, "get_image_features", counted)
    return seen


def rollouts(vlm: VisionLanguageModel, picture: Picture) -> tuple[list[Prompt], list[list[Branch]]]:
    """Two prompts, one of them with two pictures, two answers each; half of the rows are shown something then."""
    shown = [[picture(64, 48, 0), picture(32, 32, 7)], picture(80, 32, 1)]
    prompts = vlm.encode(shown, ["Where is a red star?", "Read it."], ["a", "b"])
    views = [picture(48, 32, 2), None, [picture(16, 16, 4), picture(48, 16, 6)], picture(48, 32, 3)]
    seen = vlm.encode_next(views, ["Closer.", "That is no box.", "Both.", "Once more."])
    told: set[int] = set()

    def observe(ended: Sequence[tuple[int, tuple[int, ...]]]) -> list[Prompt | None]:
        new = [None if row in told else seen[row] for row, _ in ended]
        told.update(row for row, _ in ended)
        return new

    hook = vlm.model.lm_head.register_forward_hook(
        lambda module, inputs, logits: (
            logits + 6.0 * torch.nn.functional.one_hot(torch.tensor(vlm.end_token), logits.shape[-1])
        )
    )
    torch.manual_seed(5)
    branches = vlm.generate_multi_turn(prompts, 2, Sampling(max_new_tokens=12), observe)
    hook.remove()
    assert any(branch.shown for row in branches for branch in row)
    return prompts, branches


def learned(
    vlm: VisionLanguageModel, prompts: list[Prompt], branches: Sequence[Sequence[Branch | list[int]]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities of the branches, and the gradient of their weighted sum for every parameter that learns."""
    packed = vlm.pack(prompts, branches)
    logps, _ = answer_logps(
        vlm.forward_packed(packed), packed.tokens, packed.columns, 1.0, vlm.suppressed_ids, packed.logit_columns
    )
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1))
    (weights * logps)[packed.completion_mask].sum().backward()
    gradients = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.requires_grad}
    vlm.model.zero_grad()
    return logps.detach()[packed.completion_mask], gradients


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_kept_is_what_pixels_give(frozen: VisionLanguageModel, picture: Picture, recompute: bool) -> None:
    prompts, branches = rollouts(frozen, picture)
    if recompute:
        frozen.model.gradient_checkpointing_enable({"use_reentrant": False})
        frozen.model.train()
    assert "pixel_values" not in frozen.pack(prompts, branches).inputs
    kept, gradients = learned(frozen, prompts, branches)
    frozen.vision_cache._kept.clear()
    assert "pixel_values" in frozen.pack(prompts, branches).inputs
    pixels, expected = learned(frozen, prompts, branches)
    torch.testing.assert_close(kept, pixels, rtol=0, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-6)


def test_sampling_is_the_same_with_and_without(frozen: VisionLanguageModel, picture: Picture) -> None:
    _, kept = rollouts(frozen, picture)
    frozen.vision_cache.keep = False
    _, pixels = rollouts(frozen, picture)
    assert [[branch.turns for branch in row] for row in kept] == [[branch.turns for branch in row] for row in pixels]


def test_nobody_looks_twice_and_nothing_is_kept_for_long(
    frozen: VisionLanguageModel, picture: Picture, glances: list[int]
) -> None:
    prompts, branches = rollouts(frozen, picture)
    shown = sum(len(seen.grids) for row in branches for branch in row for seen in branch.shown)
    assert glances[0] == 3 and sum(glances) == 3 + shown
    before = len(glances)
    for _ in range(2):  # reference and update
        frozen.forward_packed(frozen.pack(prompts, branches))
    frozen.generate(prompts, 2, Sampling(max_new_tokens=3))
    assert len(glances) == before
    del prompts, branches
    gc.collect()
    assert len(frozen.vision_cache._kept) == 0


def test_pixels_are_shown_of_what_nobody_looked_at(frozen: VisionLanguageModel, picture: Picture) -> None:
    prompts = frozen.encode([picture(64, 48), picture(32, 32)], ["Where?", "Where?"])
    answers = [[[40, 41]], [[42]]]
    expected, _ = learned(frozen, prompts, answers)
    frozen.vision_cache.encode(prompts[:1])
    assert "pixel_values" in frozen.pack(prompts, answers).inputs
    frozen.vision_cache.encode(prompts)
    assert "pixel_values" not in frozen.pack(prompts, answers).inputs
    kept, _ = learned(frozen, prompts, answers)
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)


def test_a_tower_that_learns_sees_pixels(frozen: VisionLanguageModel, picture: Picture, glances: list[int]) -> None:
    next(frozen.model.model.visual.parameters()).requires_grad_(True)
    frozen.vision_cache.keep_if_frozen()
    prompts, branches = rollouts(frozen, picture)
    before = len(glances)
    frozen.forward_packed(frozen.pack(prompts, branches))
    assert not frozen.vision_cache.keep and len(glances) == before + 1
