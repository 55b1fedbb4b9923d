"""Train a U-Net by flow matching (or EDM, DDPM) on pixels.

accelerate launch recipes/unet.py --data celeba --root PATH --size 64 --output runs/unet --minutes 30
genmodels train unet --output runs/unet --model.process ddpm --model.ddpm.prediction eps
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from genmodels.data import open_data
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig, Precision, Recipe, run


@dataclass(frozen=True)
class UNetRecipe(Recipe):
    """Everything that decides the training of a U-Net on pixels."""

    model: UNetConfig = UNetConfig(
        patch=2, channels=(48, 96, 192), blocks=1, attention=(False, False, True), gaussian=512
    )
    """The process, the network, and what it can be asked for."""
    mixed_precision: Precision = "bf16"
    """Convolutions and matrix products in bf16; "no" on processors without it."""
    batch_size: int = 32
    """Small: at so few images a second, more steps teach more than smoother ones."""
    optim: OptimConfig = OptimConfig(lr=2e-3, clip=1.0)
    """The optimiser."""
    ema: float = 0.1
    """Width of the average of the weights, relative to the length of the run."""


def main(recipe: UNetRecipe) -> None:
    model = UNet(replace(recipe.model, size=recipe.size))  # first: it refuses a size that cannot be before any packing
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)
    fit(model, data, recipe)


if __name__ == "__main__":
    run(main, UNetRecipe, "unet")
