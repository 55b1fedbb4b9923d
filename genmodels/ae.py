"""AE: a deterministic autoencoder, the baseline of the other families.

Samples come from a Gaussian that is fitted to its latents after training.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from genmodels.autoencoder import Autoencoder, AutoencoderConfig
from genmodels.types import Batch


@dataclass(frozen=True)
class AEConfig(AutoencoderConfig):
    """Architecture of an autoencoder."""


class AE(Autoencoder):
    """Deterministic autoencoder trained with the squared error.

    Nothing in training makes its latents Gaussian. Samples come from a full-covariance Gaussian
    fitted to the latents of the training images. It models their mean and covariance only.
    """

    family = "ae"
    Config = AEConfig

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

    def _code(self, images: Tensor) -> Tensor:
        code = self.encoder(images).float()
        return code if self.principal is None else code + self.principal.encode(images).float()
