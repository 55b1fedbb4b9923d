"""What every room of the package agrees on: a batch, a condition, a source of noise, and what a model can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

_MASK = (1 << 64) - 1


def mix_seed(*parts: int) -> int:
    """One well-spread 63-bit seed from several integers (the splitmix64 finaliser, applied to each in turn).

    Neighbouring (seed, step, index) triples give unrelated seeds, so generators seeded with them can stand side by
    side.
    """
    state = 0
    for part in parts:
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


class Noise:
    """One random stream per image, drawn on the CPU.

    Image i's numbers depend on its own seed and on how often it was drawn from before, and on nothing else: neither the
    batch it sits in, nor the number of processes, nor the device. Draws advance the streams.

    Args:
        seeds: one 63-bit seed per image.
        device: where draws are placed (they are made on the CPU).
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.seeds = list(seeds)
        self.device = torch.device(device)
        self._streams: list[torch.Generator] | None = None

    @classmethod
    def for_images(cls, seed: int, indices: Iterable[int], device: torch.device | str = "cpu") -> Noise:
        """The streams of images `indices` of sampling seed `seed`."""
        return cls([mix_seed(seed, i) for i in indices], device)

    def __len__(self) -> int:
        return len(self.seeds)

    def _generators(self) -> list[torch.Generator]:
        """Made at the first draw: a model that draws nothing pays nothing."""
        if self._streams is None:
            self._streams = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        return self._streams

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws, float32 (N, *shape)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators()]).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), float32 (N, *shape)."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators()]).to(self.device)


@dataclass(frozen=True)
class Text:
    """Tokenized sentences, padded to one length.

    Attributes:
        ids: (N, L) int64.
        mask: (N, L) bool, True where a token is real and False where it is padding.
    """

    ids: Tensor
    mask: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Text:
        """Apply `function` to each tensor."""
        return Text(function(self.ids), function(self.mask))


@dataclass(frozen=True)
class Condition:
    """What is asked of N samples, one row each. A field that is None is not conditioned on.

    Attributes:
        attributes: (N, K) in {-1, 0, +1}: no, unknown, yes.
        labels: (N,) int64; -1 is unknown.
        text: N sentences.
    """

    attributes: Tensor | None = None
    labels: Tensor | None = None
    text: Text | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is conditioned on."""
        return self.attributes is None and self.labels is None and self.text is None

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Apply `function` to every tensor. It must keep the first axis, N, the same for all of them."""
        return Condition(
            None if self.attributes is None else function(self.attributes),
            None if self.labels is None else function(self.labels),
            None if self.text is None else self.text.map(function),
        )

    def __getitem__(self, rows: slice) -> Condition:
        return self.map(lambda tensor: tensor[rows])

    def repeat(self, n: int) -> Condition:
        """Repeat every row `n` times, one after another."""
        return self.map(lambda tensor: tensor.repeat_interleave(n, 0))

    def to(self, device: torch.device | str) -> Condition:
        """Move every tensor to `device`."""
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class Batch:
    """All that a training step may depend on. A loss uses no other randomness and no other clock.

    Attributes:
        images: float (N, 3, H, W) in [-1, 1].
        condition: what is known of the images.
        noise: one stream per image, seeded by run seed, step and global index.
        step: the optimiser step, from 0.
        progress: the share of training done, in [0, 1]; schedules inside a loss follow it.
        latents: what a codec makes of the images, where it was computed before training: (N, *latent_shape).
        features: what an extractor makes of them, for a model that is aligned with it: (N, F).
    """

    images: Tensor
    noise: Noise
    condition: Condition = field(default_factory=Condition)
    step: int = 0
    progress: float = 0.0
    latents: Tensor | None = None
    features: Tensor | None = None


@runtime_checkable
class Codec(Protocol):
    """Turns images into a smaller space and back.

    Latents have zero mean and unit variance per channel; those of a codec that `Quantises` are its codes.
    """

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latents, without the batch axis."""

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, *latent_shape)."""

    def decode(self, latents: Tensor) -> Tensor:
        """(N, *latent_shape) -> (N, 3, H, W) in [-1, 1]."""


@runtime_checkable
class Quantises(Protocol):
    """Turns images into codes of a finite book."""

    codebook_size: int

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> codes (N, ...), int64 in [0, codebook_size)."""


@runtime_checkable
class HasVectors(Protocol):
    """Has, behind its codes, a map of continuous vectors that a prior of continuous latents can learn."""

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """Shape of one image's vectors, (channels, height, width)."""

    def vectors(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> vectors before they are quantised, (N, *vector_shape)."""

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """(N, *vector_shape) -> (N, 3, H, W) in [-1, 1], through the nearest codes."""


def continuous_shape(codec: Codec) -> tuple[int, ...]:
    """Shape of what a prior of continuous latents learns of one image: the codec's latents, or the vectors behind its
    codes."""
    return tuple(codec.vector_shape if isinstance(codec, HasVectors) else codec.latent_shape)


@runtime_checkable
class Reconstructs(Protocol):
    """Maps an image to the nearest one it can express."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same."""


@runtime_checkable
class Likelihood(Protocol):
    """Can say how probable an image is."""

    likelihood_is_exact: bool
    """True: the number is the likelihood. False: it is a bound, and the true bits per dimension are at most this, or an
    estimate, as the model's `likelihood_by` says."""
    likelihood_levels: int
    """Shades per colour that the likelihood is about: 256, or fewer where the model rounds images first. Bits per
    dimension of different levels cannot be compared."""

    def bits_per_dim(self, images: Tensor, noise: Noise) -> Tensor:
        """(N, 3, H, W) in [-1, 1] holding 8-bit values -> bits per dimension, (N,)."""


@runtime_checkable
class TokenLikelihood(Protocol):
    """Can say how probable the symbols are that an image is spelled with, which is not how probable the image is."""

    def bits_per_token(self, codes: Tensor) -> Tensor:
        """Codes (N, *latent_shape) -> bits per code, (N,)."""


@runtime_checkable
class HasPrior(Protocol):
    """Is a prior trained in the space of a frozen codec."""

    codec_weights: str
    """16 hex digits that identify the codec's weights: codes mean nothing to another."""

    def get_prior(self) -> nn.Module:
        """What is trained. (A method: runtime protocols do not see submodules.)"""

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> what the prior learns, (N, *latent_shape)."""


@runtime_checkable
class Inpaints(Protocol):
    """Can finish an image of which a part is known."""

    def inpaint(self, images: Tensor, known: Tensor, noise: Noise, condition: Condition, options: object) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] and where they are known, bool (H, W) -> the same, completed.

        Raises:
            ValueError: for a region that the model cannot complete.
        """


@runtime_checkable
class Interpolates(Protocol):
    """Has a continuous path from one sample to another."""

    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: object) -> Tensor:
        """Samples on the way from `first` (one image, weight 0) to `second` (weight 1): (len(weights), 3, H, W)."""


@runtime_checkable
class Morphs(Protocol):
    """Has a continuous path from one given image to another."""

    def morph(self, first: Tensor, second: Tensor, weights: Tensor, options: object) -> Tensor:
        """Images (len(weights), 3, H, W) on the way from `first` (1, 3, H, W) in [-1, 1] to `second`."""


@runtime_checkable
class HasLatents(Protocol):
    """Makes an image from one vector, in whose space straight lines have a meaning."""

    def draw_latents(self, noise: Noise, options: Any) -> Tensor:
        """The vectors (N, D) of the samples of `noise`."""

    def find_latents(self, images: Tensor, exact: bool = True) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the vectors (N, D) of the nearest images. Not `exact`: a good guess will do, where
        that is faster."""

    def from_latents(self, latents: Tensor) -> Tensor:
        """Vectors (N, D) -> (N, 3, H, W) in [-1, 1]."""


@runtime_checkable
class Edits(Protocol):
    """Can redraw a given image."""

    def edit(self, images: Tensor, strength: float, noise: Noise, condition: Condition, options: object) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> the same, redrawn: hardly near strength 0, wholly at 1.

        Raises:
            ValueError: for a strength that is not in (0, 1].
        """


@runtime_checkable
class Denoises(Protocol):
    """Makes an image step by step, and can show the steps."""

    def trajectory(self, noise: Noise, condition: Condition, options: object) -> tuple[Tensor, Tensor]:
        """Two (evaluations + 1, N, 3, H, W), to be clamped to [-1, 1]: what the image is at each evaluation of the
        network, and what the model expects it to become. Both end with the sample."""
