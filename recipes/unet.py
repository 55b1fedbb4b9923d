"""Diffusion with a U-Net: on pixels or, with --codec, on the latents of a codec (latent diffusion).

accelerate launch recipes/unet.py --data celeba --root PATH --output runs/unet --minutes 30
genmodels train unet --output runs/unet --model.process ddpm --model.ddpm.prediction eps
genmodels train unet --codec runs/vqvae --output runs/ldm --minutes 20
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, PriorRecipe

PIXELS = UNetConfig(
    patch=2, channels=(48, 96, 192), blocks=1, attention=(False, False, True), gaussian=512, conditional_mean=True
)


@dataclass(frozen=True)
class UNetRecipe(PriorRecipe):
    """Settings of the training of a U-Net."""

    shown = (
        *("codec", "model.process", "model.condition.attributes", "model.condition.classes"),
        *("model.channels", "model.blocks", "model.patch"),
    )
    codec_defaults = MappingProxyType(
        {"model": UNetConfig(channels=(80, 160), blocks=1, gaussian=512, conditional_mean=True), "batch_size": 64}
    )

    size_defaults = MappingProxyType(
        {128: {"model": replace(PIXELS, patch=4)}, 256: {"model": replace(PIXELS, patch=8)}}
    )

    model: UNetConfig = PIXELS
    mixed_precision: Precision = "auto"
    batch_size: int = 32  # small: on pixels, at so few images per second, more steps are worth more than less noise
    optim: OptimConfig = OptimConfig(lr=2e-3, clip=1.0)
    ema: float = 0.1


if __name__ == "__main__":
    run(partial(train, UNet), UNetRecipe, "unet")
