"""Measure FD and sampling speed of each diffusion solver by number of network evaluations.

python benchmarks/solvers.py runs/ldm --data celeba --root PATH --json solvers.json
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tyro.conf import Positional

from genmodels import sampling
from genmodels.cli.arguments import check_free, load
from genmodels.data import open_data
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
class Settings:
    run: Positional[str]
    """Run folder of a diffusion model."""
    data: str = "toyfaces"
    """toyfaces, celeba, folder, or the path of a packed directory."""
    root: Path | None = None
    """Folder with the images of celeba or folder."""
    schedule: str | None = None
    """Time schedule. None: the default of the process."""
    shift: float = 1.0
    """Shift of the time schedule of a flow towards noise."""
    n: int = 1000
    """Number of samples of each measurement, of seed 0."""
    evaluations: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of network evaluations per image."""
    json: Path | None = None
    """File to write the results to."""
    save: Path | None = None
    """Folder to save the samples of every measurement to, as .npy files."""
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
        data = open_data(s.data, s.root, model.config.size)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
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
            if s.save is not None:
                s.save.mkdir(parents=True, exist_ok=True)
                np.save(s.save / f"{name.replace(', ', '-').replace(' ', '')}-{evaluations}.npy", samples)
            distance = frechet_distance(extract(Images(samples, name), extractor, progress=False, cached=False), real)
            rows.append({"solver": name, "evaluations": evaluations, "fd_faces": distance, "images_per_second": speed})
            print(
                f"{name:14} {evaluations:4} evaluations   FD-faces {distance:.3f}   {speed:6.1f} images/s", flush=True
            )
    if s.json is not None:
        s.json.parent.mkdir(parents=True, exist_ok=True)
        s.json.write_text(
            json.dumps(
                {"run": Path(s.run).name, "schedule": s.schedule, "shift": s.shift, "n": s.n, "rows": rows}, indent=2
            )
            + "\n"
        )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
