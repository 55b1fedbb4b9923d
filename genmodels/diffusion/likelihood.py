"""Bits per dimension of images: by the probability-flow ODE, or the variational bound of a DDPM."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import Process
from genmodels.diffusion.sampler import Denoiser
from genmodels.diffusion.solvers import Denoise, Schedule, encoding, schedule
from genmodels.nn.likelihood import nats_to_bits_per_dim
from genmodels.types import Noise

if TYPE_CHECKING:
    from genmodels.diffusion.model import Diffusion


def bits_per_dim(model: Diffusion, images: Tensor, noise: Noise, steps: int) -> Tensor:
    """Bits per dimension of 8-bit images (N, 3, H, W) under the unconditional model: (N,).

    Of a DDPM its variational bound, estimated at `steps` timesteps; of the others an estimate
    through the probability-flow ODE, solved in `steps` steps.

    Raises:
        ValueError: for a prior over latents, whose likelihood is not that of images.
    """
    if model.over_latents:
        raise ValueError("a prior over latents has no bits per dimension of an image")
    with torch.inference_mode(False):
        images = images.clone()  # usable in autograd, unlike a tensor made in inference mode
        denoise = Denoiser(model, model.null_condition(len(images), images.device))
        if isinstance(model.process, DDPM):
            with torch.no_grad():
                return bound_bits_per_dim(denoise, model.process, images, noise, steps)
        return ode_bits_per_dim(denoise, model.process, images, noise, steps)


def denoising_error(model: Diffusion, images: Tensor, noise: Noise, levels: Tensor) -> Tensor:
    """The weighted squared error of the training target at given times, without a condition: (N,).

    It is the training loss of a model without learned variances, and can be compared between sizes
    of one model. For a mean flow it is the error of the velocity.

    Args:
        model: the model.
        images: (N, *latents) or (N, 3, H, W).
        noise: N streams.
        levels: quantiles of the distribution of training times, in (0, 1), (N,).
    """
    process = model.process
    x_0 = model.as_map(images.float())
    t = process.draw(levels).view(-1, 1, 1, 1)
    eps = noise.normal(*x_0.shape[1:])
    prediction = model.output(process.noisy(x_0, eps, t), t, model.null_condition(len(x_0), x_0.device))[0]
    error = (prediction - process.target(x_0, eps, t)).square().mean((1, 2, 3))
    return process.weight(t).view(-1) * error


def ode_bits_per_dim(denoise: Denoise, process: Process, images: Tensor, noise: Noise, steps: int) -> Tensor:
    """Bits per dimension of 8-bit images (N, 3, H, W), by the change of variables along the
    probability-flow ODE (arXiv 2011.13456, appendix D.2): (N,).

    Uniform dequantisation (arXiv 1511.01844) makes the expectation an upper bound. The trace is
    estimated with one random direction per image (Hutchinson), so single values are noisy and means
    over many images are not. The ODE is solved in `steps` steps of Heun's method, whose
    discretisation error no bound covers.
    """
    dequantised = images + (noise.uniform(*images.shape[1:]) - 0.5) / 127.5
    direction = noise.uniform(*images.shape[1:]).sub(0.5).sign()  # Rademacher
    s = encoding(process, schedule(process, steps, "log-snr"))
    nats = -ode_log_density(denoise, process, dequantised, direction, s)
    return nats_to_bits_per_dim(nats, images[0].numel())


def ode_log_density(denoise: Denoise, process: Process, x: Tensor, direction: Tensor, s: Schedule) -> Tensor:
    """log p(x), (N,), of data x (N, C, H, W), integrated along `s` from data to noise.

    In y = x_t / c and tau (`Schedule.coordinate`) the ODE is dy/dtau = (y - x_0(c y)) / tau. Its
    divergence is (D - c tr(J)) / tau, where J is the Jacobian of x_0.
    """
    count = x[0].numel()
    scale, tau = s.coordinate(0)
    y = x * (s.alpha[0] / scale)
    log_volume = torch.full((len(x),), count * math.log(s.alpha[0]), device=x.device)
    x0, trace = _with_trace(denoise, scale * y, s.times[0], direction)
    for i in range(len(s)):
        scale1, tau1 = s.coordinate(i + 1)
        slope = (y - x0) / tau
        euler = y + (tau1 - tau) * slope
        x0_next, trace_next = _with_trace(denoise, scale1 * euler, s.times[i + 1], direction)
        y = y + (tau1 - tau) * (slope + (euler - x0_next) / tau1) / 2
        # The trace falls smoothly in log(tau), from D without noise to 0.
        log_volume = log_volume + math.log(tau1 / tau) * (count - (scale * trace + scale1 * trace_next) / 2)
        # The evaluation at Euler's point is reused in the next step: half the cost, still order 2.
        x0, trace, scale, tau = x0_next, trace_next, scale1, tau1
    end = scale * y / process.noise_scale
    # Change of variables x -> y -> end, in logarithms.
    log_volume = log_volume + count * math.log(scale / process.noise_scale) - count * math.log(s.coordinate(0)[0])
    return log_volume - (end.flatten(1).square().sum(1) + count * math.log(2 * math.pi)) / 2


def _with_trace(denoise: Denoise, x: Tensor, t: float, direction: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 at (x, t), and v^T J v for its Jacobian J and v = `direction`, (N,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        x0 = denoise(x, t)
        (product,) = torch.autograd.grad((x0 * direction).sum(), x)
    return x0.detach(), (product * direction).flatten(1).sum(1)


def bound_bits_per_dim(denoise: Denoise, process: DDPM, images: Tensor, noise: Noise, draws: int) -> Tensor:
    """Variational upper bound on the bits per dimension of 8-bit images (N, 3, H, W), for the chain
    of a DDPM with the posterior's variance (arXiv 2006.11239, equation 5): (N,).

    With equal variances, the divergence of a step is (SNR_(t-1) - SNR_t) / 2 times the squared
    error of x_0. The sum over the chain is estimated by stratified sampling: one timestep per image
    from each of `draws` equal parts of the chain.
    """
    timesteps = torch.arange(process.timesteps, dtype=torch.float64)
    alpha, sigma = process.alpha(timesteps), process.sigma(timesteps)
    snr = (alpha / sigma).square().to(images.device)
    # L_T: the divergence of q(x_T | x_0) from N(0, I).
    last = (alpha[-1] ** 2 * images.square() + sigma[-1] ** 2 - 1) / 2 - sigma[-1].log()
    nats = last.flatten(1).sum(1).float()

    def estimate(t: Tensor) -> Tensor:
        column = t.to(images).view(-1, 1, 1, 1)
        return denoise(process.noisy(images, noise.normal(*images.shape[1:]), column), column)

    # L_(t-1) for timesteps t >= 1.
    steps = process.timesteps - 1
    draws = min(draws, steps)
    for k in range(draws):
        low, high = 1 + steps * k // draws, 1 + steps * (k + 1) // draws
        t = (low + (high - low) * noise.uniform()).floor().long().clamp_max(high - 1)  # (N,)
        error = (images - estimate(t)).square().flatten(1).sum(1)
        nats = nats + (high - low) * 0.5 * (snr[t - 1] - snr[t]).float() * error
    # L_0: the discretised decoder from timestep 0 to 8-bit data.
    std = float(sigma[0] * (1 - snr[1] / snr[0]).sqrt()) if steps else float(sigma[0])
    decoded = estimate(torch.zeros(len(images), device=images.device))
    nats = nats - _log_of_level(images, decoded, std).flatten(1).sum(1)
    return nats / (images[0].numel() * math.log(2))


def _log_of_level(images: Tensor, mean: Tensor, std: float) -> Tensor:
    """log P(N(mean, std^2) rounds to the 8-bit values of `images`), like `images`."""
    normal = torch.distributions.Normal(mean.double(), std)
    values = images.double()
    above = torch.where(values > 0.999, 1.0, normal.cdf(values + 1 / 255))
    below = torch.where(values < -0.999, 0.0, normal.cdf(values - 1 / 255))
    return (above - below).clamp_min(1e-12).log().float()
