"""The base class of diffusion models: the training loss and the denoiser.

A family supplies the network (`predict`): a U-Net in unet.py, a transformer in genmodels/dit.py.
sampler.py generates samples, and editing.py works on given images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genmodels.codecs import prior_shape
from genmodels.conditions import Condition
from genmodels.diffusion import editing, likelihood, sampler
from genmodels.diffusion.config import DiffusionConfig
from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.gaussian import GaussianDenoiser
from genmodels.diffusion.meanflow import StepEmbedding, mean_velocity_error
from genmodels.diffusion.options import DiffusionOptions, JumpOptions
from genmodels.diffusion.process import MeanFlow, Process
from genmodels.diffusion.stages import Drawn
from genmodels.diffusion.variance import variance_bound
from genmodels.nn.conditioning import Conditioner, Embedded, drop_condition
from genmodels.nn.likelihood import LikelihoodKind
from genmodels.prior import Prior, negative_condition
from genmodels.types import Batch, Noise

Predict = Callable[[Tensor, Tensor, "Embedded | None"], Tensor]
"""A network with the signature of `Diffusion.predict`."""


class Diffusion(Prior, ABC):
    """Learns to remove noise from data, and samples by removing it step by step.

    With `config.latents` it is a prior over a codec's latents, to be decoded by `Latent`; what is
    called images here are then latents (N, *latents).

    Args:
        config: process, shapes, conditioning, and the settings of the network.
        width: D, size of the embedded condition.
        project_tokens: as in `Conditioner`.
    """

    Options = DiffusionOptions

    def __init__(self, config: DiffusionConfig, width: int, project_tokens: bool = True):
        super().__init__(config)
        c = config
        self.process: Process = c.selected
        self.shape = c.shape  # (C, H, W) of x_t
        self.condition = None if c.condition.is_empty else Conditioner(c.condition, width, project_tokens)
        self.gaussian: GaussianDenoiser | None = None
        if c.gaussian:
            conditional = width if c.conditional_mean and self.condition is not None else 0
            self.gaussian = GaussianDenoiser(c.shape, min(c.gaussian, math.prod(c.shape)), conditional)
        self.step = StepEmbedding(width) if self.process.jumps else None

    @property
    def over_latents(self) -> bool:
        return self.config.latents is not None

    @classmethod
    def config_over(cls, config: Any, codec: Any) -> Any:
        return replace(config, latents=prior_shape(codec, codes=False))

    def can(self, name: str) -> bool:
        if name == "interpolate_prompts" and not self.can("tokenize"):
            return False
        if name == "denoising_losses" and self.process.jumps:  # its weights depend on the error itself
            return False
        return super().can(name) and (name != "bits_per_dim" or not self.over_latents)

    @property
    def options_class(self) -> type[DiffusionOptions]:
        return JumpOptions if self.process.jumps else DiffusionOptions

    @property
    def likelihood_kind(self) -> LikelihoodKind:
        """What `bits_per_dim` computes: a bound for a DDPM, an estimate for the others."""
        if isinstance(self.process, DDPM):
            return LikelihoodKind()
        estimator = "an estimate through the probability-flow ODE, no bound"
        return LikelihoodKind(name="bits-per-dim-by-ode", estimator=estimator, images=256)

    @abstractmethod
    def predict(self, x: Tensor, time_input: Tensor, condition: Embedded | None) -> Tensor:
        """The network.

        Args:
            x: scaled noisy data (N, C, H, W).
            time_input: `process.time_input(t)`, (N,).
            condition: embedded condition of N rows, or None.

        Returns:
            Prediction (N, `config.outputs`, H, W).
        """

    # ---- training ----

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the closed-form Gaussian denoiser to the data, if there is one."""
        if self.gaussian is not None:
            self.gaussian.fit(self.as_map(batch) for batch in images)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        return self.denoising_loss(batch, self.predict)

    def denoising_loss(
        self, batch: Batch, predict: Predict, region: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss of a network, and its unweighted mean squared error.

        Args:
            batch: images (N, *latents) or (N, 3, H, W).
            predict: the network, with the signature of the method.
            region: bool (H, W), where the error counts; None: everywhere.
        """
        drawn = self.draw(batch)
        embedded = self.embed(drawn.condition, len(drawn.x_0), drawn.x_0.device)
        return self.weighted_error(drawn, embedded, predict, region)

    def denoising_losses(self, images: Tensor, condition: Condition, noise: Noise) -> Tensor:
        """Compute the weighted loss of each image at a time and under noise of its stream: (N,).

        No condition is dropped. The bound of a learned variance is not a part of it.

        Args:
            images: (N, *latents) or (N, 3, H, W).
            condition: N rows.
            noise: N streams. Equal seeds give equal times and equal noise.
        """
        drawn = self._drawn(images, condition, noise)
        embedded = self.embed(condition, len(drawn.x_0), drawn.x_0.device)
        error, weight, _ = self._errors(drawn, embedded, self.predict)
        return weight * error.mean((1, 2, 3))

    def draw(self, batch: Batch) -> Drawn:
        """Draw the times, the noise and which conditions are hidden."""
        condition = batch.condition
        if self.condition is not None:
            condition = drop_condition(condition, batch.noise, self.config.condition)
        return self._drawn(batch.images, condition, batch.noise)

    def _drawn(self, images: Tensor, condition: Condition, noise: Noise) -> Drawn:
        x_0 = self.as_map(images.float())
        t = self.process.draw(noise.uniform()).view(-1, 1, 1, 1)
        return Drawn(x_0, condition, t, noise.normal(*x_0.shape[1:]), noise)

    def weighted_error(
        self, drawn: Drawn, embedded: Embedded | None, predict: Predict, region: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `denoising_loss`, of what was drawn and of an embedded condition."""
        error, weight, bound = self._errors(drawn, embedded, predict)
        error = error.mean((1, 2, 3)) if region is None else error[:, :, region].mean((1, 2))  # (N,)
        loss, metrics = (weight * error).mean(), {"mse": error.detach().mean()}
        return (loss, metrics) if bound is None else (loss + bound, metrics | {"bound": bound.detach()})

    def _errors(
        self, drawn: Drawn, embedded: Embedded | None, predict: Predict
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Squared errors (N, C, H, W), the weights (N,) of the images, and the mean bound of a learned
        variance, if there is one."""
        (x_0, _, t, eps, noise), bound = drawn, None
        if isinstance(self.process, MeanFlow):

            def velocity(x: Tensor, t: Tensor, r: Tensor | None, rows: slice) -> Tensor:
                return self.output(x, t, None if embedded is None else embedded[rows], r, predict)[0]

            error, weight = mean_velocity_error(self.process, velocity, x_0, eps, t, noise)
        else:
            x_t = self.process.noisy(x_0, eps, t)
            prediction, fraction = self.output(x_t, t, embedded, predict=predict)
            error = (prediction - self.process.target(x_0, eps, t)).square()
            weight = self.process.weight(t).view(-1)
            if fraction is not None:
                assert isinstance(self.process, DDPM)
                estimate = self.process.x0(prediction, x_t, t)
                bound = variance_bound(self.process, fraction, estimate, x_0, t).mean()
        return error, weight, bound

    # ---- denoising ----

    def embed(self, condition: Condition | Embedded, n: int, device: torch.device) -> Embedded | None:
        """Embed a condition of n rows, unless it is embedded; None for an unconditional model."""
        if isinstance(condition, Embedded):
            return condition
        return None if self.condition is None else self.condition(condition, n, device)

    def null_condition(self, n: int, device: torch.device, negative: str = "") -> Embedded | None:
        """Embed the null condition, under which the model is unconditional, or that of a negative
        prompt."""
        if self.condition is None:
            return None
        return self.condition(negative_condition(self, negative, n, device), n, device)

    def output(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Embedded | None,
        to: Tensor | None = None,
        predict: Predict | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Evaluate the network at (x_t, t).

        Args:
            x_t: noisy data (N, C, H, W).
            t: times (N, 1, 1, 1).
            condition: embedded condition of N rows.
            to: times where the jump of a mean flow ends (N, 1, 1, 1); None: t, a jump of length 0.
            predict: network to use in place of the method.

        Returns:
            The prediction in the parameterisation of the process (N, C, H, W), float32; and the
            position of the step's log variance between its bounds, about 0 to 1 (N, C, H, W), or
            None where it is not learned.
        """
        mean_condition = condition.pooled if condition is not None and self.config.conditional_mean else None
        if self.step is not None:
            step_embedding = self.step(t - (t if to is None else to))  # (N, D)
            condition = Embedded(step_embedding) if condition is None else condition + step_embedding
        predict = predict or self.predict
        time_input = self.process.time_input(t).view(-1)
        prediction = predict(self.process.scale(t) * x_t, time_input, condition).float()
        fraction = None
        if prediction.shape[1] > x_t.shape[1]:
            prediction, fraction = prediction.chunk(2, dim=1)
            fraction = (fraction + 1) / 2
        if self.gaussian is None:
            return prediction, fraction
        # The network corrects the closed-form denoiser of normal data.
        with torch.autocast(x_t.device.type, enabled=False):
            if to is not None:
                return prediction + self.gaussian.mean_velocity(x_t, t, to, mean_condition), fraction
            x_0 = self.gaussian(x_t, self.process.alpha(t), self.process.sigma(t), mean_condition)
            return prediction + self.process.output(x_0, x_t, t), fraction

    def denoise(
        self, x_t: Tensor, t: Tensor, condition: Embedded | None, to: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """E[x_0 | x_t] (N, C, H, W), and the learned variance. Arguments as for `output`."""
        prediction, fraction = self.output(x_t, t, condition, to)
        return self.process.x0(prediction, x_t, t), fraction

    def checked_guide(self, guide: nn.Module, folder: Path) -> Diffusion:
        """Return `guide`, loaded from `folder`, when it predicts the same x_0 as this model.

        Raises:
            ValueError: when its process, shape, attributes, classes or codec differ.
        """
        if isinstance(guide, Diffusion) and guide._space == self._space:
            return guide
        raise ValueError(
            f"--guide {folder} cannot guide this model: process, shape, attributes and codec must be the same"
        )

    @property
    def _space(self) -> tuple[object, ...]:
        conditions = replace(self.conditions, drop=0.0, drop_each=0.0)
        return (self.process.path, self.shape, conditions, self.codec_weights)

    def as_map(self, latents: Tensor) -> Tensor:
        """(N, *latents) or images -> (N, C, H, W)."""
        return latents.view(len(latents), *self.shape)

    def as_latents(self, x: Tensor) -> Tensor:
        """The inverse of `as_map`."""
        return x if self.config.latents is None else x.view(x.shape[0], *self.config.latents)

    def finished(self, x_0: Tensor) -> Tensor:
        """(N, C, H, W) from a solver -> pixels clamped to [-1, 1], or latents (N, *latents)."""
        return x_0.clamp(-1, 1) if self.config.latents is None else self.as_latents(x_0)

    # ---- abilities: functions of sampler.py, editing.py and likelihood.py ----

    def sample(self, noise: Noise, condition: Condition, options: DiffusionOptions) -> Tensor:
        return sampler.sample(self, noise, condition, options)

    def trajectory(self, noise: Noise, condition: Condition, options: DiffusionOptions) -> tuple[Tensor, Tensor]:
        return sampler.trajectory(self, noise, condition, options)

    def invert(self, images: Tensor, condition: Condition, options: DiffusionOptions) -> Tensor:
        return editing.invert(self, images, condition, options)

    def generate_from(self, eps: Tensor, condition: Condition, options: DiffusionOptions) -> Tensor:
        return editing.generate_from(self, eps, condition, options)

    def edit(
        self, images: Tensor, strength: float, noise: Noise, condition: Condition, options: DiffusionOptions
    ) -> Tensor:
        return editing.edit(self, images, strength, noise, condition, options)

    def inpaint(
        self, images: Tensor, known: Tensor, noise: Noise, condition: Condition, options: DiffusionOptions
    ) -> Tensor:
        return editing.inpaint(self, images, known, noise, condition, options)

    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: DiffusionOptions) -> Tensor:
        return editing.interpolate(self, first, second, weights, options)

    def interpolate_prompts(
        self, noise: Noise, first: Condition, second: Condition, weights: Tensor, options: DiffusionOptions
    ) -> Tensor:
        return editing.interpolate_prompts(self, noise, first, second, weights, options)

    def morph(self, first: Tensor, second: Tensor, weights: Tensor, options: DiffusionOptions) -> Tensor:
        return editing.morph(self, first, second, weights, options)

    def bits_per_dim(self, images: Tensor, noise: Noise, steps: int = 20) -> Tensor:
        return likelihood.bits_per_dim(self, images, noise, steps)

    def denoising_error(self, images: Tensor, noise: Noise, levels: Tensor) -> Tensor:
        return likelihood.denoising_error(self, images, noise, levels)
