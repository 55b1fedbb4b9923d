"""Diffusion transformer (DiT): diffusion on pixels or, with --codec, on the latents of a codec.

genmodels train vqvae --output runs/vqvae --minutes 10
genmodels train dit --codec runs/vqvae --output runs/dit --minutes 20
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from genmodels.dit import DiT, DiTConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, PriorRecipe


@dataclass(frozen=True)
class DiTRecipe(PriorRecipe):
    """Settings of the training of a diffusion transformer."""

    shown = (
        *("codec", "align", "model.process", "model.condition.attributes", "model.condition.classes", "model.patch"),
        *("model.transformer.width", "model.transformer.depth"),
    )

    size_defaults = MappingProxyType(
        {
            128: {"model": DiTConfig(patch=8, gaussian=512, conditional_mean=True), "batch_size": 32},
            256: {"model": DiTConfig(patch=16, gaussian=512, conditional_mean=True), "batch_size": 16},
        }
    )

    model: DiTConfig = DiTConfig(gaussian=512, conditional_mean=True)
    align: str | None = None
    """Extractor whose features the tokens are aligned with (REPA): faces, inception, dinov2 or
    clip. --model.align.* sets how. None: no alignment."""
    mixed_precision: Precision = "auto"
    batch_size: int = 64
    optim: OptimConfig = OptimConfig(lr=1e-3, betas=(0.9, 0.95), clip=1.0)
    ema: float = 0.1


if __name__ == "__main__":
    run(partial(train, DiT), DiTRecipe, "dit")
