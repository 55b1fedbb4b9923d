"""Patch discriminator for codecs, hinge losses, and an adaptive weight."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.distributed import all_reduce_sum
from genmodels.nn.conv import NORM_GROUPS, norm

MAX_WEIGHT = 1e4
"""Upper bound of the adaptive weight, reached if the gradient of the adversarial loss vanishes."""


class PatchDiscriminator(nn.Module):
    """Maps images (N, 3, H, W) to one logit per patch, (N, 1, h, w): PatchGAN (arXiv 1611.07004).

    Every convolution except the last halves the resolution. Group norm replaces batch norm, so that
    the logits of an image do not depend on the other images of its batch.

    Args:
        channels: channels of each level, in multiples of 8.
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
    """Return the hinge loss of the discriminator (arXiv 1705.02894) from logits of any shape."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_hinge(fake: Tensor) -> Tensor:
    """Return the adversarial loss of the decoder from the logits of its images."""
    return -fake.mean()


class AdaptiveWeight(nn.Module):
    """Weight of the adversarial loss: ratio of gradient norms at the decoder's last layer.

    This is lambda of VQGAN (arXiv 2012.09841, equation 7): |gradient of the reconstruction loss| /
    |gradient of the adversarial loss|. `observe` accumulates the gradients, and `commit` sets the
    weight after the step from their sum over micro-batches and ranks. A step therefore uses the
    weight of the previous step (0 at first), and the weight does not depend on the number of
    processes.

    Args:
        size: number of values in the kernel of the last layer.
    """

    value: Tensor
    stash: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("stash", torch.zeros(2, size), persistent=False)

    def observe(self, reconstruction: Tensor, adversarial: Tensor, kernel: Tensor) -> None:
        """Accumulate the gradients of both losses with respect to `kernel`; keep the graph."""
        for row, loss in enumerate((reconstruction, adversarial)):
            (gradient,) = torch.autograd.grad(loss, kernel, retain_graph=True)
            self.stash[row] += gradient.detach().float().flatten()

    @torch.no_grad()
    def commit(self) -> None:
        """Set the weight from the accumulated gradients of the step, if there are any."""
        total = self.stash.clone()
        self.stash.zero_()
        all_reduce_sum(total)
        reconstruction, adversarial = total.norm(dim=1)
        if reconstruction > 0:
            self.value.copy_((reconstruction / adversarial.clamp_min(1e-12)).clamp_max(MAX_WEIGHT))
