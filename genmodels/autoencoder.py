"""Shared parts of codecs: settings of our networks, and the base classes of continuous latents.

A `ContinuousCodec` can also generate images. An `Autoencoder` is one with our own networks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from genmodels.base import Generator
from genmodels.conditions import Condition
from genmodels.nn.conv import NORM_GROUPS, Decoder, Encoder, check_norm, coarsest_grid, zero_output
from genmodels.nn.density import GaussianMixture, Whitening
from genmodels.nn.interpolation import lerp
from genmodels.nn.perceptual import PerceptualLoss
from genmodels.nn.principal import PatchComponents, PrincipalComponents
from genmodels.saving import Derived
from genmodels.types import Noise


@dataclass(frozen=True)
class NetworksConfig:
    """Encoder, decoder and reconstruction loss of a codec."""

    size: Derived[int] = 64
    """Side of the images in pixels. Training sets it from --size."""
    patch: int = 4
    """Side in pixels of the patches that the image is divided into. The finest convolutions work on
    feature maps of size / patch a side."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Channels of each level; every level after the first halves the resolution."""
    encoder_blocks: tuple[int, ...] = (1, 1, 0)
    """Residual blocks of the encoder at each level, finest first."""
    decoder_blocks: tuple[int, ...] = (2, 1, 0)
    """Residual blocks of the decoder at each level, finest first. Fine levels add the details."""
    lpips: float = 0.0
    """Weight of the LPIPS perceptual loss (VGG). Needs the lpips package and torchvision's VGG
    weights on this machine."""

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
        check_norm(NORM_GROUPS, self.channels[-1], coarsest_grid(self.size, self.patch, len(self.channels)))


@dataclass(frozen=True)
class AutoencoderConfig(NetworksConfig):
    """Networks of a codec with continuous latents."""

    latent_dim: int = 128
    """Length of the latent vector, or channels of the latent map."""
    spatial: bool = False
    """Encode to a latent map of size / (patch 2^(levels - 1)) positions a side, for use as a codec,
    instead of a flat vector."""
    principal: bool = True
    """Add encoder and decoder to a fixed PCA of the training images (of their patches if latents
    are maps), so that they learn only what a linear map cannot represent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}")


@dataclass(frozen=True)
class DensityOptions:
    """Sampling options of a codec whose latents have a fitted density."""

    temperature: float = 1.0
    """Factor on the standard deviation of the fitted Gaussian. 0 decodes the mean latent."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")


class ContinuousCodec(Generator, ABC):
    """Codec with whitened latents and a density that is fitted to them after training.

    A family implements `loss`, `latent_shape`, `_code` and `_mean_image`. Raw latents are those of
    the networks. `encode` returns and `decode` takes whitened latents. Samples are draws from the
    density, unless a family overrides `_code_and_draw`, `_draw` and `_between`.

    Args:
        config: settings of the family.
        components: number of Gaussians in the density.
    """

    Options: ClassVar[type] = DensityOptions

    def __init__(self, config: Any, components: int = 1):
        super().__init__(config)
        self.whitening = Whitening(self.latent_shape[0])
        self.density = GaussianMixture(components, math.prod(self.latent_shape))

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents of one image. The first axis are the channels."""

    @abstractmethod
    def _code(self, images: Tensor) -> Tensor:
        """Encode images deterministically to raw latents (N, *latent_shape), float32."""

    @abstractmethod
    def _mean_image(self, raw: Tensor) -> Tensor:
        """Decode raw latents to images (N, 3, H, W) in float32, not clamped, for the losses."""

    def _code_and_draw(self, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return `_code(images)`, and raw latents for the density, each (N, *latent_shape)."""
        code = self._code(images)
        return code, code

    def _draw(self, noise: Noise, options: Any) -> Tensor:
        """Draw the raw latents (N, *latent_shape) of samples."""
        return self._draw_from_density(noise, options.temperature)

    def _between(self, first: Tensor, second: Tensor, weights: Tensor, options: Any) -> Tensor:
        """Interpolate raw latents (1, *latent_shape) to (K, *latent_shape), for weights (K,)."""
        return lerp(first, second, weights)

    @final
    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        return self._decode(self._draw(noise, options))

    @final
    def encode(self, images: Tensor) -> Tensor:
        """Encode images to latents of zero mean and unit variance per channel.

        Args:
            images: (N, 3, H, W) in [-1, 1].

        Returns:
            Whitened latents (N, *latent_shape).
        """
        return self.whitening.whiten(self._code(images))

    @final
    def decode(self, latents: Tensor) -> Tensor:
        """Decode whitened latents (N, *latent_shape) to images (N, 3, H, W) in [-1, 1]."""
        return self._decode(self.whitening.unwhiten(latents))

    @final
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images (N, 3, H, W) in [-1, 1]."""
        return self._decode(self._code(images))

    @final
    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: Any) -> Tensor:
        """Interpolate between two samples in latent space.

        Args:
            first: noise of the sample at weight 0, one stream.
            second: noise of the sample at weight 1, one stream.
            weights: (K,) in [0, 1].
            options: sampling options of the family.

        Returns:
            Images (K, 3, H, W) in [-1, 1].
        """
        return self._path(self._draw(first, options), self._draw(second, options), weights, options)

    @final
    def morph(self, first: Tensor, second: Tensor, weights: Tensor, options: Any) -> Tensor:
        """Interpolate between the reconstructions of two images in latent space.

        Args:
            first, second: images (1, 3, H, W) in [-1, 1], at weight 0 and at weight 1.
            weights: (K,) in [0, 1].
            options: sampling options of the family.

        Returns:
            Images (K, 3, H, W) in [-1, 1].
        """
        return self._path(self._code(first), self._code(second), weights, options)

    @final
    def draw_latents(self, noise: Noise, options: Any) -> Tensor:
        """Draw the raw latents (N, D) of the samples of `noise`, flattened."""
        return self._draw(noise, options).flatten(1)

    @final
    def find_latents(self, images: Tensor, exact: bool = True) -> Tensor:
        """Encode images (N, 3, H, W) in [-1, 1] to raw latents (N, D), flattened.

        `exact` has no effect here. Families that invert their decoder by a search use it.
        """
        return self._code(images).flatten(1)

    @final
    def from_latents(self, latents: Tensor) -> Tensor:
        """Decode raw latents (N, D) to images (N, 3, H, W) in [-1, 1]."""
        return self._decode(latents.unflatten(1, self.latent_shape))

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Fit the whitening and the density to the latents of `images`, in eval mode."""
        codes: list[Tensor] = []
        draws: list[Tensor] = []
        seen = 0
        for batch in images:
            # A fixed seed makes the result deterministic.
            noise = Noise.for_images(0, range(seen, seen + len(batch)), batch.device)
            seen += len(batch)
            code, draw = self._code_and_draw(batch, noise)
            codes.append(code)
            draws.append(draw)
        self.whitening.fit(torch.cat(codes))
        self.density.fit(self.whitening.whiten(torch.cat(draws)).flatten(1))

    @final
    def _path(self, first: Tensor, second: Tensor, weights: Tensor, options: Any) -> Tensor:
        """Decode interpolated raw latents to images (K, 3, H, W), for weights (K,)."""
        return self._decode(self._between(first, second, weights.to(first), options))

    @final
    def _decode(self, raw: Tensor) -> Tensor:
        return self._mean_image(raw).clamp(-1, 1)

    @final
    def _draw_from_density(self, noise: Noise, temperature: float) -> Tensor:
        if not torch.compiler.is_exporting() and not self.density.fitted:  # a trace cannot branch on a value
            raise ValueError(
                f"the {self.family}'s latent density is not fitted yet: train it, or call calibrate(images)"
            )
        choice = noise.uniform()  # (N,)
        eps = temperature * noise.normal(math.prod(self.latent_shape))  # (N, D)
        return self.whitening.unwhiten(self.density.sample(choice, eps).unflatten(1, self.latent_shape))


class Autoencoder(ContinuousCodec, ABC):
    """Codec with our own networks, which are added to principal components.

    Args:
        config: settings of the networks.
        encoder_outputs: encoder outputs per latent value: 1, or 2 for a mean and a log variance.
        components: number of Gaussians in the density.
    """

    def __init__(self, config: AutoencoderConfig, encoder_outputs: int, components: int):
        super().__init__(config, components)
        c = config
        self.principal: PrincipalComponents | PatchComponents | None = None
        if c.principal and c.spatial:
            self.principal = PatchComponents(c.size, coarsest_grid(c.size, c.patch, len(c.channels)), c.latent_dim)
        elif c.principal:
            self.principal = PrincipalComponents(c.size, c.latent_dim)
        self.encoder = Encoder(c.size, c.patch, c.channels, c.encoder_blocks, encoder_outputs * c.latent_dim, c.spatial)
        self.decoder = Decoder(c.size, c.patch, c.channels, c.decoder_blocks, c.latent_dim, c.spatial, c.principal)
        self._perceptual = PerceptualLoss() if c.lpips else None
        self.to(memory_format=torch.channels_last)  # fastest layout for convolutions

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents of one image: (latent_dim,), or (latent_dim, grid, grid)."""
        c = self.config
        grid = coarsest_grid(c.size, c.patch, len(c.channels))
        return (c.latent_dim, grid, grid) if c.spatial else (c.latent_dim,)

    @final
    def _mean_image(self, raw: Tensor) -> Tensor:
        if self.principal is None:
            return self.decoder(raw).float()
        linear = self.principal.decode(raw).float()  # PCA reconstruction, refined by the decoder
        return linear + self.decoder(raw, linear).float()

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the principal components and zero the output layers of the networks added to them."""
        if self.principal is not None:
            self.principal.fit(images)
            zero_output(self.encoder)
            zero_output(self.decoder)
