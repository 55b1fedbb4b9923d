"""Train a GAN: R3GAN, or the textbook's DCGAN; on pixels or, with --codec, in the space of a trained codec.

accelerate launch recipes/gan.py --data celeba --root PATH --size 64 --output runs/gan --minutes 30
genmodels train gan --data celeba --root PATH --codec runs/vqvae --model.r1 1 --model.r2 1 --output runs/latent
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genmodels.codecs import load_codec, prior_shape
from genmodels.data import cache_folder, open_data
from genmodels.data.batches import image_batches
from genmodels.data.latents import with_latents
from genmodels.gan import GAN, GANConfig
from genmodels.latent import Latent
from genmodels.sampling import processes
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig, Precision, Recipe, run


@dataclass(frozen=True)
class GANRecipe(Recipe):
    """Everything that decides a GAN's training."""

    codec: Path | None = None
    """Folder of a trained VQ-VAE or VAE, or of a diffusers AutoencoderKL or VQModel. None: on pixels."""
    model: GANConfig = GANConfig(
        channels=(512, 256, 128, 32, 16), blocks=1, expansion=1, latent_dim=128, principal=128, r1=40, r2=40
    )
    """Both networks and their game."""
    mixed_precision: Precision = "bf16"
    """Convolutions and matrix products in bf16; "no" on processors without it."""
    batch_size: int = 32
    """Small: more steps teach more than smoother ones."""
    optim: OptimConfig = OptimConfig(lr=5e-4, betas=(0.0, 0.99), weight_decay=0.0)
    """Of both networks. Momentum would push on to where the other network has already left."""
    ema: float = 0.1
    """Width of the average of the weights, relative to the length of the run."""
    evaluate_every: int | None = 500
    """Steps between looks at the game's health: distance and coverage of 512 samples, scores of held-out faces."""


def main(recipe: GANRecipe) -> Path:
    device = processes().device
    codec = None if recipe.codec is None else load_codec(recipe.codec, recipe.size).to(device)
    model: Any = GAN(replace(recipe.model, size=recipe.size, latents=codec and prior_shape(codec, codes=False)))
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)  # after what cannot be has been refused
    began = time.monotonic()
    if codec is not None:
        codec.prepare(image_batches(data.split("train"), limit=2048, device=device, spread=True))
        model = latent = Latent.over(codec, model).to(device)
        data = with_latents(data, latent.encode, latent.latents_name, cache_folder(), recipe.flip, device)
    return fit(model, data, replace(recipe, startup=recipe.startup + time.monotonic() - began))


if __name__ == "__main__":
    run(main, GANRecipe, "gan")
