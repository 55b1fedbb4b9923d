"""Direct preference optimisation (DPO) of a saved autoregressive or diffusion model.

genmodels prefer runs/ar --reward attribute=Eyeglasses --n 4000 --out pairs
genmodels train dpo runs/ar --pairs pairs --output runs/dpo
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, Suppress

from genmodels.alignment.training import train_dpo
from genmodels.training.command_line import run as run_recipe
from genmodels.training.recipe import OptimConfig, Recipe


@dataclass(frozen=True)
class DPORecipe(Recipe):
    """Settings of DPO."""

    records_model = False
    shown = ("run", "pairs", "beta")

    run: Positional[Path | None] = None
    """Run folder of the model to train further, or toyfaces/NAME. It is also the reference."""
    pairs: tuple[Path, ...] = ()
    """Folders of preference pairs, which genmodels prefer has made from samples of this model."""
    beta: float | None = None
    """Strength of the KL penalty. None: 0.1 for a model with probabilities, 1,000 for a diffusion
    model, where it multiplies differences of mean squared errors."""
    steps: int | None = 300
    """Length of the run in optimiser steps."""
    batch_size: int = 64
    """Pairs per optimiser step."""
    optim: OptimConfig = OptimConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, warmup=20, clip=1.0)
    log_every: int = 10

    # What the model and the pairs decide.
    data: Suppress[str] = "toyfaces"
    root: Suppress[Path | None] = None
    size: Suppress[int | None] = None
    crop: Suppress[str | None] = None
    flip: Suppress[bool] = False
    evaluate_every: Suppress[int | None] = None
    ema_snapshots: Suppress[int] = 0
    judges: Annotated[tuple[str, ...], Suppress] = ()
    """Hashes of the weights of the networks that chose the pairs."""


if __name__ == "__main__":
    run_recipe(train_dpo, DPORecipe, "dpo")
