"""Procedural faces: deterministic, the same at every size, with visible attributes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score

from genmodels.data.toyfaces import ATTRIBUTES, draw


@pytest.fixture(scope="module")
def faces() -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    return draw(0, np.arange(3000), 48)


@pytest.fixture(scope="module")
def holds(faces: tuple[NDArray[np.uint8], NDArray[np.int8]]) -> dict[str, NDArray[np.bool_]]:
    return {name: faces[1][:, k] == 1 for k, name in enumerate(ATTRIBUTES)}


def test_the_attributes_are_celebas() -> None:
    assert len(set(ATTRIBUTES)) == len(ATTRIBUTES) >= 16
    assert list(ATTRIBUTES) == sorted(ATTRIBUTES)
    assert {"Smiling", "Male", "Eyeglasses", "Bald", "Mouth_Slightly_Open", "No_Beard", "Young"} <= set(ATTRIBUTES)


def test_shapes_and_dtypes() -> None:
    images, attributes = draw(0, np.arange(3), 40)
    assert (images.shape, images.dtype) == ((3, 40, 40, 3), np.uint8)
    assert (attributes.shape, attributes.dtype) == ((3, len(ATTRIBUTES)), np.int8)
    assert set(np.unique(attributes)) == {-1, 1}
    empty, none = draw(0, np.arange(0), 40)
    assert (empty.shape, none.shape) == ((0, 40, 40, 3), (0, len(ATTRIBUTES)))


@pytest.mark.parametrize("size", [33, 64])
def test_a_face_depends_on_seed_and_index_only(size: int) -> None:
    images, attributes = draw(5, np.arange(100), size)
    order = np.array([99, 3, 42, 17, 3])
    again, same = draw(5, order, size)
    np.testing.assert_array_equal(again, images[order])
    np.testing.assert_array_equal(same, attributes[order])
    alone, _ = draw(5, np.array([42]), size)
    np.testing.assert_array_equal(alone[0], images[42])
    assert len({hashlib.sha256(image.tobytes()).hexdigest() for image in images}) == 100
    other, _ = draw(6, np.arange(100), size)
    assert not np.array_equal(other[42], images[42])


def test_large_indices_and_negative_seeds_are_worlds_of_their_own() -> None:
    images, _ = draw(-1, np.array([0, 2**40, 2**40 + 1]), 32)
    assert len(np.unique(images.reshape(3, -1), axis=0)) == 3


@pytest.mark.parametrize("size", [32, 128, 256])
def test_another_size_is_the_same_picture(size: int) -> None:
    """Images of one face at any size are the same after reduction to 32 px, other faces differ."""

    def small(side: int) -> NDArray[np.float64]:
        images = draw(0, np.arange(8), side)[0].astype(np.float64)
        return images.reshape(8, 32, side // 32, 32, side // 32, 3).mean((2, 4))

    reference, scaled = small(64), small(size)
    error = np.sqrt(((reference[:, None] - scaled[None]) ** 2).mean((2, 3, 4)))  # (8, 8)
    assert np.diag(error).max() < 9
    assert error[~np.eye(8, dtype=bool)].min() > 25


def test_attributes_are_consistent(holds: dict[str, NDArray[np.bool_]]) -> None:
    hair = [holds[name] for name in ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")]
    assert np.sum(hair, axis=0).max() == 1
    for name in ("Bangs", "Straight_Hair", "Wavy_Hair", "Receding_Hairline", "Black_Hair", "Gray_Hair"):
        assert not (holds["Bald"] & holds[name]).any(), name
    assert not (holds["Straight_Hair"] & holds["Wavy_Hair"]).any()
    whiskers = holds["Goatee"] | holds["Mustache"] | holds["5_o_Clock_Shadow"]
    assert not (holds["No_Beard"] & whiskers).any()
    assert not (whiskers & ~holds["Male"]).any()
    assert not (holds["Wearing_Lipstick"] & holds["Male"]).any()


def test_frequencies_are_plausible(holds: dict[str, NDArray[np.bool_]]) -> None:
    share = {name: flags.mean() for name, flags in holds.items()}
    assert all(0.015 < p < 0.9 for p in share.values()), share
    for name, celeba in {"Male": 0.42, "Smiling": 0.48, "Young": 0.77, "No_Beard": 0.83, "Eyeglasses": 0.07}.items():
        assert abs(share[name] - celeba) < 0.06, (name, share[name])


@pytest.fixture(scope="module")
def scores(faces: tuple[NDArray[np.uint8], NDArray[np.int8]]) -> dict[str, float]:
    """Compute the ROC AUC of a linear probe on pixels, per attribute, on held-out faces."""
    pixels = faces[0].reshape(len(faces[0]), -1).astype(np.float32) / 127.5 - 1
    train, test = pixels[:2200], pixels[2200:]
    probe = RidgeClassifier(alpha=300).fit(train, faces[1][:2200])
    guesses = probe.decision_function(test)
    return {name: roc_auc_score(faces[1][2200:, k], guesses[:, k]) for k, name in enumerate(ATTRIBUTES)}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_can_be_read_from_pixels(name: str, scores: dict[str, float]) -> None:
    """Chance is 0.5 with a standard error of about 0.02 to 0.06."""
    assert scores[name] > 0.64


@pytest.mark.parametrize(
    ("indices", "size", "message"),
    [
        (np.arange(4).reshape(2, 2), 64, "vector of non-negative integers"),
        (np.array([0.5]), 64, "vector of non-negative integers"),
        (np.array([-1]), 64, "vector of non-negative integers"),
        (np.arange(2), 0, "size must be"),
        (np.arange(2), 5000, "size must be"),
    ],
)
def test_bad_input_is_refused(indices: NDArray[np.int64], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(0, indices, size)
