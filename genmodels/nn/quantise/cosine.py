"""A low-dimensional codebook on the unit sphere, learnt by gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.quantise.base import Estimator, Quantiser, estimate
from genmodels.nn.quantise.codebook import k_means, nearest


class CosineCodebook(Quantiser):
    """Nearest of K unit vectors by angle: the factorised, l2-normalised codes of ViT-VQGAN (arXiv 2110.04627).

    Encoder outputs and entries are scaled to length 1, so that distance is angle and no entry is left behind by its
    length; few dimensions (8 to 32) leave no room for entries that nothing is near to. The codebook follows the
    encoder, mean (sg[z] - e)^2, and the encoder the codebook, commitment * mean (z - sg[e])^2. It starts from k-means
    of encoder outputs. Nothing restarts a code that dies later.

    Args:
        codebook_size: K.
        dim: length of the vectors.
        commitment: weight of the commitment loss; beta in the paper.
        estimator: how gradients pass.
    """

    def __init__(
        self, codebook_size: int, dim: int, commitment: float = 0.25, estimator: Estimator = "straight-through"
    ):
        super().__init__(codebook_size, dim)
        self.commitment = commitment
        self.estimator = estimator
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, dim), dim=1))

    def assign(self, points: Tensor) -> Tensor:
        # Unit vectors: the nearest is the one of the smallest angle. The length of the points does not matter.
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
