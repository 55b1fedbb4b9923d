"""Checkpoints: everything needed to resume a run, as safetensors and JSON, written atomically.

checkpoints/step_00020000/ holds model.safetensors (the raw weights), ema.safetensors,
optimizer.safetensors and state.json. state.json is written last and lists the other files with
their sizes and checksums. The order of the data, the noise and all other random numbers of a step
are functions of (seed, step), so no state of a random number generator has to be saved.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from genmodels.hashing import file_sha256
from genmodels.reading import in_one_line, read_json
from genmodels.saving import Range, from_dict
from genmodels.training.layout import Layout, named_tensors
from genmodels.training.optim import load_optimizer_tensors, optimizer_names, optimizer_tensors
from genmodels.training.steps import list_checkpoints, step_of
from genmodels.weights import check_same, masks, read_tensors
from genmodels.writing import is_leftover, remove, replacing_folder, write_json

FORMAT = 2
STATE = "state.json"
TENSORS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
"""Files of a checkpoint in addition to state.json."""
Count = Annotated[int, Range(0)]
Seconds = Annotated[float, Range(0)]


@dataclass
class State:
    """Progress of a run: everything in a checkpoint that is not a tensor."""

    step: Count = 0
    """Number of completed optimiser steps, including skipped ones."""
    elapsed: Seconds = 0.0
    """Seconds of training so far, over all launches of the run."""
    saved: Seconds = 0.0
    """Value of `elapsed` at the newest checkpoint."""
    skipped: Count = 0
    """Number of steps that were skipped because the loss or a gradient was not finite."""
    skipped_in_a_row: Count = 0
    """Number of consecutive skipped steps, up to and including the last step."""
    costs: dict[str, Seconds] = field(default_factory=dict)
    """Last measured seconds of each task other than training steps: "show", "save", "measure", and
    "calibrate" and "draw" per image. `cost_of_end` estimates the time after the last step from them."""
    tracked: dict[str, str] = field(default_factory=dict)
    """Id of the run at each tracker, for a resumed run to continue it."""
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the fp16 loss scaler."""
    logged: Count | None = None
    """Step of the last line of metrics that a run without interruption also has. None: `step`."""
    summed: Count = 0
    """Number of steps after `logged` that were not skipped."""
    sums: dict[str, float | None] = field(default_factory=dict)
    """Sums of their scalars, which the next line of metrics averages. None: not finite."""

    @property
    def last_line(self) -> int:
        """Step after which a resumed run writes its lines of metrics again."""
        return self.step if self.logged is None else self.logged


@dataclass(frozen=True)
class File:
    """Size and checksum of a file of a checkpoint."""

    bytes: Count
    sha256: str


@dataclass(frozen=True)
class Record:
    """Contents of state.json."""

    format: int
    state: State
    identity: dict[str, Any]
    files: dict[str, File]


def training_tensors(
    model: nn.Module,
    ema: nn.Module,
    optimizers: dict[str, Optimizer],
    keep: bool = True,
    layout: Layout | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Gather the tensors of a checkpoint on the CPU. Every rank must call this.

    Args:
        model, ema: raw and averaged weights, complete or divided.
        optimizers: optimisers by turn.
        layout: how processes divide the model. None: they do not.
        keep: whether this rank keeps the result. Other ranks hold one complete tensor at a time.

    Returns:
        For each of "model", "ema" and "optimizer", its tensors by name. Empty if `keep` is False.
    """
    layout = layout or Layout()
    states, names = {}, {}
    for turn, optimizer in optimizers.items():
        of = optimizer_names(optimizer, model)
        for name, tensor in optimizer_tensors(optimizer).items():
            states[f"{turn}.{name}"], names[f"{turn}.{name}"] = tensor, of[name.partition(".")[0]]
    contents = {
        "model": (model.state_dict(), parameter_names(model)),
        "ema": (ema.state_dict(), parameter_names(ema)),
        "optimizer": (states, names),
    }
    tensors: dict[str, dict[str, Tensor]] = {}
    for file, (content, parameters) in contents.items():
        tensors[file] = {}
        for key, value in layout.complete(content, parameters):
            if keep:
                tensors[file][key] = value.cpu()
    return tensors


def parameter_names(model: nn.Module) -> dict[str, str]:
    """Return the name in `model` of each entry of its state dict. A model that is saved as one of
    its modules, as the policy of DPO is, has other names there."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    return {key: names.get(id(tensor), key) for key, tensor in model.state_dict(keep_vars=True).items()}


def save_checkpoint(
    final: Path, state: State, identity: dict[str, Any], tensors: dict[str, dict[str, Tensor]], keep: int
) -> None:
    """Write a checkpoint and remove older ones, so that `keep` remain. Call it on one rank only.

    A complete checkpoint that already exists at `final` is kept as it is.

    Args:
        final: checkpoints/step_XXXXXXXX. The files are written under a temporary name first.
        state: progress of the run.
        identity: settings that a resumed run must share with this one (see `load_checkpoint`).
        tensors: tensors by file and name, as returned by `training_tensors`.
        keep: number of checkpoints up to this step to keep, including this one.
    """
    for leftover in final.parent.glob(".step_*"):  # of a process that was killed
        name = leftover.name[1:].partition(".")[0]
        if step_of(name) is not None and is_leftover(leftover.name):
            remove(leftover)
    if not final.is_dir() or problem_with(final) is not None:
        _write(final, state, identity, tensors)
    # Also if it was there already: a process may have been killed before it removed the older ones.
    past = [path for path in list_checkpoints(final.parent) if path.name <= final.name]
    for path in past[:-keep]:
        remove(path)


def _write(final: Path, state: State, identity: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
    with replacing_folder(final) as partial:
        for name, content in tensors.items():
            save_file({key: value.contiguous() for key, value in content.items()}, partial / f"{name}.safetensors")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(partial.iterdir())
        }
        record = {"format": FORMAT, "state": dataclasses.asdict(state), "identity": identity, "files": files}
        write_json(partial / STATE, record, indent=2)


def newest_checkpoint(folder: Path, report: Callable[[str], None]) -> Path:
    """Return the newest complete checkpoint in `folder`.

    Args:
        folder: the folder checkpoints/ of a run.
        report: called with one line for each newer checkpoint that is skipped as incomplete.

    Raises:
        ValueError: if there is no complete checkpoint.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        problem = problem_with(path)
        if problem is None:
            return path
        report(f"skipping checkpoint {path}: {problem}")
    if paths:
        raise ValueError(
            f"nothing to resume: none of the {len(paths)} checkpoints in {folder} is complete; start a new run in "
            "another --output"
        )
    raise ValueError(f"nothing to resume: {folder} contains no checkpoint; start a new run in another --output")


def problem_with(path: Path) -> str | None:
    """Return why the checkpoint at `path` cannot be used, or None if it is complete."""
    try:
        values = read_json(path / STATE)
        version = values.get("format") if isinstance(values, dict) else None
        if isinstance(version, int) and version > FORMAT:
            return f"it was written by a newer genmodels (format {version}; this version reads up to {FORMAT})"
        record = from_dict(Record, values, where=STATE)
        if record.files.keys() != set(TENSORS):
            return f"{STATE} is damaged (it lists other files)"
        for name, expected in record.files.items():
            file = path / name
            if file.stat().st_size != expected.bytes or not file.is_file() or file_sha256(file) != expected.sha256:
                return f"{name} is damaged (its size or checksum does not match {STATE})"
        if record.state.step != step_of(path.name):
            return f"it is a copy of the checkpoint of step {record.state.step:,}"
        return None
    except FileNotFoundError as error:
        return f"it is incomplete: {Path(error.filename).name} is missing"
    except ValueError as error:
        return f"{STATE} is damaged ({in_one_line(error, 120)})"


def load_checkpoint(path: Path, identity: dict[str, Any], model: nn.Module, ema: nn.Module) -> State:
    """Load the raw and averaged weights of a checkpoint, and return the progress of its run.

    Args:
        path: a complete checkpoint, as returned by `newest_checkpoint`.
        identity: settings of this run that must equal those of the checkpoint.
        model, ema: modules to load the weights into, before sharding.

    Raises:
        ValueError: if `identity` differs from the checkpoint's (the message names every
            difference), or the weights are damaged or do not fit the model.
    """
    record = from_dict(Record, read_json(path / STATE), where=str(path / STATE))
    differences = _differences(record.identity, json.loads(json.dumps(identity)))
    if differences:
        raise ValueError(
            f"cannot resume {path}: {'; '.join(differences)}; use the settings of that run "
            "(--config with its config.yaml), or start a new run in another --output"
        )
    for module, file in ((model, path / "model.safetensors"), (ema, path / "ema.safetensors")):
        tensors = read_tensors(file, masks(module))
        try:
            check_same(module.state_dict(), tensors, file)
            module.load_state_dict(tensors)
        except (RuntimeError, ValueError) as error:
            raise _not_of_this_version(path, error) from None
    return record.state


def load_optimizers(
    path: Path, optimizers: dict[str, Optimizer], model: nn.Module | None = None, layout: Layout | None = None
) -> None:
    """Load the state of the optimisers from a checkpoint.

    Args:
        path: a complete checkpoint, as returned by `newest_checkpoint`.
        optimizers: optimisers by turn, to load the state into.
        model, layout: the model whose parameters they train, and how processes divide it. None: they
            do not.

    Raises:
        ValueError: if the saved state is damaged or for other parameters.
    """
    tensors = read_tensors(path / "optimizer.safetensors")
    try:
        for turn, optimizer in optimizers.items():
            state = {name.removeprefix(f"{turn}."): t for name, t in tensors.items() if name.startswith(f"{turn}.")}
            place = (
                None if model is None or layout is None else partial(_place, layout, optimizer_names(optimizer, model))
            )
            load_optimizer_tensors(optimizer, state, place)
    except (RuntimeError, ValueError) as error:
        raise _not_of_this_version(path, error) from None


def _place(layout: Layout, names: dict[str, str], parameter: Tensor, value: Tensor, index: str) -> Tensor:
    return layout.place(parameter, value, names[index])


def _not_of_this_version(path: Path, error: Exception) -> ValueError:
    reason = in_one_line(error, 200)
    return ValueError(f"cannot resume {path}: its weights do not fit this version of the model ({reason})")


def _differences(saved: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> list[str]:
    """Describe where two nested dicts differ.

    An entry reads "model.latent_dim is 64 here and 128 in the checkpoint". A setting that an earlier
    version did not have, and that is 0, empty or off, is no difference.
    """
    differences = []
    for name in saved | ours:
        then, now = saved.get(name), ours.get(name)
        if name not in saved and not now:
            continue
        if isinstance(then, dict) and isinstance(now, dict):
            differences += _differences(then, now, f"{prefix}{name}.")
        elif then != now:
            differences.append(f"{prefix}{name} is {now!r} here and {then!r} in the checkpoint")
    return differences
