"""The images of a pack while it is written: pixels in an array, or files one after another."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from genmodels.array_files import map_array
from genmodels.data.columns import write_blobs
from genmodels.data.directory import IMAGES, PARTIAL
from genmodels.writing import check_space, create_array


@dataclass(frozen=True)
class Chunk:
    """Journal entry of consecutive images.

    Attributes:
        start: index of the first image in the source.
        checksum: CRC-32 of the pixels or files, to detect those that did not reach the disk before a
            crash.
        converted: number of images per kind of conversion.
        skipped: (index, reason) of images that were refused; their pixels are 0, their files empty.
        place: place of the files in the file of all, in bytes.
        lengths: length of each file in bytes.
    """

    start: int
    checksum: int
    converted: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    place: int = 0
    lengths: list[int] = field(default_factory=list)


class Partial(ABC):
    """Images of a pack that is not complete, in the order of the source.

    Args:
        out: folder of the pack.
        count: number of images of the source.
        size: side of the images in pixels.
    """

    def __init__(self, out: Path, count: int, size: int):
        self.out = out
        self.path = out / PARTIAL
        self.count = count
        self.size = size

    @abstractmethod
    def create(self) -> None:
        """Begin anew.

        Raises:
            OSError: if the disk has too little space.
        """

    @abstractmethod
    def reopen(self, chunks: Sequence[Chunk], length: int) -> list[Chunk] | None:
        """Return those chunks, of `length` images, that are intact, or None if nothing is there."""

    @abstractmethod
    def write(self, start: int, images: Any) -> dict[str, Any]:
        """Write images start, start + 1, ..., and return the fields of their `Chunk`."""

    @abstractmethod
    def finish(self, order: np.ndarray) -> None:
        """Write the images of the pack, which are those with the indices `order`."""


class PartialPixels(Partial):
    """Pixels, uint8 (N, S, S, 3)."""

    images: np.ndarray

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return self.count, self.size, self.size, 3

    def create(self) -> None:
        # Twice the size: dropping rows or sorting them by split needs a second file.
        check_space(self.out, 2 * self.count * self.size**2 * 3)
        self.images = create_array(self.path, np.uint8, self._shape)

    def reopen(self, chunks: Sequence[Chunk], length: int) -> list[Chunk] | None:
        if not self.path.exists() and (self.out / IMAGES).exists():
            (self.out / IMAGES).rename(self.path)  # interrupted in finish()
        try:
            images = map_array(self.path)
        except ValueError:
            return None
        if images.shape != self._shape or images.dtype != np.uint8 or self.path.is_symlink():
            return None
        self.images = open_memmap(self.path, "r+")  # (N, S, S, 3)
        return [c for c in chunks if zlib.crc32(self.images[c.start : c.start + length].data) == c.checksum]

    def write(self, start: int, images: np.ndarray) -> dict[str, Any]:
        self.images[start : start + len(images)] = images
        return {"checksum": zlib.crc32(images.data)}

    def finish(self, order: np.ndarray) -> None:
        images = self.images
        if isinstance(images, np.memmap):
            images.flush()
        if np.array_equal(order, np.arange(self.count)):
            self.path.rename(self.out / IMAGES)
            return
        ordered = create_array(self.out / IMAGES, np.uint8, (len(order), *self._shape[1:]))
        for start in range(0, len(order), 1024):
            ordered[start : start + 1024] = images[order[start : start + 1024]]
        ordered.flush()


class PartialFiles(Partial):
    """Encoded images, in the order in which they were written."""

    def create(self) -> None:
        self._places, self._lengths = np.zeros(self.count, np.int64), np.zeros(self.count, np.int64)
        self._end = 0
        self.path.unlink(missing_ok=True)
        self.path.touch()

    def reopen(self, chunks: Sequence[Chunk], length: int) -> list[Chunk] | None:
        if not self.path.is_file() or self.path.is_symlink():
            return None
        size, intact = self.path.stat().st_size, []
        self._places, self._lengths = np.zeros(self.count, np.int64), np.zeros(self.count, np.int64)
        self._end = 0
        with open(self.path, "rb") as file:
            for chunk in chunks:
                total = sum(chunk.lengths)
                whole = len(chunk.lengths) == min(length, self.count - chunk.start) and min(chunk.lengths) >= 0
                if not whole or not 0 <= chunk.place <= size - total:
                    continue
                file.seek(chunk.place)
                if zlib.crc32(file.read(total)) == chunk.checksum:
                    self._note(chunk.start, chunk.place, chunk.lengths)
                    intact.append(chunk)
        return intact

    def write(self, start: int, images: list[bytes]) -> dict[str, Any]:
        content, place, lengths = b"".join(images), self._end, [len(file) for file in images]
        with open(self.path, "r+b") as file:
            file.seek(place)
            file.write(content)
        self._note(start, place, lengths)
        return {"checksum": zlib.crc32(content), "place": place, "lengths": lengths}

    def _note(self, start: int, place: int, lengths: list[int]) -> None:
        ends = np.cumsum(lengths)
        self._places[start : start + len(lengths)] = place + ends - lengths
        self._lengths[start : start + len(lengths)] = lengths
        self._end = max(self._end, place + int(ends[-1]))

    def finish(self, order: np.ndarray) -> None:
        def files() -> Iterator[bytes]:
            with open(self.path, "rb") as file:
                for i in order.tolist():
                    file.seek(self._places[i])
                    yield file.read(self._lengths[i])

        check_space(self.out, int(self._lengths[order].sum()))
        write_blobs(self.out, "images", files(), len(order))
