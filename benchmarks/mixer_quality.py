"""Compare mixers and experts at equal minutes and at equal FLOPs, by their held-out loss.

    genmodels data pack celeba --root PATH --size 32 --out packed/celeba32
    python benchmarks/mixer_quality.py autoregressive --data packed/celeba32 --out runs/mixers

For each of `--seeds`, every variant of the transformer is trained for `--minutes`. The FLOPs of the
variant that computed least in that time are the common budget: the others are trained again, with as
many steps as it pays for. `--jobs` trainings run at a time, each with its share of the cores, so run
nothing else at the same time. A benchmark that was stopped continues with the same command.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

import genmodels
from genmodels.data import open_data
from genmodels.data.threads import cores
from genmodels.reading import read_json_lines
from genmodels.saving import read_last_line
from genmodels.scaling.counting import count
from genmodels.scaling.held_out import held_out_loss
from genmodels.scaling.runs import is_finished

MIXERS = "--model.transformer.mixers"
VARIANTS: dict[str, list[str]] = {
    "attention": [],
    "mamba2": [MIXERS, "mamba2"],
    "hybrid": [MIXERS, "mamba2", "mamba2", "attention"],
    "experts": ["--model.transformer.experts.count", "8", "--model.transformer.experts.top-k", "2"],
}


@dataclass(frozen=True)
class Settings:
    """What is trained, and on what."""

    family: Positional[Literal["autoregressive", "dit"]]
    """Family of the models."""
    data: str
    """A packed directory, or toyfaces."""
    out: Path
    """Folder for the runs and results.json."""
    variants: tuple[str, ...] = ("attention", "mamba2", "hybrid")
    """Which of attention, mamba2, hybrid (two blocks of mamba2, one of attention) and experts."""
    minutes: float = 4.0
    """Minutes of each training of the first kind."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""
    images: int = 2048
    """Number of validation images of the loss."""
    jobs: int = 1
    """Number of trainings at a time."""
    further: str = ""
    """Further flags of all trainings, such as --further="--size 32 --batch-size 16"."""


def main(s: Settings) -> None:
    """Train the models and print the table."""
    run_all(s, {f"{name}-s{seed}": [*VARIANTS[name], "--minutes", str(s.minutes)] for name, seed in runs(s)})
    equal = {}
    for seed in s.seeds:
        spent = {name: row_of(s, s.out / f"{name}-s{seed}") for name in s.variants}
        budget = min(row["flops"] for row in spent.values())
        for name, row in spent.items():
            if row["flops"] > 1.02 * budget:
                steps = round(row["steps"] * budget / row["flops"])
                equal[f"{name}-s{seed}-flops"] = [*VARIANTS[name], "--steps", str(steps)]
    run_all(s, equal)
    table = Table("", "images", "FLOPs", "loss at equal minutes", "loss at equal FLOPs", "MaxVio")
    results: dict[str, Any] = {"settings": repr(s), "runs": {}}
    for name in s.variants:
        first = [row_of(s, s.out / f"{name}-s{seed}") for seed in s.seeds]
        places = [
            f"{name}-s{seed}-flops" if f"{name}-s{seed}-flops" in equal else f"{name}-s{seed}" for seed in s.seeds
        ]
        second = [row_of(s, s.out / place) for place in places]
        violation = max_violation(s.out / f"{name}-s{s.seeds[0]}")
        table.add_row(
            name,
            f"{statistics.mean(row['images'] for row in first):,.0f}",
            f"{statistics.mean(row['flops'] for row in second):.2e}",
            spread([row["loss"] for row in first]),
            spread([row["loss"] for row in second]),
            "" if violation is None else f"{violation:.3f}",
        )
        results["runs"][name] = {"equal minutes": first, "equal FLOPs": second, "MaxVio": violation}
    Console().print(table)
    (s.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def runs(s: Settings) -> list[tuple[str, int]]:
    """Return every variant with every seed, seed by seed."""
    return [(name, seed) for seed in s.seeds for name in s.variants]


def run_all(s: Settings, flags: dict[str, list[str]]) -> None:
    """Train the runs that are not finished."""
    left = [name for name in flags if not ((s.out / name).exists() and is_finished(s.out / name))]
    with ThreadPoolExecutor(s.jobs) as pool:
        list(pool.map(lambda name: train(s, name, flags[name]), left))


def train(s: Settings, name: str, flags: list[str]) -> None:
    """Train one model; its output goes to a file beside its folder."""
    s.out.mkdir(parents=True, exist_ok=True)
    seed = name.split("-s")[1].split("-")[0]
    words = ["train", s.family, "--output", str(s.out / name), "--data", s.data, "--seed", seed]
    words += [*flags, *shlex.split(s.further)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // s.jobs))}
    with open(s.out / f"{name}.txt", "ab") as log:
        command = [sys.executable, "-m", "genmodels", *words]
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
    row = row_of(s, s.out / name)
    print(f"{name}: {row['images']:,.0f} images, {row['flops']:.3g} FLOPs, {row['loss']:.4f}", flush=True)


def row_of(s: Settings, run: Path) -> dict[str, float]:
    """Return the steps, images, FLOPs and held-out loss of a run, measured once and stored beside it."""
    file, last = run.with_suffix(".json"), read_last_line(run / "metrics.jsonl")
    if not file.is_file():
        model = genmodels.load(run)
        loss = held_out_loss(model, open_data(s.data, None, model.config.size), limit=s.images)
        row = {"steps": last["step"], "images": last["images"], "flops": last["images"] * count(model).flops}
        file.write_text(json.dumps(row | {"loss": loss.value}) + "\n")
    stored: dict[str, float] = json.loads(file.read_text())
    return stored


def max_violation(run: Path) -> float | None:
    """Return the mean of MaxVio over the last tenth of a run, or None without experts."""
    lines = read_json_lines(run / "metrics.jsonl")
    found = [line["experts/max_violation"] for line in lines if "experts/max_violation" in line]
    return statistics.mean(found[-max(1, len(found) // 10) :]) if found else None


def spread(values: list[float]) -> str:
    """Return the mean of values, and their standard deviation if there are several."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
