"""vision.py: a product is the convolution, in numbers, gradients and names of parameters."""

from typing import Callable

import pytest
import torch
from PIL import Image

from activeo3 import vision
from activeo3.families import FAMILIES
from activeo3.model import VisionLanguageModel
from activeo3.vision import PatchProduct, multiply_patches


@pytest.mark.parametrize("family", FAMILIES)
def test_a_product_is_the_convolution(
    family: str,
    make_vlm: Callable[..., VisionLanguageModel],
    picture: Callable[..., Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm = make_vlm(family)
    visual = vlm.model.model.visual
    (prompt,) = vlm.encode([picture(64, 48)], ["Where?"])

    def tokens_and_gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        out = visual(prompt.pixels, grid_thw=prompt.grids).pooler_output
        out.square().mean().backward()
        # Features that go around the merger have no part in this.
        gradients = {name: p.grad.clone() for name, p in visual.named_parameters() if p.grad is not None}
        visual.zero_grad()
        return out.detach(), gradients

    before, expected = tokens_and_gradients()
    kept = vlm.model.state_dict()
    multiply_patches(vlm.model)
    assert type(visual.patch_embed.proj) is torch.nn.Conv3d  # patches of 384 values
    monkeypatch.setattr(vision, "FEW", 384)
    multiply_patches(vlm.model)
    assert isinstance(visual.patch_embed.proj, PatchProduct)
    after, found = tokens_and_gradients()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    now = vlm.model.state_dict()
    assert list(now) == list(kept) and all(now[name].data_ptr() == tensor.data_ptr() for name, tensor in kept.items())
