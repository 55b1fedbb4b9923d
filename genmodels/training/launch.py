"""Launching on a CPU: several processes, and all cores. accelerate does neither by itself."""

from __future__ import annotations

import os
import sys

import psutil
import torch

from genmodels.data.packing import cores

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables in which torchrun and the MPI launchers store the number of processes."""
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Environment variables in which they store the index of a process."""


def is_first_process() -> bool:
    """Return whether this is the first or the only process of a run.

    It can be called before the processes are connected.
    """
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def spread_over_cpu(command: list[str]) -> None:
    """Start as many CPU processes as were requested of accelerate's launcher, in place of this one.

    With --cpu that launcher leaves it to mpirun to start them. Without mpirun it silently starts a
    single process. This function starts them with torch's launcher, and does nothing in other
    cases.

    Args:
        command: script and arguments, or "-m", module and arguments, that each process runs.

    Raises:
        ValueError: if several processes were requested without their number.
    """
    count = processes_wanted(dict(os.environ), parent_command())
    if count > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        sys.stdout.flush()
        os.execv(sys.executable, [*launcher, *command])


def parent_command() -> list[str]:
    """Return the command line of the parent process; empty if it cannot be read."""
    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []


def use_every_core() -> None:
    """Let a single process on a machine without a GPU use all cores.

    Without --cpu, accelerate's launcher sets OMP_NUM_THREADS to 1, which is too little for a
    process that computes on the CPU. A number given with --num_cpu_threads_per_process is kept.
    """
    parent = parent_command()
    launched = any("accelerate" in part for part in parent[:3])
    asked = any("num_cpu_threads_per_process" in part.replace("-", "_") for part in parent)
    alone = not any(name in os.environ for name in SIZES)
    if launched and alone and not asked and not torch.accelerator.is_available():
        torch.set_num_threads(cores())


def processes_wanted(env: dict[str, str], parent: list[str]) -> int:
    """Return the number of processes that should run instead of this one.

    Args:
        env: environment of this process. For several processes on a CPU, accelerate's launcher sets
            MASTER_PORT, but no world size.
        parent: command line of the parent process.
    """
    alone = not any(name in env for name in SIZES)
    on_cpu = env.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    if not (alone and on_cpu and "MASTER_PORT" in env and any("accelerate" in part for part in parent[:3])):
        return 1
    words = [word for part in parent for word in part.replace("--num-processes", "--num_processes").split("=")]
    if "--num_processes" not in words:
        raise ValueError(
            "accelerate launch should start several processes on the CPU: give their number with --num_processes"
        )
    return int(words[words.index("--num_processes") + 1])
