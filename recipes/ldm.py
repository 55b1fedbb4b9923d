"""Train latent diffusion: a U-Net in the space of a trained codec.

genmodels train vqvae --data celeba --root PATH --output runs/vqvae --minutes 10
genmodels train ldm --data celeba --root PATH --codec runs/vqvae --output runs/ldm --minutes 20
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from genmodels.codecs import load_codec, prior_shape
from genmodels.data import cache_folder, open_data
from genmodels.data.batches import image_batches
from genmodels.data.latents import with_latents
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.latent import Latent
from genmodels.sampling import processes
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig, Precision, Recipe, run


@dataclass(frozen=True)
class LDMRecipe(Recipe):
    """Everything that decides the training of a U-Net on latents."""

    codec: Path = Path("runs/vqvae")
    """Folder of a trained VQ-VAE or VAE, or of a diffusers AutoencoderKL or VQModel."""
    cache: bool = True
    """Compute the latents of all images once, before training, and keep them; else anew in every step."""
    model: UNetConfig = UNetConfig(channels=(80, 160), blocks=1, gaussian=512)
    """The process, the network, and what it can be asked for."""
    mixed_precision: Precision = "bf16"
    """Convolutions and matrix products in bf16; "no" on processors without it."""
    batch_size: int = 64
    """Images per step."""
    optim: OptimConfig = OptimConfig(lr=2e-3, clip=1.0)
    """The optimiser."""
    ema: float = 0.1
    """Width of the average of the weights, relative to the length of the run."""


def main(recipe: LDMRecipe) -> None:
    codec = load_codec(recipe.codec, recipe.size).to(device := processes().device)
    shape = prior_shape(codec, codes=False)
    prior = UNet(replace(recipe.model, size=recipe.size, latents=shape))
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)  # after what cannot be has been refused
    began = time.monotonic()
    codec.prepare(image_batches(data.split("train"), limit=2048, device=device, spread=True))
    model = Latent.over(codec, prior).to(device)
    if recipe.cache:
        data = with_latents(data, model.encode, model.latents_name, cache_folder(), recipe.flip, device)
    fit(model, data, replace(recipe, startup=recipe.startup + time.monotonic() - began))


if __name__ == "__main__":
    run(main, LDMRecipe, "ldm")
