"""Quality and cost of grouped heads before and after half of them are pruned, next to grouped queries.

    python benchmarks/grouped_heads.py --data packed/celeba64 --codec runs/vqvae --minutes 8 --out runs/heads

Three models of the same family are trained one after another for the same minutes, from the same
seed: with H heads (multi-head attention), with H heads in H / 2 groups (arXiv 2305.14380), and with
H / 2 heads of keys and values (grouped-query attention, arXiv 2305.13245). `genmodels prune` then
keeps one head of each group. All four are evaluated alike. The table has what `genmodels evaluate`
measures, on the machine as it is: run nothing else at the same time.

Grouped queries halve the keys and values; pruning also halves the queries, so the pruned model is
the smaller one. It is not trained further.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

COLUMNS = {
    "parameters": ",.0f",
    "train-flops": ".3g",
    "bits-per-dim": ".3f",
    "bits-per-token": ".3f",
    "fd-faces": ".3f",
    "images-per-second": ".1f",
    "memory": ".3g",
}
"""Scores of the table, where they were measured, and their formats."""


@dataclass(frozen=True)
class Settings:
    """What is trained, and on what."""

    data: str
    """A packed directory, or toyfaces."""
    out: Path
    """New folder for the models, their scores and results.json."""
    family: Literal["autoregressive", "dit"] = "autoregressive"
    """Family of the models."""
    codec: Path | None = None
    """Codec whose latents they are trained on. None: pixels."""
    minutes: float = 8.0
    """Minutes of each training."""
    heads: int = 8
    """H, an even number that divides the width into an even number of channels."""
    width: int = 256
    """D."""
    depth: int = 6
    """Number of blocks."""
    weight: float = 1.0
    """Weight of the constraint that pulls heads into groups."""
    seed: int = 0
    """Seed of all trainings."""
    n: int = 2048
    """Number of samples that are scored."""
    further: str = ""
    """Further flags of all trainings, such as --further="--size 32 --batch-size 16"."""


def main(settings: Settings) -> None:
    s = settings
    if s.out.exists() and any(s.out.iterdir()):
        raise SystemExit(f"{s.out} is not an empty folder: choose another")
    half = str(s.heads // 2)
    group = "--model.transformer.head-groups"
    variants = {
        "multi-head": [],
        "grouped": [f"{group}.count", half, f"{group}.weight", str(s.weight)],
        "grouped-query": ["--model.transformer.kv-heads", half],
    }
    for name, flags in variants.items():
        train(s, name, flags)
    genmodels("prune", s.out / "grouped", s.out / "pruned")
    scores = {name: evaluate(s, name) for name in (*variants, "pruned")}
    columns = {name: form for name, form in COLUMNS.items() if any(name in row for row in scores.values())}
    table = Table("", *columns, title=f"{s.family}, {s.minutes:g} minutes each, {s.heads} heads, pruned to {half}")
    for name, row in scores.items():
        table.add_row(name, *(format(row[key], form) if key in row else "" for key, form in columns.items()))
    Console().print(table)
    results = {"settings": repr(s), "scores": scores}
    (s.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def train(settings: Settings, name: str, flags: list[str]) -> None:
    """Train one model."""
    s = settings
    shape = {"width": s.width, "depth": s.depth, "heads": s.heads}
    common = [word for key, value in shape.items() for word in (f"--model.transformer.{key}", str(value))]
    common += ["--data", s.data, "--minutes", str(s.minutes), "--seed", str(s.seed)]
    common += [] if s.codec is None else ["--codec", str(s.codec)]
    genmodels("train", s.family, "--output", s.out / name, *common, *flags, *shlex.split(s.further))


def evaluate(settings: Settings, name: str) -> dict[str, float]:
    """Return the scores of one model by name."""
    file = settings.out / f"{name}.json"
    given = ["--data", settings.data, "--n", settings.n, "--json", file]
    genmodels("evaluate", settings.out / name, *given)
    scores: dict[str, dict[str, Any]] = json.loads(file.read_text())["scores"]
    return {key: float(score["value"]) for key, score in scores.items()}


def genmodels(*words: object) -> None:
    """Run a command of genmodels in a process of its own."""
    subprocess.run([sys.executable, "-m", "genmodels", *map(str, words)], check=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
