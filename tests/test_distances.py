"""Frechet and kernel distances against closed forms, torch-fidelity and pytorch-fid's formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from genmodels.evaluation import distances
from genmodels.evaluation.distances import Moments, frechet, frechet_distance, kernel_distance, moments


def features(n: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Make features like those of a network: correlated, not negative and far from Gaussian."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(7).standard_normal((width, width)) * np.linspace(1, 0.05, width)
    return np.maximum(rng.standard_normal((n, width)) @ mix * (1 + shift) / width**0.5 + shift, 0).astype(np.float32)


def rotation(width: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]


def pytorch_fid(first: Moments, second: Moments) -> float:
    """calculate_frechet_distance of pytorch-fid 0.3.0.

    It adds 1e-6 to the variances if sqrtm of a singular product is not finite, which depends on the
    version of scipy. Here it always does so if the product is singular.
    """
    one, other, width = first.covariance, second.covariance, len(first.mean)
    if np.linalg.matrix_rank(one @ other) < width:
        one, other = one + 1e-6 * np.eye(width), other + 1e-6 * np.eye(width)
    shift = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(shift @ shift + traces - 2 * np.trace(sqrtm(one @ other).real))


def torch_fidelity_fid(first: np.ndarray, second: np.ndarray) -> float:
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (first, second)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def torch_fidelity_kid(first: np.ndarray, second: np.ndarray, subsets: int, subset_size: int) -> float:
    settings = dict(kid_subsets=subsets, kid_subset_size=subset_size, verbose=False, rng_seed=0)
    found = kid_features_to_metric(torch.from_numpy(first), torch.from_numpy(second), **settings)
    return found["kernel_inception_distance_mean"]


def brute_force_kid(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the kernel distance by its definition, pair by pair."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x.astype(float) @ y) / len(x) + 1) ** 3

    m, n = len(first), len(second)
    a = sum(kernel(first[i], first[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    b = sum(kernel(second[i], second[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return a + b - 2 * sum(kernel(x, y) for x in first for y in second) / (m * n)


def test_moments_are_numpys_whatever_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(50, 6, 0) + 1000  # far from the origin, where E[x^2] - E[x]^2 would lose everything
    x[:, 2] = 3
    monkeypatch.setattr(distances, "TILE", 7)
    found = moments(x)
    assert found.mean == pytest.approx(x.astype(float).mean(0), rel=1e-14)
    assert found.covariance == pytest.approx(np.cov(x.astype(float), rowvar=False), rel=1e-11, abs=1e-16)
    assert found.covariance.dtype == np.float64


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.array([1.0, 4.0, 9.0, 0.25]), np.array([4.0, 1.0, 2.0, 0.01])),
        (np.array([1.0, 1e-12, 0.3, 1e-12]), np.array([1e-12, 1e-12, 0.2, 1.0])),
        (np.array([1.0, 0.0, 0.5, 0.0, 0.0]), np.array([0.7, 0.0, 0.0, 2.0, 0.0])),
        (np.array([1e6, 1.0, 1e-6, 1e-14]), np.array([2e6, 3.0, 4e-6, 5e-14])),  # features of different units
        (np.zeros(3), np.zeros(3)),
        (np.zeros(3), np.array([1.0, 2.0, 0.0])),
        (np.array([2.0]), np.array([8.0])),
    ],
    ids=["regular", "near-singular", "singular", "units", "two points", "point", "one-dimensional"],
)
@pytest.mark.parametrize("rotated", [False, True], ids=["diagonal", "commuting"])
def test_frechet_of_gaussians_that_commute(one: np.ndarray, other: np.ndarray, rotated: bool) -> None:
    # Closed form: |mu1 - mu2|^2 + sum (sqrt(a) - sqrt(b))^2 over the common eigenvectors.
    width = len(one)
    basis = rotation(width) if rotated and width > 1 else np.eye(width)
    shift = np.linspace(0.1, 0.5, width)
    first = Moments(np.zeros(width), basis * one @ basis.T)
    second = Moments(shift, basis * other @ basis.T)
    expected = shift @ shift + ((np.sqrt(one) - np.sqrt(other)) ** 2).sum()
    assert frechet(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet(second, first) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("least", [1.0, 1e-3, 1e-12, 0.0])
def test_frechet_of_gaussians_that_do_not_commute(least: float) -> None:
    # If C2 = T C1 T with T symmetric and positive, T is the optimal transport map, and the distance
    # is tr (T - 1) C1 (T - 1), without any square root.
    width = 40
    basis = rotation(width)
    spectrum = np.geomspace(1, max(least, 1e-3), width)
    spectrum[-5:] = least
    first = basis * spectrum @ basis.T
    other = rotation(width, 1)
    transport = other * np.linspace(0.5, 2, width) @ other.T
    rest = transport - np.eye(width)
    zero = np.zeros(width)
    found = frechet(Moments(zero, first), Moments(zero, transport @ first @ transport))
    assert found == pytest.approx(np.trace(rest @ first @ rest), rel=1e-7)


def test_frechet_where_small_variances_decide() -> None:
    # Half of the variances are 1e-12, and the distance is 1e-7 of the traces. Roots of eigenvalues
    # of C1 C2 have errors of 1e-8 each, which would add up to a tenth of the distance.
    width = 80
    basis, other = rotation(width), rotation(width, 1)
    first = basis * np.repeat([1.0, 1e-12], width // 2) @ basis.T
    transport = other * np.linspace(0.999, 1.001, width) @ other.T
    rest = transport - np.eye(width)
    zero = np.zeros(width)
    found = frechet(Moments(zero, first), Moments(zero, transport @ first @ transport))
    assert found == pytest.approx(np.trace(rest @ first @ rest), rel=1e-5)


def test_frechet_in_two_dimensions() -> None:
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for 2 x 2.
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    product = a @ b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    found = frechet(Moments(np.array([1.0, 0.0]), a), Moments(np.array([0.0, 2.0]), b))
    assert found == pytest.approx(5 + 3 + 4 - 2 * root, rel=1e-12)


@pytest.mark.parametrize("n", [400, 30], ids=["n > D", "n < D"])
def test_frechet_is_zero_for_the_same_and_never_below(n: int) -> None:
    x = features(n, 64, 0)
    assert 0 <= frechet_distance(x, x) < 1e-12
    assert frechet_distance(x, x[::-1].copy()) < 1e-12
    # For equal covariances, only the shift of the mean remains.
    assert frechet_distance(x, x + np.float32(2**-9)) == pytest.approx(64 * 2**-18, rel=1e-4)


def test_both_ways_to_singular_values_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = moments(features(100, 64, 0)), moments(features(90, 64, 1, 0.1))
    by_eigenvalues = frechet(first, second)
    monkeypatch.setattr(distances, "ACCURACY", 0.0)
    assert frechet(first, second) == pytest.approx(by_eigenvalues, rel=1e-9)


def test_frechet_against_torch_fidelity_and_pytorch_fid() -> None:
    first, second = features(500, 48, 0), features(400, 48, 1, 0.1)
    found = frechet_distance(first, second)
    # torch-fidelity gets float64: it averages float32 features in float32 (next assertion).
    assert found == pytest.approx(torch_fidelity_fid(first.astype(float), second.astype(float)), rel=1e-9)
    assert found == pytest.approx(torch_fidelity_fid(first, second), rel=1e-6)
    assert found == pytest.approx(pytorch_fid(moments(first), moments(second)), rel=1e-9)


def test_frechet_of_fewer_images_than_features_against_torch_fidelity_and_pytorch_fid() -> None:
    first, second = features(30, 48, 0), features(25, 48, 1, 0.1)
    found = frechet_distance(first, second)
    # tr (C1 C2)^(1/2) is also the sum of singular values of the Gram matrix of the centred sets.
    x, y = (f.astype(float) - f.astype(float).mean(0) for f in (first, second))
    overlap = np.linalg.svd(x @ y.T / np.sqrt(29 * 24), compute_uv=False).sum()
    shift = first.astype(float).mean(0) - second.astype(float).mean(0)
    exact = shift @ shift + (x**2).sum() / 29 + (y**2).sum() / 24 - 2 * overlap
    assert found == pytest.approx(exact, rel=1e-11)
    # Loose tolerances: torch-fidelity takes roots of eigenvalues that should be 0, and pytorch-fid
    # adds 1e-6 to variances.
    assert found == pytest.approx(torch_fidelity_fid(first.astype(float), second.astype(float)), rel=1e-5)
    theirs = pytorch_fid(moments(first), moments(second))
    assert found == pytest.approx(theirs, rel=1e-3)
    assert abs(found - exact) < 1e-3 * abs(theirs - exact)


def test_frechet_of_singular_gaussians_is_right_where_pytorch_fid_is_not() -> None:
    # The sets have rank 2 of 64, and the true distance is (sqrt(1.1) - 1)^2. The result of
    # pytorch-fid is the sum of 62 variances of 0 + 1e-6.
    one, other = np.zeros(64), np.zeros(64)
    one[:2], other[:2] = [1.0, 1.0], [1.1, 1.0]
    first, second = (Moments(np.zeros(64), np.diag(v)) for v in (one, other))
    exact = (1.1**0.5 - 1) ** 2
    assert frechet(first, second) == pytest.approx(exact, rel=1e-12)
    assert abs(pytorch_fid(first, second) - exact) > 1e-2 * exact


def test_kernel_distance_against_torch_fidelity() -> None:
    first, second = features(300, 32, 0), features(300, 32, 1, 0.1)
    estimate, _ = kernel_distance(first, second)
    # One subset of all images gives the same estimate. torch-fidelity computes it in float32.
    theirs = torch_fidelity_kid(first.astype(float), second.astype(float), 1, 300)
    assert estimate == pytest.approx(theirs, rel=1e-9)
    assert estimate == pytest.approx(torch_fidelity_kid(first, second, 1, 300), rel=1e-3)
    # The mean over subsets has the same expectation.
    assert estimate == pytest.approx(torch_fidelity_kid(first, second, 400, 100), rel=0.03)


def test_kernel_distance_is_unbiased_where_the_truth_is_known() -> None:
    # x = +-1 and y = +-2 in one dimension: E k(x, x') = (8 + 0) / 2, E k(y, y') = (125 - 27) / 2,
    # E k(x, y) = (27 - 1) / 2. The sum is 4 + 49 - 26 = 27.
    rng = np.random.default_rng(0)
    found = [kernel_distance(rng.choice([-1.0, 1.0], (9, 1)), rng.choice([-2.0, 2.0], (6, 1)))[0] for _ in range(1000)]
    # With the diagonals, (8 - 4) / 9 + (125 - 49) / 6 = 13 would be added.
    assert np.mean(found) == pytest.approx(27, abs=3)
    assert np.std(found) / 1000**0.5 < 0.75


def test_kernel_distance_and_its_error_against_brute_force() -> None:
    first, second = features(12, 5, 0), features(9, 5, 1, 0.3)
    estimate, error = kernel_distance(first, second)
    assert estimate == pytest.approx(brute_force_kid(first, second), rel=1e-12)
    left_out = [
        np.array([brute_force_kid(np.delete(first, i, 0), second) for i in range(12)]),
        np.array([brute_force_kid(first, np.delete(second, i, 0)) for i in range(9)]),
    ]
    jackknife = sum((len(v) - 1) / len(v) * ((v - v.mean()) ** 2).sum() for v in left_out)
    assert error == pytest.approx(jackknife**0.5, rel=1e-9)


def test_the_error_of_the_kernel_distance_is_the_spread_of_new_draws() -> None:
    draws = [kernel_distance(features(80, 8, 2 * i), features(120, 8, 2 * i + 1, 0.3)) for i in range(200)]
    estimates, errors = np.array(draws).T
    assert errors.mean() == pytest.approx(estimates.std(), rel=0.15)
    # For equal distributions the jackknife error of this degenerate estimate is sqrt(2) too large.
    draws = [kernel_distance(features(80, 8, 2 * i), features(80, 8, 2 * i + 1)) for i in range(200)]
    estimates, errors = np.array(draws).T
    assert abs(estimates.mean()) < 4 * estimates.std() / 200**0.5
    assert 0.9 < errors.mean() / estimates.std() < 1.7


def test_kernel_distance_does_not_depend_on_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = features(40, 6, 0), features(25, 6, 1, 0.2)
    whole = kernel_distance(first, second)
    monkeypatch.setattr(distances, "TILE", 7)
    assert kernel_distance(first, second) == pytest.approx(whole, rel=1e-11)
    assert kernel_distance(second, first) == pytest.approx(whole, rel=1e-11)


def test_features_of_different_extractors_are_refused() -> None:
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(
            ValueError, match="^features of 4 and of 5 dimensions cannot be compared: use one extractor"
        ):
            distance(features(9, 4, 0), features(9, 5, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_image_that_is_not_finite_is_named(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "TILE", 8)
    x = features(30, 4, 0)
    x[21, 2] = x[25, 0] = bad
    with pytest.raises(ValueError, match="moments: the features of image 21 are not finite"):
        moments(x)
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="^second: the features of image 21 are not finite"):
            distance(features(30, 4, 1), x)


def test_what_is_no_set_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"moments: features must have the shape \(N, D\), got \(4, 2, 2\)"):
        moments(np.zeros((4, 2, 2)))
    with pytest.raises(ValueError, match="moments: features of at least 2 images are needed, got 1"):
        moments(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="first: features of at least 3 images are needed, got 2"):
        kernel_distance(np.zeros((2, 4)), np.zeros((5, 4)))


def test_a_collapsed_set_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "TILE", 8)
    x = np.tile(features(1, 4, 0), (30, 1))
    with pytest.raises(ValueError, match="^runs/a: all 30 images have the same features"):
        distances.check_varied(x, "runs/a")
    x[29, 3] += 1e-2
    distances.check_varied(x, "runs/a")
