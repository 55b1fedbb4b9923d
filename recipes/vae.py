"""Variational autoencoder (VAE): a codec with a normal prior, trained on a likelihood bound.

accelerate launch recipes/vae.py --data celeba --root PATH --output runs/vae --minutes 10
genmodels train vae --output runs/vae --steps 5000    # in one process, on procedural faces
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, Recipe
from genmodels.vae import VAE, VAEConfig


@dataclass(frozen=True)
class VAERecipe(Recipe):
    """Settings of the training of a VAE."""

    shown = ("model.latent_dim", "model.spatial", "model.channels", "model.patch", "model.variance", "model.kl_weight")

    size_defaults = MappingProxyType({256: {"model": VAEConfig(patch=8), "batch_size": 32}})

    model: VAEConfig = VAEConfig()
    mixed_precision: Precision = "auto"
    batch_size: int = 64  # small: at a few hundred images per second, more steps are worth more than less noise
    optim: OptimConfig = OptimConfig(lr=2e-3)


if __name__ == "__main__":
    run(partial(train, VAE), VAERecipe, "vae")
