"""Sampling: from noise to data. `sample` is the whole procedure; solvers call a `Denoiser`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genmodels.conditions import Condition
from genmodels.diffusion.guide import load_guide
from genmodels.diffusion.options import DiffusionOptions
from genmodels.diffusion.solvers import Schedule
from genmodels.nn.conditioning import Embedded
from genmodels.types import Noise

if TYPE_CHECKING:
    from genmodels.diffusion.model import Diffusion


def sample(
    model: Diffusion,
    noise: Noise,
    condition: Condition | Embedded,
    options: DiffusionOptions,
    start: Tensor | None = None,
    schedule: Schedule | None = None,
) -> Tensor:
    """Draw samples: images (N, 3, H, W) in [-1, 1], or latents (N, *latents).

    Args:
        model: the diffusion model.
        noise: one stream per sample, for the initial noise and for stochastic solvers.
        condition: one row per sample, which may be embedded.
        options: solver, steps and guidance.
        start: x_t at the first time of the schedule (N, C, H, W); None: pure noise.
        schedule: times from noise to data; None: those of `options`.
    """
    # Pure noise x_T = sigma_T eps.
    x_t = initial_noise(model, noise, options) if start is None else start
    # The denoiser D(x_t, t) = E[x_0 | x_t, condition], with the guidance of the options.
    denoise = make_denoiser(model, condition, options, x_t.shape[0], x_t.device)
    # Times t_0 > ... > t_S from noise to data, with alpha and sigma at each.
    if schedule is None:
        schedule = options.schedule_for(model.process)
    # Integrate the probability-flow ODE, or the SDE, from t_0 to t_S.
    solver = options.solver_for(model.process, denoise.last_fraction)
    x_0 = solver(denoise, x_t, schedule, partial(noise.normal, *model.shape))
    # Clamp pixels to [-1, 1]; give latents the shape that the codec expects.
    return model.finished(x_0)


@dataclass(frozen=True)
class Guidance:
    """A reference denoiser, and how far x_0 is moved away from its prediction.

    With the same model under no condition it is classifier-free guidance (arXiv 2207.12598); with a
    weaker model it is autoguidance (arXiv 2406.02507).
    """

    model: Diffusion
    """Model of the reference prediction."""
    condition: Embedded | None
    """Embedded condition of that model."""
    scale: float
    """w in x_0 = reference + w (x_0 - reference); at 1 the reference has no effect."""
    low: float = 0.0
    """Smallest sigma / alpha at which guidance applies (arXiv 2404.07724)."""
    high: float = math.inf
    """Largest sigma / alpha at which it applies."""
    rescale: float = 0.0
    """Interpolation towards the standard deviation of the unguided x_0 (arXiv 2305.08891)."""


@dataclass
class Denoiser:
    """x_0 = denoise(x_t, t): the data that the model expects, guided and clipped."""

    model: Diffusion
    condition: Embedded | None
    """Embedded condition; None for an unconditional model."""
    guidance: Guidance | None = None
    """None: unguided."""
    clip: bool = False
    """Whether x_0 is clamped to [-1, 1]."""
    fraction: Tensor | None = field(default=None, init=False)
    """Learned variance at the last call (N, C, H, W), for ancestral sampling."""

    def __call__(self, x_t: Tensor, t: float | Tensor, to: float | Tensor | None = None) -> Tensor:
        """Predict x_0 (N, C, H, W) in float32.

        Args:
            x_t: noisy data (N, C, H, W).
            t: one time for all, or times (N, 1, 1, 1).
            to: like t, where the jump of a mean flow ends.
        """
        g = self.guidance
        guided = g is not None and g.low <= self.model.process.ratio(t) <= g.high
        if not isinstance(t, Tensor):
            t = x_t.new_full((x_t.shape[0], 1, 1, 1), t)
        if to is not None and not isinstance(to, Tensor):
            to = x_t.new_full((x_t.shape[0], 1, 1, 1), to)
        x_0, self.fraction = self.model.denoise(x_t, t, self.condition, to)
        if g is not None and guided:
            # Every parameterisation is linear in x_0 at fixed (x_t, t), so that guiding x_0, eps, v
            # or the velocity is the same.
            unguided, (reference, _) = x_0, g.model.denoise(x_t, t, g.condition, to)
            x_0 = reference + g.scale * (unguided - reference)
            if g.rescale > 0:
                std_ratio = unguided.std((1, 2, 3), keepdim=True) / x_0.std((1, 2, 3), keepdim=True)
                x_0 = x_0 * (g.rescale * std_ratio + 1 - g.rescale)
        return x_0.clamp(-1, 1) if self.clip else x_0

    def last_fraction(self) -> Tensor:
        """Learned variance at the last call, as a position between its two bounds."""
        assert self.fraction is not None, "this model does not learn the variance"
        return self.fraction


def make_denoiser(
    model: Diffusion, condition: Condition | Embedded, options: DiffusionOptions, n: int, device: torch.device
) -> Denoiser:
    """The denoiser of `model` under a condition of n rows, with the guidance of `options`.

    Raises:
        ValueError: for guidance without a condition or guide, a guide of another kind, or a guide
            and a condition that is embedded, as each model does differently.
    """
    o = options
    denoise = Denoiser(model, model.embed(condition, n, device), clip=model.process.clip)
    if o.guidance == 1:
        return denoise
    if o.guide is not None:
        if isinstance(condition, Embedded):
            raise ValueError(f"--guide {o.guide} does not work between prompts, whose vectors are those of the model")
        guide = model.checked_guide(load_guide(o.guide).to(device), o.guide)
        reference = guide.embed(condition, n, device)
    elif denoise.condition is None:
        raise ValueError(
            f"guidance {o.guidance:g} needs a condition, and this {model.family} was trained without; a weaker "
            "model can guide it instead: --guide RUN"
        )
    elif isinstance(condition, Condition) and condition.is_empty and not o.negative:
        return denoise  # equal to the reference, so guidance has no effect
    else:
        guide, reference = model, model.null_condition(n, device, o.negative)
    high = math.inf if o.guidance_high is None else o.guidance_high
    denoise.guidance = Guidance(guide, reference, o.guidance, o.guidance_low, high, o.guidance_rescale)
    return denoise


def initial_noise(model: Diffusion, noise: Noise, options: DiffusionOptions) -> Tensor:
    """x_T (N, C, H, W): noise with the standard deviation of the process, times the temperature."""
    return model.process.noise_scale * (options.temperature * noise.normal(*model.shape))


def trajectory(
    model: Diffusion, noise: Noise, condition: Condition, options: DiffusionOptions
) -> tuple[Tensor, Tensor]:
    """Record every evaluation on the way to `sample(model, noise, condition, options)`.

    Returns:
        x_t, scaled to the variance of data, and the predicted x_0; each
        (evaluations + 1, N, C, H, W). Both end with the sample.
    """
    x_t = initial_noise(model, noise, options)
    denoise = make_denoiser(model, condition, options, x_t.shape[0], x_t.device)
    noisy, predicted = [], []

    def recorded(x_t: Tensor, t: float, to: float | None = None) -> Tensor:
        x_0 = denoise(x_t, t, to)
        time = torch.tensor(t, dtype=torch.float64)
        noisy.append(x_t / float(model.process.alpha(time) ** 2 + model.process.sigma(time) ** 2) ** 0.5)
        predicted.append(x_0)
        return x_0

    solver = options.solver_for(model.process, denoise.last_fraction)
    schedule = options.schedule_for(model.process)
    x_0 = solver(recorded, x_t, schedule, partial(noise.normal, *model.shape))
    x_ts, x_0s = (torch.stack([model.as_latents(x) for x in (*kept, x_0)]) for kept in (noisy, predicted))
    return x_ts, x_0s
