"""CLIP-score (arXiv 2104.08718): how well images fit the captions that they were requested by."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.embedder import embed_texts
from genmodels.evaluation.pairs import mean_and_error
from genmodels.evaluation.results import Score

SCALE = 100.0
"""Factor of the cosine similarity."""


def part(context: Context) -> Part:
    """Score samples against the captions that they were requested by, those of held-out images, or
    captions of the attributes that were requested; under each extractor that embeds sentences too.

    The floor is the score of the held-out images themselves. The shuffled score is that of captions
    of other images, with its own floor: an extractor whose two floors are close to each other
    cannot tell which caption belongs to an image.
    """
    reference = context.reference
    judges = [extractor for extractor in context.extractors if extractor.sentences is not None]
    if not judges:
        return Part()
    absent: dict[str, str] = {}
    scores: dict[str, Score] = {}
    for extractor in judges:
        stem = extractor.measure("clip-score")
        with reasons(absent, stem):
            request = context.requested
            texts, rows = embed_texts(request.captions.texts, extractor), request.rows
            made, real = (context.features(x, extractor) for x in (request.samples, reference.images))
            of = replace(extractor.protocol(reference.protocol), n=context.n, text=request.captions.origin)
            for name, (value, error), (floor, _) in (
                ("", clip_score(made, texts), clip_score(real[rows], texts)),
                ("-shuffled", clip_score(made, shuffled(texts)), clip_score(real[rows], shuffled(texts))),
            ):
                how = f"mean of {SCALE:g} max(cosine, 0) of images and {'other ' if name else ''}captions"
                measure = extractor.measure(f"clip-score{name}")
                better: Literal["neither", "higher"] = "neither" if name else "higher"
                scores[measure] = Score(value, better, how, of, error=error, floor=floor, group="text")
    return Part(scores, absent)


def clip_score(images: np.ndarray, texts: np.ndarray) -> tuple[float, float | None]:
    """Compute the mean CLIP-score of N pairs, and its standard error.

    Args:
        images: embeddings (N, D) of unit length.
        texts: those of the captions, in the same order.
    """
    cosines = (images * texts).sum(1)
    return mean_and_error([torch.from_numpy(SCALE * cosines.clip(0))])


def shuffled(texts: np.ndarray) -> np.ndarray:
    """Return the rows of `texts` in an order in which no row keeps its place."""
    order = np.random.default_rng(0).permutation(len(texts))
    others = np.empty_like(texts)
    others[order] = texts[np.roll(order, 1)]
    return others
