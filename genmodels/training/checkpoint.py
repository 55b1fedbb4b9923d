"""Checkpoints: everything a run needs to continue, as safetensors and JSON, written whole or not at all.

checkpoints/step_00020000/ holds model.safetensors (the raw weights), ema.safetensors, optimizer.safetensors and,
written last, state.json, which lists the others with their sizes and checksums. The order of the data, the noise and
the random numbers of a step are functions of (seed, step), so the step is all that has to be remembered of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from genmodels.saving import from_dict
from genmodels.training.optim import load_optimizer_tensors, optimizer_tensors
from genmodels.training.shard import whole

FORMAT = 1
STATE = "state.json"


@dataclass
class State:
    """Where a run stands. The rest of a checkpoint is tensors."""

    step: int = 0
    """Optimiser steps done."""
    elapsed: float = 0.0
    """Seconds of training so far, over all launches of the run."""
    saved: float = 0.0
    """`elapsed` at the newest checkpoint."""
    skipped: int = 0
    """Steps left out because the loss or a gradient was not finite."""
    skipped_in_a_row: int = 0
    costs: dict[str, float] = field(default_factory=dict)
    """Seconds that the parts of the run's end take, as measured so far."""
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the fp16 loss scaler."""


def training_tensors(
    model: nn.Module, ema: nn.Module, optimizers: dict[str, Optimizer], keep: bool = True
) -> dict[str, dict[str, Tensor]]:
    """What of a run is tensors: those of "model", "ema" and "optimizer", by name. Every rank takes part.

    Args:
        model, ema: raw and averaged weights, whole or in shards.
        optimizers: by turn.
        keep: whether this rank wants them; one that does not holds one whole tensor at a time.
    """
    states = {f"{turn}.{name}": t for turn, o in optimizers.items() for name, t in optimizer_tensors(o).items()}
    found: dict[str, dict[str, Tensor]] = {}
    for name, content in (("model", model.state_dict()), ("ema", ema.state_dict()), ("optimizer", states)):
        found[name] = {}
        for key, value in content.items():
            gathered = whole(value)
            if keep:
                found[name][key] = gathered.cpu()
    return found


def save_checkpoint(
    final: Path, state: State, identity: dict[str, Any], tensors: dict[str, dict[str, Tensor]], keep: int
) -> None:
    """Writes checkpoint `final` and removes all but the `keep` newest up to it. Called on one rank.

    Args:
        final: checkpoints/step_XXXXXXXX; until it is whole it has another name.
        state: where the run stands.
        identity: what a run that continues from here must have in common with this one (see `load_checkpoint`).
        tensors: by name, for each of the files, as `training_tensors` returns them.
        keep: how many checkpoints stay, this one included.
    """
    if final.is_dir() and problem_with(final) is None:
        return
    folder = final.parent
    partial = folder / f".{final.name}.partial"
    for leftover in folder.glob(".step_*.partial"):
        shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    for name, content in tensors.items():
        save_file({key: value.contiguous() for key, value in content.items()}, partial / f"{name}.safetensors")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(partial.iterdir())}
    record = {"format": FORMAT, "state": dataclasses.asdict(state), "identity": identity, "files": files}
    (partial / STATE).write_text(json.dumps(record, indent=2) + "\n")
    for path in (*partial.iterdir(), partial):
        flush(path)
    if final.is_dir():  # a damaged one of the same step
        shutil.rmtree(final)
    partial.rename(final)
    flush(folder)
    past = [path for path in _checkpoints(folder) if path.name <= final.name]
    for path in past[:-keep]:
        shutil.rmtree(path)


def newest_checkpoint(folder: Path, report: Callable[[str], None]) -> Path:
    """The newest complete checkpoint in `folder`; incomplete ones are passed over and reported, one line each.

    Raises:
        ValueError: when there is none.
    """
    paths = _checkpoints(folder)
    for path in reversed(paths):
        problem = problem_with(path)
        if problem is None:
            return path
        report(f"passing over checkpoint {path}: {problem}")
    if paths:
        raise ValueError(
            f"nothing to resume: none of the {len(paths)} checkpoints in {folder} is whole; start a new run"
        )
    raise ValueError(f"nothing to resume: {folder} holds no checkpoint; start a new run in another --output")


def problem_with(path: Path) -> str | None:
    """Why the checkpoint at `path` is not whole, or None when it is."""
    try:
        record = json.loads((path / STATE).read_text())
        if record["format"] > FORMAT:
            return f"it has format {record['format']}, written by a newer genmodels; this one reads up to {FORMAT}"
        for name, expected in record["files"].items():
            file = path / name
            if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
                return f"{name} is damaged (its size or checksum is not as written)"
        from_dict(State, record["state"], where=STATE)
        return None if isinstance(record["identity"], dict) else f"{STATE} is damaged"
    except FileNotFoundError as error:
        return f"it is incomplete, {Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{STATE} is damaged"


def load_checkpoint(path: Path, identity: dict[str, Any], model: nn.Module, ema: nn.Module) -> State:
    """Restores the weights of a checkpoint that `newest_checkpoint` found whole, before they are sharded.

    Raises:
        ValueError: when `identity` differs from the checkpoint's, naming every difference.
    """
    record = json.loads((path / STATE).read_text())
    differences = _differences(record["identity"], json.loads(json.dumps(identity)))
    if differences:
        raise ValueError(
            f"cannot resume {path}: {'; '.join(differences)}; give the run's own settings "
            "(--config with its config.yaml), or start a new run in another --output"
        )
    try:
        load_model(model, path / "model.safetensors")
        load_model(ema, path / "ema.safetensors")
    except (SafetensorError, RuntimeError) as error:
        raise _not_of_this_version(path, error) from None
    return from_dict(State, record["state"], where=STATE)


def load_optimizers(path: Path, optimizers: dict[str, Optimizer]) -> None:
    """Restores the state of optimisers from the same checkpoint.

    Raises:
        ValueError: when it is of other parameters.
    """
    try:
        tensors = load_file(path / "optimizer.safetensors")
        for turn, optimizer in optimizers.items():
            own = {name.removeprefix(f"{turn}."): t for name, t in tensors.items() if name.startswith(f"{turn}.")}
            load_optimizer_tensors(optimizer, own)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise _not_of_this_version(path, error) from None


def _not_of_this_version(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"cannot resume {path}: its weights do not fit this version of the model ({reason})")


def flush(path: Path) -> None:
    """Forces a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differences(saved: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two nested dicts differ, in words: "model.latent_dim is 64 here and 128 in the checkpoint"."""
    found = []
    for name in saved | ours:
        then, now = saved.get(name), ours.get(name)
        if isinstance(then, dict) and isinstance(now, dict):
            found += _differences(then, now, f"{prefix}{name}.")
        elif then != now:
            found.append(f"{prefix}{name} is {now!r} here and {then!r} in the checkpoint")
    return found
