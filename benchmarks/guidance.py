"""Measure attribute accuracy and FD of conditional samples against the guidance scale.

    python benchmarks/guidance.py runs/ldm --data celeba --root PATH --json guidance.json

Samples are conditioned on the attributes of validation faces.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from genmodels import sampling
from genmodels.cli.arguments import check_free, load
from genmodels.data import open_data
from genmodels.data.rows import spread_rows
from genmodels.evaluation.conditional import attribute_accuracy
from genmodels.evaluation.distances import frechet_distance
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.types import Condition


@dataclass(frozen=True)
class Settings:
    run: Positional[str]
    """Run folder of a model that is conditioned on attributes and supports guidance."""
    data: str = "toyfaces"
    """toyfaces, celeba, folder, or the path of a packed directory."""
    root: Path | None = None
    """Folder with the images of celeba or folder."""
    n: int = 1000
    """Number of samples at each scale, of seed 0."""
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0)
    """Guidance scales."""
    schedule: str | None = None
    """Time schedule of a diffusion model. None: the default of its process."""
    json: Path | None = None
    """File to write the results to."""
    save: Path | None = None
    """Folder to save the samples of every scale to, as .npy files."""
    force: bool = False
    """Overwrite existing files."""


def main(settings: Settings) -> None:
    s = settings
    try:
        if s.json is not None:
            check_free(s.json, s.force, ".json")
        if s.save is not None and s.save.exists() and any(s.save.iterdir()) and not s.force:
            raise ValueError(f"{s.save} is not empty: choose another --save, or overwrite with --force")
        model = load(s.run)
        if not model.conditions.attributes:
            raise ValueError(f"{s.run}: this {model.family} was trained without attributes")
        data = open_data(s.data, s.root, model.config.size).with_attributes(model.conditions.attributes)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    train, valid = data.split("train"), data.split("valid")
    extractor = load_extractor("faces")
    seen, real = (extract(Images(part.images, name), extractor) for part, name in ((train, "train"), (valid, "valid")))
    rows = spread_rows(len(valid), s.n)
    requested = np.asarray(valid.attributes)[rows]
    results = []
    options: dict[str, Any] = {} if s.schedule is None else {"schedule": s.schedule}
    for scale in s.scales:
        condition = Condition(torch.from_numpy(requested).float())
        samples = sampling.sample(model, s.n, 0, condition, guidance=scale, progress=False, **options)
        if s.save is not None:
            s.save.mkdir(parents=True, exist_ok=True)
            np.save(s.save / f"guidance-{scale:g}.npy", samples)
        features = extract(Images(samples, f"guidance {scale:g}"), extractor, progress=False, cached=False)
        accuracy = attribute_accuracy(
            features,
            requested,
            seen,
            np.asarray(train.attributes),
            real,
            np.asarray(valid.attributes),
            model.conditions.attributes,
        )
        distance = frechet_distance(features, real)
        results.append({"guidance": scale, "fd_faces": distance, "accuracy": accuracy.samples, "real": accuracy.real})
        each = "  ".join(f"{name} {value:.2f}" for name, value in accuracy.samples.items())
        print(f"guidance {scale:3g}   FD-faces {distance:.3f}   {each}   (mean on real faces {accuracy.ceiling:.2f})")
    if s.json is not None:
        s.json.parent.mkdir(parents=True, exist_ok=True)
        s.json.write_text(
            json.dumps({"run": Path(s.run).name, "schedule": s.schedule, "n": s.n, "rows": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
