"""Whether samples have the attributes that were requested, according to a linear probe of real
faces."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.probe import LEAST, accuracies, predictions, standardised
from genmodels.evaluation.results import Score


@dataclass(frozen=True)
class AttributeAccuracy:
    """How often samples have the requested attributes according to a probe.

    Accuracies are balanced: the mean of the accuracy on images that should have the attribute and
    on images that should not. Samples that ignore the condition therefore get 0.5 for every
    attribute, however rare it is. By plain accuracy, faces that are never bald would get 0.98 if 2
    % of them were requested to be bald.

    Attributes:
        mean: mean over the attributes, of samples.
        ceiling: the same for held-out real images: the accuracy of the probe itself.
        samples: accuracy by attribute.
        real: accuracy by attribute, of held-out real images.
        left_out: attributes that were not measured, and why.
    """

    mean: float
    ceiling: float
    samples: dict[str, float]
    real: dict[str, float]
    left_out: dict[str, str]


def part(context: Context) -> Part:
    """Sample with the attributes or captions of held-out images, and detect what was requested in
    the samples."""
    reference, extractor = context.reference, context.extractors[0]
    measure = extractor.measure("attributes")
    absent: dict[str, str] = {}
    with reasons(absent, measure):
        if reference.train is None or reference.attributes is None or reference.train_attributes is None:
            raise ValueError("needs attributes of training and of held-out images")
        request = context.requested  # combinations of attributes that occur in real images
        names = request.names
        columns = [reference.attribute_names.index(name) for name in names]
        held, known = reference.attributes[:, columns], reference.train_attributes[:, columns]
        fake, train, real = (
            context.features(x, extractor) for x in (request.samples, reference.train, reference.images)
        )
        result = attribute_accuracy(fake, request.attributes, train, known, real, held, names)
        of = replace(
            extractor.protocol(reference.protocol),
            n=context.n,
            train=reference.train.identity,
            attributes=", ".join(result.samples),
            text=request.captions.origin if context.model.can("tokenize") else None,
        )
        how = "balanced accuracy of a linear probe of the features, mean over the attributes"
        score = Score(result.mean, "higher", how, of, floor=result.ceiling, each=result.samples, each_floor=result.real)
        return Part({measure: score}, {f"{measure} of {name}": why for name, why in result.left_out.items()})
    return Part(absent=absent)


def attribute_accuracy(
    sample_features: np.ndarray,
    requested: np.ndarray,
    train_features: np.ndarray,
    train_attributes: np.ndarray,
    held_out_features: np.ndarray,
    held_out_attributes: np.ndarray,
    names: tuple[str, ...],
) -> AttributeAccuracy:
    """Fit a linear probe per attribute to real training images, and apply it to samples and
    held-out real images.

    An attribute is left out if, in any of the sets, fewer than LEAST images have it or do not have
    it. `probe.predictions` describes the probe.

    Args:
        sample_features: (N, D).
        requested: attributes of each sample, (N, K) in {-1, 0, +1}: no, not requested, yes.
        train_features: (M, D).
        train_attributes: their attributes, (M, K) in {-1, 0, +1}: no, unknown, yes.
        held_out_features: (L, D) of real images on which the model was not trained.
        held_out_attributes: (L, K).
        names: names of the K attributes.

    Raises:
        ValueError: if shapes do not agree, or no attribute has enough images.
    """
    sets = {
        "samples": (sample_features, requested),
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
    train, samples, held_out = standardised(train_features, sample_features, held_out_features)
    accuracy: dict[str, float] = {}
    real: dict[str, float] = {}
    for k, name in chosen:
        known = train_attributes[:, k] != 0
        of_samples, of_real = predictions(train[known], train_attributes[known, k], samples, held_out)
        accuracy[name] = _balanced(of_samples, requested[:, k])
        real[name] = _balanced(of_real, held_out_attributes[:, k])
    mean, ceiling = (float(np.mean([*values.values()])) for values in (accuracy, real))
    return AttributeAccuracy(mean, ceiling, accuracy, real, left_out)


def _too_few(sets: dict[str, tuple[np.ndarray, np.ndarray]], k: int) -> str:
    """Return why attribute k cannot be measured, or "" if it can."""
    for what, (_, attributes) in sets.items():
        for word, value in (("with", 1), ("without", -1)):
            if (count := int((attributes[:, k] == value).sum())) < LEAST:
                return f"{count} of the {what} are {word} it, {LEAST} are needed"
    return ""


def _balanced(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean of the accuracies where `truth` is +1 and where it is -1; where it is 0,
    nothing counts."""
    return float(np.mean([*accuracies(predicted, truth, (1, -1)).values()]))
