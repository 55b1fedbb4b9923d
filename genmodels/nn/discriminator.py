"""A patch discriminator for codecs, its hinge losses, and a weight that keeps it from taking over."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.distributed import all_reduce_sum
from genmodels.nn.conv import NORM_GROUPS, norm

MAX_WEIGHT = 1e4
"""Of the adaptive weight: a discriminator without gradients is not worth an infinite one."""


class PatchDiscriminator(nn.Module):
    """Images (N, 3, H, W) -> logits (N, 1, h, w), each judging a patch: the PatchGAN of pix2pix (arXiv 1611.07004).

    Every convolution but the last halves the resolution. Group norm in place of batch norm: an image's logits depend
    on no other image, so that micro-batches and processes make no difference.

    Args:
        channels: width of each level, in multiples of 8.
    """

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        if not channels or any(width < 1 or width % NORM_GROUPS for width in channels):
            raise ValueError(f"discriminator_channels must be multiples of {NORM_GROUPS}, got {channels}")
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, width in pairwise(channels):
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), norm(width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).float()


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator lowers, from logits of any shape (arXiv 1705.02894): real above 1, fake below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_hinge(fake: Tensor) -> Tensor:
    """What the decoder lowers, from logits of its images."""
    return -fake.mean()


class AdaptiveWeight(nn.Module):
    """|gradient of the reconstruction loss| / |gradient of the adversarial one|, at the decoder's last layer.

    VQGAN's lambda (arXiv 2012.09841, equation 7): with it both losses pull alike at that layer, whatever their scales.
    The gradients are stashed in the forward and committed after the step, summed over micro-batches and ranks; so the
    weight is that of the step before, 0 at first, and two processes use the weight of one.

    Args:
        size: how many numbers the last layer's kernel has.
    """

    value: Tensor
    stash: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("stash", torch.zeros(2, size), persistent=False)

    def observe(self, reconstruction: Tensor, adversarial: Tensor, kernel: Tensor) -> None:
        """Stash both losses' gradients with respect to `kernel`, the last layer's; the graph stays whole."""
        for row, loss in enumerate((reconstruction, adversarial)):
            (gradient,) = torch.autograd.grad(loss, kernel, retain_graph=True)
            self.stash[row] += gradient.detach().float().flatten()

    @torch.no_grad()
    def commit(self) -> None:
        """Set the weight from the step's gradients. Does nothing when there are none."""
        total = self.stash.clone()
        self.stash.zero_()
        all_reduce_sum(total)
        reconstruction, adversarial = total.norm(dim=1)
        if reconstruction > 0:
            self.value.copy_((reconstruction / adversarial.clamp_min(1e-12)).clamp_max(MAX_WEIGHT))
