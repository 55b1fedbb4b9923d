"""Base class of quantisers, and gradient estimators for quantisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from genmodels.distributed import all_reduce_sum
from genmodels.types import Noise

Estimator = Literal["straight-through", "rotation"]
"""How gradients pass through quantisation: see `straight_through` and `rotate`."""
DECAY = 0.99
"""Decay of the running averages over steps."""
RARE = 0.05
"""A code is dead if its running frequency is below this fraction of 1 / codebook_size."""


@dataclass(frozen=True)
class Quantised:
    """Result of quantising encoder outputs (N, dim, h, w).

    Attributes:
        vectors: input of the decoder, (N, dim, h, w); gradients pass through to the encoder.
        codes: (N, h, w), or (N, h, w, levels) of a residual quantiser; int64 in [0, codebook_size).
        loss: scalar to add to the reconstruction loss, which keeps encoder outputs close to their
            codes; zero if the quantiser needs none.
        metrics: "commitment", the mean squared distance between encoder outputs and their codes;
            "usage", the fraction of codes that are not dead; "perplexity", exp of the entropy of
            the running frequencies.
    """

    vectors: Tensor
    codes: Tensor
    loss: Tensor
    metrics: dict[str, Tensor]


class Quantiser(nn.Module, ABC):
    """Quantises each position of a feature map (N, dim, h, w) to one code, or to one per level.

    Everything runs in float32, also under autocast: half precision cannot distinguish close codes.
    A subclass works on points (P, dim), the positions of all maps in one list, P = N h w. It
    implements `assign`, `lookup`, `through` and, if it learns without gradients, `observe` and
    `_learn`.

    `forward` accumulates the statistics of a step, and `commit` applies them, summed over
    micro-batches and ranks, so that the codebook does not depend on the number of processes. The
    statistics are buffers, so that the training loop can undo a step whose loss was not finite.

    Args:
        codebook_size: K, codes of one level.
        dim: length of the vectors.
        levels: codes per position; 0 for a single code without an axis of levels.
    """

    frequency: Tensor
    counts: Tensor

    def __init__(self, codebook_size: int, dim: int, levels: int = 0):
        super().__init__()
        if codebook_size < 1:
            raise ValueError(f"a codebook needs at least 1 code, got codebook_size {codebook_size}")
        if dim < 1:
            raise ValueError(f"codes need vectors of at least 1 value, got code_dim {dim}")
        self.codebook_size = codebook_size
        self.dim = dim
        self.levels = levels
        self.register_buffer("frequency", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("counts", torch.zeros(codebook_size), persistent=False)

    # ---- implemented by subclasses: points (P, dim), codes (P,) or (P, levels) ----

    @abstractmethod
    def assign(self, points: Tensor) -> Tensor:
        """Return the codes of points."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors (P, dim) of codes."""

    @abstractmethod
    def through(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors, loss and mean squared distance.

        The vectors (P, dim) equal `lookup(codes)` and pass gradients to `points`.
        """

    def observe(self, points: Tensor, codes: Tensor, noise: Noise) -> None:
        """Accumulate the statistics for `_learn`. Called in training, without gradients.

        Args:
            points: (P, dim).
            codes: their codes, (P,) or (P, levels).
            noise: one random stream per image.
        """

    def _learn(self, counts: Tensor) -> None:
        """Update the codebook from the accumulated statistics.

        Args:
            counts: number of occurrences of each code in the step, on all ranks, (K,).
        """

    def start(self, points: Tensor) -> None:
        """Initialise the codebook from encoder outputs (P, dim). The result is deterministic."""

    # ---- common to all: maps (N, dim, h, w) ----

    @final
    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Quantise maps (N, dim, h, w): codes (N, h, w) or (N, h, w, levels), int64."""
        with torch.autocast(z.device.type, enabled=False):
            return self._on_map(self.assign(_points(z)), z)

    @final
    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors (N, dim, h, w), float32, of codes as `encode` returns them."""
        n, h, w = codes.shape[:3]
        vectors = self.lookup(codes.reshape(n * h * w, *codes.shape[3:]))  # (P, dim)
        return _maps(vectors, n, h, w)

    @final  # type: ignore[misc]  # torch declares forward as a variable
    def forward(self, z: Tensor, noise: Noise) -> Quantised:
        """Quantise encoder outputs (N, dim, h, w); in training mode, accumulate statistics."""
        n, _, h, w = z.shape
        with torch.autocast(z.device.type, enabled=False):
            points = _points(z)
            with torch.no_grad():
                codes = self.assign(points)
                if self.training:
                    self.counts += torch.bincount(codes.flatten(), minlength=self.codebook_size)
                    self.observe(points, codes, noise)
            vectors, loss, distance = self.through(points, codes)
            metrics = {
                "commitment": distance.detach(),
                "usage": (self.frequency > RARE / self.codebook_size).float().mean(),
                "perplexity": perplexity(self.frequency),
            }
            return Quantised(_maps(vectors, n, h, w), self._on_map(codes, z), loss, metrics)

    @final
    @torch.no_grad()
    def commit(self) -> None:
        """Update the codebook from the statistics of the step, if there are any."""
        counts = self.counts.clone()
        self.counts.zero_()
        all_reduce_sum(counts)
        if counts.sum() == 0:
            return
        self.frequency.lerp_(counts / counts.sum(), 1 - DECAY)
        self._learn(counts)

    def _on_map(self, codes: Tensor, z: Tensor) -> Tensor:
        return codes.reshape(z.shape[0], *z.shape[2:], *codes.shape[1:])


def _points(z: Tensor) -> Tensor:
    return z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # (N h w, dim)


def _maps(points: Tensor, n: int, h: int, w: int) -> Tensor:
    return points.view(n, h, w, points.shape[1]).permute(0, 3, 1, 2)  # (N, dim, h, w)


def perplexity(frequency: Tensor) -> Tensor:
    """Return exp of the entropy of frequencies (K,): from 1 (one code is used) to K (uniform)."""
    return torch.special.entr(frequency).sum().exp()


def straight_through(points: Tensor, vectors: Tensor) -> Tensor:
    """Return `vectors` (P, D); gradients pass to `points` unchanged (arXiv 1308.3432)."""
    return points + (vectors - points).detach()


def rotate(points: Tensor, vectors: Tensor) -> Tensor:
    """Return `vectors` (P, D) as rotated and scaled `points`; rotation and scale are constants.

    This is the rotation trick (arXiv 2410.06424, section 4.3): the gradient keeps its angle to the
    vector, whereas the straight-through gradient keeps its direction in space. With a = points /
    |points|, b = vectors / |vectors| and r = (a + b) / |a + b|, the rotation in the plane of a and
    b is R = I - 2 r r^T + 2 b a^T, and the gradient with respect to points is |vectors| / |points|
    R^T g.
    """
    with torch.no_grad():
        length = points.norm(dim=1, keepdim=True).clamp_min(1e-6)
        scale = vectors.norm(dim=1, keepdim=True) / length  # (P, 1)
        a = points / length
        b = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-6)
        r = a + b
        r = r / r.norm(dim=1, keepdim=True).clamp_min(1e-6)
    along_r = (points * r).sum(1, keepdim=True)
    along_a = (points * a).sum(1, keepdim=True)
    rotated = scale * (points - 2 * along_r * r + 2 * along_a * b)
    return rotated + (vectors - rotated).detach()  # exactly the values of the codebook


def estimate(estimator: Estimator, points: Tensor, vectors: Tensor) -> Tensor:
    """Return `vectors` with gradients to `points` by the given estimator."""
    return rotate(points, vectors) if estimator == "rotation" else straight_through(points, vectors)
