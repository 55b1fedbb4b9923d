"""Train an autoencoder.

accelerate launch recipes/ae.py --data celeba --root PATH --size 64 --output runs/ae --minutes 10
genmodels train ae --output runs/ae --steps 5000          (the same, in one process, on the embedded faces)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from genmodels.ae import AE, AEConfig
from genmodels.data import open_data
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig, Precision, Recipe, run


@dataclass(frozen=True)
class AERecipe(Recipe):
    """Everything that decides an autoencoder's training."""

    model: AEConfig = AEConfig()
    """The networks."""
    mixed_precision: Precision = "bf16"
    """Convolutions and matrix products in bf16; "no" on processors without it."""
    batch_size: int = 64
    """Small: at a few hundred images a second, more steps teach more than smoother ones."""
    optim: OptimConfig = OptimConfig(lr=2e-3)
    """The optimiser."""


def main(recipe: AERecipe) -> None:
    model = AE(replace(recipe.model, size=recipe.size))  # first: it refuses a size that cannot be before any packing
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)
    fit(model, data, recipe)


if __name__ == "__main__":
    run(main, AERecipe, "ae")
