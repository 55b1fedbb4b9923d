"""DDPM: a Markov chain of noisy images, with the conventions of diffusers' schedulers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from genmodels.diffusion.process import Process


@dataclass(frozen=True)
class DDPM(Process):
    """DDPM: a chain of noisy images with alpha^2 + sigma^2 = 1 (arXiv 2006.11239).

    Schedules, predictions and conventions are those of diffusers' schedulers, so that models can be
    exchanged. Written with abar_t, the product of 1 - beta up to t: alpha_t^2 = abar_t.
    """

    prediction: Literal["eps", "v", "x0"] = "v"
    """What the network predicts: the noise eps, v = alpha eps - sigma x_0 (arXiv 2202.00512), or
    the data x_0."""
    schedule: Literal["linear", "scaled-linear", "cosine"] = "cosine"
    """How beta grows: linearly (arXiv 2006.11239), linearly in its square root (latent diffusion),
    or so that alpha is nearly a cosine (arXiv 2102.09672)."""
    beta_start: float = 1e-4
    """First beta; unused by "cosine"."""
    beta_end: float = 0.02
    """Last beta; unused by "cosine"."""
    timesteps: int = 1000
    """Length of the chain."""
    min_snr: float | None = 5.0
    """Upper limit of the signal-to-noise ratio in the weight of a timestep (arXiv 2303.09556);
    None: unweighted squared error."""
    learned_variance: bool = False
    """Whether the network also predicts the variance of each step, between its two bounds
    (arXiv 2102.09672): twice as many output channels, one more term in the loss, used by solver
    "ddpm"."""
    spacing: Literal["trailing", "leading"] = "trailing"
    """Timesteps of a schedule with fewer steps: "trailing" includes the last (noise), "leading" the
    first."""
    offset: int = 0
    """Number added to the timesteps of "leading"."""
    final: Literal["data", "first"] = "data"
    """Where sampling ends: at clean data, or at the first timestep, which has a little noise
    (set_alpha_to_one of diffusers)."""
    clip: bool = False
    """Whether the predicted x_0 is clamped to [-1, 1] during sampling: for images only."""

    end: ClassVar[float] = -1.0
    min_time: ClassVar[float] = 0.0
    default_spacing: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        if self.timesteps < 1 or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"ddpm: timesteps must be at least 1 and 0 < beta_start <= beta_end < 1, got {self.timesteps}, "
                f"{self.beta_start} and {self.beta_end}"
            )
        names = {
            "prediction": ("eps", "v", "x0"),
            "schedule": ("linear", "scaled-linear", "cosine"),
            "spacing": ("trailing", "leading"),
            "final": ("data", "first"),
        }
        for name, allowed in names.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"ddpm: {name} must be {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.offset < self.timesteps:
            raise ValueError(f"ddpm: offset must be a timestep, 0 to {self.timesteps - 1}, got {self.offset}")
        if self.min_snr is not None and not self.min_snr > 0:
            raise ValueError(f"ddpm: min_snr must be above 0, or None, got {self.min_snr}")

    @property
    def start(self) -> float:  # type: ignore[override]
        return self.timesteps - 1.0

    @property
    def max_steps(self) -> int:  # type: ignore[override]
        return self.timesteps

    @property
    def ratio_range(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self.log_ratio[0].exp()), float(self.log_ratio[-1].exp())

    def grid(self, steps: int, quadratic: bool) -> Tensor:
        """Integer timesteps (steps,), float64, as diffusers' schedulers choose them.

        Quadratic spacing returns fewer where rounding makes timesteps equal.
        """
        count = self.timesteps
        if quadratic:
            fraction = torch.linspace(1, 0, steps, dtype=torch.float64)
            return (fraction.square() * (count - 1)).round().unique().flip(0)
        if self.spacing == "leading":
            return (torch.arange(steps, dtype=torch.float64) * (count // steps)).flip(0) + self.offset
        return (count - torch.arange(steps, dtype=torch.float64) * (count / steps)).round() - 1

    @cached_property
    def betas(self) -> Tensor:
        """Variances of the forward steps (timesteps,), float64."""
        count = self.timesteps
        if self.schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, count, dtype=torch.float64)
        if self.schedule == "scaled-linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=torch.float64).square()
        t = torch.arange(count + 1, dtype=torch.float64) / count
        abar = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()  # equation 17, up to a constant
        return (1 - abar[1:] / abar[:-1]).clamp_max(0.999)

    @cached_property
    def log_ratio(self) -> Tensor:
        """log(sigma / alpha) at every timestep, (timesteps,), float64."""
        abar = (1 - self.betas).cumprod(0)
        return ((1 - abar) / abar).log() / 2

    def _ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha, float64; log-linear between timesteps, as in diffusers."""
        log_ratio = self.log_ratio.to(t.device)
        position = t.double().clamp(0, self.start)
        low = position.floor().long()
        high = (low + 1).clamp_max(self.timesteps - 1)
        ratio = torch.lerp(log_ratio[low], log_ratio[high], position - low).exp()
        clean = torch.full_like(ratio, float(self.log_ratio[0].exp()) if self.final == "first" else 0.0)
        return torch.where(t < 0, clean, ratio)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 / (1 + self._ratio(t).square()).sqrt()).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        ratio = self._ratio(t)
        return (ratio / (1 + ratio.square()).sqrt()).to(t.dtype)

    def time_of(self, ratio: Tensor) -> Tensor:
        log_ratio = self.log_ratio.to(ratio.device)
        value = ratio.double().log().clamp(log_ratio[0], log_ratio[-1])
        high = torch.searchsorted(log_ratio, value).clamp(1, self.timesteps - 1)
        low = high - 1
        fraction = (value - log_ratio[low]) / (log_ratio[high] - log_ratio[low])
        return torch.where(ratio > 0, low + fraction, -1.0).to(ratio.dtype)

    def draw(self, uniform: Tensor) -> Tensor:
        return (uniform * self.timesteps).floor().clamp_max(self.start)

    def weight(self, t: Tensor) -> Tensor:
        if self.min_snr is None:
            return torch.ones_like(t)
        snr = self._ratio(t).pow(-2)
        capped = snr.clamp_max(self.min_snr)
        weight = {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}[self.prediction]
        return weight.to(t.dtype)

    @property
    def path(self) -> tuple[object, ...]:
        return (type(self), self.schedule, self.beta_start, self.beta_end, self.timesteps)

    def time_input(self, t: Tensor) -> Tensor:
        return t.clamp_min(0)  # -1 occurs in solvers only

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "eps":
            return (x_t - self.sigma(t) * output) / self.alpha(t)
        return self.alpha(t) * x_t - self.sigma(t) * output if self.prediction == "v" else output

    def output(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return {"eps": self.eps, "v": self.v}[self.prediction](x0, x_t, t) if self.prediction != "x0" else x0

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "v":
            return self.alpha(t) * eps - self.sigma(t) * x0
        return eps if self.prediction == "eps" else x0
