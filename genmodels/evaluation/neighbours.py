"""What nearest neighbours among features tell: precision, recall, density, coverage, memorisation, diversity.

Distances are Euclidean and computed in float64 block by block, so that 50,000 x 50,000 of them need no more memory than
1,000 x 1,000. In float32, |x|^2 + |y|^2 - 2 x.y would lose what matters most here: the distances of near neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genmodels.evaluation.distances import check_features, check_widths, tiles

ROUNDING = 2.0**-44
"""Bound on the error of a squared distance, as a share of the squares it is computed from."""


@dataclass(frozen=True)
class Manifold:
    """How two sets of features cover each other.

    Attributes:
        precision: share of fakes within reach of a real image: are samples real?
        recall: share of real images within reach of a fake: are all kinds of image made?
        density: how many real balls hold a fake, on average, over k; may exceed 1. Precision, robust to outliers.
        coverage: share of real balls that hold a fake. Recall, robust to outliers.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, eq=False)
class Memorisation:
    """Whether samples are nearer to training images than new real images are.

    Attributes:
        ratio: median distance of samples to their nearest training image, over that of held-out images; well under 1
            means copying.
        share: of samples that are at least as near to a training image as the nearest 1 % of held-out images; well over
            0.01 means copying.
        order: (N,) indices of the samples, the one nearest to a training image first.
        partner: (N,) index of each sample's nearest training image.
    """

    ratio: float
    share: float
    order: np.ndarray
    partner: np.ndarray


def manifold(real: np.ndarray, fake: np.ndarray, k_pr: int = 3, k_dc: int = 5) -> Manifold:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797), from one pass over all pairs.

    Around each image stands a ball that reaches to its k-th nearest neighbour in its own set. As the papers have it,
    the boundary belongs to the ball for precision and recall, and does not for density and coverage.

    Args:
        real: features (M, D), M > k_pr and M > k_dc.
        fake: features (N, D), N > k_pr.
        k_pr: neighbours for precision and recall.
        k_dc: neighbours for density and coverage.

    Raises:
        ValueError: when there are too few images for k, the widths differ, or features are not finite or not 2-D.
    """
    check_widths(real, fake)
    for features, name, k in ((real, "real", max(k_pr, k_dc)), (fake, "fake", k_pr)):
        check_features(features, name)
        if not 0 < k < len(features):
            raise ValueError(
                f"{name}: {len(features)} images have no neighbour number {k}; choose k from 1 on, below that"
            )
    centre = real.mean(axis=0, dtype=np.float64)
    reach, slack = _reach(real, centre, max(k_pr, k_dc))  # (M, k), (M,)
    fake_reach, fake_slack = _reach(fake, centre, k_pr)
    # Slack, so that a tie is a tie whatever the rounding of one block or another.
    real_balls, real_cores = reach[:, k_pr - 1] + slack, reach[:, k_dc - 1] - slack  # (M,)
    fake_balls = fake_reach[:, k_pr - 1] + fake_slack  # (N,)

    precise = torch.zeros(len(fake), dtype=torch.bool)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    held = 0
    for rows in tiles(len(fake)):
        x = _centred(fake, rows, centre)
        for columns in tiles(len(real)):
            squared = _squared(x, _centred(real, columns, centre))  # (n, m)
            precise[rows] |= (squared <= real_balls[columns]).any(dim=1)
            recalled[columns] |= (squared <= fake_balls[rows, None]).any(dim=0)
            inside = squared < real_cores[columns]
            covered[columns] |= inside.any(dim=0)
            held += int(inside.sum())
    return Manifold(
        precision=precise.double().mean().item(),
        recall=recalled.double().mean().item(),
        density=held / (k_dc * len(fake)),
        coverage=covered.double().mean().item(),
    )


def nearest(queries: np.ndarray, database: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `database` (M, D) to each of `queries` (N, D).

    Returns:
        Euclidean distances, float64 (N,), exactly 0 for an equal; and indices into the database, int64 (N,).

    Raises:
        ValueError: when the widths differ, or features are not finite or not 2-D.
    """
    check_widths(queries, database)
    check_features(queries, "queries", least=1)
    check_features(database, "database", least=1)
    centre = database.mean(axis=0, dtype=np.float64)
    found = np.zeros(len(queries), np.int64)
    distances = np.zeros(len(queries))
    for rows in tiles(len(queries)):
        x = _centred(queries, rows, centre)
        best = torch.full((len(x),), math.inf, dtype=torch.float64)
        index = torch.zeros(len(x), dtype=torch.int64)
        for columns in tiles(len(database)):
            closest, at = _squared(x, _centred(database, columns, centre)).min(dim=1)  # (n,)
            index = torch.where(closest < best, at + columns.start, index)
            best = torch.minimum(best, closest)
        found[rows] = index.numpy()
        distances[rows] = _distances(queries[rows], database[found[rows]])  # without the rounding of the products
    return distances, found


def memorisation(samples: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Memorisation:
    """Compare how near samples and held-out real images are to the training images.

    Samples of a model that has learnt the distribution are as far from the training images as other real images are:
    ratio 1 and, in expectation, share 0.01. When this lies:

    - Blurred or typical samples are near to everything. A ratio under 1 with a poor precision is that, not copying.
    - A model that copies some images and spoils others may have a ratio over 1; the share finds the copies.
    - Images or people that are in both real sets make held-out images near, and hide copies.
    - `train` must be all that the model saw. A mirrored or shifted copy is near only to features that do not mind.

    Look at the closest pairs: `order` and `partner` name them.

    Args:
        samples: features (N, D) of generated images.
        train: features (M, D) of the images the model was trained on.
        held_out: features (H, D) of real images it was not; at least 99, or the nearest stands for the nearest 1 %.

    Raises:
        ValueError: when most held-out images are training images, the widths differ, or features are not finite.
    """
    check_features(held_out, "held-out")
    distances, partner = nearest(samples, train)
    real_distances, _ = nearest(held_out, train)
    median = float(np.median(real_distances))
    if median == 0:
        raise ValueError(
            f"{np.mean(real_distances == 0):.0%} of the held-out images are training images: "
            "hold out images of another split"
        )
    # Of all quantiles, Weibull's leaves in expectation exactly 1 % of new images below it.
    near = np.quantile(real_distances, 0.01, method="weibull")
    return Memorisation(
        ratio=float(np.median(distances)) / median,
        share=float(np.mean(distances <= near)),
        order=np.argsort(distances, kind="stable"),
        partner=partner,
    )


def diversity(features: np.ndarray) -> tuple[float, float]:
    """Mean Euclidean distance between two images of a set, and its standard error.

    Over N // 2 disjoint random pairs (the same ones every time), so that the distances are independent.

    Args:
        features: (N, D), N >= 4.

    Raises:
        ValueError: when there are too few, or they are not finite or not 2-D.
    """
    check_features(features, "diversity", least=4)
    half = len(features) // 2
    order = np.random.default_rng(0).permutation(len(features))
    distances = _distances(features[order[:half]], features[order[half : 2 * half]])  # (N // 2,)
    return float(distances.mean()), float(distances.std(ddof=1) / math.sqrt(half))


def _reach(features: np.ndarray, centre: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances of each row to its k nearest others in order, (N, k), and a bound on their error, (N,)."""
    found = torch.full((len(features), k), math.inf, dtype=torch.float64)
    norms = torch.zeros(len(features), dtype=torch.float64)

    def keep(rows: slice, squared: Tensor) -> None:
        found[rows] = torch.cat([found[rows], squared], dim=1).topk(k, largest=False).values

    parts = tiles(len(features))
    for i, rows in enumerate(parts):
        x = _centred(features, rows, centre)
        norms[rows] = _norms(x)
        keep(rows, _squared(x, x).fill_diagonal_(math.inf))
        for columns in parts[i + 1 :]:
            squared = _squared(x, _centred(features, columns, centre))
            keep(rows, squared)
            keep(columns, squared.T)
    # What lies in a ball around x has a norm of at most |x| and the radius.
    return found, ROUNDING * (norms + found[:, -1])


def _centred(features: np.ndarray, rows: slice, centre: np.ndarray) -> np.ndarray:
    """Some rows in float64, moved to the origin: smaller squares, smaller rounding errors."""
    return features[rows] - centre


def _norms(x: np.ndarray) -> Tensor:
    """Squared norm of each row, (N,)."""
    return torch.from_numpy(np.einsum("nd,nd->n", x, x))


def _squared(x: np.ndarray, y: np.ndarray) -> Tensor:
    """Squared distances (M, N) of float64 rows (M, D) and (N, D).

    The product is numpy's, which is 1.6 times as fast as torch's on some processors and as fast on others; the rest
    is torch's, which uses all cores.
    """
    product = torch.from_numpy(x @ y.T)  # (M, N)
    return product.mul_(-2).add_(_norms(x)[:, None]).add_(_norms(y)).clamp_(min=0)


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distance of each pair of rows, float64 (N,)."""
    return np.linalg.norm(x.astype(np.float64) - y, axis=1)
