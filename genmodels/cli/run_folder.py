"""What a run folder says of its model: the recipe it was made by, and the last line of its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genmodels.evaluation.results import Subject


def read_recipe(run: str) -> dict[str, Any]:
    """The settings in RUN/config.yaml; {} when there are none.

    Raises:
        ValueError: when the file is damaged.
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
    """The last whole line of RUN/metrics.jsonl; {} when there is none."""
    log, last = Path(run) / "metrics.jsonl", {}
    for line in log.read_text().splitlines() if log.is_file() else ():
        try:
            last = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
    return last


def read_subject(run: str, family: str) -> Subject:
    """What an evaluation says of a model: which weights the folder holds, and how long it was trained."""
    from genmodels.evaluation.results import Subject

    recipe, last = read_recipe(run), last_metrics(run)
    weights = "" if not recipe else "EMA" if recipe.get("ema") else "raw"
    training = {name: last[key] for name, key in (("images", "images"), ("steps", "step")) if key in last}
    training |= {"minutes": last["elapsed"] / 60} if "elapsed" in last else {}
    return Subject(run, family, weights, training=training)
