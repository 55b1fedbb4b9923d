"""Low-dimensional codebook on the unit sphere, trained by gradient descent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.quantise.base import Estimator, Quantiser, estimate
from genmodels.nn.quantise.codebook import k_means, nearest


class CosineCodebook(Quantiser):
    """Nearest of K unit vectors: the l2-normalised codes of ViT-VQGAN (arXiv 2110.04627).

    Encoder outputs z and entries e are scaled to length 1, so that distances depend only on angles
    and no entry is unused because of its length. With few dimensions (8 to 32), few entries are far
    from all encoder outputs. The loss is mean (sg[z] - e)^2 + commitment * mean (z - sg[e])^2. The
    codebook is initialised by k-means of encoder outputs. Dead codes are not restarted.

    Args:
        codebook_size: K.
        dim: length of the vectors.
        commitment: weight of the commitment loss; beta in the paper.
        estimator: gradient estimator.
    """

    def __init__(
        self, codebook_size: int, dim: int, commitment: float = 0.25, estimator: Estimator = "straight-through"
    ):
        super().__init__(codebook_size, dim)
        self.commitment = commitment
        self.estimator = estimator
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, dim), dim=1))

    def assign(self, points: Tensor) -> Tensor:
        # The nearest unit vector is the one at the smallest angle. The length of the points does
        # not matter.
        return nearest(points, F.normalize(self.codebook, dim=1))

    def lookup(self, codes: Tensor) -> Tensor:
        return F.normalize(F.embedding(codes, self.codebook), dim=1)

    def through(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points, vectors = F.normalize(points, dim=1), self.lookup(codes)
        commitment = (points - vectors.detach()).square().mean()
        follow = (points.detach() - vectors).square().mean()
        return estimate(self.estimator, points, vectors.detach()), follow + self.commitment * commitment, commitment

    def start(self, points: Tensor) -> None:
        self.codebook.data.copy_(F.normalize(k_means(F.normalize(points, dim=1), self.codebook_size), dim=1))
