"""Multimodal model: draws images for sentences and answers questions, over a codec (Chameleon).

genmodels train vqvae --output runs/vqvae --minutes 10
genmodels train multimodal --codec runs/vqvae --output runs/multimodal --minutes 20
genmodels train sft runs/multimodal --output runs/sft --minutes 10
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from genmodels.multimodal import Multimodal, MultimodalConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, PriorRecipe


@dataclass(frozen=True)
class MultimodalRecipe(PriorRecipe):
    """Settings of the pre-training of a multimodal model."""

    shown = ("codec", "model.lm.transformer.width", "model.lm.transformer.depth", "model.drop")

    codec: Path | None = Path("toyfaces/vqvae")
    """Run folder of a trained VQ-VAE, toyfaces/vqvae, or folder of a diffusers VQModel, whose codes
    are part of the sequences."""
    model: MultimodalConfig = MultimodalConfig()
    batch_size: int = 32
    optim: OptimConfig = OptimConfig(name="muon", lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0)


if __name__ == "__main__":
    run(partial(train, Multimodal), MultimodalRecipe, "multimodal")
