"""Launchers: several processes and all cores on a CPU, and processes whose launcher has ended.

accelerate starts several processes on a CPU only with mpirun, and lets one process use one core.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import torch

from genmodels.data.threads import cores

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables in which torchrun and the MPI launchers store the number of processes."""
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Environment variables in which they store the index of a process."""
LAUNCHER_VARIABLE = "GENMODELS_LAUNCHER"
"""Environment variable in which `spread_over_cpu` stores the process id of accelerate's launcher."""
STARTED = (os.getpid(), os.getppid())
"""This process and its parent when it started."""


def is_first_process() -> bool:
    """Return whether this is the first or the only process of a run.

    It can be called before the processes are connected.
    """
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def launchers() -> list[int]:
    """Return the process ids of the launchers of this process, the nearest first.

    They are its parent, if that is a launcher, and accelerate's launcher above it, if
    `spread_over_cpu` has put another one in between. Empty if this process was not launched.
    """
    above = [int(number) for number in os.environ.get(LAUNCHER_VARIABLE, "").split()]
    started = "TORCHELASTIC_RUN_ID" in os.environ or by_accelerate(parent_command())
    return [parent(), *above] if started else []


def parent() -> int:
    """Return the process id of the parent that this process had when it started.

    A process that was forked after the import, as accelerate's notebook_launcher does, has another
    parent.
    """
    process, above = STARTED
    return above if process == os.getpid() else os.getppid()


def launcher_has_ended(ids: list[int]) -> bool:
    """Return whether one of the launchers of this process has ended, also if it was killed.

    A process whose parent ends gets another parent. This is asked of this process and of its
    parent, because a process id may be in use again.

    Args:
        ids: what `launchers` returned at the start.
    """
    if ids and os.getppid() != ids[0]:
        return True
    try:
        return len(ids) > 1 and psutil.Process(ids[0]).ppid() != ids[1]
    except psutil.Error:
        return True


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
        os.environ[LAUNCHER_VARIABLE] = str(parent())
        sys.stdout.flush()
        os.execv(sys.executable, [*launcher, *command])


def parent_command() -> list[str]:
    """Return the command line of the parent process; empty if it cannot be read."""
    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []


def by_accelerate(command: list[str]) -> bool:
    """Return whether a command line is that of accelerate's launcher, which Python runs as a script
    or as a module."""
    match [word for word in command if word == "-m" or not word.startswith("-")]:  # without the options of Python
        case [python, "-m", module, *_]:
            started = module.startswith("accelerate.commands.")
        case [python, script, *_]:
            started = Path(script).stem in ("accelerate", "accelerate-launch")
        case _:
            return False
    return started and Path(python).name.startswith("python")


def use_every_core() -> None:
    """Let a single process on a machine without a GPU use all cores.

    Without --cpu, accelerate's launcher sets OMP_NUM_THREADS to 1, which is too little for a
    process that computes on the CPU. A number given with --num_cpu_threads_per_process is kept.
    """
    parent = parent_command()
    launched = by_accelerate(parent)
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
    if not (alone and on_cpu and "MASTER_PORT" in env and by_accelerate(parent)):
        return 1
    words = [word for part in parent for word in part.replace("--num-processes", "--num_processes").split("=")]
    if "--num_processes" not in words:
        raise ValueError(
            "accelerate launch should start several processes on the CPU: give their number with --num_processes"
        )
    return int(words[words.index("--num_processes") + 1])
