"""Packed data: images decoded once into a memory-mapped array, with labels, names and captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from genmodels.array_files import map_array
from genmodels.data.labels import check_manifest, read_captions, read_labels, read_names
from genmodels.data.rows import take_rows
from genmodels.data.source import LARGEST_TABLE
from genmodels.hashing import file_sha256
from genmodels.reading import read_json, read_text
from genmodels.writing import replacing, write_json, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from genmodels.data.dataset import PackedDataset

FORMAT = 1
"""Version of the directory layout. Newer versions are refused."""
Split = Literal["train", "valid", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
"""Names of the splits. `Packed.splits` holds indices into this tuple."""

MANIFEST, IMAGES, LABELS, NAMES, TEXT = "manifest.json", "images.npy", "labels.npz", "names.json", "text.json"
CHECKED = "checked"
PARTIAL, JOURNAL = "images.partial", "progress.jsonl"

COLUMNS = ("images", "attributes", "names", "splits", "identities", "text", "latents", "features")
"""Fields of `Packed` that have one row per image."""
LABEL_COLUMNS = ("attributes", "names", "splits", "identities", "text")
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


@dataclass(frozen=True, eq=False)
class Packed:
    """A data set: images and what is known about each of them.

    A column is a field with one row per image; `COLUMNS` lists them. A column that is None is
    absent.

    Attributes:
        images: uint8 (N, H, W, 3), H = W; memory-mapped if loaded from disk.
        attributes: int8 (N, K) in {-1, 0, +1}: no, unknown, yes. K may be 0.
        attribute_names: K names, in order.
        names: N names of source files.
        splits: uint8 (N,): 0 train, 1 valid, 2 test.
        identities: int32 (N,), a number for each person, -1 if unknown.
        manifest: origin of the images: source, crop, size, filter, count, checksums, converted,
            skipped ...
        latents: outputs of a codec for each image and, if the second axis is 2, for the mirrored
            image: (N, 1 or 2, *latent_shape). See `genmodels.data.latents`.
        features: outputs of a feature extractor for each image, (N, F).
        text: captions of each image, any number of them.
        origin: how to open the data again, or None if they were made in memory.
    """

    images: np.ndarray
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    names: Sequence[str]
    splits: np.ndarray
    identities: np.ndarray | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    latents: np.ndarray | None = None
    features: np.ndarray | None = None
    text: Sequence[tuple[str, ...]] | None = None
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
    def crop(self) -> str | None:
        """Name of the crop that was applied to the original images, before any export."""
        return (self.manifest.get("origin") or self.manifest).get("crop")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the images, their order and their labels."""
        digest = hashlib.sha256()
        checksums = self.manifest.get("checksums")
        digest.update(json.dumps(checksums, sort_keys=True).encode())
        for part in (self.attributes, self.splits) if checksums else (self.attributes, self.splits, self.images):
            digest.update(np.ascontiguousarray(part).data)
        digest.update(json.dumps([*self.attribute_names, *self.names]).encode())
        if self.text is not None:
            digest.update(json.dumps(list(self.text)).encode())
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
        rows = np.flatnonzero(self.splits == SPLITS.index(name))
        if len(rows) == 0:
            held = ", ".join(f"{count:,} {split}" for split, count in self.counts().items())
            remedy = "put images into folders called train, valid and test, and pack them again"
            raise ValueError(f"the {name!r} split of {self.source} is empty: it holds {held or 'no images'}; {remedy}")
        contiguous = rows[-1] - rows[0] + 1 == len(rows)
        return self.take(slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows)

    def take(self, rows: slice | np.ndarray) -> Packed:
        """Return some of the images: a view for a slice, a copy for an array of indices."""
        return replace(self, **{name: take_rows(getattr(self, name), rows) for name in COLUMNS})

    def with_attributes(self, names: Sequence[str]) -> Packed:
        """Return the same images with only the attributes `names`, in that order.

        Raises:
            ValueError: if the data have no attribute of that name.
        """
        unknown = [name for name in names if name not in self.attribute_names]
        if unknown:
            known = ", ".join(self.attribute_names) or "none"
            raise ValueError(f"{self.source} has no attribute {unknown[0]!r}; known: {known}")
        columns = [self.attribute_names.index(name) for name in names]
        return replace(self, attributes=self.attributes[:, columns], attribute_names=tuple(names))

    def dataset(self, transform: Callable[[Tensor], Any] | None = None) -> PackedDataset:
        """Return a view for `torch.utils.data.DataLoader`, for use outside genmodels.

        Args:
            transform: applied to each image, float32 (3, H, W) in [-1, 1].
        """
        from genmodels.data.dataset import PackedDataset

        return PackedDataset(self, transform)

    def counts(self) -> dict[str, int]:
        """Return the number of images in each split that is not empty."""
        counts = np.bincount(self.splits, minlength=len(SPLITS))
        return {name: int(count) for name, count in zip(SPLITS, counts, strict=True) if count}

    @property
    def source(self) -> str:
        """Short description of the source: "celeba (18,022 of 202,599 images)"."""
        return str(self.manifest.get("source", "images"))

    def describe(self) -> str:
        """Return one line: source, splits, size, crop, attributes and captions."""
        splits = ", ".join(f"{count:,} {name}" for name, count in self.counts().items())
        crop = f", crop {self.crop}" if self.crop else ""
        skipped = f", {n:,} files skipped" if (n := len(self.manifest.get("skipped", []))) else ""
        captions = f", {sum(map(len, self.text)):,} captions" if self.text is not None else ""
        attributes = f"{len(self.attribute_names)} attributes{captions}"
        return f"{self.source}: {splits}; {self.size} px{crop}, {attributes}{skipped}"


def is_packed(path: Path) -> bool:
    """Return whether `path` holds a complete pack. The manifest is written last."""
    return (path / MANIFEST).is_file()


def load_packed(path: Path) -> Packed:
    """Load the pack in directory `path` and check it.

    The checksum of the images is verified if the file has changed since it was last verified.

    Raises:
        ValueError: if there is no pack, or if it is incomplete, damaged or of a newer format.
    """
    manifest = _read_manifest(path)
    for name in (LABELS, NAMES, TEXT):
        if name in manifest["checksums"] and _checksum(path / name) != manifest["checksums"][name]:
            raise ValueError(f"{path / name} is missing or does not match the manifest; {_AGAIN}")
    images = _map_images(path, manifest)
    count, attributes = manifest["count"], tuple(manifest["attributes"])
    try:
        return Packed(
            images=images,
            attribute_names=attributes,
            names=read_names(path / NAMES, count),
            manifest=manifest,
            origin=Origin(str(path)),
            text=read_captions(path / TEXT, count) if TEXT in manifest["checksums"] else None,
            **read_labels(path / LABELS, count, len(attributes)),
        )
    except ValueError as error:
        raise ValueError(f"{error}; {_AGAIN}") from None


def packed_size(path: Path) -> int:
    """Return the side of the images of a packed directory, in pixels, without opening them.

    Raises:
        ValueError: if its manifest is damaged.
    """
    size: int = _read_manifest(path)["size"]
    return size


def save_labels(
    folder: Path,
    manifest: dict[str, Any],
    *,
    attributes: np.ndarray,
    names: Sequence[str],
    splits: np.ndarray,
    identities: np.ndarray | None = None,
    text: Sequence[tuple[str, ...]] | None = None,
) -> None:
    """Complete a pack whose images are in place: write labels, then checksums, then the manifest.

    The manifest appears in one rename, so that an interrupted pack is never mistaken for a complete
    one.
    """
    arrays: dict[str, Any] = {"attributes": attributes.astype(np.int8), "splits": splits.astype(np.uint8)}
    if identities is not None:
        arrays["identities"] = identities.astype(np.int32)
    with replacing(folder / LABELS) as draft:
        np.savez_compressed(draft, **arrays)
    write_text(folder / NAMES, json.dumps(list(names)))
    written = [IMAGES, LABELS, NAMES]
    if text is not None:
        write_text(folder / TEXT, json.dumps(list(text)))
        written.append(TEXT)
    checksums = {name: file_sha256(folder / name) for name in written}
    complete = {"format": FORMAT, **manifest, "count": len(names), "checksums": checksums}
    _remember_checked(folder)
    write_json(folder / MANIFEST, complete, indent=1)


_AGAIN = "the pack is damaged: delete it and pack again"


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ValueError(f"{path}: no such packed directory")
    if not is_packed(path):
        if (path / JOURNAL).exists():
            raise ValueError(f"{path} is a partial pack: run the same `genmodels data pack` again to finish it")
        raise ValueError(
            f"{path} is not a packed directory (no {MANIFEST}); for a tree of images use --data folder --root {path}"
        )
    try:
        manifest = read_json(path / MANIFEST, LARGEST_TABLE)
        newer = isinstance(manifest, dict) and isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT
        if not newer:
            check_manifest(manifest)
    except ValueError as error:
        raise ValueError(f"{path / MANIFEST} is not a manifest of genmodels ({error}); {_AGAIN}") from None
    if newer:
        raise ValueError(
            f"{path} has format {manifest['format']}; this genmodels reads up to {FORMAT}: upgrade genmodels"
        )
    if not {IMAGES, LABELS, NAMES} <= manifest["checksums"].keys():
        raise ValueError(f"{path / MANIFEST} lacks checksums; {_AGAIN}")
    checked: dict[str, Any] = manifest
    return checked


def _map_images(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    try:
        images = map_array(path / IMAGES)  # (N, H, W, 3)
    except ValueError as error:
        raise ValueError(f"{path / IMAGES} is missing or truncated ({error}); {_AGAIN}") from None
    expected = (manifest["count"], manifest["size"], manifest["size"], 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise ValueError(
            f"{path / IMAGES} is {images.dtype} {images.shape}, the manifest says uint8 {expected}; {_AGAIN}"
        )
    if not _is_checked(path):
        if _checksum(path / IMAGES) != manifest["checksums"][IMAGES]:
            raise ValueError(f"{path / IMAGES} does not match the manifest's checksum; {_AGAIN}")
        _remember_checked(path)
    return images


def _checksum(path: Path) -> str | None:
    """Return the checksum of a file, or None if it is absent."""
    return file_sha256(path) if path.is_file() else None


def _state(folder: Path) -> str:
    stat = (folder / IMAGES).stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _is_checked(folder: Path) -> bool:
    try:
        return read_text(folder / CHECKED) == _state(folder)
    except (OSError, ValueError):
        return False


def _remember_checked(folder: Path) -> None:
    # Hashing gigabytes at every start takes seconds. It is repeated only if the size or
    # modification time changed.
    with suppress(OSError):  # a read-only pack is checked every time
        write_text(folder / CHECKED, _state(folder))
