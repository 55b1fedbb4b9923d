"""Images: anyone's pictures as one array of pixels, with a word on what was converted. No torch is imported here."""

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
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from genmodels.data.decode import RefusedError, check_crop, decode, known_formats
from genmodels.data.packed import IMAGES, is_packed, load_packed
from genmodels.data.packing import cores
from genmodels.data.source import Files

ARRAYS = (".npy", ".npz")
BESIDE_IMAGES = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".rst", ".html", ".xml", ".yaml", ".yml", ".log"),
    *(".ini", ".db", ".py", ".sh"),
)
"""Files of these kinds (labels, manifests, read-me files) lie in folders of images and are passed over."""
NAMED_BESIDE_IMAGES = ("readme", "license", "licence", "notice", "checksums", "md5sums", "sha256sums")

Shape = tuple[int, int]
"""Width and height."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Images:
    """Square images of one size.

    Attributes:
        pixels: uint8 (N, S, S, 3); may be memory-mapped.
        name: what people call them, also in errors: "samples.npy".
        notes: what was converted to get them, one sentence each.

    Raises:
        ValueError: when the pixels are of another type or layout; says how to convert them.
    """

    pixels: np.ndarray
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
        """16 hex digits of the SHA-256 of shape and pixels."""
        digest = hashlib.sha256(repr(tuple(int(n) for n in self.pixels.shape)).encode())
        for start in range(0, len(self), 1024):  # whole sets may not fit into memory
            digest.update(np.ascontiguousarray(self.pixels[start : start + 1024]).data)
        return digest.hexdigest()[:16]

    def take(self, rows: slice | np.ndarray) -> Images:
        """Some of the images: a view for a slice, a copy in memory for an array of indices."""
        return replace(self, pixels=self.pixels[rows])


def read_images(path: Path, size: int | None = None) -> Images:
    """The images at `path`.

    A folder (with its subfolders) or a .zip of image files, an .npy or .npz array (of several arrays, "arr_0" or
    "samples"), or a packed directory, all its splits. Grey, palette and transparent images are read as RGB, as
    `genmodels data pack` reads them. Nothing pickled is loaded.

    Args:
        path: where they are.
        size: side of the result in pixels: the centre square of every image is resized to it with the Lanczos filter,
            never enlarged. None: the images must already be square and of one size.

    Raises:
        ValueError, FileNotFoundError: one line that says what was wrong, where, and what to do.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder, .zip, .npy or .npz of images")
    if size is not None:
        check_crop("centre", size, aligned=False)
    if path.suffix.lower() in ARRAYS and path.is_file():
        return _resized(Images(_load_array(path), path.name), size)
    if is_packed(path) and (path / IMAGES).exists():  # a folder of images may have a manifest.json too
        packed = load_packed(path)
        return _resized(Images(packed.images, f"{path.resolve().name} (packed, all splits)"), size)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise ValueError(
            f"{path} is no set of images: expected a folder, a .zip, an .npy, an .npz or a packed directory"
        )
    return _read_files(path, size)


def holds_images(path: Path) -> bool:
    """Whether `path` is for `read_images`: an archive, an array or a folder, but not the folder of a model or run."""
    if path.is_dir():
        return not any((path / name).exists() for name in ("config.json", "config.yaml", "model_index.json"))
    return path.suffix.lower() in (".zip", *ARRAYS)


def _read_files(root: Path, size: int | None) -> Images:
    """Decode a folder or an archive, each file on its own."""
    files, formats = Files(root), known_formats()
    names = sorted(entry.name for entry in files.entries() if not _is_beside(entry.name))
    if not names:
        raise ValueError(f"{root} holds no images")
    with _refusals(root, names[0]), files.open(names[0]) as file:
        first = _shape(file, formats)
    side = size or first[0]
    pixels = np.empty((len(names), side, side, 3), np.uint8)  # (N, S, S, 3)

    def read(i: int) -> tuple[Shape, list[str]]:
        with _refusals(root, names[i]), files.open(names[i]) as file:
            shape = _shape(file, formats)
            if size is None:
                _check_shapes(root, names[0], first, names[i], shape)
            elif min(shape) < size:
                most = f"choose at most --size {min(shape)}"
                raise ValueError(f"{root}: {names[i]} has {_by(shape)} pixels and none is enlarged: {most}")
            file.seek(0)
            pixels[i], kinds = decode(file, "centre", side, False, formats)
        return shape, kinds

    found = _in_threads(read, len(names), f"reading {root.resolve().name}")
    notes = _notes([shape for shape, _ in found], [kinds for _, kinds in found], side)
    return Images(pixels, root.resolve().name, notes)


@contextmanager
def _refusals(root: Path, name: str) -> Iterator[None]:
    """Inside, what is wrong with file `name` of `root` is said in one line that names it."""
    try:
        yield
    except RefusedError as error:
        raise ValueError(f"{root}: {name}: {error}; replace it or take it out") from None
    except (OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:  # RuntimeError: encrypted in its archive
        raise ValueError(f"{root}: {name} cannot be read ({error}); replace it or take it out") from None


def _shape(file: BinaryIO, formats: list[str]) -> Shape:
    """Width and height, without decoding the pixels."""
    try:
        with Image.open(file, formats=formats) as image:
            return image.size
    except Exception:  # readers raise all kinds; decode knows what to call them
        file.seek(0)
        decode(file, "centre", 1, False, formats)
        raise


def _check_shapes(root: Path, first: str, first_shape: Shape, name: str, shape: Shape) -> None:
    """Refuse images that are not square, or not all of one size."""
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
    """What was converted, cut and resized, one sentence each; none when the files were used as they are."""
    notes = []
    if converted := Counter(", ".join(found) for found in kinds if found):
        each = "; ".join(f"{n:,} {kind}" for kind, n in converted.most_common())
        notes.append(f"{converted.total():,} of {len(shapes):,} images were converted to 8-bit RGB: {each}")
    if cut := sum(width != height for width, height in shapes):
        notes.append(f"{cut:,} of {len(shapes):,} images are not square: their centre square was cut")
    low, high = min(map(min, shapes)), max(map(min, shapes))
    if (low, high) != (side, side):
        notes.append(f"resized from {low if low == high else f'{low}-{high}'} to {side} px, lanczos")
    return tuple(notes)


def _load_array(path: Path) -> np.ndarray:
    """The array of an .npy (memory-mapped) or .npz file; nothing pickled is loaded."""
    with open(path, "rb") as file:
        start = file.read(6)
    if not start.startswith((b"\x93NUMPY", b"PK")):
        raise ValueError(
            f"{path} is no array of numpy (it begins with {start!r}): write uint8 (N, S, S, 3) with np.save"
        )
    try:
        # Copy on write: torch wants writable memory, and the file never changes.
        found = np.load(path, mmap_mode="c", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found as arrays:
            names = list(arrays.files)
            chosen = names[0] if len(names) == 1 else next((n for n in ("arr_0", "samples") if n in names), None)
            if chosen is not None:
                return arrays[chosen]
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, zlib.error, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path} cannot be read as an array ({reason}); pickled objects are never loaded: "
            "write uint8 (N, S, S, 3) with np.save"
        ) from None
    raise ValueError(
        f"{path} holds {len(names)} arrays ({', '.join(names[:5])}), none called arr_0 or samples: "
        "write the images alone with np.save"
    )


def _check_layout(pixels: np.ndarray, name: str) -> None:
    """Refuse what is not uint8 (N, S, S, 3), with the line of numpy that makes it so where there is one."""
    shape, kind = pixels.shape, pixels.dtype.kind
    if pixels.dtype == np.uint8 and len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3 and shape[0] > 0:
        return
    advice = []
    if len(shape) == 4 and shape[3] != 3 and shape[1] in (1, 3, 4):
        advice.append("channels come last: x.transpose(0, 2, 3, 1)")
    elif len(shape) == 4 and shape[3] == 4:
        advice.append("leave out the alpha channel: x[..., :3]")
    elif len(shape) == 4 and shape[3] == 1:
        advice.append("repeat the grey channel: x.repeat(3, axis=-1)")
    elif len(shape) == 3 and shape[2] == 3:
        advice.append("one image is a set of one: x[None]")
    elif len(shape) == 3 and shape[1] == shape[2]:
        advice.append("repeat the grey channel: x[..., None].repeat(3, axis=-1)")
    elif len(shape) == 4 and shape[3] == 3 and shape[1] != shape[2]:
        advice.append("cut the images square")
    elif shape[:1] == (0,):
        advice.append("it holds no images")
    if kind == "f":
        advice.append(
            "floats in [0, 1] become 8-bit by (x * 255).round().astype('uint8'), "
            "in [-1, 1] by (x * 127.5 + 127.5).round().astype('uint8')"
        )
    elif pixels.dtype != np.uint8:
        advice.append("levels from 0 to 255 become 8-bit by x.astype('uint8')")
    what = "; ".join(advice) or "write it in this layout with np.save"
    raise ValueError(f"{name} is {pixels.dtype} {shape}, images are uint8 (N, S, S, 3): {what}")


def _resized(images: Images, size: int | None) -> Images:
    """`images` at `size` pixels a side, by the filter that packs use."""
    if size in (None, images.size):
        return images
    if size > images.size:
        raise ValueError(
            f"{images.name} holds images of {images.size} px and none is enlarged: choose at most --size {images.size}"
        )

    pixels = np.empty((len(images), size, size, 3), np.uint8)  # (N, S, S, 3)

    def resize(i: int) -> None:
        picture = Image.fromarray(images.pixels[i])
        pixels[i] = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))

    _in_threads(resize, len(images), f"resizing {images.name}")
    return Images(pixels, images.name, (*images.notes, f"resized from {images.size} to {size} px, lanczos"))


def _in_threads(work: Callable[[int], T], count: int, title: str) -> list[T]:
    """`work` on 0 ... count - 1, on all cores (Pillow releases Python's lock), under a bar; the first error ends it."""
    with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        # Bombs are refused by their size in pixels; Pillow's warning about them would only repeat it.
        warnings.simplefilter("ignore")
        return list(tqdm(pool.map(work, range(count)), title, count, unit=" images", disable=None, leave=False))
