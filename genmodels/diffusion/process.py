"""Diffusion processes: the path x_t = alpha_t x_0 + sigma_t eps, and what the network predicts.

DDPM, EDM and flow matching differ in alpha and sigma, in the distribution of training times, and in
the parameterisation of the network; everything else follows from these. A process is a small frozen
dataclass, so it is also its own config. Each has its own unit of time: the timestep of a DDPM (-1
is clean data), the noise level sigma of EDM, and t in [0, 1] of flow matching.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

MEANFLOW_TIME_SCALE = 10.0
"""Factor applied to the times of a mean flow before they are embedded. Its loss contains the
derivative with respect to time, in which high-frequency features would dominate
(arXiv 2410.11081)."""


class Process(ABC):
    """A path and a parameterisation.

    Functions of t take and return tensors (N,), or shapes that broadcast against x_t.
    """

    start: ClassVar[float]
    """Time of pure noise."""
    end: ClassVar[float]
    """Time of clean data."""
    min_time: ClassVar[float]
    """Smallest time that networks are trained on; the ODE from data to noise begins there."""
    noise_scale: ClassVar[float] = 1.0
    """Standard deviation of pure noise."""
    ratio_range: ClassVar[tuple[float, float]] = (0.002, 80.0)
    """Smallest and largest sigma / alpha of schedules that are spaced by it (EDM's)."""
    default_spacing: ClassVar[str] = "karras"
    """Spacing of a schedule when none is given."""
    max_steps: ClassVar[int | None] = None
    """Largest number of sampling steps; None: no limit."""
    straight: ClassVar[bool] = False
    """Whether the ODE is integrated in t, as in flow matching; else in sigma / alpha, as in EDM."""
    jumps: ClassVar[bool] = False
    """Whether the network also takes the time where a step ends (mean flow)."""

    @property
    def clip(self) -> bool:
        """Whether the predicted x_0 is clamped to [-1, 1] during sampling."""
        return False

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the data in x_t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of the noise in x_t."""

    @abstractmethod
    def time_of(self, ratio: Tensor) -> Tensor:
        """Time at which sigma / alpha is `ratio`."""

    @abstractmethod
    def draw(self, uniform: Tensor) -> Tensor:
        """Training times (N,) from uniform draws in [0, 1), (N,)."""

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the squared error at time t."""
        return torch.ones_like(t)

    def scale(self, t: Tensor) -> Tensor:
        """c_in: factor applied to x_t before the network."""
        return torch.ones_like(t)

    @property
    def path(self) -> tuple[object, ...]:
        """What alpha and sigma depend on. Predictions of x_0 on equal paths can be combined."""
        return (type(self),)

    @abstractmethod
    def time_input(self, t: Tensor) -> Tensor:
        """c_noise: input of the network's time embedding, roughly 0 to 1000."""

    @abstractmethod
    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert the network's output at (x_t, t) to data x_0."""

    @abstractmethod
    def output(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert data x_0 to the network's output at (x_t, t): the inverse of `x0`."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Training target: `output(x0, x_t, t)`, without a division by a value that may be 0."""

    def grid(self, steps: int, quadratic: bool) -> Tensor:
        """Times (steps,), float64, from `start` on, evenly spaced in t or in its square root."""
        fraction = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
        return self.start * (fraction.square() if quadratic else fraction)

    def shifted(self, times: Tensor, shift: float) -> Tensor:
        """Times of a schedule, shifted towards noise.

        Raises:
            ValueError: for a shift other than 1 of a process that has no shift.
        """
        if shift != 1:
            raise ValueError(f"shift {shift:g} applies to a flow only, and this process is {type(self).__name__}")
        return times

    # ---- the same for every process ----

    def ratio(self, t: float | Tensor) -> float:
        """sigma / alpha at one time."""
        t = torch.as_tensor(t, dtype=torch.float64).flatten()[0]
        alpha = float(self.alpha(t))
        return float(self.sigma(t)) / alpha if alpha else math.inf

    def noisy(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps."""
        return self.alpha(t) * x0 + self.sigma(t) * eps

    def eps(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t, given the data."""
        return (x_t - self.alpha(t) * x0) / self.sigma(t)

    def v(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """v = alpha eps - sigma x_0 (arXiv 2202.00512)."""
        return self.alpha(t) * self.eps(x0, x_t, t) - self.sigma(t) * x0

    def score(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Gradient of log p(x_t), for a denoiser that predicts x_0 (Tweedie's formula)."""
        return -self.eps(x0, x_t, t) / self.sigma(t)


@dataclass(frozen=True)
class Flow(Process):
    """Flow matching on a straight path: alpha = 1 - t, sigma = t. The network predicts the velocity
    eps - x_0 (arXiv 2210.02747; 2209.03003)."""

    mean: float = 0.0
    """Mean of the normal distribution whose logistic function is a training time
    (arXiv 2403.03206)."""
    std: float = 1.0
    """Its standard deviation; 0: training times are uniform."""
    shift: float = 1.0
    """Shifts training and sampling times towards noise, s t / (1 + (s - 1) t); above 1 for large
    images (arXiv 2403.03206)."""

    start: ClassVar[float] = 1.0
    end: ClassVar[float] = 0.0
    min_time: ClassVar[float] = 1e-3
    straight: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.std < 0 or not self.shift > 0:
            raise ValueError(f"flow: std must not be negative and shift above 0, got {self.std} and {self.shift}")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_of(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)

    def draw(self, uniform: Tensor) -> Tensor:
        u = uniform.clamp(1e-5, 1 - 1e-5)
        t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)) if self.std else u
        return self.shifted(t, 1.0)

    def shifted(self, times: Tensor, shift: float) -> Tensor:
        """Times, shifted towards 1 by the process's own shift and then by this one."""
        if not shift > 0:
            raise ValueError(f"shift must be above 0, got {shift}")
        product = self.shift * shift  # two shifts in succession are one shift by their product
        return product * times / (1 + (product - 1) * times)

    def time_input(self, t: Tensor) -> Tensor:
        return 1000 * t

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t - t * output

    def output(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t - x0) / t

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps - x0


@dataclass(frozen=True)
class MeanFlow(Flow):
    """Mean flow: one evaluation can replace the whole ODE (arXiv 2505.13447).

    From t and an earlier time r the network predicts the mean velocity (x_t - x_r) / (t - r). With
    r = t that is the velocity of a `Flow`, so every solver runs on it.
    """

    mean: float = -0.4
    """Mean of the normal distribution whose logistic function is a training time, for t and r."""
    share: float = 0.25
    """Fraction of the images of a batch with r != t."""
    power: float = 1.0
    """p in the weight of an image 1 / (e + 0.001)^p, where e is its mean squared error; 0: equal
    weights."""

    jumps: ClassVar[bool] = True
    default_spacing: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1 or self.power < 0:
            raise ValueError(
                f"meanflow: share must be in (0, 1] and power not negative, got {self.share} and {self.power}"
            )

    def time_input(self, t: Tensor) -> Tensor:
        return MEANFLOW_TIME_SCALE * t


@dataclass(frozen=True)
class EDM(Process):
    """EDM: alpha = 1, t = sigma, and a preconditioned network whose inputs and targets have unit
    variance (arXiv 2206.00364, table 1)."""

    data: float = 0.5
    """Standard deviation of the data: about 0.5 for images, 1 for latents."""
    mean: float = -1.2
    """Mean of the log noise levels in training."""
    std: float = 1.2
    """Standard deviation of the log noise levels in training."""

    start: ClassVar[float] = 80.0
    end: ClassVar[float] = 0.0
    min_time: ClassVar[float] = 0.002
    noise_scale: ClassVar[float] = 80.0

    def __post_init__(self) -> None:
        if not (self.data > 0 and self.std > 0):
            raise ValueError(f"edm: data and std must be above 0, got {self.data} and {self.std}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_of(self, ratio: Tensor) -> Tensor:
        return ratio

    def draw(self, uniform: Tensor) -> Tensor:
        return (self.mean + self.std * torch.special.ndtri(uniform.clamp(1e-5, 1 - 1e-5))).exp()

    def scale(self, t: Tensor) -> Tensor:
        return 1 / (t.square() + self.data**2).sqrt()

    def time_input(self, t: Tensor) -> Tensor:
        return 250 * t.clamp_min(1e-8).log()

    def _skip_and_out(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out (equation 7)."""
        total = t.square() + self.data**2
        return self.data**2 / total, t * self.data / total.sqrt()

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        skip, out = self._skip_and_out(t)
        return skip * x_t + out * output

    def output(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        skip, out = self._skip_and_out(t)
        return (x0 - skip * x_t) / out

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        # (x_0 - c_skip (x_0 + t eps)) / c_out, with t cancelled; the weight 1 / c_out^2 is then 1.
        return (t * x0 - self.data**2 * eps) / (self.data * (t.square() + self.data**2).sqrt())
