"""Data sets in several files: lists of them by a pattern, and the splits that their names say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from genmodels.data.folder import hashed_splits
from genmodels.data.source import Entry
from genmodels.data.tables import SPLIT_FOLDERS


def file_entry(path: Path, name: str) -> Entry:
    """Return a file under a relative path `name`."""
    status = path.stat()
    return Entry(name, str(path), status.st_size, status.st_mtime_ns)


def expand(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for, as in bash.

    `a-{00..02}.tar` is a-00.tar, a-01.tar and a-02.tar, and `{a,b}.tar` is a.tar and b.tar.
    """
    braces = re.search(r"\{(?:(\d{1,9})\.\.(\d{1,9})|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        yield pattern
        return
    first, last, names = braces.groups()
    if names is None:
        width = len(first) if first.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        parts: Iterable[str] = (f"{i:0{width}d}" for i in range(int(first), int(last) + step, step))
    else:
        parts = names.split(",")
    for part in parts:
        yield from expand(pattern[: braces.start()] + part + pattern[braces.end() :])


def split_of(path: str) -> int | None:
    """Return the code of the split that a word of a file's relative path names, or None.

    Words are letters between other characters: that of `train/a-01.tar` and of `x_train-01.tar` is
    the same.
    """
    words = re.split(r"[\W\d_]+", path.casefold())
    return next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), None)


def splits_of(names: Sequence[str], known: Sequence[int | None], notes: list[str]) -> np.ndarray:
    """Return the code of the split of each image, uint8 (N,).

    Args:
        names: names of the images.
        known: the code of the split of the file that holds each image; None if it names none, and
            the split is that of a hash of the image's name, as in a folder.
        notes: receives a line that says which of these it is.

    If all images are of a train split, which is also the name of data without splits, there would
    be none to evaluate with. The splits are then those of the hash.
    """
    if set(known) == {0}:
        notes.append("there is only a train split: images get a split by a hash of their names")
        known = [None] * len(names)
    rest = [name for name, split in zip(names, known, strict=True) if split is None]
    if len(rest) < len(names):
        others = f"; {len(rest):,} images of other files get a split by a hash of their names" if rest else ""
        notes.append(f"splits are those that the names of the files say{others}")
    hashed = hashed_splits(rest)
    return np.array(
        [hashed[name] if split is None else split for name, split in zip(names, known, strict=True)], np.uint8
    )
