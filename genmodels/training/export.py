"""Export of the EMA model and its model card to the run folder, from which load() reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from genmodels.base import Model
from genmodels.card import NO_LICENCE, model_card
from genmodels.data.packed import Packed
from genmodels.saving import MODEL_FILES
from genmodels.training.checkpoint import State
from genmodels.training.command_line import actual_settings, changed_paths, to_yaml
from genmodels.training.log import in_words
from genmodels.training.recipe import Recipe
from genmodels.writing import replacing_files, write_text

PRIVATE = ("root", "output")
"""Settings that are left out of the model card, because they are paths on the user's machine."""


def export_model(ema: Model, output: Path, card: str) -> None:
    """Write model.safetensors, config.json and README.md to the run folder, atomically.

    Args:
        ema: model with the averaged weights.
        output: the run folder.
        card: contents of README.md.
    """
    # Weights first: a folder with a config.json is a complete model.
    with replacing_files(output, (*ema.further_files, *MODEL_FILES, "README.md")) as folder:
        ema.save_pretrained(folder)
        write_text(folder / "README.md", card)


def training_card(
    model: Model,
    recipe: Recipe,
    state: State,
    data: Packed,
    processes: int,
    picture: str,
    metrics: Mapping[str, float | None],
) -> str:
    """Return README.md of a run: metadata for the Hub, samples, how to use and to train the model.

    Args:
        model: the trained model.
        recipe: settings of the run. All are listed, except for paths on this machine.
        state: progress of the run.
        data: the training images.
        processes: number of processes of the run.
        picture: Markdown of a picture in the run folder, or "".
        metrics: last line of metrics.jsonl.
    """
    name = recipe.name or model.family
    # Of other paths, such as that of a codec, only the name is shown.
    local = changed_paths(recipe, lambda path: Path(path.name))
    shared = replace(recipe, data=Path(recipe.data).name, **local)
    settings = to_yaml(shared, name, without=PRIVATE, **actual_settings(model, recipe))
    rows = "".join(f"| {name} | {value:.6g} |\n" for name, value in metrics.items() if value is not None)
    crop = f", crop {data.crop}" if data.crop else ""
    parts = {"codec": getattr(recipe, "codec_minutes", 0.0), "text encoder": getattr(recipe, "text_minutes", 0.0)}
    parts["parent"] = getattr(recipe, "parent_minutes", 0.0)
    others = [f"{in_words(60 * minutes)} of its {part}" for part, minutes in parts.items() if minutes]
    after = f" (and {' and '.join(others)})" if others else ""
    parameters = sum(p.numel() for p in model.parameters())
    training = (
        f"{parameters:,} parameters, trained by genmodels on {len(data):,} images of {data.source}{crop}:\n"
        f"{state.step:,} steps of {recipe.batch_size} images ({state.step * recipe.batch_size:,} images in all) in\n"
        f"{in_words(state.elapsed)}{after} on {processes} process(es). {state.skipped:,} steps were skipped because a\n"
        "loss or gradient was not finite. The weights are an average over training (EMA)."
    )
    sections = (
        f"## Training\n\nTo train this model again: `genmodels train {name} --config config.yaml`, with config.yaml\n\n"
        f"```yaml\n{settings}```\n\n## Last training metrics\n\n| metric | value |\n|---|---|\n{rows}"
    )
    return model_card(model, data.manifest.get("license", NO_LICENCE), picture, training, sections)
