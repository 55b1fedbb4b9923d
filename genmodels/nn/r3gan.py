"""The two networks of R3GAN (arXiv 2501.05441).

They consist of residual grouped convolutions without normalisation, and resample bilinearly.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID = 4
"""Side of the coarsest feature map."""
SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + SLOPE**2))
"""Gain that preserves the variance through a leaky ReLU (arXiv 1502.01852)."""


class ResidualBlock(nn.Module):
    """Residual bottleneck block: 1x1, grouped 3x3 and 1x1 convolutions with more channels inside.

    Without normalisation the variance of the output of L blocks grows with L. As in Fixup (arXiv
    1901.09321), the last convolution is initialised to zero and the others are scaled by L^(-1/4).

    Args:
        channels: channels of input and output.
        expansion: ratio of the inner channels to `channels`.
        group: channels per group of the grouped convolution.
        depth: L, the number of residual blocks of the whole network.
    """

    def __init__(self, channels: int, expansion: int, group: int, depth: int):
        super().__init__()
        inside = channels * expansion
        self.conv1 = nn.Conv2d(channels, inside, 1)
        self.conv2 = nn.Conv2d(inside, inside, 3, padding=1, groups=inside // group)
        self.conv3 = nn.Conv2d(inside, channels, 1, bias=False)
        for conv in (self.conv1, self.conv2):
            variance_preserving(conv, GAIN * depth**-0.25)
        nn.init.zeros_(self.conv3.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), SLOPE)
        h = F.leaky_relu(self.conv2(h), SLOPE)
        return x + self.conv3(h)


def variance_preserving(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    """Initialise with normal weights of variance gain^2 / fan-in and zero bias."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Level(nn.Module):
    """Residual blocks at one resolution, and resampling to or from the next coarser level.

    Args:
        width: channels of the blocks.
        coarser: channels of the next coarser level; None for the coarsest.
        blocks: number of blocks.
        expansion, group, depth: arguments of `ResidualBlock`.
    """

    up: ClassVar[bool]
    """True: the input comes from the coarser level. False: the output goes to it."""

    def __init__(self, width: int, coarser: int | None, blocks: int, expansion: int, group: int, depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width, expansion, group, depth) for _ in range(blocks))
        self.coarsest = coarser is None
        self.mix: nn.Module = nn.Identity()
        if coarser is not None and coarser != width:
            conv = nn.Conv2d(coarser, width, 1, bias=False) if self.up else nn.Conv2d(width, coarser, 1, bias=False)
            variance_preserving(conv)
            self.mix = conv


class UpLevel(Level):
    """Level of the generator, upsamples first: (N, coarser, h, w) -> (N, width, 2h, 2w)."""

    up = True

    def forward(self, x: Tensor, estimate: Tensor | None = None) -> Tensor:
        if not self.coarsest:
            x = F.interpolate(self.mix(x), scale_factor=2, mode="bilinear", align_corners=False)
        if estimate is not None:
            x = x + estimate
        for block in self.blocks:
            x = block(x)
        return x


class DownLevel(Level):
    """Level of the critic, downsamples last: (N, width, 2h, 2w) -> (N, coarser, h, w)."""

    up = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.coarsest else self.mix(F.avg_pool2d(x, 2))


def _levels(
    kind: type[Level], channels: tuple[int, ...], blocks: tuple[int, ...], expansion: int, group: int
) -> nn.ModuleList:
    """Return one level per entry of `channels`, from coarse to fine."""
    rows = zip(channels, (None, *channels), blocks, strict=False)
    return nn.ModuleList(kind(width, coarser, n, expansion, group, sum(blocks)) for width, coarser, n in rows)


def _from_patches(colours: int, channels: int, patch: int) -> nn.Conv2d:
    """Return a convolution (N, colours, S, S) -> (N, channels, S / patch, S / patch).

    Its kernels cover a patch of pixels and, if patch > 1, half of each neighbouring patch.
    """
    side, border = (1, 0) if patch == 1 else (2 * patch, patch // 2)
    conv = nn.Conv2d(colours, channels, side, stride=patch, padding=border, bias=False)
    variance_preserving(conv)
    return conv


class R3Generator(nn.Module):
    """Maps latents (N, inputs) to images (N, colours, S, S); S = 4 * 2^(levels - 1) * patch.

    Args:
        inputs: length of the latent vector, including the condition.
        channels: channels of each level, from coarse (4 x 4) to fine.
        blocks: residual blocks of each level.
        expansion, group: arguments of `ResidualBlock`.
        patch: side of the patch of pixels for each position of the finest level.
        colours: channels of the image.
        estimate: forward also takes a first estimate of each image, (N, colours, S, S), whose
            features are added to the finest level.
    """

    def __init__(
        self,
        inputs: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        expansion: int,
        group: int,
        patch: int,
        colours: int = 3,
        estimate: bool = False,
    ):
        super().__init__()
        first, last = channels[0], channels[-1]
        self.basis = nn.Parameter(torch.randn(first, GRID, GRID))
        self.mix = nn.Linear(inputs, first, bias=False)
        variance_preserving(self.mix)
        self.levels = _levels(UpLevel, channels, blocks, expansion, group)
        self.look = _from_patches(colours, last, patch) if estimate else None
        # With patches, the kernel must cover the neighbouring positions, or the borders of the
        # patches are visible.
        side = 1 if patch == 1 else 3
        self.head = nn.Conv2d(last, colours * patch**2, side, padding=side // 2, bias=False)
        variance_preserving(self.head)
        self.unpatch = nn.PixelShuffle(patch)

    def forward(self, latents: Tensor, estimate: Tensor | None = None) -> Tensor:
        x = self.basis * self.mix(latents)[:, :, None, None]  # (N, C, 4, 4)
        *coarse, finest = self.levels
        for level in coarse:
            x = level(x)
        x = finest(x, None if self.look is None else self.look(estimate))  # (N, C, S / patch, S / patch)
        return self.unpatch(self.head(x))


class R3Critic(nn.Module):
    """Maps images (N, colours, S, S) to features (N, outputs): the generator in reverse order."""

    def __init__(
        self,
        outputs: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        expansion: int,
        group: int,
        patch: int,
        colours: int = 3,
    ):
        super().__init__()
        last = channels[0]
        self.stem = _from_patches(colours, channels[-1], patch)
        self.levels = _levels(DownLevel, channels, blocks, expansion, group)
        self.basis = nn.Conv2d(last, last, GRID, groups=last, bias=False)
        variance_preserving(self.basis)
        self.mix = nn.Linear(last, outputs, bias=False)
        variance_preserving(self.mix)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for level in reversed(self.levels):
            x = level(x)  # (N, C, 4, 4) after the last level
        # Only differences of scores matter, and scores may be far from zero: half precision would
        # lose them.
        with torch.autocast(x.device.type, enabled=False):
            return self.mix(self.basis(x.float()).flatten(1))
