"""Contexts in which a model computes: eval mode, full precision; what a device computes fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Compute in eval mode and in the precision of the weights inside this context.

    The mode of each module is restored after. For a model in half precision autocast converts
    noise, conditions and images, which are float32, where a layer needs it.
    """
    modes = [(module, module.training) for module in model.modules()]
    weight = next(model.parameters())
    device = weight.device.type
    half = weight.dtype in (torch.float16, torch.bfloat16)
    dtype = weight.dtype if half else torch.get_autocast_dtype(device)
    try:
        for module, _ in modes:
            module.training = False
        with torch.autocast(device, dtype=dtype, enabled=half or torch.is_autocast_enabled(device)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def full_precision(device: torch.device | str) -> Iterator[None]:
    """Compute in float32 inside this context: disable autocast and TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            torch.autocast(torch.device(device).type, enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for bf16. A CPU without them computes bf16 many times slower
    than float32."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
