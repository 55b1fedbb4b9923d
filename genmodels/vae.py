"""VAE: variational autoencoder (arXiv 1312.6114) with a decoder of calibrated variance.

A Gaussian mixture is fitted to its latents after training, for samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genmodels.autoencoder import Autoencoder, AutoencoderConfig
from genmodels.nn.conv import output_layer
from genmodels.nn.interpolation import lerp, slerp
from genmodels.nn.likelihood import CalibratedGaussian, LikelihoodKind, nats_to_bits_per_dim
from genmodels.types import Batch, Noise

LOG_VARIANCE_RANGE = (-12.0, 4.0)
"""Range that the log variance of the posterior is clamped to. It keeps exp() finite for untrained
encoders. Trained posteriors stay well inside."""


@dataclass(frozen=True)
class VAEConfig(AutoencoderConfig):
    """Architecture and loss of a VAE."""

    variance: Literal["frequency", "pixel"] = "pixel"
    """Variance of the decoder: "pixel" is one value for all pixels, "frequency" one value per
    frequency of the 8x8 block DCT (needs a size divisible by 8)."""
    kl_weight: float = 1.0
    """Weight of the KL term. 1 is the evidence lower bound; use a small weight to train a codec."""
    kl_warmup: float = 0.0
    """Fraction of training over which the KL weight rises from 0. Without `principal` it is needed
    to avoid posterior collapse."""
    free_bits: float = 0.0
    """Nats per latent value below which the KL term is constant (arXiv 1606.04934), per image."""
    mixture: int = 10
    """Components of the Gaussian mixture that is fitted to the latents after training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance == "frequency" and self.size % 8:
            raise ValueError(f"variance 'frequency' needs a size divisible by 8, got {self.size}: use 'pixel'")
        if self.kl_weight < 0 or self.free_bits < 0 or not 0 <= self.kl_warmup <= 1:
            raise ValueError("kl_weight and free_bits must not be negative, and kl_warmup must be in [0, 1]")
        if self.mixture < 1:
            raise ValueError(f"mixture must have at least 1 component, got {self.mixture}")


@dataclass(frozen=True)
class VAEOptions:
    """Sampling options of a VAE."""

    latents: Literal["mixture", "prior"] = "mixture"
    """Distribution of the latents: the mixture fitted after training, or the prior N(0, I)."""
    temperature: float = 1.0
    """Factor on the standard deviation of the latents. Values below 1 give more typical and
    less varied images."""

    def __post_init__(self) -> None:
        if self.latents not in ("mixture", "prior"):
            raise ValueError(f"latents must be 'mixture' or 'prior', got {self.latents!r}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")


class VAE(Autoencoder):
    """Variational autoencoder with Gaussian posterior and decoder.

    The posterior q(z | x) is Gaussian with diagonal covariance, the prior p(z) is N(0, I), and
    p(x | z) is Gaussian with a calibrated variance. The loss is the negative evidence lower bound
    in nats per image, E_q[-log p(x | z)] + kl_weight * KL(q(z | x) || p(z)), divided by the number
    of values of an image, so that the learning rate does not depend on the image size. The logged
    terms `nll` and `kl` are in nats per image.
    """

    family = "vae"
    Config = VAEConfig
    Options = VAEOptions

    def __init__(self, config: VAEConfig | None = None):
        config = config or VAEConfig()
        super().__init__(config, encoder_outputs=2, components=config.mixture)
        self.likelihood = CalibratedGaussian(config.variance)

    @property
    def likelihood_kind(self) -> LikelihoodKind:
        """What `bits_per_dim` computes."""
        return LikelihoodKind()

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and log variance of q(z | x), each (N, *latent_shape), float32."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        if self.principal is not None:
            mean = mean + self.principal.encode(images).float()
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Initialise the model as probabilistic PCA (Tipping and Bishop 1999).

        This sets the log variances of the posterior and the variance of the likelihood.
        """
        super().initialise(images)
        if self.principal is not None:
            residual, explained = self.principal.residual, self.principal.std.square()
            posterior = (residual / (explained + residual)).log()  # (D,)
            # The outputs of the encoder are the means, followed by the log variances.
            dict(output_layer(self.encoder).named_parameters())["bias"][self.config.latent_dim :] = posterior
            self.likelihood.variance.fill_(residual)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        mean, log_variance = self.posterior(batch.images)
        z = mean + (0.5 * log_variance).exp() * batch.noise.normal(*self.latent_shape)  # (N, *latent_shape)
        decoded = self._mean_image(z)
        nll = self.likelihood.nll(batch.images, decoded).mean()  # nats per image
        kl_each = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)  # (N, *latent_shape)
        kl = kl_each.flatten(1).sum(1).mean()  # nats per image
        # Latent values whose KL is below the free bits get no gradient from it.
        kl_clamped = kl_each.clamp_min(self.config.free_bits).flatten(1).sum(1).mean()
        weight = self.config.kl_weight
        if self.config.kl_warmup:
            weight *= min(1.0, batch.progress / self.config.kl_warmup)
        dimensions = batch.images[0].numel()
        loss = (nll + weight * kl_clamped) / dimensions
        metrics = {
            "nll": nll,
            "kl": kl,
            "bits_per_dim": nats_to_bits_per_dim(nll + kl, dimensions),
            "mse": (batch.images - decoded).square().mean(),
            "active_units": (kl_each.mean(0) > 0.05).sum().float(),
        }
        if self._perceptual is not None:
            metrics["lpips"] = self._perceptual(batch.images, decoded)
            loss = loss + self.config.lpips * metrics["lpips"]
        return loss, {name: value.detach() for name, value in metrics.items()}

    def after_step(self) -> None:
        super().after_step()
        self.likelihood.commit()

    def bits_per_dim(self, images: Tensor, noise: Noise, samples: int = 16) -> Tensor:
        """Compute an upper bound on the bits per dimension of 8-bit images.

        This is the importance-weighted bound (arXiv 1509.00519) on uniformly dequantised values
        (arXiv 1511.01844).

        Args:
            images: (N, 3, H, W) in [-1, 1].
            noise: N streams.
            samples: number of draws of q(z | x). More draws give a tighter bound.

        Returns:
            (N,)
        """
        # The 8-bit value k is dequantised to the interval [k - 1/2, k + 1/2) / 127.5 - 1.
        images = images + (noise.uniform(*images.shape[1:]) - 0.5) / 127.5
        mean, log_variance = self.posterior(images)
        log_weights = []
        for _ in range(samples):
            eps = noise.normal(*self.latent_shape)
            z = mean + (0.5 * log_variance).exp() * eps
            log_p_x = -self.likelihood.nll(images, self._mean_image(z))
            # log p(z) - log q(z | x): the constants of the two Gaussians cancel
            log_ratio = 0.5 * (eps.square() + log_variance - z.square()).flatten(1).sum(1)
            log_weights.append(log_p_x + log_ratio)  # (N,)
        bound = torch.logsumexp(torch.stack(log_weights), 0) - math.log(samples)
        return nats_to_bits_per_dim(-bound, images[0].numel())

    def _code(self, images: Tensor) -> Tensor:
        return self.posterior(images)[0]

    def _code_and_draw(self, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the posterior means, and one draw of q(z | x) per image for the density."""
        mean, log_variance = self.posterior(images)
        return mean, mean + (0.5 * log_variance).exp() * noise.normal(*self.latent_shape)

    def _draw(self, noise: Noise, options: VAEOptions) -> Tensor:
        if options.latents == "mixture":
            return self._draw_from_density(noise, options.temperature)
        return options.temperature * noise.normal(*self.latent_shape)

    def _between(self, first: Tensor, second: Tensor, weights: Tensor, options: VAEOptions) -> Tensor:
        return (slerp if options.latents == "prior" else lerp)(first, second, weights)
