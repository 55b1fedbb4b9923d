"""Train a VAE.

accelerate launch recipes/vae.py --data celeba --root PATH --size 64 --output runs/vae --minutes 10
genmodels train vae --output runs/vae --steps 5000          (the same, in one process, on the embedded faces)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from genmodels.data import open_data
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig, Precision, Recipe, run
from genmodels.vae import VAE, VAEConfig


@dataclass(frozen=True)
class VAERecipe(Recipe):
    """Everything that decides a VAE's training."""

    model: VAEConfig = VAEConfig()
    """The networks and the bound."""
    mixed_precision: Precision = "bf16"
    """Convolutions and matrix products in bf16; "no" on processors without it."""
    batch_size: int = 64
    """Small: at a few hundred images a second, more steps teach more than smoother ones."""
    optim: OptimConfig = OptimConfig(lr=2e-3)
    """The optimiser."""


def main(recipe: VAERecipe) -> None:
    model = VAE(replace(recipe.model, size=recipe.size))  # first: it refuses a size that cannot be before any packing
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)
    fit(model, data, recipe)


if __name__ == "__main__":
    run(main, VAERecipe, "vae")
