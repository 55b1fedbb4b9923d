"""Source: a list of image files with what is known of them, before anything is decoded."""

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
"""Bytes; a larger file in an archive is not read into memory."""


@dataclass(frozen=True, eq=False)
class Source:
    """Images in a folder or a zip archive.

    Attributes:
        title: for people, such as "celeba (18,022 of 202,599 images)".
        where: the folder or archive.
        names: what the images are called, sorted.
        paths: where each is in the folder or archive.
        attributes, attribute_names, splits, identities: one row per name, as in Packed.
        stamp: changes when a file does (names, sizes, times of change); cheap, no file is opened for it.
        left_out: (name, reason) of files known not to be usable before they are opened.
        origin: manifest of the pack that this source is an export of.
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
    left_out: list[tuple[str, str]] = field(default_factory=list)
    origin: dict[str, Any] | None = None


@dataclass(frozen=True)
class Entry:
    """A file that may be an image: relative path with forward slashes, bytes, time of change."""

    name: str
    size: int
    changed: int


class Files:
    """Reads files of a folder or a zip archive by relative path. Safe to use from several threads.

    Raises:
        FileNotFoundError: when `where` does not exist.
        ValueError: when it is a file but no zip archive.
    """

    def __init__(self, where: Path):
        self.where = where
        self._archive = None if where.is_dir() else open_archive(where)

    def entries(self) -> Iterator[Entry]:
        """Every file that is not hidden, in no particular order."""
        if self._archive is None:
            yield from _walk(self.where, "", set())
            return
        for info in self._archive.infolist():
            if not info.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in info.filename.split("/")):
                yield Entry(info.filename, info.file_size, info.CRC)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """The file `name`, open for reading and seeking."""
        if self._archive is None:
            with open(self.where / name, "rb") as file:
                yield file
            return
        size = self._archive.getinfo(name).file_size
        if size > LARGEST_MEMBER:
            raise OSError(f"{size:,} bytes in an archive is more than an image should need")
        yield io.BytesIO(self._archive.read(name))

    def read_text(self, name: str) -> str:
        """The text file `name`, decoded as UTF-8."""
        with self.open(name) as file:
            return file.read().decode("utf-8-sig")


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip archive; refuses what only has the name of one, such as a saved error page."""
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
    """32 hex digits over names, sizes and times of change, and over the text of label files."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size}\0{entry.changed}\0".encode("utf-8", "surrogateescape"))
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:32]


def _walk(folder: Path, prefix: str, seen: set[str]) -> Iterator[Entry]:
    real = os.path.realpath(folder)
    if real in seen:  # links may lead back to where we came from
        return
    seen.add(real)
    with os.scandir(folder) as found:
        for item in found:
            if item.name.startswith("."):
                continue
            if item.is_dir():
                yield from _walk(folder / item.name, f"{prefix}{item.name}/", seen)
            elif item.is_file():
                stat = item.stat()
                yield Entry(prefix + item.name, stat.st_size, stat.st_mtime_ns)
