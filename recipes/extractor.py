"""Feature extractor of one's own images, trained without labels, for evaluate --extractors own=RUN.

accelerate launch recipes/extractor.py --data PACK --output runs/extractor --minutes 20
genmodels evaluate runs/vae --extractors own=runs/extractor
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from genmodels.evaluation.learned import ExtractorConfig, LearnedExtractor
from genmodels.training.command_line import run
from genmodels.training.pipeline import train
from genmodels.training.recipe import OptimConfig, Precision, Recipe


@dataclass(frozen=True)
class ExtractorRecipe(Recipe):
    """Settings of the training of an extractor."""

    shown = ("model.temperature", "model.damage_weight")

    model: ExtractorConfig = ExtractorConfig()
    mixed_precision: Precision = "auto"
    optim: OptimConfig = OptimConfig(lr=3e-3, weight_decay=0.02, clip=5.0)


if __name__ == "__main__":
    run(partial(train, LearnedExtractor), ExtractorRecipe, "extractor")
