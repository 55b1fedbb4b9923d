"""Packed: images decoded once, in a memory-mapped array, with all that is known of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

FORMAT = 1
"""Version of the packed directory. A reader refuses a newer one."""
Split = Literal["train", "valid", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
"""Split names; a split's code in `Packed.splits` is its place here."""

MANIFEST, IMAGES, LABELS, NAMES, CHECKED = "manifest.json", "images.npy", "labels.npz", "names.json", "checked"
PARTIAL, JOURNAL = "images.partial", "progress.jsonl"


@dataclass(frozen=True, eq=False)
class Packed:
    """A data set as every consumer sees it.

    Attributes:
        images: uint8 (N, H, W, 3), H = W; memory-mapped when it comes from disk.
        attributes: int8 (N, K) in {-1, 0, +1}: no, unknown, yes. K may be 0.
        attribute_names: K names, in order.
        names: N source file names.
        splits: uint8 (N,): 0 train, 1 valid, 2 test.
        identities: int32 (N,): who is shown, or None when nobody said.
        manifest: where the images came from: source, crop, size, filter, count, checksums, converted, skipped ...
        latents: what a codec makes of each image and, where there are two, of the mirrored image: (N, 1 or 2,
            *latent_shape); None when it was not asked. See `genmodels.data.latents`.
        features: what an extractor makes of each image, (N, F); None when it was not asked.
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

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def feature_count(self) -> int:
        """F; 0 where no extractor was asked."""
        return 0 if self.features is None else self.features.shape[1]

    @property
    def crop(self) -> str | None:
        """Name of the crop the pixels went through, also when they travelled through an export in between."""
        return (self.manifest.get("origin") or self.manifest).get("crop")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify these images, in this order, with these labels."""
        digest = hashlib.sha256()
        checksums = self.manifest.get("checksums")
        digest.update(json.dumps(checksums, sort_keys=True).encode())
        for part in (self.attributes, self.splits) if checksums else (self.attributes, self.splits, self.images):
            digest.update(np.ascontiguousarray(part).data)
        digest.update(json.dumps([*self.attribute_names, *self.names]).encode())
        return digest.hexdigest()[:16]

    def split(self, name: Split) -> Packed:
        """One split. Packed directories are in split order, so its images stay on disk.

        Raises:
            ValueError: for an unknown split, or one without images.
        """
        if name == "all":
            return self
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}; known: {', '.join(SPLITS)}, all")
        rows = np.flatnonzero(self.splits == SPLITS.index(name))
        if len(rows) == 0:
            held = ", ".join(f"{count:,} {split}" for split, count in self.counts().items())
            raise ValueError(f"the {name!r} split of {self.source} is empty: it holds {held or 'no images'}")
        contiguous = rows[-1] - rows[0] + 1 == len(rows)
        return self.take(slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows)

    def take(self, rows: slice | np.ndarray) -> Packed:
        """Some of the images: a view for a slice, a copy in memory for an array of indices."""
        names = self.names[rows] if isinstance(rows, slice) else [self.names[i] for i in rows]
        identities = None if self.identities is None else self.identities[rows]
        return replace(
            self,
            images=self.images[rows],
            attributes=self.attributes[rows],
            names=names,
            splits=self.splits[rows],
            identities=identities,
            latents=None if self.latents is None else self.latents[rows],
            features=None if self.features is None else self.features[rows],
        )

    def with_attributes(self, names: Sequence[str]) -> Packed:
        """The same images, of whose attributes only `names` are known, in that order.

        Raises:
            ValueError: for a name that the data does not have.
        """
        unknown = [name for name in names if name not in self.attribute_names]
        if unknown:
            known = ", ".join(self.attribute_names) or "none"
            raise ValueError(f"{self.source} has no attribute {unknown[0]!r}; known: {known}")
        columns = [self.attribute_names.index(name) for name in names]
        return replace(self, attributes=self.attributes[:, columns], attribute_names=tuple(names))

    def counts(self) -> dict[str, int]:
        """Images in each split that has any."""
        found = np.bincount(self.splits, minlength=len(SPLITS))
        return {name: int(count) for name, count in zip(SPLITS, found, strict=True) if count}

    @property
    def source(self) -> str:
        """What these images are, in a few words: "celeba (18,022 of 202,599 images)"."""
        return str(self.manifest.get("source", "images"))

    def describe(self) -> str:
        """One line for people: source, splits, size, crop, attributes."""
        splits = ", ".join(f"{count:,} {name}" for name, count in self.counts().items())
        crop = f", crop {self.crop}" if self.crop else ""
        skipped = f", {n:,} files skipped" if (n := len(self.manifest.get("skipped", []))) else ""
        return f"{self.source}: {splits}; {self.size} px{crop}, {len(self.attribute_names)} attributes{skipped}"


def is_packed(path: Path) -> bool:
    """Whether `path` holds a finished pack. The manifest is written last."""
    return (path / MANIFEST).is_file()


def load_packed(path: Path) -> Packed:
    """The pack in directory `path`, checked.

    The images' checksum is verified whenever the file changed since it was last verified.

    Raises:
        ValueError: when there is no pack, or it is partial, truncated, damaged or of a newer format; says which.
    """
    manifest = _read_manifest(path)
    if _sha256(path / LABELS) != manifest["checksums"][LABELS] or _sha256(path / NAMES) != manifest["checksums"][NAMES]:
        raise ValueError(f"{path}: {LABELS} or {NAMES} is missing or does not match the manifest; {_AGAIN}")
    images = _map_images(path, manifest)
    with np.load(path / LABELS, allow_pickle=False) as labels:
        identities = labels.get("identities")
        attributes, splits = labels["attributes"], labels["splits"]
    return Packed(
        images=images,
        attributes=attributes,
        attribute_names=tuple(manifest["attributes"]),
        names=json.loads((path / NAMES).read_text()),
        splits=splits,
        identities=identities,
        manifest=manifest,
    )


def save_labels(
    folder: Path, manifest: dict[str, Any], attributes: np.ndarray, names: list[str], splits: np.ndarray,
    identities: np.ndarray | None,
) -> None:  # fmt: skip
    """Finish a pack whose images.npy is in place: labels, then checksums, and the manifest last, in one rename."""
    arrays: dict[str, Any] = {"attributes": attributes.astype(np.int8), "splits": splits.astype(np.uint8)}
    if identities is not None:
        arrays["identities"] = identities.astype(np.int32)
    np.savez_compressed(folder / LABELS, **arrays)
    (folder / NAMES).write_text(json.dumps(names))
    checksums = {name: _sha256(folder / name) for name in (IMAGES, LABELS, NAMES)}
    written = {"format": FORMAT, **manifest, "count": len(names), "checksums": checksums}
    draft = folder / f"{MANIFEST}.tmp"
    with open(draft, "w") as file:
        file.write(json.dumps(written, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _remember_checked(folder)
    draft.replace(folder / MANIFEST)


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
        manifest = json.loads((path / MANIFEST).read_text())
        newer = manifest["format"] > FORMAT
        complete = {"source", "size", "count", "attributes"} <= manifest.keys() and {IMAGES, LABELS, NAMES} <= manifest[
            "checksums"
        ].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path / MANIFEST} is not a manifest of genmodels; {_AGAIN}") from None
    if newer:
        raise ValueError(
            f"{path} has format {manifest['format']}; this genmodels reads up to {FORMAT}: upgrade genmodels"
        )
    if not complete:
        raise ValueError(f"{path / MANIFEST} lacks fields; {_AGAIN}")
    return manifest


def _map_images(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    try:
        # Copy on write: torch wants writable memory, and the file never changes.
        images = np.load(path / IMAGES, mmap_mode="c", allow_pickle=False)  # (N, H, W, 3)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path / IMAGES} is missing or truncated ({error}); {_AGAIN}") from None
    expected = (manifest["count"], manifest["size"], manifest["size"], 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise ValueError(
            f"{path / IMAGES} is {images.dtype} {images.shape}, the manifest says uint8 {expected}; {_AGAIN}"
        )
    if not _is_checked(path):
        if _sha256(path / IMAGES) != manifest["checksums"][IMAGES]:
            raise ValueError(f"{path / IMAGES} does not match the manifest's checksum; {_AGAIN}")
        _remember_checked(path)
    return images


def _sha256(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _state(folder: Path) -> str:
    stat = (folder / IMAGES).stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _is_checked(folder: Path) -> bool:
    try:
        return (folder / CHECKED).read_text() == _state(folder)
    except OSError:
        return False


def _remember_checked(folder: Path) -> None:
    # Hashing gigabytes at every start would cost seconds; size and time of change tell whether it must be done again.
    with suppress(OSError):  # a read-only pack is checked every time
        (folder / CHECKED).write_text(_state(folder))
