"""The run folder: the names in it, and which process may write to it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from genmodels.data.source import readable
from genmodels.training.launch import is_first_process
from genmodels.training.recipe import Recipe
from genmodels.training.steps import list_checkpoints
from genmodels.usage import say
from genmodels.writing import is_leftover, remove

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
STAGES = "stages"
"""Folder of the stages of a run before the last one."""
LOCK = ".lock"
MODEL = ("model.safetensors", "config.json", "README.md", "samples", "retrievals", "ema")
"""What a run writes only after its first checkpoint."""
OURS = (*MODEL, CHECKPOINTS, LOCK, "config.yaml", METRICS, "tensorboard", "wandb")
"""Everything that a run writes to its folder, except for temporary files and what `put_aside` has
renamed."""


def check_output(recipe: Recipe) -> None:
    """Refuse a run folder that cannot be used, before any work.

    A folder of a run that was stopped before its first checkpoint can be used again.

    Raises:
        ValueError, OSError: with a message of one line. No file has been changed.
    """
    output = recipe.output
    if readable(str(output)) != str(output):
        raise ValueError(f"{output} is not UTF-8, which TensorBoard cannot write to: give another --output")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; --output must be a folder")
    names = {item.name for item in output.iterdir()} if output.is_dir() else set()
    for name in sorted(names.intersection(OURS)):
        if (output / name).is_symlink():
            raise ValueError(
                f"{output / name} is a link: a run does not write through links inside its folder; remove it (the "
                "folder itself may be a link)"
            )
    begun = bool(list_checkpoints(output / CHECKPOINTS))
    holds_model = not begun and bool(names.intersection(MODEL))
    staged = bool(recipe.stages) and (output / STAGES / "config.yaml").is_file()
    if recipe.resume and not begun and not staged and (holds_model or not names.intersection(OURS)):
        found = f"{output} holds a model but no checkpoint" if holds_model else f"there is no run in {output}"
        raise ValueError(f"nothing to resume: {found}; check --output, or start without --resume")
    names = {name for name in names if not re.fullmatch(r"config\.[0-9]+\.yaml|metrics\.[0-9]+\.jsonl", name)}
    known = (*OURS, STAGES) if recipe.stages or recipe.stage else OURS
    foreign = any(name not in known and not is_leftover(name) for name in names)
    if not recipe.resume and (begun or holds_model or foreign):
        choice = "or --resume to continue the run in it" if begun else "or empty it; it holds no run to resume"
        raise ValueError(f"{output} is not empty: give another --output, {choice}")
    place = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not os.access(place, os.W_OK):
        raise PermissionError(f"cannot write to {place}: give another --output, or change its permissions")


def put_aside(output: Path, config: str) -> None:
    """Rename the files that a new run would replace, and could not restore.

    A folder without a checkpoint can be started again, but what it holds need not be what a run has
    left: config.yaml may be written by hand, and a long metrics.jsonl may be all that is kept of a
    run. metrics.jsonl becomes metrics.1.jsonl, or has the next number that is free.

    Args:
        output: the run folder.
        config: what the run writes to config.yaml. An equal file stays.
    """
    for path, text in ((output / "config.yaml", config), (output / METRICS, "")):
        content = text.encode()
        if not path.is_file() or (path.stat().st_size == len(content) and path.read_bytes() == content):
            continue
        names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
        aside = next(name for name in names if not os.path.lexists(name))
        path.rename(aside)
        say(f"{path} was there before this run: it is now {aside.name}")


def check_unlocked(output: Path) -> None:
    """Refuse a run folder that another process is using, before any work.

    Raises:
        ValueError: if it is in use.
    """
    if is_first_process() and (output / LOCK).is_file():
        _acquire(output).release()


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Lock a run folder against other runs, and create it if it does not exist.

    The operating system releases the lock when the process ends, however it ends. Of several
    processes of one run, the first holds the lock. A folder to which nothing was written is removed
    at the end.

    Raises:
        ValueError: if another run holds the lock.
    """
    if not is_first_process():
        yield
        return
    absent = [path for path in (output.absolute(), *output.absolute().parents) if not path.exists()]
    output.mkdir(parents=True, exist_ok=True)
    lock = _acquire(output)
    try:
        yield
    finally:
        with suppress(OSError):
            remove(output / LOCK)
            lock.release()
            for path in absent:
                path.rmdir()


def _acquire(output: Path) -> FileLock:
    lock = FileLock(output / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{output} is in use by another run: wait until it ends, or give another --output") from None
    except (OSError, NotImplementedError) as error:  # some network file systems have no locks
        reason = getattr(error, "strerror", None) or error
        say(f"{output} cannot be locked ({reason}): make sure that no other run uses it")
    return lock
