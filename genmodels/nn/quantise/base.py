"""What every quantiser does alike, and how gradients pass through the choice of a code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from genmodels.distributed import all_reduce_sum
from genmodels.types import Noise

Estimator = Literal["straight-through", "rotation"]
"""How a gradient passes the choice of a code: see `straight_through` and `rotate`."""
DECAY = 0.99
"""Of the running averages over steps."""
RARE = 0.05
"""A code is dead when its running frequency is below this share of an even one, 1 / codebook_size."""


@dataclass(frozen=True)
class Quantised:
    """What becomes of encoder outputs (N, dim, h, w) in training.

    Attributes:
        vectors: (N, dim, h, w), what the decoder sees; gradients pass on to the encoder.
        codes: (N, h, w), or (N, h, w, levels) of a residual quantiser; int64 in [0, codebook_size).
        loss: a scalar to add to the reconstruction's: it keeps encoder and codes together. Zero where none is needed.
        metrics: "commitment", the mean squared distance between encoder outputs and what they became; "usage", the
            share of codes that are not dead; "perplexity", exp of the entropy of the codes' running frequencies.
    """

    vectors: Tensor
    codes: Tensor
    loss: Tensor
    metrics: dict[str, Tensor]


class Quantiser(nn.Module, ABC):
    """Turns each position of a map (N, dim, h, w) into one of `codebook_size` codes, or into one per level.

    All of it runs in float32, whatever autocast says: half precision cannot tell near codes apart. A kind of quantiser
    works on points, the positions of all maps in one list (P, dim), P = N h w, and writes `assign`, `lookup`, `through`
    and, where it learns without gradients, `observe` and `_learn`.

    What a step's forwards observe is stashed, and committed by `commit`, summed over micro-batches and ranks, so that
    two processes learn what one does. The stashes are buffers, so that the loop can undo a step that was not finite.

    Args:
        codebook_size: K, codes of one level.
        dim: length of the vectors.
        levels: codes that stand for one position; 0 for one code without an axis of levels.
    """

    frequency: Tensor
    counts: Tensor

    def __init__(self, codebook_size: int, dim: int, levels: int = 0):
        super().__init__()
        if codebook_size < 1:
            raise ValueError(f"a codebook needs at least 1 code, got codebook_size {codebook_size}")
        if dim < 1:
            raise ValueError(f"codes need vectors of at least 1 number, got code_dim {dim}")
        self.codebook_size = codebook_size
        self.dim = dim
        self.levels = levels
        self.register_buffer("frequency", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("counts", torch.zeros(codebook_size), persistent=False)

    # ---- what a kind writes: points (P, dim), codes (P,) or (P, levels) ----

    @abstractmethod
    def assign(self, points: Tensor) -> Tensor:
        """Codes of points."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Points (P, dim) that codes stand for."""

    @abstractmethod
    def through(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (P, dim) equal to `lookup(codes)` that pass gradients on to `points`; loss; mean squared distance."""

    def observe(self, points: Tensor, codes: Tensor, noise: Noise) -> None:
        """Stash what `_learn` needs. Called without gradients, in training; `noise` has a stream per image."""

    def _learn(self, counts: Tensor) -> None:
        """Move the codebook by what was stashed, given how often each code occurred in the step, on all ranks (K,)."""

    def start(self, points: Tensor) -> None:
        """Begin from encoder outputs (P, dim) instead of from chance. Deterministic."""

    # ---- the same for all: maps (N, dim, h, w) ----

    @final
    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Maps (N, dim, h, w) -> codes (N, h, w) or (N, h, w, levels), int64."""
        with torch.autocast(z.device.type, enabled=False):
            return self._on_map(self.assign(_points(z)), z)

    @final
    def decode(self, codes: Tensor) -> Tensor:
        """Codes as `encode` gives them -> vectors (N, dim, h, w), float32."""
        n, h, w = codes.shape[:3]
        vectors = self.lookup(codes.reshape(n * h * w, *codes.shape[3:]))  # (P, dim)
        return _maps(vectors, n, h, w)

    @final  # type: ignore[misc]  # torch declares forward as a variable
    def forward(self, z: Tensor, noise: Noise) -> Quantised:
        """Quantise encoder outputs (N, dim, h, w); in training mode also stash what the step shall learn from."""
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
        """Learn from what the step stashed, on all ranks alike. Does nothing when there is nothing."""
        counts = self.counts.clone()
        self.counts.zero_()
        all_reduce_sum(counts)
        if counts.sum() == 0:
            return
        self.frequency.lerp_(counts / counts.sum(), 1 - DECAY)
        self._learn(counts)

    def _on_map(self, codes: Tensor, z: Tensor) -> Tensor:
        return codes.reshape(len(z), *z.shape[2:], *codes.shape[1:])


def _points(z: Tensor) -> Tensor:
    return z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # (N h w, dim)


def _maps(points: Tensor, n: int, h: int, w: int) -> Tensor:
    return points.view(n, h, w, points.shape[1]).permute(0, 3, 1, 2)  # (N, dim, h, w)


def perplexity(frequency: Tensor) -> Tensor:
    """exp of the entropy of frequencies (K,) that add to 1: K when all codes are used alike, 1 when a single one is."""
    return torch.special.entr(frequency).sum().exp()


def straight_through(points: Tensor, vectors: Tensor) -> Tensor:
    """`vectors` (P, D), with the gradient passed on to `points` unchanged (arXiv 1308.3432, 1711.00937)."""
    return points + (vectors - points).detach()


def rotate(points: Tensor, vectors: Tensor) -> Tensor:
    """`vectors` (P, D), as `points` rotated and scaled onto them; rotation and scale count as constants.

    The rotation trick (arXiv 2410.06424, section 4.3): a gradient keeps its angle to the vector, where straight-through
    keeps its direction in space. With a = points / |points|, b = vectors / |vectors| and r = (a + b) / |a + b|, the
    rotation in the plane of a and b is R = I - 2 r r^T + 2 b a^T, and the gradient with respect to points is
    |vectors| / |points| R^T g.
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
    return rotated + (vectors - rotated).detach()  # the value is that of the codebook, to the last bits


def estimate(estimator: Estimator, points: Tensor, vectors: Tensor) -> Tensor:
    """`vectors` with gradients to `points`, by the estimator of that name."""
    return rotate(points, vectors) if estimator == "rotation" else straight_through(points, vectors)
