"""A column of images that are stored as JPEG or WebP and decoded when they are read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from PIL import Image

from genmodels.data.columns import Column
from genmodels.data.threads import ahead, cores, shared_pool
from genmodels.image_files import RefusedError, stored_pixels

T = TypeVar("T")
Store = Literal["raw", "jpeg", "webp"]
"""How a pack stores its images: as pixels, or encoded."""
STORES: tuple[Store, ...] = get_args(Store)
QUALITY = 95
"""Default quality of encoded images, 1 to 100."""
_STEPS = 2
"""Steps of training whose images are decoded ahead."""
_PER_THREAD = 8
"""Images that a thread decodes at a time."""


@dataclass(frozen=True, eq=False)
class EncodedImages(Column):
    """Images that are decoded when they are read, for use in place of an array.

    It has the length, `shape` and `dtype` of uint8 (N, S, S, 3). An index gives one image, a slice
    or an array of indices gives an array in memory, and `np.asarray` gives all images. Many images
    are decoded by several threads.

    Attributes:
        content: all files, uint8 (B,).
        offsets: int64 (N + 1,); file i is content[offsets[i] : offsets[i + 1]].
        size: side of the images in pixels.
        store: format of the files.
        where: path of the pack, for messages.
    """

    content: np.ndarray
    offsets: np.ndarray
    size: int
    store: Store
    where: Path

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the array that it stands for."""
        return len(self), self.size, self.size, 3

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, int | np.integer):
            out = np.empty((1, *self.shape[1:]), np.uint8)
            self._decode(np.array([self.rows[int(key)]]), out)
            return out[0]  # (S, S, 3)
        rows = np.asarray(self.take(key if isinstance(key, slice) else np.asarray(key)).rows)
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)  # (n, S, S, 3)
        if len(rows) <= _PER_THREAD:
            self._decode(rows, out)
        else:
            parts = [slice(start, start + _PER_THREAD) for start in range(0, len(rows), _PER_THREAD)]
            pool = shared_pool("decode", min(16, cores()))
            list(pool.map(lambda part: self._decode(rows[part], out[part]), parts))
        return out

    def files(self) -> Iterator[bytes]:
        """Yield the encoded files."""
        for rows in self.row_numbers():
            for row in rows.tolist():
                yield self.content[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("encoded images cannot be an array without a copy")
        return self[:].astype(dtype or np.uint8, copy=False)

    def _decode(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Decode the images in `rows` on disk into `out`, uint8 (n, S, S, 3)."""
        for row, place in zip(rows.tolist(), out, strict=True):
            try:
                pixels = stored_pixels(self.content[self.offsets[row] : self.offsets[row + 1]].tobytes())
                if pixels.shape != place.shape:  # which NumPy might broadcast
                    raise RefusedError(f"it has the shape {pixels.shape}")
            except RefusedError as reason:
                raise ValueError(
                    f"image {row:,} of {self.where} cannot be decoded ({reason}); "
                    "the pack is damaged: delete it and pack again"
                ) from None
            place[:] = pixels


def read_ahead(images: np.ndarray | EncodedImages, function: Callable[[int], T]) -> Callable[[int], T]:
    """Return `function`, which reads images for a step. If they have to be decoded, the result reads
    those of the next steps in the background."""
    return ahead(function, _STEPS) if isinstance(images, EncodedImages) else function


def encode(pixels: np.ndarray, store: Store, quality: int) -> bytes:
    """Return the JPEG or WebP file of one image, uint8 (S, S, 3).

    The chroma of a JPEG is stored at half the resolution, as Pillow does by default: without that,
    decoding takes twice as long.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, store.upper(), quality=quality)
    return file.getvalue()
