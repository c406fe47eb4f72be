"""Caches the frozen vision tower's features, so that rollout, reference and update encode each picture once.

A policy that learns in its text tower alone (the default, and every LoRA) never changes what it sees, and its
reference has the same tower. So the rollout keeps what it has seen, and the packed rows of reference and update are
given that in the place of pixels.

It is kept with the prompt and no longer than it: a step's pictures go when its prompts do.

In every family the first layer of the tower is a three-dimensional convolution whose kernel is as large as its stride:
every patch is multiplied with the same matrix. As a convolution this takes three times as long on a CPU (1024 patches
of 14 x 14 pixels, forward and backward: 33 ms against 11 ms), so ``multiply_patches`` computes the product.
"""

from typing import Any, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from activeo3.families import FAMILIES
from activeo3.packing import Prompt


class VisionCache:
    """The features of each prompt's pictures, computed once while ``keep`` is set."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.keep = False
        # Of each prompt: its visual tokens (N, hidden), and with ``deepstack`` those of every layer that adds further
        # ones.
        self._kept: WeakKeyDictionary[Prompt, tuple[Tensor, ...]] = WeakKeyDictionary()
        self._kind: type = dict  # in which transformers returns them
        self._deep = FAMILIES[model.config.model_type].deepstack

    def keep_if_frozen(self) -> None:
        """Keep features from now on, if no parameter of the tower learns."""
        self.keep = not any(parameter.requires_grad for parameter in self.model.model.visual.parameters())

    def encode(self, prompts: Sequence[Prompt]) -> None:
        """Compute and keep the features of these prompts. Does nothing unless ``keep`` is set. Needs whole weights."""
        new = [prompt for prompt in dict.fromkeys(prompts) if len(prompt.grids) and prompt not in self._kept]
        if not self.keep or not new:
            return
        with torch.no_grad():
            seen = self.model.model.get_image_features(self._pixels(new), self._grids(new), return_dict=True)
        self._kind = type(seen)
        layers = [seen.pooler_output, *(seen.deepstack_features if self._deep else ())]  # each: a tensor per picture
        pictures = [iter(layer) for layer in layers]
        for prompt in new:
            self._kept[prompt] = tuple(torch.cat([next(of_layer) for _ in prompt.grids]) for of_layer in pictures)

    def model_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The vision arguments of a forward pass on these prompts, in order: kept features, or pixels.

        It is pixels for all if one of them has no kept features. Ranks must agree in this, because with sharded weights
        those that see pixels would wait for the others: a step's prompts come from its rollouts on every rank, or on
        none.
        """
        given = [prompt for prompt in prompts if len(prompt.grids)]
        if not given:
            return {"pixel_values": None, "image_grid_thw": None}
        grids = self._grids(given)
        if not all(prompt in self._kept for prompt in given):
            return {"pixel_values": self._pixels(given), "image_grid_thw": grids}
        tokens, *further = zip(*(self._kept[prompt] for prompt in given))
        deep = {"deepstack_features": further} if self._deep else {}
        seen = self._kind(pooler_output=tokens, **deep)
        return {"mm_encoder_outputs": {"image": seen}, "image_grid_thw": grids}

    def _pixels(self, prompts: Sequence[Prompt]) -> Tensor:
        """(patches, patch values) of all pictures, where the model is."""
        return torch.cat([prompt.pixels for prompt in prompts]).to(self.model.device, self.model.dtype)

    def _grids(self, prompts: Sequence[Prompt]) -> Tensor:
        """(pictures, 3) of all pictures, where the model is."""
        return torch.cat([prompt.grids for prompt in prompts]).to(self.model.device)


# ---------------------------------------------------------------------- patch embedding


FEW = 512
"""Values of a patch. A patch of fewer, like those of the shipped tiny policies (384), is left to the convolution: the
default step would gain 2.6 %, and round differently from the runs whose results are told."""


class PatchProduct(nn.Conv3d):
    """The convolution with the same parameters under the same names, computed as what it is."""

    def forward(self, patches: Tensor) -> Tensor:
        """(N, channels, frames, height, width), each exactly one kernel large -> (N, out channels)."""
        return linear(patches.flatten(1), self.weight.flatten(1), self.bias)


def multiply_patches(model: nn.Module) -> None:
    """Let the model's vision tower multiply its patches, unless they have ``FEW`` values."""
    embed = model.model.visual.patch_embed
    old = embed.proj
    if old.weight[0].numel() < FEW:
        return
    embed.proj = PatchProduct(
        old.in_channels, old.out_channels, old.kernel_size, old.stride, bias=old.bias is not None, device="meta"
    )
    embed.proj.weight, embed.proj.bias = old.weight, old.bias
