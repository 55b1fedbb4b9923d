"""How probable an image is: through the probability-flow ODE, or bounded by the chain of a DDPM."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import Process
from genmodels.diffusion.solvers import Denoise, Schedule, encoding, schedule
from genmodels.nn.likelihood import nats_to_bits_per_dim
from genmodels.types import Noise


def ode_bits_per_dim(denoise: Denoise, process: Process, images: Tensor, noise: Noise, steps: int) -> Tensor:
    """Bits per dimension of 8-bit `images` (N, 3, H, W), by the change of variables along the probability-flow ODE
    (arXiv 2011.13456, appendix D.2): (N,).

    Levels are spread uniformly (arXiv 1511.01844), so that the expectation is an upper bound; the trace is estimated
    with one random direction per image (Hutchinson), so that one image's number is noisy and a mean over many is not;
    and the ODE is solved in `steps` steps of Heun's method, whose error no bound covers.
    """
    spread = images + (noise.uniform(*images.shape[1:]) - 0.5) / 127.5
    direction = noise.uniform(*images.shape[1:]).sub(0.5).sign()  # Rademacher
    way = encoding(process, schedule(process, steps, "log-snr"))
    nats = -ode_log_density(denoise, process, spread, direction, way)
    return nats_to_bits_per_dim(nats, images[0].numel())


def ode_log_density(denoise: Denoise, process: Process, x: Tensor, direction: Tensor, way: Schedule) -> Tensor:
    """log p(x), (N,), of data x (N, C, H, W), integrated along `way`, from data to noise.

    In y = x_t / c and tau (`Schedule.coordinate`) the ODE is dy/dtau = (y - x_0(c y)) / tau. Its divergence is 1 / tau
    times D less c times the trace of the Jacobian of x_0.
    """
    count = x[0].numel()
    scale, tau = way.coordinate(0)
    y = x * (way.alpha[0] / scale)
    log_volume = torch.full((len(x),), count * math.log(way.alpha[0]), device=x.device)
    x0, trace = _with_trace(denoise, scale * y, way.times[0], direction)
    for i in range(len(way)):
        scale1, tau1 = way.coordinate(i + 1)
        slope = (y - x0) / tau
        there = y + (tau1 - tau) * slope
        x0_there, trace_there = _with_trace(denoise, scale1 * there, way.times[i + 1], direction)
        y = y + (tau1 - tau) * (slope + (there - x0_there) / tau1) / 2
        # The trace goes from D, where there is no noise, to 0: smooth in the logarithm of tau.
        log_volume = log_volume + math.log(tau1 / tau) * (count - (scale * trace + scale1 * trace_there) / 2)
        # The evaluation at Euler's point serves the next step as well: half the cost, and the order is still 2.
        x0, trace, scale, tau = x0_there, trace_there, scale1, tau1
    end = scale * y / process.spread
    # dx_0 -> dy -> d(end): what the volume was multiplied by, all in logarithms.
    log_volume = log_volume + count * math.log(scale / process.spread) - count * math.log(way.coordinate(0)[0])
    return log_volume - (end.flatten(1).square().sum(1) + count * math.log(2 * math.pi)) / 2


def _with_trace(denoise: Denoise, x: Tensor, t: float, direction: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 at (x, t), and `direction` times its Jacobian times `direction`, (N,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        x0 = denoise(x, t)
        (product,) = torch.autograd.grad((x0 * direction).sum(), x)
    return x0.detach(), (product * direction).flatten(1).sum(1)


def bound_bits_per_dim(denoise: Denoise, process: DDPM, images: Tensor, noise: Noise, draws: int) -> Tensor:
    """Variational upper bound on the bits per dimension of 8-bit `images` (N, 3, H, W) by the chain of a DDPM with the
    posterior's variance (arXiv 2006.11239, equation 5), (N,).

    With equal variances each step's divergence is (SNR_(t-1) - SNR_t) / 2 times the squared error of x_0. Their sum
    over the chain is estimated at `draws` timesteps per image, one from each of as many equal parts of it.
    """
    timesteps = torch.arange(process.timesteps, dtype=torch.float64)
    alpha, sigma = process.alpha(timesteps), process.sigma(timesteps)
    snr = (alpha / sigma).square().to(images.device)
    # q(x_T | x_0) against N(0, I), where the chain ends.
    last = (alpha[-1] ** 2 * images.square() + sigma[-1] ** 2 - 1) / 2 - sigma[-1].log()
    nats = last.flatten(1).sum(1).float()

    def estimate(t: Tensor) -> Tensor:
        at = t.to(images).view(-1, 1, 1, 1)
        return denoise(process.noisy(images, noise.normal(*images.shape[1:]), at), at)

    steps = process.timesteps - 1  # from timestep t >= 1 to t - 1; the first one leads to the data
    draws = min(draws, steps)
    for k in range(draws):
        low, high = 1 + steps * k // draws, 1 + steps * (k + 1) // draws
        t = (low + (high - low) * noise.uniform()).floor().long().clamp_max(high - 1)  # (N,)
        error = (images - estimate(t)).square().flatten(1).sum(1)
        nats = nats + (high - low) * 0.5 * (snr[t - 1] - snr[t]).float() * error
    spread = float(sigma[0] * (1 - snr[1] / snr[0]).sqrt()) if steps else float(sigma[0])
    decoded = estimate(torch.zeros(len(images), device=images.device))
    nats = nats - _log_of_level(images, decoded, spread).flatten(1).sum(1)
    return nats / (images[0].numel() * math.log(2))


def _log_of_level(images: Tensor, mean: Tensor, spread: float) -> Tensor:
    """log of the probability that a normal variable, rounded to 8 bits, is each value of `images`."""
    normal = torch.distributions.Normal(mean.double(), spread)
    values = images.double()
    above = torch.where(values > 0.999, 1.0, normal.cdf(values + 1 / 255))
    below = torch.where(values < -0.999, 0.0, normal.cdf(values - 1 / 255))
    return (above - below).clamp_min(1e-12).log().float()
