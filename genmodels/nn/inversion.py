"""Inversion of a generator: find the latent of a given image by gradient descent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LR = 0.1
"""Initial learning rate of Adam."""
PRIOR = 1e-4
"""Weight of |z|^2 relative to the mean squared error, which penalises improbable latents."""


def invert(decode: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, steps: int, bounded: bool) -> Tensor:
    """Return the latents z (N, D) whose decoded images are closest to `target`, image by image.

    Args:
        decode: differentiable, (N, D) -> (N, C, H, W).
        target: images to invert, (N, C, H, W).
        start: initial z.
        steps: steps of Adam, with a learning rate that decays to 0.
        bounded: the values of images are limited to [-1, 1]: where the target is -1 or 1, decoded
            values beyond it count as equal to it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        target = target.detach().float().clone()
        z = start.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([z], LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        for _ in range(steps):
            decoded = decode(z)
            if bounded:
                decoded = torch.where(target.abs() < 1, decoded, decoded.clamp(-1, 1))
            error = (decoded - target).square().mean((1, 2, 3)) + PRIOR * z.square().sum(1)
            (z.grad,) = torch.autograd.grad(error.sum(), z)
            optimizer.step()
            schedule.step()
    return z.detach()
