"""Source: a list of image files and their labels, before the images are decoded."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from genmodels.image_files import may_pass
from genmodels.reading import in_one_line

LARGEST_MEMBER = 1 << 28
"""Largest image, in bytes, that is read from an archive into memory."""
LARGEST_TABLE = 1 << 31
"""Largest table of labels that is read, in bytes, and largest text file of a pack."""
_UTF8_FLAG = 0x800
"""Bit of a member's flags: its name is UTF-8, and not in the code page of the tool."""
_LATIN = {0xDC00 + byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0x100)}
"""Characters that stand for bytes that are not UTF-8 (PEP 383), and the same bytes as Latin-1."""


class Reader(Protocol):
    """Opens the images of a source. It can be pickled, and used by several threads at a time."""

    def open(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Open image `index` for reading and seeking.

        Raises:
            OSError: if it cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class Source:
    """Images that have not been decoded, with what is known about each of them.

    Attributes:
        title: short description, such as "celeba (18,022 of 202,599 images)".
        where: the folder, archive or file that holds the images.
        names: names of the images, sorted.
        reader: opens an image by its index in `names`.
        attributes, attribute_names, splits, identities, text, conversations, labels, class_names:
            as in `Packed`, one row per name.
        stamp: hash of names, sizes, modification times and labels; it changes if a file changes. No
            image is opened to compute it.
        left_out: (name, reason) of files that are skipped without opening them.
        origin: manifest of the pack of which this source is an export.
        notes: one line for each decision about the labels that their author should know of.
    """

    title: str
    where: Path
    names: list[str]
    reader: Reader
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    splits: np.ndarray
    identities: np.ndarray | None
    stamp: str
    text: list[tuple[str, ...]] | None = None
    conversations: list[tuple[str, ...]] | None = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    left_out: list[tuple[str, str]] = field(default_factory=list)
    origin: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A file that may be an image.

    Attributes:
        name: relative path with forward slashes.
        path: the path as the folder or the archive has it.
        size: size in bytes.
        changed: modification time, or checksum in an archive.
    """

    name: str
    path: str
    size: int
    changed: int


class Files:
    """Reads files of a folder or a zip archive by relative path, also from several threads.

    Attributes:
        where: the folder or archive.
        left_out: (name, reason) of files that `entries` did not yield.
        folders: relative paths of the folders that are not hidden, known after `entries`.

    Raises:
        FileNotFoundError: if `where` does not exist.
        ValueError: if `where` is a file but not a zip archive.
    """

    def __init__(self, where: Path):
        self.where = where
        self.left_out: list[tuple[str, str]] = []
        self.folders: set[str] = set()
        self._archive = None if where.is_dir() else open_archive(where)
        self._paths: dict[str, str] = {}

    def entries(self) -> Iterator[Entry]:
        """Yield every file that is not hidden, in no particular order.

        Names are relative whatever the tool that made the archive wrote: `./a.jpg`, `/a.jpg` and
        `a.jpg` are the same, and `faces\\a.jpg` is `faces/a.jpg`. A name that leads out of the
        archive (`../a.jpg`) is left out, and so is the second file of a name.
        """
        self.left_out.clear()
        self.folders.clear()
        self._paths.clear()
        for entry in self._walk() if self._archive is None else _members(self._archive):
            parts = name_parts(entry.name)
            name = "/".join(parts)
            if entry.name.endswith(("/", "\\")):
                if ".." not in parts and not any(part.startswith((".", "__MACOSX")) for part in parts):
                    self.folders.add(name)
            elif ".." in parts:
                self.left_out.append((entry.name, "its name leads out of the archive"))
            elif name in self._paths:
                self.left_out.append((entry.name, "another file has the same name"))
            elif parts and not any(part.startswith((".", "__MACOSX")) for part in parts):
                self._paths[name] = entry.path
                yield replace(entry, name=name)

    @contextmanager
    def open(self, name: str, limit: int = LARGEST_MEMBER) -> Iterator[BinaryIO]:
        """Open the file with this name or path for reading and seeking.

        Raises:
            OSError: if it cannot be read, or is in an archive and has more than `limit` bytes.
        """
        path = self._paths.get(name, name)
        if self._archive is None:
            with open(self.where / path, "rb") as file:
                yield file
            return
        size = self._archive.getinfo(path).file_size
        if size > limit:
            raise OSError(f"file of {size:,} bytes in an archive; at most {limit:,} are read")
        try:
            content = self._archive.read(path)
        except Exception as error:  # encrypted or damaged: each way of compression has its own errors
            if may_pass(error):
                raise
            raise OSError(in_one_line(error) or type(error).__name__) from None
        yield io.BytesIO(content)

    def read_bytes(self, name: str) -> bytes:
        """Read a table, or another text file.

        Raises:
            ValueError: if it is larger than `LARGEST_TABLE`, or cannot be read; names the file.
        """
        where = self.where / name
        try:
            with self.open(name, LARGEST_TABLE) as file:
                content = file.read(LARGEST_TABLE + 1)
        except OSError as error:
            raise ValueError(f"{where} cannot be read: {error.strerror or error}") from None
        if len(content) > LARGEST_TABLE:
            raise ValueError(f"{where} has more than {LARGEST_TABLE:,} bytes, which is too much for a text file")
        return content

    def _walk(self) -> Iterator[Entry]:
        """Yield the files and the folders of a folder; the names of folders end with a slash.

        A folder that links lead to is listed once, at its own place if it has one in the tree.
        Links to a folder that contains the whole tree are not followed.
        """
        top, seen = os.path.realpath(self.where), set()
        folders, links = deque([""]), deque[str]()
        while folders or links:
            prefix = folders.popleft() if folders else links.popleft()
            real = os.path.realpath(self.where / prefix)
            if real in seen or (prefix and top.startswith(real.rstrip(os.sep) + os.sep)):
                continue
            seen.add(real)
            if prefix:
                yield Entry(prefix, prefix, 0, 0)
            with os.scandir(self.where / prefix) as items:
                found = sorted(items, key=lambda item: item.name)
            for item in found:
                if item.name.startswith("."):
                    continue
                try:
                    status = item.stat()
                except OSError as error:  # a link that leads nowhere, or to itself
                    self.left_out.append((prefix + item.name, f"cannot be read: {error.strerror}"))
                    continue
                if stat.S_ISDIR(status.st_mode):
                    (links if item.is_symlink() else folders).append(f"{prefix}{item.name}/")
                elif stat.S_ISREG(status.st_mode):
                    path = prefix + item.name
                    yield Entry(path, path, status.st_size, status.st_mtime_ns)
                else:
                    self.left_out.append((prefix + item.name, "not a regular file"))


class FilesReader:
    """Opens the images of a folder or a zip archive.

    Args:
        where: the folder or archive.
        paths: path of each image in it.
    """

    def __init__(self, where: Path, paths: list[str]):
        self.where = where
        self.paths = paths

    def open(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Open image `index` for reading and seeking."""
        return self._files.open(self.paths[index])

    @cached_property
    def _files(self) -> Files:
        return Files(self.where)

    def __reduce__(self) -> tuple[type[FilesReader], tuple[Path, list[str]]]:
        return FilesReader, (self.where, self.paths)  # an open archive cannot be pickled


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive. Files that are not archives, such as a saved error page, are refused."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is neither a folder nor a file")
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception:  # BadZipFile, or what zipfile raises for a damaged directory of members
        with open(path, "rb") as file:
            start = file.read(16)
        raise ValueError(
            f"{path} is not a complete zip archive (it begins with {start!r}): "
            "the download failed or was cut short; download it again"
        ) from None


def readable(text: str) -> str:
    """Return `text` with the bytes that are not UTF-8 (PEP 383) as the characters of Latin-1."""
    return text if text.isascii() else text.translate(_LATIN)


def name_parts(path: str) -> list[str]:
    """Split a path at slashes and backslashes, without drive letter, leading slash and `./`."""
    parts = re.sub(r"^[A-Za-z]:(?=[\\/])", "", path).replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".")]


def fingerprint(entries: Iterable[Entry], *labels: np.ndarray | str | None) -> str:
    """Return 32 hex digits that identify a list of files and their labels."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size}\0{entry.changed}\0".encode("utf-8", "surrogateescape"))
    for label in labels:
        content = label.tobytes() if isinstance(label, np.ndarray) else repr(label).encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]


def _members(archive: zipfile.ZipFile) -> Iterator[Entry]:
    """Yield the members of an archive; the names of folders end with a slash. Of several members
    with one path, the last is the file."""
    for info in reversed(archive.infolist()):
        name = info.filename
        if not info.flag_bits & _UTF8_FLAG:  # some tools write UTF-8 without the flag
            with suppress(UnicodeError):
                name = name.encode("cp437").decode("utf-8")
        yield Entry(name, info.filename, info.file_size, info.CRC)
