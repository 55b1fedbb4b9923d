"""Execution of a sweep: every run is a command of its own, on this machine or on a cluster."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import genmodels
from genmodels.data.threads import cores
from genmodels.scaling.plan import Plan, PlannedRun
from genmodels.scaling.runs import MEASURED
from genmodels.training.log import in_words

LOGS = "logs"
"""Folder of a sweep with the output of each run."""
PATIENCE = 60.0
"""Seconds that runs have to save a checkpoint when a sweep is stopped."""


def command(out: Path, run: PlannedRun) -> list[str]:
    """Return the arguments of `genmodels` that start, continue or skip a run, whatever it needs."""
    return ["sweep", "--out", str(out), "--run", run.name]


def unfinished(plan: Plan, out: Path) -> list[PlannedRun]:
    """Return the runs whose loss has not been measured, the longest first."""
    left = [run for run in plan.runs if not (out / run.name / MEASURED).is_file()]
    return sorted(left, key=lambda run: -run.flops)


def run_local(runs: Sequence[PlannedRun], out: Path, jobs: int, say: Callable[[str], object]) -> list[str]:
    """Execute runs on this machine, `jobs` at a time, each with its share of the cores and, if there
    are GPUs, with one of them.

    On Ctrl-C or SIGTERM the runs save a checkpoint and end.

    Args:
        runs: runs to execute, in order.
        out: folder of the sweep.
        jobs: number of runs at a time.
        say: called with a line when a run ends.

    Returns:
        Names of the runs that failed.
    """
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    running: dict[str, subprocess.Popen[bytes]] = {}
    stopped = False
    began, done, whole = time.monotonic(), 0.0, sum(run.flops for run in runs)

    def execute(run: PlannedRun) -> str | None:
        nonlocal done
        slot = slots.get()
        try:
            if stopped:
                return None
            with open(out / LOGS / f"{run.name}.txt", "ab") as log:
                arguments = [sys.executable, "-m", "genmodels", *command(out, run)]
                how: dict[str, Any] = {"env": environment(slot, jobs), "stdout": log, "stderr": log}
                # In a session of its own, Ctrl-C reaches a run only once, through `run_local`.
                process = subprocess.Popen(arguments, start_new_session=True, **how)
                running[run.name] = process
                status = process.wait()
            running.pop(run.name, None)
            done += run.flops
            passed = time.monotonic() - began
            left = in_words(passed * (whole - done) / done)
            say(f"{run.name}: {'done' if status == 0 else f'failed with status {status}'}; about {left} left")
            return run.name if status else None
        finally:
            slots.put(slot)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    pool = ThreadPoolExecutor(jobs)
    try:
        return [name for name in pool.map(execute, runs) if name is not None]
    except KeyboardInterrupt:
        stopped = True
        for process in list(running.values()):
            process.send_signal(signal.SIGTERM)
        for process in list(running.values()):
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        raise
    finally:
        stopped = True
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def environment(slot: int, jobs: int) -> dict[str, str]:
    """Return the environment of a run: its share of the cores, and its GPU."""
    import torch

    package = str(Path(genmodels.__file__).parent.parent)
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    own = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(max(1, cores() // jobs))}
    count = torch.cuda.device_count()
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        own["CUDA_VISIBLE_DEVICES"] = visible[slot % count]
    return own


def submit(runs: Sequence[PlannedRun], out: Path, jobs: int, minutes: int, partition: str | None) -> list[Any]:
    """Submit runs to SLURM as one array, each with one GPU. A run that reaches its time limit is
    submitted again by the same command, and continues.

    Args:
        runs: runs to submit.
        out: folder of the sweep, on a disk that all nodes share.
        jobs: number of runs at a time.
        minutes: time limit of a run.
        partition: partition of the cluster; None: the default.

    Returns:
        The jobs of submitit.

    Raises:
        ValueError: if submitit is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError("--slurm needs submitit: pip install 'genmodels[slurm]'") from None
    executor = submitit.AutoExecutor(folder=out / LOGS)
    settings: dict[str, Any] = {"timeout_min": minutes, "slurm_array_parallelism": jobs, "gpus_per_node": 1}
    executor.update_parameters(
        name="genmodels-sweep", **settings, **({"slurm_partition": partition} if partition else {})
    )
    with executor.batch():
        return [
            executor.submit(
                submitit.helpers.CommandFunction([sys.executable, "-m", "genmodels", *command(out.absolute(), run)])
            )
            for run in runs
        ]
