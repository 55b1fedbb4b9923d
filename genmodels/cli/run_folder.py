"""What a run folder records about its model: the recipe, and the last line of the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmodels.reading import read_yaml
from genmodels.saving import EarlierMinutes, from_settings, read_last_line, trained_minutes
from genmodels.shipped import locate
from genmodels.usage import say

if TYPE_CHECKING:
    from genmodels.evaluation.results import Subject


@dataclass(frozen=True)
class Trained(EarlierMinutes):
    """What config.yaml of a run records about its data and its training."""

    data: str | None = None
    root: Path | None = None
    crop: str | None = None
    fingerprint: str | None = None
    """Fingerprint of the images."""
    ema: float = 0.0
    judges: tuple[str, ...] = ()
    """Hashes of the weights of networks that chose its preference pairs (genmodels prefer)."""


def read_recipe(run: str) -> dict[str, Any]:
    """Return the settings in RUN/config.yaml; {} if there are none.

    Raises:
        ValueError: if the file is damaged.
    """
    file = locate(run) / "config.yaml"
    if not file.is_file():
        return {}
    settings = read_yaml(file)
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not a recipe: the file is damaged")
    return settings


def read_trained(run: str) -> Trained:
    """Return what RUN/config.yaml records about the data and the training of a run.

    Raises:
        ValueError: if the file is damaged, or a setting has another type.
    """
    return from_settings(Trained, read_recipe(run), f"{locate(run) / 'config.yaml'}")


def last_metrics(run: str) -> dict[str, Any]:
    """Return the numbers in the last complete line of RUN/metrics.jsonl; {} if there is none.

    Damaged lines are named on standard error.
    """
    return read_last_line(locate(run) / "metrics.jsonl", say)


def read_subject(run: str, family: str) -> Subject:
    """Return what an evaluation records about a model: its kind of weights and its training.

    The minutes of a model over a codec include those of the codec.
    """
    from genmodels.evaluation.results import Subject

    recipe, last = read_trained(run), last_metrics(run)
    weights = "" if not read_recipe(run) else "EMA" if recipe.ema else "raw"
    training = {name: last[key] for name, key in (("images", "images"), ("steps", "step")) if key in last}
    if "elapsed" in last:
        training["minutes"] = trained_minutes(locate(run))
    return Subject(run, family, weights, training=training)
