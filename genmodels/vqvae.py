"""VQ-VAE: an autoencoder whose latents are codes of a finite book (arXiv 1711.00937), for a prior over tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from genmodels.autoencoder import NetworksConfig
from genmodels.base import Generator
from genmodels.nn.conv import Decoder, Encoder, coarsest_grid, output_layer, zero_output
from genmodels.nn.discriminator import AdaptiveWeight, PatchDiscriminator, discriminator_hinge, generator_hinge
from genmodels.nn.perceptual import PerceptualLoss
from genmodels.nn.principal import MAX_SIDE, PatchComponents, PrincipalComponents
from genmodels.nn.quantise.base import Estimator, Quantiser
from genmodels.nn.quantise.cosine import CosineCodebook
from genmodels.nn.quantise.ema import EMACodebook
from genmodels.nn.quantise.frequencies import CodeFrequencies
from genmodels.nn.quantise.fsq import FSQ
from genmodels.nn.quantise.residual import ResidualQuantiser
from genmodels.types import Batch, Condition, Noise

STARTING_POINTS = 8
"""Positions of each image that k-means starts from, on average."""


@dataclass(frozen=True)
class VQVAEConfig(NetworksConfig):
    """Architecture and loss of a VQ-VAE."""

    patch: int = 2
    """Side of the patches the image is cut into; no convolution runs at a higher resolution than size / patch. Codes
    leave traces of larger patches in the picture."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Width of each level; every level after the first halves the resolution. The codes lie on the last level's grid,
    size / (patch 2^(levels - 1)) a side: 8 x 8 here."""
    encoder_blocks: tuple[int, ...] = (0, 1, 2)
    """Residual blocks of the encoder at each level, finest first."""
    decoder_blocks: tuple[int, ...] = (1, 2, 2)
    """Residual blocks of the decoder at each level, finest first."""
    tokens: int | None = None
    """None: a grid of codes. Otherwise so many codes without a place, each for `code_dim` white coordinates of the
    whole image, which begin as its principal components: codes hardly depend on each other, so a prior has less to
    learn."""
    principal: bool = False
    """Add the networks of a grid to the principal components of the image's squares, as an autoencoder's; those without
    a place always begin so."""
    quantiser: Literal["ema", "fsq", "cosine"] = "ema"
    """A codebook of running means, finite scalars (no codebook to learn), or a low-dimensional codebook of unit vectors
    learnt by gradients."""
    codebook_size: int = 1024
    """Codes in the book of "ema" and "cosine"; "fsq" has the product of fsq_levels."""
    code_dim: int = 16
    """Length of a code's vector for "ema" and "cosine"; "fsq" has one number per level."""
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels of each number for "fsq". The paper's: (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for 2^10,
    (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14."""
    residual: int = 1
    """Codes per position, each for what the ones before left over; above 1 for "ema" only."""
    commitment: float = 0.25
    """Weight of the squared distance that keeps encoder outputs near their codes; beta in the papers."""
    gradient: Estimator = "straight-through"
    """How gradients pass the choice of a code; "rotation" is the rotation trick, not for "fsq"."""
    discriminator: float = 0.0
    """Weight of the adversarial loss of a patch discriminator, times VQGAN's adaptive weight. 0: there is none."""
    discriminator_channels: tuple[int, ...] = (32, 64, 128)
    """Width of each level of the discriminator; every one halves the resolution."""
    discriminator_start: float = 0.25
    """Share of training after which the adversarial loss counts. Until then the discriminator only learns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantiser not in ("ema", "fsq", "cosine"):
            raise ValueError(f"quantiser must be 'ema', 'fsq' or 'cosine', got {self.quantiser!r}")
        if self.gradient not in ("straight-through", "rotation"):
            raise ValueError(f"gradient must be 'straight-through' or 'rotation', got {self.gradient!r}")
        if self.quantiser == "fsq" and self.gradient == "rotation":
            raise ValueError("quantiser 'fsq' rounds, and has no vector to rotate to: use gradient 'straight-through'")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1 code (None: a grid), got {self.tokens}")
        values = (self.tokens or 0) * (len(self.fsq_levels) if self.quantiser == "fsq" else self.code_dim)
        if values > 3 * min(self.size, MAX_SIDE) ** 2:
            raise ValueError(
                f"tokens {self.tokens} of {values // (self.tokens or 1)} numbers are more than an image has"
            )
        if self.residual < 1:
            raise ValueError(f"residual must be at least 1 code per position, got {self.residual}")
        if self.residual > 1 and self.quantiser != "ema":
            raise ValueError(f"residual {self.residual} needs quantiser 'ema', got {self.quantiser!r}")
        if self.commitment < 0 or self.discriminator < 0:
            raise ValueError("commitment and discriminator must not be negative")
        if not 0 <= self.discriminator_start <= 1:
            raise ValueError(f"discriminator_start must be a share in [0, 1], got {self.discriminator_start}")


@dataclass(frozen=True)
class VQVAEOptions:
    """How to sample a VQ-VAE without a prior."""

    temperature: float = 1.0
    """Frequencies are raised to 1 / temperature: less than 1 prefers each position's usual codes."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class VQVAE(Generator):
    """Encoder, quantiser, decoder. The loss is the squared error plus the quantiser's own (a commitment).

    By itself it samples each position's code from how often the code occurs there, which is a baseline and no model of
    faces: positions do not know of each other. A prior over the codes (a family of its own) does that.
    """

    family = "vqvae"
    Config = VQVAEConfig
    Options = VQVAEOptions

    def __init__(self, config: VQVAEConfig | None = None):
        c = config or VQVAEConfig()
        super().__init__(c)
        self.quantiser = build_quantiser(c)
        grid, values = c.tokens is None, self.quantiser.dim * (c.tokens or 1)
        self.principal: PrincipalComponents | PatchComponents | None = None
        if not grid:
            self.principal = PrincipalComponents(c.size, values)
        elif c.principal:
            self.principal = PatchComponents(c.size, self.latent_shape[0], values, white=False)
        linear = self.principal is not None
        self.encoder = Encoder(c.size, c.patch, c.channels, c.encoder_blocks, values, spatial=grid)
        self.decoder = Decoder(c.size, c.patch, c.channels, c.decoder_blocks, values, spatial=grid, sketch=linear)
        self.frequencies = CodeFrequencies(math.prod(self.latent_shape), self.codebook_size)
        self._perceptual = PerceptualLoss() if c.lpips else None
        self.discriminator: PatchDiscriminator | None = None
        self.balance: AdaptiveWeight | None = None
        if c.discriminator:
            self.discriminator = PatchDiscriminator(c.discriminator_channels)
            self.balance = AdaptiveWeight(output_layer(self.decoder).weight.numel())
        self.to(memory_format=torch.channels_last)  # the layout convolutions are fastest in

    @property
    def turns(self) -> tuple[str, ...]:
        return ("model", "discriminator") if self.config.discriminator else ("model",)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.quantiser.codebook_size

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's codes: (grid, grid), or (1, tokens); and (..., levels) with residual levels."""
        c = self.config
        grid = coarsest_grid(c.size, c.patch, len(c.channels))
        shape = (grid, grid) if c.tokens is None else (1, c.tokens)
        return (*shape, c.residual) if c.residual > 1 else shape

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> codes (N, *latent_shape), int64 in [0, codebook_size)."""
        return self.quantiser.encode(self._vectors(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Codes (N, *latent_shape) of an integer type, or vectors (N, dim, rows, columns), -> (N, 3, H, W) in [-1, 1].

        Raises:
            ValueError: for another shape, or codes that are not in the book.
        """
        if latents.is_floating_point():
            wanted = (self.quantiser.dim, *self.latent_shape[:2])
            if tuple(latents.shape[1:]) != wanted:
                raise ValueError(f"decode() takes vectors of shape (N, {_shape(wanted)}), got {tuple(latents.shape)}")
            return self._paint(latents).clamp(-1, 1)
        if tuple(latents.shape[1:]) != self.latent_shape:
            wanted = self.latent_shape
            raise ValueError(f"decode() takes codes of shape (N, {_shape(wanted)}), got {tuple(latents.shape)}")
        if len(latents) and (latents.min() < 0 or latents.max() >= self.codebook_size):
            raise ValueError(
                f"codes go from 0 to {self.codebook_size - 1:,}, got {latents.min().item()} to {latents.max().item()}: "
                "they are of another codec"
            )
        return self._paint(self.quantiser.decode(latents.long())).clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same, through the codes."""
        return self.decode(self.encode(images))

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """Shape of one image's vectors, (dim, rows, columns)."""
        return (self.quantiser.dim, *self.latent_shape[:2])

    def vectors(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> vectors before they are quantised, (N, *vector_shape)."""
        return self._vectors(images).float()

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """(N, *vector_shape), not quantised -> (N, 3, H, W) in [-1, 1], through the nearest codes."""
        return self.decode(self.quantiser.encode(vectors))

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        if turn == "discriminator":
            return self._discriminator_loss(batch.images)
        found = self.quantiser(self._vectors(batch.images), batch.noise)
        decoded = self._paint(found.vectors)
        reconstruction = (batch.images - decoded).square().mean()
        metrics = {"mse": reconstruction} | found.metrics
        if self._perceptual is not None:
            metrics["lpips"] = self._perceptual(batch.images, decoded)
            reconstruction = reconstruction + self.config.lpips * metrics["lpips"]
        total = reconstruction + found.loss
        if self.discriminator is not None and batch.progress >= self.config.discriminator_start:
            assert self.balance is not None
            adversarial = generator_hinge(self.discriminator(decoded))
            if self.training and torch.is_grad_enabled():
                self.balance.observe(reconstruction, adversarial, output_layer(self.decoder).weight)
            total = total + self.config.discriminator * self.balance.value * adversarial
            metrics |= {"adversarial": adversarial, "adaptive_weight": self.balance.value}
        return total, {name: value.detach() for name, value in metrics.items()}

    def _vectors(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> what is quantised, (N, dim, rows, columns)."""
        found = self.encoder(images)
        if self.principal is None:
            return found  # (N, dim, grid, grid)
        with torch.autocast(images.device.type, enabled=False):
            white = found.float() + self.principal.encode(images.float())  # (N, tokens dim), or (N, dim, grid, grid)
        if self.config.tokens is None:
            return white
        return white.unflatten(1, (-1, self.quantiser.dim)).transpose(1, 2).unsqueeze(2)  # (N, dim, 1, tokens)

    def _paint(self, vectors: Tensor) -> Tensor:
        """(N, dim, rows, columns) -> (N, 3, H, W), float32, not clamped."""
        if self.principal is None:
            return self.decoder(vectors).float()
        white = vectors
        if self.config.tokens is not None:
            white = vectors.squeeze(2).transpose(1, 2).flatten(1)  # (N, tokens dim)
        with torch.autocast(vectors.device.type, enabled=False):
            sketch = self.principal.decode(white.float())  # the linear reconstruction, refined by the decoder
        return sketch + self.decoder(white, sketch).float()

    def _discriminator_loss(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.discriminator is not None
        with torch.no_grad():
            decoded = self._paint(self.quantiser.decode(self.encode(images)))
        real, fake = self.discriminator(torch.cat([images, decoded])).chunk(2)
        loss = discriminator_hinge(real, fake)
        return loss, {"real": real.detach().mean(), "fake": fake.detach().mean()}

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """The discriminator's, or those of encoder, quantiser and decoder."""
        if turn == "discriminator":
            assert self.discriminator is not None
            return self.discriminator.parameters()
        return chain(self.encoder.parameters(), self.quantiser.parameters(), self.decoder.parameters())

    def after_step(self) -> None:
        self.quantiser.commit()
        if self.balance is not None:
            self.balance.commit()

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Start the codebook from k-means of what the untrained encoder makes of `images`; before that, where
        there are principal components, start from them, the networks as corrections of nothing to them."""
        if self.principal is not None:
            images = list(images)
            self.principal.fit(images)
            zero_output(self.encoder)
            zero_output(self.decoder)
        generator = torch.Generator().manual_seed(0)
        points = []
        for batch in images:
            found = self._vectors(batch).permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, dim)
            chosen = torch.randperm(len(found), generator=generator)[: STARTING_POINTS * len(batch)]
            points.append(found[chosen.to(found.device)].float())
        self.quantiser.start(torch.cat(points))

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Count the codes of `images` at each position."""
        self.frequencies.fit(self.encode(batch).flatten(1) for batch in images)

    def sample(self, noise: Noise, condition: Condition, options: VQVAEOptions) -> Tensor:
        if not self.frequencies.fitted:
            raise ValueError("the vqvae's code frequencies are not counted yet: train it, or call calibrate(images)")
        codes = self.frequencies.sample(noise.uniform(self.frequencies.positions), options.temperature)  # (N, T)
        return self.decode(codes.unflatten(1, self.latent_shape))


def build_quantiser(config: VQVAEConfig) -> Quantiser:
    """The quantiser that `config` names.

    Raises:
        ValueError: for an empty codebook.
    """
    c = config
    if c.quantiser == "fsq":
        return FSQ(c.fsq_levels)
    if c.quantiser == "cosine":
        return CosineCodebook(c.codebook_size, c.code_dim, c.commitment, c.gradient)
    books = [EMACodebook(c.codebook_size, c.code_dim, c.commitment, c.gradient) for _ in range(c.residual)]
    return ResidualQuantiser(books) if c.residual > 1 else books[0]


def _shape(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
