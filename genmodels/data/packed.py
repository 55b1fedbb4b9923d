"""Packed data: images decoded once, with attributes, labels, names and captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from genmodels.data.captions import CAPTIONED
from genmodels.data.columns import count_captions, digested, rows_at_a_time
from genmodels.data.encoded import EncodedImages
from genmodels.data.rows import take_rows

if TYPE_CHECKING:
    from torch import Tensor

    from genmodels.data.dataset import PackedDataset

Split = Literal["train", "valid", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
"""Names of the splits. `Packed.splits` holds indices into this tuple."""

COLUMNS = (
    "images",
    "attributes",
    "labels",
    "names",
    "splits",
    "identities",
    "text",
    "conversations",
    "latents",
    "features",
)
"""Fields of `Packed` that have one row per image."""
LABEL_COLUMNS = ("attributes", "labels", "names", "splits", "identities", "text", "conversations")
"""Columns that a source has before its images are decoded, and that `save_labels` writes."""

IN_MEMORY = "in-memory"
"""What a run records in place of the name of its data, or the path of its codec, if these were made
in Python."""


@dataclass(frozen=True)
class Origin:
    """The arguments of `open_data` that opened a data set."""

    data: str
    root: Path | None = None
    crop: str | None = None
    fingerprint: str | None = None
    """Fingerprint of that data set, if these data are not the data set but were made from it."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A data set: images and what is known about each of them.

    A column is a field with one row per image; `COLUMNS` lists them. A column that is None is
    absent.

    Attributes:
        images: uint8 (N, H, W, 3), H = W. Loaded from disk, they are memory-mapped, or
            decoded when they are read (`EncodedImages`).
        attributes: int8 (N, K) in {-1, 0, +1}: no, unknown, yes. K may be 0.
        attribute_names: K names, in order.
        labels: int32 (N,), the class of each image, -1 if unknown.
        class_names: names of the classes, in order; () if there are no labels.
        names: N names of source files.
        splits: uint8 (N,): 0 train, 1 valid, 2 test.
        identities: int32 (N,), a number for each person, -1 if unknown.
        manifest: origin of the images: source, crop, size, filter, count, checksums, converted,
            skipped ...
        latents: outputs of a codec for each image and, if the second axis is 2, for the mirrored
            image: (N, 1 or 2, *latent_shape). See `genmodels.data.latents`.
        features: outputs of a feature extractor for each image, (N, F).
        text: captions of each image, any number of them.
        conversations: conversations about each image, any number of them, each as the string of
            `genmodels.data.conversations.to_line`.
        origin: how to open the data again, or None if they were made in memory.
    """

    images: np.ndarray | EncodedImages
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    names: Sequence[str]
    splits: np.ndarray
    identities: np.ndarray | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    latents: np.ndarray | None = None
    features: np.ndarray | None = None
    text: Sequence[tuple[str, ...]] | None = None
    conversations: Sequence[tuple[str, ...]] | None = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def feature_count(self) -> int:
        """Number of features per image; 0 if there are none."""
        return 0 if self.features is None else self.features.shape[1]

    @property
    def has_captions(self) -> bool:
        """Whether the images have captions: stored ones, or attributes that the grammar knows."""
        return self.text is not None or not set(CAPTIONED).isdisjoint(self.attribute_names)

    @property
    def has_conversations(self) -> bool:
        """Whether there are conversations about the images: stored ones, or ones that are written
        from captions or attributes."""
        return self.conversations is not None or self.has_captions

    @property
    def crop(self) -> str | None:
        """Name of the crop that was applied to the original images, before any export."""
        return (self.manifest.get("origin") or self.manifest).get("crop")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the images, their order and their labels."""
        digest = hashlib.sha256()
        checksums = self.manifest.get("checksums")
        digest.update(json.dumps(checksums, sort_keys=True).encode())
        for column in (self.attributes, self.splits) if checksums else (self.attributes, self.splits, self.images):
            digest.update(np.ascontiguousarray(column).data)
        for part in digested(self.names, self.attribute_names):
            digest.update(part)
        for texts in (self.text, self.conversations):
            for part in digested(texts) if texts is not None else ():
                digest.update(part)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
            digest.update(json.dumps(self.class_names).encode())
        return digest.hexdigest()[:16]

    def split(self, name: Split) -> Packed:
        """Return one split. Packed directories are in split order, so its images stay on disk.

        Raises:
            ValueError: if the split is unknown or empty.
        """
        if name == "all":
            return self
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}; known: {', '.join(SPLITS)}, all")
        count = (counts := self.counts()).get(name, 0)
        if not count:
            held = ", ".join(f"{count:,} {split}" for split, count in counts.items())
            remedy = "put images into folders (or shards) called train, valid and test, and pack them again"
            raise ValueError(f"the {name!r} split of {self.source} is empty: it holds {held or 'no images'}; {remedy}")
        number = SPLITS.index(name)
        first = next(at + int((part == number).argmax()) for at, part in rows_at_a_time(self.splits) if number in part)
        rows = slice(first, first + count)
        together = all((part == number).all() for _, part in rows_at_a_time(self.splits[rows]))
        return self.take(rows if together else np.flatnonzero(self.splits == number))

    def take(self, rows: slice | np.ndarray) -> Packed:
        """Return some of the images: a view for a slice, a copy for an array of indices."""
        return replace(self, **{name: take_rows(getattr(self, name), rows) for name in COLUMNS})

    def with_attributes(self, names: Sequence[str]) -> Packed:
        """Return the same images with only the attributes `names`, in that order.

        Raises:
            ValueError: if the data have no attribute of that name.
        """
        attributes = self.attributes[:, self.attribute_columns(names)]
        return replace(self, attributes=attributes, attribute_names=tuple(names))

    def attribute_columns(self, names: Sequence[str]) -> list[int]:
        """Return the indices of the attributes `names`.

        Raises:
            ValueError: if the data have no attribute of that name.
        """
        unknown = [name for name in names if name not in self.attribute_names]
        if unknown:
            known = ", ".join(self.attribute_names) or "none"
            raise ValueError(f"{self.source} has no attribute {unknown[0]!r}; known: {known}")
        return [self.attribute_names.index(name) for name in names]

    def dataset(self, transform: Callable[[Tensor], Any] | None = None) -> PackedDataset:
        """Return a view for `torch.utils.data.DataLoader`, for use outside genmodels.

        Args:
            transform: applied to each image, float32 (3, H, W) in [-1, 1].
        """
        from genmodels.data.dataset import PackedDataset

        return PackedDataset(self, transform)

    def counts(self) -> dict[str, int]:
        """Return the number of images in each split that is not empty."""
        counts = np.zeros(len(SPLITS), np.int64)
        for _, part in rows_at_a_time(self.splits):
            counts += np.bincount(part, minlength=len(SPLITS))
        return {name: int(count) for name, count in zip(SPLITS, counts, strict=True) if count}

    @property
    def source(self) -> str:
        """Short description of the source: "celeba (18,022 of 202,599 images)"."""
        return str(self.manifest.get("source", "images"))

    def describe(self) -> str:
        """Return one line: source, splits, size, crop, classes, attributes and captions."""
        splits = ", ".join(f"{count:,} {name}" for name, count in self.counts().items())
        crop = f", crop {self.crop}" if self.crop else ""
        skipped = f", {n:,} files skipped" if (n := len(self.manifest.get("skipped", []))) else ""
        columns = {"captions": self.text, "conversations": self.conversations}
        captions = "".join(f", {count_captions(c):,} {name}" for name, c in columns.items() if c is not None)
        classes = f"{len(self.class_names):,} classes, " if self.labels is not None else ""
        attributes = f"{classes}{len(self.attribute_names)} attributes{captions}"
        return f"{self.source}: {splits}; {self.size} px{crop}, {attributes}{skipped}"
