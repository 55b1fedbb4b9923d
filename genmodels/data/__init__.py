"""Data sets: procedural faces and the images of many sources, packed once into memory-mapped arrays.

Importing this package does not import PyTorch.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from genmodels.data.celeba import celeba_source, download_celeba
from genmodels.data.decode import PAD, check_crop
from genmodels.data.directory import IMAGES, is_packed, load_packed, packed_size, save_labels
from genmodels.data.encoded import QUALITY, STORES, Store
from genmodels.data.exporting import export
from genmodels.data.folder import folder_source
from genmodels.data.huggingface import Columns, huggingface_source
from genmodels.data.joining import join
from genmodels.data.native import NATIVE, native_size
from genmodels.data.packed import Origin, Packed
from genmodels.data.packing import lock, progress_bar, write_pack
from genmodels.data.parts import Part
from genmodels.data.sheet import save_sheet
from genmodels.data.source import Source
from genmodels.data.torchvision_sets import SETS, torchvision_source
from genmodels.data.webdataset import webdataset_source
from genmodels.usage import say
from genmodels.writing import create_array, replacing

__all__ = [
    "Packed",
    "cache_folder",
    "download_celeba",
    "draw_toyfaces",
    "export",
    "join",
    "load_packed",
    "open_data",
    "pack",
    "save_sheet",
]

SOURCES = ("toyfaces", "celeba", "folder", *SETS, "huggingface", "webdataset")
"""Names of data sets that are not paths of packed directories."""
SIZE = 64
"""Default side of the images in pixels."""
TOYFACES = (16_384, 2_048)
"""Number of procedural faces for training and for validation."""


def open_data(
    data: str | Path = "toyfaces", root: str | Path | None = None, size: int | None = None, crop: str | None = None
) -> Packed:
    """Open a data set by name. It is packed into the cache first if it is not there yet.

    The cache ($GENMODELS_CACHE, or ~/.cache/genmodels) is keyed by names, sizes and modification
    times of the files, so a changed source is packed again. If several processes call this at the
    same time, one packs and the others wait.

    Args:
        data: one of `SOURCES`, or the path of a packed directory. "toyfaces", the default, are
            procedural faces.
        root: where the files are. For celeba, the folder with the official layout; for folder, the
            folder or .zip of images; for mnist, fashion-mnist, cifar10 and cifar100, the folder
            that torchvision uses, to which they are downloaded; for huggingface, a folder or file
            of parquet or arrow data, or a Hub id; for webdataset, a folder or pattern of shards.
        size: side of the images in pixels; None: see `default_size`.
        crop: for celeba "178" (default), "148", "140" or "128"; for the others "centre" (default),
            a number of pixels, or "pad", which adds a black border.

    Raises:
        ValueError, OSError: with one line that says what is wrong, where, and what to do.
    """
    data, root = os.path.expanduser(data), None if root is None else Path(os.path.expanduser(root))
    size = default_size(data) if size is None else size
    if data == "toyfaces":
        if root is not None or crop is not None:
            raise ValueError("toyfaces are drawn, not read from files: leave out --root and --crop")
        packed = load_packed(_pack_toyfaces(size))
    elif data in SOURCES:
        packed = load_packed(pack(data, root, None, size, crop))
        if root is not None and not root.exists():
            return packed  # a Hub id, or a pattern of shards: the pack itself is what can be opened again
    else:
        packed = _open_directory(data, root, size, crop)
    return replace(packed, origin=Origin(data, root, crop))


def default_size(data: str | Path) -> int:
    """Return the size at which `open_data` opens a data set if none is given, without opening it.

    A packed directory has a size of its own, and the data sets of torchvision have 28 or 32 pixels.
    For other data it is 64.

    Raises:
        ValueError: if the manifest of a packed directory is damaged.
    """
    place = Path(os.path.expanduser(data))
    if str(data) in SETS:
        return SETS[str(data)][1]
    return packed_size(place) if str(data) not in SOURCES and is_packed(place) else SIZE


def pack(
    data: str,
    root: Path | None,
    out: Path | None = None,
    size: int | Literal["native"] | None = None,
    crop: str | None = None,
    workers: int | None = None,
    allow_unmatched: bool = False,
    columns: Columns | None = None,
    store: Store = "raw",
    quality: int = QUALITY,
    part: Part | None = None,
) -> Path:
    """Decode the images of a source into a packed directory, on all cores, and return that directory.

    After an interruption, the same call continues where the previous one stopped.

    Args:
        data: one of `SOURCES` except toyfaces.
        root: see `open_data`.
        out: new or empty directory; None uses the cache.
        size: side of the packed images in pixels. Images are never enlarged. "native" keeps the
            size that the images have, see `native_size`; None: see `default_size`.
        crop: see `open_data`.
        workers: number of processes; None means one thread per core of this process.
        allow_unmatched: accept labels most of which belong to no image.
        columns: columns of a data set of huggingface.
        store: store pixels ("raw"), or encode the images again ("jpeg", "webp"), which takes less
            space; they are then decoded in training.
        quality: quality of encoded images, 1 to 100.
        part: pack only this part of the images, for `join`.

    Raises:
        ValueError, OSError: with one line that says what is wrong, where, and what to do.
    """
    aligned = data == "celeba"
    if store not in STORES:
        raise ValueError(f"cannot store images as {store!r}: expected {', '.join(STORES)}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality {quality}: expected 1 to 100")
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers}: expected at least 1")
    if store == "raw" and quality != QUALITY:
        raise ValueError(f"pixels have no --quality {quality}: leave it out, or choose --store jpeg or --store webp")
    crop = crop or ("178" if aligned else "centre")
    size = default_size(data) if size is None else size
    if size != NATIVE:
        check_crop(crop, size, aligned)
        if data in SETS and size > SETS[data][1] and crop != PAD:
            raise ValueError(f"{data} has images of {SETS[data][1]} px: choose at most that as --size, or --crop {PAD}")
    source = _open_source(data, root, allow_unmatched, columns)
    if size == NATIVE:
        size = native_size(source, crop, aligned)
        check_crop(crop, size, aligned)
    if out is None:
        stored = "" if store == "raw" else f"-{store}{quality}"
        piece = "" if part is None else f"-part-{part.number}-of-{part.of}"
        out = cache_folder() / f"{data}-{crop}-{size}{stored}-{source.stamp[:12]}{piece}"
        if is_packed(out):  # before locking, so that a complete cache may be read-only
            return out
    fresh = not is_packed(out)
    write_pack(source, out, size, crop, aligned, workers, store, quality, part)
    if fresh:
        say(f"packed {load_packed(out).describe()} into {out}")
    return out


def _open_source(data: str, root: Path | None, allow_unmatched: bool, columns: Columns | None) -> Source:
    """List the images of a source."""
    if data not in SOURCES[1:]:
        raise ValueError(f"cannot pack {data!r}: expected {', '.join(SOURCES[1:])}")
    if root is None:
        raise ValueError(f"--data {data} needs --root, the folder of its files")
    if allow_unmatched and data not in ("celeba", "folder"):
        raise ValueError(f"{data} has no tables of labels: leave out --allow-unmatched")
    if columns not in (None, Columns()) and data != "huggingface":
        raise ValueError(f"{data} has no columns: leave out --image-column, --label-column and --text-column")
    if data in SETS:
        return torchvision_source(data, root)
    if data == "huggingface":
        return huggingface_source(root, columns or Columns())
    if data == "webdataset":
        return webdataset_source(root)
    return (celeba_source if data == "celeba" else folder_source)(root, allow_unmatched)


def cache_folder() -> Path:
    """Return the default folder of packs: $GENMODELS_CACHE, or ~/.cache/genmodels."""
    return Path(os.path.expanduser(os.environ.get("GENMODELS_CACHE") or "~/.cache/genmodels"))


def _open_directory(data: str, root: Path | None, size: int, crop: str | None) -> Packed:
    if not Path(data).exists():
        raise ValueError(f"unknown data {data!r}: expected {', '.join(SOURCES)} or the path of a packed directory")
    if root is not None:
        raise ValueError(f"{data} is a packed directory: leave out --root")
    packed = load_packed(Path(data))
    if size != packed.size:
        raise ValueError(
            f"{data} holds images of {packed.size} px, not {size}: choose --size {packed.size}, "
            f"or pack the images again with --size {size}"
        )
    if crop not in (None, packed.crop):
        raise ValueError(f"{data} was packed with crop {packed.crop}, not {crop}: leave out --crop, or pack again")
    return packed


def _pack_toyfaces(size: int) -> Path:
    """Draw the procedural faces into the cache. The folder is named after a hash of their code."""
    from genmodels.data import toyfaces

    code = b"".join(path.read_bytes() for path in sorted(Path(toyfaces.__file__).parent.glob("toy*.py")))
    version = hashlib.sha256(code).hexdigest()[:12]
    return draw_toyfaces(cache_folder() / f"toyfaces-{size}-{version}", size, *TOYFACES)


def draw_toyfaces(out: Path, size: int = SIZE, train: int = TOYFACES[0], valid: int = TOYFACES[1]) -> Path:
    """Draw any number of procedural faces into a packed directory, unless it is there already.

    Args:
        out: packed directory.
        size: side of the images in pixels.
        train: number of training images: the faces 0 to train - 1 of seed 0.
        valid: number of validation images, the faces after them.

    Raises:
        ValueError: if the size or a number is too small.
        FullDiskError: if the disk has too little space.
    """
    from genmodels.data import toyfaces

    if size < 8:
        raise ValueError(f"size {size} is too small: images have at least 8 pixels a side")
    if min(train, valid) < 1:
        raise ValueError(f"toyfaces: the number of faces must be at least 1, got {train} and {valid}")
    if is_packed(out):
        return out
    with lock(out):
        if is_packed(out):
            return out
        count = train + valid
        attributes = np.zeros((count, len(toyfaces.ATTRIBUTES)), np.int8)  # (N, K)
        with progress_bar("drawing") as progress, replacing(out / IMAGES) as draft:
            images = create_array(draft, np.uint8, (count, size, size, 3))  # (N, H, W, 3)
            bar = progress.add_task("", total=count)
            for rows in np.array_split(np.arange(count), math.ceil(count / 2048)):  # draw() itself uses every core
                images[rows], attributes[rows] = toyfaces.draw(0, rows, size)
                progress.advance(bar, len(rows))
            images.flush()
        manifest = {
            "source": "toyfaces",
            "license": "apache-2.0",
            "size": size,
            "crop": None,
            "filter": None,
            "attributes": list(toyfaces.ATTRIBUTES),
        }
        names = [f"{i:06d}" for i in range(count)]
        splits = np.repeat(np.array([0, 1], np.uint8), (train, valid))
        save_labels(out, manifest, attributes=attributes, names=names, splits=splits)
    return out
