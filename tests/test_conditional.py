"""Linear probe of conditional samples, on features that encode known attributes."""

from __future__ import annotations

import numpy as np
import pytest

from genmodels.evaluation.conditional import AttributeAccuracy, attribute_accuracy

NAMES = ("Smiling", "Bald", "Male")
RATES = (0.5, 0.05, 0.3)


def attributes(n: int, seed: int) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random((n, 3)) < RATES, 1, -1).astype(np.int8)


def features(shown: np.ndarray, seed: int, noise: float = 0.3) -> np.ndarray:
    """Make features (N, 16): attributes mixed by a matrix, plus noise, on different scales."""
    rng = np.random.default_rng(99)
    mixing, scales = rng.normal(size=(3, 16)), np.geomspace(0.01, 100, 16)
    noises = np.random.default_rng(seed).normal(size=(len(shown), 16))
    return ((shown @ mixing + noise * noises) * scales + 5).astype(np.float32)


def accuracy(samples: np.ndarray, asked: np.ndarray, known: np.ndarray | None = None) -> AttributeAccuracy:
    train, held_out = attributes(2000, 1), attributes(1000, 2)
    return attribute_accuracy(
        samples, asked, features(train, 3), train if known is None else known, features(held_out, 4), held_out, NAMES
    )


def test_samples_that_show_what_was_asked_reach_the_ceiling() -> None:
    asked = attributes(1000, 5)
    found = accuracy(features(asked, 6), asked)
    assert found.ceiling > 0.98
    assert found.mean == pytest.approx(found.ceiling, abs=0.01)
    assert list(found.samples) == list(found.real) == list(NAMES)
    assert found.mean == pytest.approx(np.mean(list(found.samples.values())))
    assert found.left_out == {}
    assert found == accuracy(features(asked, 6), asked)
    # The ceiling shows which attributes the probe cannot detect.
    assert accuracy(features(asked, 6, noise=9), asked).mean < 0.75


def test_samples_that_ignore_the_condition_get_one_half_however_rare_the_attribute() -> None:
    asked = attributes(4000, 5)
    found = accuracy(features(attributes(4000, 7), 6), asked)
    for name in NAMES:
        assert found.samples[name] == pytest.approx(0.5, abs=0.05)
        assert found.real[name] > 0.97
    nobody = accuracy(features(np.full_like(asked, -1), 6), asked)  # one in 20 is requested to be bald
    assert nobody.samples["Bald"] == pytest.approx(0.5, abs=0.02)


def test_samples_that_do_the_opposite_get_nothing() -> None:
    asked = attributes(1000, 5)
    assert accuracy(features(-asked, 6), asked).mean < 0.03


def test_what_was_not_asked_or_is_not_known_does_not_count() -> None:
    asked = attributes(1000, 5)
    shown = asked.copy()
    shown[:500, 0] *= -1
    open_ = asked.copy()
    open_[:500, 0] = 0  # where the first attribute is wrong, it was not requested
    assert accuracy(features(shown, 6), asked).samples["Smiling"] == pytest.approx(0.5, abs=0.05)
    assert accuracy(features(shown, 6), open_).samples["Smiling"] > 0.97
    known = attributes(2000, 1)
    known[:1000, 0] *= -1  # half of the labels are wrong: the probe learns nothing
    assert accuracy(features(asked, 6), asked, known).samples["Smiling"] < 0.8
    known[:1000, 0] = 0
    assert accuracy(features(asked, 6), asked, known).samples["Smiling"] > 0.97


def test_attributes_with_few_images_of_a_kind_are_named() -> None:
    asked, known = attributes(1000, 5), attributes(2000, 1)
    asked[:, 2] = 1
    known[np.flatnonzero(known[:, 1] == 1)[19:], 1] = 0
    found = accuracy(features(asked, 6), asked, known)
    assert found.left_out == {
        "Bald": "19 of the training images are with it, 20 are needed",
        "Male": "0 of the samples are without it, 20 are needed",
    }
    assert found.mean == found.samples["Smiling"]
    with pytest.raises(ValueError, match="no attribute has 20 images with and 20 without"):
        accuracy(features(asked, 6), np.zeros_like(asked))


def test_sets_that_do_not_agree() -> None:
    asked = attributes(100, 5)
    with pytest.raises(ValueError, match=r"attributes of samples must be \(100, 3\).*got \(90, 3\)"):
        accuracy(features(asked, 6), asked[:90])
    with pytest.raises(ValueError, match=r"features \(100, 15\).*training images are \(2000, 16\)"):
        accuracy(features(asked, 6)[:, :15], asked)
