"""Residual quantisation: several codes per position, each for the residual of the previous ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from genmodels.nn.quantise.base import Quantiser, estimate
from genmodels.nn.quantise.ema import EMACodebook
from genmodels.types import Noise


class ResidualQuantiser(Quantiser):
    """Represents a position by D codes, whose vectors are added (RQ-VAE, arXiv 2203.01941).

    Level d quantises z - e(k_1) - ... - e(k_{d-1}). Each level has its own codebook (the paper
    shares one), because residuals shrink from level to level. The commitment loss is the sum over
    levels of the squared distance between z and the partial sum. Usage and perplexity are computed
    over the codes of all levels together.

    Args:
        codebooks: D codebooks of the same shape, from coarse to fine.
    """

    def __init__(self, codebooks: Sequence[EMACodebook]):
        if not codebooks:
            raise ValueError("a residual quantiser needs at least 1 level")
        first = codebooks[0]
        super().__init__(first.codebook_size, first.dim, levels=len(codebooks))
        self.codebooks = nn.ModuleList(codebooks)
        self.commitment = first.commitment
        self.estimator = first.estimator

    def _levels(self) -> list[EMACodebook]:
        return cast(list[EMACodebook], list(self.codebooks))

    def assign(self, points: Tensor) -> Tensor:
        codes = []
        for book in self._levels():
            codes.append(book.assign(points))
            points = points - book.lookup(codes[-1])
        return torch.stack(codes, 1)  # (P, D)

    def partial_sums(self, codes: Tensor) -> Tensor:
        """Return the partial sums over levels of the vectors of codes (P, D): (D, P, dim)."""
        return torch.stack([book.lookup(level) for book, level in zip(self._levels(), codes.T, strict=True)]).cumsum(0)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.partial_sums(codes)[-1]

    def through(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sums = self.partial_sums(codes)
        distances = (points - sums).square().mean((1, 2))  # (D,)
        return estimate(self.estimator, points, sums[-1]), self.commitment * distances.sum(), distances[-1]

    def observe(self, points: Tensor, codes: Tensor, noise: Noise) -> None:
        for book, level in zip(self._levels(), codes.T, strict=True):
            book.counts += torch.bincount(level, minlength=book.codebook_size)
            book.observe(points, level, noise)
            points = points - book.lookup(level)

    def _learn(self, counts: Tensor) -> None:
        for book in self._levels():
            book.commit()

    def start(self, points: Tensor) -> None:
        for book in self._levels():
            book.start(points)
            points = points - book.lookup(book.assign(points))
