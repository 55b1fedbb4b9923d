"""Images as samples: how far they are from real ones, what kinds they miss, and whether they are copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from genmodels.evaluation.cost import reasons
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.neighbours import memorisation
from genmodels.evaluation.pairs import LPIPS_WEIGHTS, lpips_diversity
from genmodels.evaluation.protocol import LEAST_N, Protocol
from genmodels.evaluation.reference import Reference, floor_pair
from genmodels.evaluation.results import Score
from genmodels.evaluation.sets import compare_sets
from genmodels.nn.perceptual import Distance

SHOWN = 64
"""Samples that are kept to be looked at."""
PAIRS = 16
"""Nearest neighbours that are kept to be looked at."""


def sample_scores(
    images: Images, reference: Reference, extractors: Sequence[Extractor], lpips: Distance | None, batch_size: int
) -> tuple[dict[str, Score], dict[str, str], dict[str, np.ndarray]]:
    """Scores of images as samples, what is absent, and pictures."""
    scores: dict[str, Score] = {}
    absent: dict[str, str] = {}
    pictures = {"samples": np.asarray(images.pixels[:SHOWN])}
    floor = floor_pair(reference, len(images))
    if floor is None:
        fewer = sum(map(len, reference.others)) or len(reference.images) // 2
        advice = f": choose --n {fewer}" if fewer >= LEAST_N else ""
        absent["real images, same n"] = f"there are not {len(images):,} further real images{advice}"
    protocol = replace(reference.protocol, n=len(images))
    for extractor in extractors:
        scores |= _distances(images, reference, floor, extractor, protocol, batch_size)
    copies = [extractors[0].measure(name) for name in ("nearest-train", "copies")]
    if reference.train is None:
        why = "the images compared with may be those the model learnt from; with --split valid, copies are looked for"
        absent |= dict.fromkeys(copies, why)
    else:
        with reasons(absent, *copies):
            found, closest = _copies(images, reference, extractors[0], protocol, batch_size)
            scores |= found
            pictures |= closest
    if lpips is not None:
        value, error = lpips_diversity(np.asarray(images.pixels), lpips)
        real = None if floor is None else lpips_diversity(np.asarray(floor[0].pixels), lpips)[0]
        how = "mean LPIPS of random pairs; compare with real images, higher is not always better"
        of = replace(protocol, weights=LPIPS_WEIGHTS)
        scores["diversity-lpips"] = Score(value, "neither", how, of, error=error, floor=real)
    return scores, absent, pictures


def _distances(
    images: Images,
    reference: Reference,
    floor: tuple[Images, Images] | None,
    extractor: Extractor,
    protocol: Protocol,
    batch_size: int,
) -> dict[str, Score]:
    """Distances between samples and real images by one extractor, each beside its real-versus-real floor."""
    protocol = by_extractor(extractor, protocol)
    found = compare_sets(images, reference.images, extractor, batch_size)
    # Real images in the samples' place: the same code, so the same bias by n.
    real = None if floor is None else compare_sets(*floor, extractor, batch_size)

    def score(value: str, better: Literal["higher", "lower", "neither"], how: str, error: str = "") -> Score:
        bottom = None if real is None else getattr(real, value)
        return Score(
            getattr(found, value), better, how, protocol, error=getattr(found, error) if error else None, floor=bottom
        )

    measured = {
        "fd": score("fd", "lower", "Frechet distance of Gaussians fitted to the features"),
        "kd": score("kd", "lower", "unbiased squared MMD of the features, cubic kernel, over all pairs", "kd_error"),
        "precision": score("precision", "higher", "share of samples within reach of real images (k = 3)"),
        "recall": score("recall", "higher", "share of real images within reach of samples (k = 3)"),
        "density": score("density", "higher", "real neighbourhoods a sample lies in, over k = 5; can pass 1"),
        "coverage": score("coverage", "higher", "share of real images with a sample in their neighbourhood (k = 5)"),
        "diversity": score(
            "diversity", "neither", "mean feature distance of random pairs; compare with real images", "diversity_error"
        ),
    }
    return {extractor.measure(what): value for what, value in measured.items()}


def _copies(
    images: Images, reference: Reference, extractor: Extractor, protocol: Protocol, batch_size: int
) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
    """Whether samples lie nearer to training images than unseen real images do; the nearest pairs."""
    assert reference.train is not None
    train = extract(reference.train, extractor, batch_size=batch_size)
    fake, unseen = (extract(part, extractor, batch_size=batch_size) for part in (images, reference.images))
    found = memorisation(fake, train, unseen)
    protocol = replace(by_extractor(extractor, protocol), train=fingerprint_of(reference.train))
    pictures = {
        "nearest samples": np.asarray(images.pixels)[found.order[:PAIRS]],
        "nearest train": np.asarray(reference.train.pixels)[found.partner[found.order[:PAIRS]]],
    }
    ratio = "median distance to the nearest training image, over that of unseen real images; well under 1: copies"
    share = "share of samples nearer to a training image than 99 % of unseen real images are; well over 0.01: copies"
    # What unseen real images have by definition stands for the floor.
    return {
        extractor.measure("nearest-train"): Score(found.ratio, "neither", ratio, protocol, floor=1.0),
        extractor.measure("copies"): Score(found.share, "neither", share, protocol, floor=0.01),
    }, pictures


def by_extractor(extractor: Extractor, protocol: Protocol) -> Protocol:
    """`protocol` of numbers from the features of `extractor`."""
    return replace(protocol, extractor=extractor.name, weights=extractor.weights, resize=extractor.resize)


def fingerprint_of(images: Images) -> str:
    """Which images, and how many."""
    return f"{images.fingerprint} ({len(images):,})"
