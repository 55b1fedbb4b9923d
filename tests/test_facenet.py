"""Extractor `faces`: its file, and distances that increase with damage to faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter

from genmodels.data.toyfaces import draw
from genmodels.evaluation.distances import frechet_distance
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.facenet import WEIGHTS, FaceNet, load_facenet, save_facenet
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images


def test_the_weights_are_in_the_package_and_small() -> None:
    assert WEIGHTS.stat().st_size < 3_000_000
    assert sum(p.numel() for p in FaceNet().parameters()) < 1_500_000


def test_it_is_the_network_of_the_file_and_sees_other_sizes() -> None:
    features, weights, resize = load_facenet()
    images = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8)
    net = FaceNet().eval()
    net.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()}, strict=False)
    small = torch.nn.functional.interpolate(images / 127.5 - 1, (64, 64), mode="bilinear", antialias=True)
    with torch.inference_mode():
        torch.testing.assert_close(features(images), net(small), rtol=1e-3, atol=1e-3)
    assert len(weights) == 16 and "64" in resize


def test_saving_and_loading_keeps_the_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = FaceNet().eval()
    save_facenet(net, tmp_path / "new" / "w.safetensors")
    features, weights, _ = load_facenet(tmp_path / "new" / "w.safetensors")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(features(images), net(images / 127.5 - 1), rtol=0.02, atol=0.02)  # half precision
    assert weights != load_facenet()[1]


def test_other_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(WEIGHTS.read_bytes()[:1000])
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "another")
    partial = dict(list(load_file(WEIGHTS).items())[1:])
    save_file(partial, tmp_path / "partial")
    for name, reason in (
        ("missing", "no such weights"),
        ("damaged", "not weights of"),
        ("another", "not weights of"),
        ("partial", "not weights of"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            load_facenet(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_its_distance_orders_damage() -> None:
    real, _ = draw(7, np.arange(600), 64)
    pixels = real[300:].astype(float)
    rng = np.random.default_rng(0)

    def levels(x: np.ndarray) -> np.ndarray:
        return np.clip(np.round(x), 0, 255).astype(np.uint8)

    series = {
        "blur": [levels(gaussian_filter(pixels, (0, s, s, 0))) for s in (1, 2)],
        "noise": [levels(pixels + rng.normal(0, s, pixels.shape)) for s in (15, 40)],
        "colour": [levels(pixels + s * np.array([1, 0, -1])) for s in (20, 45)],
        "one face": [np.repeat(real[300:330], 10, 0), np.repeat(real[300:303], 100, 0)],
    }
    faces = load_extractor("faces")

    def features(images: np.ndarray) -> np.ndarray:
        return extract(Images(images, "x"), faces, progress=False, cached=False)

    reference = features(real[:300])

    def distance(images: np.ndarray) -> float:
        return frechet_distance(features(images), reference)

    floor = distance(real[300:])
    for name, (weak, strong) in series.items():
        assert floor * 1.05 < distance(weak) < distance(strong), name
