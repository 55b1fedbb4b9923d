"""A patch discriminator as an optional part of a codec: its settings, its turn and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, final

import torch
from torch import Tensor, nn

from genmodels.base import Generator
from genmodels.nn.discriminator import AdaptiveWeight, PatchDiscriminator, discriminator_hinge, generator_hinge
from genmodels.types import Batch

TURN = "discriminator"
"""Name of the turn that trains the discriminator."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Settings of the discriminator of a codec."""

    discriminator: float = 0.0
    """Weight of the adversarial loss of a patch discriminator, times VQGAN's adaptive weight. 0
    trains without a discriminator."""
    discriminator_channels: tuple[int, ...] = (32, 64, 128)
    """Channels of each level of the discriminator; every level halves the resolution."""
    discriminator_start: float = 0.25
    """Fraction of training after which the adversarial loss is added. Until then, only the
    discriminator is trained with it."""

    def __post_init__(self) -> None:
        if not self.discriminator >= 0:
            raise ValueError(f"discriminator must not be negative, got {self.discriminator}")
        if not 0 <= self.discriminator_start <= 1:
            raise ValueError(f"discriminator_start must be in [0, 1], got {self.discriminator_start}")
        defaults = {field.name: field.default for field in fields(AdversarialConfig)}
        for name in self.unused_fields:
            if (value := getattr(self, name)) != defaults[name]:
                raise ValueError(f"{name} has no effect without a discriminator, got {value}: set discriminator too")

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """Fields without effect: those of the discriminator, if there is none."""
        return () if self.discriminator else ("discriminator_channels", "discriminator_start")


class AdversarialCodec(Generator, ABC):
    """Codec with an optional patch discriminator, trained in a second turn (arXiv 2012.09841).

    The config of a family is an `AdversarialConfig`. A family implements `_last_layer` and
    `_remade`, calls `add_discriminator` after its networks are built, and adds the result of
    `adversarial` to its loss, of which turn "discriminator" is `discriminator_loss`.

    The discriminator is saved with the model, so that a run can be resumed, and nothing but training
    uses it.
    """

    discriminator: PatchDiscriminator | None
    balance: AdaptiveWeight | None

    @abstractmethod
    def _last_layer(self) -> nn.Linear | nn.Conv2d:
        """Return the last layer of the decoder, at which the adaptive weight is measured."""

    @abstractmethod
    def _remade(self, batch: Batch) -> Tensor:
        """Encode and decode as in training, without updates of statistics: (N, 3, H, W), float32."""

    @final
    def add_discriminator(self) -> None:
        """Build the discriminator, if the config asks for one."""
        c = self.config
        self.discriminator = PatchDiscriminator(c.discriminator_channels) if c.discriminator else None
        self.balance = AdaptiveWeight(self._last_layer().weight.numel()) if c.discriminator else None

    @property
    def turns(self) -> tuple[str, ...]:
        return ("model", TURN) if self.config.discriminator else ("model",)

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """Return the parameters of the discriminator, or all others."""
        chosen: dict[str, Any] = dict(self.named_parameters())
        return (p for name, p in chosen.items() if name.startswith(f"{TURN}.") == (turn == TURN))

    def after_step(self) -> None:
        super().after_step()
        if self.balance is not None:
            self.balance.commit()

    @final
    def adversarial(
        self, batch: Batch, reconstruction: Tensor, images: Tensor
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Compute what the discriminator adds to the loss of the codec.

        Args:
            batch: the batch, whose progress says whether the adversarial loss has started.
            reconstruction: loss of the reconstruction, with which the weight is balanced.
            images: (N, 3, H, W), the decoded images, with their graph.

        Returns:
            The weighted adversarial loss, and metrics. 0 and {} without a discriminator, and before
            `discriminator_start`.
        """
        if self.discriminator is None or batch.progress < self.config.discriminator_start:
            return 0.0, {}
        assert self.balance is not None
        loss = generator_hinge(self.discriminator(images))
        if self.training and torch.is_grad_enabled():
            self.balance.observe(reconstruction, loss, self._last_layer().weight)
        weighted = self.config.discriminator * self.balance.value * loss
        return weighted, {"adversarial": loss, "adaptive_weight": self.balance.value}

    @final
    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the hinge loss of the discriminator on images and their reconstructions."""
        assert self.discriminator is not None
        with torch.no_grad():
            remade = self._remade(batch)
        real, fake = self.discriminator(torch.cat([batch.images, remade])).chunk(2)
        return discriminator_hinge(real, fake), {"real": real.detach().mean(), "fake": fake.detach().mean()}
