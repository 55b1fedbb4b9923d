"""Measure memory and time of attention against T, for every available backend and for the formula.

    python benchmarks/attention.py [--lengths 512 1024 2048 4096] [--json attention.json]
    python benchmarks/attention.py --device cuda --dtype bfloat16

`naive` is softmax(Q K^T / sqrt(d)) V as written, with T x T matrices. The others are the backends
of `genmodels.nn.attention`, under the names of the kernels that ran. Memory is the peak that one
call adds to its inputs: of the process's resident memory on a CPU (Linux with glibc), of torch's
allocator on a GPU. Time is the median of `--repeats` further calls. The growth is the exponent
between the two longest lengths: 1 is proportional to T, 2 to T^2.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genmodels.nn.attention import Backend, attend, available_backends, kernel_of

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Settings:
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    """T, ascending."""
    batch_size: int = 1
    heads: int = 4
    head_dim: int = 64
    causal: bool = True
    backward: bool = True
    """Measure forward and backward together as well."""
    repeats: int = 3
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int = 1
    """Threads of torch."""
    json: Path | None = None
    """Where to write every number."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    kernel: str
    passes: str
    length: int
    mebibytes: float
    seconds: float


def naive(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The formula as it is written."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (N, H, T, T)
    if causal:
        length = q.shape[2]
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ v


def peak_mebibytes(call: Callable[[], object], device: str) -> float:
    """The most memory that `call` holds at once, beyond what was held before."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is held now
    before = resident("VmRSS")
    call()
    return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> int:
    """KiB of resident memory: VmRSS is now, VmHWM the peak."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match.group(1))


def measure(kernel: str, run: Callable[..., Tensor], length: int, passes: str, settings: Settings) -> Row:
    """Peak memory of one call, then the median time of some."""
    shape = (settings.batch_size, settings.heads, length, settings.head_dim)
    dtype = getattr(torch, settings.dtype)
    torch.manual_seed(0)
    inputs = [torch.randn(shape, device=settings.device, dtype=dtype) for _ in range(3)]
    if passes == "both":
        inputs = [x.requires_grad_() for x in inputs]

    def call() -> None:
        out = run(*inputs)
        if passes == "both":
            torch.autograd.grad(out, inputs, torch.ones_like(out))

    mebibytes = peak_mebibytes(call, settings.device)
    seconds = []
    for _ in range(settings.repeats):
        start = time.perf_counter()
        call()
        if settings.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Row(kernel, passes, length, mebibytes, statistics.median(seconds))


def kernels(settings: Settings) -> dict[str, Callable[..., Tensor]]:
    """What to measure, under the name of the kernel that runs."""
    half = settings.dtype != "float32"
    shape = (settings.batch_size, settings.heads, settings.lengths[-1], settings.head_dim)
    q = torch.zeros(shape, device=settings.device, dtype=getattr(torch, settings.dtype))

    def by(backend: Backend) -> Callable[..., Tensor]:
        return lambda q, k, v: attend(q, k, v, causal=settings.causal, backend=backend)

    kernels: dict[str, Callable[..., Tensor]] = {"naive": lambda q, k, v: naive(q, k, v, settings.causal)}
    for backend in available_backends(settings.device):
        if half or backend not in ("flash", "flash3"):
            kernels[kernel_of(q, q, q, causal=settings.causal, backend=backend)] = by(backend)
    return kernels


def exponent(rows: list[Row], value: Callable[[Row], float]) -> float:
    """p of value ~ T^p, between the two longest lengths."""
    last, longest = rows[-2:]
    return math.log(value(longest) / value(last)) / math.log(longest.length / last.length)


def main(settings: Settings) -> None:
    if len(settings.lengths) < 2:
        raise SystemExit("give at least two --lengths: the growth is what this is about")
    torch.set_num_threads(settings.threads)
    if settings.device == "cpu":
        # Freed tensors go back to the system at once, and the next ones do not hide in memory that was kept.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    every: list[Row] = []
    headings = ("kernel", *(f"T = {length:,}" for length in settings.lengths), "growth")
    for passes in ("forward", "both") if settings.backward else ("forward",):
        table = Table(*headings, title=f"{passes}: MiB, ms")
        for kernel, run in kernels(settings).items():
            if passes == "both" and kernel.startswith("flex") and settings.device == "cpu":
                continue  # torch has no backward pass of it on a CPU
            # What is loaded at the first call is not attention's.
            measure(kernel, run, settings.lengths[0], passes, settings)
            rows = [measure(kernel, run, length, passes, settings) for length in settings.lengths]
            every += rows
            cells = [f"{row.mebibytes:,.1f}, {1e3 * row.seconds:,.0f}" for row in rows]
            growth = [exponent(rows, lambda row: max(row.mebibytes, 0.1)), exponent(rows, lambda row: row.seconds)]
            table.add_row(kernel, *cells, ", ".join(f"{power:.1f}" for power in growth))
        Console(width=140).print(table)
    if settings.json is not None:
        shown = asdict(settings) | {"json": str(settings.json)}
        content = {"settings": shown, "torch": torch.__version__, "rows": [asdict(row) for row in every]}
        settings.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
