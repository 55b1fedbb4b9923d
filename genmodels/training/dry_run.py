"""train --dry-run: what a run costs and what its budget buys, measured on a few steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from genmodels.base import Model
from genmodels.data.packed import Packed
from genmodels.evaluation.cost import OPERATIONS, encoding_operations, machine, peak_memory, training_operations
from genmodels.sampling import processes
from genmodels.training.clock import Clock
from genmodels.training.fit import SAVE_SECONDS, SHOWN_AT, release, save, train_step
from genmodels.training.limits import ON_THE_WAY, Limits
from genmodels.training.log import in_words
from genmodels.training.recipe import MAX_STEPS, Recipe
from genmodels.training.setup import Run, start
from genmodels.training.show import GRID, cost_of, cost_of_end, images_to_draw, show

HALF_WAY = 0.5
"""Fraction of the run at which the steps are measured. Some losses begin only after the start."""
STEPS, SECONDS, LONGEST = 20, 10.0, 60.0
"""Largest number of measured steps; seconds after which three are enough, and after which one is."""
DISPLAY = Limits(fewest=64, most=64, share=1.0, drawing=1.0, seconds=30.0)
"""For the measured sample grid."""
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Peak FLOP/s of GPUs in bf16 and fp16, without sparsity, by a part of their name."""


@dataclass(frozen=True)
class Measured:
    """What was measured."""

    operations: float | None
    """FLOPs per image and training step; None if they could not be counted."""
    step_seconds: float
    """Median of the measured steps."""
    steps: int
    """Number of measured steps."""
    peak: int
    """Largest memory during the steps, in bytes: of the GPU, or of the process."""


def dry_run(model: Model, data: Packed, recipe: Recipe, encoding: float = 0.0) -> Path:
    """Print what the run costs and what its budget buys, and write nothing to the run folder.

    A few steps are taken, and a model, a checkpoint and samples are written to a temporary folder.
    Every rank must call this; the first prints.

    Args:
        model: model to train. It is initialised and takes the steps.
        data: packed images with all splits.
        recipe: settings of the run.
        encoding: seconds for encoding all images before training.

    Returns:
        The run folder, as `fit` does.
    """
    model.check_complete()
    operations = count_operations(model.to(processes().device), data)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        trial = replace(recipe, output=Path(folder) / "run", resume=False, track="none", evaluate_every=None)
        run = start(model, data, trial)
        startup = recipe.startup + encoding + time.monotonic() - began
        clock, run.clock = run.clock, Clock(MAX_STEPS, None, 0.0, run.clock.device, run.clock.main)
        try:
            measured = measure_steps(run, operations)
            save(run)
            show(run, DISPLAY)
            drawn = any(path.is_file() for path in (trial.output / "samples").glob("*"))
            sizes = [size_of(trial.output / name) for name in ("checkpoints", "model.safetensors")]
        finally:
            run.log.close()
            release(run)
        run.clock = clock
        lines = [
            *describe(run, data, measured),
            *describe_displays(run, drawn, sizes),
            *describe_budget(run, measured, startup, encoding),
        ]
    if run.accelerator.is_main_process:
        print(f"dry run of {recipe.name or model.trained.family}; nothing is written to {recipe.output}")
        width = max(len(name) for name, _ in lines)
        for name, text in lines:
            print(f"  {name:{width}}  {text}")
    return recipe.output


def count_operations(model: Any, data: Packed) -> float | None:
    """Return the FLOPs per image of a training step, without those that cached latents save; None
    if they cannot be counted."""
    try:
        operations = training_operations(model)
        return operations if data.latents is None else operations - encoding_operations(model)
    except (RuntimeError, ValueError):
        return None


def measure_steps(run: Run, operations: float | None) -> Measured:
    """Take a step as a warm-up, and measure the time and memory of others."""
    times: list[float] = []

    def step() -> None:
        began = time.monotonic()
        train_step(run, run.reader.read(run.state.step, HALF_WAY), HALF_WAY)
        times.append(time.monotonic() - began)

    def steps() -> None:
        times.clear()
        while True:
            step()
            spent = run.clock.agree(sum(times))[0]  # ranks take the same number of steps
            if len(times) >= STEPS or spent > (SECONDS if len(times) >= 3 else LONGEST):
                return

    step()
    device = run.accelerator.device
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    peak = before + peak_memory(steps, device)[0]
    return Measured(operations, run.clock.agree(statistics.median(times))[0], len(times), peak)


def describe(run: Run, data: Packed, measured: Measured) -> list[tuple[str, str]]:
    """Return the lines about the model and its steps: names and texts."""
    recipe, model, device = run.recipe, run.model, run.accelerator.device
    groups = list(run.parameters.values())
    trained = {id(p): p for group in groups for p in group}
    whole = sum(p.numel() for p in model.parameters())
    count = sum(p.numel() for p in trained.values())
    codec = whole - sum(p.numel() for p in model.trained.parameters())
    parts = [f"{count:,} trained", f"{whole - codec - count:,} frozen" if whole - codec > count else ""]
    parts.append(f"{codec:,} of the codec" if codec else "")
    shared = {id(tensor) for tensor in tensors(model)}
    states = [value for o in run.optimizers.values() for state in o.state.values() for value in state.values()]
    memory = {
        "weights": size(tensors(model)),
        "gradients": size(trained.values()),
        "optimiser": size(value for value in states if torch.is_tensor(value)),
        "average": size(tensor for tensor in tensors(run.ema) if id(tensor) not in shared),
    }
    total = ", ".join(f"{name} {in_bytes(number)}" for name, number in memory.items())
    what = "peak of the GPU" if device.type == "cuda" else "peak of the process"
    sharded = ", before sharding" if run.layout.divides else ""
    speed = recipe.batch_size / measured.step_seconds
    operations = "not counted"
    if measured.operations is not None:
        operations = f"{measured.operations / 1e9:.3g} GFLOPs per image: forward and backward, {OPERATIONS}"
    return [
        ("data", f"{len(run.data):,} training images of {data.source}, {data.size} px"),
        ("machine", f"{run.accelerator.num_processes} x {device.type} ({machine(model)})"),
        ("precision", recipe.mixed_precision),
        ("parameters", ", ".join(filter(None, parts))),
        ("memory", f"{total}{sharded}; {what} in a step {in_bytes(measured.peak)}"),
        ("operations", operations),
        (
            "speed",
            f"{speed:,.1f} images/s, {measured.step_seconds:.3g} s per step of {recipe.batch_size} images: the median "
            f"of {measured.steps} steps after 1{utilisation(run, measured, speed)}",
        ),
    ]


def utilisation(run: Run, measured: Measured, speed: float) -> str:
    """Return the fraction of the GPUs' peak that training uses (MFU), if it is known, as text."""
    device = run.accelerator.device
    if device.type != "cuda" or measured.operations is None or run.recipe.mixed_precision == "no":
        return ""
    name = torch.cuda.get_device_name(device)
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    if peak is None:
        return ""
    used = measured.operations * speed / run.accelerator.num_processes / peak
    return f"; MFU {used:.0%} of {peak / 1e12:.0f} TFLOP/s"


def describe_displays(run: Run, drawn: bool, sizes: list[int]) -> list[tuple[str, str]]:
    """Return the lines about what is done between steps."""
    costs = run.state.costs
    grid = "this model draws no samples"
    if drawn:
        grid = f"{GRID} images in about {in_seconds(GRID * costs['draw'])}"
    elif run.ema.can("sample"):
        grid = f"one image takes more than {DISPLAY.seconds:.0f} s"
    checkpoint, model = (in_bytes(number) for number in sizes)
    return [
        ("sample grid", grid),
        (
            "saving",
            f"a checkpoint of {checkpoint} in {in_seconds(costs['save'])}; the model of {model} in "
            f"{in_seconds(costs['show'])}, after its calibration, {in_seconds(costs['calibrate'])} per image",
        ),
    ]


def describe_budget(run: Run, measured: Measured, startup: float, encoding: float) -> list[tuple[str, str]]:
    """Return the lines about the length of the run.

    Args:
        run: the run, with the costs of what is done between steps.
        measured: time of a step.
        startup: seconds before the first step, `encoding` included.
        encoding: seconds for encoding all images.
    """
    recipe, seconds = run.recipe, measured.step_seconds
    lines = []
    if encoding:
        lines.append(("encoding", f"about {in_words(encoding)} before the first step, once for this codec and data"))
    between = len(SHOWN_AT) * cost_of(run, ON_THE_WAY) + (cost_of_end(run) or 0.0) + run.state.costs["save"]
    if recipe.minutes is not None:
        left = 60 * recipe.minutes - startup - between
        left -= int(60 * recipe.minutes / SAVE_SECONDS) * run.state.costs["save"]
        steps = max(0, int(left / seconds))
        name = f"--minutes {recipe.minutes:g}"
        text = f"about {steps:,} steps" if steps else "not enough for a step"
    else:
        steps = recipe.steps or 0
        total = startup + between + steps * seconds
        total += int(total / SAVE_SECONDS) * run.state.costs["save"]
        name, text = f"--steps {steps:,}", f"about {in_words(total)}"
    images = steps * recipe.batch_size
    grid = images_to_draw(run, ON_THE_WAY, 0.0) if run.ema.can("sample") else 0
    lines.append((name, f"{text}: {images:,} images, {images / len(run.data):.3g} epochs, grids of {grid} images"))
    rest = f"{in_words(startup)} for start-up, {in_words(between)} for grids and saving"
    lines.append(("", rest + ("" if recipe.evaluate_every is None else "; evaluations are not included")))
    return lines


def tensors(model: Model) -> list[Tensor]:
    """Return all parameters and buffers of a model."""
    return [*model.parameters(), *model.buffers()]


def size(values: Iterable[Tensor]) -> int:
    """Return the bytes of some tensors."""
    return sum(value.numel() * value.element_size() for value in values)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def in_bytes(count: float) -> str:
    """Format a size: 2.5e9 -> "2.5 GB"."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:.3g} {name}"


def in_seconds(seconds: float) -> str:
    """Format a duration of seconds or minutes: 0.1234 -> "0.12 s"."""
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 100 else in_words(seconds)
