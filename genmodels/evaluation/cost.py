"""What a model costs: parameters, floating-point operations, network evaluations, time and
memory."""

from __future__ import annotations

import copy
import ctypes
import gc
import platform
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import nn

from genmodels import sampling
from genmodels.base import Model
from genmodels.candidates import BestOf
from genmodels.conditions import Condition, Text
from genmodels.data.conversations import IMAGE, Turn
from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.results import Score
from genmodels.nn.operations import counting
from genmodels.pictures import to_float
from genmodels.types import Batch, Noise

Better = Literal["higher", "lower", "neither"]
SPEED_SECONDS = 3.0
"""Duration of the measurement of speed of an evaluation."""
WATCH_SECONDS = 0.002
"""Seconds between two readings of the memory of the process."""
CYCLE = 4
"""Number of training steps that are averaged."""
FEW = 4
"""Images per batch. Operations per image hardly depend on it, and counting is slow."""
OPERATIONS = "matrix products, convolutions, attention and recurrences, a multiply-add as two; nothing else is counted"


def part(context: Context) -> Part:
    """Measure what the model costs to train and, if it can sample, to sample from."""
    return cost_scores(
        context.model,
        batch_size=context.batch_size,
        seed=context.seed,
        options=context.options,
        best=context.best,
        seconds=SPEED_SECONDS,
    )


def cost_scores(
    model: Any,
    *,
    batch_size: int = 64,
    seed: int = 0,
    options: Mapping[str, Any],
    best: BestOf | None = None,
    seconds: float = SPEED_SECONDS,
) -> Part:
    """Measure the costs of `model` without a condition. The model is not changed.

    The scores are "parameters" and "train-flops" and, if it can sample, "sample-flops",
    "network-evaluations", "images-per-second" and "memory".

    Args:
        model: the model, on the device it should run on.
        batch_size: number of images computed at a time when speed and memory are measured.
        seed: seed of the noise.
        options: sampling options: fields of `model.Options`.
        best: choice of each sample among several candidates, whose costs are included.
        seconds: duration of the measurement of speed, which takes at least one batch.

    Raises:
        ValueError: if the family has no such option.
    """
    anywhere = Protocol(size=model.config.size)
    count = sum(p.numel() for p in model.parameters())
    scores = {"parameters": _score(count, "all parameters, without buffers", anywhere, better="neither")}
    absent: dict[str, str] = {}
    with reasons(absent, "train-flops"):
        how = f"forward and backward of one step, all turns, without the optimiser: {OPERATIONS}"
        scores["train-flops"] = _score(training_operations(model, seed), how, anywhere, "FLOPs/image")
    if model.can("sample"):
        model.options(**options)

        def sample(n: int) -> None:
            if best is None:
                model.generate(n, seed, batch_size=n, **options)
            else:
                sampling.sample(model, n, seed, batch_size=n, progress=False, best=best, **options)

        measured: dict[str, Score] = {}
        with reasons(absent, "sample-flops", "network-evaluations"):
            _count(model, sample, anywhere, measured, absent)
        with reasons(absent, "memory", "images-per-second"):
            _measure(model, sample, batch_size, seconds, measured)
        each = "" if best is None else f"; each sample is the {best}"
        scores |= {name: replace(score, how=score.how + each) for name, score in measured.items()}
    return Part(scores, absent)


def _score(value: float, how: str, protocol: Protocol, unit: str = "", better: Better = "lower") -> Score:
    return Score(float(value), better, how, protocol, unit, group="cost")


def _count(
    model: Model,
    sample: Callable[[int], None],
    protocol: Protocol,
    scores: dict[str, Score],
    absent: dict[str, str],
) -> None:
    """Count the operations of sampling, and how often it evaluates the network."""
    operations, calls = sampling_operations(model, lambda: sample(FEW))
    scores["sample-flops"] = _score(
        operations / FEW, f"one sample, all its steps: {OPERATIONS}", protocol, "FLOPs/image"
    )
    if calls:
        how = "calls per batch of the most called layer that has weights"
        scores["network-evaluations"] = _score(calls, how, protocol)
    else:
        absent["network-evaluations"] = "no layer with weights is called as a module"


def _measure(
    model: Model, sample: Callable[[int], None], batch_size: int, seconds: float, scores: dict[str, Score]
) -> None:
    """Measure memory and speed of sampling."""
    here = Protocol(size=model.config.size, n=batch_size, machine=machine(model))
    extra, how = peak_memory(lambda: sample(batch_size), model.device)  # also the warm-up
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    how = f"the weights, and while a batch is sampled {how}"
    scores["memory"] = _score(weights + extra, how, here, "bytes")
    speed = batch_size / median_seconds(lambda: sample(batch_size), seconds, model.device)
    scores["images-per-second"] = _score(speed, "sampling, the median batch", here, "images/s", "higher")


def training_operations(model: Model, seed: int = 0) -> float:
    """Count the floating-point operations per image of one training step: forward and backward of
    every turn.

    The result is the mean of `CYCLE` steps, since some losses have terms that are not computed in
    every step. A copy of the model takes the steps, half-way through training, on random images.

    Raises:
        ValueError: if no parameter of a turn takes a gradient, or the loss misses something.
    """
    device = model.device
    trained = copy.deepcopy(model).train()
    parameters = {turn: [p for p in trained.parameters_for(turn) if p.requires_grad] for turn in trained.turns}
    size = model.config.size
    levels = torch.randint(256, (FEW, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    noise = Noise.for_images(seed, range(FEW), device)
    batches = [Batch(to_float(levels, device), noise, unknown(model, FEW), step, progress=0.5) for step in range(CYCLE)]
    # Dropout draws from the global generators.
    with torch.random.fork_rng([device] if device.type == "cuda" else []), counting() as counter:
        for turn, own in parameters.items():
            if not own:
                raise ValueError(f"the parameters of turn {turn!r} are frozen")
            trained.requires_grad_(False)
            for parameter in own:
                parameter.requires_grad_(True)
            for batch in batches:
                trained(batch, turn)[0].backward()
    return counter.get_total_flops() / FEW / CYCLE


def encoding_operations(model: Any) -> float:
    """Count the floating-point operations per image by which a model over a codec encodes images."""
    size = model.config.size
    images = torch.zeros(FEW, 3, size, size, device=model.device)
    with torch.no_grad(), counting() as counter:
        model.encode(images)
    return counter.get_total_flops() / FEW


def sampling_operations(model: nn.Module, sample: Callable[[], object]) -> tuple[int, int]:
    """Count the floating-point operations of `sample()`, and its calls of the most called module
    that has weights.

    The second number is 1 for a decoder and the number of steps for a diffusion model. If guidance
    puts two evaluations into one batch, it counts once; the operations include both.
    """
    calls: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        return lambda *_: calls.update([name])

    weighted = [(name, module) for name, module in model.named_modules() if [*module.parameters(recurse=False)]]
    hooks = [module.register_forward_hook(count(name)) for name, module in weighted]
    try:
        with counting() as counter:
            sample()
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops(), max(calls.values(), default=0)


def unknown(model: Any, n: int) -> Condition:
    """Return the condition of `n` images about which nothing is known, in the form that the model
    is trained with."""
    kinds, device = model.conditions, model.device
    attributes = torch.zeros(n, len(kinds.attributes), device=device) if kinds.attributes else None
    labels = torch.full((n,), -1, device=device) if kinds.classes else None
    text = None
    if model.can("converse"):
        turns = (Turn(f"{IMAGE}\nIs this person smiling?", "Yes, this person is smiling."),)
        text = model.read_conversations([turns] * n).map(lambda tensor: tensor.to(device))
    elif model.can("tokenize"):  # trained with sentences, which are padded to full length
        text = model.tokenize(["a face"] * n).map(lambda tensor: tensor.to(device))
    elif kinds.text.vocabulary:  # sentences of full length
        ids = torch.zeros(n, kinds.text.length, dtype=torch.int64, device=device)
        text = Text(ids, torch.ones_like(ids, dtype=torch.bool))
    return Condition(attributes, labels, text)


def peak_memory(run: Callable[[], object], device: torch.device) -> tuple[int, str]:
    """Return the peak memory of `run()` in bytes, beyond what was allocated before, and how it was
    measured."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before, "the peak of the GPU's allocated memory beyond them"
    with suppress(OSError, AttributeError):
        # Freed memory that was not returned to the system would hide new allocations. glibc only.
        ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    before = most = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(WATCH_SECONDS):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(most, process.memory_info().rss) - before, "the peak of the process's resident set beyond it"


def median_seconds(run: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Return the median time of `run()`, which is called for `seconds` in total and at least
    once."""

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    times: list[float] = []
    while not times or sum(times) < seconds:
        began = now()
        run()
        times.append(now() - began)
    return statistics.median(times)


def machine(model: Model) -> str:
    """Describe what `model` runs on: the device, and the precision of its weights."""
    weight = next(model.parameters())
    precision = str(weight.dtype).removeprefix("torch.")
    if weight.device.type == "cuda":
        return f"{torch.cuda.get_device_name(weight.device)}, {precision}"
    if weight.device.type != "cpu":
        return f"{weight.device.type}, {precision}"
    return f"{processor()}, {torch.get_num_threads()} threads, {precision}"


def processor() -> str:
    """Return the name of this machine's processor, as precisely as it is known."""
    with suppress(OSError):  # Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown processor"
