"""Metrics based on nearest neighbours of features: precision, recall, density, coverage,
memorisation, diversity, realism of single images.

Distances are Euclidean and computed in float64 block by block, so that 50,000 x 50,000 distances
need no more memory than 1,000 x 1,000. In float32, |x|^2 + |y|^2 - 2 x.y would be inexact for the
distances that matter most, those of close neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genmodels.evaluation.distances import check_features, check_varied, check_widths, moments, tiles

ROUNDING = 2.0**-44
"""Bound on the error of a squared distance, relative to the squares it is computed from."""
RIDGE = 0.1
"""Variance that is added to every principal component before features are whitened, relative to
the mean variance of the components."""


@dataclass(frozen=True)
class Manifold:
    """How two sets of features cover each other. Each image has a ball, which contains its
    neighbourhood.

    Attributes:
        precision: fraction of fake images that lie in the ball of a real image: fidelity.
        recall: fraction of real images that lie in the ball of a fake image: diversity.
        density: mean number of real balls that contain a fake image, divided by k. It may exceed 1.
            Like precision, but robust to outliers.
        coverage: fraction of real balls that contain a fake image. Like recall, but robust to
            outliers.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, eq=False)
class Memorisation:
    """Whether samples are closer to training images than held-out real images are.

    Attributes:
        ratio: median distance of samples to their nearest training image, divided by that of
            held-out images. Well below 1 means copying.
        share: fraction of samples that are at least as close to a training image as the closest 1 %
            of held-out images. Well above 0.01 means copying.
        order: (N,) indices of the samples, the one closest to a training image first.
        partner: (N,) index of the nearest training image of each sample.
    """

    ratio: float
    share: float
    order: np.ndarray
    partner: np.ndarray


def manifold(real: np.ndarray, fake: np.ndarray, k_pr: int = 3, k_dc: int = 5) -> Manifold:
    """Compute precision and recall (arXiv 1904.06991), and density and coverage (arXiv 2002.09797),
    in one pass.

    The radius of the ball around each image is the distance to its k-th nearest neighbour in its
    own set. As in the papers, the boundary belongs to the ball for precision and recall, but not
    for density and coverage.

    Args:
        real: features (M, D), M > k_pr and M > k_dc.
        fake: features (N, D), N > k_pr.
        k_pr: number of neighbours for precision and recall.
        k_dc: number of neighbours for density and coverage.

    Raises:
        ValueError: if there are too few images for k, the widths differ, or features are not finite
            or not 2-D.
    """
    check_widths(real, fake)
    for features, name, k in ((real, "real", max(k_pr, k_dc)), (fake, "fake", k_pr)):
        check_features(features, name)
        if not 0 < k < len(features):
            raise ValueError(
                f"{name}: {len(features)} images have no neighbour number {k}; choose k from 1 to {len(features) - 1}"
            )
    centre = real.mean(axis=0, dtype=np.float64)
    reach, slack = _reach(real, centre, max(k_pr, k_dc))  # (M, k), (M,)
    fake_reach, fake_slack = _reach(fake, centre, k_pr)
    # Slack, so that ties do not depend on how blocks are rounded.
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
    """Find the nearest row of `database` (M, D) for each row of `queries` (N, D).

    Returns:
        Euclidean distances, float64 (N,), exactly 0 for equal rows, and indices into the database,
        int64 (N,).

    Raises:
        ValueError: if the widths differ, or features are not finite or not 2-D.
    """
    check_widths(queries, database)
    check_features(queries, "queries", least=1)
    check_features(database, "database", least=1)
    centre = database.mean(axis=0, dtype=np.float64)
    indices = np.zeros(len(queries), np.int64)
    distances = np.zeros(len(queries))
    for rows in tiles(len(queries)):
        x = _centred(queries, rows, centre)
        best = torch.full((len(x),), math.inf, dtype=torch.float64)
        index = torch.zeros(len(x), dtype=torch.int64)
        for columns in tiles(len(database)):
            closest, at = _squared(x, _centred(database, columns, centre)).min(dim=1)  # (n,)
            index = torch.where(closest < best, at + columns.start, index)
            best = torch.minimum(best, closest)
        indices[rows] = index.numpy()
        # Without the rounding errors of the products.
        distances[rows] = _distances(queries[rows], database[indices[rows]])
    return distances, indices


def memorisation(samples: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Memorisation:
    """Compare how close samples and held-out real images are to the training images.

    Samples of a model that has learned the distribution are as far from the training images as
    other real images are: the ratio is 1 and the expected share is 0.01. The result is misleading
    in these cases:

    - Blurred or typical samples are close to everything. A ratio below 1 with a poor precision
      means this, not copying.
    - A model that copies some images and distorts others may have a ratio above 1. The share
      detects the copies.
    - Images or people that are in both real sets make held-out images close, and hide copies.
    - `train` must contain all training images. A mirrored or shifted copy is only close under
      features that are invariant to it.

    Look at the closest pairs, which `order` and `partner` identify.

    Args:
        samples: features (N, D) of generated images.
        train: features (M, D) of the images on which the model was trained.
        held_out: features (H, D) of real images on which it was not trained. With fewer than 99,
            the closest one stands for the closest 1 %.

    Raises:
        ValueError: if most held-out images are training images, the widths differ, or features are
            not finite.
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
    # The expected fraction of new images below Weibull's quantile is exactly 1 %.
    near = np.quantile(real_distances, 0.01, method="weibull")
    return Memorisation(
        ratio=float(np.median(distances)) / median,
        share=float(np.mean(distances <= near)),
        order=np.argsort(distances, kind="stable"),
        partner=partner,
    )


def diversity(features: np.ndarray) -> tuple[float, float]:
    """Compute the mean Euclidean distance between two images of a set, and its standard error.

    The mean is over N // 2 disjoint random pairs, so that the distances are independent. The pairs
    are the same at every call.

    Args:
        features: (N, D), N >= 4.

    Raises:
        ValueError: if there are too few, or they are not finite or not 2-D.
    """
    check_features(features, "diversity", least=4)
    half = len(features) // 2
    order = np.random.default_rng(0).permutation(len(features))
    distances = _distances(features[order[:half]], features[order[half : 2 * half]])  # (N // 2,)
    return float(distances.mean()), float(distances.std(ddof=1) / math.sqrt(half))


class Realism:
    """How far single images lie inside the neighbourhoods of real images.

    The score of an image is the largest ratio, over all real images, of the radius of the real
    image's ball to the distance from it: at least 1 if any ball contains the image, and the closer
    to 0, the farther it is from all of them. A copy of a real image has a very large score.

    This is the realism of arXiv 1904.06991, section 5, except for two choices that find damaged
    faces better (docs/evaluation.md): features are whitened by the covariance of the real images,
    and the larger half of the balls is not left out.

    Args:
        real: features (M, D) of real images, M > k.
        k: number of the neighbour whose distance is the radius.

    Raises:
        ValueError: if there are too few images for k, all are the same, or features are not finite
            or not 2-D.
    """

    def __init__(self, real: np.ndarray, k: int = 3):
        check_features(real, "real images", least=k + 1)
        check_varied(real, "real images")
        fitted = moments(real)
        variances, axes = np.linalg.eigh(fitted.covariance)  # (D,), (D, D)
        self._mean = fitted.mean
        self._axes = axes / np.sqrt(variances.clip(0) + RIDGE * variances.mean())
        self._origin = np.zeros_like(fitted.mean)
        self._real = self._whitened(real)
        self._squared_radii = _reach(self._real, self._origin, k)[0][:, -1]  # (M,)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the score of each image, float64 (N,).

        Args:
            features: (N, D).

        Raises:
            ValueError: if the width is not that of the real images, or features are not finite or
                not 2-D.
        """
        check_widths(features, self._real)
        check_features(features, "images", least=1)
        white = self._whitened(features)
        best = torch.zeros(len(features), dtype=torch.float64)
        for rows in tiles(len(white)):
            x = _centred(white, rows, self._origin)
            for columns in tiles(len(self._real)):
                squared = _squared(x, _centred(self._real, columns, self._origin))  # (n, m)
                ratios = (self._squared_radii[columns] / squared).nan_to_num(0, math.inf)  # 0 / 0 is no ball
                best[rows] = torch.maximum(best[rows], ratios.amax(dim=1))
        return best.sqrt().numpy()

    def _whitened(self, features: np.ndarray) -> np.ndarray:
        """Return principal components with variances of about 1, float32 (N, D)."""
        parts = [((features[rows] - self._mean) @ self._axes).astype(np.float32) for rows in tiles(len(features))]
        return np.concatenate(parts)


def _reach(features: np.ndarray, centre: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    """Return squared distances of each row to its k nearest neighbours, (N, k), and a bound on
    their error, (N,)."""
    nearest_squared = torch.full((len(features), k), math.inf, dtype=torch.float64)
    norms = torch.zeros(len(features), dtype=torch.float64)

    def keep(rows: slice, squared: Tensor) -> None:
        nearest_squared[rows] = torch.cat([nearest_squared[rows], squared], dim=1).topk(k, largest=False).values

    parts = tiles(len(features))
    for i, rows in enumerate(parts):
        x = _centred(features, rows, centre)
        norms[rows] = _norms(x)
        keep(rows, _squared(x, x).fill_diagonal_(math.inf))
        for columns in parts[i + 1 :]:
            squared = _squared(x, _centred(features, columns, centre))
            keep(rows, squared)
            keep(columns, squared.T)
    # The norm of a point in a ball around x is at most |x| plus the radius.
    return nearest_squared, ROUNDING * (norms + nearest_squared[:, -1])


def _centred(features: np.ndarray, rows: slice, centre: np.ndarray) -> np.ndarray:
    """Return some rows in float64, centred: smaller squares have smaller rounding errors."""
    return features[rows] - centre


def _norms(x: np.ndarray) -> Tensor:
    """Return the squared norm of each row, (N,)."""
    return torch.from_numpy(np.einsum("nd,nd->n", x, x))


def _squared(x: np.ndarray, y: np.ndarray) -> Tensor:
    """Return the squared distances (M, N) of float64 rows (M, D) and (N, D).

    numpy computes the product, which takes 1.6 times as long in torch on some processors. torch
    computes the rest, on all cores.
    """
    product = torch.from_numpy(x @ y.T)  # (M, N)
    return product.mul_(-2).add_(_norms(x)[:, None]).add_(_norms(y)).clamp_(min=0)


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of each pair of rows, float64 (N,)."""
    return np.linalg.norm(x.astype(np.float64) - y, axis=1)
