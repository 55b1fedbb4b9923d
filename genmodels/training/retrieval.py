"""The retrieval sheet of a model that embeds images and sentences."""

from __future__ import annotations

import time

import numpy as np

from genmodels.data.rows import spread_rows
from genmodels.training.limits import Limits
from genmodels.training.setup import Run

SEARCHED = 1_024
"""Largest number of images that are searched."""
SHOWN = 8
"""Number of captions of a sheet."""
ROUND = 128
"""Number of images after which the time is looked at."""

SHEET = "Images closest to captions, not selected. They are of the data set: check its licence before sharing them"
"""Description of a sheet in the model card."""


def retrieval_sheet(run: Run, limits: Limits) -> np.ndarray | None:
    """Draw captions of held-out images with the images that are closest to each, uint8
    (1, H, W, 3).

    The captions are those of evenly spread images, and captions that are generated begin with
    templates that do not occur in training. As many images are searched as there is time for.
    Without a valid split, training images are searched.

    Returns:
        The sheet; None on other processes than the first, or if there is nothing to draw.
    """
    if not (run.accelerator.is_main_process and run.ema.can("tokenize")):
        return None
    from genmodels.evaluation.captions import captions_of
    from genmodels.evaluation.embedder import embed_texts, embedder
    from genmodels.evaluation.features import extract
    from genmodels.evaluation.images import Images
    from genmodels.evaluation.retrieval_sheet import COLUMNS, Search, draw, nearest

    began, data, extractor = time.monotonic(), run.held_out or run.data, embedder(run.ema)
    allowed = limits.time(limits.drawing, run.clock.budget)
    rows = np.random.default_rng(0).permutation(spread_rows(len(data), min(SEARCHED, len(data))))
    parts: list[np.ndarray] = []
    for start in range(0, len(rows), ROUND):
        images = Images(data.images[rows[start : start + ROUND]], "images")
        parts.append(extract(images, extractor, progress=False, cached=False))
        if run.stop.requested or time.monotonic() - began > allowed:
            break
    features = np.concatenate(parts)  # (N, D)
    shown = rows[: min(SHOWN, len(features))]
    text = None if data.text is None else [data.text[row] for row in shown]
    captioned = captions_of(data.attributes[shown], data.attribute_names, text)
    searches = []
    for place, sentence in enumerate(embed_texts(captioned.texts, extractor)):
        order, similarity = nearest(sentence, features, COLUMNS)
        labels = [f"{s:.3f}{' (its own)' if o == place else ''}" for o, s in zip(order, similarity, strict=True)]
        searches.append(Search(captioned.texts[place], data.images[rows[order]], labels))
    run.state.costs["retrieve"] = time.monotonic() - began
    return draw(searches)[None]
