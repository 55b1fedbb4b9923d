"""How realistic single samples are, and choosing the most realistic of several candidates."""

from __future__ import annotations

import numpy as np

from genmodels.candidates import BestOf
from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.neighbours import Realism
from genmodels.evaluation.protocol import check_count
from genmodels.evaluation.reference import spread
from genmodels.evaluation.results import EXTREMES, Score

SHOWN = 16
"""Number of the least and of the most realistic samples that are kept for display."""
LOW = 0.05
"""Share of unseen real images that are called outliers."""
ENOUGH = 10_000
"""Maximum number of real images that candidates are compared with, evenly spread over the set."""


def part(context: Context) -> Part:
    """Score every sample, and keep the least and the most realistic ones for display."""
    images, reference, extractor = context.samples, context.reference, context.extractors[0]
    assert images is not None
    name, outliers = (extractor.measure(what) for what in ("realism", "outliers"))
    with reasons(few := dict[str, str](), ", ".join([name, outliers])):
        check_count(len(reference.images), reference.images.name)
    if few:
        return Part(absent=few)
    realism = Realism(context.features(reference.images, extractor))
    scores = realism(context.features(images, extractor))  # (N,)
    order = np.argsort(scores, kind="stable")
    for shown, rows in zip(EXTREMES, (order, order[::-1]), strict=True):
        context.pictures[shown] = np.asarray(images.pixels[rows[:SHOWN]])
    protocol = extractor.protocol(context.protocol)
    how = (
        "median over the samples of the largest ratio of the radius of a real image's neighbourhood (k = 3) to the "
        "distance from it, of whitened features"
    )
    if context.floor is None:
        absent = {outliers: "it needs further real images, which define what is low"}
        return Part({name: Score(float(np.median(scores)), "higher", how, protocol)}, absent)
    further, others = context.floor
    if others.fingerprint != reference.images.fingerprint:  # a part of the reference and the rest of it
        realism = Realism(context.features(others, extractor))
    real = realism(context.features(further, extractor))
    low = float(np.quantile(real, LOW))
    share = f"share of samples with a lower realism than {1 - LOW:.0%} of unseen real images have"
    return Part(
        {
            name: Score(float(np.median(scores)), "higher", how, protocol, floor=float(np.median(real))),
            outliers: Score(float(np.mean(scores < low)), "lower", share, protocol, floor=LOW),
        }
    )


def most_realistic(count: int, real: Images, extractor: Extractor, batch_size: int = 64) -> BestOf:
    """Return the choice of the most realistic of `count` candidates per image.

    Args:
        count: number of candidates.
        real: real images to compare with, such as the training images. Of more than ENOUGH, evenly
            spread ones are used.
        extractor: the feature extractor.
        batch_size: number of images whose features are computed at a time.

    Raises:
        ValueError: if count is less than 1, or there are too few real images.
    """
    few = spread(real, ENOUGH)
    weights = "" if extractor.weights == "unknown" else f" {extractor.weights[:8]}"
    rule = f"realism ({extractor.name}{weights}, compared with {len(few):,} images of {real.name})"
    if count == 1:
        return BestOf(1, lambda images: np.zeros(len(images)), rule)
    realism = Realism(extract(few, extractor, batch_size=batch_size))

    def score(images: np.ndarray) -> np.ndarray:
        candidates = Images(images, "candidates")
        return realism(extract(candidates, extractor, batch_size=batch_size, progress=False, cached=False))

    return BestOf(count, score, rule)
