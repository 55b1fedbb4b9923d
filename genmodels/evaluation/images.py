"""Sets of images from folders, archives and arrays, with notes on what was converted. Does not
import torch."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from genmodels.array_files import archived_names, free_memory, map_array, read_archived
from genmodels.data.decode import check_crop, decode
from genmodels.data.directory import is_pack_of_images, load_packed
from genmodels.data.encoded import EncodedImages
from genmodels.data.rows import take_rows
from genmodels.data.source import Files, readable
from genmodels.data.threads import cores
from genmodels.image_files import RefusedError, image_size

ARRAYS = (".npy", ".npz")
BESIDE_IMAGES = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".rst", ".html", ".xml", ".yaml", ".yml", ".log"),
    *(".ini", ".db", ".py", ".sh"),
)
"""Files of these kinds (labels, manifests, read-me files) are common in folders of images and are
ignored."""
NAMED_BESIDE_IMAGES = ("readme", "license", "licence", "notice", "checksums", "md5sums", "sha256sums")

Shape = tuple[int, int]
"""Width and height in pixels."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Images:
    """Square images of one size.

    Attributes:
        pixels: uint8 (N, S, S, 3), which may be memory-mapped, or decoded when they are read.
        name: display name, such as "samples.npy".
        notes: how the images were converted, one sentence each.

    Raises:
        ValueError: if the pixels have another type or layout. The message says how to convert them.
    """

    pixels: np.ndarray | EncodedImages
    name: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_layout(self.pixels, self.name)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.pixels.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of shape and pixels."""
        digest = hashlib.sha256(repr(tuple(int(n) for n in self.pixels.shape)).encode())
        for start in range(0, len(self), 1024):  # the set may not fit into memory
            digest.update(np.ascontiguousarray(self.pixels[start : start + 1024]).data)
        return digest.hexdigest()[:16]

    @property
    def identity(self) -> str:
        """Fingerprint and number of the images, as protocols store them."""
        return f"{self.fingerprint} ({len(self):,})"

    def take(self, rows: slice | np.ndarray) -> Images:
        """Return some of the images: a view for a slice, a copy in memory for an array of
        indices, except of images that are decoded when they are read."""
        return replace(self, pixels=take_rows(self.pixels, rows))


def read_images(path: Path, size: int | None = None) -> Images:
    """Read the images at `path`.

    It may be a folder (with its subfolders) or a .zip of image files, an .npy or .npz array (if the
    .npz holds several, "arr_0" or "samples"), or a packed directory, of which all splits are read.
    Grey, palette and transparent images are read as RGB, as by `genmodels data pack`. Pickled
    objects are never loaded.

    Args:
        path: the file or folder.
        size: side of the result in pixels. The centre square of every image is resized to it with
            the Lanczos filter; images are never enlarged. None: the images must be square and of
            one size.

    Raises:
        ValueError, FileNotFoundError: if they cannot be read. The message is one line and says what
            to do.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder, .zip, .npy or .npz of images")
    if size is not None:
        check_crop("centre", size, aligned=False)
    if path.suffix.lower() in ARRAYS and path.is_file():
        return _resized(Images(_load_array(path), path.name), size)
    # A folder of images may contain a manifest.json too.
    if is_pack_of_images(path):
        packed = load_packed(path)
        return _resized(Images(packed.images, f"{readable(path.resolve().name)} (packed, all splits)"), size)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise ValueError(
            f"{path} is not a set of images: expected a folder, a .zip, an .npy, an .npz or a packed directory"
        )
    return _read_files(path, size)


def holds_images(path: Path) -> bool:
    """Return whether `path` is an archive, an array or a folder of images, and not a run or a saved
    model."""
    if path.is_dir():
        return not any((path / name).exists() for name in ("config.json", "config.yaml", "model_index.json"))
    return path.suffix.lower() in (".zip", *ARRAYS)


def _read_files(root: Path, size: int | None) -> Images:
    """Decode the image files of a folder or an archive."""
    files = Files(root)
    names = sorted(entry.name for entry in files.entries() if not _is_beside(entry.name))
    if not names:
        raise ValueError(f"{root} holds no images")
    with _refusals(root, names[0]), files.open(names[0]) as file:
        first = image_size(file)
    side = size or first[0]
    pixels = _room(str(root), len(names), side)  # (N, S, S, 3)

    def read(i: int) -> tuple[Shape, list[str]]:
        with _refusals(root, names[i]), files.open(names[i]) as file:
            shape = image_size(file)
            if size is None:
                _check_shapes(root, names[0], first, names[i], shape)
            elif min(shape) < size:
                most = f"choose at most --size {min(shape)}"
                raise ValueError(f"{root}: {names[i]} has {_by(shape)} pixels and images are not enlarged: {most}")
            file.seek(0)
            pixels[i], kinds = decode(file, "centre", side, False)
        return shape, kinds

    files_read = _in_threads(read, len(names), f"reading {root.resolve().name}")
    notes = _notes([shape for shape, _ in files_read], [kinds for _, kinds in files_read], side)
    notes += tuple(f"{name} was left out: {reason}" for name, reason in files.left_out)
    return Images(pixels, readable(root.resolve().name), notes)


@contextmanager
def _refusals(root: Path, name: str) -> Iterator[None]:
    """Context manager in which an error about file `name` of `root` becomes one line that names the
    file."""
    try:
        yield
    except RefusedError as error:
        raise ValueError(f"{root}: {name}: {error}; replace it or remove it") from None
    # RuntimeError: the file is encrypted in its archive.
    except (OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{root}: {name} cannot be read ({error}); replace it or remove it") from None


def _check_shapes(root: Path, first: str, first_shape: Shape, name: str, shape: Shape) -> None:
    """Check that images are square and of one size."""
    remedy = "--size S cuts the centre square of every image and resizes it to S x S (lanczos)"
    if shape != first_shape:
        raise ValueError(
            f"{root} mixes sizes: {first} has {_by(first_shape)} pixels, {name} has {_by(shape)}; {remedy}"
        )
    if shape[0] != shape[1]:
        raise ValueError(f"{root}: {name} has {_by(shape)} pixels and is not square; {remedy}")


def _by(shape: Shape) -> str:
    return f"{shape[0]} x {shape[1]}"


def _is_beside(name: str) -> bool:
    base = name.rsplit("/", 1)[-1].lower()
    return base.endswith(BESIDE_IMAGES) or base in NAMED_BESIDE_IMAGES


def _notes(shapes: list[Shape], kinds: list[list[str]], side: int) -> tuple[str, ...]:
    """Return how the files were converted, cropped and resized, one sentence each."""
    notes = []
    if converted := Counter(", ".join(kind) for kind in kinds if kind):
        each = "; ".join(f"{n:,} {kind}" for kind, n in converted.most_common())
        notes.append(f"{converted.total():,} of {len(shapes):,} images were converted to 8-bit RGB: {each}")
    if cut := sum(width != height for width, height in shapes):
        notes.append(f"{cut:,} of {len(shapes):,} images are not square: they were cropped to the centre square")
    low, high = min(map(min, shapes)), max(map(min, shapes))
    if (low, high) != (side, side):
        notes.append(f"resized from {low if low == high else f'{low}-{high}'} to {side} px, lanczos")
    return tuple(notes)


def _load_array(path: Path) -> np.ndarray:
    """Load the array of an .npy (memory-mapped) or .npz file without loading pickled objects."""
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(b"\x93NUMPY"):
        return map_array(path)
    if not start.startswith(b"PK"):
        raise ValueError(
            f"{path} is not an array of numpy (it begins with {start!r}): write uint8 (N, S, S, 3) with np.save"
        )
    names = archived_names(path)
    chosen = names[0] if len(names) == 1 else next((n for n in ("arr_0", "samples") if n in names), None)
    if chosen is not None:
        return read_archived(path, chosen)
    raise ValueError(
        f"{path} holds {len(names)} arrays ({', '.join(names[:5])}), none called arr_0 or samples: "
        "write the images alone with np.save"
    )


def _room(name: str, count: int, side: int) -> np.ndarray:
    """Return memory for images, uint8 (count, side, side, 3), or refuse as many as do not fit."""
    needed, free = 3 * count * side**2, free_memory()
    if needed > free:
        raise ValueError(
            f"{name}: {count:,} images of {side:,} px need {needed / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} GB "
            "are free: choose a smaller --size, or give fewer images"
        )
    return np.empty((count, side, side, 3), np.uint8)


def _check_layout(pixels: np.ndarray | EncodedImages, name: str) -> None:
    """Check that `pixels` are uint8 (N, S, S, 3). The error contains the numpy expression that
    converts them."""
    shape, kind = pixels.shape, pixels.dtype.kind
    if pixels.dtype == np.uint8 and len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3 and 0 not in shape:
        return
    advice = []
    if len(shape) == 4 and shape[3] != 3 and shape[1] in (1, 3, 4):
        advice.append("channels come last: x.transpose(0, 2, 3, 1)")
    elif len(shape) == 4 and shape[3] == 4:
        advice.append("remove the alpha channel: x[..., :3]")
    elif len(shape) == 4 and shape[3] == 1:
        advice.append("repeat the grey channel: x.repeat(3, axis=-1)")
    elif len(shape) == 3 and shape[2] == 3:
        advice.append("add an axis for a single image: x[None]")
    elif len(shape) == 3 and shape[1] == shape[2]:
        advice.append("repeat the grey channel: x[..., None].repeat(3, axis=-1)")
    elif len(shape) == 4 and shape[3] == 3 and shape[1] != shape[2]:
        advice.append("crop the images to squares")
    elif 0 in shape:
        advice.append("it contains no images")
    if kind == "f":
        advice.append(
            "convert floats in [0, 1] by (x * 255).round().astype('uint8'), "
            "in [-1, 1] by (x * 127.5 + 127.5).round().astype('uint8')"
        )
    elif pixels.dtype != np.uint8:
        advice.append("convert levels from 0 to 255 by x.astype('uint8')")
    what = "; ".join(advice) or "write it in this layout with np.save"
    raise ValueError(f"{name} is {pixels.dtype} {shape}, images are uint8 (N, S, S, 3): {what}")


def _resized(images: Images, size: int | None) -> Images:
    """Resize `images` to `size` pixels with the filter that packed data use."""
    if size in (None, images.size):
        return images
    if size > images.size:
        raise ValueError(
            f"{images.name} holds images of {images.size} px, which are not enlarged: "
            f"choose at most --size {images.size}"
        )

    pixels = _room(images.name, len(images), size)  # (N, S, S, 3)

    def resize(i: int) -> None:
        picture = Image.fromarray(images.pixels[i])
        pixels[i] = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))

    _in_threads(resize, len(images), f"resizing {images.name}")
    return Images(pixels, images.name, (*images.notes, f"resized from {images.size} to {size} px, lanczos"))


def _in_threads(work: Callable[[int], T], count: int, title: str) -> list[T]:
    """Call `work` on 0 ... count - 1 on all cores (Pillow releases the GIL), up to the first
    error."""
    with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        # decode() refuses images with too many pixels, so that Pillow's warning is not needed.
        warnings.simplefilter("ignore")
        return list(tqdm(pool.map(work, range(count)), title, count, unit=" images", disable=None, leave=False))
