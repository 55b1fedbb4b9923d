"""Views of the EMA model during training: sample grids, exported models, scores of samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genmodels.data.batches import image_batches
from genmodels.data.packed import Packed
from genmodels.modes import evaluating
from genmodels.pictures import save_grid
from genmodels.sampling import sample
from genmodels.stopping import StoppedError
from genmodels.training.answers import SHEET as SHEET_OF_ANSWERS
from genmodels.training.answers import answer_sheet
from genmodels.training.ema import restore_buffers
from genmodels.training.export import export_model, training_card
from genmodels.training.limits import AT_THE_END, ON_THE_WAY, STOPPED, Limits, timed_batches
from genmodels.training.log import QUIET_SECONDS, in_words
from genmodels.training.prompts import sample_caption, shown_condition
from genmodels.training.retrieval import SHEET, retrieval_sheet
from genmodels.training.setup import Run
from genmodels.training.steps import step_name
from genmodels.writing import write_text

if TYPE_CHECKING:
    from genmodels.evaluation.monitor import Monitor

SLOWER = 1.5
"""Factor by which calibrate() may take longer than its share before it uses fewer images, and a
sample grid longer than was estimated before it is given up."""
GRID = 64
"""Largest number of images in a sample grid, 8 x 8."""
FIRST = 0.05
"""Largest fraction of a --minutes budget to spend on the first sample grid, which is one image
until the time per image is known."""
LATE = 1.05
"""Fraction of a --minutes budget after which the last sample grid, if it is a single image, is given
up."""
QUIET = 10.0
"""Seconds of sampling after which a line says that it is going on."""
BATCH = 60.0
"""Largest number of seconds for a batch of samples: a larger one takes longer to stop."""
DIAGNOSED = 256
"""Number of training images, and of held-out images, passed to `Model.diagnose`."""
COVERAGE_LOST = 0.5
"""Warn about dropped modes if coverage falls below this fraction of the best coverage so far."""
COVERAGE_SEEN = 0.05
"""Do not warn before coverage has reached this value: early in training it is mostly noise."""


def show(run: Run, limits: Limits) -> None:
    """Calibrate the EMA model, save it with its card, and then display what it can produce.

    Every rank must call this; rank 0 writes. The time it takes is measured for `cost_of_end`.
    """
    recipe, state, accelerator = run.recipe, run.state, run.accelerator
    calibrate(run, limits)
    began = time.monotonic()

    def card(picture: str = "") -> str:
        now = replace(state, elapsed=run.clock.now())
        return training_card(run.ema, recipe, now, run.data, accelerator.num_processes, picture, run.log.last)

    if accelerator.is_main_process:
        export_model(run.ema, recipe.output, card())
    account(run, "show", began)
    began = time.monotonic()
    for display in DISPLAYS:
        images = display.draw(run, limits) if run.ema.can(display.ability) else None
        if images is not None and accelerator.is_main_process:
            picture = recipe.output / display.folder / file_name(state.step)
            save_grid(picture, images)
            run.log.tracking.picture(picture, images, state.step)
            shown = f"![{display.caption(run)}]({display.folder}/{file_name(state.step)})"
            write_text(recipe.output / "README.md", card(shown))
    run.log.pause(time.monotonic() - began)


def sample_grid(run: Run, limits: Limits) -> np.ndarray | None:
    """Sample images with the seed of the run, uint8 (N, H, W, 3): 64, or as many as there is time
    for.

    The time per image is measured on one image at first, and afterwards on the last grid. Image i
    of a seed is the same in grids of all sizes, up to rounding. They show classes or prompts in
    turn (`shown_condition`).

    Returns:
        The images, or None if there is no time for one. A signal ends sampling, unless `limits` are
        those of a run that a signal has already stopped.
    """
    images, began, costs = None, time.monotonic(), run.state.costs

    def stopping() -> bool:
        return limits is not STOPPED and run.stop.requested

    # Whatever decides what is drawn is agreed on: every rank must draw the same images.
    while True:
        spent, stops = run.clock.agree(time.monotonic() - began, any_rank=stopping())
        count = images_to_draw(run, limits, spent)
        if stops or count <= (0 if images is None else len(images)):
            return images
        started = time.monotonic()
        try:
            batch = count if "draw" not in costs else max(1, min(count, int(BATCH / max(costs["draw"], 1e-9))))
            until = watch(run, limits, count, stopping)
            shown = shown_condition(run, count)
            images = sample(run.ema, count, run.recipe.seed, shown, batch_size=batch, progress=False, until=until)
        except StoppedError:
            spent, stops = run.clock.agree(time.monotonic() - started, any_rank=stopping())
            if not stops:
                costs.setdefault("draw", spent)  # at least
            if not stops and images is None and limits is not STOPPED:
                after = "another is tried at the end"
                if limits is AT_THE_END:
                    after = f"draw one afterwards: genmodels sample {run.recipe.output} --n 1"
                run.log.say(f"no samples are drawn: one image takes more than {FIRST:.0%} of the run; {after}")
            return images
        costs["draw"] = run.clock.agree(time.monotonic() - started)[0] / count


def images_to_draw(run: Run, limits: Limits, spent: float) -> int:
    """Return the number of images for a grid, a square, of which `spent` seconds are already used
    up."""
    cost = run.state.costs.get("draw")
    seconds = limits.time(limits.drawing, run.clock.budget) - spent
    if cost is None:
        return int(seconds > 0)
    count = min(GRID, math.isqrt(int(min(GRID, max(0.0, seconds) / max(cost, 1e-9)))) ** 2)
    alone = limits.alone > 0 and cost <= limits.time(limits.alone, run.clock.budget) - spent
    return max(count, int(alone))


def watch(run: Run, limits: Limits, count: int, stopping: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that says from time to time that `count` images are being sampled.

    It returns True when there is no more time for them, or `stopping()` is True.
    """
    began = time.monotonic()
    said = began + QUIET - QUIET_SECONDS
    cost = run.state.costs.get("draw")
    end = began + max(limits.time(FIRST, run.clock.budget), 0.0 if cost is None else SLOWER * count * cost)
    if limits is AT_THE_END and count == 1 and run.clock.budget is not None:  # better a little late than without a grid
        end = max(end, began + LATE * run.clock.budget - run.clock.now())
    whole = "" if cost is None else f" of about {in_words(count * cost)}"

    def until() -> bool:
        nonlocal said
        now = time.monotonic()
        if now - said > QUIET_SECONDS:
            said = now
            images = "1 image" if count == 1 else f"{count} images"
            run.log.say(f"step {run.state.step:,}: sampling {images}, {in_words(now - began)}{whole}")
        return now > end or stopping()

    return until


class Display(NamedTuple):
    """A picture of what a model can do, for models with an ability."""

    ability: str
    folder: str
    """Subfolder of the run."""
    draw: Callable[[Run, Limits], np.ndarray | None]
    """Computes the images, if there is time for them, on every rank."""
    caption: Callable[[Run], str]
    """Describes them in the model card."""


DISPLAYS = (
    Display("sample", "samples", sample_grid, sample_caption),
    Display("answer", "answers", answer_sheet, lambda run: SHEET_OF_ANSWERS),
    Display("embed", "retrievals", retrieval_sheet, lambda run: SHEET),
)


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
        try:
            count, seed = run.monitor.samples, run.recipe.seed
            samples = sample(run.ema, count, seed, progress=False, until=lambda: run.stop.requested)
        except StoppedError:
            return
        finally:
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


def calibrate(run: Run, limits: Limits) -> None:
    """Calibrate the current EMA model on training images, within limits of number and time.

    Every rank must call this.
    """
    run.layout.gather_into(run.ema, run.average)
    began = time.monotonic()
    images, read = int(run.clock.agree(images_for(run, limits))[0]), 0
    allowed = SLOWER * limits.time(limits.share, run.clock.budget)

    def batches() -> Iterator[Tensor]:
        nonlocal read
        seconds = None if allowed == math.inf else allowed
        for batch in timed_batches(run.data, images, seconds, run.accelerator.device, limits.fewest):
            read += len(batch)
            yield batch

    with torch.no_grad():
        run.ema.calibrate(batches())
    seconds = time.monotonic() - began
    run.state.costs["calibrate"] = seconds / (read or images)
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

    This is the cost of calibrating, saving and displaying the model, of a checkpoint, and of a
    measurement, which may be due at the last step. Returns None before these have been timed.
    """
    costs = run.state.costs
    if "show" not in costs:
        return None
    return cost_of(run, AT_THE_END) + costs.get("save", 0.0) + costs.get("measure", 0.0)


def cost_of(run: Run, limits: Limits) -> float:
    """Estimate the seconds of `show`, from what it took before."""
    costs = run.state.costs
    drawing = costs["draw"] * images_to_draw(run, limits, 0.0) if "draw" in costs else costs.get("retrieve", 0.0)
    return costs["calibrate"] * images_for(run, limits) + drawing + costs["show"]


def images_for(run: Run, limits: Limits) -> int:
    """Return the number of images to calibrate on, given the time per image measured earlier."""
    seconds, cost = limits.time(limits.share, run.clock.budget), run.state.costs.get("calibrate")
    affordable = limits.most
    if seconds < math.inf:
        affordable = limits.fewest if cost is None else int(seconds / max(cost, 1e-9))
    return min(len(run.data), limits.images(run.data.size), max(affordable, limits.fewest))
