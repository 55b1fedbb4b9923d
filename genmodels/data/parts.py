"""Parts of a source, of which each machine packs one. `genmodels.data.joining` joins their packs."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from genmodels.data.packed import LABEL_COLUMNS
from genmodels.data.rows import take_rows
from genmodels.data.source import Reader, Source


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of` parts, which are consecutive images of the sorted source."""

    number: int
    of: int

    def rows(self, count: int) -> slice:
        """Return which of `count` images are in it."""
        return slice(count * (self.number - 1) // self.of, count * self.number // self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_part(text: str) -> Part:
    """Parse "2/8".

    Raises:
        ValueError: if it is not a part.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--part {text}: expected a part and their number, such as 2/8 for the second of eight")
    return Part(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class _Shifted:
    """Reader of the images of another one from `start`."""

    reader: Reader
    start: int

    def open(self, index: int) -> AbstractContextManager[BinaryIO]:
        return self.reader.open(self.start + index)


def part_of(source: Source, part: Part) -> Source:
    """Return a part of a source.

    Raises:
        ValueError: if it has no images.
    """
    rows = part.rows(len(source.names))
    if rows.start == rows.stop:
        raise ValueError(f"part {part} of {source.title} has no images: choose at most {len(source.names):,} parts")
    columns: dict[str, Any] = {name: take_rows(getattr(source, name), rows) for name in LABEL_COLUMNS}
    return replace(source, reader=_Shifted(source.reader, rows.start), **columns)
