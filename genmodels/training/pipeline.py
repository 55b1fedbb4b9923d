"""From a recipe to a trained model: config, codec, data and cached latents, then `fit`."""

from __future__ import annotations

import time
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

from genmodels.base import Model
from genmodels.codecs import load_codec
from genmodels.data import Packed, cache_folder, default_size, open_data
from genmodels.data.batches import image_batches
from genmodels.data.latents import with_latents
from genmodels.latent import over_codec
from genmodels.prior import Prior
from genmodels.sampling import processes
from genmodels.saving import read_last_line, reset_derived
from genmodels.training.fit import fit
from genmodels.training.recipe import PriorRecipe, Recipe
from genmodels.training.tracking import check_tracker
from genmodels.weights import build

PREPARED = 2_048
"""Training images that an imported codec is measured on."""
SHOWN = 6
"""Settings of the model that --help shows for a family without a recipe of its own."""


def train(kind: type[Model], recipe: Any) -> Path:
    """Train a model of one family as its recipe says, and return the run folder.

    What cannot work is refused before any image is packed. Everything except packing counts towards
    --minutes. config.yaml records the config of the model that was trained, derived fields
    included.

    Args:
        kind: class of the model.
        recipe: an instance of `Recipe` with a field `model`, the config. With a field `codec` that
            is not None, the model is a prior over that codec. With a field `align` that is not
            None, the model is aligned with the features of that extractor.

    Raises:
        ValueError, OSError: if something does not fit together, with a message of one line.
    """
    began = time.monotonic()
    check_tracker(recipe.track)
    device = processes().device
    recipe = replace(recipe, size=recipe.size or default_size(recipe.data))
    codec = open_codec(kind, recipe)
    config = derived_config(kind, recipe, codec)
    extractor: str | None = getattr(recipe, "align", None)
    model: Any = None if extractor else build(lambda: kind(config), "model")

    packing = time.monotonic()
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)
    began += time.monotonic() - packing

    if extractor:
        data, config = aligned(data, config, extractor, device)
        model = build(lambda: kind(config), "model")
    if codec is not None:
        images = image_batches(data.split("train"), limit=PREPARED, device=device, spread=True)
        model = combined = over_codec(codec.to(device), model, images).to(device)
        if recipe.cache:
            data = with_latents(data, combined.encode, combined.latents_name, cache_folder(), recipe.flip, device)
        recipe = replace(recipe, codec_minutes=minutes_of(recipe.codec))
    startup = recipe.startup + time.monotonic() - began
    return fit(model, data, replace(recipe, model=config, startup=startup))


def open_codec(kind: type[Model], recipe: Any) -> Any:
    """Load the codec that a recipe names; None if it names none.

    Raises:
        ValueError: if it is not a codec for models of this kind and size.
    """
    if not isinstance(recipe, PriorRecipe) or recipe.codec is None:
        return None
    if not issubclass(kind, Prior):
        raise ValueError(f"--codec {recipe.codec}: {kind.family} models are not trained on the latents of a codec")
    return load_codec(recipe.codec, recipe.size or default_size(recipe.data), kind.learns_codes)


def derived_config(kind: Any, recipe: Any, codec: Any = None) -> Any:
    """Return the config of the model, with the fields filled in that depend on other settings.

    Raises:
        ValueError: if the config cannot work at this size or over this codec.
    """
    # What a file of --config says about derived fields belongs to another run.
    config = replace(reset_derived(recipe.model, size=recipe.size))  # replace() validates it
    return config if codec is None else kind.config_over(config, codec)


def aligned(data: Packed, config: Any, extractor: str, device: Any) -> tuple[Packed, Any]:
    """Return data with the features of an extractor, and the config of a model aligned with it."""
    from genmodels.evaluation.features import with_features

    data = with_features(data, extractor, device)
    return data, replace(config, align=replace(config.align, features=data.feature_count))


def minutes_of(run: Path) -> float:
    """Return the minutes of training that a run folder records; 0 for a folder without a log."""
    return read_last_line(run / "metrics.jsonl").get("elapsed", 0.0) / 60


def recipe_for(kind: type[Model]) -> type[Recipe]:
    """Return default settings for a family without a recipe, such as one of another package."""
    config = kind.Config()
    settings = [setting.name for setting in fields(config) if setting.name != "size"]
    plain = [name for name in settings if not is_dataclass(getattr(config, name))]
    made: Any = make_dataclass(
        f"{kind.__name__}Recipe",
        [("model", kind.Config, field(default_factory=kind.Config))],
        bases=(PriorRecipe if issubclass(kind, Prior) else Recipe,),
        namespace={"shown": tuple(f"model.{name}" for name in plain[:SHOWN])},
        frozen=True,
        kw_only=True,
    )
    made.__doc__ = f"Settings of the training of {kind.__name__}."
    return made
