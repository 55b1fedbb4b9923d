"""What is seen of the EMA model while it trains: sample grids, exported models, a distance to real images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from genmodels.base import evaluating
from genmodels.data.batches import image_batches
from genmodels.data.packed import Packed
from genmodels.pictures import save_grid
from genmodels.sampling import sample
from genmodels.training.ema import restore_buffers
from genmodels.training.export import export_model, training_card
from genmodels.training.setup import Run
from genmodels.training.shard import gather_into

if TYPE_CHECKING:
    from genmodels.evaluation.monitor import Monitor


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
DIAGNOSED = 256
"""Images of each kind that a model's own diagnosis sees."""
COVERAGE_LOST = 0.5
"""Below this share of the best coverage so far, modes have dropped."""
COVERAGE_SEEN = 0.05
"""Coverage that is more than the noise of a model that has hardly begun."""


def show(run: Run, calibration: Calibration) -> None:
    """Calibrate the EMA model, save it with its card, and then display what it can produce.

    Every rank takes part; rank 0 writes. The time it takes is measured for `cost_of_end`.
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
    """Sample the images of the run's seed, uint8 (64, H, W, 3)."""
    return sample(run.ema, GRID, run.recipe.seed, progress=False)


DISPLAYS: tuple[tuple[str, str, Callable[[Run], np.ndarray]], ...] = (("sample", "samples", sample_grid),)
"""What is displayed of a model during training: the ability it needs, the subfolder of the run, and
the images that every rank computes."""


def file_name(step: int) -> str:
    """Name of the image file of a training step."""
    return f"step_{step:08d}.png"


def measure(run: Run) -> None:
    """Puts into the next line of metrics how near samples of the EMA model are to real images, how many of those they
    cover, and what the model says of its training; warns of what goes wrong.

    A number is None, with a word why, when it cannot be measured: it is not worth a run. Every rank takes part. The
    samples are always those of the run's seed, and the EMA model is left as it was.
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
        if run.ema.can("sample"):
            score_samples(run, run.monitor, samples)
        if run.monitor.held_out is not None:
            diagnose(run, run.monitor.held_out)
    account(run, "measure", began)


def score_samples(run: Run, monitor: Monitor, samples: np.ndarray) -> None:
    """Notes what `monitor` makes of `samples`, and warns when they have lost variety."""
    found: dict[str, float] = {}
    try:
        found = monitor.measure(samples)
        for value in found.values():
            if not math.isfinite(value):
                raise FloatingPointError(f"it is {value}")
    except Exception as error:
        found = {}
        run.log.say(f"no {monitor.name} at step {run.state.step:,}: {' '.join(str(error).split())}")
    for name in (monitor.name, monitor.coverage):
        run.log.note(name, found.get(name))
    best = run.log.largest(monitor.coverage)
    if found and best >= COVERAGE_SEEN and found[monitor.coverage] < COVERAGE_LOST * best:
        run.log.say(
            f"warning, step {run.state.step:,}: the samples have lost variety: {found[monitor.coverage]:.0%} of real "
            f"images have one near them, after {best:.0%}. Modes have dropped; earlier sample grids and checkpoints "
            "are kept"
        )


def diagnose(run: Run, held_out: Packed) -> None:
    """Notes what the model says of its training, on as many images that it has seen as it has not."""
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
