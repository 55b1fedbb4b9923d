"""What a model costs: parameters, floating-point operations, calls of its network, time and memory."""

from __future__ import annotations

import copy
import ctypes
import gc
import platform
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genmodels.base import Generator
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.results import Score
from genmodels.pixels import to_float
from genmodels.types import Batch, Condition, Noise

Better = Literal["higher", "lower", "neither"]
CYCLE = 4
"""Steps that are averaged."""
FEW = 4
"""Images of the batches whose operations are counted: numbers per image hardly depend on it, and counting is slow."""
WATCH_SECONDS = 0.002
"""Between two looks at the process's memory."""
OPERATIONS = "matrix products, convolutions and attention, a multiply-add as two; nothing else is counted"


def cost_scores(
    model: Generator, *, batch_size: int = 64, seed: int = 0, options: dict[str, Any], seconds: float = 3.0
) -> tuple[dict[str, Score], dict[str, str]]:
    """What `model` costs to train and to sample, without a condition; the model stays as it was.

    Args:
        model: on the device it shall run on.
        batch_size: images at a time when speed and memory are measured.
        seed: of the noise.
        options: fields of `model.Options`.
        seconds: how long the speed is measured, at least one batch.

    Returns:
        "parameters", "train-flops", "sample-flops", "network-evaluations", "images-per-second" and "memory"; and, for
        those that are not among them, why.

    Raises:
        ValueError: for an option the family does not have.
    """
    model.options(**options)
    device = next(model.parameters()).device
    anywhere = Protocol(size=model.config.size)
    here = Protocol(size=model.config.size, n=batch_size, machine=machine(model))
    scores: dict[str, Score] = {}
    absent: dict[str, str] = {}

    def add(name: str, value: float, how: str, protocol: Protocol, unit: str = "", better: Better = "lower") -> None:
        scores[name] = Score(float(value), better, how, protocol, unit, group="cost")

    def sample(n: int) -> None:
        model.generate(n, seed, batch_size=n, **options)

    count = sum(p.numel() for p in model.parameters())
    add("parameters", count, "all parameters, without buffers", anywhere, better="neither")
    with reasons(absent, "train-flops"):
        how = f"forward and backward of one step, all turns, without the optimiser: {OPERATIONS}"
        add("train-flops", training_operations(model, seed), how, anywhere, "FLOPs/image")
    with reasons(absent, "sample-flops", "network-evaluations"):
        operations, calls = sampling_operations(model, lambda: sample(FEW))
        add("sample-flops", operations / FEW, f"one sample, all its steps: {OPERATIONS}", anywhere, "FLOPs/image")
        if calls:
            how = "calls per batch of the most called layer that has weights"
            add("network-evaluations", calls, how, anywhere)
        else:
            absent["network-evaluations"] = "no layer with weights is called as a module"
    with reasons(absent, "memory", "images-per-second"):
        extra, how = peak_memory(lambda: sample(batch_size), device)
        weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        add("memory", weights + extra, f"the weights, and while a batch is sampled {how}", here, "bytes")
        # That was the warm-up.
        speed = batch_size / median_seconds(lambda: sample(batch_size), seconds, device)
        add("images-per-second", speed, "sampling, the median batch", here, "images/s", "higher")
    return scores, absent


@contextmanager
def reasons(absent: dict[str, str], *names: str) -> Iterator[None]:
    """What cannot be measured inside is noted in `absent`: something is missing, or the memory does not suffice."""
    try:
        yield
    except (ValueError, torch.OutOfMemoryError) as error:
        absent.update(dict.fromkeys(names, str(error).partition("\n")[0]))


def training_operations(model: Generator, seed: int = 0) -> float:
    """Floating-point operations per image of one training step: forward and backward of every turn, the mean of
    `CYCLE` steps, since some losses have terms that are not computed in each.

    A copy of the model takes the steps, half-way through training, on random images.

    Raises:
        ValueError: when none of a turn's parameters takes a gradient, or the loss misses something.
    """
    device = next(model.parameters()).device
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
                trained.loss(batch, turn)[0].backward()
    return counter.get_total_flops() / FEW / CYCLE


def sampling_operations(model: nn.Module, sample: Callable[[], object]) -> tuple[int, int]:
    """Floating-point operations of `sample()`, and how often it calls the most called module that has weights.

    The second number is 1 for a decoder and the number of steps for a diffusion model. Guidance that puts two
    evaluations into one batch counts once; the operations show it.
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


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Inside, operations are counted, the same on every device.

    torch's fused attention differs from device to device, and the processor's is not counted at all: it is replaced by
    plain matrix products.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def peak_memory(run: Callable[[], object], device: torch.device) -> tuple[int, str]:
    """The most bytes that `run()` holds at a time beyond what was held before, and how that was measured."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before, "the peak of the GPU's allocated memory beyond them"
    with suppress(OSError, AttributeError):
        # Memory that was freed and kept for later use would hide what is allocated again. glibc only.
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
    """Median time of `run()`, run for `seconds` in all and at least once."""

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


def machine(model: Generator) -> str:
    """What `model` runs on, in words: the device, and the precision of its weights."""
    weight = next(model.parameters())
    precision = str(weight.dtype).removeprefix("torch.")
    if weight.device.type == "cuda":
        return f"{torch.cuda.get_device_name(weight.device)}, {precision}"
    if weight.device.type != "cpu":
        return f"{weight.device.type}, {precision}"
    return f"{processor()}, {torch.get_num_threads()} threads, {precision}"


def processor() -> str:
    """Name of this machine's processor, as exactly as it is known."""
    with suppress(OSError):  # Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown processor"


def unknown(model: Generator, n: int) -> Condition:
    """`n` images of which nothing is known, in the form that the model was trained with."""
    device = next(model.parameters()).device
    return Condition(
        torch.zeros(n, len(model.conditions.attributes), device=device) if model.conditions.attributes else None,
        torch.full((n,), -1, device=device) if model.conditions.classes else None,
    )
