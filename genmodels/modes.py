"""Contexts in which a model computes: in eval mode, in full precision, in that of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class evaluating:  # noqa: N801  (a context manager that reads as a word)
    """Context manager that puts a model into eval mode and restores the mode of each module after."""

    def __init__(self, model: nn.Module):
        self._modes = [(module, module.training) for module in model.modules()]

    def __enter__(self) -> None:
        for module, _ in self._modes:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, mode in self._modes:
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


def native_precision(model: nn.Module) -> torch.autocast:
    """Return a context in which a model in half precision computes in that precision.

    Noise, conditions and images are float32. Autocast converts them where a layer needs it. For
    float32 models the context does nothing.
    """
    weight = next(model.parameters())
    half = weight.dtype in (torch.float16, torch.bfloat16)
    dtype = weight.dtype if half else torch.get_autocast_dtype(weight.device.type)
    enabled = half or torch.is_autocast_enabled(weight.device.type)
    return torch.autocast(weight.device.type, dtype=dtype, enabled=enabled)
