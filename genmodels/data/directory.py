"""Packed directories: the files that hold a `Packed`, written and read with every part checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from genmodels.array_files import map_array
from genmodels.data.labels import check_manifest, read_captions, read_labels, read_names
from genmodels.data.packed import Origin, Packed
from genmodels.data.source import LARGEST_TABLE
from genmodels.hashing import file_sha256
from genmodels.reading import read_json, read_text
from genmodels.writing import replacing, write_json, write_text

FORMAT = 1
"""Version of the directory layout. Newer versions are refused."""

MANIFEST, IMAGES, LABELS, NAMES, TEXT = "manifest.json", "images.npy", "labels.npz", "names.json", "text.json"
CHECKED = "checked"
PARTIAL, JOURNAL = "images.partial", "progress.jsonl"


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
            class_names=tuple(manifest.get("classes", [])),
            names=read_names(path / NAMES, count),
            manifest=manifest,
            origin=Origin(str(path)),
            text=read_captions(path / TEXT, count) if TEXT in manifest["checksums"] else None,
            **read_labels(path / LABELS, count, len(attributes), len(manifest.get("classes", []))),
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
    labels: np.ndarray | None = None,
    identities: np.ndarray | None = None,
    text: Sequence[tuple[str, ...]] | None = None,
) -> None:
    """Complete a pack whose images are in place: write labels, then checksums, then the manifest.

    The manifest appears in one rename, so that an interrupted pack is never mistaken for a complete
    one.
    """
    arrays: dict[str, Any] = {"attributes": attributes.astype(np.int8), "splits": splits.astype(np.uint8)}
    if labels is not None:
        arrays["labels"] = labels.astype(np.int32)
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
