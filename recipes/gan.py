"""GAN: R3GAN or DCGAN, on pixels or, with --codec, on the latents of a codec.

accelerate launch recipes/gan.py --data celeba --root PATH --output runs/gan --minutes 30
genmodels train gan --codec runs/vqvae --model.r1 1 --model.r2 1 --output runs/latent
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from genmodels.gan import GAN, GANConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, PriorRecipe


@dataclass(frozen=True)
class GANRecipe(PriorRecipe):
    """Settings of the training of a GAN."""

    shown = (
        "codec",
        "model.network",
        "model.condition.attributes",
        "model.condition.classes",
        "model.channels",
        "model.latent_dim",
        "model.r1",
        "model.r2",
    )

    model: GANConfig = GANConfig(
        channels=(512, 256, 128, 32, 16), blocks=1, expansion=1, latent_dim=128, principal=128, r1=40.0, r2=40.0
    )
    mixed_precision: Precision = "auto"
    batch_size: int = 32  # small: more steps are worth more than less noise
    optim: OptimConfig = OptimConfig(
        lr=5e-4, betas=(0.0, 0.99), weight_decay=0.0
    )  # no momentum: the loss of each network changes with the other
    ema: float = 0.1
    evaluate_every: int | None = 500
    """Steps between evaluations: distance and coverage of 512 samples, and scores of held-out
    images. None: no evaluation."""


if __name__ == "__main__":
    run(partial(train, GAN), GANRecipe, "gan")
