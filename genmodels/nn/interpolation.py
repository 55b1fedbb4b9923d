"""Interpolation between two latents."""

from __future__ import annotations

import torch
from torch import Tensor


def lerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Interpolate linearly between `first` (1, ...) and `second` (1, ...): (len(weights), ...)."""
    return torch.lerp(first, second, weights.view(-1, *[1] * (first.ndim - 1)))


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Interpolate along an arc between `first` (1, ...) and `second` (1, ...): (len(weights), ...).

    Samples of a high-dimensional Gaussian lie near a sphere. A straight line between two of them
    leaves the sphere, an arc does not (Shoemake 1985; arXiv 1609.04468).
    """
    a, b = first.flatten(), second.flatten()
    cosine = torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return lerp(first, second, weights)
    w = weights.view(-1, *[1] * (first.ndim - 1))
    return (torch.sin((1 - w) * angle) * first + torch.sin(w * angle) * second) / torch.sin(angle)
