"""Draw a grid of samples of a conditional model: two rows per attribute, without and with it.

    python benchmarks/attribute_grid.py runs/ar --guidance 2 --out attributes.png

All rows use the same seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tyro.conf import Positional

import genmodels
from genmodels import pictures, sampling
from genmodels.cli.arguments import check_free
from genmodels.conditions import Condition


@dataclass(frozen=True)
class Settings:
    run: Positional[str]
    """Run folder of a model that is conditioned on attributes."""
    out: Path = Path("attributes.png")
    columns: int = 12
    """Number of images per row."""
    seed: int = 0
    guidance: float = 1.0
    """Guidance scale."""
    temperature: float = 1.0
    """Sampling temperature, for families that have one."""
    force: bool = False
    """Overwrite an existing file."""


def main(settings: Settings) -> None:
    try:
        check_free(settings.out, settings.force, ".png")
        model = genmodels.load(settings.run)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    if not model.conditions.attributes:
        raise SystemExit(f"{settings.run}: this {model.family} was trained without attributes")
    options: dict[str, Any] = {"guidance": settings.guidance} | (
        {"temperature": t} if (t := settings.temperature) != 1 else {}
    )
    rows = []
    for k, name in enumerate(model.conditions.attributes):
        for value in (-1.0, 1.0):
            attributes = torch.zeros(settings.columns, len(model.conditions.attributes))
            attributes[:, k] = value
            condition = Condition(attributes)
            images = sampling.sample(model, settings.columns, settings.seed, condition, **options)
            rows.append(images)
        print(f"rows {len(rows) - 1} and {len(rows)}: without and with {name}")
    pictures.save_grid(settings.out, np.concatenate(rows), columns=settings.columns)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
