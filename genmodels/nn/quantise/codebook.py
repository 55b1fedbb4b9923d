"""What codebooks of vectors share: the nearest entry, and a start from the data."""

from __future__ import annotations

import warnings

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

ROUNDS = 10
"""Of k-means: a start, soon overtaken by training."""
POINTS_PER_CODE = 64
"""k-means sees at most so many points for each code."""


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Which entry of `codebook` (K, D) is nearest to each of `points` (P, D): (P,) int64."""
    # |p - e|^2 / 2 without the |p|^2 / 2 that all entries share, in one matrix product
    distances = torch.addmm(0.5 * codebook.square().sum(1), points, codebook.T, alpha=-1)  # (P, K)
    return distances.argmin(1)


def k_means(points: Tensor, size: int) -> Tensor:
    """`size` centres (size, D) of `points` (P, D), by Lloyd's algorithm from a random choice of points.

    Too few points are taken again and again; entries that equal another one stay unused, as dead codes do. The same
    points give the same centres.
    """
    if len(points) > POINTS_PER_CODE * size:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(points), generator=generator)[: POINTS_PER_CODE * size]
        points = points[chosen.to(points.device)]
    if len(points) < size:
        return points.repeat(-(-size // len(points)), 1)[:size]
    model = KMeans(size, init="random", n_init=1, max_iter=ROUNDS, random_state=0)
    # Threads would add up their shares in any order, and the last bits would differ from run to run.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than centres
        model.fit(points.float().cpu().numpy())
    return torch.from_numpy(model.cluster_centers_).to(points)
