"""Diffusion: a network that predicts, a process that says what, and a solver that walks back. The network is for a
family to give: unet.py here, and whatever else maps x_t to something of the same shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genmodels.codecs import prior_shape
from genmodels.diffusion import likelihood, solvers
from genmodels.diffusion.config import DiffusionConfig
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.gaussian import GaussianDenoiser
from genmodels.diffusion.guidance import Guidance, guided, load_guide
from genmodels.diffusion.meanflow import StepEmbedding, mean_velocity_error
from genmodels.diffusion.options import DiffusionOptions, JumpOptions
from genmodels.diffusion.process import MeanFlow, Process
from genmodels.diffusion.solvers import Denoise, Normal, Schedule, Solver
from genmodels.diffusion.variance import variance_bound
from genmodels.nn.conditioning import Conditioner, Embedded, drop_condition
from genmodels.nn.interpolation import slerp
from genmodels.nn.likelihood import LikelihoodKind
from genmodels.prior import Prior
from genmodels.types import Batch, Condition, Noise

Predict = Callable[[Tensor, Tensor, "Embedded | None"], Tensor]
"""A network, as `Diffusion.predict` describes it."""


class Diffusion(Prior, ABC):
    """Learns to undo noise, and samples by undoing it step by step.

    Over a codec's latents it is a prior, which makes images as part of `Latent`; its "images" are then latents.

    Args:
        config: what is said above.
        width: size of the vector that the condition becomes.
    """

    Options = DiffusionOptions

    def __init__(self, config: DiffusionConfig, width: int):
        super().__init__(config)
        c = config
        self.process: Process = {"flow": c.flow, "meanflow": c.meanflow, "edm": c.edm, "ddpm": c.ddpm}[c.process]
        self.condition = Conditioner(c.condition, width) if self.is_conditional else None
        self.gaussian = GaussianDenoiser(c.shape, min(c.gaussian, math.prod(c.shape))) if c.gaussian else None
        self.step = StepEmbedding(width) if self.process.jumps else None

    @property
    def is_conditional(self) -> bool:
        """Whether it can be asked for something."""
        return not self.conditions.is_empty

    @property
    def options_class(self) -> type:
        return JumpOptions if self.process.jumps else DiffusionOptions

    @property
    def over_latents(self) -> bool:
        return self.config.latents is not None

    @classmethod
    def config_over(cls, config: Any, codec: Any) -> Any:
        return replace(config, latents=prior_shape(codec, codes=False))

    def can(self, name: str) -> bool:
        return super().can(name) and (name != "bits_per_dim" or not self.over_latents)

    @property
    def likelihood_kind(self) -> LikelihoodKind:
        """What `bits_per_dim` computes: a bound for a DDPM, an estimate for the others."""
        if self.config.process == "ddpm":
            return LikelihoodKind()
        how = "an estimate through the probability-flow ODE, no bound"
        return LikelihoodKind(name="bits-per-dim-by-ode", estimator=how, images=256)

    @property
    def space(self) -> tuple[object, ...]:
        """What two models must share for their estimates to be compared."""
        return (
            self.process.path,
            self.config.shape,
            replace(self.conditions, drop=0.0, drop_each=0.0),
            self.codec_weights,
        )

    @abstractmethod
    def predict(self, x: Tensor, signal: Tensor, condition: Embedded | None) -> Tensor:
        """The network: (N, C, H, W), what it is told of the time (N,), the embedded condition of N rows or None ->
        (N, `outputs`, H, W)."""

    # ---- training ----

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the closed-form denoiser to the data, where there is one."""
        if self.gaussian is not None:
            self.gaussian.fit(self._as_map(torch.cat(list(images))))

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        return self.denoising_loss(batch, self.predict)

    def denoising_loss(
        self, batch: Batch, predict: Predict, seen: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a network `predict`, and its plain mean squared error.

        Args:
            batch: images (N, *latents) or (N, 3, H, W).
            predict: as the method.
            seen: bool (H, W), where it sees x_t and answers for it; None: everywhere.
        """
        c = self.config
        x0 = self._as_map(batch.images.float())
        condition = batch.condition
        if self.is_conditional:
            condition = drop_condition(condition, batch.noise, c.condition)
        t = self.process.draw(batch.noise.uniform()).view(-1, 1, 1, 1)
        eps = batch.noise.normal(*x0.shape[1:])
        embedded, bound = self.embed(condition, len(x0), x0.device), None
        if isinstance(self.process, MeanFlow):

            def velocity(x: Tensor, at: Tensor, to: Tensor | None, rows: slice) -> Tensor:
                return self.output(x, at, None if embedded is None else embedded[rows], to, predict)[0]

            error, weight = mean_velocity_error(self.process, velocity, x0, eps, t, batch.noise)
        else:
            x_t = self.process.noisy(x0, eps, t)
            found, fraction = self.output(x_t, t, embedded, predict=predict)
            error = (found - self.process.target(x0, eps, t)).square()
            weight = self.process.weight(t).view(-1)
            if fraction is not None:
                assert isinstance(self.process, DDPM)
                estimate = self.process.x0(found, x_t, t)
                bound = variance_bound(self.process, fraction, estimate, x0, t).mean()
        error = error.mean((1, 2, 3)) if seen is None else error[:, :, seen].mean((1, 2))  # (N,)
        loss, metrics = (weight * error).mean(), {"mse": error.detach().mean()}
        return (loss, metrics) if bound is None else (loss + bound, metrics | {"bound": bound.detach()})

    def embed(self, condition: Condition, n: int, device: torch.device) -> Embedded | None:
        """The condition as the network wants it."""
        return None if self.condition is None else self.condition(condition, n, device)

    def output(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Embedded | None,
        to: Tensor | None = None,
        predict: Predict | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What is predicted at (x_t, t), in the process's parameterisation, (N, C, H, W), float32; and where a step's
        variance lies between its bounds, about 0 to 1, (N, C, H, W), if that is learnt.

        Args:
            x_t: (N, C, H, W).
            t: (N, 1, 1, 1).
            condition: embedded, of N rows.
            to: where a jump ends (N, 1, 1, 1), for a process that `jumps`; None: at t, which is no jump.
            predict: in place of the method.
        """
        if self.step is not None:
            told = self.step(t - (t if to is None else to))  # (N, D)
            condition = Embedded(told) if condition is None else condition + told
        predict = predict or self.predict
        found = predict(self.process.scale(t) * x_t, self.process.signal(t).view(-1), condition).float()
        fraction = None
        if found.shape[1] > x_t.shape[1]:
            found, fraction = found.chunk(2, dim=1)
            fraction = (fraction + 1) / 2
        if self.gaussian is None:
            return found, fraction
        with torch.autocast(x_t.device.type, enabled=False):
            if to is not None:
                return found + self.gaussian.mean_velocity(x_t, t, to), fraction
            filtered = self.gaussian(x_t, self.process.alpha(t), self.process.sigma(t))
            return found + self.process.output(filtered, x_t, t), fraction

    # ---- sampling ----

    def denoiser(
        self,
        condition: Condition,
        options: DiffusionOptions,
        n: int,
        device: torch.device,
        fractions: list[Tensor] | None = None,
    ) -> Denoise:
        """(x_t, t) -> x_0 under `condition`, guided as `options` say. `fractions` gets what is learnt of the variance.

        Raises:
            ValueError: for guidance where there is nothing to be guided by.
        """
        o = options
        own = self.unguided(condition, n, device, fractions)
        if o.guidance == 1:
            return self._clipped(own)
        if o.guide is not None:
            weaker = load_guide(o.guide).to(device)
            if not isinstance(weaker, Diffusion) or weaker.space != self.space:
                raise ValueError(
                    f"--guide {o.guide} cannot guide this model: process, shape, attributes and codec must be the same"
                )
            other = weaker.unguided(condition, n, device)
        elif condition.is_empty and self.condition is not None:
            return self._clipped(own)  # nothing is asked for, so there is nothing to exaggerate
        elif self.condition is not None:
            other = self.unguided(Condition(), n, device)
        else:
            raise ValueError(
                f"guidance {o.guidance:g} needs a condition, and this {self.family} was trained without; a weaker "
                "model can guide it instead: --guide RUN"
            )
        how = Guidance(o.guidance, o.guidance_low, o.guidance_high, o.guidance_rescale)
        return self._clipped(guided(own, other, how, self.process))

    def unguided(
        self, condition: Condition, n: int, device: torch.device, fractions: list[Tensor] | None = None
    ) -> Denoise:
        """(x_t, t) -> x_0 under `condition` of n rows, t a number or (N, 1, 1, 1). `fractions` as of `denoiser`."""
        embedded = self.embed(condition, n, device)

        def denoise(x_t: Tensor, *times: float | Tensor) -> Tensor:
            at = [t if isinstance(t, Tensor) else x_t.new_full((len(x_t), 1, 1, 1), t) for t in times]
            found, fraction = self.output(x_t, at[0], embedded, to=at[1] if len(at) > 1 else None)
            if fractions is not None and fraction is not None:
                fractions.append(fraction)
            return self.process.x0(found, x_t, at[0])

        return denoise

    def _clipped(self, denoise: Denoise) -> Denoise:
        """`denoise`, with data kept in [-1, 1] where the process says so."""
        return (lambda x_t, *t: denoise(x_t, *t).clamp(-1, 1)) if self.process.clip else denoise

    def schedule(self, options: DiffusionOptions) -> Schedule:
        """The times of a walk from noise to data."""
        return solvers.schedule(self.process, options.steps, options.schedule, options.shift)

    def sample(self, noise: Noise, condition: Condition, options: DiffusionOptions) -> Tensor:
        x = self.process.spread * self._start(noise, options)
        return self._walk(x, self.schedule(options), noise, condition, options)

    def trajectory(self, noise: Noise, condition: Condition, options: DiffusionOptions) -> tuple[Tensor, Tensor]:
        """Every evaluation on the way to `sample(noise, condition, options)`: x_t, scaled to where data are, and the
        data that the network expects; each (evaluations + 1, N, C, H, W), ending with the sample."""
        denoise, solver = self._denoiser_and_solver(condition, options, len(noise), noise.device)
        seen, expected = [], []

        def watched(x_t: Tensor, *times: float | Tensor) -> Tensor:
            x0 = denoise(x_t, *times)
            at = torch.as_tensor(times[0], dtype=torch.float64)
            seen.append(x_t / float(self.process.alpha(at) ** 2 + self.process.sigma(at) ** 2) ** 0.5)
            expected.append(x0)
            return x0

        x = self.process.spread * self._start(noise, options)
        x = solver(watched, x, self.schedule(options), self._normal(noise))
        shown, guessed = (torch.stack([self._as_latents(step) for step in (*steps, x)]) for steps in (seen, expected))
        return shown, guessed

    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: DiffusionOptions) -> Tensor:
        """Samples (len(weights), C, H, W) from noise on the arc from that of `first` to that of `second`."""
        options.check_reversible("interpolation")
        return self._between(self._start(first, options), self._start(second, options), weights, options)

    def morph(self, first: Tensor, second: Tensor, weights: Tensor, options: DiffusionOptions) -> Tensor:
        """The way from one image (1, C, H, W) to another, through the noise that each is encoded as:
        (len(weights), C, H, W)."""
        noise = self.invert(torch.cat([first, second]), Condition(), options)
        return self._between(noise[:1], noise[1:], weights, options)

    def invert(self, images: Tensor, condition: Condition, options: DiffusionOptions) -> Tensor:
        """The noise (N, C, H, W), of unit variance, from which `options` lead to `images`: the ODE walked backwards."""
        options.check_reversible("encoding an image as noise")
        if options.solver == "jump":
            raise ValueError("a mean flow has learnt to jump towards data and not back: use --solver unipc --steps 20")
        way = solvers.encoding(self.process, self.schedule(options))
        denoise = self.denoiser(condition, options, len(images), images.device)
        x = options.solver_for(self.process)(denoise, way.alpha[0] * self._as_map(images), way, _none)
        return x / self.process.spread

    def generate_from(self, eps: Tensor, condition: Condition, options: DiffusionOptions) -> Tensor:
        """The sample that begins at noise `eps` (N, C, H, W) of unit variance: the inverse of `invert`."""
        options.check_reversible("a walk from given noise")
        return self._walk(self.process.spread * eps, self.schedule(options), None, condition, options)

    def edit(
        self, images: Tensor, strength: float, noise: Noise, condition: Condition, options: DiffusionOptions
    ) -> Tensor:
        """SDEdit (arXiv 2108.01073): `images` (N, C, H, W) with the noise of the last `strength` of the walk, and that
        part walked.

        Args:
            images, noise, condition, options: as elsewhere.
            strength: in (0, 1]: 1 forgets the images, a little changes little.

        Raises:
            ValueError: for another strength.
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
        whole = self.schedule(options)
        way = whole[len(whole) - math.ceil(strength * len(whole)) :]
        x = way.alpha[0] * self._as_map(images) + way.sigma[0] * noise.normal(*self.config.shape)
        return self._walk(x, way, noise, condition, options)

    def inpaint(
        self, images: Tensor, known: Tensor, noise: Noise, condition: Condition, options: DiffusionOptions
    ) -> Tensor:
        """Completes `images` (N, C, H, W) where they are not `known`, bool (H, W), any region. `solvers.repaint` says
        how; of the options, `steps`, `schedule`, `resample` and guidance count.

        Raises:
            ValueError: for a mask of another size.
        """
        shape = self.config.shape
        if (options.solver, options.eta) != (self.Options.solver, self.Options.eta):
            raise ValueError("inpainting has a walk of its own: leave out the solver and eta")
        if self.config.latents is not None and len(self.config.latents) == 1:
            raise ValueError("a vector stands for the whole image and cannot be known in part: take a codec with a map")
        if known.dtype != torch.bool or tuple(known.shape) != shape[1:]:
            kind = f"{str(known.dtype).removeprefix('torch.')} {tuple(known.shape)}"
            raise ValueError(f"where an image is known must be bool {shape[1:]}, got {kind}")
        x = self.process.spread * self._start(noise, options)
        denoise = self.denoiser(condition, options, len(images), images.device)
        way = self.schedule(options)
        drawn = solvers.repaint(denoise, x, way, self._normal(noise), images, known, options.resample)
        return torch.where(known, images, self._finished(drawn))

    def bits_per_dim(self, images: Tensor, noise: Noise, steps: int = 20) -> Tensor:
        """Bits per dimension of 8-bit `images` (N, 3, H, W), without a condition: (N,). For a DDPM its variational
        bound, estimated at `steps` timesteps; for the others the probability-flow ODE in `steps` steps.

        Raises:
            ValueError: for a prior over latents, whose likelihood is not that of images.
        """
        if self.over_latents:
            raise ValueError("a prior over latents has no bits per dimension of an image")
        with torch.inference_mode(False):
            images = images.clone()
            denoise = self.unguided(Condition(), len(images), images.device)
            if isinstance(self.process, DDPM):
                with torch.no_grad():
                    return likelihood.bound_bits_per_dim(denoise, self.process, images, noise, steps)
            return likelihood.ode_bits_per_dim(denoise, self.process, images, noise, steps)

    def _between(self, first: Tensor, second: Tensor, weights: Tensor, options: DiffusionOptions) -> Tensor:
        """Samples from the arc between two noises (1, C, H, W), as images or latents."""
        return self.generate_from(slerp(first, second, weights.to(first)), Condition(), options)

    def _walk(
        self, x: Tensor, way: Schedule, noise: Noise | None, condition: Condition, options: DiffusionOptions
    ) -> Tensor:
        denoise, solver = self._denoiser_and_solver(condition, options, len(x), x.device)
        normal = _none if noise is None else self._normal(noise)
        return self._finished(solver(denoise, x, way, normal))

    def _denoiser_and_solver(
        self, condition: Condition, options: DiffusionOptions, n: int, device: torch.device
    ) -> tuple[Denoise, Solver]:
        """What a walk is made with: the denoiser, and the solver, which is told the learnt variance if it uses it."""
        if options.solver == "ddpm" and self.config.outputs > self.config.shape[0]:
            fractions: list[Tensor] = []
            return self.denoiser(condition, options, n, device, fractions), partial(
                solvers.ddpm, fraction=fractions.pop
            )
        return self.denoiser(condition, options, n, device), options.solver_for(self.process)

    def _start(self, noise: Noise, options: DiffusionOptions) -> Tensor:
        """What a walk begins with, at unit variance or the temperature's: (N, C, H, W)."""
        return options.temperature * noise.normal(*self.config.shape)

    def _normal(self, noise: Noise) -> Normal:
        return lambda: noise.normal(*self.config.shape)

    def _finished(self, x: Tensor) -> Tensor:
        """Pixels stay in [-1, 1]; latents are the codec's business."""
        return self._as_latents(x) if self.over_latents else x.clamp(-1, 1)

    def _as_map(self, latents: Tensor) -> Tensor:
        """(N, *latents) -> (N, C, H, W)."""
        return latents.view(len(latents), *self.config.shape)

    def _as_latents(self, x: Tensor) -> Tensor:
        """The inverse of `_as_map`."""
        return x if self.config.latents is None else x.view(len(x), *self.config.latents)


def _none() -> Tensor:
    raise AssertionError("this walk adds no noise")
