"""Measure FD and sampling speed of each diffusion solver by number of network evaluations.

python benchmarks/solvers.py runs/ldm --data celeba --root PATH --json solvers.json
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import tyro
from shared import RunSettings

from genmodels import sampling
from genmodels.evaluation.distances import frechet_distance
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images

SOLVERS: dict[str, dict[str, Any]] = {
    "euler": {"solver": "euler"},
    "heun": {"solver": "heun"},
    "dpm": {"solver": "dpm"},
    "unipc": {"solver": "unipc"},
    "ddim, eta 1": {"solver": "ddim", "eta": 1.0},
    "dpm-sde": {"solver": "dpm-sde"},
}


@dataclass(frozen=True)
class Settings(RunSettings):
    """The model must be a diffusion model."""

    shift: float = 1.0
    """Shift of the time schedule of a flow towards noise."""
    evaluations: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of network evaluations per image."""


def main(settings: Settings) -> None:
    s = settings
    model, data = s.open()
    extractor = load_extractor("faces")
    real = extract(Images(data.split("valid").images, "validation images"), extractor)
    rows = []
    for name, options in SOLVERS.items():
        for evaluations in s.evaluations:
            # Heun evaluates the network twice per step and once in the last step, so it uses one
            # evaluation less than an even number.
            steps = (evaluations + 1) // 2 if name == "heun" else evaluations
            began = time.monotonic()
            samples = sampling.sample(
                model, s.n, 0, steps=steps, schedule=s.schedule, shift=s.shift, progress=False, **options
            )
            speed = s.n / (time.monotonic() - began)
            s.save_samples(f"{name.replace(', ', '-').replace(' ', '')}-{evaluations}", samples)
            distance = frechet_distance(extract(Images(samples, name), extractor, progress=False, cached=False), real)
            rows.append({"solver": name, "evaluations": evaluations, "fd_faces": distance, "images_per_second": speed})
            print(
                f"{name:14} {evaluations:4} evaluations   FD-faces {distance:.3f}   {speed:6.1f} images/s", flush=True
            )
    s.write(rows, shift=s.shift)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
