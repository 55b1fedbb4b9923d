"""Time schedules, and solvers that integrate the ODE or SDE of a diffusion process.

A solver is a pure function solver(denoise, x, schedule, normal) -> x. `denoise(x_t, t)` predicts
the data x_0; `normal()` draws standard normal noise like x, for stochastic solvers. Solvers are
written in x_0, alpha and sigma, so they run on every `Process`. Along a schedule of increasing
noise they encode data as noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genmodels.diffusion.process import Process

Denoise = Callable[..., Tensor]
"""(x_t, t) -> x_0, where t is one number or (N, 1, 1, 1). Of a process that `jumps` also
(x_t, t, to) -> the x_0 with which a step of Euler's method arrives at x_to."""
Normal = Callable[[], Tensor]
"""() -> standard normal noise with the shape of x."""
Solver = Callable[[Denoise, Tensor, "Schedule", Normal], Tensor]

KARRAS_RHO = 7.0
SPACINGS = ("uniform", "karras", "log-snr", "quadratic")


@dataclass(frozen=True)
class Schedule:
    """The times of a solver's steps, with alpha and sigma at each: one entry more than steps."""

    times: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    straight: bool
    """Whether the ODE is integrated in t (flow matching); else in sigma / alpha."""

    def __len__(self) -> int:
        return len(self.times) - 1

    def __getitem__(self, steps: slice) -> Schedule:
        """A part of the schedule."""
        return Schedule(self.times[steps], self.alpha[steps], self.sigma[steps], self.straight)

    def lam(self, i: int) -> float:
        """lambda = log(alpha / sigma): half the log signal-to-noise ratio."""
        if self.sigma[i] == 0:
            return math.inf
        return -math.inf if self.alpha[i] == 0 else math.log(self.alpha[i] / self.sigma[i])

    def coordinate(self, i: int) -> tuple[float, float]:
        """(c, tau) such that y = x_t / c moves along dy / dtau = (y - x_0) / tau."""
        scale = self.alpha[i] + self.sigma[i] if self.straight else self.alpha[i]
        return scale, self.sigma[i] / scale


def schedule(process: Process, steps: int, spacing: str | None = None, shift: float = 1.0) -> Schedule:
    """Create a schedule of `steps` steps from noise to data.

    Args:
        process: the diffusion process.
        steps: number of steps.
        spacing: "uniform" in t; "karras", rho = 7 (arXiv 2206.00364, equation 5); "log-snr",
            uniform in log(alpha / sigma); "quadratic", denser near the data (arXiv 2010.02502).
            None: the default of the process.
        shift: shift of a flow's times towards noise, on top of its own (arXiv 2403.03206).

    Raises:
        ValueError: for an invalid number of steps, an unknown spacing, or a shift of a process that
            has none.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if process.max_steps is not None and steps > process.max_steps:
        raise ValueError(f"steps must be at most {process.max_steps}, the timesteps of this DDPM, got {steps}")
    spacing = process.default_spacing if spacing is None else spacing
    if spacing not in SPACINGS:
        raise ValueError(f"unknown schedule {spacing!r}; known: {', '.join(SPACINGS)}")
    if spacing in ("karras", "log-snr"):
        times = _by_ratio(process, steps, karras=spacing == "karras")
    else:
        times = process.grid(steps, quadratic=spacing == "quadratic")
    points = [*process.shifted(times, shift).tolist(), process.end]
    if process.ratio(points[-2]) == process.ratio(points[-1]):
        del points[-1]  # a DDPM that ends at its first timestep
    return through(process, points)


def through(process: Process, times: list[float]) -> Schedule:
    """Create a schedule from given times, of decreasing or increasing noise."""
    t = torch.tensor(times, dtype=torch.float64)
    return Schedule(tuple(times), tuple(process.alpha(t).tolist()), tuple(process.sigma(t).tolist()), process.straight)


def encoding(process: Process, s: Schedule) -> Schedule:
    """Reverse `s`: from data to noise, starting at the smallest time of training."""
    times = [t for t in s.times[::-1] if t > process.min_time + 1e-6 * process.start]
    return through(process, [process.min_time, *times])


def _by_ratio(process: Process, steps: int, karras: bool) -> Tensor:
    """Times (steps,), float64, spaced by sigma / alpha, starting at pure noise."""
    low, high = process.ratio_range
    fraction = torch.linspace(0, 1, steps, dtype=torch.float64)
    if karras:
        low, high = low ** (1 / KARRAS_RHO), high ** (1 / KARRAS_RHO)
        ratio = (high + fraction * (low - high)) ** KARRAS_RHO
    else:
        ratio = torch.exp(math.log(high) + fraction * math.log(low / high))
    times = process.time_of(ratio)
    times[0] = process.start
    return times


# ---- deterministic solvers ----


def euler(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """Euler's method on the probability-flow ODE, order 1: DDIM with eta 0."""
    for i in range(len(s)):
        x = _euler_step(denoise(x, s.times[i]), x, s, i)
    return x


def _euler_step(x0: Tensor, x: Tensor, s: Schedule, i: int) -> Tensor:
    """Step from point i to i + 1 at constant x_0 and eps: alpha_(i+1) x_0 + sigma_(i+1) eps."""
    ratio = s.sigma[i + 1] / s.sigma[i]
    return ratio * x + (s.alpha[i + 1] - ratio * s.alpha[i]) * x0


def jump(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """Euler's method with the mean velocity of each step, of any length (arXiv 2505.13447)."""
    for i in range(len(s)):
        x = _euler_step(denoise(x, s.times[i], s.times[i + 1]), x, s, i)
    return x


def heun(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """Heun's method, order 2, two evaluations per step (arXiv 2206.00364, algorithm 1)."""
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        x_next = _euler_step(x0, x, s, i)
        if s.sigma[i + 1] > 0:
            (c, tau), (c1, tau1) = s.coordinate(i), s.coordinate(i + 1)
            slope = (x / c - x0) / tau
            slope1 = (x_next / c1 - denoise(x_next, s.times[i + 1])) / tau1
            x_next = c1 * (x / c + (tau1 - tau) * (slope + slope1) / 2)
        x = x_next
    return x


def dpm(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): order 2, one evaluation per step."""
    previous: Tensor | None = None
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        ratio = s.sigma[i + 1] / s.sigma[i]
        x = ratio * x + (s.alpha[i + 1] - ratio * s.alpha[i]) * _extrapolated(x0, previous, s, i)
        previous = x0
    return x


def _extrapolated(x0: Tensor, previous: Tensor | None, s: Schedule, i: int) -> Tensor:
    """x_0 in the middle of step i, extrapolated in lambda from the last two evaluations."""
    if previous is None or math.isinf(s.lam(i + 1)) or math.isinf(s.lam(i - 1)):
        return x0
    h, h_previous = s.lam(i + 1) - s.lam(i), s.lam(i) - s.lam(i - 1)
    return x0 + (h / h_previous / 2) * (x0 - previous)


def unipc(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal, order: int = 2) -> Tensor:
    """UniPC-p with B_2(h), p = `order` from 1 to 3 (arXiv 2302.04867).

    It predicts, evaluates, and corrects with the same evaluation. The corrector raises the order by
    one: UniPC-p converges with order p + 1 (theorem 3.1).
    """
    evaluations: list[tuple[float, Tensor]] = []  # (lambda, x_0), newest last
    recent = evaluations
    corrected = x
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        if i > 0:
            x = _unified(corrected, s, i - 1, recent, x0, s.lam(i))
        evaluations.append((s.lam(i), x0))
        corrected = x
        # lambda is infinite at clean data: the order decreases towards it, to 1 in the last step.
        recent = evaluations[-min(order, len(s) - i if s.sigma[-1] == 0 else order) :]
        x = _unified(corrected, s, i, recent, None, s.lam(i + 1))
    return x


def _unified(
    x: Tensor, s: Schedule, i: int, past: list[tuple[float, Tensor]], new: Tensor | None, lam: float
) -> Tensor:
    """UniP step from point i, with the evaluations up to i in `past`, to point i + 1 at `lam`; with
    the evaluation `new` at i + 1, UniC."""
    lam0, x0 = past[-1]
    h = lam - lam0
    ratio = s.sigma[i + 1] / s.sigma[i]
    base = ratio * x + (s.alpha[i + 1] - ratio * s.alpha[i]) * x0
    # D_k / r_k = (m_k - m_0) / r_k, where r_k is lambda of evaluation k relative to the step.
    # Evaluations at infinite noise have no place on this line.
    finite = [(lam_k, m) for lam_k, m in reversed(past[:-1]) if math.isfinite(lam_k) and math.isfinite(h)]
    points = [((lam_k - lam0) / h, m) for lam_k, m in finite]
    if new is not None:
        points.append((1.0, new))
    if not points:
        return base
    weights = _bh2_weights(torch.tensor([r for r, _ in points], dtype=torch.float64), h)
    change = sum(w * (m - x0) / r for w, (r, m) in zip(weights, points, strict=True))
    return base + s.alpha[i + 1] * -math.expm1(-h) * change


def _bh2_weights(r: Tensor, h: float) -> list[float]:
    """Solve R rho = b for B(h) = e^h - 1 in the data-prediction form (h negated)."""
    count = len(r)
    if count == 1:
        return [0.5]  # as in the paper for UniC-1 and UniP-2: the limit for small h
    hh = -h
    phi = math.expm1(hh) / hh - 1 if math.isfinite(hh) else -1.0
    rows, b, factorial = [], [], 1.0
    for k in range(1, count + 1):
        rows.append(r ** (k - 1))
        b.append(phi * factorial / math.expm1(hh))
        factorial *= k + 1
        phi = phi / hh - 1 / factorial if math.isfinite(hh) else -1 / factorial
    return torch.linalg.solve(torch.stack(rows), torch.tensor(b, dtype=torch.float64)).tolist()


# ---- stochastic solvers ----


def ddim(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal, eta: float = 0.0) -> Tensor:
    """DDIM (arXiv 2010.02502, equation 12).

    eta 0 is Euler's method on the ODE; eta 1 samples the posterior q(x_s | x_t, x_0).

    Raises:
        ValueError: for eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        x = _posterior_step(x0, x, s, i, eta, normal)
    return x


def _posterior_step(x0: Tensor, x: Tensor, s: Schedule, i: int, eta: float, normal: Normal) -> Tensor:
    """Step from point i to i + 1 with new noise of eta times the posterior's standard deviation."""
    if eta == 0:
        return _euler_step(x0, x, s, i)
    decay = s.sigma[i + 1] * s.alpha[i] / (s.sigma[i] * s.alpha[i + 1])  # e^(-h)
    std = eta * s.sigma[i + 1] * math.sqrt(max(0.0, 1 - decay**2))
    eps = (x - s.alpha[i] * x0) / s.sigma[i]
    x = s.alpha[i + 1] * x0 + math.sqrt(max(0.0, s.sigma[i + 1] ** 2 - std**2)) * eps
    return x + std * normal() if std > 0 else x


def ddpm(
    denoise: Denoise, x: Tensor, s: Schedule, normal: Normal, fraction: Callable[[], Tensor] | None = None
) -> Tensor:
    """Ancestral sampling of a DDPM (arXiv 2006.11239, algorithm 2).

    The other arguments are those of every solver.

    Args:
        fraction: the learned variance at the last evaluation (arXiv 2102.09672), like x: the
            position of its logarithm between the posterior's variance (0) and that of the forward
            step (1). None: the posterior's variance, which is DDIM with eta 1.
    """
    if fraction is None:
        return ddim(denoise, x, s, normal, eta=1.0)
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        if s.sigma[i + 1] == 0:
            return s.alpha[i + 1] * x0
        decay = s.sigma[i + 1] * s.alpha[i] / (s.sigma[i] * s.alpha[i + 1])  # e^(-h)
        low, high = s.sigma[i + 1] ** 2 * (1 - decay**2), 1 - (s.alpha[i] / s.alpha[i + 1]) ** 2
        std = (low * (high / low) ** fraction()).sqrt()
        eps = (x - s.alpha[i] * x0) / s.sigma[i]
        x = s.alpha[i + 1] * x0 + math.sqrt(max(0.0, s.sigma[i + 1] ** 2 - low)) * eps + std * normal()
    return x


def dpm_sde(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095, appendix): order 2 in the drift, with new noise."""
    previous: Tensor | None = None
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        decay = s.sigma[i + 1] * s.alpha[i] / (s.sigma[i] * s.alpha[i + 1])  # e^(-h)
        ratio = s.sigma[i + 1] / s.sigma[i] * decay
        x = ratio * x + s.alpha[i + 1] * (1 - decay**2) * _extrapolated(x0, previous, s, i)
        if s.sigma[i + 1] > 0:
            x = x + s.sigma[i + 1] * math.sqrt(max(0.0, 1 - decay**2)) * normal()
        previous = x0
    return x


def repaint(
    denoise: Denoise, x: Tensor, s: Schedule, normal: Normal, image: Tensor, known: Tensor, rounds: int = 3
) -> Tensor:
    """Complete `image` where it is not `known`.

    The known pixels replace those of every predicted x_0 (DDNM, arXiv 2212.00490), and every step
    is repeated `rounds` times, so that the completion fits the known pixels (RePaint,
    arXiv 2201.09865). The other arguments are those of every solver.

    Args:
        image: like x.
        known: bool, broadcast against `image`.
        rounds: how often each step is taken; 1: no repetition.
    """
    for i in range(len(s)):
        for k in range(rounds):
            x0 = torch.where(known, image, denoise(x, s.times[i]))
            x_next = _posterior_step(x0, x, s, i, 1.0, normal)
            if k == rounds - 1 or s.sigma[i + 1] == 0:
                break
            # One step of the forward process, q(x_t | x_s), to repeat the step from x_t.
            ratio = s.alpha[i] / s.alpha[i + 1]
            variance = s.sigma[i] ** 2 - (ratio * s.sigma[i + 1]) ** 2
            x = ratio * x_next + math.sqrt(max(0.0, variance)) * normal()
        x = x_next
    return x
