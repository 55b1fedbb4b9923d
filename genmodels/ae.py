"""AE: a deterministic autoencoder, the baseline of the other families.

Samples come from a Gaussian that is fitted to its latents after training.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from genmodels.autoencoder import Autoencoder, AutoencoderConfig
from genmodels.conditions import Condition
from genmodels.nn.interpolation import lerp
from genmodels.types import Batch, Noise


@dataclass(frozen=True)
class AEConfig(AutoencoderConfig):
    """Architecture of an autoencoder."""


@dataclass(frozen=True)
class AEOptions:
    """Sampling options of an autoencoder."""

    temperature: float = 1.0
    """Factor on the standard deviation of the fitted Gaussian. 0 decodes the mean latent."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")


class AE(Autoencoder):
    """Deterministic autoencoder trained with the squared error.

    Nothing in training makes its latents Gaussian. Samples come from a full-covariance Gaussian
    fitted to the latents of the training images. It models their mean and covariance only.
    """

    family = "ae"
    Config = AEConfig
    Options = AEOptions

    def __init__(self, config: AEConfig | None = None):
        super().__init__(config or AEConfig(), encoder_outputs=1, components=1)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        decoded = self._mean_image(self._code(batch.images))
        mse = (batch.images - decoded).square().mean()
        metrics = {"mse": mse.detach()}
        total = mse
        if self._perceptual is not None:
            lpips = self._perceptual(batch.images, decoded)
            metrics["lpips"] = lpips.detach()
            total = mse + self.config.lpips * lpips
        return total, metrics

    def sample(self, noise: Noise, condition: Condition, options: AEOptions) -> Tensor:
        return self._decode(self._draw(noise, options))

    def _code(self, images: Tensor) -> Tensor:
        code = self.encoder(images).float()
        return code if self.principal is None else code + self.principal.encode(images).float()

    def _code_and_draw(self, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        code = self._code(images)
        return code, code

    def _draw(self, noise: Noise, options: AEOptions) -> Tensor:  # type: ignore[override]
        return self._draw_from_density(noise, options.temperature)

    def _between(self, first: Tensor, second: Tensor, weights: Tensor, options: object) -> Tensor:
        return lerp(first, second, weights)
