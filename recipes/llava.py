"""LLaVA: answers questions about an image, with a CLIP and a language model (arXiv 2304.08485).

genmodels train clip --output runs/clip --minutes 3
genmodels train lm --output runs/lm --minutes 2
genmodels train llava --clip runs/clip --lm runs/lm --output runs/projector --minutes 2
genmodels train llava --projector runs/projector --output runs/llava --minutes 5
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genmodels.llava import LLaVA, LLaVAConfig
from genmodels.llava_parts import llava_parts
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Recipe


@dataclass(frozen=True)
class LLaVARecipe(Recipe):
    """Settings of the training of a LLaVA: of stage 1 with --clip and --lm, of stage 2 with --projector."""

    shown = ("clip", "lm", "projector", "model.lora")

    model: LLaVAConfig = LLaVAConfig()
    clip: Path | None = None
    """Run folder of a trained clip, or folder of a CLIPModel of transformers. Stage 1 trains a
    projector from its image features to the language model."""
    lm: Path | None = None
    """Run folder of a trained lm, or folder of a LlamaForCausalLM of transformers."""
    projector: Path | None = None
    """Run folder of stage 1. Stage 2 trains its projector and its language model."""
    batch_size: int = 32
    optim: OptimConfig = OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0)


def main(recipe: LLaVARecipe) -> Path:
    """Train a LLaVA as `recipe` says, and return the run folder."""
    recipe, make = llava_parts(recipe)
    return train(LLaVA, recipe, make)


if __name__ == "__main__":
    run(main, LLaVARecipe, "llava")
