"""The real images that everything is compared with, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genmodels.data.packed import Packed
from genmodels.evaluation.images import Images
from genmodels.evaluation.protocol import Protocol

MOST = 50_000
"""Larger sets of real images are thinned out evenly to this many."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images in up to three parts that share no image.

    Attributes:
        images: what is compared with.
        protocol: what every number computed from them has in common.
        others: further real images, which give the real-versus-real floor; None when there are none.
        train: the images that models learnt from, for the search for copies; None when nobody said.
        attributes: int8 (N, K) in {-1, 0, +1} of `images`; K may be 0.
        train_attributes: the same of `train`.
        attribute_names: K names, in order.
    """

    images: Images
    protocol: Protocol
    others: Images | None = None
    train: Images | None = None
    attributes: np.ndarray | None = None
    train_attributes: np.ndarray | None = None
    attribute_names: tuple[str, ...] = ()


def reference_from(data: Packed, split: str) -> Reference:
    """One split of a data set as the reference; its other images are the further ones.

    Args:
        data: all splits.
        split: "train", "valid", "test" or "all".

    Raises:
        ValueError: for an unknown or empty split.
    """
    chosen = thin(data.split(split))  # type: ignore[arg-type]
    counts = data.counts()
    rest = next((name for name in ("train", "valid", "test") if name in counts and name != split), None)
    others = thin(data.split(rest)) if rest and split != "all" else None  # type: ignore[arg-type]
    train = others if rest == "train" else None
    images = as_images(chosen, split)
    protocol = Protocol(
        data=data.source,
        split=split,
        crop=data.crop,
        size=data.size,
        filter=(data.manifest.get("origin") or data.manifest).get("filter"),
        reference=images.fingerprint,
        n_reference=len(images),
    )
    return Reference(
        images,
        protocol,
        others=None if others is None else as_images(others, rest or ""),
        train=None if train is None else as_images(train, "train"),
        attributes=chosen.attributes,
        train_attributes=None if train is None else train.attributes,
        attribute_names=data.attribute_names,
    )


def reference_from_images(images: Images) -> Reference:
    """Images of which nothing else is known as the reference."""
    few = spread(images, MOST)
    protocol = Protocol(data=images.name, size=images.size, reference=few.fingerprint, n_reference=len(few))
    return Reference(few, protocol)


def as_images(data: Packed, split: str) -> Images:
    """The pixels of a data set."""
    return Images(data.images, f"{data.source}, {split}")


def thin(data: Packed) -> Packed:
    """At most MOST of the images, taken evenly."""
    return data if len(data) <= MOST else data.take(spread_rows(len(data), MOST))


def spread(images: Images, count: int) -> Images:
    """At most `count` images, taken evenly from the whole set, which may be sorted by kind."""
    return images if len(images) <= count else images.take(spread_rows(len(images), count))


def spread_rows(length: int, count: int) -> np.ndarray:
    """`count` places, evenly in 0 ... length - 1."""
    return np.arange(count) * length // count
