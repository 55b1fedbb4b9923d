"""KL: the codec of latent diffusion, diffusers' AutoencoderKL, trained from scratch.

accelerate launch recipes/kl.py --data celeba --root PATH --output runs/kl --minutes 10
genmodels train kl --output runs/kl --steps 5000    # in one process, on procedural faces
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from genmodels.kl import KL, KLConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, Recipe


@dataclass(frozen=True)
class KLRecipe(Recipe):
    """Settings of the training of an AutoencoderKL."""

    shown = (
        *("model.latent_channels", "model.channels", "model.blocks", "model.kl"),
        *("model.lpips", "model.discriminator"),
    )

    model: KLConfig = KLConfig()
    mixed_precision: Precision = "auto"
    batch_size: int = 32  # small: in a few minutes, more steps are worth more than less noise
    optim: OptimConfig = OptimConfig(lr=2e-3)


if __name__ == "__main__":
    run(partial(train, KL), KLRecipe, "kl")
