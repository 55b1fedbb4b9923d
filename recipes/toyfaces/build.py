"""Models of the package: trains them on toyfaces, stores them in genmodels/models, and measures them.

python recipes/toyfaces/build.py             # all of them, one after the other
python recipes/toyfaces/build.py vae gan     # two of them
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import tyro
import yaml

import genmodels
from genmodels.cli import main
from genmodels.saving import halve, read_last_line
from genmodels.shipped import FOLDER, SCORES, read_scores
from genmodels.writing import write_json, write_text

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "toyfaces"
ORDER = ("vae", "vqvae", "clip", "gan", "autoregressive", "unet", "dit", "meanflow", "text")
"""All models. Those that others are trained with come first."""
KEPT = {"fd-faces": "fd_faces", "images-per-second": "images_per_s", "psnr": "psnr", "zero-shot": "zero_shot"}
"""Scores of `genmodels evaluate` that are stored, and their names in scores.json."""


@dataclass(frozen=True)
class Build:
    """What to build."""

    models: tyro.conf.Positional[tuple[str, ...]] = ORDER
    """Names in configs/toyfaces."""
    runs: Path = Path("runs/toyfaces")
    """Folder of the run folders. A run that is there already is not trained again."""
    n: int = 512
    """Number of samples that each model is measured on."""


def build(settings: Build) -> None:
    """Train, store and measure models."""
    for name in settings.models:
        config, run = CONFIGS / f"{name}.yaml", settings.runs / name
        if not (run / "config.json").is_file():
            family = yaml.safe_load(config.read_text())["family"]
            command = [sys.executable, "-m", "genmodels", "train", family, "--config", str(config)]
            subprocess.run([*command, "--output", str(run)], check=True)
        store(run, f"toyfaces/{name}")
        measure(f"toyfaces/{name}", settings)


def store(run: Path, name: str) -> None:
    """Write the model of a run into the package, in half precision, with what it records."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model = genmodels.load(run)
    model.save_pretrained(folder)
    halve(folder)
    write_text(folder / "README.md", model.generate_model_card().content.replace("PATH_OR_HUB_ID", name))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings = {key: value for key, value in settings.items() if key not in ("output", "root")}
    for part in ("codec", "text"):
        if settings.get(part):  # a model of the package: its name
            settings[part] = "/".join(Path(settings[part]).parts[-2:])
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    write_text(folder / "metrics.jsonl", json.dumps(read_last_line(run / "metrics.jsonl")) + "\n")


def measure(name: str, settings: Build) -> None:
    """Evaluate a model of the package, and record its scores."""
    metrics = settings.runs / f"{Path(name).name}.json"
    if main(["evaluate", name, "--n", str(settings.n), "--json", str(metrics), "--force"]):
        raise SystemExit(f"{name} could not be measured")
    result = json.loads(metrics.read_text())
    scores = {own: result["scores"][key]["value"] for key, own in KEPT.items() if key in result["scores"]}
    if "fd_faces" in scores:
        scores |= {"floor": result["scores"]["fd-faces"]["floor"], "samples": settings.n}
        scores["seconds_per_image"] = seconds_per_image(genmodels.load(name))
    scores["minutes"] = result["subject"]["training"]["minutes"]
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in scores.items()}
    write_json(SCORES, dict(sorted((read_scores() | {name: rounded | {"date": str(date.today())}}).items())), indent=2)


def seconds_per_image(model: Any, rounds: int = 5) -> float:
    """Return the shortest time of sampling one image, in seconds, on this machine."""
    times = []
    for seed in range(rounds):
        began = time.perf_counter()
        model.generate(1, seed)
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    torch.set_num_threads(1)
    build(tyro.cli(Build))
