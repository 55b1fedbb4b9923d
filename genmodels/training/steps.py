"""Names of the files and folders that belong to a training step."""

from __future__ import annotations

import re
from pathlib import Path


def step_name(step: int) -> str:
    """Return the name of what belongs to a training step, without a suffix: step_00020000."""
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step in a name that `step_name` returned, or None for any other name."""
    match = re.fullmatch("step_([0-9]{8})", name)
    return int(match[1]) if match else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders in checkpoints/ of a run that are named like checkpoints, oldest first.

    Links are left out, because a run writes only inside its own folder.
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in paths if step_of(p.name) is not None and p.is_dir() and not p.is_symlink())
