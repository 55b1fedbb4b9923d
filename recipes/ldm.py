"""Latent diffusion: `genmodels train unet --codec CODEC` under a name of its own.

genmodels train vqvae --output runs/vqvae --minutes 10
genmodels train ldm --codec runs/vqvae --output runs/ldm --minutes 20
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, PriorRecipe


@dataclass(frozen=True)
class LDMRecipe(PriorRecipe):
    """Settings of the training of a U-Net on the latents of a codec: the defaults of `unet
    --codec`."""

    shown = (
        *("codec", "model.process", "model.condition.attributes", "model.condition.classes"),
        *("model.channels", "model.blocks", "model.patch"),
    )

    codec: Path = Path("runs/vqvae")
    """Run folder of a trained codec (vqvae, vae, ae, kl or tiny), or folder of a diffusers
    AutoencoderKL, AutoencoderTiny or VQModel, whose latents the model is trained on."""
    model: UNetConfig = UNetConfig(channels=(80, 160), blocks=1, gaussian=512, conditional_mean=True)
    mixed_precision: Precision = "auto"
    batch_size: int = 64
    optim: OptimConfig = OptimConfig(lr=2e-3, clip=1.0)
    ema: float = 0.1


if __name__ == "__main__":
    run(partial(train, UNet), LDMRecipe, "ldm")
