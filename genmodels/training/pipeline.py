"""From a recipe to a trained model: config, codec, data and cached latents, then `fit`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce

from genmodels.base import Model
from genmodels.codecs import load_codec
from genmodels.data import Packed, cache_folder, default_size, open_data
from genmodels.data.batches import image_batches
from genmodels.data.latents import is_cached, with_latents
from genmodels.latent import over_codec
from genmodels.prior import Prior
from genmodels.sampling import processes
from genmodels.saving import read_last_line, reset_derived
from genmodels.shipped import locate
from genmodels.text_conditions import conditioned_on_text
from genmodels.training.dry_run import dry_run
from genmodels.training.fit import fit
from genmodels.training.limits import most_images
from genmodels.training.log import in_words
from genmodels.training.recipe import PriorRecipe, Recipe, check_recipe
from genmodels.training.tracking import check_tracker
from genmodels.usage import say
from genmodels.weights import build

PREPARED, PREPARED_AT_LEAST = 2_048, 64
"""Largest and smallest number of training images that an imported codec is measured on. The number
depends on nothing but their size: the hash of the codec's weights is that of the latents, and a run
is resumed with the same ones only."""
PREPARED_PIXELS = 2**22
"""Largest number of their pixels: 1,024 images of 64 px, 64 of 256 px."""
CACHE_SHARE = 0.25
"""Largest fraction of a --minutes budget for encoding all images before training. Otherwise every
step encodes its batch."""
TIMED = 16
"""Number of images on which the time of encoding is measured."""
SHOWN = 6
"""Settings of the model that --help shows for a family without a recipe of its own."""


def train(kind: type[Model], recipe: Any, make: Callable[[Any], Model] | None = None, **parts: Any) -> Path:
    """Train a model of one family as its recipe says, and return the run folder.

    What cannot work is refused before any image is packed. Everything except packing counts towards
    --minutes. config.yaml records the config of the model that was trained, derived fields
    included.

    Args:
        kind: class of the model.
        recipe: an instance of `Recipe` with a field `model`, the config. With a field `codec` that
            is not None, the model is a prior over that codec. With a field `align` that is not
            None, the model is aligned with the features of that extractor.
        make: builds the model from its config, for one that begins with the weights of others. None:
            `kind` does.
        **parts: arguments of `kind` besides the config, such as a tokenizer.

    Raises:
        ValueError, OSError: if something does not fit together, with a message of one line.
    """
    if recipe.stages:
        from genmodels.training.staged import train_stages  # it uses this module

        return train_stages(kind, recipe, make, **parts)
    began = time.monotonic()
    check_tracker(recipe.track)
    device = processes().device
    recipe = replace(recipe, size=recipe.size or default_size(recipe.data))
    recipe = with_located_parts(recipe)
    codec, text = open_codec(kind, recipe), open_text_encoder(kind, recipe)
    config = derived_config(kind, recipe, codec)
    if text is not None:
        config = conditioned_on_text(config, text)
    extractor: str | None = getattr(recipe, "align", None)
    make = make or partial(kind, **parts)
    model: Any = None if extractor else build(lambda: make(config), "model")

    packing = time.monotonic()
    data = open_data(recipe.data, recipe.root, recipe.size, recipe.crop)
    began += time.monotonic() - packing

    if extractor:
        data, config = aligned(data, config, extractor, device)
        model = build(lambda: make(config), "model")
    if recipe.parent is not None:
        from genmodels.training.staged import begin_with

        begin_with(model, recipe.parent)
    if text is not None:
        model.use_text_encoder(text)
        recipe = replace(recipe, text_minutes=minutes_of(recipe.text))
    encoding = 0.0
    if codec is not None:
        count = most_images(PREPARED, PREPARED_PIXELS, recipe.size, PREPARED_AT_LEAST)
        images = image_batches(data.split("train"), limit=count, device=device, spread=True)
        model = combined = over_codec(codec.to(device), model, images).to(device)
        data, encoding = with_cached_latents(data, combined, recipe, device)
        recipe = replace(recipe, codec_minutes=minutes_of(recipe.codec))
    startup = recipe.startup + time.monotonic() - began
    recipe = replace(recipe, model=config, startup=startup)
    return dry_run(model, data, check_recipe(recipe), encoding) if recipe.dry_run else fit(model, data, recipe)


def with_located_parts(recipe: Any) -> Any:
    """Return `recipe` with the folders of codec and text encoder in place of names such as
    toyfaces/vqvae."""
    paths = {name: getattr(recipe, name, None) for name in ("codec", "text")}
    return replace(recipe, **{name: locate(path) for name, path in paths.items() if path is not None})


def open_codec(kind: type[Model], recipe: Any) -> Any:
    """Load the codec that a recipe names; None if it names none.

    Raises:
        ValueError: if it is not a codec for models of this kind and size.
    """
    if not isinstance(recipe, PriorRecipe) or recipe.codec is None:
        return None
    if not issubclass(kind, Prior):
        raise ValueError(f"--codec {recipe.codec}: {kind.family} models are not trained on the latents of a codec")
    return load_codec(recipe.codec, recipe.size or default_size(recipe.data), kind.learns_codes, recipe.stage > 0)


def open_text_encoder(kind: type[Model], recipe: Any) -> Any:
    """Load the text encoder that a recipe names; None if it names none.

    Raises:
        ValueError: if it is no text encoder, or models of this kind are not conditioned on text.
    """
    if not isinstance(recipe, PriorRecipe) or recipe.text is None:
        return None
    if not (issubclass(kind, Prior) and kind.reads_text):
        raise ValueError(f"--text {recipe.text}: {kind.family} models are not conditioned on text")
    from genmodels.exchange.text_encoder import load_text_encoder  # slow to import

    return load_text_encoder(recipe.text)


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
    from genmodels.evaluation.extractors import load_extractor
    from genmodels.evaluation.features import with_features

    network = load_extractor(extractor, device)
    data = with_features(data, network)
    align = replace(config.align, features=data.feature_count, weights=network.weights)
    return data, replace(config, align=align)


def with_cached_latents(data: Packed, model: Any, recipe: Any, device: torch.device) -> tuple[Packed, float]:
    """Return data with the latents of all images, if --cache asks for them and there is time.

    If encoding all images would take more than `CACHE_SHARE` of --minutes, a line says so. In a dry
    run, the latents of one image stand for those that are not cached yet. Every rank must call this.

    Returns:
        The data, and the seconds that encoding would take after a dry run.
    """
    if not recipe.cache:
        return data, 0.0
    name, flip, main = model.latents_name, recipe.flip, processes().is_main_process
    few, seconds = next(image_batches(data, TIMED, device=device)), 0.0
    if main and not is_cached(data, name, cache_folder(), flip):
        for images in (few[:1], few):  # the first is a warm-up
            began = time.monotonic()
            with torch.no_grad():
                model.encode(images).cpu()  # waits for the device
        seconds = (time.monotonic() - began) / len(few) * len(data) * (1 + flip)
    seconds = float(reduce(torch.tensor(seconds, device=device), "sum"))
    if recipe.minutes is not None and seconds > CACHE_SHARE * 60 * recipe.minutes:
        if main:
            say(
                f"encoding all {len(data):,} images before training would take about {in_words(seconds)} of the "
                f"{in_words(60 * recipe.minutes)}: every step encodes its own batch, as with --no-cache"
            )
        return data, 0.0
    if recipe.dry_run and seconds:
        with torch.no_grad():
            one = model.encode(few[:1]).cpu().numpy()[None]  # (1, 1, *latent_shape)
        return replace(data, latents=np.broadcast_to(one, (len(data), 1 + flip, *one.shape[2:]))), seconds
    return with_latents(data, model.encode, name, cache_folder(), flip, device), 0.0


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
