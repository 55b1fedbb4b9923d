"""Compare mixers and experts at equal minutes and at equal FLOPs, by their held-out loss.

    genmodels data pack celeba --root PATH --size 32 --out packed/celeba32
    python benchmarks/mixer_quality.py autoregressive --data packed/celeba32 --out runs/mixers

For each of `--seeds`, every variant of the transformer is trained for `--minutes`. The FLOPs of the
variant that computed least in that time are the common budget: the others are trained again, with as
many steps as it pays for. The learning rate warms up in 5 % of the steps of a run of the second kind.
Give about as many to those of the first by `--further="--optim.warmup N"`: their number of steps is not
known before, and with another warm-up the two kinds cannot be compared.

`--jobs` trainings run at a time, each with its share of the cores, so run nothing else at the same time.
A benchmark that was stopped continues with the same command. "images" and MaxVio (over the last tenth of
a run) are those of equal minutes.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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
    variants: tuple[Literal["attention", "mamba2", "hybrid", "experts"], ...] = ("attention", "mamba2", "hybrid")
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
    s.out.mkdir(parents=True, exist_ok=True)
    settings, file = repr(replace(s, jobs=1)), s.out / "settings.txt"
    if file.is_file() and file.read_text() != settings:
        raise SystemExit(f"{s.out} has runs of other settings ({file}): choose another folder")
    file.write_text(settings)
    length = ["--minutes", str(s.minutes)]
    pairs = [(name, seed) for seed in s.seeds for name in s.variants]
    first = run_all(s, {f"{name}-s{seed}": flags_of(name, seed, length) for name, seed in pairs})
    flags = {}
    for seed in s.seeds:
        budget = min(first[f"{name}-s{seed}"]["flops"] for name in s.variants)
        for name in s.variants:
            row = first[f"{name}-s{seed}"]
            if row["flops"] > 1.02 * budget:
                steps = round(row["steps"] * budget / row["flops"])
                length = ["--steps", str(steps), "--optim.warmup", str(round(0.05 * steps))]
                flags[f"{name}-s{seed}-flops"] = flags_of(name, seed, length)
    second = run_all(s, flags)
    table = Table("", "images", "FLOPs", "loss at equal minutes", "loss at equal FLOPs", "MaxVio")
    for name in s.variants:
        own = [f"{name}-s{seed}" for seed in s.seeds]
        equal = [second.get(f"{run}-flops", first[run]) for run in own]
        violations = [value for run in own if (value := max_violation(s.out / run)) is not None]
        table.add_row(
            name,
            f"{statistics.mean(first[run]['images'] for run in own):,.0f}",
            f"{statistics.mean(row['flops'] for row in equal):.2e}",
            spread([first[run]["loss"] for run in own]),
            spread([row["loss"] for row in equal]),
            spread(violations) if violations else "",
        )
    Console().print(table)
    results = {"settings": settings, "runs": first | second}
    (s.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def flags_of(name: str, seed: int, length: list[str]) -> list[str]:
    """Return the flags of a variant."""
    return [*VARIANTS[name], "--seed", str(seed), *length]


def run_all(s: Settings, flags: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Train the runs that are not finished, and return what `row_of` measures of each, by name."""
    left = [name for name in flags if not row_file(s, name).is_file()]
    with ThreadPoolExecutor(s.jobs) as pool:
        list(pool.map(lambda name: train(s, name, flags[name]), left))
    return {name: row_of(s, name) for name in flags}  # after the trainings, from whose cores it takes none


def train(s: Settings, name: str, flags: list[str]) -> None:
    """Train one model, or continue its training; its output goes to a file beside its folder."""
    words = ["train", s.family, "--output", str(s.out / name), "--data", s.data]
    words += [*shlex.split(s.further), *flags]
    words += ["--resume"] if any((s.out / name / "checkpoints").glob("step_*")) else []
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // s.jobs))}
    with open(s.out / f"{name}.txt", "ab") as log:
        command = [sys.executable, "-m", "genmodels", *words]
        if subprocess.run(command, env=environment, stdout=log, stderr=log).returncode:
            raise SystemExit(f"{name} failed: see {log.name}")


def row_file(s: Settings, name: str) -> Path:
    """Return the file with what was measured of a run."""
    return s.out / f"{name}.json"


def row_of(s: Settings, name: str) -> dict[str, float]:
    """Return the steps, images, FLOPs and held-out loss of a run, measured once and stored beside it."""
    file, run = row_file(s, name), s.out / name
    if not file.is_file():
        model, last = genmodels.load(run), read_last_line(run / "metrics.jsonl")
        loss = held_out_loss(model, open_data(s.data, None, model.config.size), limit=s.images)
        row = {"steps": last["step"], "images": last["images"], "flops": last["images"] * count(model).flops}
        file.write_text(json.dumps(row | {"loss": loss.value}) + "\n")
        print(f"{name}: {row['images']:,.0f} images, {row['flops']:.3g} FLOPs, {loss.value:.4f}", flush=True)
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
