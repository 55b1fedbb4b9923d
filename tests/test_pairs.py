"""Metrics of image pairs against reference implementations, and the scores based on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny_model import Tiny, TinyConfig
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from genmodels.evaluation import pairs
from genmodels.evaluation.diversity import lpips_diversity
from genmodels.evaluation.likelihood import likelihood_score
from genmodels.evaluation.protocol import Protocol
from genmodels.nn.likelihood import LikelihoodKind
from genmodels.nn.perceptual import load_lpips
from genmodels.types import Noise

PROTOCOL = Protocol(data="random", split="valid", size=32, n=10)


def noisy_pairs(n: int = 4, height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, height, width, 3), np.uint8)
    others = np.clip(images.astype(int) + rng.integers(-40, 41, images.shape), 0, 255).astype(np.uint8)
    return images, others


def as_floats(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_ssim_and_psnr_against_scikit_image() -> None:
    # Values of scikit-image 0.26: structural_similarity(gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=255, channel_axis=2) and
    # peak_signal_noise_ratio(data_range=255).
    images, others = noisy_pairs()
    ssim = pairs.ssim(as_floats(images), as_floats(others))
    psnr = pairs.psnr(as_floats(images), as_floats(others))
    assert ssim.tolist() == pytest.approx([0.9554109913, 0.9560343166, 0.9529241613, 0.9521728496], abs=1e-9)
    assert psnr.tolist() == pytest.approx([21.0086119842, 21.1809909464, 20.9608636969, 21.1422497714], abs=1e-8)


def test_ssim_against_scipy_filters() -> None:
    images, others = noisy_pairs(2, 40, 19)

    def mean(values: np.ndarray) -> np.ndarray:  # over each window wholly inside the image
        return gaussian_filter(values, (0, 1.5, 1.5, 0), truncate=3.5)[:, 5:-5, 5:-5]

    a, b = images.astype(float), others.astype(float)
    cov = mean(a * b) - mean(a) * mean(b)
    var = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mean(a) * mean(b) + c1) * (2 * cov + c2) / ((mean(a) ** 2 + mean(b) ** 2 + c1) * (var + c2))
    found = pairs.ssim(as_floats(images), as_floats(others))
    assert found.tolist() == pytest.approx(expected.mean((1, 2, 3)).tolist(), abs=1e-9)


def test_psnr_measures_what_a_file_would_hold() -> None:
    images = torch.zeros(2, 3, 12, 12)  # 127.5, which rounds to 128
    others = images + torch.tensor([0.2, 2.4])[:, None, None, None] / 127.5  # 127.7 -> 128, 129.9 -> 130
    assert pairs.psnr(images, others).tolist() == [float("inf"), pytest.approx(10 * np.log10(255**2 / 4))]
    assert pairs.ssim(images, images).tolist() == pytest.approx([1.0, 1.0])
    beyond = torch.full((1, 3, 12, 12), 1.5)
    assert pairs.psnr(beyond, torch.ones(1, 3, 12, 12)).item() == float("inf")  # clamped


def test_ssim_refuses_what_is_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11 x 11 pixels, got 8 x 32"):
        pairs.ssim(torch.zeros(1, 3, 8, 32), torch.zeros(1, 3, 8, 32))


def test_lpips_says_in_one_line_where_its_weights_belong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        ValueError, match=r"alexnet weights at .*checkpoints.alexnet-owt.*copy the file there"
    ) as caught:
        load_lpips()
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'genmodels\[lpips\]'"):
        load_lpips()


def test_lpips_reads_weights_in_torchvisions_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    name = SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(squeezenet1_1().state_dict(), tmp_path / "checkpoints" / name)
    distance = load_lpips("squeeze")
    images, others = (as_floats(part) for part in noisy_pairs(2, 64, 64))
    values = distance(images, others)
    assert values.shape == (2,)
    assert (values > 1e-4).all()
    assert distance(images, images).abs().max() < 1e-6


def test_scores_are_means_over_pairs_with_their_errors_and_protocol() -> None:
    images, others = noisy_pairs(10)
    scores = pairs.pair_scores(images, others, lambda a, b: (a - b).abs().amax((1, 2, 3)), PROTOCOL, batch_size=4)
    assert list(scores) == ["psnr", "ssim", "lpips"]
    each = pairs.psnr(as_floats(images), as_floats(others))
    assert scores["psnr"].value == pytest.approx(each.mean().item(), abs=1e-9)
    assert scores["psnr"].error == pytest.approx(each.std().item() / 10**0.5, abs=1e-9)
    largest = np.abs(images.astype(int) - others).max((1, 2, 3)) / 127.5
    assert scores["lpips"].value == pytest.approx(largest.mean(), abs=1e-6)
    assert [score.better for score in scores.values()] == ["higher", "higher", "lower"]
    assert {score.group for score in scores.values()} == {"reconstruction"}
    assert scores["psnr"].protocol == scores["ssim"].protocol == PROTOCOL
    assert "alexnet" in str(scores["lpips"].protocol.weights)


def test_without_lpips_there_is_no_lpips_and_without_a_spread_no_error() -> None:
    scores = pairs.pair_scores(*noisy_pairs(1), None, PROTOCOL)
    assert set(scores) == {"psnr", "ssim"}
    assert scores["psnr"].error is None
    with pytest.raises(ValueError, match=r"\(4, 24, 32, 3\) and reconstructions \(3, 24, 32, 3\) must have"):
        pairs.pair_scores(noisy_pairs()[0], noisy_pairs(3)[1], None, PROTOCOL)


def test_a_likelihood_says_whether_it_is_a_bound() -> None:
    images = as_floats(noisy_pairs(10)[0])
    model = Tiny(TinyConfig())
    score = likelihood_score(model, images.split(4), 3, PROTOCOL)
    assert score.value == pytest.approx(images.abs().mean().item(), abs=1e-6)
    assert score.how.startswith("an upper bound")
    assert (score.group, score.unit, score.protocol) == ("likelihood", "bits/dim", PROTOCOL)
    model.likelihood_kind = LikelihoodKind(exact=True)
    assert likelihood_score(model, images.split(4), 3, PROTOCOL).how == "exact"


def test_the_noise_of_a_likelihood_does_not_depend_on_the_batches() -> None:
    class Noisy(Tiny):
        def bits_per_dim(self, images: torch.Tensor, noise: Noise) -> torch.Tensor:
            return noise.uniform()

    images = as_floats(noisy_pairs(10)[0])
    model = Noisy(TinyConfig())
    values = [likelihood_score(model, images.split(n), 3, PROTOCOL).value for n in (10, 4, 1)]
    assert values[1:] == values[:1] * 2
    assert likelihood_score(model, images.split(4), 4, PROTOCOL).value != values[0]


def test_diversity_is_the_mean_over_disjoint_pairs_from_the_whole_set() -> None:
    levels = np.array([0, 10, 40, 90, 100, 120, 200, 255], np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (8, 12, 12, 3))

    def distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).abs().mean((1, 2, 3)) * 127.5

    value, error = lpips_diversity(images, distance)
    expected = np.array([100, 110, 160, 165])  # 0 with 4, 1 with 5, ...
    assert value == pytest.approx(expected.mean(), rel=1e-5)
    assert error == pytest.approx(expected.std(ddof=1) / 2, rel=1e-5)
    assert lpips_diversity(images, distance, pairs=2)[0] == pytest.approx((100 + 160) / 2, rel=1e-5)
    many = np.repeat(images, 20, axis=0)  # more than one batch
    assert lpips_diversity(many, distance)[0] == pytest.approx(expected.mean(), rel=1e-5)
    assert lpips_diversity(images[[3] * 8], distance) == (0.0, 0.0)
    with pytest.raises(ValueError, match="two pairs of different images, got 3 images"):
        lpips_diversity(images[:3], distance)
