"""Tiny: a small deterministic codec, diffusers' AutoencoderTiny, trained from scratch.

accelerate launch recipes/tiny.py --data celeba --root PATH --output runs/tiny --minutes 10
genmodels train tiny --output runs/tiny --steps 5000    # in one process, on procedural faces
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from genmodels.tiny import Tiny, TinyConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, Recipe


@dataclass(frozen=True)
class TinyRecipe(Recipe):
    """Settings of the training of an AutoencoderTiny."""

    shown = (
        *("model.latent_channels", "model.width", "model.encoder_blocks", "model.decoder_blocks"),
        *("model.lpips", "model.discriminator"),
    )

    model: TinyConfig = TinyConfig()
    mixed_precision: Precision = "auto"
    batch_size: int = 32  # small: in a few minutes, more steps are worth more than less noise
    optim: OptimConfig = OptimConfig(lr=2e-3)


if __name__ == "__main__":
    run(partial(train, Tiny), TinyRecipe, "tiny")
