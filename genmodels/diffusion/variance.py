"""The learned variance of a DDPM's steps (arXiv 2102.09672): its parameterisation and its loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmodels.diffusion.ddpm import DDPM


def log_variance(
    fraction: Tensor, alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor
) -> tuple[Tensor, Tensor]:
    """Log variance of a step from (alpha, sigma) to (alpha_next, sigma_next > 0).

    Args:
        fraction: position between the bounds (equation 15). 0: log of the posterior variance given
            the data; 1: log of the variance beta of the forward step.
        alpha, sigma, alpha_next, sigma_next: coefficients that broadcast against `fraction`.

    Returns:
        The log variance, like `fraction`, and its lower bound.
    """
    decay = sigma_next * alpha / (sigma * alpha_next)  # e^(-h)
    low = (sigma_next.square() * (1 - decay.square())).log()
    high = (1 - (alpha / alpha_next).square()).log()
    return low + fraction * (high - low), low


def variance_bound(process: DDPM, fraction: Tensor, estimate: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Term of the variational bound for the step from t, in bits per dimension, (N,).

    For t > 0 it is KL(q(x_(t-1) | x_t, x_0) || p(x_(t-1) | x_t)); for t = 0, -log p(x_0 | x_1) up
    to a constant. Both distributions are normal, and their means differ by a multiple of the error
    of the estimate of x_0. Only `fraction` receives gradients.

    Args:
        process: the DDPM.
        fraction: predicted position of the log variance between its bounds (N, C, H, W).
        estimate: predicted x_0 (N, C, H, W).
        x0: the data (N, C, H, W).
        t: timesteps (N, 1, 1, 1).
    """
    # The lower bound of the first step is 0: as in the paper, that of the second is used for it.
    t1 = t.clamp_min(1)
    coefficients = [value.double() for time in (t1, t1 - 1) for value in (process.alpha(time), process.sigma(time))]
    log_var, low = log_variance(fraction.double(), *coefficients)
    alpha, sigma, alpha_next, sigma_next = coefficients
    slope = alpha_next - (sigma_next.square() - low.exp()).clamp_min(0).sqrt() * alpha / sigma
    error = (x0 - estimate.detach()).double().square()
    divergence = (log_var - low - 1 + (low - log_var).exp() + (slope * slope) * error * (-log_var).exp()) / 2
    nll = (math.log(2 * math.pi) + log_var + error * (-log_var).exp()) / 2
    nats = torch.where(t > 0, divergence, nll)
    return (nats.mean((1, 2, 3)) / math.log(2)).to(estimate.dtype)
