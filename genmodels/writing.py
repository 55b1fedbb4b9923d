"""Writing files and folders atomically. Everything that writes a file uses these functions."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from glob import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def _host() -> str:
    """Return a short name of this computer, or of this container, whose processes have numbers of their own."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")  # containers may share the name of their computer
    except OSError:  # not Linux
        numbers = ""
    return f"{zlib.crc32(os.fsencode(platform.node() + numbers)):08x}"


_HOST = _host()
"""In the names of temporary files: the numbers of processes mean nothing on other computers."""
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}-[0-9]+-[0-9]+\.(partial|replaced)(\.[^.]*)?", re.DOTALL)
_drafts = count()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path beside it, which replaces `path` at the end.

    If the block fails, `path` keeps its contents and the temporary file is removed. A symbolic link
    at `path` is replaced and never written through. Missing folders are created. Several processes
    may write the same file at once; what killed ones of this computer have left is removed.

    Example::

        >>> with replacing(Path("samples.png")) as draft:
        ...     picture.save(draft)

    Args:
        path: the file. The temporary path has the same suffix.

    Raises:
        OSError: if it cannot be written. If the disk is full, the message says so in one line.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _temporary(path, path.suffix)
        try:
            yield draft
            flush(draft)
            os.replace(draft, path)
        except BaseException:
            remove(draft)
            raise
        flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8. See `replacing`."""
    write_parts(path, [text.encode()])


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file atomically, from consecutive parts of its content. See `replacing`."""
    with replacing(path) as draft, open(draft, "xb") as file:
        file.writelines(parts)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically. See `replacing`.

    Raises:
        ValueError: if `value` holds a number that is not finite.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder as a whole: yield a temporary folder, which becomes `path` at the end.

    If the block fails, what was at `path` is still there, and the temporary folder is removed. A
    folder that is already at `path` is deleted at the end. If it is free (see `is_free`), it is
    kept and filled instead, because it may be a mounted disk or the current directory.

    Args:
        path: the folder. The caller has checked that it may be replaced.

    Raises:
        OSError: if it cannot be written. If the disk is full, the message says so in one line.
    """
    if path.is_dir() and is_free(path):
        with replacing_files(path) as draft:
            yield draft
        return
    path = path.absolute()
    with explained(path), _draft(path) as draft:
        yield draft
        _flush_all(draft)
        old = draft.with_suffix(".replaced")
        try:
            if os.path.lexists(path):
                os.replace(path, old)
            os.replace(draft, path)
        except BaseException:
            if os.path.lexists(old) and not os.path.lexists(path):
                os.replace(old, path)
            raise
        flush_folder(path.parent)
        remove(old)


@contextmanager
def replacing_files(folder: Path, first: Sequence[str] = ()) -> Iterator[Path]:
    """Write several files of a folder: yield a temporary folder, whose files move to `folder`.

    They move at the end of the block, when all are on the disk. If it fails, `folder` keeps its files.

    Args:
        folder: the folder, which is created if it does not exist.
        first: names of files that move before the others, in this order, if they are there.

    Raises:
        OSError: if they cannot be written. If the disk is full, the message says so in one line.
    """
    with explained(folder), _draft(folder / "genmodels") as draft:
        yield draft
        _flush_all(draft)
        written = sorted(file.name for file in draft.iterdir())
        for name in dict.fromkeys([*filter(written.__contains__, first), *written]):
            os.replace(draft / name, folder / name)
        flush_folder(folder)


def is_free(path: Path) -> bool:
    """Return whether nothing is at `path`, or a folder that is empty except for what interrupted
    writes have left (see `is_leftover`)."""
    if not path.is_dir():
        return not os.path.lexists(path)
    return all(is_leftover(item.name) for item in path.iterdir())


def is_leftover(name: str) -> bool:
    """Return whether a file or folder has a temporary name of this module. It is what a killed
    process has left, or what another one is writing."""
    return _LEFTOVER.fullmatch(name) is not None


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Context with a new folder beside `path`, which is removed at the end if it is still there."""
    draft = _temporary(path)
    draft.mkdir(parents=True)
    try:
        yield draft
    finally:
        remove(draft)


def _temporary(path: Path, suffix: str = "") -> Path:
    """Return a temporary name beside `path`, which no other process uses.

    What killed processes of this computer have left there of `path` is removed. If one was killed
    while it replaced a folder, the earlier folder is put back.

    Args:
        path: the file or folder to write.
        suffix: ending of `path` that the temporary name has too.
    """
    stem = path.name.removesuffix(suffix)
    if len(stem) > 40:
        stem = f"{stem[:40]}~{zlib.crc32(os.fsencode(stem)):08x}"
    start = f".{stem}.{_HOST}-"
    left = re.compile(rf"{re.escape(start)}([0-9]+)-[0-9]+\.(partial|replaced){re.escape(suffix)}")
    for other in path.parent.glob(f"{escape(start)}*"):
        found = left.fullmatch(other.name)
        if found is None or _is_running(int(found[1])):
            continue
        with suppress(OSError):  # another process may be removing it too
            if found[2] == "replaced" and not os.path.lexists(path):
                os.replace(other, path)
            else:
                remove(other)
    draft = path.with_name(f"{start}{os.getpid()}-{next(_drafts)}.partial{suffix}")
    remove(draft)  # of a killed process that had the same number
    return draft


def _is_running(process: int) -> bool:
    import psutil  # here, because it is rarely needed

    try:
        return psutil.pid_exists(process)
    except OverflowError:
        return False


def _flush_all(folder: Path) -> None:
    """Write a folder through to disk. Many files at once are much faster than one after another."""
    paths = sorted(folder.rglob("*"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(flush, [path for path in paths if not path.is_dir()]))
    for path in (*(path for path in paths if path.is_dir()), folder):
        flush_folder(path)


def create_array(path: Path, kind: Any, shape: tuple[int, ...]) -> np.memmap:
    """Create an .npy file of zeros and map it into memory for writing.

    The space is reserved first: a disk that becomes full later kills the process (SIGBUS).

    Args:
        path: the file. An existing one is replaced.
        kind: NumPy type of the elements.
        shape: shape of the array.

    Raises:
        OSError: if the disk has too little space.
    """
    import numpy as np  # slow: commands that write no array do not wait for it

    remove(path)
    check_space(path, math.prod(shape) * np.dtype(kind).itemsize)
    try:
        with explained(path):
            array = np.lib.format.open_memmap(path, "w+", kind, shape)
            reserve(path)
    except OSError:  # such as that of a quota
        remove(path)
        raise
    return array


def check_space(path: Path, needed: int) -> None:
    """Raise `FullDiskError` if the disk of `path` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    if needed > free:
        numbers = f"it needs {needed / 1e9:.2g} GB and the disk has {free / 1e9:.2g} GB free"
        raise FullDiskError(path, f"{numbers}; free some space and try again")


def reserve(path: Path) -> None:
    """Reserve disk space for the holes in a sparse file.

    Raises:
        OSError: if there is too little space.
    """
    size = path.stat().st_size
    if sys.platform == "darwin":  # which has no posix_fallocate
        if size > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a link (not what it points to) or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_folder(path: Path) -> None:
    """Write the entries of a folder through to disk, where its file system can do that."""
    with suppress(OSError):
        flush(path)


def flush(path: Path) -> None:
    """Write a file through to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FullDiskError(OSError):
    """The disk is full.

    Args:
        path: what could not be written.
        reason: what to do, or how much space there is.
    """

    errno = errno.ENOSPC  # as a class attribute: given to OSError, the message would begin with "[Errno 28]"

    def __init__(self, path: Path, reason: str):
        super().__init__(f"cannot write {path}: {reason}")
        self.reason = reason


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Context in which the error of a full disk names `path` and says what to do."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        usual = "the disk is full; free some space and try again"
        raise FullDiskError(path, error.reason if isinstance(error, FullDiskError) else usual) from error


def is_full(error: BaseException) -> bool:
    """Return whether an error says that the disk is full.

    safetensors and Pillow have errors of their own for it, without a number.
    """
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
