"""Compare the speed of training steps and sampling between two checkouts of genmodels.

    python benchmarks/versions.py PATH_OF_OTHER_CHECKOUT

Each checkout runs in its own process. The two alternate, so that a change in the speed of the
machine affects both, and both are started several times, since the speed of a process depends on
where its memory happens to be. The table shows the median ratio of speeds, this checkout over the
other. With the same checkout twice, it shows the precision of the ratios.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

import genmodels
from genmodels.conditions import Condition
from genmodels.types import Batch, Noise

BATCH = 16
FAMILIES = ("vae", "dit", "autoregressive")
WORK = ("train", "sample")


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    other: Annotated[Path, tyro.conf.arg(name="checkout"), tyro.conf.Positional]
    """Folder of the other checkout."""
    starts: int = 7
    """Number of times that the process of each checkout is started."""
    rounds: int = 3
    """Number of measurements of each process for each row of the table."""
    families: tuple[str, ...] = FAMILIES
    """Families to measure."""


def build(name: str) -> Any:
    """Build a model of family `name` that takes some tenths of a second per step on a CPU."""
    kind: Any = genmodels.family(name)
    torch.manual_seed(0)
    if name == "autoregressive":
        return kind(replace(kind.Config(), size=12))
    if name == "dit":
        return kind(replace(kind.Config(), size=64, patch=8, gaussian=64))
    return kind(replace(kind.Config(), size=64))


def worker() -> None:
    """Read requests such as "vae train" from standard input, and print the seconds of each."""
    models: dict[str, Any] = {}
    optimizers: dict[str, Any] = {}
    for line in sys.stdin:
        name, work = line.split()
        if name not in models:
            model = models[name] = build(name)
            images = torch.rand(64, 3, model.config.size, model.config.size) * 2 - 1
            model.initialise([images])
            model.calibrate([images])
            optimizers[name] = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        seconds = train(models[name], optimizers[name]) if work == "train" else sample(models[name])
        print(seconds, flush=True)


def train(model: Any, optimizer: torch.optim.Optimizer) -> float:
    """Time two optimiser steps in fp32, which is fast on every processor."""
    model.train()
    size = model.config.size
    images = torch.rand(BATCH, 3, size, size) * 2 - 1
    began = time.perf_counter()
    for step in range(2):
        loss, _ = model(Batch(images, Noise.for_images(step, range(BATCH)), Condition(), step, 0.5))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
    return time.perf_counter() - began


def sample(model: Any) -> float:
    """Time the sampling of a batch in fp32."""
    model.eval()
    count = 2 if model.family == "autoregressive" else BATCH
    began = time.perf_counter()
    model.generate(count, seed=0)
    return time.perf_counter() - began


def start(checkout: Path) -> subprocess.Popen[str]:
    """Start a worker that imports genmodels from `checkout`."""
    env = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], request: str) -> float:
    """Return the seconds that a worker needs for `request`."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(request + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(here: Path, other: Path, request: str, rounds: int) -> list[tuple[float, float]]:
    """Return the seconds of (other, here) for each round, from one process of each checkout."""
    ours, theirs = start(here), start(other)
    for process in (ours, theirs):
        ask(process, request)  # warm-up
    pairs = []
    for i in range(rounds):
        order = (ours, theirs) if i % 2 else (theirs, ours)
        seconds = {id(process): ask(process, request) for process in order}
        pairs.append((seconds[id(theirs)], seconds[id(ours)]))
    for process in (ours, theirs):
        process.kill()
        process.wait()
    return pairs


def main(settings: Settings) -> None:
    here = Path(__file__).resolve().parent.parent
    title = f"median over {settings.starts} starts of {settings.rounds} rounds"
    table = Table("family", "work", "other, s", "this, s", "speed, this / other", title=title)
    for name in settings.families:
        for work in WORK:
            pairs = []
            for _ in range(settings.starts):
                pairs += measure(here, settings.other.resolve(), f"{name} {work}", settings.rounds)
            ratio = statistics.median(a / b for a, b in pairs)
            before, now = (statistics.median(column) for column in zip(*pairs, strict=True))
            table.add_row(name, work, f"{before:.3f}", f"{now:.3f}", f"{ratio:.3f}")
            print(f"{name} {work}: {ratio:.3f}", flush=True)
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        worker()
    else:
        main(tyro.cli(Settings, description=__doc__))
