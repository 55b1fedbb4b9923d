"""Supervised fine-tuning: a multimodal model learns the answers of conversations alone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import genmodels
from genmodels.data import open_data
from genmodels.latent import Latent
from genmodels.sampling import processes
from genmodels.saving import trained_minutes
from genmodels.shipped import locate
from genmodels.training.dry_run import dry_run
from genmodels.training.fit import fit
from genmodels.training.pipeline import with_cached_latents
from genmodels.training.recipe import check_recipe
from genmodels.training.tracking import check_tracker


def train_sft(recipe: Any) -> Path:
    """Fine-tune a saved model on conversations, and return the run folder.

    The folder is that of an ordinary model of the same family.

    Args:
        recipe: a `PriorRecipe` with the field run.

    Raises:
        ValueError: if the model does not both draw images and answer questions, or something else
            does not fit together.
    """
    began = time.monotonic()
    check_tracker(recipe.track)
    if recipe.run is None:
        raise ValueError("give the run of a multimodal model: genmodels train sft RUN")
    run = locate(recipe.run)
    if not run.is_dir():
        raise ValueError(f"{run}: no such run folder")
    model = genmodels.load(str(run))
    if not (model.can("sample") and model.can("converse")):
        raise ValueError(
            f"{run} is a {model.kind}, which does not both draw images and answer questions: train a model with "
            "genmodels train multimodal first"
        )
    size = model.config.size
    tuned = Latent.over(model.codec, model.prior.learning_answers()).to(processes().device)
    tuned.use_safety_checker(model.safety_checker)
    packing = time.monotonic()
    data = open_data(recipe.data, recipe.root, size, recipe.crop)
    began += time.monotonic() - packing
    data, encoding = with_cached_latents(data, tuned, recipe, processes().device)
    startup = recipe.startup + time.monotonic() - began
    ready = replace(recipe, run=run, size=size, parent_minutes=trained_minutes(run), startup=startup)
    return dry_run(tuned, data, check_recipe(ready), encoding) if recipe.dry_run else fit(tuned, data, ready)
