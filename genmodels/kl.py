"""KL: the autoencoder of latent diffusion (arXiv 2112.10752), diffusers' AutoencoderKL, trained here.

Its latents have the layout of those of Stable Diffusion, and diffusers loads what `export` writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from genmodels.adversarial import TURN, AdversarialCodec, AdversarialConfig
from genmodels.autoencoder import ContinuousCodec
from genmodels.nn.conv import check_norm
from genmodels.nn.diffusers_codec import check_side, decoded, posterior
from genmodels.nn.perceptual import PerceptualLoss
from genmodels.saving import Derived
from genmodels.types import Batch

FIRST_LOG_VARIANCE = -6.0
"""Log variance of the posterior before training: little noise, so that the decoder learns from the
first step on."""


@dataclass(frozen=True)
class DiffusersCodecConfig(AdversarialConfig):
    """Latents and loss of an autoencoder of diffusers."""

    size: Derived[int] = 64
    """Side of the images in pixels. Training sets it from --size."""
    latent_channels: int = 4
    """Channels of the latents. Stable Diffusion's have 4."""
    lpips: float = 0.0
    """Weight of the LPIPS perceptual loss (VGG). Needs the lpips package and torchvision's VGG
    weights on this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "size", "latent_channels")
        self.at_least(0, "lpips")

    def at_least(self, least: int, *names: str) -> None:
        """Raise ValueError if one of the fields `names` is smaller than `least`, or is nan."""
        for name in names:
            if not (value := getattr(self, name)) >= least:
                raise ValueError(f"{name} must {'be at least 1' if least else 'not be negative'}, got {value}")


@dataclass(frozen=True)
class KLConfig(DiffusersCodecConfig):
    """Architecture and loss of an AutoencoderKL."""

    channels: tuple[int, ...] = (16, 16, 32, 64)
    """Channels of each level, finest first; every level after the first halves the resolution. The
    latents are size / 2^(levels - 1) a side: 8 x 8 at 64 px with the defaults."""
    blocks: int = 1
    """Residual blocks of the encoder at each level. The decoder has one more."""
    groups: int = 8
    """Groups of the group norms. They must divide every number of channels."""
    attention: bool = False
    """Add attention over the positions of the coarsest level, as Stable Diffusion's codec has."""
    kl: float = 1e-6
    """Weight of the KL term in nats per image, relative to the sum of the errors of all values of an
    image. The default is that of latent diffusion: it keeps latents from growing and is no prior."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "blocks", "groups")
        self.at_least(0, "kl")
        if not self.channels or any(width < 1 or width % self.groups for width in self.channels):
            raise ValueError(f"channels must be multiples of groups, which is {self.groups}, got {self.channels}")
        check_norm(self.groups, self.channels[-1], check_side("kl", self.size, 2 ** (len(self.channels) - 1)))


class DiffusersCodec(AdversarialCodec, ContinuousCodec, ABC):
    """Codec whose network is an autoencoder of diffusers.

    A family implements `_autoencoder_loss`, `_last_layer`, `_remade` and `_code`.

    Args:
        config: settings of the family.
        network: the network.
    """

    def __init__(self, config: Any, network: nn.Module):
        super().__init__(config)
        self.network: Any = network
        self._perceptual = PerceptualLoss() if config.lpips else None
        self.add_discriminator()

    @final
    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        total, metrics = self.discriminator_loss(batch) if turn == TURN else self._autoencoder_loss(batch)
        return total, {name: value.detach() for name, value in metrics.items()}

    @abstractmethod
    def _autoencoder_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of encoder and decoder, and metrics."""

    @final
    def reconstruction(self, batch: Batch, raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare images with decoded raw latents: L1 + L2, and LPIPS and the adversarial loss if they
        have a weight.

        Args:
            batch: the images, (N, 3, H, W) in [-1, 1].
            raw: (N, *latent_shape).

        Returns:
            The mean over all values, and its parts.
        """
        made = self._mean_image(raw)
        error = batch.images - made
        parts = {"mse": error.square().mean(), "l1": error.abs().mean()}
        total = parts["mse"] + parts["l1"]
        if self._perceptual is not None:
            parts["lpips"] = self._perceptual(batch.images, made)
            total = total + self.config.lpips * parts["lpips"]
        adversarial, more = self.adversarial(batch, total, made)
        return total + adversarial, parts | more


class KL(DiffusersCodec):
    """AutoencoderKL, trained by reconstruction with a small KL term.

    The posterior q(z | x) is Gaussian with diagonal covariance. The loss is L1 + L2 of the image
    decoded from a draw of it, plus kl KL(q(z | x) || N(0, I)) divided by the number of values of an
    image, so that `kl` has the scale of the paper, whose errors are sums. LPIPS and the loss of a
    discriminator are optional. Latents are the means.
    """

    family = "kl"
    Config = KLConfig

    def __init__(self, config: KLConfig | None = None):
        c = config or KLConfig()
        super().__init__(c, autoencoder_kl(c))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents of one image, (latent_channels, grid, grid)."""
        c = self.config
        grid = check_side(self.family, c.size, 2 ** (len(c.channels) - 1))
        return (c.latent_channels, grid, grid)

    def _autoencoder_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        z, mean, log_variance = self._draw_posterior(batch)
        total, metrics = self.reconstruction(batch, z)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()  # nats per image
        return total + self.config.kl * kl / batch.images[0].numel(), metrics | {"kl": kl}

    def _draw_posterior(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a draw of q(z | x), its mean and its log variance, each (N, *latent_shape)."""
        mean, log_variance = posterior(self.network, batch.images)
        return mean + (0.5 * log_variance).exp() * batch.noise.normal(*self.latent_shape), mean, log_variance

    def _remade(self, batch: Batch) -> Tensor:
        return self._mean_image(self._draw_posterior(batch)[0])

    def _last_layer(self) -> nn.Conv2d:
        return self.network.decoder.conv_out  # type: ignore[no-any-return]

    def _code(self, images: Tensor) -> Tensor:
        return posterior(self.network, images)[0]

    def _mean_image(self, raw: Tensor) -> Tensor:
        return decoded(self.network, raw)


def autoencoder_kl(config: KLConfig) -> Any:
    """Build diffusers' AutoencoderKL of a config, with random weights."""
    import diffusers

    c, levels = config, len(config.channels)
    network: Any = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=c.channels,
        layers_per_block=c.blocks,
        latent_channels=c.latent_channels,
        norm_num_groups=c.groups,
        sample_size=c.size,
        scaling_factor=1.0,
        mid_block_add_attention=c.attention,
    )
    # The outputs are means, then log variances.
    torch.nn.init.constant_(network.quant_conv.bias[c.latent_channels :], FIRST_LOG_VARIANCE)
    return network
