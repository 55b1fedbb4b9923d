"""DDPM: a chain of noisy images, with the schedules and conventions of diffusers' schedulers."""

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
    """DDPM: a chain of noisy images, alpha^2 + sigma^2 = 1 (arXiv 2006.11239), with the schedules, predictions and
    conventions of diffusers' schedulers, so that models can be exchanged."""

    prediction: Literal["eps", "v", "x0"] = "v"
    """What the network predicts: the noise, v = alpha eps - sigma x_0 (arXiv 2202.00512), or the data."""
    schedule: Literal["linear", "scaled-linear", "cosine"] = "cosine"
    """How beta grows: linearly (arXiv 2006.11239), linearly in its root (latent diffusion), or so that alpha is nearly
    a cosine (arXiv 2102.09672)."""
    beta_start: float = 1e-4
    """First beta; not for "cosine"."""
    beta_end: float = 0.02
    """Last beta; not for "cosine"."""
    timesteps: int = 1000
    """Length of the chain."""
    min_snr: float | None = 5.0
    """Caps the signal-to-noise ratio that weighs a timestep (arXiv 2303.09556); None: the plain squared error."""
    learned_variance: bool = False
    """Let the network say the variance of each step too, between its two bounds (arXiv 2102.09672): twice as many
    channels out, one more term in the loss, and solver "ddpm" uses it."""
    spacing: Literal["trailing", "leading"] = "trailing"
    """Whether the timesteps of a shorter walk end with the last one (noise) or begin with the first."""
    offset: int = 0
    """Added to the timesteps of "leading"."""
    final: Literal["data", "first"] = "data"
    """Where a walk ends: at the data, or at the first timestep, which is noisy a little (diffusers'
    set_alpha_to_one)."""
    clip: bool = False
    """Clamp the predicted data to [-1, 1] while sampling: for images only."""

    end: ClassVar[float] = -1.0
    first: ClassVar[float] = 0.0
    usual: ClassVar[str] = "uniform"

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
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise ValueError(f"ddpm: {name} must be {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.offset < self.timesteps:
            raise ValueError(f"ddpm: offset must be a timestep, 0 to {self.timesteps - 1}, got {self.offset}")
        if self.min_snr is not None and not self.min_snr > 0:
            raise ValueError(f"ddpm: min_snr must be above 0, or None, got {self.min_snr}")

    @property
    def start(self) -> float:  # type: ignore[override]
        return self.timesteps - 1.0

    @property
    def longest(self) -> int:  # type: ignore[override]
        return self.timesteps

    @property
    def ratios(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self.log_ratio[0].exp()), float(self.log_ratio[-1].exp())

    def grid(self, steps: int, quadratic: bool) -> Tensor:
        """Whole timesteps, as diffusers' schedulers choose them."""
        count = self.timesteps
        if quadratic:
            share = torch.linspace(1, 0, steps, dtype=torch.float64)
            return (share.square() * (count - 1)).round().unique().flip(0)
        if self.spacing == "leading":
            return (torch.arange(steps, dtype=torch.float64) * (count // steps)).flip(0) + self.offset
        return (count - torch.arange(steps, dtype=torch.float64) * (count / steps)).round() - 1

    @cached_property
    def betas(self) -> Tensor:
        """(timesteps,), float64."""
        count = self.timesteps
        if self.schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, count, dtype=torch.float64)
        if self.schedule == "scaled-linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=torch.float64).square()
        t = torch.arange(count + 1, dtype=torch.float64) / count
        bar = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - bar[1:] / bar[:-1]).clamp_max(0.999)

    @cached_property
    def log_ratio(self) -> Tensor:
        """log(sigma / alpha) at every timestep, (timesteps,), float64."""
        bar = (1 - self.betas).cumprod(0)
        return ((1 - bar) / bar).log() / 2

    def _ratio(self, t: Tensor) -> Tensor:
        """sigma / alpha, float64; between timesteps its logarithm is linear, as in diffusers; 0 before the first."""
        known = self.log_ratio.to(t.device)
        place = t.double().clamp(0, self.start)
        low = place.floor().long()
        high = (low + 1).clamp_max(self.timesteps - 1)
        found = torch.lerp(known[low], known[high], place - low).exp()
        clean = torch.full_like(found, float(self.log_ratio[0].exp()) if self.final == "first" else 0.0)
        return torch.where(t < 0, clean, found)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 / (1 + self._ratio(t).square()).sqrt()).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        ratio = self._ratio(t)
        return (ratio / (1 + ratio.square()).sqrt()).to(t.dtype)

    def time_of(self, ratio: Tensor) -> Tensor:
        known = self.log_ratio.to(ratio.device)
        wanted = ratio.double().log().clamp(known[0], known[-1])
        high = torch.searchsorted(known, wanted).clamp(1, self.timesteps - 1)
        low = high - 1
        share = (wanted - known[low]) / (known[high] - known[low])
        return torch.where(ratio > 0, low + share, -1.0).to(ratio.dtype)

    def draw(self, uniform: Tensor) -> Tensor:
        return (uniform * self.timesteps).floor().clamp_max(self.start)

    def weight(self, t: Tensor) -> Tensor:
        if self.min_snr is None:
            return torch.ones_like(t)
        snr = self._ratio(t).pow(-2)
        capped = snr.clamp_max(self.min_snr)
        found = {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}[self.prediction]
        return found.to(t.dtype)

    @property
    def path(self) -> tuple[object, ...]:
        return (type(self), self.schedule, self.beta_start, self.beta_end, self.timesteps)

    def time_input(self, t: Tensor) -> Tensor:
        return t.clamp_min(0)  # -1 is for solvers only

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
