"""Supervised fine-tuning (SFT) of a multimodal model: only answers are learned, text or images.

genmodels train multimodal --codec runs/vqvae --output runs/multimodal --minutes 20
genmodels train sft runs/multimodal --output runs/sft --minutes 10
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional, Suppress

from genmodels.alignment.sft import train_sft
from genmodels.training.command_line import run as run_recipe
from genmodels.training.recipe import OptimConfig, PriorRecipe


@dataclass(frozen=True)
class SFTRecipe(PriorRecipe):
    """Settings of supervised fine-tuning."""

    records_model = False
    shown = ("run",)

    run: Positional[Path | None] = None
    """Run folder of a pre-trained multimodal model."""
    batch_size: int = 32
    optim: OptimConfig = OptimConfig(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0, warmup=20, clip=1.0)

    # They are those of the model.
    size: Suppress[int | None] = None
    codec: Suppress[Path | None] = None
    text: Suppress[Path | None] = None


if __name__ == "__main__":
    run_recipe(train_sft, SFTRecipe, "sft")
