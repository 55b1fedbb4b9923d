"""Language model: a causal transformer over the conversations that LLaVA learns, without images.

genmodels train lm --data celeba --root PATH --output runs/lm --minutes 5
genmodels train lm --output runs/lm --minutes 2    # on procedural faces
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from genmodels.lm import LM, LMConfig
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Recipe


@dataclass(frozen=True)
class LMRecipe(Recipe):
    """Settings of the training of a language model."""

    shown = ("model.transformer.width", "model.transformer.depth", "model.context")

    model: LMConfig = LMConfig()
    batch_size: int = 32
    optim: OptimConfig = OptimConfig(name="muon", lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0)


if __name__ == "__main__":
    run(partial(train, LM), LMRecipe, "lm")
