"""Sampling: from noise to data. `sample` is the whole procedure; solvers call a `Denoiser`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genmodels.diffusion import solvers
from genmodels.diffusion.guidance import Guidance, load_guide
from genmodels.diffusion.options import DiffusionOptions
from genmodels.diffusion.solvers import Schedule, Solver
from genmodels.nn.conditioning import Embedded
from genmodels.types import Condition, Noise

if TYPE_CHECKING:
    from genmodels.diffusion.model import Diffusion


def sample(
    model: Diffusion,
    noise: Noise,
    condition: Condition,
    options: DiffusionOptions,
    start: Tensor | None = None,
    schedule: Schedule | None = None,
) -> Tensor:
    """Draws samples: images (N, 3, H, W) in [-1, 1], or latents (N, *latents).

    Args:
        model: the diffusion model.
        noise: one stream per sample, for the initial noise and for stochastic solvers.
        condition: one row per sample.
        options: solver, steps and guidance.
        start: x_t at the first time of the schedule (N, C, H, W); None: pure noise.
        schedule: times from noise to data; None: those of `options`.
    """
    # Pure noise x_T = sigma_T eps.
    x_t = initial_noise(model, noise, options) if start is None else start
    # The denoiser D(x_t, t) = E[x_0 | x_t, condition], guided as the options ask.
    denoise = make_denoiser(model, condition, options, len(x_t), x_t.device)
    # Times t_0 > ... > t_S from noise to data, with alpha and sigma at each.
    if schedule is None:
        schedule = options.schedule_for(model.process)
    # Integrate the probability-flow ODE, or the SDE, from t_0 to t_S.
    solver = make_solver(model, options, denoise)
    x_0 = solver(denoise, x_t, schedule, partial(noise.normal, *model.config.shape))
    # Clamp pixels to [-1, 1]; give latents the shape that the codec expects.
    return model.finished(x_0)


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
    """Learnt variance at the last call (N, C, H, W), for ancestral sampling."""

    def __call__(self, x_t: Tensor, *times: float | Tensor) -> Tensor:
        """Predicts x_0 (N, C, H, W) in float32.

        Args:
            x_t: noisy data (N, C, H, W).
            times: t, and for the jump of a mean flow the time where it ends. Each is one number, or
                a tensor (N, 1, 1, 1).
        """
        t, *to = (time if isinstance(time, Tensor) else x_t.new_full((len(x_t), 1, 1, 1), time) for time in times)
        x_0, self.fraction = self.model.denoise(x_t, t, self.condition, *to)
        guidance = self.guidance
        if guidance is not None and guidance.applies(self.model.process.ratio(times[0])):
            reference, _ = guidance.model.denoise(x_t, t, guidance.condition, *to)
            x_0 = guidance.combine(x_0, reference)
        return x_0.clamp(-1, 1) if self.clip else x_0

    def last_fraction(self) -> Tensor:
        """Learnt variance at the last call, as a position between its two bounds."""
        assert self.fraction is not None, "this model does not learn the variance"
        return self.fraction


def make_denoiser(
    model: Diffusion, condition: Condition, options: DiffusionOptions, n: int, device: torch.device
) -> Denoiser:
    """The denoiser of `model` under a condition of n rows, guided as `options` ask.

    Raises:
        ValueError: for guidance without a condition or guide, or a guide of another kind.
    """
    o = options
    denoise = Denoiser(model, model.embed(condition, n, device), clip=model.process.clip)
    if o.guidance == 1:
        return denoise
    if o.guide is not None:
        guide = model.checked_guide(load_guide(o.guide).to(device), o.guide)
        reference = guide.embed(condition, n, device)
    elif not model.is_conditional:
        raise ValueError(
            f"guidance {o.guidance:g} needs a condition, and this {model.family} was trained without; a weaker "
            "model can guide it instead: --guide RUN"
        )
    elif condition.is_empty:
        return denoise  # equal to the reference, so guidance has no effect
    else:
        guide, reference = model, model.null_condition(n, device)
    denoise.guidance = Guidance(guide, reference, o.guidance, o.guidance_low, o.guidance_high, o.guidance_rescale)
    return denoise


def make_solver(model: Diffusion, options: DiffusionOptions, denoise: Denoiser) -> Solver:
    """The solver that `options` name; "ddpm" uses the variance of `denoise` where it is learnt."""
    solver = options.solver_for(model.process)
    if options.solver == "ddpm" and model.config.learns_variance:
        return partial(solvers.ddpm, fraction=denoise.last_fraction)
    return solver


def initial_noise(model: Diffusion, noise: Noise, options: DiffusionOptions) -> Tensor:
    """x_T (N, C, H, W): noise with the standard deviation of the process, times the temperature."""
    return model.process.noise_scale * (options.temperature * noise.normal(*model.config.shape))


def trajectory(
    model: Diffusion, noise: Noise, condition: Condition, options: DiffusionOptions
) -> tuple[Tensor, Tensor]:
    """Records every evaluation on the way to `sample(model, noise, condition, options)`.

    Returns:
        x_t, scaled to the variance of data, and the predicted x_0; each
        (evaluations + 1, N, C, H, W). Both end with the sample.
    """
    x_t = initial_noise(model, noise, options)
    denoise = make_denoiser(model, condition, options, len(x_t), x_t.device)
    noisy, predicted = [], []

    def recorded(x_t: Tensor, *times: float | Tensor) -> Tensor:
        x_0 = denoise(x_t, *times)
        t = torch.as_tensor(times[0], dtype=torch.float64)
        noisy.append(x_t / float(model.process.alpha(t) ** 2 + model.process.sigma(t) ** 2) ** 0.5)
        predicted.append(x_0)
        return x_0

    solver, schedule = make_solver(model, options, denoise), options.schedule_for(model.process)
    x_0 = solver(recorded, x_t, schedule, partial(noise.normal, *model.config.shape))
    x_ts, x_0s = (torch.stack([model.as_latents(x) for x in (*kept, x_0)]) for kept in (noisy, predicted))
    return x_ts, x_0s
