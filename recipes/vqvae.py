"""Train a VQ-VAE.

accelerate launch recipes/vqvae.py --data celeba --root PATH --size 64 --output runs/vqvae --minutes 10
genmodels train vqvae --output runs/vqvae --steps 5000       (the same, in one process, on the embedded faces)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from genmodels.data import open_data
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig, Precision, Recipe, run
from genmodels.vqvae import VQVAE, VQVAEConfig


@dataclass(frozen=True)
class VQVAERecipe(Recipe):
    """Everything that decides a VQ-VAE's training."""

    model: VQVAEConfig = VQVAEConfig()
    """The networks, the quantiser and the loss."""
    mixed_precision: Precision = "bf16"
    """Convolutions and matrix products in bf16; "no" on processors without it. Quantisation is fp32 always."""
    batch_size: int = 64
    """Small: at a few hundred images a second, more steps teach more than smoother ones."""
    optim: OptimConfig = OptimConfig(lr=2e-3)
    """The optimiser."""


def main(recipe: VQVAERecipe) -> None:
    model = VQVAE(replace(recipe.model, size=recipe.size))  # first: it refuses a size that cannot be before any packing
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)
    fit(model, data, recipe)


if __name__ == "__main__":
    run(main, VQVAERecipe, "vqvae")
