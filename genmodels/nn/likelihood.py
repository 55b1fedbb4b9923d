"""Distribution p(x | z) of a decoder: a Gaussian with a calibrated variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.distributed import all_reduce_sum

BLOCK = 8
MIN_VARIANCE = 5e-6
"""Lower bound of the variance: that of 8-bit quantisation, (2 / 255)^2 / 12 = 5e-6."""


def block_dct() -> Tensor:
    """Return orthonormal filters (192, 3, 8, 8): the DCT of 8x8 blocks in an opponent colour space.

    A convolution with stride 8 by these filters is an orthogonal map, so densities and bits per
    dimension do not change.
    """
    with torch.device("cpu"):  # also for a model on the meta device, on which some functions are slow to import
        return _block_dct()


def _block_dct() -> Tensor:
    k = torch.arange(BLOCK, dtype=torch.float64)
    dct = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / BLOCK) * math.sqrt(2 / BLOCK)  # (frequency, position)
    dct[0] /= math.sqrt(2)
    colour = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)  # light, red-blue, green-magenta
    colour = colour / colour.norm(dim=1, keepdim=True)
    return torch.einsum("ai,bj,cr->cabrij", dct, dct, colour).reshape(3 * BLOCK**2, 3, BLOCK, BLOCK).float()


@dataclass(frozen=True)
class LikelihoodKind:
    """What `bits_per_dim` of a model computes. Values of different kinds cannot be compared."""

    levels: int = 256
    """Number of values of a colour. Models that round images have fewer than 256."""
    exact: bool = False
    """Whether it is exact. Otherwise it is an upper bound on the bits, or an estimate."""
    name: str = "bits-per-dim"
    """Name of the metric."""
    estimator: str = ""
    """How it is estimated, if it is neither exact nor a bound."""
    images: int | None = None
    """Number of images that an evaluation measures it on, if it is slow; None for all."""


class CalibratedGaussian(nn.Module):
    """p(x | z) = N(decoded image, variance); the variance is a running mean of squared errors.

    The optimal variance needs no gradient (sigma-VAE, arXiv 2006.13202): it is the mean squared
    error. "pixel" uses one variance for all pixels. "frequency" uses one for each of the 192
    coefficients of an 8x8 block DCT: errors of low frequencies are large and those of high ones
    small, so fine detail weighs more in the likelihood than under a single variance, which favours
    blurred images.

    `nll` accumulates the statistics of a step, and `commit` applies them, summed over micro-batches
    and ranks, so that the variance does not depend on the number of processes.

    Args:
        kind: "pixel" or "frequency".
        momentum: weight of one step in the running mean. The first 1 / momentum steps have equal
            weights.
    """

    variance: Tensor
    steps: Tensor
    filters: Tensor
    stash: Tensor

    def __init__(self, kind: Literal["pixel", "frequency"], momentum: float = 0.01):
        super().__init__()
        self.kind = kind
        self.momentum = momentum
        bands = 1 if kind == "pixel" else 3 * BLOCK**2
        self.register_buffer("variance", torch.full((bands,), 0.1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filters", block_dct(), persistent=False)
        # A buffer, so that the training loop can undo a step whose loss was not finite.
        self.register_buffer("stash", torch.zeros(bands + 1), persistent=False)  # sums of squares, count

    def errors(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Return errors in the basis of the variances: (N, bands, positions)."""
        error = (images - decoded).float()
        if self.kind == "pixel":
            return error.flatten(1).unsqueeze(1)  # (N, 1, 3HW)
        with torch.autocast(error.device.type, enabled=False):
            return F.conv2d(error, self.filters, stride=BLOCK).flatten(2)  # (N, 192, HW/64)

    def nll(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Return -log p(images | decoded) in nats per image, (N,); a density over [-1, 1]."""
        errors = self.errors(images, decoded)
        squared = errors.square()
        if self.training:
            with torch.no_grad():
                self.stash[:-1] += squared.sum((0, 2))
                self.stash[-1] += squared.shape[0] * squared.shape[2]
        variance = self.variance.clamp_min(MIN_VARIANCE).view(1, -1, 1)
        return 0.5 * (squared / variance + variance.log() + math.log(2 * math.pi)).sum((1, 2))

    @torch.no_grad()
    def commit(self) -> None:
        """Update the running mean by the accumulated statistics of the step, if there are any."""
        if self.stash[-1] == 0:
            return
        total = self.stash.clone()
        self.stash.zero_()
        all_reduce_sum(total)
        self.steps += 1
        self.variance.lerp_(total[:-1] / total[-1], max(self.momentum, 1.0 / float(self.steps)))


def nats_to_bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Convert nats per image of a density over [-1, 1] to bits per dimension of 8-bit images.

    Uniform dequantisation is assumed.
    """
    return (nats / dimensions + math.log(127.5)) / math.log(2)
