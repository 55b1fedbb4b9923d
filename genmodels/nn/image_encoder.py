"""Image encoders: a vision transformer in the layout of CLIP, and a small convolutional network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from genmodels.nn.conv import NORM_GROUPS, Encoder, check_norm, coarsest_grid
from genmodels.nn.mixer import INIT_STD
from genmodels.nn.text_encoder import CLIP_BLOCKS
from genmodels.nn.transformer import Transformer, TransformerConfig

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class ConvConfig:
    """Architecture of a convolutional image encoder, for short training budgets."""

    patch: int = 4
    """Side in pixels of the patches that the image is first cut into."""
    channels: tuple[int, ...] = (48, 96, 128)
    """Channels of each level; every level after the first halves the resolution."""
    blocks: tuple[int, ...] = (1, 1, 1)
    """Residual blocks of each level, from fine to coarse."""


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a vision transformer (arXiv 2010.11929) in the layout of CLIP."""

    patch: int = 8
    """Side in pixels of the patches, which become tokens."""
    transformer: TransformerConfig = replace(CLIP_BLOCKS, width=128, depth=4, heads=4)
    """Blocks of the transformer."""
    mean: Colour = (0.5, 0.5, 0.5)
    """Mean of red, green and blue in [0, 1], which is subtracted from the pixels."""
    std: Colour = (0.5, 0.5, 0.5)
    """Standard deviation that they are then divided by. (0.5, 0.5, 0.5) and 0.5 leave images in
    [-1, 1] as they are."""

    def __post_init__(self) -> None:
        if self.patch < 1 or min(self.std) <= 0:
            raise ValueError(f"patch must be at least 1 and std above 0, got {self.patch} and {self.std}")


class ConvEncoder(Encoder):
    """Convolutional encoder: images (N, 3, size, size) -> (N, width)."""

    feature_width: int
    """C, channels of `features`."""
    feature_count: int
    """T, positions of `features`."""

    def features(self, images: Tensor) -> Tensor:
        """The feature map before the last layer, row by row, (N, T, C)."""
        norm, activation = self.head[:2]
        return activation(norm(self.levels(self.stem(images)))).flatten(2).transpose(1, 2)


def conv_encoder(config: ConvConfig, size: int, width: int) -> ConvEncoder:
    """Build a convolutional encoder.

    Raises:
        ValueError: if the config does not fit together or to the size.
    """
    c = config
    if not c.channels or len(c.channels) != len(c.blocks) or min(*c.channels, *c.blocks, c.patch) < 1:
        raise ValueError(f"conv: channels and blocks need one number of at least 1 for each level, got {c}")
    if any(channels % NORM_GROUPS for channels in c.channels):
        raise ValueError(f"conv: channels must be multiples of {NORM_GROUPS}, got {c.channels}")
    grid = coarsest_grid(size, c.patch, len(c.channels))
    check_norm(NORM_GROUPS, c.channels[-1], grid)
    network = ConvEncoder(size, c.patch, c.channels, c.blocks, width, spatial=False)
    network.feature_width, network.feature_count = c.channels[-1], grid**2
    return network.to(memory_format=torch.channels_last)  # the fastest layout for convolutions


class ViT(nn.Module):
    """Vision transformer: images (N, 3, size, size) in [-1, 1] -> (N, width).

    Patches become tokens behind a class token; learned positions are added; a norm, the blocks and
    a final norm follow. A projection of the class token represents the image.

    Args:
        config: its architecture.
        size: side of the images.
        width: size of the result.

    Raises:
        ValueError: if the patch does not divide the size.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: ViTConfig, size: int, width: int):
        super().__init__()
        if size % config.patch:
            raise ValueError(f"vit: patch {config.patch} does not divide the size {size}")
        inner = config.transformer.width
        self.patches = nn.Conv2d(3, inner, config.patch, config.patch, bias=False)
        self.token = nn.Parameter(torch.randn(inner) * inner**-0.5)
        self.positions = nn.Embedding((size // config.patch) ** 2 + 1, inner)
        self.transformer = Transformer(config.transformer, causal=False)
        self.first_norm = nn.LayerNorm(inner, config.transformer.norm_eps)
        self.project = nn.Linear(inner, width, bias=False)
        nn.init.normal_(self.positions.weight, std=INIT_STD)
        nn.init.normal_(self.patches.weight, std=INIT_STD)
        nn.init.normal_(self.project.weight, std=inner**-0.5)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    @property
    def feature_width(self) -> int:
        """C, channels of `features`."""
        return self.positions.embedding_dim

    @property
    def feature_count(self) -> int:
        """T, positions of `features`."""
        return self.positions.num_embeddings - 1

    def forward(self, images: Tensor) -> Tensor:
        x = self.transformer(self._tokens(images))
        return self.project(x[:, 0])

    def features(self, images: Tensor) -> Tensor:
        """The outputs of the next-to-last block for the patches, row by row, (N, T, C): without the
        class token, as LLaVA uses them."""
        x = self._tokens(images)
        places = self.transformer.places(torch.arange(x.shape[1], device=x.device))
        return self.transformer.through(x, places, last=len(self.transformer.blocks) - 1)[:, 1:]

    def _tokens(self, images: Tensor) -> Tensor:
        """Inputs of the blocks, (N, T, D)."""
        x = (images * self.scale + self.shift).to(self.patches.weight.dtype)
        x = self.patches(x).flatten(2).transpose(1, 2)  # (N, T - 1, D)
        x = torch.cat([self.token.expand(len(x), 1, -1), x], dim=1) + self.positions.weight  # (N, T, D)
        return self.first_norm(x)
