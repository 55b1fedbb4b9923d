"""The two networks of R3GAN (arXiv 2501.05441): residual grouped convolutions, no normalisation, bilinear
resampling."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GRID = 4
"""Side of the coarsest map."""
SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + SLOPE**2))
"""Keeps the variance through a leaky ReLU (arXiv 1502.01852)."""


class ResidualBlock(nn.Module):
    """x + 1x1, grouped 3x3, 1x1 convolutions of x, of `expansion` times as many channels inside.

    Without normalisation the variance of a sum of L blocks would grow with L; as in Fixup (arXiv 1901.09321) the last
    convolution starts at zero and the others are scaled by L^(-1/4).

    Args:
        channels: in and out.
        expansion: width inside over width outside.
        group: channels of a group inside.
        depth: L, residual blocks of the whole network.
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
    """Normal weights of variance gain^2 / fan-in, no bias."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Level(nn.Module):
    """Residual blocks at one resolution, and what leads to the next coarser one: a 1x1 convolution between the widths,
    and bilinear resampling.

    Args:
        width: of the blocks.
        coarser: width of the next coarser level; None: there is none.
        blocks: how many.
        expansion, group, depth: as those of `ResidualBlock`.
    """

    up: ClassVar[bool]
    """Whether it comes from the coarser level, or goes to it."""

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
    """Of the generator: comes from the coarser level, (N, coarser, h, w) -> (N, width, 2h, 2w)."""

    up = True

    def forward(self, x: Tensor, sketch: Tensor | None = None) -> Tensor:
        if not self.coarsest:
            x = F.interpolate(self.mix(x), scale_factor=2, mode="bilinear", align_corners=False)
        if sketch is not None:
            x = x + sketch
        for block in self.blocks:
            x = block(x)
        return x


class DownLevel(Level):
    """Of the critic: goes to the coarser level, (N, width, 2h, 2w) -> (N, coarser, h, w)."""

    up = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.coarsest else self.mix(F.avg_pool2d(x, 2))


def _levels(
    kind: type[Level], channels: tuple[int, ...], blocks: tuple[int, ...], expansion: int, group: int
) -> nn.ModuleList:
    """One for each width, the coarsest first."""
    rows = zip(channels, (None, *channels), blocks, strict=False)
    return nn.ModuleList(kind(width, coarser, n, expansion, group, sum(blocks)) for width, coarser, n in rows)


def _from_patches(colours: int, channels: int, patch: int) -> nn.Conv2d:
    """Images (N, colours, S, S) -> (N, channels, S / patch, S / patch): each position sees its square of pixels and,
    where there are squares, half of the next ones."""
    side, border = (1, 0) if patch == 1 else (2 * patch, patch // 2)
    conv = nn.Conv2d(colours, channels, side, stride=patch, padding=border, bias=False)
    variance_preserving(conv)
    return conv


class R3Generator(nn.Module):
    """Latents (N, inputs) -> images (N, colours, S, S), unbounded; S = 4 * 2^(levels - 1) * patch.

    With `sketch`, forward also takes a sketch of each image, (N, colours, S, S), which joins the finest level.

    Args:
        inputs: length of the latent vector, what is asked for included.
        channels: width of each level, the coarsest (4 x 4) first.
        blocks: residual blocks of each level.
        expansion, group: as those of `ResidualBlock`.
        patch: side of the squares of pixels that a position of the finest level holds.
        colours: channels of the image.
        sketch: as above.
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
        sketch: bool = False,
    ):
        super().__init__()
        first, last = channels[0], channels[-1]
        self.basis = nn.Parameter(torch.randn(first, GRID, GRID))
        self.mix = nn.Linear(inputs, first, bias=False)
        variance_preserving(self.mix)
        self.levels = _levels(UpLevel, channels, blocks, expansion, group)
        self.look = _from_patches(colours, last, patch) if sketch else None
        # What is painted square by square needs to know its neighbours, or the squares show.
        side = 1 if patch == 1 else 3
        self.head = nn.Conv2d(last, colours * patch**2, side, padding=side // 2, bias=False)
        variance_preserving(self.head)
        self.unpatch = nn.PixelShuffle(patch)

    def forward(self, latents: Tensor, sketch: Tensor | None = None) -> Tensor:
        x = self.basis * self.mix(latents)[:, :, None, None]  # (N, C, 4, 4)
        *coarse, finest = self.levels
        for level in coarse:
            x = level(x)
        x = finest(x, None if self.look is None else self.look(sketch))  # (N, C, S / patch, S / patch)
        return self.unpatch(self.head(x))


class R3Critic(nn.Module):
    """Images (N, colours, S, S) -> features (N, outputs): the generator's mirror image, with the same arguments."""

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
            x = level(x)  # (N, C, 4, 4) in the end
        # Only differences of scores count, and nothing holds scores near zero: half precision would round those away.
        with torch.autocast(x.device.type, enabled=False):
            return self.mix(self.basis(x.float()).flatten(1))
