"""What a run records about itself: its actual settings, its identity and a line that describes it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from genmodels.base import Model
from genmodels.data import SOURCES
from genmodels.data.packed import IN_MEMORY, Origin, Packed
from genmodels.modes import computes_bf16
from genmodels.saving import to_dict
from genmodels.training.checkpoint import State
from genmodels.training.command_line import actual_settings, changed_paths, to_yaml
from genmodels.training.folder import put_aside
from genmodels.training.layout import Layout
from genmodels.training.recipe import Recipe
from genmodels.writing import write_text


def as_trained(recipe: Recipe, model: Model, data: Packed) -> Recipe:
    """Return `recipe` with the actual data and the actual config of the model.

    They can differ from those of the recipe if fit() is called from Python.
    """
    origin = data.origin or Origin(IN_MEMORY)
    changes: dict[str, Any] = {"data": origin.data, "root": origin.root, "crop": origin.crop, "size": data.size}
    if any(field.name == "model" for field in fields(recipe)):
        changes["model"] = model.trained.config
    return replace(recipe, name=recipe.name or model.trained.family, **changes)


def write_config(model: Model, recipe: Recipe, data: Packed) -> None:
    """Write config.yaml into the run folder. A new run puts aside what it would replace.

    In addition to the recipe, it records what `actual_settings` returns and the fingerprint of the
    data. Paths are absolute, so that they mean the same from any folder.
    """
    paths = changed_paths(recipe, Path.absolute)
    if recipe.data not in SOURCES and Path(recipe.data).exists():
        paths["data"] = str(Path(recipe.data).absolute())
    recipe = replace(recipe, **paths)
    fingerprint = (data.origin and data.origin.fingerprint) or data.fingerprint
    text = to_yaml(recipe, recipe.name, fingerprint=fingerprint, **actual_settings(model, recipe))
    if not recipe.resume:
        put_aside(recipe.output, text)
    write_text(recipe.output / "config.yaml", text)


def identity_of(model: Model, data: Packed, recipe: Recipe) -> dict[str, Any]:
    """Return the settings that must not change when a run is resumed.

    They are the model, the data, and the settings that determine the order of the batches.
    """
    return {
        "family": model.family,
        "model": to_dict(model.config),
        "data": data.fingerprint,
        "seed": recipe.seed,
        "batch_size": recipe.batch_size,
        "flip": recipe.flip,
    }


def summary(model: Model, data: Packed, recipe: Recipe, accelerator: Accelerator, state: State, layout: Layout) -> str:
    """Return one line that describes the run: model, size, data, length and devices."""
    begin = f"resuming at step {state.step:,}" if recipe.resume else "training"
    count = sum(p.numel() for p in model.parameters())
    length = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.minutes:g} minutes"
    precision: str = recipe.mixed_precision
    if precision in ("bf16", "fp8") and not computes_bf16(accelerator.device):
        precision += " (slow on this processor, which has no instructions for it: try --mixed-precision no)"
    where = f"{accelerator.num_processes} x {accelerator.device.type}{layout.describe()}, precision {precision}"
    images = f"{len(data):,} images of {data.source}"
    return f"{begin}: {model.kind}, {count:,} parameters, {images}, {length}, {where}, into {recipe.output}"
