"""The way back from an image to what it was painted from, by gradient descent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LR = 0.1
PRIOR = 1e-4
"""Weight of |z|^2 beside the mean squared error: an image that needs an improbable z is not worth it."""


def invert(paint: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, steps: int, bounded: bool) -> Tensor:
    """The z (N, D) for which `paint(z)` is nearest to `target` (N, C, H, W), each image by itself.

    Args:
        paint: differentiable, (N, D) -> (N, C, H, W).
        target: what to find.
        start: z to begin from.
        steps: of Adam, with a learning rate that falls to 0.
        bounded: images end at -1 and 1, where a painted value beyond is as good as can be.
    """
    with torch.inference_mode(False), torch.enable_grad():
        target = target.detach().float().clone()
        z = start.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([z], LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        for _ in range(steps):
            painted = paint(z)
            if bounded:
                painted = torch.where(target.abs() < 1, painted, painted.clamp(-1, 1))
            error = (painted - target).square().mean((1, 2, 3)) + PRIOR * z.square().sum(1)
            (z.grad,) = torch.autograd.grad(error.sum(), z)
            optimizer.step()
            schedule.step()
    return z.detach()
