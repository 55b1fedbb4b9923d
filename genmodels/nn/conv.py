"""Residual convolutional encoder and decoder, shared by every codec.

Written for images per second: the image is cut into patches first, so that no convolution runs at full resolution, and
resolution is changed by moving pixels into channels and back, which costs nothing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 8


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels)


class ResBlock(nn.Module):
    """Pre-activation residual block (arXiv 1603.05027). Starts as the identity: its last convolution is zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Downsample(nn.Module):
    """Halves the resolution: 2x2 pixels become channels, and a 1x1 convolution mixes them."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.mix = nn.Conv2d(4 * channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.pixel_unshuffle(x, 2))  # (N, C_out, H/2, W/2)


class Upsample(nn.Module):
    """Doubles the resolution: the transpose of Downsample."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.mix = nn.Conv2d(channels_in, 4 * channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.mix(x), 2)  # (N, C_out, 2H, 2W)


class Encoder(nn.Module):
    """Images (N, 3, size, size) -> features (N, outputs), or (N, outputs, grid, grid) for a spatial map.

    Args:
        size: side of the image.
        patch: side of the patches that become the first feature map, size / patch on a side.
        channels: width of each level; every level after the first halves the resolution.
        blocks: residual blocks of each level, finest first.
        outputs: features per image, or per position of the map.
        spatial: keep the last level's map instead of flattening it.
    """

    def __init__(
        self, size: int, patch: int, channels: tuple[int, ...], blocks: tuple[int, ...], outputs: int, spatial: bool
    ):
        super().__init__()
        grid = coarsest_grid(size, patch, len(channels))
        self.stem = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, channels[0], 3, padding=1))
        levels: list[nn.Module] = []
        for level, width in enumerate(channels):
            if level:
                levels.append(Downsample(channels[level - 1], width))
            levels += [ResBlock(width) for _ in range(blocks[level])]
        self.levels = nn.Sequential(*levels)
        last = channels[-1]
        to_latent = [nn.Conv2d(last, outputs, 1)] if spatial else [nn.Flatten(), nn.Linear(last * grid**2, outputs)]
        self.head = nn.Sequential(norm(last), nn.SiLU(), *to_latent)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.levels(self.stem(images)))


class Decoder(nn.Module):
    """Latents (N, inputs), or (N, inputs, grid, grid) for a spatial map -> images (N, 3, size, size), unbounded.

    The mirror image of Encoder, with the same arguments. With `sketch`, forward also takes a sketch of the image to be
    made, (N, 3, size, size): its patches join the finest level, which then refines what it sees instead of painting
    from nothing.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        inputs: int,
        spatial: bool,
        sketch: bool = False,
    ):
        super().__init__()
        grid, last, first = coarsest_grid(size, patch, len(channels)), channels[-1], channels[0]
        self.stem: nn.Module
        if spatial:
            self.stem = nn.Conv2d(inputs, last, 1)
        else:
            self.stem = nn.Sequential(nn.Linear(inputs, last * grid**2), nn.Unflatten(1, (last, grid, grid)))
        coarse: list[nn.Module] = []
        for level in reversed(range(1, len(channels))):
            coarse += [ResBlock(channels[level]) for _ in range(blocks[level])]
            coarse.append(Upsample(channels[level], channels[level - 1]))
        self.coarse = nn.Sequential(*coarse)
        look = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(3 * patch**2, first, 3, padding=1))
        self.look = look if sketch else None
        self.finest = nn.Sequential(*[ResBlock(first) for _ in range(blocks[0])])
        self.head = nn.Sequential(norm(first), nn.SiLU(), nn.Conv2d(first, 3 * patch**2, 3, padding=1))
        self.unpatch = nn.PixelShuffle(patch)

    def forward(self, latents: Tensor, sketch: Tensor | None = None) -> Tensor:
        x = self.coarse(self.stem(latents))  # (N, C, size / patch, size / patch)
        if self.look is not None:
            x = x + self.look(sketch)
        return self.unpatch(self.head(self.finest(x)))


def output_layer(network: Encoder | Decoder) -> nn.Linear | nn.Conv2d:
    """The layer that makes the latents, or the pixels."""
    last = network.head[-1]
    assert isinstance(last, (nn.Linear, nn.Conv2d))
    return last


def zero_output(network: Encoder | Decoder) -> None:
    """Zero the last layer, so that the network starts as a correction of nothing to whatever it is added to."""
    for parameter in output_layer(network).parameters():
        nn.init.zeros_(parameter)


def coarsest_grid(size: int, patch: int, levels: int) -> int:
    """Side of the last feature map.

    Raises:
        ValueError: when `size` cannot be cut that way.
    """
    factor = patch * 2 ** (levels - 1)
    if size % factor:
        raise ValueError(
            f"size {size} is not divisible by {factor} (patch {patch} and {levels} levels): "
            f"choose a multiple of {factor}, a smaller patch or fewer channels"
        )
    return size // factor
