"""Training of a mean flow (arXiv 2505.13447).

The mean velocity between two times is learned from the MeanFlow identity, which relates it to the
velocity at the later time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genmodels.diffusion.process import MEANFLOW_TIME_SCALE, MeanFlow
from genmodels.types import Noise

FREQUENCIES = 256
"""Number of sines and cosines that the length of a step is embedded as."""
FLOOR = 1e-3
"""Constant added to an image's mean squared error in its weight."""

Velocity = Callable[[Tensor, Tensor, "Tensor | None", slice], Tensor]
"""u(x_t, t, r, rows): mean velocity (n, C, H, W) from x_t (n, C, H, W), t (n, 1, 1, 1), r like t or
None for r = t, and the rows of the batch that these are."""


class StepEmbedding(nn.Module):
    """Embeds the length t - r of a step (N, 1, 1, 1) as a vector (N, D), added to the condition.

    It is initialised to output zeros, so that a mean flow starts as a flow.
    """

    def __init__(self, width: int):
        super().__init__()
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=1)
        self.embedding = TimestepEmbedding(FREQUENCIES, width)
        nn.init.zeros_(self.embedding.linear_2.weight)
        nn.init.zeros_(self.embedding.linear_2.bias)

    def forward(self, length: Tensor) -> Tensor:
        return self.embedding(self.frequencies(MEANFLOW_TIME_SCALE * length.view(-1)).to(length.dtype))


def mean_velocity_error(
    process: MeanFlow, velocity: Velocity, x0: Tensor, eps: Tensor, t: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Squared errors (N, C, H, W) of the mean velocity, and the weights (N,) of the images.

    Differentiating (t - r) u = x_t - x_r along the path gives the identity u = v - (t - r) du/dt
    (equation 6). The first images of the batch have r = t, where it is flow matching; for the
    others du/dt is a Jacobian-vector product, computed in forward mode and without gradients.

    Args:
        process: the mean flow; `share` is the fraction of images with r != t.
        velocity: the network.
        x0, eps: data and noise (N, C, H, W).
        t: drawn times (N, 1, 1, 1).
        noise: N streams, for the second times.
    """
    second = process.draw(noise.uniform()).view(-1, 1, 1, 1)
    same = len(x0) - max(1, round(process.share * len(x0)))
    first, rest = slice(None, same), slice(same, None)
    r = torch.minimum(t, second)[rest]
    t = torch.cat([t[first], torch.maximum(t, second)[rest]])
    x_t, v = process.noisy(x0, eps, t), eps - x0
    errors = []
    if same:
        errors.append(velocity(x_t[first], t[first], None, first) - v[first])

    def mean_velocity(x: Tensor, time: Tensor) -> Tensor:
        return velocity(x, time, r, rest)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels do not support forward-mode derivatives
        u, du_dt, *_ = torch.func.jvp(mean_velocity, (x_t[rest], t[rest]), (v[rest], torch.ones_like(r)))
    errors.append(u - (v[rest] - (t[rest] - r) * du_dt).detach())  # equations 9 and 10
    error = torch.cat(errors).square()
    return error, (error.detach().mean((1, 2, 3)) + FLOOR).pow(-process.power)
