"""The two networks of DCGAN (arXiv 1511.06434), with group norm in place of batch norm.

With group norm an image does not depend on the other images of its batch, so that results do not
depend on micro-batches and processes, and gradient penalties are well defined.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from genmodels.nn.conv import norm

INIT_STD = 0.02


def _initialise(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=INIT_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class DCGenerator(nn.Module):
    """Maps latents (N, inputs) to images (N, 3, S, S) in [-1, 1]; S = 4 * 2^levels.

    Args:
        inputs: length of the latent vector, including the condition.
        channels: channels of each level, from coarse (4 x 4) to fine, in multiples of 8.
    """

    def __init__(self, inputs: int, channels: tuple[int, ...]):
        super().__init__()
        layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, channels[0], 4, bias=False)]
        for before, width in pairwise(channels):
            layers += [norm(before), nn.ReLU(), nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False)]
        layers += [norm(channels[-1]), nn.ReLU(), nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        _initialise(self)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents[:, :, None, None])


class DCCritic(nn.Module):
    """Maps images (N, 3, S, S) to features (N, outputs): the generator in reverse order."""

    def __init__(self, outputs: int, channels: tuple[int, ...]):
        super().__init__()
        widths = channels[::-1]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, width in pairwise(widths):
            layers += [nn.Conv2d(before, width, 4, 2, 1, bias=False), norm(width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels[0], outputs, 4)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(images)  # (N, C, 4, 4)
        with torch.autocast(x.device.type, enabled=False):  # scores in full precision, as in R3Critic
            return self.last(x.float()).flatten(1)
