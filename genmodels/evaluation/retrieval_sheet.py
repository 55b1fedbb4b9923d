"""Sheets of retrieved images: each search under its sentence, with the similarity of each image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genmodels.data.source import readable

COLUMNS = 8
_TILE, _GAP, _TITLE, _LABEL = 128, 8, 18, 14
_LETTERS = 130
"""Characters of a title on one line."""


@dataclass(frozen=True, eq=False)
class Search:
    """What was retrieved for one sentence.

    Attributes:
        title: the sentence.
        images: uint8 (N, S, S, 3), the closest first.
        labels: a few characters for each.
    """

    title: str
    images: np.ndarray
    labels: Sequence[str]


def nearest(query: np.ndarray, candidates: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the `n` candidates that are most similar to `query`, in order, and
    their cosine similarities.

    Args:
        query: embedding (D,) of unit length.
        candidates: embeddings (N, D) of unit length.
        n: number of results; all, if there are fewer.
    """
    similarity = candidates @ query
    order = np.argsort(-similarity, kind="stable")[:n]
    return order, similarity[order]


def draw(searches: Sequence[Search]) -> np.ndarray:
    """Draw searches below each other on white: uint8 (H, W, 3)."""
    titles = [textwrap.wrap(readable(search.title), _LETTERS)[:3] for search in searches]
    heights = [
        len(title) * _TITLE + -(-len(search.images) // COLUMNS) * (_TILE + _LABEL + _GAP) + _GAP
        for title, search in zip(titles, searches, strict=True)
    ]
    sheet = Image.new("RGB", (COLUMNS * (_TILE + _GAP) + _GAP, sum(heights) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    title_font, label_font = (ImageFont.load_default(size) for size in (14, 11))
    top = _GAP
    for title, search, height in zip(titles, searches, heights, strict=True):
        for number, line in enumerate(title):
            pen.text((_GAP, top + number * _TITLE), line, fill="black", font=title_font)
        for place, (image, label) in enumerate(zip(search.images, search.labels, strict=True)):
            left = _GAP + place % COLUMNS * (_TILE + _GAP)
            above = top + len(title) * _TITLE + place // COLUMNS * (_TILE + _LABEL + _GAP)
            sheet.paste(Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.BICUBIC), (left, above))
            pen.text((left, above + _TILE), label, fill="black", font=label_font)
        top += height
    return np.array(sheet)
