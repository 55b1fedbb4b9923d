"""The run folder as others see it: the EMA model that load() reads, and its card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from genmodels.base import Generator
from genmodels.data.packed import Packed
from genmodels.training.checkpoint import State, flush
from genmodels.training.log import in_words
from genmodels.training.recipe import Recipe, to_yaml

PRIVATE = ("root", "output")
"""Settings that name places on the user's machine; a model card is made to be shared."""


def export_model(ema: Generator, output: Path, card: str) -> None:
    """Puts model.safetensors, config.json and README.md into the run folder, each replaced in one go."""
    partial = output / ".export.partial"
    shutil.rmtree(partial, ignore_errors=True)
    ema.save_pretrained(partial)
    (partial / "README.md").write_text(card)
    # Weights first: a folder with a config.json is a whole model.
    for name in ("model.safetensors", "config.json", "README.md"):
        flush(partial / name)
        os.replace(partial / name, output / name)
    shutil.rmtree(partial)


def model_card(
    model: Generator,
    recipe: Recipe,
    state: State,
    data: Packed,
    processes: int,
    grid: str,
    metrics: Mapping[str, float | None],
) -> str:
    """README.md of a run: front matter for the Hub, a grid, how to use the model, and how it was made.

    Args:
        model: for its family and size.
        recipe: the run's settings, quoted whole except for folders of this machine.
        state: how far training came.
        data: the training images.
        processes: how many trained it.
        grid: path of the sample grid, relative to the run folder.
        metrics: the last line of metrics.jsonl.
    """
    front = ModelCardData(
        library_name="genmodels",
        pipeline_tag="unconditional-image-generation",
        license=data.manifest.get("license", "other"),
        tags=["genmodels", model.family, "image-generation", "faces"],
    )
    name = recipe.name or model.family
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe) if field.name not in PRIVATE}
    # Of a folder, such as the codec's, only the name.
    local: dict[str, Any] = {key: Path(value.name) for key, value in values.items() if isinstance(value, Path)}
    settings = to_yaml(replace(recipe, data=Path(recipe.data).name, **local), name, without=PRIVATE)
    rows = "".join(f"| {name} | {value:.6g} |\n" for name, value in metrics.items() if value is not None)
    size = data.size
    crop = f", crop {data.crop}" if data.crop else ""
    parameters = sum(p.numel() for p in model.parameters())
    return f"""---
{front.to_yaml()}
---

# {model.family}, {size} x {size} pixels

![samples of seed {recipe.seed}, not selected]({grid})

{parameters:,} parameters, trained by genmodels on {len(data):,} images of {data.source}{crop}:
{state.step:,} steps of {recipe.batch_size} images ({state.step * recipe.batch_size:,} images seen) in
{in_words(state.elapsed)} on {processes} process(es). {state.skipped:,} steps were skipped: a loss or gradient was not
finite. The weights are their average over training (EMA).

## Use

```python
from genmodels import load

model = load("PATH_OR_HUB_ID")
images = model.generate(16, seed=0)  # (16, 3, {size}, {size}) in [-1, 1]
```

## Made by

`genmodels train {name} --config config.yaml`, where config.yaml is

```yaml
{settings}```

## Last training metrics

| metric | value |
|---|---|
{rows}"""
