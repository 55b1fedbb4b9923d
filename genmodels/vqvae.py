"""VQ-VAE: autoencoder with discrete latents, for a prior over tokens (arXiv 1711.00937)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from genmodels.adversarial import TURN, AdversarialCodec, AdversarialConfig
from genmodels.autoencoder import NetworksConfig
from genmodels.conditions import Condition
from genmodels.nn.conv import Decoder, Encoder, coarsest_grid, output_layer, zero_output
from genmodels.nn.perceptual import PerceptualLoss
from genmodels.nn.principal import MAX_SIDE, PatchComponents, PrincipalComponents
from genmodels.nn.quantise.base import Estimator, Quantiser
from genmodels.nn.quantise.cosine import CosineCodebook
from genmodels.nn.quantise.ema import EMACodebook
from genmodels.nn.quantise.frequencies import CodeFrequencies
from genmodels.nn.quantise.fsq import FSQ
from genmodels.nn.quantise.residual import ResidualQuantiser
from genmodels.types import Batch, Noise

STARTING_POINTS = 8
"""Average number of encoder outputs per image that k-means initialises the codebook from."""


@dataclass(frozen=True)
class VQVAEConfig(AdversarialConfig, NetworksConfig):
    """Architecture and loss of a VQ-VAE."""

    patch: int = 2
    """Side in pixels of the patches that the image is divided into. The finest convolutions work on
    feature maps of size / patch a side. Larger patches leave visible block artefacts."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Channels of each level; every level after the first halves the resolution. The codes form the
    grid of the last level, size / (patch 2^(levels - 1)) a side: 8 x 8 with the defaults."""
    encoder_blocks: tuple[int, ...] = (0, 1, 2)
    """Residual blocks of the encoder at each level, finest first."""
    decoder_blocks: tuple[int, ...] = (1, 2, 2)
    """Residual blocks of the decoder at each level, finest first."""
    tokens: int | None = None
    """Number of codes per image. Each code stands for `code_dim` whitened coordinates of the whole
    image, initialised as its principal components. These codes depend little on each other, which
    makes the task of a prior easier. None: a grid of codes instead."""
    principal: bool = False
    """Initialise a grid codec from per-patch PCA. Codecs with `tokens` always start from PCA."""
    quantiser: Literal["ema", "fsq", "cosine"] = "ema"
    """Kind of codebook: "ema" learns moving averages of encoder outputs, "cosine" learns
    low-dimensional unit vectors by gradients, and "fsq" rounds scalars and learns no codebook."""
    codebook_size: int = 1024
    """Number of codes of "ema" and "cosine". "fsq" has the product of fsq_levels."""
    code_dim: int = 16
    """Length of the code vectors of "ema" and "cosine". Those of "fsq" have one entry per level."""
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    """Number of levels of each scalar of "fsq". The FSQ paper uses (8, 6, 5) for about 2^8 codes,
    (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12, and (8, 8, 8, 6, 5) for 2^14."""
    residual: int = 1
    """Number of codes per position. Each quantises the residual of those before it. Values above 1
    need quantiser "ema"."""
    commitment: float = 0.25
    """Weight of the commitment loss, beta in the papers."""
    gradient: Estimator = "straight-through"
    """Gradient estimator of the quantisation. "rotation" is the rotation trick, not for "fsq"."""

    def __post_init__(self) -> None:
        NetworksConfig.__post_init__(self)
        AdversarialConfig.__post_init__(self)
        if self.quantiser not in ("ema", "fsq", "cosine"):
            raise ValueError(f"quantiser must be 'ema', 'fsq' or 'cosine', got {self.quantiser!r}")
        if self.gradient not in ("straight-through", "rotation"):
            raise ValueError(f"gradient must be 'straight-through' or 'rotation', got {self.gradient!r}")
        if self.quantiser == "fsq" and self.gradient == "rotation":
            raise ValueError("quantiser 'fsq' rounds and has no vector to rotate to: use gradient 'straight-through'")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, or None for a grid of codes, got {self.tokens}")
        values = (self.tokens or 0) * (len(self.fsq_levels) if self.quantiser == "fsq" else self.code_dim)
        if values > 3 * min(self.size, MAX_SIDE) ** 2:
            raise ValueError(
                f"tokens {self.tokens} of {values // (self.tokens or 1)} numbers are more values than an image has"
            )
        if self.residual < 1:
            raise ValueError(f"residual must be at least 1 code per position, got {self.residual}")
        if self.residual > 1 and self.quantiser != "ema":
            raise ValueError(f"residual {self.residual} needs quantiser 'ema', got {self.quantiser!r}")
        if self.commitment < 0:
            raise ValueError(f"commitment must not be negative, got {self.commitment}")


@dataclass(frozen=True)
class VQVAEOptions:
    """Sampling options of a VQ-VAE without a prior."""

    temperature: float = 1.0
    """Code frequencies are raised to the power 1 / temperature. Values below 1 favour the most
    frequent codes of each position."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class VQVAE(AdversarialCodec):
    """Autoencoder with an encoder, a quantiser and a decoder.

    The loss is the squared error plus the loss of the quantiser (commitment) and, optionally, a
    perceptual and an adversarial loss. `sample` draws the code of each position independently, with
    the frequencies of the codes at this position in the training images. That is only a baseline.
    Train a prior over the codes, such as an autoregressive model, for realistic samples.
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
        self.encoder = Encoder(c.size, c.patch, c.channels, c.encoder_blocks, values, grid)
        self.decoder = Decoder(c.size, c.patch, c.channels, c.decoder_blocks, values, grid, self.principal is not None)
        self.frequencies = CodeFrequencies(math.prod(self.latent_shape), self.codebook_size)
        self._perceptual = PerceptualLoss() if c.lpips else None
        self.add_discriminator()
        self.to(memory_format=torch.channels_last)  # fastest layout for convolutions

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.quantiser.codebook_size

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the codes of one image: (grid, grid), or (1, tokens) with `tokens`.

        With residual quantisation a last axis of length `residual` is added.
        """
        c = self.config
        grid = coarsest_grid(c.size, c.patch, len(c.channels))
        shape = (grid, grid) if c.tokens is None else (1, c.tokens)
        return (*shape, c.residual) if c.residual > 1 else shape

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W) in [-1, 1] to int64 codes (N, *latent_shape)."""
        return self.quantiser.encode(self._vectors(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode codes, or code vectors, to images.

        Args:
            latents: codes (N, *latent_shape) of an integer type, or vectors (N, *vector_shape) of a
                floating-point type.

        Returns:
            (N, 3, H, W) in [-1, 1].

        Raises:
            ValueError: if the shape is wrong, or a code is not in [0, codebook_size).
        """
        if latents.is_floating_point():
            expected = self.vector_shape
            if tuple(latents.shape[1:]) != expected:
                raise ValueError(f"decode() takes vectors of shape (N, {_shape(expected)}), got {tuple(latents.shape)}")
            return self._decode(latents).clamp(-1, 1)
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(f"decode() takes codes (N, {_shape(self.latent_shape)}), got {tuple(latents.shape)}")
        traced = torch.compiler.is_exporting()  # a trace cannot branch on a value
        if not traced and len(latents) and (latents.min() < 0 or latents.max() >= self.codebook_size):
            raise ValueError(
                f"codes go from 0 to {self.codebook_size - 1:,}, got {latents.min().item()} to {latents.max().item()}: "
                "they belong to another codec"
            )
        return self._decode(self.quantiser.decode(latents.long())).clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images (N, 3, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """Shape of the vectors of one image: (dim, rows, columns)."""
        return (self.quantiser.dim, *self.latent_shape[:2])

    def vectors(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W) in [-1, 1] to vectors (N, *vector_shape), not quantised."""
        return self._vectors(images).float()

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Quantise vectors (N, *vector_shape) and decode them to images (N, 3, H, W) in [-1, 1]."""
        return self._decode(self.quantiser.decode(self.quantiser.encode(vectors))).clamp(-1, 1)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        if turn == TURN:
            return self.discriminator_loss(batch)
        quantised = self.quantiser(self._vectors(batch.images), batch.noise)
        decoded = self._decode(quantised.vectors)
        reconstruction = (batch.images - decoded).square().mean()
        metrics = {"mse": reconstruction} | quantised.metrics
        if self._perceptual is not None:
            metrics["lpips"] = self._perceptual(batch.images, decoded)
            reconstruction = reconstruction + self.config.lpips * metrics["lpips"]
        adversarial, more = self.adversarial(batch, reconstruction, decoded)
        total, metrics = reconstruction + quantised.loss + adversarial, metrics | more
        return total, {name: value.detach() for name, value in metrics.items()}

    def _vectors(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W) to the vectors to quantise, (N, *vector_shape)."""
        encoded = self.encoder(images)
        if self.principal is None:
            return encoded  # (N, dim, grid, grid)
        with torch.autocast(images.device.type, enabled=False):
            white = encoded.float() + self.principal.encode(images.float())  # (N, tokens dim) or (N, dim, grid, grid)
        if self.config.tokens is None:
            return white
        return white.unflatten(1, (-1, self.quantiser.dim)).transpose(1, 2).unsqueeze(2)  # (N, dim, 1, tokens)

    def _decode(self, vectors: Tensor) -> Tensor:
        """Decode vectors (N, *vector_shape) to images (N, 3, H, W) in float32, not clamped."""
        if self.principal is None:
            return self.decoder(vectors).float()
        white = vectors
        if self.config.tokens is not None:
            white = vectors.squeeze(2).transpose(1, 2).flatten(1)  # (N, tokens dim)
        with torch.autocast(vectors.device.type, enabled=False):
            linear = self.principal.decode(white.float())  # PCA reconstruction, refined by the decoder
        return linear + self.decoder(white, linear).float()

    def _last_layer(self) -> nn.Linear | nn.Conv2d:
        return output_layer(self.decoder)

    def _remade(self, batch: Batch) -> Tensor:
        return self._decode(self.quantiser.decode(self.encode(batch.images)))

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """Return the parameters of the discriminator, or of encoder, quantiser and decoder."""
        if turn == TURN:
            return super().parameters_for(turn)
        return chain(self.encoder.parameters(), self.quantiser.parameters(), self.decoder.parameters())

    def after_step(self) -> None:
        super().after_step()
        self.quantiser.commit()

    @torch.no_grad()
    def initialise(self, images: Iterable[Tensor]) -> None:
        """Fit the principal components, if any, then initialise the codebook.

        Output layers of networks that are added to a PCA are set to zero. The codebook starts from
        k-means of the encoder outputs of `images`.
        """
        if self.principal is not None:
            images = list(images)
            self.principal.fit(images)
            zero_output(self.encoder)
            zero_output(self.decoder)
        generator = torch.Generator().manual_seed(0)
        points = []
        for batch in images:
            vectors = self._vectors(batch).permute(0, 2, 3, 1).flatten(0, 2)  # (N h w, dim)
            chosen = torch.randperm(len(vectors), generator=generator)[: STARTING_POINTS * len(batch)]
            points.append(vectors[chosen.to(vectors.device)].float())
        self.quantiser.start(torch.cat(points))

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Count how often each code occurs at each position in `images`."""
        self.frequencies.fit(self.encode(batch).flatten(1) for batch in images)

    def at_size(self, size: int) -> VQVAE:
        """Return this codec for images of `size` pixels a side, whose codes form another grid. It has
        the same weights; only the frequencies of the codes at each position are not known.

        Raises:
            ValueError: if its codes form no grid, or the size is not a multiple of a code's patch.
        """
        if self.config.tokens is not None:
            raise ValueError(f"its {self.config.tokens} codes describe images of {self.config.size} px as a whole")
        twin = VQVAE(replace(self.config, size=size))
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("frequencies.")}
        twin.load_state_dict(twin.state_dict() | weights)
        return twin.eval()

    def sample(self, noise: Noise, condition: Condition, options: VQVAEOptions) -> Tensor:
        if not torch.compiler.is_exporting() and not self.frequencies.fitted:  # a trace cannot branch on a value
            raise ValueError("the vqvae's code frequencies are not known yet: train it, or call calibrate(images)")
        codes = self.frequencies.sample(noise.uniform(self.frequencies.positions), options.temperature)  # (N, T)
        return self.decode(codes.unflatten(1, self.latent_shape))


def build_quantiser(config: VQVAEConfig) -> Quantiser:
    """Build the quantiser of a config.

    Raises:
        ValueError: if the codebook is empty.
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
