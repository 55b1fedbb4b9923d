"""Models that come with the package: small models of toyfaces, such as "toyfaces/vae".

docs/models.md shows them, and recipes/toyfaces/build.py makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genmodels.reading import read_json

FOLDER = Path(__file__).parent / "models"
"""Folder of the models: models/toyfaces/vae holds "toyfaces/vae"."""
SCORES = FOLDER / "scores.json"
"""File with what was measured of each model, by name (see `read_scores`)."""


def names() -> list[str]:
    """Return the names of all models, in alphabetical order."""
    return sorted(file.parent.relative_to(FOLDER).as_posix() for file in FOLDER.glob("*/*/config.json"))


def locate(path: str | Path) -> Path:
    """Return the folder of a model that comes with the package, if `path` is its name and nothing of
    that name exists here. Any other path is returned as it is.

    Args:
        path: path or name of a model, such as "runs/vae" or "toyfaces/vae".

    Raises:
        ValueError: if it can only be such a name, and there is no model of that name.
    """
    where = Path(path)
    parts = where.parts
    if len(parts) != 2 or where.exists() or parts[0] not in {name.split("/")[0] for name in names()}:
        return where
    if where.as_posix() not in names():
        raise ValueError(f"{where}: no such folder, and no model of the package; its models are {', '.join(names())}")
    return FOLDER / where


def read_scores() -> dict[str, dict[str, Any]]:
    """Return what was measured of each model, by name.

    Keys of a model: fd_faces, floor (FD-faces of real images), samples (their number), images_per_s
    and seconds_per_image (on one core), minutes (training time, codec and text encoder included)
    and date. Those that do not apply are absent.
    """
    return read_json(SCORES) if SCORES.is_file() else {}
