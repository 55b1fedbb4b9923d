"""Ridge regression in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RIDGE = 1e-3
"""Value added to the diagonal of the covariance, relative to its mean."""


class LinearMap(nn.Module):
    """Maps x (N, inputs) to y (N, outputs); fitted in closed form instead of trained."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(inputs, outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> None:
        """Fit by ridge regression of `y` (N, outputs) on `x` (N, inputs), computed in float64."""
        x, y = x.double(), y.double()
        x_mean, y_mean = x.mean(0), y.mean(0)
        x, y = x - x_mean, y - y_mean
        covariance = x.T @ x
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean().clamp_min(1e-12))
        weight = torch.linalg.solve(covariance, x.T @ y)
        self.weight.copy_(weight)
        self.bias.copy_(y_mean - x_mean @ weight)
