"""Small models and data for tests of the training loop, also used by scripts that tests launch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genmodels.base import Generator
from genmodels.conditions import Condition
from genmodels.data.packed import Packed
from genmodels.distributed import all_reduce_sum
from genmodels.dit import DiT, DiTConfig
from genmodels.nn.experts import ExpertsConfig
from genmodels.nn.transformer import TransformerConfig
from genmodels.training import clock, dry_run, limits, log, setup, show
from genmodels.training import fit as fitting
from genmodels.training.recipe import Recipe
from genmodels.types import Batch, Noise


@dataclass(frozen=True)
class TinyConfig:
    size: int = 8
    width: int = 16
    dropout: float = 0.0
    bad_from: int = -1
    """First step at which the loss is nan."""
    bad_until: int = -1
    """First step at which it is finite again."""


@dataclass(frozen=True)
class TinyOptions:
    scale: float = 1.0


class Tiny(Generator):
    """Denoising autoencoder with a convolution, a running mean and a calibrated latent mean."""

    mean: Tensor
    sums: Tensor
    latent_mean: Tensor
    family = "tiny"
    Config = TinyConfig
    Options = TinyOptions

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.encoder = nn.Conv2d(3, config.width, 3, padding=1)
        self.decoder = nn.Linear(config.width, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("sums", torch.zeros(4), persistent=False)
        self.register_buffer("latent_mean", torch.zeros(config.width))

    def encode(self, images: Tensor) -> Tensor:
        return torch.tanh(self.encoder(images)).permute(0, 2, 3, 1)  # (N, H, W, width)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents).permute(0, 3, 1, 2)  # (N, 3, H, W)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        noisy = batch.images + 0.1 * batch.noise.normal(*batch.images.shape[1:])
        hidden = nn.functional.dropout(self.encode(noisy), self.config.dropout, self.training)
        error = (self.decode(hidden) - batch.images).square().mean()
        with torch.no_grad():
            self.sums += torch.cat([batch.images.sum((0, 2, 3)), torch.tensor([float(batch.images[:, 0].numel())])])
        if self.config.bad_from <= batch.step < self.config.bad_until:
            self.sums += float("nan")
            error = error * float("nan")
        return error, {"twice": 2 * error.detach()}

    def after_step(self) -> None:
        all_reduce_sum(self.sums)
        self.mean.lerp_(self.sums[:3] / self.sums[3], 0.1)
        self.sums.zero_()

    def calibrate(self, images: Iterable[Tensor]) -> None:
        self.latent_mean = torch.cat([self.encode(part).mean((1, 2)) for part in images]).mean(0)

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        size = self.config.size
        return self.decode(self.latent_mean + noise.normal(size, size, self.config.width)).tanh()


class TinyPair(Tiny):
    """Model with two opposing turns, each through the frozen parameters of the other."""

    family = "tinypair"
    turns = ("critic", "generator")

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        return (self.encoder if turn == "critic" else self.decoder).parameters()

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        trainable = {name.partition(".")[0] for name, p in self.named_parameters() if p.requires_grad}
        assert trainable == {"encoder" if turn == "critic" else "decoder"}
        error, metrics = super().loss(batch, turn)
        return (-0.1 * error + self.encode(batch.images).square().mean() if turn == "critic" else error), metrics


@dataclass(frozen=True)
class TinyRecipe(Recipe):
    model: TinyConfig = TinyConfig()


def faces(count: int = 96, size: int = 8, seed: int = 0) -> Packed:
    """Make random smooth images, three quarters of them in the train split."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, size // 4, size // 4, 3), np.uint8)
    return Packed(
        images=coarse.repeat(4, 1).repeat(4, 2),  # (N, H, W, 3)
        attributes=rng.choice(np.array([-1, 1], np.int8), (count, 2)),
        attribute_names=("Male", "Smiling"),
        names=[f"{i:06d}.jpg" for i in range(count)],
        splits=(np.arange(count) >= count * 3 // 4).astype(np.uint8),
        manifest={"source": "noise", "crop": "none"},
    )


def recipe(output: Path, **changes: Any) -> TinyRecipe:
    """Make a recipe of twenty fast steps."""
    settings = {"steps": 20, "batch_size": 8, "size": 8, "track": "none", "log_every": 5}
    return TinyRecipe(output=output, **(settings | changes))


def tiny(kind: type[Tiny] = Tiny, **config: Any) -> Tiny:
    """Build a model with the same initial weights at every call."""
    torch.manual_seed(0)
    return kind(TinyConfig(**config))


def tiny_experts(choice: str) -> DiT:
    """Build a transformer with experts, with the same initial weights at every call."""
    torch.manual_seed(0)
    experts = ExpertsConfig(count=3, choice=choice)
    return DiT(DiTConfig(size=8, patch=2, transformer=TransformerConfig(width=8, depth=2, heads=2, experts=experts)))


class FakeTime:
    """Replacement of the module `time` in training, whose clock a test advances.

    Args:
        monkeypatch: puts it into the modules of training.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in (clock, dry_run, fitting, limits, log, setup, show):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now
