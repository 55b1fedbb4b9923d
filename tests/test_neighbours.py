"""Metrics of nearest neighbours against torch-fidelity, brute force and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from genmodels.evaluation import distances
from genmodels.evaluation.neighbours import RIDGE, Manifold, Realism, diversity, manifold, memorisation, nearest


def draw(n: int, width: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, width)) * scale).astype(np.float32)


def pairwise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distances (M, N) by their definition: no products, no cancellation."""
    return np.array([[np.sqrt(((a - b) ** 2).sum()) for b in y.astype(float)] for a in x.astype(float)])


def naive(real: np.ndarray, fake: np.ndarray, k_pr: int = 3, k_dc: int = 5) -> Manifold:
    """The formulas of the papers on whole matrices of distances."""
    real_real, fake_fake, fake_real = pairwise(real, real), pairwise(fake, fake), pairwise(fake, real)
    real_pr, real_dc = np.sort(real_real)[:, k_pr], np.sort(real_real)[:, k_dc]  # each is its own neighbour 0
    fake_pr = np.sort(fake_fake)[:, k_pr]
    inside = fake_real < real_dc
    return Manifold(
        precision=(fake_real <= real_pr).any(axis=1).mean(),
        recall=(fake_real <= fake_pr[:, None]).any(axis=0).mean(),
        density=inside.sum() / (k_dc * len(fake)),
        coverage=inside.any(axis=0).mean(),
    )


def on_line(*positions: float) -> np.ndarray:
    return np.array(positions, np.float32)[:, None]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_against_torch_fidelity(k: int) -> None:
    real, fake = draw(700, 12, 0), draw(500, 12, 1, 0.9)
    settings = dict(prc_neighborhood=k, prc_batch_size=10_000, save_cpu_ram=False, verbose=False)
    theirs = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), **settings)
    found = manifold(real, fake, k_pr=k)
    assert found.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert found.recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0.1 < found.recall < found.precision < 1


def test_manifold_against_the_papers_formulas() -> None:
    real, fake = draw(90, 4, 0), draw(70, 4, 1, 0.8) + np.float32(0.4)
    assert manifold(real, fake) == naive(real, fake)
    assert manifold(real, fake, k_pr=4, k_dc=2) == naive(real, fake, 4, 2)


def test_manifold_on_a_line_by_hand() -> None:
    # k = 1: real balls 0 +- 1, 1 +- 1, 4 +- 3, and fake balls 1.5 +- 1, 2.5 +- 1, 9 +- 6.5.
    found = manifold(on_line(0, 1, 4), on_line(1.5, 2.5, 9), k_pr=1, k_dc=1)
    assert found.precision == pytest.approx(2 / 3)  # 9 is in none
    assert found.recall == pytest.approx(2 / 3)  # 1 and 4; 0 is in none
    # Open balls: 1.5 is in those of 1 and 4, 2.5 in that of 4.
    assert found.density == pytest.approx(3 / 3)
    assert found.coverage == pytest.approx(2 / 3)


def test_near_neighbours_far_from_the_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four clusters, 4,000 apart and 1 wide, all far from the origin. In float32 the error of
    # |x|^2 + |y|^2 - 2 x.y would exceed the squared radius.
    corners = np.random.default_rng(5).choice([-2000.0, 2000.0], (4, 8)) + 10_000
    real = (draw(80, 8, 0) + corners[np.arange(80) % 4]).astype(np.float32)
    fake = (draw(60, 8, 1) + corners[np.arange(60) % 4]).astype(np.float32)
    assert manifold(real, fake) == naive(real, fake)
    monkeypatch.setattr(distances, "TILE", 13)
    assert manifold(real, fake) == naive(real, fake)


def test_a_set_covers_itself_ties_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every image lies on the boundary of its neighbours' balls. Open balls contain k - 1 other
    # images and their centre.
    x = draw(200, 64, 0)
    assert manifold(x, x) == Manifold(precision=1, recall=1, density=1, coverage=1)
    monkeypatch.setattr(distances, "TILE", 23)
    assert manifold(x, x[::-1].copy()) == Manifold(precision=1, recall=1, density=1, coverage=1)


def test_density_and_coverage_of_one_distribution_are_as_their_paper_says() -> None:
    # arXiv 2002.09797: E density = 1, and E coverage is the probability that one of the k nearest
    # neighbours of a real image is fake, 1 - (N - 1) ... (N - k) / ((M + N - 1) ... (M + N - k)).
    # It is about 1 - 2^-k for N = M.
    found = [manifold(draw(300, 16, 2 * i), draw(300, 16, 2 * i + 1), k_dc=3) for i in range(8)]
    assert np.mean([m.density for m in found]) == pytest.approx(1, abs=0.08)
    assert np.mean([m.coverage for m in found]) == pytest.approx(1 - 299 * 298 * 297 / (599 * 598 * 597), abs=0.015)


def test_manifold_does_not_depend_on_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = draw(83, 5, 0), draw(61, 5, 1, 0.8)
    whole = manifold(real, fake)
    for tile in (3, 10, 61):
        monkeypatch.setattr(distances, "TILE", tile)
        assert manifold(real, fake) == whole


def test_manifold_refuses_too_few_images() -> None:
    with pytest.raises(ValueError, match="real: 5 images have no neighbour number 5; choose k from 1 to 4"):
        manifold(draw(5, 3, 0), draw(9, 3, 1))
    with pytest.raises(ValueError, match="fake: 3 images have no neighbour number 3"):
        manifold(draw(9, 3, 0), draw(3, 3, 1))
    with pytest.raises(ValueError, match="have no neighbour number 0"):
        manifold(draw(9, 3, 0), draw(9, 3, 1), k_pr=0, k_dc=0)
    assert manifold(draw(6, 3, 0), draw(4, 3, 1)) == naive(draw(6, 3, 0), draw(4, 3, 1))


def test_bad_features_are_refused() -> None:
    good, bad = draw(9, 3, 0), draw(9, 3, 1)
    bad[4, 1] = np.nan
    with pytest.raises(ValueError, match="fake: the features of image 4 are not finite"):
        manifold(good, bad)
    with pytest.raises(ValueError, match="database: the features of image 4 are not finite"):
        nearest(good, bad)
    with pytest.raises(ValueError, match="held-out: the features of image 4 are not finite"):
        memorisation(good, good, bad)
    with pytest.raises(ValueError, match="diversity: the features of image 4 are not finite"):
        diversity(bad)
    for call in (manifold, nearest):
        with pytest.raises(ValueError, match="features of 3 and of 2 dimensions cannot be compared"):
            call(good, draw(9, 2, 0))


def test_nearest_against_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, database = draw(50, 12, 0) + np.float32(300), draw(70, 12, 1) + np.float32(300)
    queries[7] = database[33]
    expected = pairwise(queries, database)
    for tile in (2048, 16):
        monkeypatch.setattr(distances, "TILE", tile)
        found, index = nearest(queries, database)
        assert index.tolist() == expected.argmin(axis=1).tolist()
        assert found == pytest.approx(expected.min(axis=1), rel=1e-12)
        assert found[7] == 0 and index[7] == 33


def test_memorisation_by_hand() -> None:
    train = on_line(0, 10, 20, 30)
    held_out = on_line(1, 12, 23)  # 1, 2 and 3 away
    found = memorisation(on_line(10.5, 27, 0.25, 18, 31), train, held_out)  # 0.5, 3, 0.25, 2 and 1 away
    assert found.ratio == 1 / 2
    assert found.share == 3 / 5  # at most 1 away
    assert found.order.tolist() == [2, 0, 4, 3, 1]
    assert found.partner.tolist() == [1, 3, 0, 2, 3]


def test_the_nearest_hundredth_of_99_images_is_the_nearest_one() -> None:
    # 99 distances part the line into 100 ranges that a new one is equally likely to fall into.
    found = memorisation(on_line(0.9, 1.1, 1.9, 5), on_line(0), on_line(*range(1, 100)))
    assert found.share == 1 / 4


def test_memorisation_tells_copies_from_new_images() -> None:
    train, held_out = draw(400, 8, 0), draw(400, 8, 1)
    honest = [memorisation(draw(400, 8, 10 + i), train, held_out) for i in range(10)]
    assert np.mean([m.ratio for m in honest]) == pytest.approx(1, abs=0.03)
    assert np.mean([m.share for m in honest]) == pytest.approx(0.01, abs=0.006)

    copies = train[:200] + draw(200, 8, 3, 0.01)
    found = memorisation(copies, train, held_out)
    assert found.ratio < 0.05 and found.share == 1
    assert found.partner.tolist() == list(range(200))

    # One sample in ten is a copy, the others are far from everything. Only the share detects it.
    mixed = memorisation(np.concatenate([draw(360, 8, 4, 1.5), train[:40]]), train, held_out)
    assert mixed.ratio > 1 and mixed.share == pytest.approx(0.1, abs=0.02)
    assert sorted(mixed.order[:40]) == list(range(360, 400))


def test_memorisation_refuses_training_images_as_held_out() -> None:
    train = draw(50, 4, 0)
    with pytest.raises(ValueError, match="^80% of the held-out images are training images: hold out images of another"):
        memorisation(draw(50, 4, 1), train, np.concatenate([train[:40], draw(10, 4, 2)]))


def test_realism_by_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    real = draw(60, 4, 0) * np.array([5, 1, 1, 0.1], np.float32) + 20
    fake = draw(40, 4, 1) * np.array([5, 1, 2, 0.3], np.float32) + 20
    variances, axes = np.linalg.eigh(np.cov(real.astype(float).T))
    white_real, white_fake = (
        (x - real.mean(0)) @ axes / np.sqrt(variances + RIDGE * variances.mean()) for x in (real, fake)
    )
    radii = np.sort(pairwise(white_real, white_real))[:, 3]  # each is its own neighbour 0
    expected = (radii / pairwise(white_fake, white_real)).max(axis=1)
    assert expected.min() < 0.6 and expected.max() > 1
    assert Realism(real)(fake) == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(distances, "TILE", 7)
    assert Realism(real)(fake) == pytest.approx(expected, rel=1e-4)


def test_realism_of_copies_and_of_what_is_far_away() -> None:
    real = draw(200, 6, 0)
    real[1:5] = real[0]  # its ball is one point
    scores = Realism(real)(np.concatenate([real[10:12], real[:1] + 1e-9, np.full((1, 6), 1000, np.float32)]))
    assert (scores[:2] > 1e4).all() and np.isfinite(scores[2:]).all() and scores[3] < 0.01
    with pytest.raises(ValueError, match="features of at least 4 images are needed, got 3"):
        Realism(real[10:13])
    with pytest.raises(ValueError, match="all 5 images have the same features"):
        Realism(real[:5])
    with pytest.raises(ValueError, match="of 7 and of 6 dimensions"):
        Realism(real)(draw(2, 7, 0))


def test_diversity_of_a_gaussian() -> None:
    # |x - y| of independent normals in 3 dimensions is sqrt(2) times a chi variable with 3 degrees
    # of freedom, with mean 4 / sqrt(pi).
    mean, error = diversity(draw(20_001, 3, 0))
    assert mean == pytest.approx(4 / np.pi**0.5, abs=4 * error)
    assert error == pytest.approx((6 - 16 / np.pi) ** 0.5 / 100, rel=0.03)  # its variance is 6 - mean^2; 10,000 pairs
    assert diversity(draw(20_001, 3, 0)) == (mean, error)


def test_diversity_compares_across_the_whole_set() -> None:
    # Ten kinds of image, sorted as samples by class would be: consecutive images are alike, and
    # random pairs are not.
    blocks = on_line(*np.repeat(np.arange(10.0), 200))
    assert diversity(blocks)[0] == pytest.approx(3.3, abs=0.25)  # E |i - j| for i, j in 0 ... 9
    assert diversity(np.zeros((10, 4))) == (0, 0)
    with pytest.raises(ValueError, match="diversity: features of at least 4 images are needed, got 3"):
        diversity(draw(3, 4, 0))
