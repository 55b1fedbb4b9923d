"""GAN: a generator and a critic that train against each other; R3GAN (arXiv 2501.05441), and DCGAN as textbooks have
it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.codecs import prior_shape
from genmodels.nn.adversarial import Game, between, critic_loss, generator_loss, squared_slope, uncompiled
from genmodels.nn.augment import augment
from genmodels.nn.conditioning import ConditionEmbedding, drop_condition
from genmodels.nn.conv import NORM_GROUPS
from genmodels.nn.dcgan import DCCritic, DCGenerator
from genmodels.nn.interpolation import slerp
from genmodels.nn.inversion import invert
from genmodels.nn.principal import MAX_SIDE, PrincipalComponents
from genmodels.nn.r3gan import GRID, R3Critic, R3Generator
from genmodels.nn.regression import LinearMap
from genmodels.prior import Prior
from genmodels.types import Batch, Condition, Noise

INVERSION_STEPS = 200
"""Of Adam."""
ENCODER_SIDE = 16
"""The encoder looks at images averaged down to this side."""
ENCODER_PAIRS = (1_024, 8_192)
"""Fewest and most samples that it is fitted to."""
MEMORISED = 0.5
"""Of the way from training faces to generated ones, by the critic's scores, that held-out faces may lie."""


@dataclass(frozen=True)
class GANConfig:
    """Both networks and their game."""

    size: int = 64
    """Side of the images in pixels; the recipes set it from --size."""
    latents: tuple[int, ...] | None = None
    """Shape of the codec's latents, (channels, side, side), which are then its images; None: pixels. Set from
    --codec."""
    network: Literal["r3gan", "dcgan"] = "r3gan"
    """Residual grouped convolutions, or the textbook's strided ones."""
    latent_dim: int = 64
    """Length of z, what an image is drawn from."""
    channels: tuple[int, ...] = (384, 384, 384, 384, 192, 96, 48)
    """Width of each level, the coarsest (4 x 4) first. As many are used as the size needs; if it needs more, each has
    half the width of the one before."""
    blocks: int = 2
    """Residual blocks of each level ("r3gan")."""
    expansion: int = 2
    """How much wider they are inside ("r3gan")."""
    group: int = 16
    """Channels of each group of their convolutions ("r3gan")."""
    patch: int = 1
    """Side of the squares of pixels that a position of the finest level holds ("r3gan"): no convolution runs at a
    higher resolution than size / patch."""
    principal: int = 0
    """So many coordinates of z also weigh principal components of the images; the network sees this sketch and is added
    to it ("r3gan"). So the generator starts as a Gaussian of faces."""
    attributes: tuple[str, ...] = ()
    """Names of attributes that it can be asked for (by projection, arXiv 1802.05637)."""
    classes: int = 0
    """How many labels it can be asked for."""
    drop: float = 0.1
    """Share of the images whose condition is hidden in training, so that it may also be left out; what asks for nothing
    (interpolation, inversion, directions) needs it above 0."""
    drop_each: float = 0.5
    """Share of the others of which a random half of the attributes is hidden, so that a few can be asked for."""

    loss: Game = "relativistic"
    """The game: relativistic pairing, or the textbook's non-saturating, hinge or wasserstein (with slope_penalty
    10)."""
    r1: float = 2.0
    """Weight gamma of the penalty gamma / 2 |slope|^2 of the critic at real images."""
    r2: float = 2.0
    """The same at generated ones."""
    penalty_end: float = 0.1
    """Share of r1 and r2 that is left at the end of training, after half a cosine."""
    slope_penalty: float = 0.0
    """Weight of (|slope| - 1)^2 of the critic between real and generated images (WGAN-GP, arXiv 1704.00028)."""
    penalty_every: int = 4
    """Steps between penalties, which then weigh so many times more (lazy regularisation, arXiv 1912.04958)."""
    augment: float = 0.0
    """Probability of each kind of augmentation (colours, translation, cutout) of what the critic sees: against learning
    a small data set by heart."""

    def __post_init__(self) -> None:
        c = self
        if c.network not in ("r3gan", "dcgan"):
            raise ValueError(f"network must be 'r3gan' or 'dcgan', got {c.network!r}")
        if c.loss not in ("relativistic", "non-saturating", "hinge", "wasserstein"):
            raise ValueError(f"loss must be 'relativistic', 'non-saturating', 'hinge' or 'wasserstein', got {c.loss!r}")
        for name in ("size", "latent_dim", "blocks", "expansion", "group", "patch", "penalty_every"):
            if getattr(c, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(c, name)}")
        for name in ("r1", "r2", "slope_penalty", "principal", "classes"):
            if getattr(c, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(c, name)}")
        for name in ("drop", "drop_each", "augment", "penalty_end"):
            if not 0 <= getattr(c, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(c, name)}")
        if c.patch > 1 and c.patch % 2:
            raise ValueError(f"patch must be 1 or even, got {c.patch}")
        if len(set(c.attributes)) < len(c.attributes):
            raise ValueError(f"attributes must be different names, got {c.attributes}")
        if c.principal > (c.latent_dim if c.network == "r3gan" else 0):
            raise ValueError(f"principal {c.principal} must be at most latent_dim {c.latent_dim}, and 0 for 'dcgan'")
        if c.latents is not None and (len(c.latents) != 3 or c.latents[1] != c.latents[2] or c.network != "r3gan"):
            raise ValueError(f"latents must be (channels, side, side), for network 'r3gan', got {c.latents}")
        if c.principal > math.prod(c.shape[:1] + (min(c.shape[1], MAX_SIDE),) * 2):
            raise ValueError(f"principal {c.principal} is more than the numbers of an image of shape {c.shape}")
        if c.levels < 1 or GRID * 2 ** (c.levels - 1) * c.finest != c.shape[1]:
            what = "size" if c.latents is None else "the side of the latents"
            raise ValueError(
                f"{what} must be {GRID * c.finest} times a power of 2 ({c.network}, 4 x 4 positions first"
                f"{f', patch {c.patch}' if c.network == 'r3gan' else ''}), got {c.shape[1]}"
            )
        if not c.channels or any(width < 1 or width % c.unit for width in c.channels):
            raise ValueError(f"channels must be multiples of {c.unit} ({c.network}), got {c.channels}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it makes."""
        if self.latents is None:
            return (3, self.size, self.size)
        channels, height, width = self.latents
        return (channels, height, width)

    @property
    def finest(self) -> int:
        """Pixels of the image to a position of the finest level, along a side."""
        return self.patch if self.network == "r3gan" else 2

    @property
    def unit(self) -> int:
        """What every width is a multiple of: the group of a convolution, or of a norm."""
        return self.group if self.network == "r3gan" else NORM_GROUPS

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level that the size needs, the coarsest first."""
        widths = list(self.channels[: self.levels])
        while len(widths) < self.levels:
            widths.append(max(1, widths[-1] // 2 // self.unit) * self.unit)
        return tuple(widths)

    @property
    def levels(self) -> int:
        """How many levels the size needs."""
        return math.floor(math.log2(max(1, self.shape[1] / (GRID * self.finest)))) + 1


@dataclass(frozen=True)
class GANOptions:
    """How to sample a GAN."""

    truncation: float | None = None
    """Largest |z_i| (BigGAN's truncation trick, arXiv 1809.11096): less gives likelier and less varied faces."""

    def __post_init__(self) -> None:
        if self.truncation is not None and not self.truncation > 0:
            raise ValueError(f"truncation must be above 0 (None: none), got {self.truncation}")


class GAN(Prior):
    """x = G(z), z ~ N(0, I); and D, whose score says which of two images is the real one.

    The critic's turn lowers softplus(D(G(z)) - D(x)) + gamma / 2 (|grad D(x)|^2 + |grad D(G(z))|^2), the generator's
    softplus(D(x) - D(G(z))).
    """

    family = "gan"
    Config = GANConfig
    Options = GANOptions

    def __init__(self, config: GANConfig | None = None):
        c = config or GANConfig()
        super().__init__(c)
        conditional = bool(c.attributes or c.classes)
        channels = c.widths
        width = channels[0] if conditional else 0  # of the features that a condition is projected on
        inputs = c.latent_dim * (2 if conditional else 1)
        self.generator: nn.Module
        self.critic: nn.Module
        if c.network == "r3gan":
            shape = (channels, (c.blocks,) * c.levels, c.expansion, c.group, c.patch, c.shape[0])
            self.generator = R3Generator(inputs, *shape, sketch=c.principal > 0)
            self.critic = R3Critic(1 + width, *shape)
        else:
            self.generator, self.critic = DCGenerator(inputs, channels), DCCritic(1 + width, channels)
        self.asked = ConditionEmbedding(len(c.attributes), c.classes, c.latent_dim) if conditional else None
        self.judged = ConditionEmbedding(len(c.attributes), c.classes, width) if conditional else None
        self.principal = PrincipalComponents(c.shape[1], c.principal, c.shape[0]) if c.principal else None
        self.encoder = LinearMap(c.shape[0] * min(c.shape[1], ENCODER_SIDE) ** 2, c.latent_dim)
        self.to(memory_format=torch.channels_last)  # the layout convolutions are fastest in

    # ---- both networks ----

    def paint(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        """z (N, latent_dim) -> images (N, C, H, W), float32, not clamped; latents of a codec are images here."""
        inputs = z
        if self.asked is not None:
            inputs = torch.cat([z, self.asked(condition or Condition(), len(z), z.device)], 1)
        if self.principal is None:
            return self.generator(inputs).float()
        with torch.autocast(z.device.type, enabled=False):
            sketch = self.principal.decode(z[:, : self.config.principal].float())
        return sketch + self.generator(inputs, sketch).float()

    def score(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        """Images (N, C, H, W) -> how real each looks to the critic, (N,), float32; only differences have a meaning."""
        # A view: what counts operations hooks a module's inputs, and may not where a penalty's graph begins.
        found = self.critic(images.view_as(images)).float()  # (N, 1), or (N, 1 + width)
        if self.judged is None:
            return found[:, 0]
        with torch.autocast(images.device.type, enabled=False):
            wanted = self.judged(condition or Condition(), len(images), images.device)  # (N, width)
        return found[:, 0] + (found[:, 1:] * wanted).sum(1)

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
        """The critic's or the generator's, with its embedding of the condition."""
        own, embedding = (self.critic, self.judged) if turn == "critic" else (self.generator, self.asked)
        return own.parameters() if embedding is None else chain(own.parameters(), embedding.parameters())

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the principal components, where there are some, and start the network as a correction of nothing."""
        if self.principal is not None:
            self.principal.fit(images)
            assert isinstance(self.generator, R3Generator)
            nn.init.zeros_(self.generator.head.weight)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        c, noise, condition = self.config, batch.noise, batch.condition
        if self.asked is not None:
            condition = drop_condition(condition, noise, c.drop, c.drop_each)
        z = noise.normal(c.latent_dim)
        if turn == "critic":
            with torch.no_grad():
                fake = self.paint(z, condition)
            return self._critic_loss(batch, fake, condition)
        real, fake = self._shown(batch.images, self.paint(z, condition), noise)
        real_score, fake_score = self.score(real, condition), self.score(fake, condition)
        loss = generator_loss(c.loss, real_score, fake_score)
        return loss, {"fooled": (fake_score > real_score).float().mean().detach()}

    def _critic_loss(self, batch: Batch, fake: Tensor, condition: Condition) -> tuple[Tensor, dict[str, Tensor]]:
        c, real = self.config, batch.images.float().detach()
        slopes = batch.step % c.penalty_every == 0
        real.requires_grad_(slopes and c.r1 > 0)
        fake.requires_grad_(slopes and c.r2 > 0)
        shown_real, shown_fake = self._shown(real, fake, batch.noise)
        with uncompiled() if slopes else nullcontext():
            real_score, fake_score = self.score(shown_real, condition), self.score(shown_fake, condition)
        loss = critic_loss(c.loss, real_score, fake_score)
        metrics = {"real": real_score.mean(), "fake": fake_score.mean()}
        decay = c.penalty_end + (1 - c.penalty_end) * (1 + math.cos(math.pi * batch.progress)) / 2
        for name, gamma, images, score in (("r1", c.r1, real, real_score), ("r2", c.r2, fake, fake_score)):
            if images.requires_grad:
                # Times the steps between, also in the curve, which averages over all of them.
                metrics[name] = c.penalty_every * squared_slope(images, score).mean()
                loss = loss + decay * gamma / 2 * metrics[name]
        if slopes and c.slope_penalty:
            share = batch.noise.uniform()
            middle = between(shown_real.detach(), shown_fake.detach(), share).requires_grad_()
            with uncompiled():
                score = self.score(middle, condition)
            length = (squared_slope(middle, score) + 1e-12).sqrt()
            metrics["slope"] = c.penalty_every * (length - 1).square().mean()
            loss = loss + c.slope_penalty * metrics["slope"]
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _shown(self, real: Tensor, fake: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """What the critic sees of real and generated images: changed, where augmentation is wanted."""
        if not self.config.augment:
            return real, fake
        return augment(real, noise, self.config.augment), augment(fake, noise, self.config.augment)

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Fit the encoder, the best linear guess of z from a small picture of G(z), to samples: about as many as there
        are `images`, which says what is affordable."""
        device = next(self.parameters()).device
        fewest, most = ENCODER_PAIRS
        seen = 0
        for batch in images:
            seen += len(batch)
            if seen >= most:
                break
        count = min(max(seen, fewest), most)
        latents, views = [], []
        for start in range(0, count, 64):
            z = Noise.for_images(0, range(start, min(start + 64, count)), device).normal(self.config.latent_dim)
            latents.append(z)
            views.append(self._view(self.from_latents(z)))
        self.encoder.fit(torch.cat(views), torch.cat(latents))

    def diagnose(self, seen: Tensor, held_out: Tensor) -> tuple[dict[str, float], list[str]]:
        """Scores of faces that the critic is trained on, of others and of generated ones; and how far the others fall
        short, as a share of the way to the generated ones (r_v of ADA, arXiv 2006.06676)."""
        z = Noise.for_images(0, range(len(seen)), seen.device).normal(self.config.latent_dim)
        kinds = {"seen": seen, "held_out": held_out, "generated": self.paint(z)}
        scores = {kind: self.score(images) for kind, images in kinds.items()}
        means = {f"critic/{kind}": values.mean().item() for kind, values in scores.items()}
        known, new, generated = means.values()
        share = (known - new) / (known - generated) if known > generated else float("nan")
        error = math.sqrt(sum(scores[kind].var().item() / len(seen) for kind in ("seen", "held_out")))
        warnings = []
        if share > MEMORISED and known - new > 3 * error:
            warnings.append(
                f"the critic knows its training images by heart: to it, held-out ones are {share:.0%} of the way to "
                "generated ones. What it teaches from now on is those images: use --model.augment 0.3, or more of them"
            )
        return means | {"critic/memorised": share}, warnings

    # ---- sampling, and the way back ----

    def sample(self, noise: Noise, condition: Condition, options: GANOptions) -> Tensor:
        return self._bounded(self.paint(self.draw_latents(noise, options), condition))

    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: GANOptions) -> Tensor:
        """Images (len(weights), 3, H, W) on the arc from the sample of `first` (weight 0) to that of `second`."""
        ends = self.draw_latents(first, options), self.draw_latents(second, options)
        return self.from_latents(slerp(*ends, weights.to(ends[0])))

    def draw_latents(self, noise: Noise, options: GANOptions) -> Tensor:
        """z of the samples of `noise`, (N, latent_dim): normal, or normal within the truncation."""
        z = noise.normal(self.config.latent_dim)
        if options.truncation is None:
            return z
        normal = torch.special.ndtr
        low = float(normal(torch.tensor(-options.truncation, dtype=torch.float64)))
        return torch.special.ndtri(low + normal(z.double()) * (1 - 2 * low)).float()

    def find_latents(self, images: Tensor, exact: bool = True) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> z of the nearest images (N, latent_dim), found by `invert`; or, when it need not
        be exact, guessed by the fitted encoder."""
        return self.invert(images) if exact else self.encoder(self._view(images))

    def from_latents(self, latents: Tensor) -> Tensor:
        """z (N, latent_dim) -> (N, 3, H, W) in [-1, 1]."""
        return self._bounded(self.paint(latents))

    def invert(self, images: Tensor, steps: int = INVERSION_STEPS, start: Tensor | None = None) -> Tensor:
        """The z whose images are nearest to `images` (N, 3, H, W) in [-1, 1], as far as gradient descent finds it.

        Args:
            images: of any number; each is sought on its own.
            steps: of Adam.
            start: z (N, latent_dim) to begin from; None: what the fitted encoder says.
        """
        begin = self.find_latents(images, exact=False) if start is None else start
        return invert(self.paint, images, begin, steps, bounded=self.config.latents is None)

    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the nearest images that the generator can make."""
        return self.from_latents(self.invert(images))

    def morph(self, first: Tensor, second: Tensor, weights: Tensor, options: GANOptions) -> Tensor:
        """Images (len(weights), 3, H, W) on the arc between the inverted `first` and `second`, each (1, 3, H, W)."""
        a, b = self.invert(torch.cat([first, second])).split(1)
        return self.from_latents(slerp(a, b, weights.to(a)))

    def _bounded(self, images: Tensor) -> Tensor:
        return images.clamp(-1, 1) if self.config.latents is None else images

    def _view(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, values), averaged down."""
        return F.adaptive_avg_pool2d(images.float(), min(self.config.shape[1], ENCODER_SIDE)).flatten(1)
