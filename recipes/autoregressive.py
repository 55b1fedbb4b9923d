"""Train an autoregressive model: over raw pixels, or, with --codec, a prior over the codes of a trained VQ-VAE.

genmodels train autoregressive --size 32 --output runs/pixels --minutes 20
genmodels train vqvae --data celeba --root PATH --output runs/vqvae --minutes 10
genmodels train autoregressive --data celeba --root PATH --codec runs/vqvae --output runs/ar --minutes 20
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.codecs import load_codec
from genmodels.data import cache_folder, open_data
from genmodels.data.latents import with_latents
from genmodels.latent import Latent
from genmodels.sampling import processes
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig, Precision, Recipe, run


@dataclass(frozen=True)
class AutoregressiveRecipe(Recipe):
    """Everything that decides the training of an autoregressive model."""

    codec: Path | None = None
    """Folder of a trained VQ-VAE, or of a diffusers VQModel: the model is a prior over its codes. None: over pixels."""
    cache: bool = True
    """Compute the codes of all images once, before training, and keep them; else anew in every step."""
    model: AutoregressiveConfig = AutoregressiveConfig()
    """The alphabet, the transformer, and what it can be asked for."""
    mixed_precision: Precision = "bf16"
    """Matrix products in bf16; "no" on processors without it. Softmax, norms and the loss are fp32 always."""
    batch_size: int = 64
    """Images per step."""
    optim: OptimConfig = OptimConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0)
    """The optimiser."""


def main(recipe: AutoregressiveRecipe) -> None:
    config = replace(recipe.model, size=recipe.size)
    codec = None if recipe.codec is None else load_codec(recipe.codec, recipe.size, codes=True)
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)
    if codec is None:
        fit(Autoregressive(config), data, recipe)
        return
    began = time.monotonic()
    prior = Autoregressive(replace(config, codes=codec.latent_shape, codebook_size=codec.codebook_size))
    model = Latent.over(codec, prior).to(device := processes().device)
    if recipe.cache:
        data = with_latents(data, model.encode, model.latents_name, cache_folder(), recipe.flip, device)
    fit(model, data, replace(recipe, startup=recipe.startup + time.monotonic() - began))  # --minutes counts the codes


if __name__ == "__main__":
    run(main, AutoregressiveRecipe, "autoregressive")
