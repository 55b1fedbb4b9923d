"""Training a mean flow (arXiv 2505.13447): the network learns the mean velocity between two times from the identity
that ties it to the velocity at the later one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genmodels.diffusion.process import SLOW, MeanFlow
from genmodels.types import Noise

FREQUENCIES = 256
"""Sines and cosines that the length of a step is shown as."""
FLOOR = 1e-3
"""Added to an image's mean squared error before it becomes a weight."""

Velocity = Callable[[Tensor, Tensor, "Tensor | None", slice], Tensor]
"""x_t (n, C, H, W), t (n, 1, 1, 1), r like t or None for t, and which of the batch these are -> u (n, C, H, W)."""


class StepEmbedding(nn.Module):
    """The length of a step in time (N, 1, 1, 1), as a vector (N, D) beside the condition. It begins as zeros, so that
    a mean flow begins as a flow."""

    def __init__(self, width: int):
        super().__init__()
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=1)
        self.embedding = TimestepEmbedding(FREQUENCIES, width)
        nn.init.zeros_(self.embedding.linear_2.weight)
        nn.init.zeros_(self.embedding.linear_2.bias)

    def forward(self, length: Tensor) -> Tensor:
        return self.embedding(self.frequencies(SLOW * length.view(-1)).to(length.dtype))


def mean_velocity_error(
    process: MeanFlow, velocity: Velocity, x0: Tensor, eps: Tensor, t: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Squared errors (N, C, H, W) of the mean velocity u(x_t, r, t), and the weight (N,) of each image.

    Differentiating (t - r) u = x_t - x_r along the path gives u = v - (t - r) du/dt. The first images of the batch have
    r = t, where that is flow matching; for the others du/dt comes from one forward-mode pass, without a gradient.

    Args:
        process: says for how many.
        velocity: what the network says.
        x0, eps: data and noise (N, C, H, W).
        t: drawn times (N, 1, 1, 1).
        noise: N streams, for the second times.
    """
    other = process.draw(noise.uniform()).view(-1, 1, 1, 1)
    same = len(x0) - max(1, round(process.share * len(x0)))
    first, rest = slice(None, same), slice(same, None)
    now = torch.cat([t[first], torch.maximum(t, other)[rest]])
    r = torch.minimum(t, other)[rest]
    x_t, v = process.noisy(x0, eps, now), eps - x0
    errors = []
    if same:
        errors.append(velocity(x_t[first], now[first], None, first) - v[first])

    def along(x: Tensor, at: Tensor) -> Tensor:
        return velocity(x, at, r, rest)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
        u, change, *_ = torch.func.jvp(along, (x_t[rest], now[rest]), (v[rest], torch.ones_like(r)))
    errors.append(u - (v[rest] - (now[rest] - r) * change).detach())
    error = torch.cat(errors).square()
    return error, (error.detach().mean((1, 2, 3)) + FLOOR).pow(-process.power)
