"""Whether samples have the attributes that were asked of them, as a linear probe of real faces sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

LEAST = 20
"""An attribute is left out when fewer images have it, or do not, among those the probe is fitted to or tested on."""
SHRINKAGE = 0.01
"""Of the probe: the ridge added to the features' correlation matrix."""


@dataclass(frozen=True)
class AttributeAccuracy:
    """How often a probe finds the attributes that samples were asked to have.

    Accuracies are balanced: the mean of the accuracy where the answer is yes and of that where it is no. So samples
    that ignore the condition get 0.5 for every attribute, however rare it is; by plain accuracy, faces that are never
    bald would get 0.98 where 2 % were to be bald.

    Attributes:
        mean: over the attributes, for samples.
        ceiling: the same for held-out real images: as well as the probe can see.
        samples: by attribute.
        real: by attribute, for held-out real images.
        left_out: attributes that are in none of these, and why.
    """

    mean: float
    ceiling: float
    samples: dict[str, float]
    real: dict[str, float]
    left_out: dict[str, str]


def attribute_accuracy(
    sample_features: np.ndarray,
    asked: np.ndarray,
    train_features: np.ndarray,
    train_attributes: np.ndarray,
    held_out_features: np.ndarray,
    held_out_attributes: np.ndarray,
    names: tuple[str, ...],
) -> AttributeAccuracy:
    """Fit a linear probe per attribute to real training images and let it judge samples and held-out real images.

    The probe is ridge regression to -1 and +1 on standardised features, in which yes and no weigh the same.

    Args:
        sample_features: (N, D).
        asked: what each sample was asked to be, (N, K) in {-1, 0, +1}: no, not asked, yes.
        train_features: (M, D).
        train_attributes: what is known of them, (M, K) in {-1, 0, +1}: no, unknown, yes.
        held_out_features: (L, D) of real images that the model was not trained on.
        held_out_attributes: (L, K).
        names: of the K attributes.

    Raises:
        ValueError: when shapes do not agree, or no attribute has enough images.
    """
    sets = {
        "samples": (sample_features, asked),
        "training images": (train_features, train_attributes),
        "held-out images": (held_out_features, held_out_attributes),
    }
    for what, (features, attributes) in sets.items():
        expected = (len(features), len(names))
        if attributes.shape != expected or features.shape[1] != train_features.shape[1]:
            raise ValueError(
                f"attributes of {what} must be {expected} for features {features.shape}, got {attributes.shape}; "
                f"features of the training images are {train_features.shape}"
            )
    left_out = {name: reason for k, name in enumerate(names) if (reason := _too_few(sets, k))}
    chosen = [(k, name) for k, name in enumerate(names) if name not in left_out]
    if not chosen:
        raise ValueError(f"no attribute has {LEAST} images with and {LEAST} without it in every set: {left_out}")
    scaler = StandardScaler().fit(train_features)
    train, samples, held_out = (scaler.transform(f) for f in (train_features, sample_features, held_out_features))
    found: dict[str, float] = {}
    real: dict[str, float] = {}
    for k, name in chosen:
        known = train_attributes[:, k] != 0
        probe = RidgeClassifier(alpha=SHRINKAGE * known.sum(), class_weight="balanced", solver="cholesky")
        probe.fit(train[known], train_attributes[known, k])
        found[name] = _balanced(probe.predict(samples), asked[:, k])
        real[name] = _balanced(probe.predict(held_out), held_out_attributes[:, k])
    return AttributeAccuracy(float(np.mean([*found.values()])), float(np.mean([*real.values()])), found, real, left_out)


def _too_few(sets: dict[str, tuple[np.ndarray, np.ndarray]], k: int) -> str:
    """Why attribute k cannot be measured; "" when it can."""
    for what, (_, attributes) in sets.items():
        for word, value in (("with", 1), ("without", -1)):
            if (count := int((attributes[:, k] == value).sum())) < LEAST:
                return f"{count} of the {what} are {word} it, {LEAST} are needed"
    return ""


def _balanced(found: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy where `truth` is +1 and where it is -1, averaged; where it is 0, nothing was asked."""
    return float(np.mean([np.mean(found[truth == value] == value) for value in (1, -1)]))
