"""Kill a sweep at random moments and check that it ends with the table of an uninterrupted one.

    python benchmarks/sweep_kills.py --out kills --kills 10

Trains the same small sweep twice on procedural faces, once without interruption. The other is
killed (SIGKILL to all of its processes) after a random time, and started again, `--kills` times.
Losses must be equal to the last digit, and no finished run may be trained again.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import tyro

from genmodels.scaling.runs import MEASURED, row_of, run_folders

SETTINGS = ("--size", "16", "--model.patch", "4", "--model.gaussian", "0", "--mixed-precision", "no")


def main(out: Path, kills: int = 10, budget: float = 2e10, seed: int = 0, jobs: int = 2) -> None:
    """Compare the two tables.

    Args:
        out: new folder.
        kills: number of times that the sweep is killed.
        budget: FLOPs of the smallest of three budgets, each twice the one before.
        seed: seed of the moments.
        jobs: number of runs at a time.
    """
    data = out / "faces"
    genmodels("data", "pack", "toyfaces", "--count", "2048", "--size", "16", "--out", str(data)).wait()
    budgets = [f"{budget * factor:g}" for factor in (1, 2, 4)]
    command = [
        "sweep",
        "dit",
        "--budgets",
        *budgets,
        "--sizes",
        "3",
        "--jobs",
        str(jobs),
        "--data",
        str(data),
        *SETTINGS,
    ]
    began = time.monotonic()
    whole, killed = out / "whole", out / "killed"
    if genmodels(*command, "--out", str(whole)).wait():
        raise SystemExit("the sweep failed")
    seconds, rng, finished = time.monotonic() - began, random.Random(seed), dict[Path, float]()
    for number in range(kills):
        process = genmodels(*command, "--out", str(killed))
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.1, 0.6) * seconds)
        kill_all(process.pid)
        for folder in killed.glob(f"*/{MEASURED}"):
            changed = folder.parent.joinpath("model.safetensors").stat().st_mtime
            if finished.setdefault(folder, changed) != changed:
                raise SystemExit(f"{folder.parent} had finished, and was trained again")
        print(f"kill {number + 1}: {len(finished)} runs are finished")
    if genmodels(*command, "--out", str(killed)).wait():
        raise SystemExit("the killed sweep could not be continued")
    tables = [[row_of(folder) for folder in run_folders([place])] for place in (whole, killed)]
    if tables[0] != tables[1]:
        raise SystemExit("the tables differ")
    print(f"the tables of {len(tables[0])} runs are equal")


def genmodels(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a command."""
    return subprocess.Popen([sys.executable, "-m", "genmodels", *arguments])


def kill_all(process: int) -> None:
    """Kill a process and all that it has started, at once."""
    with suppress(psutil.NoSuchProcess):
        for each in [*psutil.Process(process).children(recursive=True), psutil.Process(process)]:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)


if __name__ == "__main__":
    tyro.cli(main)
