"""Settings of a GAN: networks, loss and sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from genmodels.conditions import ConditionConfig
from genmodels.nn.adversarial import AdversarialLoss
from genmodels.nn.conv import NORM_GROUPS
from genmodels.nn.principal import MAX_SIDE
from genmodels.nn.r3gan import GRID
from genmodels.saving import Derived


@dataclass(frozen=True)
class GANConfig:
    """Generator, critic and their loss."""

    size: Derived[int] = 64
    """Side of the images in pixels, from --size."""
    latents: Derived[tuple[int, ...] | None] = None
    """Shape of the codec's latents, (channels, side, side), which are then the images, from
    --codec. None: pixels."""
    network: Literal["r3gan", "dcgan"] = "r3gan"
    """R3GAN's residual grouped convolutions, or DCGAN's strided convolutions."""
    latent_dim: int = 64
    """Length of the latent vector z."""
    channels: tuple[int, ...] = (384, 384, 384, 384, 192, 96, 48)
    """Width of each level, the coarsest (4 x 4) first. The size decides how many levels are used.
    If it needs more, each further level has half the width of the one before."""
    blocks: int = 2
    """Residual blocks per level (r3gan)."""
    expansion: int = 2
    """Ratio of the width inside a residual block to its outer width (r3gan)."""
    group: int = 16
    """Channels per group of the grouped convolutions (r3gan)."""
    patch: int = 1
    """Side in pixels of the patches that are the positions of the finest level (r3gan). No
    convolution runs at a resolution above size / patch."""
    principal: int = 0
    """Number of coordinates of z that are also coefficients of principal components of the images.
    The network receives the resulting image and adds a correction, so that the generator starts as
    a Gaussian (r3gan)."""
    condition: ConditionConfig = ConditionConfig()
    """What samples can be conditioned on, by projection (arXiv 1802.05637). Interpolation,
    inversion and directions use the null condition, which needs `drop` above 0."""
    loss: AdversarialLoss = "relativistic"
    """Relativistic pairing loss, or the non-saturating, hinge or Wasserstein loss (with
    slope_penalty 10)."""
    r1: float = 2.0
    """Weight gamma of the penalty gamma / 2 |gradient|^2 of the critic at real images."""
    r2: float = 2.0
    """The same at generated images."""
    penalty_end: float = 0.1
    """Fraction of r1 and r2 that remains at the end of training, after half a cosine."""
    slope_penalty: float = 0.0
    """Weight of (|gradient| - 1)^2 of the critic between real and generated images (WGAN-GP, arXiv
    1704.00028)."""
    penalty_every: int = 4
    """Steps between penalties, whose weight is multiplied by it (lazy regularisation, arXiv
    1912.04958)."""
    augment: float = 0.0
    """Probability of each kind of augmentation (colour, translation, cutout) of the critic's
    inputs, against overfitting on small data sets (arXiv 2006.06676, 2006.10738)."""

    def __post_init__(self) -> None:
        c = self
        if c.network not in ("r3gan", "dcgan"):
            raise ValueError(f"network must be 'r3gan' or 'dcgan', got {c.network!r}")
        if c.loss not in ("relativistic", "non-saturating", "hinge", "wasserstein"):
            raise ValueError(f"loss must be 'relativistic', 'non-saturating', 'hinge' or 'wasserstein', got {c.loss!r}")
        for name in ("size", "latent_dim", "blocks", "expansion", "group", "patch", "penalty_every"):
            if getattr(c, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(c, name)}")
        for name in ("r1", "r2", "slope_penalty", "principal"):
            if getattr(c, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(c, name)}")
        for name in ("augment", "penalty_end"):
            if not 0 <= getattr(c, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(c, name)}")
        if c.patch > 1 and c.patch % 2:
            raise ValueError(f"patch must be 1 or even, got {c.patch}")
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
        """(C, H, W) of a sample."""
        if self.latents is None:
            return (3, self.size, self.size)
        channels, height, width = self.latents
        return (channels, height, width)

    @property
    def finest(self) -> int:
        """Pixels per position of the finest level, along a side."""
        return self.patch if self.network == "r3gan" else 2

    @property
    def unit(self) -> int:
        """Divisor of every width: the group size of convolutions, or the groups of norms."""
        return self.group if self.network == "r3gan" else NORM_GROUPS

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level, the coarsest first."""
        widths = list(self.channels[: self.levels])
        while len(widths) < self.levels:
            widths.append(max(1, widths[-1] // 2 // self.unit) * self.unit)
        return tuple(widths)

    @property
    def levels(self) -> int:
        """Number of levels that the size needs."""
        return math.floor(math.log2(max(1, self.shape[1] / (GRID * self.finest)))) + 1


@dataclass(frozen=True)
class GANOptions:
    """Sampling options of a GAN."""

    truncation: float | None = None
    """Largest |z_i| (BigGAN's truncation trick, arXiv 1809.11096). Less gives more typical and less
    varied images."""

    guidance: float = 1.0
    """Guidance scale: the embedding of the condition becomes null + scale (condition - null), where
    null embeds the null condition. 1: no guidance. Unlike classifier-free guidance, it needs one
    evaluation of the network."""

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")
        if self.truncation is not None and not self.truncation > 0:
            raise ValueError(f"truncation must be above 0 (None: none), got {self.truncation}")
