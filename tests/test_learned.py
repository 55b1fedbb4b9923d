"""Extractors of one's own images: their views, training, and use by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import faces, recipe

import genmodels
from genmodels.evaluation.extractors import load_extractor
from genmodels.evaluation.learned import ExtractorConfig, LearnedExtractor
from genmodels.evaluation.views import DAMAGES, _places, random_view
from genmodels.training.fit import fit
from genmodels.types import Batch, Noise


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1) * 2 - 1


def test_a_view_depends_on_its_own_image_and_stream_only(images: torch.Tensor) -> None:
    views, seen = random_view(images, Noise.for_images(0, range(6)))
    assert views.shape == images.shape and seen.shape == (6, len(DAMAGES))
    assert views.abs().max() <= 1 and seen.min() >= 0 and seen.max() <= 1
    alone, strength = random_view(images[4:], Noise.for_images(0, [4, 5]))
    torch.testing.assert_close(alone, views[4:], rtol=0, atol=1 / 127)
    torch.testing.assert_close(strength, seen[4:])
    assert not torch.equal(random_view(images, Noise.for_images(1, range(6)))[0], views)


def moved(damage: str) -> torch.Tensor:
    """Return how far each pixel is read from where it is without that damage, (64, 32, 32, 2)."""
    undamaged = torch.zeros(64, len(DAMAGES))
    damaged = undamaged.clone()
    damaged[:, DAMAGES.index(damage)] = 0.5
    places = [_places(32, seen, Noise.for_images(0, range(64))) for seen in (undamaged, damaged)]
    return places[1] - places[0]


@pytest.mark.parametrize("damage", ["parts exchanged", "part flipped"])
def test_damage_to_parts_moves_some_pixels_and_leaves_the_others(damage: str) -> None:
    far = moved(damage).norm(dim=-1) > 1e-5
    assert 0.05 < far.float().mean() < 0.7


def test_warping_moves_all_pixels_a_little_and_smoothly() -> None:
    shift = moved("warped")
    assert (shift.norm(dim=-1) > 1e-5).float().mean() > 0.95
    assert (shift[:, 1:] - shift[:, :-1]).abs().mean() < 0.5 * shift.abs().mean()


def test_a_step_of_training_lowers_the_loss_and_uses_only_the_batch_noise(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = LearnedExtractor(ExtractorConfig(size=32)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss, metrics = model(Batch(images, Noise.for_images(0, range(6))))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert set(metrics) == {"same_image", "damage"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_it_is_trained_calibrated_and_used_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LearnedExtractor, "least_images", 96)
    data = faces(128, 32)
    run = fit(LearnedExtractor(ExtractorConfig(size=32)), data, recipe(tmp_path / "run", steps=2, size=32))
    assert isinstance(genmodels.load(run), LearnedExtractor)
    own = load_extractor(f"own={run}")
    assert own.name == f"own:{own.weights[:8]}" and "32" in own.resize
    with torch.inference_mode():
        features = own.network(torch.from_numpy(np.asarray(data.images[:64])).permute(0, 3, 1, 2).contiguous())
    assert features.shape[0] == 64 and features.std(0).gt(0).float().mean() > 0.5
    with pytest.raises(ValueError, match="own=RUN"):
        load_extractor("own")
    with pytest.raises(ValueError, match="nowhere"):
        load_extractor(f"own={tmp_path / 'nowhere'}")


def test_too_few_pictures_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="999 training images are too few .* at least 1,000"):
        fit(LearnedExtractor(ExtractorConfig(size=32)), faces(1_332, 32), recipe(tmp_path / "run", steps=2, size=32))
    assert not (tmp_path / "run").exists()


def test_bad_settings_are_refused() -> None:
    for settings, reason in ((dict(size=16), "at least 32"), (dict(temperature=0.0), "temperature")):
        with pytest.raises(ValueError, match=reason):
            ExtractorConfig(**settings)
