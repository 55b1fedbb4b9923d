"""Train a diffusion transformer: in the space of a trained codec, or, without --codec, on pixels.

genmodels train dit --data celeba --root PATH --codec runs/vqvae --output runs/dit --minutes 20
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
from genmodels.dit import DiT, DiTConfig
from genmodels.evaluation.features import with_features
from genmodels.latent import Latent
from genmodels.sampling import processes
from genmodels.training.fit import fit
from genmodels.training.recipe import OptimConfig, Precision, Recipe, run


@dataclass(frozen=True)
class DiTRecipe(Recipe):
    """Everything that decides the training of a diffusion transformer."""

    codec: Path | None = None
    """Folder of a trained VQ-VAE or VAE, or of a diffusers AutoencoderKL or VQModel. None: over pixels."""
    model: DiTConfig = DiTConfig(gaussian=512)
    """The process, the network, and what it can be asked for."""
    mixed_precision: Precision = "bf16"
    """Matrix products in bf16; "no" on processors without it."""
    batch_size: int = 64
    """Images per step."""
    align: str | None = None
    """Extractor that tokens are aligned with (faces, inception, dinov2, clip); --model.align.* say how."""
    optim: OptimConfig = OptimConfig(lr=1e-3, betas=(0.9, 0.95), clip=1.0)
    ema: float = 0.1
    """Width of the average of the weights, relative to the length of the run."""


def main(recipe: DiTRecipe) -> Path:
    device = processes().device
    codec = None if recipe.codec is None else load_codec(recipe.codec, recipe.size).to(device)
    settings = replace(recipe.model, size=recipe.size, latents=codec and prior_shape(codec, codes=False))
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)  # after what cannot be has been refused
    began = time.monotonic()
    data = with_features(data, recipe.align, device)
    model: Any = DiT(replace(settings, align=replace(settings.align, features=data.feature_count)))
    if codec is not None:
        codec.prepare(image_batches(data.split("train"), limit=2048, device=device, spread=True))
        model = latent = Latent.over(codec, model).to(device)
        data = with_latents(data, latent.encode, latent.latents_name, cache_folder(), recipe.flip, device)
    return fit(model, data, replace(recipe, startup=recipe.startup + time.monotonic() - began))


if __name__ == "__main__":
    run(main, DiTRecipe, "dit")
