"""Distances between two sets of features: Fréchet (FID) and kernel (KID), computed in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigvalsh, svdvals
from scipy.linalg.lapack import dpstrf

TILE = 2048
"""Number of rows processed at a time. A block of a matrix over all pairs is TILE x TILE, 32 MiB."""
ACCURACY = 1e-6
"""Relative error of a Fréchet distance up to which the faster of two algorithms is used."""


@dataclass(frozen=True, eq=False)
class Moments:
    """First two moments of a set of features.

    Attributes:
        mean: float64 (D,).
        covariance: float64 (D, D), unbiased.
    """

    mean: np.ndarray
    covariance: np.ndarray


def tiles(count: int) -> list[slice]:
    """Divide `count` rows into slices of at most TILE."""
    return [slice(start, min(start + TILE, count)) for start in range(0, count, TILE)]


def check_features(features: np.ndarray, name: str, least: int = 2) -> None:
    """Check that `features` are finite floats (N, D).

    Args:
        features: the array.
        name: name of the set in the error.
        least: minimum number of rows.

    Raises:
        ValueError: if they are not; names the first row that is not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"{name}: features must have the shape (N, D), got {features.shape}")
    if len(features) < least:
        raise ValueError(f"{name}: features of at least {least} images are needed, got {len(features)}")
    for rows in tiles(len(features)):
        finite = np.isfinite(features[rows]).all(axis=1)  # (n,)
        if not finite.all():
            raise ValueError(
                f"{name}: the features of image {rows.start + int(finite.argmin())} are not finite; look at that image"
            )


def check_widths(first: np.ndarray, second: np.ndarray) -> None:
    """Check that two sets of features have the same number of dimensions.

    Raises:
        ValueError: if they do not; names both numbers.
    """
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"features of {first.shape[-1]} and of {second.shape[-1]} dimensions cannot be compared: "
            "use one extractor for both sets"
        )


def check_varied(features: np.ndarray, name: str) -> None:
    """Check that the features (N, D) of a set are not all the same.

    Raises:
        ValueError: if they are; names the set.
    """
    # With a tolerance: the last bits of a network's output depend on the position in the batch.
    if np.ptp(features, axis=0).max() <= 1e-5 * np.abs(features[0]).max():
        raise ValueError(
            f"{name}: all {len(features):,} images have the same features: they are one image repeated, "
            "or the model has collapsed; look at the images"
        )


def singular(count: int, width: int) -> str:
    """Return in words that the covariance of `count` features of `width` dimensions is singular; ""
    if it need not be."""
    return "" if count > width else f"the covariance of {count:,} images is singular in {width:,} features"


def moments(features: np.ndarray, name: str = "moments") -> Moments:
    """Compute mean and unbiased covariance of a set of features.

    Args:
        features: (N, D), N >= 2, finite.
        name: name of the set in an error.

    Raises:
        ValueError: if they are not 2-D, fewer than 2 or not finite.
    """
    check_features(features, name)
    n, width = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((width, width))
    for rows in tiles(n):
        centred = features[rows] - mean  # float64
        scatter += centred.T @ centred
    return Moments(mean, scatter / (n - 1))


def frechet(first: Moments, second: Moments) -> float:
    """Compute the squared Fréchet distance of two Gaussians, which is FID for Inception features
    (arXiv 1706.08500).

    It is |mu1 - mu2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). With C1 = A A^T and C2 = B B^T the
    last trace is the sum of the singular values of A^T B. This needs no square root of a matrix and
    adds nothing to a diagonal, so it is exact for singular covariances, as of fewer images than
    features.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: if the widths differ.
    """
    check_widths(first.mean, second.mean)
    shift = first.mean - second.mean
    apart = shift @ shift + np.trace(first.covariance) + np.trace(second.covariance)
    product = _factor(first.covariance).T @ _factor(second.covariance)  # (R1, R2), the ranks
    overlap, error = _nuclear_norm(product)
    if 2 * error > ACCURACY * (apart - 2 * overlap):
        overlap = svdvals(product, check_finite=False).sum()
    return max(0.0, float(apart - 2 * overlap))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the squared Fréchet distance between two sets of features, (M, D) and (N, D); see
    `frechet`.

    Raises:
        ValueError: if they are not 2-D, fewer than 2 or not finite, or the widths differ.
    """
    check_widths(first, second)
    return frechet(moments(first, "first"), moments(second, "second"))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Return A (D, R) with A A^T = covariance up to rounding, by pivoted Cholesky; R is the
    numerical rank.

    It stops where only rounding errors remain. A plain Cholesky would treat their square roots as
    features.
    """
    factor, pivots, rank, _ = dpstrf(covariance, lower=1)
    rows = np.empty((len(covariance), rank))
    rows[pivots - 1] = np.tril(factor)[:, :rank]  # LAPACK counts from 1
    return rows


def _nuclear_norm(matrix: np.ndarray) -> tuple[float, float]:
    """Return the sum of the singular values, from the eigenvalues of the Gram matrix, and a bound
    on its error.

    This takes half the time of a singular value decomposition. But each eigenvalue has the rounding
    error of the largest one, and the error of the root of a small one is much larger.
    """
    if not matrix.any():
        return 0.0, 0.0
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares = eigvalsh(wide @ wide.T, check_finite=False).clip(min=0)  # (min(R1, R2),), ascending
    roots = np.sqrt(squares)
    rounding = np.finfo(float).eps * squares[-1]
    error = rounding / np.maximum(2 * roots, math.sqrt(rounding))  # of each root
    return float(roots.sum()), float(error.sum())


def kernel_distance(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Compute the squared MMD under the kernel (x.y / D + 1)^3, which is KID for Inception (arXiv
    1801.01401).

    This is the unbiased estimate over all pairs, which may be negative. KID is usually computed as
    the mean of the same estimate over random subsets (torch-fidelity: 100 subsets of 1,000 images).
    The expectation is the same, but subsets add noise, and the "std" quoted with them is the spread
    between subsets, not an error.

    The standard error is the jackknife over both sets (each image left out once). It is slightly
    too large if the distributions are equal, where the estimate varies only to second order. Time
    is O((M + N)^2 D), memory O(M + N).

    Args:
        first: features (M, D), finite, M >= 3.
        second: features (N, D), N >= 3.

    Returns:
        The estimate and its standard error.

    Raises:
        ValueError: if the features are not 2-D, fewer than 3 or not finite, or the widths differ.
    """
    check_widths(first, second)
    for features, name in ((first, "first"), (second, "second")):
        check_features(features, name, least=3)
    m, n = len(first), len(second)
    first_rows, second_rows = _sums_within(first), _sums_within(second)  # (M,), (N,)
    first_cross, second_cross = _sums_between(first, second)  # (M,), (N,)
    cross = first_cross.sum()
    first_mean, second_mean = first_rows.sum() / (m * (m - 1)), second_rows.sum() / (n * (n - 1))
    estimate = first_mean + second_mean - 2 * cross / (m * n)
    # The estimate without each image in turn, up to a constant, which does not affect the variance.
    without_first = _mean_without(first_rows) - 2 * (cross - first_cross) / ((m - 1) * n)  # (M,)
    without_second = _mean_without(second_rows) - 2 * (cross - second_cross) / ((n - 1) * m)  # (N,)
    variance = (m - 1) * without_first.var() + (n - 1) * without_second.var()
    return float(estimate), math.sqrt(variance)


def _mean_without(rows: np.ndarray) -> np.ndarray:
    """Return, from sums (N,) over the pairs of each row, the mean over all pairs without that row,
    (N,)."""
    n = len(rows)
    return (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))


def _sums_within(features: np.ndarray) -> np.ndarray:
    """Return the sum of the kernel between each row and all others, (N,). Half of the symmetric
    kernel is computed."""
    sums = np.zeros(len(features))
    parts = tiles(len(features))
    for i, rows in enumerate(parts):
        x = features[rows].astype(np.float64)
        for columns in parts[i:]:
            if columns == rows:
                kernel = _kernel(x, x)
                np.fill_diagonal(kernel, 0)
            else:
                kernel = _kernel(x, features[columns].astype(np.float64))
                sums[columns] += kernel.sum(axis=0)
            sums[rows] += kernel.sum(axis=1)
    return sums


def _sums_between(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the kernel over all pairs of two sets, per row of the first (M,) and of
    the second (N,)."""
    first_sums, second_sums = np.zeros(len(first)), np.zeros(len(second))
    for rows in tiles(len(first)):
        x = first[rows].astype(np.float64)
        for columns in tiles(len(second)):
            kernel = _kernel(x, second[columns].astype(np.float64))
            first_sums[rows] += kernel.sum(axis=1)
            second_sums[columns] += kernel.sum(axis=0)
    return first_sums, second_sums


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (x.y / D + 1)^3 (M, N) for float64 (M, D) and (N, D)."""
    base = x @ y.T  # (M, N)
    base /= x.shape[1]
    base += 1
    return base * base * base
