"""Captions of real images, and which captions also fit other images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genmodels.data.captions import CAPTIONED, captions, parse
from genmodels.data.rows import spread_rows
from genmodels.evaluation.reference import Reference


@dataclass(frozen=True, eq=False)
class Captioned:
    """One caption of each of N images.

    Attributes:
        texts: the N captions.
        origin: where they are from, and their fingerprint, as protocols store it.
        attributes: what generated captions are about, int8 (N, K) in {-1, 0, +1}; None for stored
            captions.
        names: names of the K attributes.
    """

    texts: list[str]
    origin: str
    attributes: np.ndarray | None = None
    names: tuple[str, ...] = ()

    def fits(self) -> np.ndarray:
        """Return whether caption i fits image j, bool (N, N).

        A generated caption fits every image whose attributes do not contradict it, which is known
        from parsing it. A stored caption fits the images that have the same caption.
        """
        if self.attributes is None:
            _, number = np.unique(np.array(self.texts), return_inverse=True)
            return number[:, None] == number
        facts = self.facts(self.names).astype(np.float32)
        known = self.attributes.astype(np.float32)
        contradictions = facts.clip(0) @ (-known).clip(0).T + (-facts).clip(0) @ known.clip(0).T  # (N, N)
        return contradictions == 0

    def facts(self, names: Sequence[str]) -> np.ndarray:
        """Return what the captions state of attributes: int8 (N, K) in {-1, 0, +1}, 0 for nothing."""
        stated = [parse(text) for text in self.texts]
        rows = [[facts.get(name, 0) for name in names] for facts in stated]
        return np.array(rows, np.int8).reshape(len(self.texts), len(names))


def captions_of(
    attributes: np.ndarray | None, names: Sequence[str], text: Sequence[tuple[str, ...]] | None = None
) -> Captioned:
    """Return a caption of each image: its first stored one or, without stored text, a generated one.

    Generated captions are long and begin with templates that do not occur in training.

    Args:
        attributes: int8 (N, K) in {-1, 0, +1}: no, unknown, yes.
        names: K names.
        text: stored captions of each image, or None.

    Raises:
        ValueError: if an image has no caption, or no attribute that captions can be generated from.
    """
    if text is not None:
        stored = [row[0] if row else "" for row in text]
        if missing := sum(not caption.strip() for caption in stored):
            raise ValueError(f"{missing:,} of {len(stored):,} images have no caption")
        return Captioned(stored, _origin("first stored caption of each image", stored))
    if attributes is None or not set(names) & set(CAPTIONED):
        raise ValueError("the images have no captions, and no attributes from which captions are generated")
    rows = range(len(attributes))
    texts = captions(attributes, names, rows, [0] * len(rows), 0, "test", "long")
    return Captioned(texts, _origin("generated, long, test split, seed 0", texts), attributes, tuple(names))


def held_out_captions(reference: Reference, count: int) -> Captioned:
    """Return captions of `count` images of the reference, evenly spread.

    Raises:
        ValueError: see `captions_of`.
    """
    rows = spread_rows(len(reference.images), count)
    attributes = None if reference.attributes is None else reference.attributes[rows]
    text = None if reference.text is None else [reference.text[row] for row in rows]
    return captions_of(attributes, reference.attribute_names, text)


def _origin(words: str, texts: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    return f"{words}, {digest} ({len(texts):,})"
