"""A linear probe of features, which shows whether samples have what was requested."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

LEAST = 20
"""Smallest number of images of a class, in each of the sets, for which it is measured."""
SHRINKAGE = 0.01
"""Ridge of the probe, relative to the correlation matrix of the features."""


def standardised(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Shift and scale the features (N, D) of all sets so that those of `train` have mean 0 and
    standard deviation 1."""
    scaler = StandardScaler().fit(train)
    return [scaler.transform(features) for features in (train, *others)]


def predictions(train: np.ndarray, classes: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Fit a linear classifier to training images and return the classes that it predicts for
    others.

    It is ridge regression to +1 for an image's class and -1 for all others, followed by linear
    discriminant analysis of the outputs. All classes have the same weight, however many images they
    have. With two classes, the prediction is the sign of the regression. With more, the largest
    output would hardly ever be that of a class whose features lie between those of others (Hastie
    et al., The Elements of Statistical Learning, 4.2 and 12.5).

    Args:
        train: standardised features (M, D).
        classes: their classes, integers (M,), of at least two kinds.
        *others: standardised features (N, D) of other images.

    Returns:
        integers (N,) for each of `others`.
    """
    ridge = _ridge(train, classes)
    kinds = len(ridge.classes_)

    def outputs(features: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, K - 1). The output of the last class follows from the others."""
        return ridge.decision_function(features).reshape(len(features), -1)[:, : kinds - 1]

    discriminant = LinearDiscriminantAnalysis("lsqr", priors=np.full(kinds, 1 / kinds))
    discriminant.fit(outputs(train), classes)
    return [discriminant.predict(outputs(features)) for features in others]


class Probe:
    """A linear classifier of two classes, which also says how certain it is.

    It is the ridge regression of `predictions`. Its output is positive where +1 is predicted.

    Args:
        train: features (M, D), as they are.
        classes: -1 or +1, (M,), both at least once.
    """

    def __init__(self, train: np.ndarray, classes: np.ndarray):
        self._scaler = StandardScaler().fit(train)
        self._ridge = _ridge(self._scaler.transform(train), classes)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,)."""
        output: np.ndarray = self._ridge.decision_function(self._scaler.transform(features))
        return output


def _ridge(train: np.ndarray, classes: np.ndarray) -> RidgeClassifier:
    """Fit ridge regression to +1 for an image's class and -1 for all others, all of the same weight."""
    ridge = RidgeClassifier(alpha=SHRINKAGE * len(classes), class_weight="balanced", solver="cholesky")
    return ridge.fit(train, classes)


def accuracies(predicted: np.ndarray, truth: np.ndarray, classes: Iterable[int]) -> dict[int, float]:
    """Return, for each of `classes`, the fraction of its images (N,) for which it was predicted.

    The mean over the classes is the balanced accuracy. Images of other classes do not count.
    """
    return {c: float(np.mean(predicted[truth == c] == c)) for c in classes}
