"""Trackers of --track: curves, settings and sample grids in TensorBoard or another service.

accelerate writes to all of them. metrics.jsonl, config.yaml and samples/ of the run folder hold the
same, whatever the tracker does.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers

from genmodels.pictures import grid
from genmodels.reading import in_one_line
from genmodels.saving import to_dict
from genmodels.training.checkpoint import State
from genmodels.training.launch import is_first_process
from genmodels.training.recipe import NOT_SAVED, Recipe
from genmodels.usage import say

PROJECT = "genmodels"
"""Project (of wandb and trackio) or experiment (of MLflow) that the runs belong to."""


def check_tracker(name: str) -> None:
    """Check that the tracker of --track can be used, before any work.

    Raises:
        ValueError: if it is not installed, or wandb cannot reach its server with the user's key.
    """
    if name == "none":
        return
    if name not in [tracker.value for tracker in get_available_trackers()]:
        raise ValueError(
            f"--track {name}: {name} is not installed: pip install 'genmodels[{name}]', or choose --track tensorboard"
        )
    if name == "wandb" and is_first_process():
        check_login()


def check_login() -> None:
    """Check that wandb accepts the user's key, unless it is set to work offline.

    Raises:
        ValueError: if there is no key, or it is not accepted.
    """
    import wandb

    if wandb.setup().settings.mode != "online":
        return
    try:
        wandb.login(verify=True)
    except Exception as error:
        raise ValueError(
            f"--track wandb: {in_one_line(error).rstrip('.')}. Log in with `wandb login`, or set WANDB_MODE=offline "
            "to keep the run on this machine"
        ) from None


def start_tracker(accelerator: Accelerator, recipe: Recipe, state: State) -> None:
    """Start the tracker of the recipe, if any, and give it the settings.

    A resumed run continues the same run of the tracker, whose id is in `state.tracked`.

    Raises:
        ValueError: if the tracker does not start.
    """
    name, output = recipe.track, recipe.output
    if name == "none" or not accelerator.is_main_process:
        return
    known = state.tracked.get(name)
    identifier = known or secrets.token_hex(4)
    settings: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": state.last_line + 1},
        "wandb": {"id": identifier, "name": output.name, "dir": str(output), "resume": "allow"},
        "mlflow": {"run_id": known, "run_name": output.name},
        "trackio": {"name": f"{output.name}-{identifier}", "resume": "allow"},
    }
    # The folder of TensorBoard in the run folder has its name. MLflow refuses to change parameters.
    project = name if name == "tensorboard" else PROJECT
    config = None if name == "tensorboard" or (name == "mlflow" and known) else flat(recipe)
    try:
        accelerator.init_trackers(project, config, {name: settings[name]})
        if name == "tensorboard":
            table = "".join(f"| {key} | {value} |\n" for key, value in flat(recipe).items())
            accelerator.trackers[0].tracker.add_text("config", f"| setting | value |\n|---|---|\n{table}")
        if name == "mlflow":
            identifier = accelerator.trackers[0].tracker.info.run_id
    except Exception as error:
        raise ValueError(
            f"--track {name} does not start: {in_one_line(error)}; choose another --track, such as none"
        ) from error
    if name != "tensorboard":
        state.tracked[name] = identifier


def flat(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe by dotted names, such as "optim.lr": numbers and text."""
    found: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{prefix}.{key}" if prefix else key, item)
        else:
            found[prefix] = value if isinstance(value, (bool, int, float)) else str(value)

    add("", {key: value for key, value in to_dict(recipe).items() if key not in NOT_SAVED})
    return found


class Tracking:
    """What a run sends to its tracker. A tracker that fails is left out from then on.

    Args:
        accelerator: accelerator of the run, whose tracker `start_tracker` has started.
        report: called with a warning when the tracker fails.
    """

    def __init__(self, accelerator: Accelerator, report: Callable[[str], object] = say):
        self.trackers: list[GeneralTracker] = accelerator.trackers if accelerator.is_main_process else []
        self.report = report

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Send scalars of a step."""
        self._use(lambda tracker: tracker.log(dict(values), step=step), step)

    def picture(self, path: Path, images: np.ndarray, step: int) -> None:
        """Send images as one grid.

        Args:
            path: file of the grid. The name of its folder is that of the picture.
            images: uint8 (N, H, W, 3).
            step: step at which they were made.
        """
        self._use(lambda tracker: _send_picture(tracker, path, images, step), step)

    def finish(self) -> None:
        """End the run of the tracker."""
        self._use(lambda tracker: tracker.finish(), None)
        self.trackers = []

    def _use(self, send: Callable[[GeneralTracker], object], step: int | None) -> None:
        for tracker in list(self.trackers):
            try:
                send(tracker)
            except Exception as error:
                self.trackers = [other for other in self.trackers if other is not tracker]
                when = "at the end" if step is None else f"step {step:,}"
                self.report(
                    f"warning, {when}: --track {tracker.name} failed ({in_one_line(error)}); the run goes on without "
                    "it, and metrics.jsonl stays complete"
                )


def _send_picture(tracker: Any, path: Path, images: np.ndarray, step: int) -> None:
    if tracker.name == "mlflow":
        tracker.log_artifact(os.fspath(path), artifact_path=path.parent.name)
    elif tracker.name == "trackio":  # accelerate has no method for its pictures
        import trackio

        tracker.log({path.parent.name: trackio.Image(os.fspath(path))}, step=step)
    elif tracker.name == "wandb":
        tracker.log_images({path.parent.name: [np.asarray(grid(images))]}, step=step)
    else:
        tracker.log_images({path.parent.name: np.asarray(grid(images))[None]}, step=step, dataformats="NHWC")
