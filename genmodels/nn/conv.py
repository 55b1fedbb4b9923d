"""Residual convolutional encoder and decoder, shared by every codec.

They are designed for speed: the image is first cut into patches, so that no convolution runs at
full resolution, and the resolution is changed by moving pixels into channels and back, which is
almost free.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 8


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels)


def check_norm(groups: int, channels: int, side: int) -> None:
    """Refuse a group norm of single values, which are all normalised to 0.

    Args:
        groups: number of groups.
        channels: channels of the last level.
        side: side of the feature map there.

    Raises:
        ValueError: if each group has a single value.
    """
    if channels == groups and side == 1:
        raise ValueError(
            f"channels: the last level has a feature map of 1 x 1, so its {channels} channels are {groups} groups of "
            f"one value, which a group norm makes 0: give it at least {2 * groups}, or fewer levels"
        )


class ResBlock(nn.Module):
    """Pre-activation residual block (arXiv 1603.05027), initialised as the identity."""

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
    """Halves the resolution: moves 2x2 pixels into channels and mixes them by a 1x1 convolution."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.mix = nn.Conv2d(4 * channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.pixel_unshuffle(x, 2))  # (N, C_out, H/2, W/2)


class Upsample(nn.Module):
    """Doubles the resolution: the inverse arrangement of `Downsample`."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.mix = nn.Conv2d(channels_in, 4 * channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.mix(x), 2)  # (N, C_out, 2H, 2W)


class Encoder(nn.Module):
    """Encodes images (N, 3, S, S) as features (N, outputs), or (N, outputs, grid, grid) if spatial.

    Args:
        size: side of the image, S.
        patch: side of the patches; the first feature map has size / patch positions along a side.
        channels: channels of each level; every level after the first halves the resolution.
        blocks: residual blocks of each level, from fine to coarse.
        outputs: features per image, or per position of a spatial map.
        spatial: return a feature map instead of a vector.
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
    """Decodes latents (N, inputs), or (N, inputs, grid, grid) if spatial, to images (N, 3, S, S).

    The arguments are those of `Encoder`, and the levels are in reverse order. If `estimate` is
    set, forward also takes a first estimate of the image, (N, 3, S, S), whose patches are added to
    the finest level.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        inputs: int,
        spatial: bool,
        estimate: bool = False,
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
        self.look = look if estimate else None
        self.finest = nn.Sequential(*[ResBlock(first) for _ in range(blocks[0])])
        self.head = nn.Sequential(norm(first), nn.SiLU(), nn.Conv2d(first, 3 * patch**2, 3, padding=1))
        self.unpatch = nn.PixelShuffle(patch)

    def forward(self, latents: Tensor, estimate: Tensor | None = None) -> Tensor:
        x = self.coarse(self.stem(latents))  # (N, C, size / patch, size / patch)
        if self.look is not None:
            x = x + self.look(estimate)
        return self.unpatch(self.head(self.finest(x)))


def output_layer(network: Encoder | Decoder) -> nn.Linear | nn.Conv2d:
    """Return the layer that outputs the latents or the pixels."""
    last = network.head[-1]
    assert isinstance(last, (nn.Linear, nn.Conv2d))
    return last


def zero_output(network: Encoder | Decoder) -> None:
    """Zero the last layer. A network that is added to another map then changes nothing at first."""
    for parameter in output_layer(network).parameters():
        nn.init.zeros_(parameter)


def coarsest_grid(size: int, patch: int, levels: int) -> int:
    """Return the side of the last feature map.

    Raises:
        ValueError: if `size` is not divisible by the patch and by the factors of the levels.
    """
    factor = patch * 2 ** (levels - 1)
    if size % factor:
        raise ValueError(
            f"size {size} is not divisible by {factor} (patch {patch} and {levels} levels): "
            f"choose a multiple of {factor}, a smaller patch or fewer channels"
        )
    return size // factor
