"""Recall of a model that embeds images and sentences: the caption of an image among the captions
of all images, and the image of a caption among all images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from genmodels.evaluation.captions import held_out_captions
from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.embedder import embed_texts
from genmodels.evaluation.reference import spread
from genmodels.evaluation.results import Score

CANDIDATES = 1_000
"""Largest number of images, and of their captions, to search in."""
PLACES = (1, 5, 10)
"""Numbers k of the first results among which the right one should be."""


def part(context: Context) -> Part:
    """Compute recall at 1, 5 and 10 in both directions, next to that of an oracle (the floor).

    Other images may fit a caption as well as its own, so that a recall of 1 cannot be reached.
    """
    reference = context.reference
    count = min(CANDIDATES, len(reference.images))
    names = [f"recall@{k}-{way}" for way in ("text-to-image", "image-to-text") for k in PLACES]
    absent: dict[str, str] = {}
    with reasons(absent, ", ".join(names)):
        captioned = held_out_captions(reference, count)
        images = spread(reference.images, count)
        similarity = embed_texts(captioned.texts, context.embedder) @ context.features(images, context.embedder).T
        best = oracle(captioned.fits())
        fingerprint = images.fingerprint
        of = replace(reference.protocol, n=count, n_reference=count, reference=fingerprint, text=captioned.origin)
        how = "fraction of queries whose own match is among the first k; the floor is that of an oracle"
        values = [
            (recall(by, k), recall(ideal, k))
            for by, ideal in ((similarity, best), (similarity.T, best.T))
            for k in PLACES
        ]
        scores = [
            Score(value, "higher", how, of, error=math.sqrt(value * (1 - value) / count), floor=floor, group="text")
            for value, floor in values
        ]
        return Part(dict(zip(names, scores, strict=True)))
    return Part(absent=absent)


def oracle(fits: np.ndarray) -> np.ndarray:
    """Return the probability that caption i is that of image j, (N, N), given which captions fit.

    A caption is that of any image that it fits with equal probability. To rank by this probability
    gives the highest recall that can be expected.

    Args:
        fits: whether caption i fits image j, bool (N, N).
    """
    return fits / fits.sum(1, keepdims=True)


def recall(similarity: np.ndarray, k: int) -> float:
    """Return the fraction of N queries for which result i of query i is among the first k results.

    Results of equal similarity are taken to be in random order, of which this is the expectation.

    Args:
        similarity: of each query with each result, (N, N).
        k: number of results.
    """
    own = similarity.diagonal()[:, None]
    before, level = ((similarity > own).sum(1), (similarity == own).sum(1))  # `level` counts the result itself
    return float(np.clip((k - before) / level, 0, 1).mean())
