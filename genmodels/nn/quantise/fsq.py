"""Finite scalar quantisation: each of a few values is rounded; there is no codebook to learn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmodels.nn.quantise.base import Quantiser, straight_through

EPS = 1e-3
"""Margin that keeps bounded values from reaching the next level."""


class FSQ(Quantiser):
    """Bounds each of D values and rounds it to one of L_d levels (arXiv 2309.15505).

    The codebook is the grid of all prod L_d combinations. With h = (L - 1) (1 - EPS) / 2, a value z
    becomes round(tanh(z + s) h - o), divided by floor(L / 2) to lie in [-1, 1]. For even L, which
    has no middle level, o = 1/2 and s = tan(o / h); for odd L both are 0. Codes enumerate the grid
    with the first value changing fastest. Gradients pass straight through the rounding. Neither a
    commitment loss nor restarts are needed.

    Args:
        sizes: L_d, one per value: (8, 5, 5, 5) gives 1,000 codes.
    """

    sizes: Tensor
    strides: Tensor
    reach: Tensor
    offset: Tensor

    def __init__(self, sizes: tuple[int, ...]):
        if not sizes or min(sizes) < 2:
            raise ValueError(f"fsq needs at least 2 levels for each value, got {sizes}")
        super().__init__(math.prod(sizes), len(sizes))
        L = torch.tensor(sizes)
        self.register_buffer("sizes", L, persistent=False)
        self.register_buffer("strides", L.cumprod(0) // L, persistent=False)
        self.register_buffer("reach", (L - 1) * (1 - EPS) / 2, persistent=False)
        self.register_buffer("offset", torch.where(L % 2 == 0, 0.5, 0.0), persistent=False)

    def bound(self, points: Tensor) -> Tensor:
        """Bound points (P, D) so that they round to -floor(L / 2), ..., ceil(L / 2) - 1."""
        shift = torch.tan(self.offset / self.reach)
        return torch.tanh(points + shift) * self.reach - self.offset

    def assign(self, points: Tensor) -> Tensor:
        digits = self.bound(points).round().long() + self.sizes // 2  # (P, D), from 0
        return (digits * self.strides).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes.unsqueeze(1) // self.strides % self.sizes  # (P, D)
        return (digits - self.sizes // 2) / (self.sizes // 2)

    def through(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bounded, vectors = self.bound(points) / (self.sizes // 2), self.lookup(codes)
        return straight_through(bounded, vectors), points.new_zeros(()), (bounded - vectors).square().mean()
