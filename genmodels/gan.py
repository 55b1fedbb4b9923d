"""GANs: R3GAN (arXiv 2501.05441) and DCGAN (arXiv 1511.06434)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.codecs import prior_shape
from genmodels.conditions import Condition
from genmodels.gan_config import GANConfig, GANOptions
from genmodels.nn.adversarial import between, critic_loss, generator_loss, squared_slope, uncompiled
from genmodels.nn.augment import augment
from genmodels.nn.conditioning import Conditioner, drop_condition
from genmodels.nn.dcgan import DCCritic, DCGenerator
from genmodels.nn.interpolation import slerp
from genmodels.nn.inversion import invert
from genmodels.nn.principal import PrincipalComponents
from genmodels.nn.r3gan import R3Critic, R3Generator
from genmodels.nn.regression import LinearMap
from genmodels.prior import Prior
from genmodels.types import Batch, Noise

INVERSION_STEPS = 200
"""Adam steps of an inversion."""
ENCODER_SIDE = 16
"""Side of the downsampled images that the encoder takes."""
ENCODER_PAIRS = (1_024, 8_192)
"""Smallest and largest number of samples that the encoder is fitted to."""
MEMORISED = 0.5
"""Warn when held-out scores are more than this fraction of the way from training scores to
generated scores."""


class GAN(Prior):
    """A generator x = G(z), z ~ N(0, I), and a critic D. Only differences of its scores matter.

    With the relativistic loss, the critic minimises
    softplus(D(G(z)) - D(x)) + gamma / 2 (|grad D(x)|^2 + |grad D(G(z))|^2), and the generator
    softplus(D(x) - D(G(z))).
    """

    family = "gan"
    reads_text = False
    Config = GANConfig
    Options = GANOptions

    def __init__(self, config: GANConfig | None = None):
        c = config or GANConfig()
        super().__init__(c)
        conditional = not c.condition.is_empty
        channels = c.widths
        width = channels[0] if conditional else 0  # of the critic's features, which are projected on the condition
        inputs = c.latent_dim * (2 if conditional else 1)
        self.generator: nn.Module
        self.critic: nn.Module
        if c.network == "r3gan":
            shape = (channels, (c.blocks,) * c.levels, c.expansion, c.group, c.patch, c.shape[0])
            self.generator = R3Generator(inputs, *shape, estimate=c.principal > 0)
            self.critic = R3Critic(1 + width, *shape)
        else:
            self.generator, self.critic = DCGenerator(inputs, channels), DCCritic(1 + width, channels)
        self.generator_condition = Conditioner(c.condition, c.latent_dim) if conditional else None
        self.critic_condition = Conditioner(c.condition, width) if conditional else None
        self.principal = PrincipalComponents(c.shape[1], c.principal, c.shape[0]) if c.principal else None
        self.encoder = LinearMap(c.shape[0] * min(c.shape[1], ENCODER_SIDE) ** 2, c.latent_dim)
        self.to(memory_format=torch.channels_last)  # the fastest layout for convolutions

    # ---- both networks ----

    def synthesise(self, z: Tensor, condition: Condition | None = None, guidance: float = 1.0) -> Tensor:
        """Map z (N, latent_dim) to images or latents (N, C, H, W), float32, not clamped."""
        inputs = z
        if self.generator_condition is not None:
            given, n = Condition() if condition is None else condition, z.shape[0]
            embedded = self.generator_condition(given, n, z.device).pooled
            if guidance != 1:
                embedded = torch.lerp(self.generator_condition.nothing(n, z.device).pooled, embedded, guidance)
            inputs = torch.cat([z, embedded], 1)
        if self.principal is None:
            return self.generator(inputs).float()
        with torch.autocast(z.device.type, enabled=False):
            linear = self.principal.decode(z[:, : self.config.principal].float())
        return linear + self.generator(inputs, linear).float()

    def score(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        """Score images (N, C, H, W): (N,), float32. Real images should score higher."""
        # NOTE: pass a view. The FLOP counter hooks a module's inputs, and fails on a leaf tensor
        # that needs a gradient.
        output = self.critic(images.view_as(images)).float()  # (N, 1), or (N, 1 + width)
        if self.critic_condition is None:
            return output[:, 0]
        with torch.autocast(images.device.type, enabled=False):
            given = Condition() if condition is None else condition
            embedded = self.critic_condition(given, len(images), images.device)
        return output[:, 0] + (output[:, 1:] * embedded.pooled).sum(1)

    # ---- training ----

    @property
    def turns(self) -> tuple[str, ...]:
        return ("critic", "generator")

    @property
    def over_latents(self) -> bool:
        return self.config.latents is not None

    @classmethod
    def config_over(cls, config: GANConfig, codec: Any) -> GANConfig:
        return replace(config, latents=prior_shape(codec, codes=False))

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """Return the parameters of the critic or the generator, embedding included."""
        if turn == "critic":
            parts = (self.critic, self.critic_condition)
        else:
            parts = (self.generator, self.generator_condition)
        return chain.from_iterable(part.parameters() for part in parts if part is not None)

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the principal components, if any, and set the network's correction to zero."""
        if self.principal is not None:
            self.principal.fit(images)
            assert isinstance(self.generator, R3Generator)
            nn.init.zeros_(self.generator.head.weight)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        c, noise, condition = self.config, batch.noise, batch.condition
        if self.generator_condition is not None:
            condition = drop_condition(condition, noise, c.condition)
        z = noise.normal(c.latent_dim)
        if turn == "critic":
            with torch.no_grad():
                fake = self.synthesise(z, condition)
            return self._critic_loss(batch, fake, condition)
        real, fake = self._augmented(batch.images, self.synthesise(z, condition), noise)
        real_score, fake_score = self.score(real, condition), self.score(fake, condition)
        loss = generator_loss(c.loss, real_score, fake_score)
        return loss, {"fooled": (fake_score > real_score).float().mean().detach()}

    def _critic_loss(self, batch: Batch, fake: Tensor, condition: Condition) -> tuple[Tensor, dict[str, Tensor]]:
        c, real = self.config, batch.images.float().detach()
        slopes = batch.step % c.penalty_every == 0
        real.requires_grad_(slopes and c.r1 > 0)
        fake.requires_grad_(slopes and c.r2 > 0)
        real_input, fake_input = self._augmented(real, fake, batch.noise)
        with uncompiled() if slopes else nullcontext():
            real_score, fake_score = self.score(real_input, condition), self.score(fake_input, condition)
        loss = critic_loss(c.loss, real_score, fake_score)
        metrics = {"real": real_score.mean(), "fake": fake_score.mean()}
        decay = c.penalty_end + (1 - c.penalty_end) * (1 + math.cos(math.pi * batch.progress)) / 2
        for name, gamma, images, score in (("r1", c.r1, real, real_score), ("r2", c.r2, fake, fake_score)):
            if images.requires_grad:
                # Scaled, because the log averages it over steps with and without penalties.
                metrics[name] = c.penalty_every * squared_slope(images, score).mean()
                loss = loss + decay * gamma / 2 * metrics[name]
        if slopes and c.slope_penalty:
            weights = batch.noise.uniform()
            middle = between(real_input.detach(), fake_input.detach(), weights).requires_grad_()
            with uncompiled():
                score = self.score(middle, condition)
            length = (squared_slope(middle, score) + 1e-12).sqrt()
            metrics["slope"] = c.penalty_every * (length - 1).square().mean()
            loss = loss + c.slope_penalty * metrics["slope"]
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _augmented(self, real: Tensor, fake: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Augment real and generated images for the critic, if the config says so."""
        if not self.config.augment:
            return real, fake
        return augment(real, noise, self.config.augment), augment(fake, noise, self.config.augment)

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Fit the encoder, a linear regression of z from downsampled G(z).

        The number of samples is about the number of `images`.
        """
        device = next(self.parameters()).device
        fewest, most = ENCODER_PAIRS
        count = 0
        for batch in images:
            count += len(batch)
            if count >= most:
                break
        count = min(max(count, fewest), most)
        latents, inputs = [], []
        for start in range(0, count, 64):
            z = Noise.for_images(0, range(start, min(start + 64, count)), device).normal(self.config.latent_dim)
            latents.append(z)
            inputs.append(self._downsampled(self.from_latents(z)))
        self.encoder.fit(torch.cat(inputs), torch.cat(latents))

    def diagnose(self, seen: Tensor, held_out: Tensor) -> tuple[dict[str, float], list[str]]:
        """Compare the critic's scores of training, held-out and generated images.

        `critic/memorised` is the position of the held-out scores between the training scores (0)
        and the generated scores (1), r_v of ADA (arXiv 2006.06676).
        """
        z = Noise.for_images(0, range(len(seen)), seen.device).normal(self.config.latent_dim)
        kinds = {"seen": seen, "held_out": held_out, "generated": self.synthesise(z)}
        scores = {kind: self.score(images) for kind, images in kinds.items()}
        means = {f"critic/{kind}": values.mean().item() for kind, values in scores.items()}
        known, new, generated = means.values()
        fraction = (known - new) / (known - generated) if known > generated else float("nan")
        error = math.sqrt(sum(scores[kind].var().item() / len(seen) for kind in ("seen", "held_out")))
        warnings = []
        if fraction > MEMORISED and known - new > 3 * error:
            warnings.append(
                f"the critic overfits its training images: held-out scores are {fraction:.0%} of the way from training "
                "scores to generated scores. Use --model.augment 0.3, or more images"
            )
        return means | {"critic/memorised": fraction}, warnings

    # ---- sampling and inversion ----

    def sample(self, noise: Noise, condition: Condition, options: GANOptions) -> Tensor:
        if options.guidance != 1 and self.conditions.is_empty:
            raise ValueError(f"guidance {options.guidance:g} needs a condition, and this gan was trained without")
        return self._bounded(self.synthesise(self.draw_latents(noise, options), condition, options.guidance))

    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: GANOptions) -> Tensor:
        """Interpolate spherically from the sample of `first` (weight 0) to that of `second`.

        Raises:
            ValueError: if the options ask for guidance: these samples have no condition.
        """
        if options.guidance != 1:
            raise ValueError(f"guidance {options.guidance:g} has no effect on an interpolation: leave it out")
        ends = self.draw_latents(first, options), self.draw_latents(second, options)
        return self.from_latents(slerp(*ends, weights.to(ends[0])))

    def draw_latents(self, noise: Noise, options: GANOptions) -> Tensor:
        """Draw z (N, latent_dim) of the samples of `noise`: normal, or truncated normal."""
        z = noise.normal(self.config.latent_dim)
        if options.truncation is None:
            return z
        normal = torch.special.ndtr
        low = float(normal(torch.tensor(-options.truncation, dtype=torch.float64)))
        return torch.special.ndtri(low + normal(z.double()) * (1 - 2 * low)).float()

    def find_latents(self, images: Tensor, exact: bool = True) -> Tensor:
        """Find z (N, latent_dim) of images (N, 3, H, W) in [-1, 1].

        Args:
            images: the images.
            exact: True for `invert`; False for the estimate of the fitted encoder.
        """
        return self.invert(images) if exact else self.encoder(self._downsampled(images))

    def from_latents(self, latents: Tensor) -> Tensor:
        """Map z (N, latent_dim) to images (N, 3, H, W) in [-1, 1], or latents of a codec."""
        return self._bounded(self.synthesise(latents))

    def invert(self, images: Tensor, steps: int = INVERSION_STEPS, start: Tensor | None = None) -> Tensor:
        """Find z (N, latent_dim) whose images are nearest to `images`, by gradient descent.

        Args:
            images: (N, 3, H, W) in [-1, 1]. Each is inverted independently.
            steps: number of Adam steps.
            start: initial z (N, latent_dim). None: the estimate of the fitted encoder.
        """
        begin = self.find_latents(images, exact=False) if start is None else start
        return invert(self.synthesise, images, begin, steps, bounded=self.config.latents is None)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images (N, 3, H, W) in [-1, 1] by inversion."""
        return self.from_latents(self.invert(images))

    def morph(self, first: Tensor, second: Tensor, weights: Tensor, options: GANOptions) -> Tensor:
        """Interpolate spherically between the inverted `first` and `second`, each (1, 3, H, W)."""
        a, b = self.invert(torch.cat([first, second])).split(1)
        return self.from_latents(slerp(a, b, weights.to(a)))

    def _bounded(self, images: Tensor) -> Tensor:
        return images.clamp(-1, 1) if self.config.latents is None else images

    def _downsampled(self, images: Tensor) -> Tensor:
        """Downsample (N, 3, H, W) and flatten to (N, values)."""
        return F.adaptive_avg_pool2d(images.float(), min(self.config.shape[1], ENCODER_SIDE)).flatten(1)
