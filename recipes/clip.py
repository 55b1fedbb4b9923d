"""CLIP: an image encoder and a text encoder, trained contrastively on images and their captions.

genmodels train clip --data celeba --root PATH --output runs/clip --minutes 10
genmodels train clip --output runs/clip --minutes 3    # on procedural faces
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genmodels.clip import CLIP, CLIPConfig
from genmodels.text import Tokenizer
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Recipe


@dataclass(frozen=True)
class CLIPRecipe(Recipe):
    """Settings of the training of a CLIP."""

    shown = ("tokenizer", "model.image", "model.width", "model.loss", "model.fitting")

    model: CLIPConfig = CLIPConfig()
    tokenizer: Path | None = None
    """Another tokenizer.json, with CLIP's conventions. None: the one that ships with the package."""
    batch_size: int = 128  # the other pairs are the negatives; in ten minutes on a CPU, more steps are worth more
    optim: OptimConfig = OptimConfig(name="muon", lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1, clip=1.0)


def main(recipe: CLIPRecipe) -> Path:
    """Train a CLIP as `recipe` says, and return the run folder."""
    other = None if recipe.tokenizer is None else Tokenizer.load(recipe.tokenizer)
    return train(CLIP, recipe, tokenizer=other)


if __name__ == "__main__":
    run(main, CLIPRecipe, "clip")
