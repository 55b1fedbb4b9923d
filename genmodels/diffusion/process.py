"""The path x_t = alpha_t x_0 + sigma_t eps from data to noise, and what a network on it is asked to predict.

DDPM, EDM and flow matching differ in alpha and sigma, in how often each time is trained on, and in what the network
predicts; everything else follows. Each is a small frozen dataclass, so that it is its own config. Times are the
process's own: a timestep of DDPM (and -1, where nothing is noisy), a noise level of EDM, t in [0, 1] of flow.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

SLOW = 10.0
"""What a mean flow shows its network a time of 0 to 1 as. Its loss contains the derivative by the time: a wave that is
fast in it would drown everything else (arXiv 2410.11081)."""


class Process(ABC):
    """A path and a parameterisation. Functions of t take and give (N,), or shapes that broadcast against x_t."""

    start: ClassVar[float]
    """The time of pure noise."""
    end: ClassVar[float]
    """The time of data."""
    first: ClassVar[float]
    """The earliest time that a network has seen: the reversed ODE begins there."""
    spread: ClassVar[float] = 1.0
    """Standard deviation of pure noise."""
    ratios: ClassVar[tuple[float, float]] = (0.002, 80.0)
    """sigma / alpha between which schedules in terms of it place their steps (EDM's)."""
    usual: ClassVar[str] = "karras"
    """The spacing of a schedule when none is asked for."""
    longest: ClassVar[int | None] = None
    """The most steps of a walk; None: any number."""
    straight: ClassVar[bool] = False
    """Whether the ODE is integrated along t itself, as flow matching does; else along sigma / alpha, as EDM does."""
    jumps: ClassVar[bool] = False
    """Whether a network on it is told where a step shall end, and can go there in one evaluation."""

    @property
    def clip(self) -> bool:
        """Whether the predicted data are clamped to [-1, 1] while sampling."""
        return False

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """How much of the data is in x_t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """How much noise is in x_t."""

    @abstractmethod
    def time_of(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha is `ratio`."""

    @abstractmethod
    def draw(self, uniform: Tensor) -> Tensor:
        """Times to train on, (N,), from uniform draws in [0, 1), (N,)."""

    def weight(self, t: Tensor) -> Tensor:
        """Of the squared error at time t."""
        return torch.ones_like(t)

    def scale(self, t: Tensor) -> Tensor:
        """c_in: what x_t is multiplied by before the network sees it."""
        return torch.ones_like(t)

    @property
    def path(self) -> tuple[object, ...]:
        """What alpha and sigma depend on: models of one path can be compared at any point of it."""
        return (type(self),)

    @abstractmethod
    def time_input(self, t: Tensor) -> Tensor:
        """What the network is told of the time: a number of the order of 0 to 1000."""

    @abstractmethod
    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The data that a network's `output` at (x_t, t) stands for."""

    @abstractmethod
    def output(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The inverse of `x0`: what a network that believes in `x0` puts out."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the output is compared with in training; `output(x0, x_t, t)`, without dividing by what may be 0."""

    def grid(self, steps: int, quadratic: bool) -> Tensor:
        """Times of a walk, (steps,), float64, from `start` on, even in the process's own time or in its root."""
        share = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
        return self.start * (share.square() if quadratic else share)

    def moved(self, times: Tensor, shift: float) -> Tensor:
        """Times of a walk, shifted towards noise.

        Raises:
            ValueError: for a shift other than 1 where there is no such thing.
        """
        if shift != 1:
            raise ValueError(f"shift {shift:g} moves the times of a flow, and this process is {type(self).__name__}")
        return times

    # ---- the same for all ----

    def ratio(self, t: float | Tensor) -> float:
        """sigma / alpha at one time: how much noise there is for the data in it."""
        at = torch.as_tensor(t, dtype=torch.float64).flatten()[0]
        alpha = float(self.alpha(at))
        return float(self.sigma(at)) / alpha if alpha else math.inf

    def noisy(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps."""
        return self.alpha(t) * x0 + self.sigma(t) * eps

    def eps(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t, if the data is `x0`."""
        return (x_t - self.alpha(t) * x0) / self.sigma(t)

    def v(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """v = alpha eps - sigma x_0 (arXiv 2202.00512)."""
        return self.alpha(t) * self.eps(x0, x_t, t) - self.sigma(t) * x0

    def score(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p(x_t) that a denoiser's `x0` stands for (Tweedie)."""
        return -self.eps(x0, x_t, t) / self.sigma(t)


@dataclass(frozen=True)
class Flow(Process):
    """Flow matching on a straight path: alpha = 1 - t, sigma = t; the network predicts the velocity eps - x_0
    (arXiv 2210.02747; 2209.03003)."""

    mean: float = 0.0
    """Of the normal distribution whose logistic function is a training time (arXiv 2403.03206)."""
    std: float = 1.0
    """Its standard deviation; 0: times are uniform."""
    shift: float = 1.0
    """Moves training and sampling times towards noise, s t / (1 + (s - 1) t); above 1 for large images
    (arXiv 2403.03206)."""

    start: ClassVar[float] = 1.0
    end: ClassVar[float] = 0.0
    first: ClassVar[float] = 1e-3
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
        return self.moved(t, 1.0)

    def moved(self, times: Tensor, shift: float) -> Tensor:
        """Times, moved towards 1 by the process's own shift and then by this one."""
        if not shift > 0:
            raise ValueError(f"shift must be above 0, got {shift}")
        both = self.shift * shift  # one shift after another is their product
        return both * times / (1 + (both - 1) * times)

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
    """Flow matching whose network also knows mean velocities, so that one evaluation can go all the way
    (arXiv 2505.13447): told t and an earlier time r, it predicts (x_t - x_r) / (t - r). With r = t that is the velocity
    of a `Flow`, and every solver runs on it."""

    mean: float = -0.4
    """As of a flow; both t and r are drawn so."""
    share: float = 0.25
    """Of the images, for which r is not t."""
    power: float = 1.0
    """Of the mean squared error e in the weight of an image, 1 / (e + 0.001)^power; 0: all weigh the same."""

    jumps: ClassVar[bool] = True
    usual: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1 or self.power < 0:
            raise ValueError(
                f"meanflow: share must be in (0, 1] and power not negative, got {self.share} and {self.power}"
            )

    def time_input(self, t: Tensor) -> Tensor:
        return SLOW * t


@dataclass(frozen=True)
class EDM(Process):
    """EDM: alpha = 1, the time is sigma, and a preconditioned network whose inputs and targets have unit variance
    (arXiv 2206.00364, table 1)."""

    data: float = 0.5
    """Standard deviation of the data: about 0.5 for images, 1 for latents."""
    mean: float = -1.2
    """Of the log noise levels trained on."""
    std: float = 1.2
    """Their standard deviation."""

    start: ClassVar[float] = 80.0
    end: ClassVar[float] = 0.0
    first: ClassVar[float] = 0.002
    spread: ClassVar[float] = 80.0

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
