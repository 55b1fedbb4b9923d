"""A family of another package: colour blobs, decoded from four numbers by one linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genmodels import Batch, Condition, Generator, Noise


@dataclass(frozen=True)
class BlobsConfig:
    """Settings of the decoder."""

    size: int = 64
    numbers: int = 4
    """Length of the latent vector."""


@dataclass(frozen=True)
class BlobsOptions:
    temperature: float = 1.0


class Blobs(Generator):
    """Colour blobs from a few numbers, for a test."""

    family = "blobs"
    Config = BlobsConfig
    Options = BlobsOptions

    def __init__(self, config: BlobsConfig):
        super().__init__(config)
        self.decoder = nn.Linear(config.numbers, 12)

    def decode(self, latents: Tensor) -> Tensor:
        corners = self.decoder(latents).reshape(-1, 3, 2, 2)
        return nn.functional.interpolate(corners, size=(self.config.size,) * 2, mode="bilinear").tanh()

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.decode(batch.noise.normal(self.config.numbers)) - batch.images).square().mean()
        return error, {"mse": error.detach()}

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        return self.decode(options.temperature * noise.normal(self.config.numbers))

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(torch.zeros(len(images), self.config.numbers, device=images.device))
