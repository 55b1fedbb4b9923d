"""From noise to data: schedules of times, and solvers that walk down them with a denoiser.

A solver is a pure function solver(denoise, x, schedule, normal) -> x. `denoise(x_t, t)` gives the expected data x_0,
and `normal()` a fresh draw of noise like x for the solvers that add some. Every solver is written in x_0, alpha and
sigma, so it runs on any `Process`; a schedule walked upwards encodes data as noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genmodels.diffusion.process import Process

Denoise = Callable[..., Tensor]
"""(x_t, t) -> x_0; t is one time for all, or (N, 1, 1, 1). Of a process that `jumps` also (x_t, t, to) -> the x_0 that
Euler's method needs to arrive at time `to`."""
Normal = Callable[[], Tensor]
"""() -> standard normal noise of the shape of x."""
Solver = Callable[[Denoise, Tensor, "Schedule", Normal], Tensor]

KARRAS_RHO = 7.0
SPACINGS = ("uniform", "karras", "log-snr", "quadratic")


@dataclass(frozen=True)
class Schedule:
    """The times of a walk, with what is known of them. All have one more entry than there are steps."""

    times: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    straight: bool
    """Along what the ODE is integrated: t itself for flow, sigma / alpha for the others."""

    def __len__(self) -> int:
        return len(self.times) - 1

    def __getitem__(self, steps: slice) -> Schedule:
        """Some of its points."""
        return Schedule(self.times[steps], self.alpha[steps], self.sigma[steps], self.straight)

    def lam(self, i: int) -> float:
        """log(alpha / sigma): half the log signal-to-noise ratio."""
        if self.sigma[i] == 0:
            return math.inf
        return -math.inf if self.alpha[i] == 0 else math.log(self.alpha[i] / self.sigma[i])

    def coordinate(self, i: int) -> tuple[float, float]:
        """(c, tau) such that y = x_t / c moves along dy / dtau = (y - x_0) / tau."""
        scale = self.alpha[i] + self.sigma[i] if self.straight else self.alpha[i]
        return scale, self.sigma[i] / scale


def schedule(process: Process, steps: int, spacing: str | None = None, shift: float = 1.0) -> Schedule:
    """The times of a walk of `steps` steps from noise to data.

    Args:
        process: whose times.
        steps: how many.
        spacing: "uniform" in the process's own time; "karras", rho = 7 (arXiv 2206.00364); "log-snr", even in
            log(alpha / sigma); "quadratic", finer towards the data (arXiv 2010.02502). None: as is usual for the
            process, uniform for a chain of timesteps, else karras.
        shift: of flow's times towards noise, on top of the process's own (arXiv 2403.03206).

    Raises:
        ValueError: for fewer than 1 step, more than a chain has, or a spacing that the process does not have.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if process.longest is not None and steps > process.longest:
        raise ValueError(f"steps must be at most {process.longest}, the length of this chain, got {steps}")
    spacing = process.usual if spacing is None else spacing
    if spacing not in SPACINGS:
        raise ValueError(f"unknown schedule {spacing!r}; known: {', '.join(SPACINGS)}")
    if spacing in ("karras", "log-snr"):
        times = _by_ratio(process, steps, karras=spacing == "karras")
    else:
        times = process.grid(steps, quadratic=spacing == "quadratic")
    times = process.moved(times, shift)
    walk = [*times.tolist(), process.end]
    if process.ratio(walk[-2]) == process.ratio(walk[-1]):
        del walk[-1]  # a chain that ends at its first timestep is already there
    return through(process, walk)


def through(process: Process, times: list[float]) -> Schedule:
    """The schedule of these times of `process`, from noise to data or back."""
    t = torch.tensor(times, dtype=torch.float64)
    return Schedule(tuple(times), tuple(process.alpha(t).tolist()), tuple(process.sigma(t).tolist()), process.straight)


def encoding(process: Process, s: Schedule) -> Schedule:
    """The way from data to noise through the points of `s`. It begins a little after the data, where the network has
    been trained."""
    times = [t for t in s.times[::-1] if t > process.first + 1e-6 * process.start]
    return through(process, [process.first, *times])


def _by_ratio(process: Process, steps: int, karras: bool) -> Tensor:
    """Times, (steps,), float64, spaced by sigma / alpha. The first is the start of the process."""
    low, high = process.ratios
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    if karras:
        ratio = (high ** (1 / KARRAS_RHO) + share * (low ** (1 / KARRAS_RHO) - high ** (1 / KARRAS_RHO))) ** KARRAS_RHO
    else:
        ratio = torch.exp(math.log(high) + share * math.log(low / high))
    times = process.time_of(ratio)
    times[0] = process.start
    return times


# ---- deterministic solvers ----


def euler(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """Euler's method on the probability-flow ODE, order 1. On every process it is DDIM without noise."""
    for i in range(len(s)):
        x = _euler_step(denoise(x, s.times[i]), x, s, i)
    return x


def _euler_step(x0: Tensor, x: Tensor, s: Schedule, i: int) -> Tensor:
    """From point i to i + 1, believing in `x0`: the noise in x stays the same."""
    share = s.sigma[i + 1] / s.sigma[i]
    return share * x + (s.alpha[i + 1] - share * s.alpha[i]) * x0


def jump(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """Euler's method with the mean velocity of each step, which a network of a mean flow knows: no step is too long
    (arXiv 2505.13447)."""
    for i in range(len(s)):
        x = _euler_step(denoise(x, s.times[i], s.times[i + 1]), x, s, i)
    return x


def heun(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """Heun's method, order 2, two evaluations a step; the last step, to where there is no noise, is Euler's
    (arXiv 2206.00364, algorithm 1)."""
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        there = _euler_step(x0, x, s, i)
        if s.sigma[i + 1] > 0:
            (c, tau), (c1, tau1) = s.coordinate(i), s.coordinate(i + 1)
            slope = (x / c - x0) / tau
            slope1 = (there / c1 - denoise(there, s.times[i + 1])) / tau1
            there = c1 * (x / c + (tau1 - tau) * (slope + slope1) / 2)
        x = there
    return x


def dpm(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095): order 2, one evaluation a step; it remembers the evaluation before."""
    before: Tensor | None = None
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        share = s.sigma[i + 1] / s.sigma[i]
        x = share * x + (s.alpha[i + 1] - share * s.alpha[i]) * _extrapolated(x0, before, s, i)
        before = x0
    return x


def _extrapolated(x0: Tensor, before: Tensor | None, s: Schedule, i: int) -> Tensor:
    """x_0 in the middle of step i, in lambda, on the line through the last two evaluations."""
    if before is None or math.isinf(s.lam(i + 1)) or math.isinf(s.lam(i - 1)):
        return x0
    h, h_before = s.lam(i + 1) - s.lam(i), s.lam(i) - s.lam(i - 1)
    return x0 + (h / h_before / 2) * (x0 - before)


def unipc(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal, order: int = 2) -> Tensor:
    """UniPC of `order` 1 to 3 with B_2(h) (arXiv 2302.04867): predict, evaluate, correct with the same evaluation.

    The corrector raises the order by one: UniPC-p converges with order p + 1 (the paper's theorem 3.1).
    """
    known: list[tuple[float, Tensor]] = []  # (lambda, x_0), newest last
    used = known
    start = x
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        if i > 0:
            x = _unified(start, s, i - 1, used, x0, s.lam(i))
        known.append((s.lam(i), x0))
        start = x
        # Where the noise ends lambda is infinite: the order falls towards that, to 1 in the last step.
        used = known[-min(order, len(s) - i if s.sigma[-1] == 0 else order) :]
        x = _unified(start, s, i, used, None, s.lam(i + 1))
    return x


def _unified(
    x: Tensor, s: Schedule, i: int, past: list[tuple[float, Tensor]], there: Tensor | None, lam: float
) -> Tensor:
    """UniP from point i to i + 1; with an evaluation `there`, UniC. `past` holds evaluations up to that at i."""
    lam0, x0 = past[-1]
    h = lam - lam0
    share = s.sigma[i + 1] / s.sigma[i]
    base = share * x + (s.alpha[i + 1] - share * s.alpha[i]) * x0
    # Differences (m_k - m_0) / r_k, r_k the place of evaluation k in units of the step; what lies at infinite noise
    # says nothing.
    finite = [(at, m) for at, m in reversed(past[:-1]) if math.isfinite(at) and math.isfinite(h)]
    points = [((at - lam0) / h, m) for at, m in finite]
    if there is not None:
        points.append((1.0, there))
    if not points:
        return base
    r = torch.tensor([place for place, _ in points], dtype=torch.float64)
    weights = _bh2_weights(r, h)
    change = sum(w * (m - x0) / place for w, (place, m) in zip(weights, points, strict=True))
    return base + s.alpha[i + 1] * -math.expm1(-h) * change


def _bh2_weights(r: Tensor, h: float) -> list[float]:
    """The coefficients that solve R rho = b for B(h) = e^h - 1, in the data-prediction form (h negated)."""
    count = len(r)
    if count == 1:
        return [0.5]  # the paper's choice for order 1 of UniC and 2 of UniP: the exact one for small h
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
    """DDIM (arXiv 2010.02502): eta 0 is the ODE by Euler's method, eta 1 draws from the posterior q(x_s | x_t, x_0).

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
    """From point i to i + 1 with fresh noise of eta times the posterior's standard deviation."""
    if eta == 0:
        return _euler_step(x0, x, s, i)
    share = s.sigma[i + 1] * s.alpha[i] / (s.sigma[i] * s.alpha[i + 1])  # e^(-h)
    fresh = eta * s.sigma[i + 1] * math.sqrt(max(0.0, 1 - share**2))
    eps = (x - s.alpha[i] * x0) / s.sigma[i]
    kept = math.sqrt(max(0.0, s.sigma[i + 1] ** 2 - fresh**2))
    x = s.alpha[i + 1] * x0 + kept * eps
    return x + fresh * normal() if fresh > 0 else x


def ddpm(
    denoise: Denoise, x: Tensor, s: Schedule, normal: Normal, fraction: Callable[[], Tensor] | None = None
) -> Tensor:
    """Ancestral sampling of DDPM (arXiv 2006.11239, algorithm 2) with the posterior's variance: DDIM at eta 1.

    With `fraction` the variance is the learnt one (arXiv 2102.09672): what the network said of it in the evaluation
    before, 0 for the posterior's to 1 for that of the step towards noise, like x.
    """
    if fraction is None:
        return ddim(denoise, x, s, normal, eta=1.0)
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        if s.sigma[i + 1] == 0:
            return s.alpha[i + 1] * x0
        share = s.sigma[i + 1] * s.alpha[i] / (s.sigma[i] * s.alpha[i + 1])  # e^(-h)
        low, high = s.sigma[i + 1] ** 2 * (1 - share**2), 1 - (s.alpha[i] / s.alpha[i + 1]) ** 2
        spread = (low * (high / low) ** fraction()).sqrt()
        eps = (x - s.alpha[i] * x0) / s.sigma[i]
        x = s.alpha[i + 1] * x0 + math.sqrt(max(0.0, s.sigma[i + 1] ** 2 - low)) * eps + spread * normal()
    return x


def dpm_sde(denoise: Denoise, x: Tensor, s: Schedule, normal: Normal) -> Tensor:
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095, appendix): order 2 in the drift, with fresh noise."""
    before: Tensor | None = None
    for i in range(len(s)):
        x0 = denoise(x, s.times[i])
        decay = s.sigma[i + 1] * s.alpha[i] / (s.sigma[i] * s.alpha[i + 1])  # e^(-h)
        share = s.sigma[i + 1] / s.sigma[i] * decay
        x = share * x + s.alpha[i + 1] * (1 - decay**2) * _extrapolated(x0, before, s, i)
        if s.sigma[i + 1] > 0:
            x = x + s.sigma[i + 1] * math.sqrt(max(0.0, 1 - decay**2)) * normal()
        before = x0
    return x


def repaint(
    denoise: Denoise, x: Tensor, s: Schedule, normal: Normal, image: Tensor, known: Tensor, rounds: int = 3
) -> Tensor:
    """Completes `image` where it is not `known`.

    Every estimate of the data has its known part put in place (DDNM, arXiv 2212.00490), and every step is gone back
    and taken again `rounds` times, so that what is made up fits what is known (RePaint, arXiv 2201.09865).

    Args:
        denoise, x, s, normal: as for a solver.
        image: like x.
        known: bool, broadcast against it.
        rounds: how often each step is taken; 1: no going back.
    """
    for i in range(len(s)):
        for again in range(rounds):
            x0 = torch.where(known, image, denoise(x, s.times[i]))
            there = _posterior_step(x0, x, s, i, 1.0, normal)
            if again == rounds - 1 or s.sigma[i + 1] == 0:
                break
            # Back up by the forward process: x_t given x_s.
            share = s.alpha[i] / s.alpha[i + 1]
            fresh = s.sigma[i] ** 2 - (share * s.sigma[i + 1]) ** 2
            x = share * there + math.sqrt(max(0.0, fresh)) * normal()
        x = there
    return x
