"""Codebook of VQ-VAE, whose entries are running means of the encoder outputs assigned to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.distributed import all_gather_rows, all_reduce_sum, broadcast_first
from genmodels.nn.quantise.base import DECAY, RARE, Estimator, Quantiser, estimate
from genmodels.nn.quantise.codebook import k_means, nearest
from genmodels.types import Noise

RESTARTS = 64
"""Maximum number of dead codes that are restarted per step."""
NOBODY = torch.iinfo(torch.int64).max
"""Key of an empty slot among the candidates."""


class EMACodebook(Quantiser):
    """Nearest of K vectors, each the running mean of its points (arXiv 1711.00937, appendix A.1).

    With n_i points of sum s_i in a step, N_i <- g N_i + (1 - g) n_i, m_i <- g m_i + (1 - g) s_i and
    e_i = m_i / N_i. Only N (as `frequency`, relative to the points of a step) and e are stored. The
    equivalent update is e_i <- e_i + (1 - g) (s_i - n_i e_i) / N_i, which does not change unused
    entries.

    The codebook is initialised by k-means of encoder outputs. A dead code is restarted at a current
    encoder output (as in arXiv 2005.00341), since a code that is never nearest would never move.
    The commitment loss, commitment * mean (z - e)^2, keeps encoder outputs z close to their codes.

    Args:
        codebook_size: K.
        dim: length of the vectors.
        commitment: weight of the commitment loss; beta in the paper.
        estimator: gradient estimator.
    """

    codebook: Tensor
    sums: Tensor
    candidates: Tensor
    keys: Tensor

    def __init__(
        self, codebook_size: int, dim: int, commitment: float = 0.25, estimator: Estimator = "straight-through"
    ):
        super().__init__(codebook_size, dim)
        self.commitment = commitment
        self.estimator = estimator
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("sums", torch.zeros(codebook_size, dim), persistent=False)
        self.register_buffer("candidates", torch.zeros(RESTARTS, dim), persistent=False)
        self.register_buffer("keys", torch.full((RESTARTS,), NOBODY), persistent=False)

    def assign(self, points: Tensor) -> Tensor:
        return nearest(points, self.codebook)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook)

    def through(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors = self.lookup(codes)
        distance = (points - vectors).square().mean()
        return estimate(self.estimator, points, vectors), self.commitment * distance, distance

    def observe(self, points: Tensor, codes: Tensor, noise: Noise) -> None:
        self.sums.index_add_(0, codes, points)
        # One point of each image is a candidate for restarts. Images are sorted by their seeds,
        # which are random and do not depend on how a batch is divided: the first images of the
        # whole batch are among the first images of each micro-batch and rank.
        place = (noise.uniform() * (len(points) // len(noise))).long()  # (N,)
        chosen = points.unflatten(0, (len(noise), -1))[torch.arange(len(noise), device=place.device), place]  # (N, D)
        self._keep_first(chosen, torch.tensor(noise.seeds, device=chosen.device))

    def _keep_first(self, points: Tensor, keys: Tensor) -> None:
        """Merge `points` into the candidates and keep those with the smallest keys."""
        keys, points = torch.cat([self.keys, keys]), torch.cat([self.candidates, points])
        order = keys.argsort()[:RESTARTS]
        self.keys.copy_(keys[order])
        self.candidates.copy_(points[order])

    def _learn(self, counts: Tensor) -> None:
        sums, keys = self.sums.clone(), all_gather_rows(self.keys)
        all_reduce_sum(sums)
        candidates = all_gather_rows(self.candidates)
        self.sums.zero_()
        self.keys.fill_(NOBODY)
        running = (self.frequency * counts.sum()).clamp_min(1e-12)  # N_i, in points of this step
        move = (sums - counts.unsqueeze(1) * self.codebook) / running.unsqueeze(1)
        self.codebook.add_(move, alpha=1 - DECAY)
        self._keep_first(candidates, keys)
        self._restart()
        self.keys.fill_(NOBODY)
        broadcast_first(self.codebook, self.frequency)

    def _restart(self) -> None:
        """Move dead codes to candidates, both in order, with frequency 1 / codebook_size."""
        dead = self.frequency < RARE / self.codebook_size
        turn = dead.cumsum(0) - 1  # index of its candidate
        again = dead & (turn < (self.keys != NOBODY).sum())
        taken = self.candidates[turn.clamp(0, RESTARTS - 1)]  # (K, dim)
        self.codebook.copy_(torch.where(again.unsqueeze(1), taken, self.codebook))
        self.frequency.masked_fill_(again, 1 / self.codebook_size)
        self.frequency.div_(self.frequency.sum())

    def start(self, points: Tensor) -> None:
        self.codebook.copy_(k_means(points, self.codebook_size))
        counts = torch.bincount(self.assign(points), minlength=self.codebook_size)
        self.frequency.copy_(counts / counts.sum())
