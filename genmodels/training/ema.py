"""The exponential moving average of the weights, with the power-function profile of EDM2 (arXiv 2312.02696)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

MAX_SIGMA_REL = 12**-0.5
"""The relative width of a flat average over the whole run (gamma = 0), the widest there is: 0.2887."""


def power_exponent(sigma_rel: float) -> float:
    """gamma of the profile whose standard deviation is `sigma_rel` of the training so far (EDM2, equation 126 solved).

    The average at time t weighs the weights of time tau by tau^gamma; its relative width is
    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^-(1/2). For 0.05, gamma is 16.97; for 0.10, 6.94.

    Raises:
        ValueError: when sigma_rel is not in (0, 0.2887].
    """
    if not 0 < sigma_rel <= MAX_SIGMA_REL:
        raise ValueError(f"the EMA's sigma_rel must be in (0, {MAX_SIGMA_REL:.4f}], got {sigma_rel}")
    precision = sigma_rel**-2
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


def ema_decay(updates: int, sigma_rel: float) -> float:
    """beta of update number `updates` (from 1): ema <- beta ema + (1 - beta) weights (EDM2, equation 127).

    It is 0 at the first update, so the initial weights leave no trace, and grows with the length of the run, so neither
    the number of steps nor the batch size needs to be known. sigma_rel 0 switches averaging off: beta is always 0.
    """
    if sigma_rel == 0:
        return 0.0
    return (1 - 1 / updates) ** (power_exponent(sigma_rel) + 1)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves `ema`, a copy of `model`, towards it: parameters are averaged, buffers are copied.

    A frozen module may be shared by both; averaging it with itself changes nothing.
    """
    pairs = zip(ema.parameters(), model.parameters(), strict=True)
    own = [(average, weight) for average, weight in pairs if average is not weight]
    averages: list[Tensor] = [average for average, _ in own]
    weights: list[Tensor] = [weight for _, weight in own]
    if own:
        torch._foreach_lerp_(averages, weights, 1 - decay)  # as torch.optim.swa_utils does
    for average, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        if average is not buffer:
            average.copy_(buffer)


@torch.no_grad()
def restore_buffers(module: nn.Module, buffers: Sequence[Tensor]) -> None:
    """Gives `module` back the buffers it had, in the order of `module.buffers()`."""
    for buffer, old in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(old)
