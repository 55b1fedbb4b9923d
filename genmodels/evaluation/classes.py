"""Whether samples are of the class that was requested, and how close they are to its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genmodels import sampling
from genmodels.conditions import Condition, ConditionConfig
from genmodels.data.rows import spread_rows
from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.distances import check_varied, frechet_distance
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.probe import LEAST, accuracies, predictions, standardised
from genmodels.evaluation.protocol import LEAST_N, Protocol, check_count
from genmodels.evaluation.reference import Reference
from genmodels.evaluation.results import OF_CLASS, Score

SHOWN_CLASSES, SHOWN = 10, 8
"""Largest number of classes of which samples are kept for display, and number of these samples."""
LISTED = 20
"""Largest number of classes that a protocol, or reasons for absent scores, name one by one."""


@dataclass(frozen=True)
class Classes:
    """Classes of real images in the numbers of a model.

    Attributes:
        held_out: class of each held-out image, (L,), -1 if unknown.
        train: class of each training image, (M,), or None if they are not known.
        names: names of the K classes.
    """

    held_out: np.ndarray
    train: np.ndarray | None
    names: tuple[str, ...]

    def part(
        self,
        measure: str,
        better: Literal["higher", "lower"],
        how: str,
        protocol: Protocol,
        values: Mapping[int, float],
        floors: Mapping[int, float],
        left_out: Mapping[int, str],
    ) -> Part:
        """Return the mean over the classes as a score, with the value of each.

        Args:
            measure, better, how, protocol: of the score.
            values: value of each class that was measured.
            floors: floors that are known. The mean has one if all are.
            left_out: reasons why other classes were not measured.
        """
        each, each_floor = ({self.names[c]: value for c, value in by.items()} for by in (values, floors))
        whole = ", ".join(each)
        if len(each) > LISTED:
            whole = f"{len(each):,} classes ({hashlib.sha256(whole.encode()).hexdigest()[:16]})"
        score = Score(
            float(np.mean([*values.values()])),
            better,
            how,
            replace(protocol, classes=whole),
            floor=float(np.mean([*floors.values()])) if len(floors) == len(values) else None,
            each=each,
            each_floor=each_floor,
        )
        absent = {f"{measure} of {self.names[c]}": why for c, why in left_out.items()}
        if len(absent) > LISTED:
            first = next(iter(left_out))
            absent = {f"{measure} of {len(left_out):,} classes": f"{self.names[first]}: {left_out[first]}, and so on"}
        return Part({measure: score}, absent)


def part(context: Context) -> Part:
    """Sample the classes as often as they are among held-out images, and every class equally often.

    The first samples are compared with real images as a whole, the second ones class by class.
    """
    model, reference = context.model, context.reference
    labels = context.extractors[0].measure("labels")
    as_frequent, by_class = (
        [extractor.measure(of) for extractor in context.extractors] for of in ("fd-conditional", "fd-by-class")
    )
    absent: dict[str, str] = {}
    every = ", ".join([labels, *as_frequent, *by_class])
    if not model.conditions.classes:
        return Part(absent={every: f"{model.kind} takes no labels"})
    with reasons(absent, every):
        classes = known_classes(reference, model.conditions)
        check_count(len(reference.images), reference.images.name)
        parts = [_as_frequent(context, classes)]
        with reasons(absent, ", ".join([labels, *by_class])):
            samples, requested = _each_class(context, classes)
            parts.append(_found(context, classes, samples, requested))
            parts += [_distances(context, classes, samples, requested, extractor) for extractor in context.extractors]
        scores = {name: score for one in parts for name, score in one.scores.items()}
        return Part(scores, absent | {name: why for one in parts for name, why in one.absent.items()})
    return Part(absent=absent)


def known_classes(reference: Reference, conditions: ConditionConfig) -> Classes:
    """Return the labels of real images in the numbers of a model, which may have another order.

    Raises:
        ValueError: if there are no labels, or the data have other classes than the model.
    """
    images, names = reference.images.name, conditions.class_names
    if reference.labels is None:
        raise ValueError(f"{images} has no labels")
    if len(reference.class_names) != conditions.classes:
        raise ValueError(f"{images} has {len(reference.class_names):,} classes, the model {conditions.classes:,}")
    if not names:
        return Classes(reference.labels, reference.train_labels, reference.class_names)
    if missing := [name for name in names if name not in reference.class_names]:
        raise ValueError(f"{images} has no class {missing[0]!r}, which the model has")
    # The last number is that of an unknown label, -1.
    numbers = np.array([*(names.index(name) for name in reference.class_names), -1])
    train = None if reference.train_labels is None else numbers[reference.train_labels]
    return Classes(numbers[reference.labels], train, names)


def _sampled(context: Context, labels: Tensor) -> Images:
    """Draw one sample of each of `labels`, int64 (N,)."""
    n, condition, size, best = len(labels), Condition(labels=labels), context.batch_size, context.best
    pixels = sampling.sample(context.model, n, context.seed, condition, batch_size=size, best=best, **context.options)
    return Images(pixels, f"samples of {context.model.kind} by class")


def _as_frequent(context: Context, classes: Classes) -> Part:
    """Compute the Fréchet distance of samples whose labels are those of held-out images."""
    n, count, reference = context.n, len(classes.held_out), context.reference
    requested = classes.held_out[np.arange(n) % count if n > count else spread_rows(count, n)]
    samples = _sampled(context, torch.from_numpy(requested.astype(np.int64)))
    how = "Frechet distance; the labels of the samples are those of the real images, so each class is as frequent"
    scores: dict[str, Score] = {}
    absent: dict[str, str] = {}
    for extractor in context.extractors:
        name = extractor.measure("fd-conditional")
        with reasons(absent, name):
            fake, real = (context.features(x, extractor) for x in (samples, reference.images))
            check_varied(fake, samples.name)
            floor = None
            if context.floor is not None:
                floor = frechet_distance(*(context.features(x, extractor) for x in context.floor))
            protocol = extractor.protocol(replace(reference.protocol, n=n))
            scores[name] = Score(frechet_distance(fake, real), "lower", how, protocol, floor=floor)
    return Part(scores, absent)


def _each_class(context: Context, classes: Classes) -> tuple[Images, np.ndarray]:
    """Draw equally many samples of each class, return them with their classes (N,), and keep some
    of them for display.

    Raises:
        ValueError: if there are too few of each class to measure it.
    """
    kinds = len(classes.names)
    each = context.n // kinds
    if each < LEAST:
        raise ValueError(
            f"{context.n:,} samples of {kinds:,} classes are {each} of each, {LEAST} are needed: "
            f"choose --n {LEAST * kinds}"
        )
    labels = context.model.conditions.in_turn(each * kinds).labels
    samples, requested = _sampled(context, labels), labels.numpy()
    for c in spread_rows(kinds, min(kinds, SHOWN_CLASSES)):
        context.pictures[f"{OF_CLASS}{classes.names[c]}"] = samples.pixels[requested == c][:SHOWN]
    return samples, requested


def _found(context: Context, classes: Classes, samples: Images, requested: np.ndarray) -> Part:
    """Compute how often a linear probe finds the class that was requested."""
    extractor, reference = context.extractors[0], context.reference
    measure = extractor.measure("labels")
    absent: dict[str, str] = {}
    with reasons(absent, measure):
        if reference.train is None or classes.train is None:
            raise ValueError("needs labels of training images, to train the probe")
        images = (reference.train, samples, reference.images)
        train, fake, real = standardised(*(context.features(x, extractor) for x in images))
        found, real_found, left_out = label_accuracy(train, classes.train, fake, requested, real, classes.held_out)
        how = (
            "how often a linear probe of the features finds the class that was requested, mean over the classes; "
            f"{1 / len(classes.names):.3g} by chance; floor: real images"
        )
        protocol = extractor.protocol(replace(reference.protocol, n=len(samples), train=reference.train.identity))
        return classes.part(measure, "higher", how, protocol, found, real_found, left_out)
    return Part(absent=absent)


def label_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    samples: np.ndarray,
    requested: np.ndarray,
    held_out: np.ndarray,
    held_out_labels: np.ndarray,
) -> tuple[dict[int, float], dict[int, float], dict[int, str]]:
    """Fit a linear probe to real training images, and apply it to samples and held-out real images.

    It chooses among all classes with at least LEAST training images. A class is measured if there
    are also LEAST samples and LEAST held-out images of it.

    Args:
        train: standardised features (M, D).
        train_labels: their classes (M,), -1 if unknown.
        samples: standardised features (N, D).
        requested: class of each sample, (N,), -1 for none.
        held_out: standardised features (L, D) of real images on which the model was not trained.
        held_out_labels: their classes (L,), -1 if unknown.

    Returns:
        the accuracy on the samples of each class that was measured, the accuracy on its held-out
        images, and reasons why classes were left out.

    Raises:
        ValueError: if fewer than two classes have enough training images, or none can be measured.
    """
    sets = {"training images": train_labels, "samples": requested, "held-out images": held_out_labels}
    known = [c for c in np.union1d(train_labels, requested) if c >= 0]
    left_out = {
        int(c): f"{count} {what} of it, {LEAST} are needed"
        for c in known
        for what, labels in reversed(sets.items())
        if (count := int((labels == c).sum())) < LEAST
    }
    trained = [c for c in known if (train_labels == c).sum() >= LEAST]
    measured = [int(c) for c in trained if c not in left_out]
    if len(trained) < 2 or not measured:
        raise ValueError(f"too few classes have {LEAST} training images, held-out images and samples")
    rows = np.isin(train_labels, trained)
    of_samples, of_real = predictions(train[rows], train_labels[rows], samples, held_out)
    return accuracies(of_samples, requested, measured), accuracies(of_real, held_out_labels, measured), left_out


def _distances(
    context: Context, classes: Classes, samples: Images, requested: np.ndarray, extractor: Extractor
) -> Part:
    """Compute the Fréchet distance of the samples of each class from the held-out images of it.

    The floors are the distances of as many training images of the class.
    """
    measure, reference = extractor.measure("fd-by-class"), context.reference
    absent: dict[str, str] = {}
    values: dict[int, float] = {}
    floors: dict[int, float] = {}
    left_out: dict[int, str] = {}
    with reasons(absent, measure):
        fake, real = context.features(samples, extractor), context.features(reference.images, extractor)
        for c in range(len(classes.names)):
            of_class, like = fake[requested == c], real[classes.held_out == c]
            if min(len(of_class), len(like)) < LEAST_N:
                left_out[c] = f"{len(of_class)} samples and {len(like)} held-out images of it, {LEAST_N} are needed"
                continue
            with reasons(unvaried := dict[str, str](), measure):
                check_varied(of_class, f"{OF_CLASS}{classes.names[c]}")
            if unvaried:
                left_out[c] = unvaried[measure]
                continue
            values[c] = frechet_distance(of_class, like)
            if reference.train is not None and classes.train is not None:
                others = np.flatnonzero(classes.train == c)
                if len(others) >= len(of_class):
                    chosen = others[spread_rows(len(others), len(of_class))]
                    floors[c] = frechet_distance(context.features(reference.train.take(chosen), extractor), like)
        if not values:
            enough = f"--n {LEAST_N * len(classes.names)} gives as many samples"
            raise ValueError(f"no class has {LEAST_N} samples and {LEAST_N} held-out images; {enough}")
        how = "Frechet distance of the samples of a class from its real images, mean over the classes"
        protocol = extractor.protocol(replace(reference.protocol, n=len(requested) // len(classes.names)))
        return classes.part(measure, "lower", how, protocol, values, floors, left_out)
    return Part(absent=absent)
