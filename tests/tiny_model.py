"""Three small generators for tests of sampling, metrics and commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from genmodels.base import Generator
from genmodels.conditions import Condition, ConditionConfig
from genmodels.nn.likelihood import LikelihoodKind
from genmodels.types import Batch, Noise


@dataclass(frozen=True)
class TinyConfig:
    size: int = 16
    gain: float = 0.5


@dataclass(frozen=True)
class TinyOptions:
    temperature: float = 1.0
    latents: Literal["prior", "mixture"] = "prior"
    steps: int = 1


class Tiny(Generator):
    """Generator of smooth colour blobs from four numbers, with every ability."""

    family = "tiny"
    Config: ClassVar[type] = TinyConfig
    Options: ClassVar[type] = TinyOptions
    likelihood_kind = LikelihoodKind()

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.decoder = nn.Linear(4, 12)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self._decode(batch.noise.normal(4)) - batch.images).square().mean()
        return loss, {"loss": loss.detach()}

    def _decode(self, latents: Tensor) -> Tensor:
        corners = self.decoder(latents).reshape(-1, 3, 2, 2)
        return nn.functional.interpolate(corners, size=(self.config.size,) * 2, mode="bilinear").tanh()

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        latents = noise.normal(4)
        for _ in range(1, options.steps):
            latents = latents + 0.1 * noise.normal(4)
        if options.latents == "mixture":
            latents = latents.sign()
        if condition.attributes is not None:
            latents[:, : condition.attributes.shape[1]] += 9 * condition.attributes
        if condition.labels is not None:
            latents[:, 2] += 9 * (condition.labels + 1)  # -1 is no label
        return self._decode(latents * options.temperature)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.config.gain * images

    def bits_per_dim(self, images: Tensor, noise: Noise) -> Tensor:
        return images.abs().mean(dim=(1, 2, 3)) + torch.zeros(len(noise))

    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: Any) -> Tensor:
        return self._decode(torch.lerp(first.normal(4), second.normal(4), weights[:, None]) * options.temperature)


@dataclass(frozen=True)
class AskedConfig(TinyConfig):
    condition: ConditionConfig = ConditionConfig(attributes=("Smiling", "Eyeglasses"), classes=3)


class Asked(Tiny):
    """Tiny with conditions."""

    family = "asked"
    Config: ClassVar[type] = AskedConfig


@dataclass(frozen=True)
class NoOptions:
    pass


class OnlySamples(Generator):
    """Generator that can only sample."""

    family = "only_samples"
    Config: ClassVar[type] = TinyConfig
    Options: ClassVar[type] = NoOptions

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.level = nn.Parameter(torch.zeros(()))

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.level - batch.images).square().mean(), {}

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        return self.level + 0.1 * noise.normal(3, self.config.size, self.config.size).clamp(-5, 5)
