"""The variance of a DDPM's steps, where the network learns it (arXiv 2102.09672): how it is said, what teaches it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmodels.diffusion.ddpm import DDPM


def log_variance(
    fraction: Tensor, alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor
) -> tuple[Tensor, Tensor]:
    """log of the variance of a step from (alpha, sigma) to (alpha_next, sigma_next), less noisy but not clean.

    Args:
        fraction: where it lies between its bounds in logarithms, 0: the posterior's given the data, 1: that of the step
            towards noise.
        alpha, sigma, alpha_next, sigma_next: of the path, broadcast against it.

    Returns:
        It, like `fraction`, and the lower bound.
    """
    share = sigma_next * alpha / (sigma * alpha_next)
    low = (sigma_next.square() * (1 - share.square())).log()
    high = (1 - (alpha / alpha_next).square()).log()
    return low + fraction * (high - low), low


def variance_bound(process: DDPM, fraction: Tensor, found: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The step's term of the variational bound, in bits per dimension, (N,); it teaches `fraction` alone.

    From timestep t > 0 to t - 1 that is KL(q(x_(t-1) | x_t, x_0) || p(x_(t-1) | x_t)); from 0 to the data,
    -log p(x_0 | x_0's estimate) up to a constant. Both are normal, and means differ by what the estimate of x_0 differs
    from x_0, times a number.

    Args:
        process: whose steps.
        fraction: what the network says, (N, C, H, W).
        found: its estimate of the data, which gets no gradient.
        x0: the data.
        t: timesteps (N, 1, 1, 1).
    """
    # The first step's lower bound is 0: it takes the second's, as the paper does.
    second = t.clamp_min(1)
    where = [value.double() for at in (second, second - 1) for value in (process.alpha(at), process.sigma(at))]
    wide, low = log_variance(fraction.double(), *where)
    alpha, sigma, alpha_next, sigma_next = where
    slope = alpha_next - (sigma_next.square() - low.exp()).clamp_min(0).sqrt() * alpha / sigma
    error = (x0 - found.detach()).double().square()
    divergence = (wide - low - 1 + (low - wide).exp() + (slope * slope) * error * (-wide).exp()) / 2
    likelihood = (math.log(2 * math.pi) + wide + error * (-wide).exp()) / 2
    nats = torch.where(t > 0, divergence, likelihood)
    return (nats.mean((1, 2, 3)) / math.log(2)).to(found.dtype)
