"""Reading arrays of numpy, .npy and .npz, with limits and without pickled objects."""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import psutil
from numpy.lib import format as npy

from genmodels.reading import check_regular, in_one_line

if sys.platform != "win32":
    import resource

_CONTROL_GROUPS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def free_memory() -> int:
    """Return an upper bound of the bytes of memory that this process can still use.

    It is what the computer has left, at most the limit of the container, and at most what is left
    of the limit of the process.
    """
    free = int(psutil.virtual_memory().available)
    for path in _CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # absent, or "max"
            free = min(free, int(path.read_text()))
    if sys.platform != "win32":
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free = min(free, limit - psutil.Process().memory_info().vms)
    return free


def map_array(path: Path) -> np.ndarray:
    """Map the array of an .npy file into memory, copy on write: torch needs writable memory.

    Raises:
        ValueError: if it is absent, is not a whole array or holds pickled objects; names the file.
    """
    with _refusals(path):
        check_regular(path)
        with open(path, "rb") as file:
            _read_header(file)
        return np.load(path, mmap_mode="c", allow_pickle=False)


def archived_names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file.

    Raises:
        ValueError: if it is not an archive; names the file.
    """
    with _refusals(path), _archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_archived(path: Path, name: str) -> np.ndarray:
    """Read one array of an .npz file into memory.

    Raises:
        ValueError: if it is damaged, holds pickled objects or does not fit into memory; names the
            file.
    """
    with _refusals(path), _archive(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as member:
            shape, kind = _read_header(member)
        needed, free = math.prod(shape) * kind.itemsize, free_memory()
        if needed > info.file_size:
            raise ValueError(f"{name} should have {needed:,} bytes and has {info.file_size:,}")
        if needed > free:
            raise ValueError(
                f"{name} needs {needed / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} GB are free; "
                "an .npy file needs none"
            )
        with archive.open(info) as member:
            return npy.read_array(member, allow_pickle=False)


def _archive(path: Path) -> zipfile.ZipFile:
    check_regular(path)
    return zipfile.ZipFile(path)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of the array in a file."""
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
    if read is None:
        raise ValueError("it has an unknown version")
    try:
        shape, _, kind = read(file)
    except Exception:  # numpy parses it with Python's parser
        raise ValueError("its header is damaged") from None
    if any(type(length) is not int or length < 0 for length in shape) or math.prod(shape) >= 2**62:
        raise ValueError(f"it claims to have the shape {shape}")
    if kind.hasobject:
        raise ValueError("pickled objects are never loaded")
    return shape, kind


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Context manager in which any error about file `path` becomes one line that names it."""
    try:
        yield
    except Exception as error:  # numpy and zipfile raise errors of every kind on damaged files
        reason = in_one_line(error, 120)
        raise ValueError(
            f"{path} cannot be read as an array ({reason}): it is damaged, or was not written by np.save"
        ) from None
