"""VQ-VAE: a codec whose latents are codes of a finite codebook, for priors to be trained on.

accelerate launch recipes/vqvae.py --data celeba --root PATH --output runs/vq --minutes 10
genmodels train vqvae --output runs/vq --steps 5000    # in one process, on procedural faces
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, Recipe
from genmodels.vqvae import VQVAE, VQVAEConfig


@dataclass(frozen=True)
class VQVAERecipe(Recipe):
    """Settings of the training of a VQ-VAE."""

    shown = ("model.quantiser", "model.codebook_size", "model.code_dim", "model.channels", "model.patch", "model.lpips")

    size_defaults = MappingProxyType({256: {"model": VQVAEConfig(patch=4), "batch_size": 32}})

    model: VQVAEConfig = VQVAEConfig()
    mixed_precision: Precision = "auto"  # quantisation itself is always fp32
    batch_size: int = 64  # small: at a few hundred images per second, more steps are worth more than less noise
    optim: OptimConfig = OptimConfig(lr=2e-3)


if __name__ == "__main__":
    run(partial(train, VQVAE), VQVAERecipe, "vqvae")
