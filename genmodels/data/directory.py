"""Packed directories: the files that hold a `Packed`, written and read with every part checked.

A pack of format 2 has one file per column, which stays on disk: `NAME.npy` for numbers, and byte
strings in `NAME.bin` with their places in `NAME.offsets.npy`. See docs/data.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from genmodels.array_files import map_array
from genmodels.data.columns import (
    map_blobs,
    map_captions,
    map_texts,
    write_array,
    write_blobs,
    write_captions,
    write_texts,
)
from genmodels.data.encoded import EncodedImages
from genmodels.data.format1 import ALWAYS, read_columns
from genmodels.data.manifest import check_column, check_manifest, limits
from genmodels.data.packed import Origin, Packed
from genmodels.data.source import LARGEST_TABLE
from genmodels.hashing import file_sha256
from genmodels.reading import read_json, read_text
from genmodels.writing import write_json, write_text

FORMAT = 2
"""Version of the directory layout. Newer versions are refused."""

MANIFEST, IMAGES, CHECKED = "manifest.json", "images.npy", "checked"
PARTIAL, JOURNAL = "images.partial", "progress.jsonl"
ENCODED = ("images.bin", "images.offsets.npy")
"""Files of the images, if they are stored encoded."""
_REQUIRED = ("attributes.npy", "splits.npy", "names.bin", "names.offsets.npy")
_OPTIONAL = (("identities.npy",), ("labels.npy",), ("text.bin", "text.offsets.npy", "text.rows.npy"))
_AT_ONCE = 1024
"""Images that are copied at a time."""


def is_packed(path: Path) -> bool:
    """Return whether `path` holds a complete pack. The manifest is written last."""
    return (path / MANIFEST).is_file()


def is_pack_of_images(path: Path) -> bool:
    """Return whether `path` holds a complete pack, and not only a manifest, as an export does."""
    return is_packed(path) and any((path / name).exists() for name in (IMAGES, ENCODED[0]))


def load_packed(path: Path, verify: bool = False) -> Packed:
    """Open the pack in directory `path` and check it. Its columns stay on disk.

    Checksums and values are checked if a file has changed since they were last checked.

    Args:
        path: the directory.
        verify: check them in any case.

    Raises:
        ValueError: if there is no pack, or if it is incomplete, damaged or of a newer format.
    """
    manifest = _read_manifest(path)
    remembered = _remembered(manifest)
    changed = verify or not _is_checked(path, remembered)
    try:
        images = _open_images(path, manifest, changed)
    except ValueError as error:
        raise ValueError(f"the images of {path} are missing or truncated ({error}); {_AGAIN}") from None
    for name in remembered if changed else ():
        _verify(path, name, manifest)
    for name in ALWAYS if manifest["format"] == 1 else ():
        if name in manifest["checksums"]:
            _verify(path, name, manifest)
    try:
        columns = (read_columns if manifest["format"] == 1 else _map_columns)(path, manifest, changed)
    except ValueError as error:
        raise ValueError(f"{error}; {_AGAIN}") from None
    if changed:
        _remember_checked(path, remembered)
    return Packed(
        images=images,
        attribute_names=tuple(manifest["attributes"]),
        class_names=tuple(manifest.get("classes", [])),
        manifest=manifest,
        origin=Origin(str(path)),
        **columns,
    )


def packed_size(path: Path) -> int:
    """Return the side of the images of a packed directory, in pixels, without opening them.

    Raises:
        ValueError: if its manifest is damaged.
    """
    size: int = _read_manifest(path)["size"]
    return size


def save_labels(folder: Path, manifest: dict[str, Any], **columns: Any) -> None:
    """Complete a pack whose images are in place. See `save_columns`.

    Args:
        folder: folder of the pack.
        manifest: manifest without format, count and checksums.
        **columns: attributes, names, splits and, if there are any, labels, identities and text, as in
            `Packed`.
    """
    save_columns(folder, manifest, [columns])


def save_columns(folder: Path, manifest: dict[str, Any], pieces: Sequence[Mapping[str, Any]]) -> None:
    """Complete a pack whose images are in place: write the columns, then checksums, then the
    manifest.

    The manifest appears in one rename, so that an interrupted pack is never mistaken for a complete
    one.

    Args:
        folder: folder of the pack.
        manifest: manifest without format, count and checksums.
        pieces: columns of consecutive rows, by name. A column that is None or absent is absent in
            all of them.
    """
    count = sum(len(piece["names"]) for piece in pieces)
    written = [IMAGES] if manifest.get("store") is None else [*ENCODED]
    for name, (kind, shape, *_) in limits(manifest, count).items():
        if pieces[0].get(name) is not None:
            write_array(folder / f"{name}.npy", (piece[name] for piece in pieces), kind, shape)
            written.append(f"{name}.npy")
    written += write_texts(folder, "names", chain.from_iterable(piece["names"] for piece in pieces), count)
    for name in ("text", "conversations"):
        if pieces[0].get(name) is not None:
            written += write_captions(folder, name, [piece[name] for piece in pieces])
    checksums = {name: file_sha256(folder / name) for name in written}
    complete = {"format": FORMAT, **manifest, "count": count, "checksums": checksums}
    _remember_checked(folder, _remembered(complete))
    write_json(folder / MANIFEST, complete, indent=1)


def save_images(folder: Path, pieces: Sequence[np.ndarray | EncodedImages]) -> None:
    """Write the images of a pack from those of other packs that are stored in the same way."""
    count, shape = sum(map(len, pieces)), pieces[0].shape[1:]
    if isinstance(pieces[0], EncodedImages):
        encoded = (piece for piece in pieces if isinstance(piece, EncodedImages))
        write_blobs(folder, "images", chain.from_iterable(piece.files() for piece in encoded), count)
    else:
        write_array(folder / IMAGES, _few(pieces), np.uint8, (count, *shape))


def _few(pieces: Iterable[Any]) -> Iterator[np.ndarray]:
    for images in pieces:
        for start in range(0, len(images), _AT_ONCE):
            yield images[start : start + _AT_ONCE]


_AGAIN = "the pack is damaged: delete it and pack again"


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ValueError(f"{path}: no such packed directory")
    if not is_packed(path):
        if (path / JOURNAL).exists():
            command = "`genmodels data pack` or `data join`"
            raise ValueError(f"{path} is a partial pack: run the same {command} again to finish it")
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
    needed = [*_remembered(manifest), *(ALWAYS[:2] if manifest["format"] == 1 else ())]
    if not manifest["checksums"].keys() >= set(needed):
        raise ValueError(f"{path / MANIFEST} lacks checksums; {_AGAIN}")
    checked: dict[str, Any] = manifest
    return checked


def _remembered(manifest: dict[str, Any]) -> list[str]:
    """Return the files whose checksums are verified only if they have changed."""
    if manifest["format"] == 1:
        return [IMAGES]
    optional = chain.from_iterable(names for names in _OPTIONAL if names[0] in manifest["checksums"])
    return [*([IMAGES] if manifest.get("store") is None else ENCODED), *_REQUIRED, *optional]


def _open_images(path: Path, manifest: dict[str, Any], check: bool) -> np.ndarray | EncodedImages:
    count, size, store = manifest["count"], manifest["size"], manifest.get("store")
    if store is not None:
        return EncodedImages(range(count), *map_blobs(path, "images", count, check), size, store, path)
    images = np.asarray(map_array(path / IMAGES))  # (N, H, W, 3), without memmap's cost per access
    expected = (count, size, size, 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise ValueError(f"{IMAGES} is {images.dtype} {images.shape}, the manifest says uint8 {expected}")
    return images


def _map_columns(path: Path, manifest: dict[str, Any], check: bool) -> dict[str, Any]:
    """Open all columns but the images.

    Raises:
        ValueError: if one is damaged or has other values or another length; names the file.
    """
    count, known = manifest["count"], manifest["checksums"]
    columns: dict[str, Any] = {"names": map_texts(path, "names", count, check)}
    for name, limit in limits(manifest, count).items():
        if (file := f"{name}.npy") in known:
            columns[name] = np.asarray(map_array(path / file))
            check_column(path / file, name, columns[name], limit, check)
    for name in ("text", "conversations"):
        if f"{name}.bin" in known:
            columns[name] = map_captions(path, name, count, check)
    return columns


def _verify(path: Path, name: str, manifest: dict[str, Any]) -> None:
    file = path / name
    if not file.is_file() or file_sha256(file) != manifest["checksums"][name]:
        raise ValueError(f"{file} is missing or does not match the manifest's checksum; {_AGAIN}")


def _state(folder: Path, names: Sequence[str]) -> str:
    stats = [(folder / name).stat() for name in names]
    return "\n".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)


def _is_checked(folder: Path, names: Sequence[str]) -> bool:
    try:
        return read_text(folder / CHECKED) == _state(folder, names)
    except (OSError, ValueError):
        return False


def _remember_checked(folder: Path, names: Sequence[str]) -> None:
    # Hashing gigabytes at every start takes seconds. It is repeated only if a size or modification
    # time changed.
    with suppress(OSError):  # a read-only pack is checked every time
        write_text(folder / CHECKED, _state(folder, names))
