"""Functions shared by codebooks of vectors: nearest entry and k-means initialisation."""

from __future__ import annotations

import warnings

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

ROUNDS = 10
"""Iterations of k-means, which only initialises the codebook."""
POINTS_PER_CODE = 64
"""Maximum number of points per code that k-means uses."""


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the entry of `codebook` (K, D) nearest to each of `points` (P, D)."""
    codebook = codebook.float()  # also of a model in half precision
    # |p - e|^2 / 2 without |p|^2 / 2, which is the same for all entries, in one matrix product
    distances = torch.addmm(0.5 * codebook.square().sum(1), points, codebook.T, alpha=-1)  # (P, K)
    return distances.argmin(1)


def k_means(points: Tensor, size: int) -> Tensor:
    """Return centres (size, D) of `points` (P, D) by Lloyd's algorithm, from a random start.

    The result is deterministic. If there are fewer points than centres, points are repeated; the
    duplicates stay unused, like dead codes.
    """
    if len(points) > POINTS_PER_CODE * size:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(points), generator=generator)[: POINTS_PER_CODE * size]
        points = points[chosen.to(points.device)]
    if len(points) < size:
        return points.repeat(-(-size // len(points)), 1)[:size]
    from sklearn.cluster import KMeans  # slow to import, and needed in training only
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(size, init="random", n_init=1, max_iter=ROUNDS, random_state=0)
    # With several threads, the order of summation would differ between runs, and so would the last
    # bits.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than centres
        model.fit(points.float().cpu().numpy())
    return torch.from_numpy(model.cluster_centers_).to(points)
