"""Autoencoder: a deterministic codec, with a Gaussian fitted to its latents for sampling.

accelerate launch recipes/ae.py --data celeba --root PATH --output runs/ae --minutes 10
genmodels train ae --output runs/ae --steps 5000    # in one process, on procedural faces
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from genmodels.ae import AE, AEConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, Recipe


@dataclass(frozen=True)
class AERecipe(Recipe):
    """Settings of the training of an autoencoder."""

    shown = ("model.latent_dim", "model.spatial", "model.channels", "model.patch", "model.lpips")

    size_defaults = MappingProxyType({256: {"model": AEConfig(patch=8), "batch_size": 32}})

    model: AEConfig = AEConfig()
    mixed_precision: Precision = "auto"
    batch_size: int = 64  # small: at a few hundred images per second, more steps are worth more than less noise
    optim: OptimConfig = OptimConfig(lr=2e-3)


if __name__ == "__main__":
    run(partial(train, AE), AERecipe, "ae")
