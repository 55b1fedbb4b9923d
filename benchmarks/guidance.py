"""Measure attribute accuracy and FD of conditional samples against the guidance scale.

    python benchmarks/guidance.py runs/ldm --data celeba --root PATH --json guidance.json

Samples are conditioned on the attributes of validation faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from shared import RunSettings

from genmodels import sampling
from genmodels.conditions import Condition
from genmodels.data.rows import spread_rows
from genmodels.evaluation.conditional import attribute_accuracy
from genmodels.evaluation.distances import frechet_distance
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images


@dataclass(frozen=True)
class Settings(RunSettings):
    """The model must be conditioned on attributes and support guidance."""

    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0)
    """Guidance scales."""


def main(settings: Settings) -> None:
    s = settings
    model, data = s.open()
    if not model.conditions.attributes:
        raise SystemExit(f"{s.run}: this {model.family} was trained without attributes")
    try:
        data = data.with_attributes(model.conditions.attributes)
    except ValueError as error:
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
        s.save_samples(f"guidance-{scale:g}", samples)
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
    s.write(results)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
