"""Measures against other people's formulas, and what is said with a number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny_model import OnlySamples, Tiny, TinyConfig
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from genmodels.data.packed import Packed
from genmodels.evaluation import metrics


def noisy_pairs(n: int = 4, height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, height, width, 3), np.uint8)
    others = np.clip(images.astype(int) + rng.integers(-40, 41, images.shape), 0, 255).astype(np.uint8)
    return images, others


def as_floats(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def faces(n: int = 20, size: int = 16) -> Packed:
    images = np.random.default_rng(1).integers(0, 256, (n, size, size, 3), np.uint8)
    return Packed(
        images=images,
        attributes=np.zeros((n, 0), np.int8),
        attribute_names=(),
        names=[f"{i}.png" for i in range(n)],
        splits=np.ones(n, np.uint8),
        manifest={"source": "random", "crop": "178", "filter": "lanczos", "size": size},
    )


def test_ssim_and_psnr_against_scikit_image() -> None:
    # scikit-image 0.26 on these pairs: structural_similarity(gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=255, channel_axis=2) and peak_signal_noise_ratio(data_range=255)
    images, others = noisy_pairs()
    ssim = metrics.ssim(as_floats(images), as_floats(others))
    psnr = metrics.psnr(as_floats(images), as_floats(others))
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
    found = metrics.ssim(as_floats(images), as_floats(others))
    assert found.tolist() == pytest.approx(expected.mean((1, 2, 3)).tolist(), abs=1e-9)


def test_psnr_measures_what_a_file_would_hold() -> None:
    images = torch.zeros(2, 3, 12, 12)  # 127.5, which rounds to 128
    others = images + torch.tensor([0.2, 2.4])[:, None, None, None] / 127.5  # 127.7 -> 128, 129.9 -> 130
    assert metrics.psnr(images, others).tolist() == [float("inf"), pytest.approx(10 * np.log10(255**2 / 4))]
    assert metrics.ssim(images, images).tolist() == pytest.approx([1.0, 1.0])
    beyond = torch.full((1, 3, 12, 12), 1.5)
    assert metrics.psnr(beyond, torch.ones(1, 3, 12, 12)).item() == float("inf")  # clamped


def test_ssim_refuses_what_is_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11 x 11 pixels, got 8 x 32"):
        metrics.ssim(torch.zeros(1, 3, 8, 32), torch.zeros(1, 3, 8, 32))


def test_lpips_says_in_one_line_where_its_weights_belong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        ValueError, match=r"alexnet weights at .*checkpoints.alexnet-owt.*copy the file there"
    ) as caught:
        metrics.load_lpips()
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'genmodels\[lpips\]'"):
        metrics.load_lpips()


def test_lpips_reads_weights_in_torchvisions_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    name = SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(squeezenet1_1().state_dict(), tmp_path / "checkpoints" / name)
    distance = metrics.load_lpips("squeeze")
    images, others = (as_floats(part) for part in noisy_pairs(2, 64, 64))
    values = distance(images, others)
    assert values.shape == (2,)
    assert (values > 1e-4).all()
    assert distance(images, images).abs().max() < 1e-6


def test_evaluate_scores_what_the_model_can_do() -> None:
    data = faces()
    result = metrics.evaluate(Tiny(TinyConfig(gain=0.5)), data, "valid", limit=10, batch_size=4)
    images = as_floats(data.images[:10])
    each = metrics.psnr(images, 0.5 * images)
    assert result.scores["psnr"].value == pytest.approx(each.mean().item(), abs=1e-9)
    assert result.scores["psnr"].error == pytest.approx(each.std().item() / 10**0.5, abs=1e-9)
    assert result.scores["bits_per_dim"].value == pytest.approx(images.abs().mean().item(), abs=1e-6)
    assert result.scores["bits_per_dim"].how.startswith("an upper bound")
    assert set(result.absent) == {"lpips"}


def test_every_number_carries_its_protocol() -> None:
    result = metrics.evaluate(Tiny(TinyConfig()), faces(), "valid", limit=50, seed=3)
    written = json.loads(result.to_json())
    for score in written["scores"].values():
        expected = {"family": "tiny", "data": "random", "split": "valid", "n": 20, "size": 16, "crop": "178", "seed": 3}
        assert score["protocol"].items() >= expected.items()
        assert score["protocol"]["filter"] == "lanczos"
        assert {"genmodels", "torch", "date", "data_fingerprint"} <= score["protocol"].keys()


def test_evaluate_names_what_cannot_be_measured() -> None:
    result = metrics.evaluate(OnlySamples(TinyConfig()), faces(), "valid")
    assert result.scores == {}
    assert result.absent["bits_per_dim"] == "only_samples has no likelihood"


def test_evaluate_refuses_images_of_another_size() -> None:
    with pytest.raises(ValueError, match="have 32 px, the model makes 16 px"):
        metrics.evaluate(Tiny(TinyConfig()), faces(size=32), "valid")
