"""The real images that samples are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from genmodels.data.packed import SPLITS, Packed, Split
from genmodels.data.rows import spread_rows
from genmodels.evaluation.images import Images
from genmodels.evaluation.protocol import Protocol
from genmodels.usage import say

MOST = 50_000
"""Maximum number of real images that are compared with. Of larger sets, evenly spread images are
used."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images to compare with, and further ones for floors and copies.

    Attributes:
        images: the images that samples are compared with.
        protocol: the fields that the protocols of all scores have in common.
        others: further real images that are not in `images`, one item per split, for the floors.
        train: all training images, to detect copies; None if they are not known or include
            `images`.
        attributes: attributes of `images`, int8 (N, K) in {-1, 0, +1}; K may be 0.
        train_attributes: attributes of `train`.
        attribute_names: K names, in order.
        labels: class of each of `images`, int32 (N,), -1 if unknown; None if there are no labels.
        train_labels: classes of `train`.
        class_names: names of the classes, in order.
        text: stored captions of `images`, any number of each; None if there are none.
        conversations: stored conversations about `images`, as `Packed.conversations`.
    """

    images: Images
    protocol: Protocol
    others: tuple[Images, ...] = ()
    train: Images | None = None
    attributes: np.ndarray | None = None
    train_attributes: np.ndarray | None = None
    attribute_names: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    train_labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    text: Sequence[tuple[str, ...]] | None = None
    conversations: Sequence[tuple[str, ...]] | None = None


def reference_from(data: Packed, split: Split | None = None) -> Reference:
    """Return one split of a data set as the reference. The other splits are the further images.

    Args:
        data: all splits.
        split: "train", "valid", "test" or "all". By default "valid", or "train" if no image is held
            out for it, as in a folder of ten photos; a line says so.

    Raises:
        ValueError: if the split is unknown or empty.
    """
    if split is None:
        split = "valid" if "valid" in data.counts() or "train" not in data.counts() else "train"
        if split == "train":
            say(f"{data.source} has no validation images: comparing with those that models were trained on")
    chosen = data.split(split)
    chosen = chosen if len(chosen) <= MOST else chosen.take(spread_rows(len(chosen), MOST))
    images = Images(chosen.images, f"{data.source}, {split}")
    rest = [name for name in SPLITS if name in data.counts() and split not in (name, "all")]
    others = tuple(Images(data.split(name).images, f"{data.source}, {name}") for name in rest)
    train = data.split("train") if split in ("valid", "test") and "train" in data.counts() else None
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
        others,
        train=None if train is None else Images(train.images, f"{data.source}, train"),
        attributes=chosen.attributes,
        train_attributes=None if train is None else train.attributes,
        attribute_names=data.attribute_names,
        labels=chosen.labels,
        train_labels=None if train is None else train.labels,
        class_names=data.class_names,
        text=chosen.text,
        conversations=chosen.conversations,
    )


def reference_from_images(images: Images) -> Reference:
    """Return images about which nothing else is known as the reference."""
    few = spread(images, MOST)
    protocol = Protocol(
        data=images.name,
        size=images.size,
        filter="; ".join(images.notes) or "as given",
        reference=few.fingerprint,
        n_reference=len(few),
    )
    return Reference(few, protocol)


def floor_pair(reference: Reference, n: int) -> tuple[Images, Images] | None:
    """Return n real images, and other real images to compare them with.

    The first are further images if there are enough, and a part of the reference otherwise. Returns
    None if there are too few of either.
    """
    if sum(map(len, reference.others)) >= n:
        largest = max(reference.others, key=len)
        if len(largest) < n:
            largest = Images(np.concatenate([part.pixels for part in reference.others]), "further real images")
        return spread(largest, n), reference.images
    if len(reference.images) < 2 * n:
        return None
    order = np.random.default_rng(0).permutation(len(reference.images))
    held, rest = (reference.images.take(np.sort(rows)) for rows in (order[:n], order[n:]))
    return held, replace(rest, name=f"the rest of {reference.images.name}")


def spread(images: Images, count: int) -> Images:
    """Return at most `count` images, evenly spread over the whole set, which may be sorted."""
    return images if len(images) <= count else images.take(spread_rows(len(images), count))
