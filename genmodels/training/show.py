"""Views of the EMA model during training: sample grids, exported models, scores of samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from genmodels.data.batches import image_batches
from genmodels.data.packed import Packed
from genmodels.modes import evaluating
from genmodels.pictures import save_grid
from genmodels.sampling import sample
from genmodels.training.ema import restore_buffers
from genmodels.training.export import export_model, training_card
from genmodels.training.setup import Run
from genmodels.training.shard import gather_into
from genmodels.training.steps import step_name

if TYPE_CHECKING:
    from genmodels.evaluation.monitor import Monitor


@dataclass(frozen=True)
class Calibration:
    """Limits on the number of training images that calibrate() uses."""

    most: int
    """Largest number of images."""
    fewest: int
    """Smallest number of images, also if they take more time than `share` allows. It is used until
    the time per image is known."""
    share: float
    """Largest fraction of a --minutes budget to spend. It does not apply to --steps."""


ON_THE_WAY = Calibration(most=2_048, fewest=256, share=0.01)
AT_THE_END = Calibration(most=20_000, fewest=2_048, share=0.1)
GRID = 64
"""Number of images in a sample grid, 8 x 8."""
DIAGNOSED = 256
"""Number of training images, and of held-out images, passed to `Model.diagnose`."""
COVERAGE_LOST = 0.5
"""Warn about dropped modes if coverage falls below this fraction of the best coverage so far."""
COVERAGE_SEEN = 0.05
"""Do not warn before coverage has reached this value: early in training it is mostly noise."""


def show(run: Run, calibration: Calibration) -> None:
    """Calibrate the EMA model, save it with its card, and then display what it can produce.

    Every rank must call this; rank 0 writes. The time it takes is measured for `cost_of_end`.
    """
    recipe, state, accelerator = run.recipe, run.state, run.accelerator
    calibrate(run, calibration)
    began = time.monotonic()
    if accelerator.is_main_process:
        now = replace(state, elapsed=run.clock.now())
        picture = next((f"{folder}/{file_name(state.step)}" for name, folder, _ in DISPLAYS if run.ema.can(name)), "")
        card = training_card(run.ema, recipe, now, run.data, accelerator.num_processes, picture, run.log.last)
        export_model(run.ema, recipe.output, card)
    for name, folder, draw in DISPLAYS:
        if run.ema.can(name):
            images = draw(run)
            if accelerator.is_main_process:
                save_grid(recipe.output / folder / file_name(state.step), images)
    account(run, "show", began)


def sample_grid(run: Run) -> np.ndarray:
    """Sample 64 images with the seed of the run, uint8 (64, H, W, 3)."""
    return sample(run.ema, GRID, run.recipe.seed, progress=False)


DISPLAYS: tuple[tuple[str, str, Callable[[Run], np.ndarray]], ...] = (("sample", "samples", sample_grid),)
"""Displays of a model during training: the ability that a model needs, the subfolder of the run,
and the function that computes the images on every rank."""


def file_name(step: int) -> str:
    """Name of the image file of a training step."""
    return f"{step_name(step)}.png"


def measure(run: Run) -> None:
    """Add scores of EMA samples and the model's own diagnosis to the next line of metrics.

    The scores are a distance to real images and their coverage. Samples always use the seed of the
    run. A score that cannot be computed is logged as None with the reason, and training goes on.
    Problems such as dropped modes are printed as warnings. Every rank must call this. The EMA model
    is not changed.
    """
    if run.monitor is None:
        return
    began = time.monotonic()
    if run.ema.can("sample"):
        buffers = [buffer.clone() for buffer in run.ema.buffers()]
        calibrate(run, ON_THE_WAY)
        began = time.monotonic()
        samples = sample(run.ema, run.monitor.samples, run.recipe.seed, progress=False)
        restore_buffers(run.ema, buffers)
        if run.accelerator.is_main_process:
            score_samples(run, run.monitor, samples)
    if run.monitor.held_out is not None:  # on every rank, each of which has a part of a sharded model
        diagnose(run, run.monitor.held_out)
    account(run, "measure", began)


def score_samples(run: Run, monitor: Monitor, samples: np.ndarray) -> None:
    """Log the scores of `samples` and warn if their coverage has dropped.

    Args:
        run: the run.
        monitor: computes the scores.
        samples: uint8 (N, H, W, 3).
    """
    scores: dict[str, float] = {}
    try:
        scores = monitor.measure(samples)
        for value in scores.values():
            if not math.isfinite(value):
                raise FloatingPointError(f"it is {value}")
    except Exception as error:
        scores = {}
        run.log.say(f"no {monitor.name} at step {run.state.step:,}: {' '.join(str(error).split())}")
    for name in (monitor.name, monitor.coverage):
        run.log.note(name, scores.get(name))
    best = run.log.largest(monitor.coverage)
    if scores and best >= COVERAGE_SEEN and scores[monitor.coverage] < COVERAGE_LOST * best:
        run.log.say(
            f"warning, step {run.state.step:,}: the samples have lost variety: coverage of real images is "
            f"{scores[monitor.coverage]:.0%}, down from {best:.0%}. Modes have been dropped; earlier sample grids and "
            "checkpoints are kept"
        )


def diagnose(run: Run, held_out: Packed) -> None:
    """Log the metrics and warnings of `Model.diagnose` on training and held-out images."""
    device = run.accelerator.device
    seen, unseen = (
        torch.cat(list(image_batches(d, limit=DIAGNOSED, device=device, spread=True))) for d in (run.data, held_out)
    )
    try:
        with torch.no_grad(), evaluating(run.model):
            numbers, warnings = run.model.diagnose(seen, unseen)
    except Exception as error:
        run.log.say(f"no diagnosis at step {run.state.step:,}: {' '.join(str(error).split())}")
        return
    for name, value in numbers.items():
        run.log.note(name, value if math.isfinite(value) else None)
    for warning in warnings:
        run.log.say(f"warning, step {run.state.step:,}: {warning}")


def calibrate(run: Run, calibration: Calibration) -> None:
    """Calibrate the current EMA model on training images, within limits of number and time.

    Every rank must call this.
    """
    gather_into(run.ema, run.average)
    began = time.monotonic()
    images = int(run.clock.agree(images_for(run, calibration))[0])
    with torch.no_grad():
        run.ema.calibrate(image_batches(run.data, limit=images, device=run.accelerator.device, spread=True))
    seconds = time.monotonic() - began
    run.state.costs["calibrate"] = seconds / images
    run.log.pause(seconds)


def account(run: Run, part: str, began: float) -> None:
    """Record the duration of a task other than training steps and exclude it from images/s.

    Args:
        run: the run.
        part: name of the task in `State.costs`.
        began: value of time.monotonic() at its start.
    """
    run.accelerator.wait_for_everyone()
    run.state.costs[part] = time.monotonic() - began
    run.log.pause(run.state.costs[part])


def cost_of_end(run: Run) -> float | None:
    """Estimate the seconds from the last step to the end of the run.

    This is the cost of the last calibration, display and checkpoint, and of a measurement, which
    may be due at the last step. Returns None before these have been timed.
    """
    costs = run.state.costs
    if "show" not in costs:
        return None
    once = sum(costs.get(part, 0.0) for part in ("show", "save", "measure"))
    return costs["calibrate"] * images_for(run, AT_THE_END) + once


def images_for(run: Run, calibration: Calibration) -> int:
    """Return the number of images to calibrate on, given the time per image measured earlier."""
    affordable = calibration.most
    if run.clock.budget is not None:
        cost = run.state.costs.get("calibrate")
        affordable = calibration.fewest if cost is None else int(calibration.share * run.clock.budget / cost)
    return min(len(run.data), calibration.most, max(affordable, calibration.fewest))
