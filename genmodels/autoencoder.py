"""What codecs share: the settings of their networks, and Autoencoder, a codec with continuous latents that can also
sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from genmodels.base import Generator
from genmodels.nn.conv import NORM_GROUPS, Decoder, Encoder, coarsest_grid, zero_output
from genmodels.nn.density import GaussianMixture, Whitening
from genmodels.nn.perceptual import PerceptualLoss
from genmodels.nn.principal import PatchComponents, PrincipalComponents
from genmodels.types import Noise


@dataclass(frozen=True)
class NetworksConfig:
    """The encoder, the decoder and the loss that every codec has."""

    size: int = 64
    """Side of the images in pixels; the recipes set it from --size."""
    patch: int = 4
    """Side of the patches the image is cut into; no convolution runs at a higher resolution than size / patch."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Width of each level; every level after the first halves the resolution."""
    encoder_blocks: tuple[int, ...] = (1, 1, 0)
    """Residual blocks of the encoder at each level, finest first."""
    decoder_blocks: tuple[int, ...] = (2, 1, 0)
    """Residual blocks of the decoder at each level, finest first: most of them where detail is drawn."""
    lpips: float = 0.0
    """Weight of the LPIPS perceptual loss (VGG; needs the lpips package and torchvision's weights on this machine)."""

    def __post_init__(self) -> None:
        if not self.channels or any(width < 1 or width % NORM_GROUPS for width in self.channels):
            raise ValueError(f"channels must be multiples of {NORM_GROUPS} (the group norm), got {self.channels}")
        for name in ("size", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("encoder_blocks", "decoder_blocks"):
            blocks = getattr(self, name)
            if len(blocks) != len(self.channels) or min(blocks) < 0:
                raise ValueError(f"{name} needs one number for each of the {len(self.channels)} channels, got {blocks}")
        if self.lpips < 0:
            raise ValueError(f"lpips must not be negative, got {self.lpips}")
        coarsest_grid(self.size, self.patch, len(self.channels))


@dataclass(frozen=True)
class AutoencoderConfig(NetworksConfig):
    """The networks of a codec with continuous latents."""

    latent_dim: int = 128
    """Length of the latent vector, or channels of the latent map."""
    spatial: bool = False
    """Keep a map of size / (patch 2^(levels - 1)) positions a side, for use as a codec, instead of a flat vector."""
    principal: bool = True
    """Add the networks to the principal components of the training images, or of their squares where the latents are a
    map, so that they learn only what a linear map cannot do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}")


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
        self.principal: PrincipalComponents | PatchComponents | None = None
        if c.principal and c.spatial:
            self.principal = PatchComponents(c.size, coarsest_grid(c.size, c.patch, len(c.channels)), c.latent_dim)
        elif c.principal:
            self.principal = PrincipalComponents(c.size, c.latent_dim)
        self.encoder = Encoder(c.size, c.patch, c.channels, c.encoder_blocks, encoder_outputs * c.latent_dim, c.spatial)
        self.decoder = Decoder(c.size, c.patch, c.channels, c.decoder_blocks, c.latent_dim, c.spatial, c.principal)
        self.whitening = Whitening(c.latent_dim)
        self.density = GaussianMixture(components, math.prod(self.latent_shape))
        self._perceptual = PerceptualLoss() if c.lpips else None
        self.to(memory_format=torch.channels_last)  # the layout convolutions are fastest in

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(latent_dim,), or (latent_dim, grid, grid) for a spatial map."""
        c = self.config
        grid = coarsest_grid(c.size, c.patch, len(c.channels))
        return (c.latent_dim, grid, grid) if c.spatial else (c.latent_dim,)

    @abstractmethod
    def _code_and_draw(self, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """`_code`, and raw latents whose distribution the density is to learn; each (N, *latent_shape)."""

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
        return self._way(self._draw(first, options), self._draw(second, options), weights, options)

    @final
    def morph(self, first: Tensor, second: Tensor, weights: Tensor, options: object) -> Tensor:
        """Images (len(weights), 3, H, W) on the way between the reconstructions of `first` and `second`, each
        (1, 3, H, W)."""
        return self._way(self._code(first), self._code(second), weights, options)

    @final
    def draw_latents(self, noise: Noise, options: object) -> Tensor:
        """The raw latents of the samples of `noise`, (N, values)."""
        return self._draw(noise, options).flatten(1)

    @final
    def find_latents(self, images: Tensor, exact: bool = True) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> raw latents (N, values)."""
        return self._code(images).flatten(1)

    @final
    def from_latents(self, latents: Tensor) -> Tensor:
        """Raw latents (N, values) -> (N, 3, H, W) in [-1, 1]."""
        return self._decode(latents.unflatten(1, self.latent_shape))

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the principal components, and start the networks as corrections of nothing to them."""
        if self.principal is not None:
            self.principal.fit(images)
            zero_output(self.encoder)
            zero_output(self.decoder)

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Fit the whitening and the density to the latents of `images`, in eval mode."""
        codes: list[Tensor] = []
        draws: list[Tensor] = []
        seen = 0
        for batch in images:
            noise = Noise.for_images(0, range(seen, seen + len(batch)), batch.device)  # fixed draws, so that it repeats
            seen += len(batch)
            code, draw = self._code_and_draw(batch, noise)
            codes.append(code)
            draws.append(draw)
        self.whitening.fit(torch.cat(codes))
        self.density.fit(self.whitening.whiten(torch.cat(draws)).flatten(1))

    @abstractmethod
    def _draw(self, noise: Noise, options: object) -> Tensor:
        """Raw latents (N, *latent_shape) to decode into samples."""

    @abstractmethod
    def _between(self, first: Tensor, second: Tensor, weights: Tensor, options: object) -> Tensor:
        """Raw latents (len(weights), *latent_shape) on the path between two (1, *latent_shape)."""

    @final
    def _way(self, first: Tensor, second: Tensor, weights: Tensor, options: object) -> Tensor:
        """Images (len(weights), 3, H, W) on the path between two raw latents (1, *latent_shape)."""
        return self._decode(self._between(first, second, weights.to(first), options))

    @final
    def _mean_image(self, raw: Tensor) -> Tensor:
        """Raw latents (N, *latent_shape) -> (N, 3, H, W), float32, not clamped: what the losses compare."""
        if self.principal is None:
            return self.decoder(raw).float()
        sketch = self.principal.decode(raw).float()  # the linear reconstruction, refined by the decoder
        return sketch + self.decoder(raw, sketch).float()

    @final
    def _decode(self, raw: Tensor) -> Tensor:
        return self._mean_image(raw).clamp(-1, 1)

    @final
    def _draw_from_density(self, noise: Noise, temperature: float) -> Tensor:
        if not self.density.fitted:
            raise ValueError(
                f"the {self.family}'s latent density is not fitted yet: train it, or call calibrate(images)"
            )
        choice = noise.uniform()  # (N,)
        eps = temperature * noise.normal(math.prod(self.latent_shape))  # (N, D)
        return self.whitening.unwhiten(self.density.sample(choice, eps).unflatten(1, self.latent_shape))
