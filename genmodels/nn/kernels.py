"""Published GPU kernels of state-space mixers: packages that are used where a config names them.

A kernel computes what the plain form in nn/scan.py does. It is used on a GPU, for whole sequences;
on other devices, in generation step by step, and while operations are counted, the plain form is.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from genmodels.nn import operations

Kernel = Literal["mamba-ssm", "causal-conv1d"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
"""mamba-ssm: the scans (arXiv 2312.00752, 2405.21060). causal-conv1d: the convolution before them.
Both are names of packages."""
MODULES = {
    "mamba": "mamba_ssm.ops.selective_scan_interface",
    "mamba2": "mamba_ssm.ops.triton.ssd_combined",
    "conv": "causal_conv1d",
}


def uses(kernel: Kernel, requested: Sequence[Kernel], device: torch.device) -> bool:
    """Whether `kernel` is requested and computes on `device`."""
    return kernel in requested and on_gpu(device) and not operations.active


def on_gpu(device: torch.device) -> bool:
    """Whether the kernels support a device."""
    return device.type == "cuda"


def load(kernel: Kernel, module: str) -> ModuleType:
    """Import a module of the package of a kernel.

    Raises:
        ValueError: if the package is not installed or cannot be loaded here.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        why = "is not installed" if absent else f"cannot be loaded ({str(error).splitlines()[0]})"
        raise ValueError(
            f"kernel {kernel!r} {why}: pip install --no-build-isolation {kernel}, or leave it out of "
            "--model.transformer.ssm.kernels, whose plain form computes the same"
        ) from None


def _int32(sequences: Tensor | None) -> Tensor | None:
    return None if sequences is None else sequences.int()  # the only dtype that the packages take


def convolution(x: Tensor, weight: Tensor, bias: Tensor, sequences: Tensor | None) -> Tensor:
    """silu(short_convolution(x)) without inputs before x: arguments as there, (N, T, C)."""
    kernel = load("causal-conv1d", MODULES["conv"])
    if x.stride(1) % 8:  # the kernel loads 8 numbers at a time; x may be a part of wider vectors
        x = x.contiguous()
    y: Tensor = kernel.causal_conv1d_fn(x.transpose(1, 2), weight, bias, seq_idx=_int32(sequences), activation="silu")
    return y.transpose(1, 2)


def selective_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """y (N, T, D) of `scan.selective_scan`, for one sequence a row, whose first state is 0."""
    kernel = load("mamba-ssm", MODULES["mamba"])
    x, dt, b, c = (value.transpose(1, 2).contiguous() for value in (x, dt.to(x.dtype), b, c))  # (N, ..., T)
    y: Tensor = kernel.selective_scan_fn(x, dt, a, b, c)
    return y.transpose(1, 2)


def ssd(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, sequences: Tensor | None, chunk: int) -> Tensor:
    """y (N, T, H, P) of `scan.ssd`, whose first state is 0."""
    kernel = load("mamba-ssm", MODULES["mamba2"])
    y: Tensor = kernel.mamba_chunk_scan_combined(x, dt, a, b, c, chunk, seq_idx=_int32(sequences))
    return y
