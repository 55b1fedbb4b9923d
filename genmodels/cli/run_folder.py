"""What a run folder records about its model: the recipe, and the last line of the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmodels.saving import read_last_line

if TYPE_CHECKING:
    from genmodels.evaluation.results import Subject


def read_recipe(run: str) -> dict[str, Any]:
    """Return the settings in RUN/config.yaml; {} if there are none.

    Raises:
        ValueError: if the file is damaged.
    """
    import yaml

    file = Path(run) / "config.yaml"
    if not file.is_file():
        return {}
    try:
        settings = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML ({' '.join(str(error).split())}); the file is damaged") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not a recipe: the file is damaged")
    return settings


def last_metrics(run: str) -> dict[str, Any]:
    """Return the last complete line of RUN/metrics.jsonl; {} if there is none."""
    return read_last_line(Path(run) / "metrics.jsonl")


def read_subject(run: str, family: str) -> Subject:
    """Return what an evaluation records about a model: its kind of weights and its training.

    The minutes of a model over a codec include those of the codec.
    """
    from genmodels.evaluation.results import Subject

    recipe, last = read_recipe(run), last_metrics(run)
    weights = "" if not recipe else "EMA" if recipe.get("ema") else "raw"
    training = {name: last[key] for name, key in (("images", "images"), ("steps", "step")) if key in last}
    if "elapsed" in last:
        training["minutes"] = last["elapsed"] / 60 + recipe.get("codec_minutes", 0.0)
    return Subject(run, family, weights, training=training)
