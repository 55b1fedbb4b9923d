"""Memory and time of attention against T, for every available backend and for the plain formula.

    python benchmarks/attention.py [--lengths 512 1024 2048 4096] [--json a.json]
    python benchmarks/attention.py --device cuda --dtype bfloat16

`naive` computes softmax(Q K^T / sqrt(d)) V with explicit T x T matrices. The other rows are the
backends of `genmodels.nn.attention`, under the names of the kernels that ran. Memory is the peak
that one call adds to the memory of its inputs: resident memory of the process on a CPU (Linux with
glibc), or memory of torch's allocator on a GPU. Time is the median of `--repeats` further calls.
Growth is the exponent p of T^p between the two longest lengths, for memory and time.
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

M_MMAP_THRESHOLD = -3  # constant of glibc's malloc.h


@dataclass(frozen=True)
class Settings:
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Sequence lengths T, ascending."""
    batch_size: int = 1
    heads: int = 4
    head_dim: int = 64
    causal: bool = True
    backward: bool = True
    """Also measure the forward and backward pass together."""
    repeats: int = 3
    """Number of timed calls; the median is reported."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int = 1
    """Number of threads used by torch."""
    json: Path | None = None
    """File to write all measurements to."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    kernel: str
    passes: str
    length: int
    mebibytes: float
    seconds: float


def naive(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Compute attention by the formula, with explicit score matrices.

    Args:
        q, k, v: (N, H, T, d).
        causal: whether a query attends only to keys at its position or before.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (N, H, T, T)
    if causal:
        length = q.shape[2]
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ v


def peak_mebibytes(call: Callable[[], object], device: str) -> float:
    """Measure the peak memory of `call` in MiB, above the memory in use before the call."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current value
    before = resident("VmRSS")
    call()
    return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> int:
    """Return the resident memory in KiB: the current value (VmRSS) or the peak (VmHWM)."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match.group(1))


def measure(kernel: str, run: Callable[..., Tensor], length: int, passes: str, settings: Settings) -> Row:
    """Measure the peak memory of one call, then the median time of further calls."""
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
    """Return the functions to measure, by the name of the kernel that runs."""
    half = settings.dtype != "float32"
    shape = (settings.batch_size, settings.heads, settings.lengths[-1], settings.head_dim)
    q = torch.zeros(shape, device=settings.device, dtype=getattr(torch, settings.dtype))

    def by(backend: Backend) -> Callable[..., Tensor]:
        return lambda q, k, v: attend(q, k, v, causal=settings.causal, backend=backend)

    functions: dict[str, Callable[..., Tensor]] = {"naive": lambda q, k, v: naive(q, k, v, settings.causal)}
    for backend in available_backends(settings.device):
        if half or backend not in ("flash", "flash3"):
            functions[kernel_of(q, q, q, causal=settings.causal, backend=backend)] = by(backend)
    return functions


def exponent(rows: list[Row], value: Callable[[Row], float]) -> float:
    """Return the exponent p of value ~ T^p between the two longest lengths."""
    last, longest = rows[-2:]
    return math.log(value(longest) / value(last)) / math.log(longest.length / last.length)


def main(settings: Settings) -> None:
    if len(settings.lengths) < 2:
        raise SystemExit("give at least two --lengths: the growth is measured between two of them")
    torch.set_num_threads(settings.threads)
    if settings.device == "cpu":
        # glibc then returns freed tensors to the system at once. Otherwise later ones would reuse
        # that memory and not show in the peak.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    every: list[Row] = []
    headings = ("kernel", *(f"T = {length:,}" for length in settings.lengths), "growth")
    for passes in ("forward", "both") if settings.backward else ("forward",):
        table = Table(*headings, title=f"{passes}: MiB, ms")
        for kernel, run in kernels(settings).items():
            if passes == "both" and kernel.startswith("flex") and settings.device == "cpu":
                continue  # torch has no backward pass for it on a CPU
            # Warm up: the first call also loads libraries.
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
