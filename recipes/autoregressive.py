"""Autoregressive model: a transformer over raw pixels or, with --codec, over the codes of a VQ-VAE.

genmodels train autoregressive --size 32 --output runs/pixels --minutes 20
genmodels train vqvae --output runs/vqvae --minutes 10
genmodels train autoregressive --codec runs/vqvae --output runs/ar --minutes 20
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, PriorRecipe


@dataclass(frozen=True)
class AutoregressiveRecipe(PriorRecipe):
    """Settings of the training of an autoregressive model."""

    shown = (
        "codec",
        "model.condition.attributes",
        "model.condition.classes",
        "model.levels",
        "model.transformer.width",
        "model.transformer.depth",
    )

    codec: Path | None = None
    """Run folder of a trained VQ-VAE, or folder of a diffusers VQModel, on whose codes the model is
    trained. None: the model is trained on pixels."""
    model: AutoregressiveConfig = AutoregressiveConfig()
    mixed_precision: Precision = "auto"  # softmax, norms and the loss are always fp32
    batch_size: int = 64
    optim: OptimConfig = OptimConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0)


if __name__ == "__main__":
    run(partial(train, Autoregressive), AutoregressiveRecipe, "autoregressive")
