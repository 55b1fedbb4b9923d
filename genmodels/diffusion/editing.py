"""Work on given images or noises: inversion, editing (SDEdit), inpainting, interpolation, morphing.

Images are (N, 3, H, W) in [-1, 1]; of a prior they are latents (N, *latents).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genmodels.conditions import Condition
from genmodels.diffusion import solvers
from genmodels.diffusion.options import DiffusionOptions
from genmodels.diffusion.sampler import initial_noise, make_denoiser, sample
from genmodels.nn.conditioning import Embedded
from genmodels.nn.interpolation import lerp, slerp
from genmodels.types import Noise

if TYPE_CHECKING:
    from genmodels.diffusion.model import Diffusion

NO_NOISE = Noise(())
"""For deterministic solvers from a given start, which draw nothing."""


def invert(model: Diffusion, images: Tensor, condition: Condition, options: DiffusionOptions) -> Tensor:
    """Encode images as noise (N, C, H, W) of unit variance: the ODE integrated from data to noise.

    Raises:
        ValueError: for a stochastic solver, or one that only integrates towards data.
    """
    options.check_reversible("encoding an image as noise")
    if options.solver == "jump":
        raise ValueError("a mean flow is trained to jump towards data, not back: use --solver unipc --steps 20")
    schedule = solvers.encoding(model.process, options.schedule_for(model.process))
    denoise = make_denoiser(model, condition, options, len(images), images.device)
    solver = options.solver_for(model.process)
    x_t = solver(denoise, schedule.alpha[0] * model.as_map(images), schedule, NO_NOISE.normal)
    return x_t / model.process.noise_scale


def generate_from(model: Diffusion, eps: Tensor, condition: Condition, options: DiffusionOptions) -> Tensor:
    """Generate samples from noise eps (N, C, H, W) of unit variance: the inverse of `invert`.

    Raises:
        ValueError: for a stochastic solver.
    """
    options.check_reversible("sampling from given noise")
    return sample(model, NO_NOISE, condition, options, start=model.process.noise_scale * eps)


def edit(
    model: Diffusion,
    images: Tensor,
    strength: float,
    noise: Noise,
    condition: Condition,
    options: DiffusionOptions,
) -> Tensor:
    """Regenerate images from a noisy version of themselves (SDEdit, arXiv 2108.01073).

    Args:
        model: the diffusion model.
        images: images to edit.
        strength: fraction of the schedule that is repeated, in (0, 1]; at 1 nothing of the images
            is left, near 0 little changes.
        noise: one stream per image.
        condition: one row per image.
        options: solver, steps and guidance.

    Raises:
        ValueError: for a strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    schedule = options.schedule_for(model.process)
    schedule = schedule[len(schedule) - math.ceil(strength * len(schedule)) :]
    eps = noise.normal(*model.shape)
    x_t = schedule.alpha[0] * model.as_map(images) + schedule.sigma[0] * eps
    return sample(model, noise, condition, options, start=x_t, schedule=schedule)


def inpaint(
    model: Diffusion,
    images: Tensor,
    known: Tensor,
    noise: Noise,
    condition: Condition,
    options: DiffusionOptions,
) -> Tensor:
    """Complete images where they are not `known`; known pixels are returned unchanged.

    `solvers.repaint` is used in place of a solver. Of the options, `steps`, `schedule`, `resample`,
    `temperature` and guidance apply.

    Args:
        model: the diffusion model.
        images: images whose unknown pixels are ignored.
        known: bool (H, W), any region.
        noise: one stream per image.
        condition: one row per image.
        options: see above.

    Raises:
        ValueError: for a mask of another size or type, a solver, or latents that are a vector.
    """
    shape, default = model.shape, model.options_class
    if (options.solver, options.eta) != (default.solver, default.eta):
        raise ValueError("inpainting uses a solver of its own: leave out the solver and eta")
    if model.config.latents is not None and len(model.config.latents) == 1:
        raise ValueError(
            "a latent vector represents the whole image and cannot be known in part: use a codec with a map"
        )
    if known.dtype != torch.bool or tuple(known.shape) != shape[1:]:
        kind = f"{str(known.dtype).removeprefix('torch.')} {tuple(known.shape)}"
        raise ValueError(f"the mask of known pixels must be bool {shape[1:]}, got {kind}")
    x_t = initial_noise(model, noise, options)
    denoise = make_denoiser(model, condition, options, len(images), images.device)
    schedule, normal = options.schedule_for(model.process), partial(noise.normal, *shape)
    x_0 = solvers.repaint(denoise, x_t, schedule, normal, images, known, options.resample)
    return torch.where(known, images, model.finished(x_0))


def interpolate(model: Diffusion, first: Noise, second: Noise, weights: Tensor, options: DiffusionOptions) -> Tensor:
    """Samples (len(weights), ...) from noise on the arc from that of `first` to that of `second`.

    Raises:
        ValueError: for a stochastic solver.
    """
    options.check_reversible("interpolation")
    eps = [options.temperature * noise.normal(*model.shape) for noise in (first, second)]
    return generate_from(model, slerp(eps[0], eps[1], weights.to(eps[0])), Condition(), options)


def interpolate_prompts(
    model: Diffusion, noise: Noise, first: Condition, second: Condition, weights: Tensor, options: DiffusionOptions
) -> Tensor:
    """Samples (len(weights), ...) from the same noise, under conditions between two.

    The vectors of the tokens and the pooled vectors are interpolated linearly.

    Args:
        model: a model with text.
        noise: one stream.
        first, second: conditions of one row.
        weights: 0 for the first condition, 1 for the second.
        options: solver, steps and guidance.

    Raises:
        ValueError: for a stochastic solver, or a guide.
    """
    options.check_reversible("interpolation")
    start, end = (model.embed(condition, 1, model.device) for condition in (first, second))
    assert start is not None and start.tokens is not None and start.mask is not None
    assert end is not None and end.tokens is not None
    pooled, tokens = lerp(start.pooled, end.pooled, weights), lerp(start.tokens, end.tokens, weights)
    between = Embedded(pooled, tokens, start.mask.expand(len(weights), -1))
    x_t = initial_noise(model, noise, options).expand(len(weights), -1, -1, -1)
    return sample(model, NO_NOISE, between, options, start=x_t)


def morph(model: Diffusion, first: Tensor, second: Tensor, weights: Tensor, options: DiffusionOptions) -> Tensor:
    """Interpolate between two images (1, ...) through the noise of each: (len(weights), ...).

    Raises:
        ValueError: for a solver that cannot invert.
    """
    eps = invert(model, torch.cat([first, second]), Condition(), options)
    return generate_from(model, slerp(eps[:1], eps[1:], weights.to(eps)), Condition(), options)
