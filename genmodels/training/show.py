"""What is seen of the EMA model while it trains: sample grids, exported models, a distance to real images."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from genmodels.data.batches import image_batches
from genmodels.sampling import sample, save_grid
from genmodels.training.ema import restore_buffers
from genmodels.training.export import export_model, model_card
from genmodels.training.setup import Run
from genmodels.training.shard import gather_into


@dataclass(frozen=True)
class Calibration:
    """How many training images calibrate() sees."""

    most: int
    fewest: int
    """Also when they take longer than `share`, and until it is known how long they take."""
    share: float
    """Of a --minutes budget; --steps are not pressed for time."""


ON_THE_WAY = Calibration(most=2_048, fewest=256, share=0.01)
AT_THE_END = Calibration(most=20_000, fewest=2_048, share=0.1)
GRID = 64
"""Images of a sample grid, 8 x 8."""


def show(run: Run, calibration: Calibration) -> None:
    """Calibrates the EMA model, samples a grid, and exports the model with its card.

    Every rank takes part; rank 0 writes. What it costs is measured, for `cost_of_end`.
    """
    recipe, state, accelerator = run.recipe, run.state, run.accelerator
    calibrate(run, calibration)
    began = time.monotonic()
    grid = f"samples/step_{state.step:08d}.png"
    samples = sample(run.ema, GRID, recipe.seed, progress=False)
    if accelerator.is_main_process:
        save_grid(recipe.output / grid, samples)
        now = replace(state, elapsed=run.clock.now())
        card = model_card(run.ema, recipe, now, run.data, accelerator.num_processes, grid, run.log.last)
        export_model(run.ema, recipe.output, card)
    account(run, "show", began)


def measure(run: Run) -> None:
    """Puts the distance between samples of the EMA model and real images into the next line of metrics.

    It is None, with a word why, when it cannot be measured: a number is not worth a run. Every rank takes part. The
    samples are always those of the run's seed, and the EMA model is left as it was.
    """
    if run.monitor is None:
        return
    buffers = [buffer.clone() for buffer in run.ema.buffers()]
    calibrate(run, ON_THE_WAY)
    began = time.monotonic()
    samples = sample(run.ema, run.monitor.samples, run.recipe.seed, progress=False)
    restore_buffers(run.ema, buffers)
    value = None
    if run.accelerator.is_main_process:
        try:
            found = run.monitor.distance(samples)
            if not math.isfinite(found):
                raise FloatingPointError(f"it is {found}")
            value = found
        except Exception as error:
            run.log.say(f"no {run.monitor.name} at step {run.state.step:,}: {' '.join(str(error).split())}")
    run.log.note(run.monitor.name, value)
    account(run, "measure", began)


def calibrate(run: Run, calibration: Calibration) -> None:
    """Calibrates the EMA model of now on as many training images as the budget affords. Every rank takes part."""
    gather_into(run.ema, run.average)
    began = time.monotonic()
    images = int(run.clock.agree(images_for(run, calibration))[0])
    with torch.no_grad():
        run.ema.calibrate(image_batches(run.data, limit=images, device=run.accelerator.device, spread=True))
    seconds = time.monotonic() - began
    run.state.costs["calibrate"] = seconds / images
    run.log.pause(seconds)


def account(run: Run, part: str, began: float) -> None:
    """Ends a part of the run that is no training: what it took is noted, and left out of images/s."""
    run.accelerator.wait_for_everyone()
    run.state.costs[part] = time.monotonic() - began
    run.log.pause(run.state.costs[part])


def cost_of_end(run: Run) -> float | None:
    """Estimated seconds from the last step to the end of the run; None before its parts have been timed.

    A measurement may be due at the last step.
    """
    costs = run.state.costs
    if "show" not in costs:
        return None
    once = sum(costs.get(part, 0.0) for part in ("show", "save", "measure"))
    return costs["calibrate"] * images_for(run, AT_THE_END) + once


def images_for(run: Run, calibration: Calibration) -> int:
    """How many images to calibrate on: what the budget affords, going by what they cost before."""
    affordable = calibration.most
    if run.clock.budget is not None:
        cost = run.state.costs.get("calibrate")
        affordable = calibration.fewest if cost is None else int(calibration.share * run.clock.budget / cost)
    return min(len(run.data), calibration.most, max(affordable, calibration.fewest))
