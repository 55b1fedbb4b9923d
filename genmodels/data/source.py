"""Source: a list of image files and their labels, before the images are decoded."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

LARGEST_MEMBER = 1 << 28
"""Largest file, in bytes, that is read from an archive into memory."""


@dataclass(frozen=True, eq=False)
class Source:
    """Images in a folder or a zip archive.

    Attributes:
        title: short description, such as "celeba (18,022 of 202,599 images)".
        where: the folder or archive.
        names: names of the images, sorted.
        paths: paths of the images in the folder or archive.
        attributes, attribute_names, splits, identities, text: one row per name, as in `Packed`.
        stamp: hash of names, sizes and modification times; it changes if a file changes. No image
            is opened to compute it.
        left_out: (name, reason) of files that are skipped without opening them.
        origin: manifest of the pack of which this source is an export.
    """

    title: str
    where: Path
    names: list[str]
    paths: list[str]
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    splits: np.ndarray
    identities: np.ndarray | None
    stamp: str
    text: list[tuple[str, ...]] | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    origin: dict[str, Any] | None = None


@dataclass(frozen=True)
class Entry:
    """A file that may be an image: relative path, size in bytes, and modification time or CRC."""

    name: str
    size: int
    changed: int


class Files:
    """Reads files of a folder or a zip archive by relative path, also from several threads.

    Raises:
        FileNotFoundError: if `where` does not exist.
        ValueError: if `where` is a file but not a zip archive.
    """

    def __init__(self, where: Path):
        self.where = where
        self._archive = None if where.is_dir() else open_archive(where)

    def entries(self) -> Iterator[Entry]:
        """Yield every file that is not hidden, in no particular order."""
        if self._archive is None:
            yield from _walk(self.where, "", set())
            return
        for info in self._archive.infolist():
            if not info.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in info.filename.split("/")):
                yield Entry(info.filename, info.file_size, info.CRC)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open the file `name` for reading and seeking."""
        if self._archive is None:
            with open(self.where / name, "rb") as file:
                yield file
            return
        size = self._archive.getinfo(name).file_size
        if size > LARGEST_MEMBER:
            raise OSError(f"file of {size:,} bytes in an archive; at most {LARGEST_MEMBER:,} are read")
        yield io.BytesIO(self._archive.read(name))

    def read_text(self, name: str) -> str:
        """Read the text file `name` as UTF-8."""
        with self.open(name) as file:
            return file.read().decode("utf-8-sig")


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive. Files that are not archives, such as a saved error page, are refused."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        with open(path, "rb") as file:
            start = file.read(16)
        raise ValueError(
            f"{path} is not a complete zip archive (it begins with {start!r}): "
            "the download failed or was cut short; download it again"
        ) from None


def fingerprint(entries: Iterable[Entry], *texts: str) -> str:
    """Return 32 hex digits that identify a list of files and the text of label files."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size}\0{entry.changed}\0".encode("utf-8", "surrogateescape"))
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:32]


def _walk(folder: Path, prefix: str, seen: set[str]) -> Iterator[Entry]:
    real = os.path.realpath(folder)
    if real in seen:  # symbolic links may form a cycle
        return
    seen.add(real)
    with os.scandir(folder) as items:
        for item in items:
            if item.name.startswith("."):
                continue
            if item.is_dir():
                yield from _walk(folder / item.name, f"{prefix}{item.name}/", seen)
            elif item.is_file():
                stat = item.stat()
                yield Entry(prefix + item.name, stat.st_size, stat.st_mtime_ns)
