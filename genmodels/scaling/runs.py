"""From run folders to a table: the counts and the held-out loss of each run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import genmodels
from genmodels.data import open_data
from genmodels.reading import read_json, read_yaml
from genmodels.sampling import processes
from genmodels.saving import from_settings, read_last_line
from genmodels.scaling.counting import CONVENTION, Count, count
from genmodels.scaling.held_out import HeldOut, held_out_loss
from genmodels.scaling.table import Table, make_table
from genmodels.writing import write_json

MEASURED = "scaling.json"
"""File in a run folder with its counts and its held-out loss, so that they are computed once."""
FORMAT = 1
HALF_LIFE = 15.4
"""Number of repetitions after which repeated data has lost most of its value: R* of arXiv 2305.16264,
measured on text."""


def effective_images(seen: float, unique: float) -> float:
    """Return the number of new images that are worth as much as `seen` images, of which `unique` are
    different: U + U R* (1 - exp(-R / R*)) for R repetitions (arXiv 2305.16264, equation 5)."""
    if seen <= unique:
        return seen
    repetitions = seen / unique - 1
    return unique * (1 + HALF_LIFE * (1 - float(np.exp(-repetitions / HALF_LIFE))))


def run_folders(places: Sequence[Path]) -> list[Path]:
    """Return the run folders among `places`, and those directly inside of them.

    Raises:
        ValueError: if a place is neither a run folder nor contains one; names it.
    """
    found = []
    for place in places:
        inside = [place] if is_finished(place) else sorted(p for p in place.glob("*") if is_finished(p))
        if not inside:
            raise ValueError(f"{place} is not the folder of a finished run, and contains none")
        found += inside
    return found


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a run that has reached its --steps, or a model of a run of --minutes."""
    if not all((folder / name).is_file() for name in ("config.json", "config.yaml", "metrics.jsonl")):
        return False
    settings = read_yaml(folder / "config.yaml")
    steps = settings.get("steps") if isinstance(settings, dict) else None
    return steps is None or read_last_line(folder / "metrics.jsonl").get("step", 0) >= steps


def measured(folder: Path) -> dict[str, Any]:
    """Return the counts and the held-out loss of a finished run, which are computed at the first call
    and stored in the folder.

    Raises:
        ValueError: if the run cannot be used; names it.
    """
    step = read_last_line(folder / "metrics.jsonl").get("step")
    file = folder / MEASURED
    if file.is_file():
        stored = read_json(file)
        if isinstance(stored, dict) and stored.get("format") == FORMAT and stored.get("step") == step:
            return stored
    settings = read_yaml(folder / "config.yaml")
    model = genmodels.load(folder).to(processes().device)
    root = settings.get("root")
    data = open_data(settings["data"], Path(root) if root else None, settings["size"], settings.get("crop"))
    try:
        loss, counts = held_out_loss(model, data), count(model)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    unique = len(data.split("train"))
    whole = {
        "format": FORMAT,
        "step": step,
        "family": model.trained.family,
        "fingerprint": data.fingerprint,
        "codec": model.latents_name if model.can("prior") else "",
        "unique-images": unique,
        "convention": CONVENTION,
        "loss": asdict(loss),
        "count": asdict(counts),
    }
    write_json(file, whole, indent=2)
    return whole


def table_of(folders: Sequence[Path], say: Callable[[str], object]) -> Table:
    """Return the table of finished runs.

    Args:
        folders: run folders.
        say: called with a line for each run that is measured.

    Raises:
        ValueError: if a run cannot be used, or they do not belong together.
    """
    rows = []
    for number, folder in enumerate(folders, start=1):
        if not (folder / MEASURED).is_file():
            say(f"{number}/{len(folders)}  {folder}: counting, and measuring the held-out loss")
        rows.append(row_of(folder))
    return make_table(rows, ", ".join(dict.fromkeys(str(folder.parent) for folder in folders)))


def row_of(folder: Path) -> dict[str, str]:
    """Return the row of one run."""
    stored = measured(folder)
    where = str(folder / MEASURED)
    counts, loss = from_settings(Count, stored["count"], where), from_settings(HeldOut, stored["loss"], where)
    seen = float(read_last_line(folder / "metrics.jsonl")["images"])
    images = effective_images(seen, stored["unique-images"])
    numbers = {
        "parameters": counts.parameters,
        "tokens": images * counts.tokens,
        "flops": seen * counts.flops,
        "loss": loss.value,
    }
    codec = f", codec {stored['codec']}" if stored["codec"] else ""
    words = {
        "metric": loss.metric,
        "protocol": f"{stored['family']}, {loss.images:,} validation images{codec}",
        "data": str(stored["fingerprint"]),
        "convention": str(stored["convention"]),
    }
    return {"name": folder.name} | {name: repr(value) for name, value in numbers.items()} | words
