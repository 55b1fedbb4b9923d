"""What accelerate's launcher leaves undone on a CPU: several processes, and all of its cores."""

from __future__ import annotations

import os
import sys

import psutil
import torch

from genmodels.data.packing import cores

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where torchrun and the MPI launchers say how many processes there are."""


def spread_over_cpu() -> None:
    """Turns this process into the N that accelerate's launcher was asked for; does nothing in any other case.

    With --cpu that launcher leaves the N processes to mpirun, and without mpirun it starts a single one and says
    nothing. torch's own launcher starts them here.

    Raises:
        ValueError: when several processes were asked for in a way that does not tell how many.
    """
    count = processes_wanted(dict(os.environ), parent_command())
    if count > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        sys.stdout.flush()
        os.execv(sys.executable, [*launcher, *sys.argv])


def parent_command() -> list[str]:
    """The command line that started this process; empty where it cannot be known, as in a container."""
    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []


def use_every_core() -> None:
    """Gives a single process on a machine without GPU all of its cores.

    Without --cpu, accelerate's launcher sets OMP_NUM_THREADS to 1, which suits a process that feeds a GPU and nothing
    else. What --num_cpu_threads_per_process asks for is kept.
    """
    parent = parent_command()
    launched = any("accelerate" in part for part in parent[:3])
    asked = any("num_cpu_threads_per_process" in part.replace("-", "_") for part in parent)
    alone = not any(name in os.environ for name in SIZES)
    if launched and alone and not asked and not torch.accelerator.is_available():
        torch.set_num_threads(cores())


def processes_wanted(env: dict[str, str], parent: list[str]) -> int:
    """How many processes this one should become.

    Args:
        env: of this process. For several processes on a CPU, accelerate's launcher sets MASTER_PORT, but no world size.
        parent: the command line that started this process.
    """
    alone = not any(name in env for name in SIZES)
    on_cpu = env.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    if not (alone and on_cpu and "MASTER_PORT" in env and any("accelerate" in part for part in parent[:3])):
        return 1
    words = [word for part in parent for word in part.replace("--num-processes", "--num_processes").split("=")]
    if "--num_processes" not in words:
        raise ValueError(
            "accelerate launch was asked for several processes on the CPU: say how many with --num_processes"
        )
    return int(words[words.index("--num_processes") + 1])
