"""Several processes on a CPU, as `accelerate launch --cpu --num_processes N` promises."""

from __future__ import annotations

import os
import sys

import psutil

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where torchrun and the MPI launchers say how many processes there are."""


def spread_over_cpu() -> None:
    """Turns this process into the N that accelerate's launcher was asked for; does nothing in any other case.

    With --cpu that launcher leaves the N processes to mpirun, and without mpirun it starts a single one and says
    nothing. torch's own launcher starts them here.

    Raises:
        ValueError: when several processes were asked for in a way that does not tell how many.
    """
    count = processes_wanted(dict(os.environ), psutil.Process(os.getppid()).cmdline())
    if count > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        sys.stdout.flush()
        os.execv(sys.executable, [*launcher, *sys.argv])


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
