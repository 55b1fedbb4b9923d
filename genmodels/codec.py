"""Autoencoder: what AE and VAE share. A codec with continuous latents that can also sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from genmodels.base import Generator
from genmodels.nn.conv import NORM_GROUPS, Decoder, Encoder, coarsest_grid
from genmodels.nn.density import GaussianMixture, Whitening
from genmodels.nn.perceptual import PerceptualLoss
from genmodels.types import Noise


@dataclass(frozen=True)
class AutoencoderConfig:
    """The networks of a codec."""

    size: int = 64
    """Side of the images in pixels; the recipes set it from --size."""
    patch: int = 4
    """Side of the patches the image is cut into; no convolution runs at a higher resolution than size / patch."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Width of each level; every level after the first halves the resolution."""
    blocks: int = 1
    """Residual blocks per level."""
    latent_dim: int = 128
    """Length of the latent vector, or channels of the latent map."""
    spatial: bool = False
    """Keep a map of size / (patch 2^(levels - 1)) positions a side, for use as a codec, instead of a flat vector."""
    lpips: float = 0.0
    """Weight of the LPIPS perceptual loss (VGG; needs the lpips package and torchvision's weights on this machine)."""

    def __post_init__(self) -> None:
        if not self.channels or any(width < 1 or width % NORM_GROUPS for width in self.channels):
            raise ValueError(f"channels must be multiples of {NORM_GROUPS} (the group norm), got {self.channels}")
        for name in ("size", "patch", "blocks", "latent_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lpips < 0:
            raise ValueError(f"lpips must not be negative, got {self.lpips}")
        coarsest_grid(self.size, self.patch, len(self.channels))


class Autoencoder(Generator, ABC):
    """Encoder, decoder, whitening of the latents, and a density fitted to them after training.

    A family writes `_latents` (what a batch of images becomes), `loss` and `sample`.

    Args:
        config: the networks.
        encoder_outputs: features the encoder gives per latent: 1, or 2 for a mean and a variance.
        components: Gaussians in the density.
    """

    def __init__(self, config: AutoencoderConfig, encoder_outputs: int, components: int):
        super().__init__(config)
        c = config
        self.encoder = Encoder(c.size, c.patch, c.channels, c.blocks, encoder_outputs * c.latent_dim, c.spatial)
        self.decoder = Decoder(c.size, c.patch, c.channels, c.blocks, c.latent_dim, c.spatial)
        self.whitening = Whitening(c.latent_dim)
        self.density = GaussianMixture(components, math.prod(self.latent_shape))
        self._perceptual = PerceptualLoss() if c.lpips else None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(latent_dim,), or (latent_dim, grid, grid) for a spatial map."""
        c = self.config
        grid = coarsest_grid(c.size, c.patch, len(c.channels))
        return (c.latent_dim, grid, grid) if c.spatial else (c.latent_dim,)

    @abstractmethod
    def _density_latents(self, images: Tensor, noise: Noise) -> Tensor:
        """Raw latents (N, *latent_shape) whose distribution the density is to learn."""

    @abstractmethod
    def _code(self, images: Tensor) -> Tensor:
        """The one raw latent (N, *latent_shape) that stands for each image."""

    @final
    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> latents (N, *latent_shape) of zero mean and unit variance per channel."""
        return self.whitening.whiten(self._code(images))

    @final
    def decode(self, latents: Tensor) -> Tensor:
        """(N, *latent_shape) as `encode` gives them -> (N, 3, H, W) in [-1, 1]."""
        return self._decode(self.whitening.unwhiten(latents))

    @final
    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same, through the latent."""
        return self._decode(self._code(images))

    @final
    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: object) -> Tensor:
        """Images (len(weights), 3, H, W) on the way from the sample of `first` (weight 0) to that of `second`
        (weight 1)."""
        ends = self._draw(first, options), self._draw(second, options)  # 2 x (1, *latent_shape)
        return self._decode(self._between(*ends, weights.to(ends[0]), options))

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Fit the whitening and the density to the latents of `images`, in eval mode."""
        codes: list[Tensor] = []
        draws: list[Tensor] = []
        seen = 0
        for batch in images:
            noise = Noise.for_images(0, range(seen, seen + len(batch)), batch.device)  # fixed draws, so that it repeats
            seen += len(batch)
            codes.append(self._code(batch))
            draws.append(self._density_latents(batch, noise))
        self.whitening.fit(torch.cat(codes))
        self.density.fit(self.whitening.whiten(torch.cat(draws)).flatten(1))

    @abstractmethod
    def _draw(self, noise: Noise, options: object) -> Tensor:
        """Raw latents (N, *latent_shape) to decode into samples."""

    @abstractmethod
    def _between(self, first: Tensor, second: Tensor, weights: Tensor, options: object) -> Tensor:
        """Raw latents (len(weights), *latent_shape) on the path between two (1, *latent_shape)."""

    @final
    def _decode(self, raw: Tensor) -> Tensor:
        return self.decoder(raw).float().clamp(-1, 1)

    @final
    def _draw_from_density(self, noise: Noise, temperature: float) -> Tensor:
        if not self.density.fitted:
            raise ValueError(
                f"the {self.family}'s latent density is not fitted yet: train it, or call calibrate(images)"
            )
        choice = noise.uniform()  # (N,)
        eps = temperature * noise.normal(math.prod(self.latent_shape))  # (N, D)
        return self.whitening.unwhiten(self.density.sample(choice, eps).unflatten(1, self.latent_shape))


def lerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Straight line from `first` (1, ...) to `second` (1, ...): (len(weights), ...)."""
    return torch.lerp(first, second, weights.view(-1, *[1] * (first.ndim - 1)))


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Arc from `first` (1, ...) to `second` (1, ...): (len(weights), ...).

    Draws of a high-dimensional Gaussian lie near a sphere; a straight line between two of them leaves it, an arc
    does not (Shoemake 1985; arXiv 1609.04468).
    """
    a, b = first.flatten(), second.flatten()
    cosine = torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return lerp(first, second, weights)
    w = weights.view(-1, *[1] * (first.ndim - 1))
    return (torch.sin((1 - w) * angle) * first + torch.sin(w * angle) * second) / torch.sin(angle)
