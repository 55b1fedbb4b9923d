"""Scripts in processes of their own, alone or two that know of each other, as a launcher starts them.

The processes are forked from one that has imported what training imports, which takes longer than
most of these scripts. It has not computed anything, so that its children can.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from pathlib import Path

import genmodels

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("pytest", "gradio", "datasets", "sklearn.cluster", "torch._dynamo", "torch.distributed.fsdp"),
        *("genmodels.evaluation.evaluate", "genmodels.training.pipeline"),
        *(target.partition(":")[0] for target in genmodels.FAMILIES.values()),
    ]
)


def in_two_processes(script: Path, output: Path, **extra: str) -> list[str]:
    """Run `script OUTPUT`, which trains, in two processes, and return what each of them said.

    `extra` is added to their environment.
    """
    said = run_twice(script, str(output), **extra)
    assert "2 x cpu" in said[0]
    return said


def run_twice(script: Path, *arguments: str, **extra: str) -> list[str]:
    """Run a script in two processes that know of each other, and return the standard error of each."""
    return run_together(2, script, *arguments, **extra)


def run_together(count: int, script: Path, *arguments: str, **extra: str) -> list[str]:
    """Run a script in `count` processes that know of each other, and return the standard error of
    each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"ACCELERATE_USE_CPU": "true"}
    env |= {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    } | extra  # what a launcher sets
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / rank for rank in map(str, range(count))]
        command = [str(script), *arguments]
        ranks = [
            SERVER.Process(target=_run, args=(command, env | {"RANK": file.name, "LOCAL_RANK": file.name}, file, (2,)))
            for file in files
        ]
        try:
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join(timeout=300)
        finally:
            for rank in ranks:
                rank.kill()
        said = [file.read_text() for file in files]
    assert [rank.exitcode for rank in ranks] == [0] * count, "".join(said)[-3000:]
    return said


def run_alone(script: Path, *arguments: str) -> tuple[int | None, str]:
    """Run a script in one process, and return its exit status and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "said"
        process = SERVER.Process(target=_run, args=([str(script), *arguments], dict(os.environ), file, (1, 2)))
        process.start()
        process.join()
        return process.exitcode, file.read_text()


def _run(command: list[str], env: dict[str, str], said: Path, streams: tuple[int, ...]) -> None:
    """Run a script in this process, as `python SCRIPT ARGUMENTS` does, and write what it prints to
    `streams`, numbers of file descriptors, into a file."""
    os.environ.clear()
    os.environ.update(env)
    with said.open("w") as file:
        for stream in streams:
            os.dup2(file.fileno(), stream)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
