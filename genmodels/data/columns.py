"""Columns of packed data that stay on disk: strings, captions, and what selects rows of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self, overload

import numpy as np

from genmodels.array_files import map_array
from genmodels.writing import create_array, replacing, write_parts

ROWS = 1 << 14
"""Rows of a column that are handled at a time."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column that is read from disk row by row.

    Attributes:
        rows: the rows that it has, as numbers of rows on disk.
    """

    rows: range | np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: slice | np.ndarray) -> Self:
        """Return some of the rows, as a column that is read from disk too."""
        return replace(self, rows=choose(self.rows, rows))

    def row_numbers(self) -> Iterator[np.ndarray]:
        """Yield the numbers of the rows on disk, int64, in parts."""
        for start in range(0, len(self.rows), ROWS):
            yield np.asarray(self.rows[start : start + ROWS], np.int64)


def choose(rows: range | np.ndarray, chosen: slice | np.ndarray) -> range | np.ndarray:
    """Return the numbers `rows[chosen]`."""
    if isinstance(chosen, slice):
        return rows[chosen]
    chosen = np.asarray(chosen)
    if isinstance(rows, np.ndarray):
        return rows[chosen]
    if chosen.dtype == bool:
        chosen = np.flatnonzero(chosen)
    if chosen.size and not -len(rows) <= chosen.min() <= chosen.max() < len(rows):
        raise IndexError(f"rows {chosen.min()} to {chosen.max()} are out of range for {len(rows):,} rows")
    return rows.start + rows.step * np.where(chosen < 0, chosen + len(rows), chosen).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Texts(Column, Sequence[str]):
    """Strings, stored one after another.

    Attributes:
        content: all strings in UTF-8, uint8 (B,).
        offsets: int64 (N + 1,); string i is content[offsets[i] : offsets[i + 1]].
    """

    content: np.ndarray
    offsets: np.ndarray

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> Texts: ...

    def __getitem__(self, row: int | slice) -> str | Texts:
        if isinstance(row, slice):
            return self.take(row)
        return self.text(int(self.rows[row]))

    def text(self, row: int) -> str:
        """Return the string in a row on disk."""
        return _decoded(self.content[self.offsets[row] : self.offsets[row + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for rows in self.row_numbers():
            for start, end in zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True):
                yield _decoded(self.content[start:end].tobytes())


@dataclass(frozen=True, eq=False)
class Captions(Column, Sequence[tuple[str, ...]]):
    """Several strings in each row.

    Attributes:
        texts: the strings of all rows.
        offsets: int64 (N + 1,); row i has the strings offsets[i] ... offsets[i + 1] - 1.
    """

    texts: Texts
    offsets: np.ndarray

    @overload
    def __getitem__(self, row: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, row: slice) -> Captions: ...

    def __getitem__(self, row: int | slice) -> tuple[str, ...] | Captions:
        if isinstance(row, slice):
            return self.take(row)
        number = int(self.rows[row])
        return tuple(map(self.texts.text, range(self.offsets[number], self.offsets[number + 1])))

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for rows in self.row_numbers():
            for start, end in zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True):
                yield tuple(map(self.texts.text, range(start, end)))


def rows_at_a_time(column: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows of an array in parts of at most `ROWS`, each with the number of its first row."""
    for start in range(0, len(column), ROWS):
        yield start, column[start : start + ROWS]


def count_captions(text: Sequence[tuple[str, ...]]) -> int:
    """Return the number of captions of all rows."""
    if not isinstance(text, Captions):
        return sum(map(len, text))
    return sum(int((text.offsets[rows + 1] - text.offsets[rows]).sum()) for rows in text.row_numbers())


def uncaptioned(text: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Return the numbers of the rows without captions."""
    if not isinstance(text, Captions):
        return np.flatnonzero([not row for row in text])
    counts = [text.offsets[rows + 1] - text.offsets[rows] for rows in text.row_numbers()]
    return np.flatnonzero(np.concatenate([*counts, np.zeros(0, np.int64)]) == 0) if counts else np.zeros(0, np.int64)


def digested(column: Sequence[Any], first: Sequence[str] = ()) -> Iterator[bytes]:
    """Yield bytes that identify strings or captions.

    They are `json.dumps([*first, *column])`, but only the numbers of the rows for a column on disk,
    whose content is known by the checksums of its files.
    """
    if isinstance(column, Column):
        yield json.dumps(list(first)).encode()
        yield from (rows.tobytes() for rows in column.row_numbers())
        return
    remaining, start = chain(first, column), "["
    while batch := list(islice(remaining, ROWS)):
        yield (start + json.dumps(batch)[1:-1]).encode()
        start = ", "
    yield b"[]" if start == "[" else b"]"


def write_array(path: Path, parts: Iterable[np.ndarray], kind: Any, shape: tuple[int, ...]) -> None:
    """Write an .npy file atomically from consecutive parts of the array. See `replacing`."""
    with replacing(path) as draft:
        array, start = create_array(draft, kind, shape), 0
        for part in parts:
            array[start : start + len(part)] = part
            start += len(part)
        array.flush()


def write_texts(folder: Path, name: str, texts: Iterable[str], count: int) -> list[str]:
    """Write strings to the files NAME.bin and NAME.offsets.npy, and return their names."""
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)  # names of files may hold lone surrogates
    return write_blobs(folder, name, encoded, count)


def write_captions(folder: Path, name: str, pieces: Sequence[Sequence[tuple[str, ...]]]) -> list[str]:
    """Write several strings per row to files NAME..., and return their names.

    Args:
        folder: folder of the files.
        name: start of their names.
        pieces: the strings of consecutive rows.
    """
    path, count = folder / f"{name}.rows.npy", sum(map(len, pieces))
    write_array(path, _totals(map(len, chain.from_iterable(pieces))), np.int64, (count + 1,))
    texts = chain.from_iterable(chain.from_iterable(pieces))
    return [*write_texts(folder, name, texts, int(map_array(path)[-1])), path.name]


def _totals(lengths: Iterable[int]) -> Iterator[np.ndarray]:
    """Yield 0 and the sum of the first 1, 2, ... lengths, in parts."""
    total, remaining = 0, iter(lengths)
    yield np.zeros(1, np.int64)
    while batch := list(islice(remaining, ROWS)):
        sums = np.cumsum(batch, dtype=np.int64) + total
        total = int(sums[-1])
        yield sums


def write_blobs(folder: Path, name: str, blobs: Iterable[bytes], count: int) -> list[str]:
    """Write `count` byte strings to the files NAME.bin and NAME.offsets.npy, and return their names."""
    names = [f"{name}.bin", f"{name}.offsets.npy"]
    with replacing(folder / names[1]) as draft:
        offsets = create_array(draft, np.int64, (count + 1,))

        def placed() -> Iterator[bytes]:
            row, remaining = 0, iter(blobs)
            while batch := list(islice(remaining, 1024)):
                lengths = np.cumsum([len(blob) for blob in batch])
                offsets[row + 1 : row + 1 + len(batch)] = lengths + offsets[row]
                row += len(batch)
                yield b"".join(batch)

        write_parts(folder / names[0], placed())
        offsets.flush()
    return names


def map_texts(folder: Path, name: str, count: int, check: bool) -> Texts:
    """Open the strings that `write_texts` wrote.

    Args:
        folder: folder of the files.
        name: start of their names.
        count: number of strings.
        check: read them all, to check that they are strings.

    Raises:
        ValueError: if a file is damaged, or does not hold `count` strings; names it.
    """
    texts = Texts(range(count), *map_blobs(folder, name, count, check))
    if check:
        try:
            for _ in texts:
                pass
        except ValueError:
            raise ValueError(f"{folder / name}.bin holds bytes that are not text") from None
    return texts


def map_captions(folder: Path, name: str, count: int, check: bool) -> Captions:
    """Open the strings that `write_captions` wrote. See `map_texts`."""
    path = folder / f"{name}.rows.npy"
    offsets = map_offsets(path, count, check)
    return Captions(range(count), map_texts(folder, name, int(offsets[-1]), check), offsets)


def map_blobs(folder: Path, name: str, count: int, check: bool) -> tuple[np.ndarray, np.ndarray]:
    """Open the byte strings that `write_blobs` wrote: content uint8 (B,), offsets int64 (N + 1,).

    Raises:
        ValueError: if a file is absent or damaged, or does not hold `count` of them; names it.
    """
    path = folder / f"{name}.bin"
    offsets = map_offsets(folder / f"{name}.offsets.npy", count, check)
    end, size = int(offsets[-1]), path.stat().st_size if path.is_file() else -1
    if size != end:
        raise ValueError(f"{path} has {size:,} bytes instead of {end:,}" if size >= 0 else f"{path} is missing")
    content = np.memmap(path, np.uint8, "c") if size else np.empty(0, np.uint8)
    return np.asarray(content), offsets


def map_offsets(path: Path, count: int, check: bool) -> np.ndarray:
    """Open offsets, int64 (count + 1,), which begin at 0 and never decrease.

    Raises:
        ValueError: if they are absent or damaged; names the file.
    """
    offsets = np.asarray(map_array(path))
    fits = offsets.dtype == np.int64 and offsets.shape == (count + 1,) and offsets[0] == 0 and offsets[-1] >= 0
    if fits and check:
        fits = all((np.diff(offsets[at : at + ROWS + 1]) >= 0).all() for at in range(0, count, ROWS))
    if not fits:
        raise ValueError(f"{path} does not fit its {count:,} rows")
    return offsets


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")
