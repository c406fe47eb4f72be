"""A picture's patches become tokens in one matrix product.

In both families the first layer of the vision tower is a three-dimensional convolution whose kernel is as large as its
stride: every patch is multiplied with the same matrix, and that is all. As a convolution this takes three times as long
on a CPU (1024 patches of 14 x 14 pixels, forward and backward: 33 ms against 11 ms), and a picture goes through it in
every rollout, reference and update.
"""

from torch import Tensor, nn
from torch.nn.functional import linear

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
