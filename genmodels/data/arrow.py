"""Columns of parquet and arrow files, read in blocks: arrow files through a memory map, and parquet
files one group of rows at a time, so that memory does not grow with the data."""

from __future__ import annotations

import io
import re
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from weakref import WeakValueDictionary

from genmodels.image_files import RefusedError
from genmodels.reading import in_one_line

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".parquet", ".arrow")
"""What the names of these files end with."""


@dataclass(frozen=True)
class Block:
    """Rows that are read together: an arrow file, or a group of rows of a parquet file.

    Attributes:
        path: the file.
        group: index of the group; None for an arrow file.
        rows: number of rows.
    """

    path: Path
    group: int | None
    rows: int

    def read(self, column: str, part: str | None = None) -> pa.ChunkedArray:
        """Read a column, or one part of a column that has several.

        Raises:
            ValueError: if the file is damaged.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        with _explained(self.path):
            if self.group is None:
                values = _map(self.path).column(column)
            else:
                with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                    path = column if part is None else f"{column}.{part}"
                    values = file.read_row_group(self.group, columns=[path]).column(column)
            values.validate(full=True)  # lengths and texts of a damaged file may point anywhere in memory
            if len(values) != self.rows:
                raise pa.ArrowInvalid(f"{len(values):,} of {self.rows:,} rows")
            return values if part is None else pc.struct_field(values, part)


def read_schema(path: Path) -> tuple[pa.Schema, list[Block]]:
    """Return the columns of a file with their types, and its rows as blocks.

    Raises:
        ValueError: if the file is damaged.
    """
    import pyarrow.parquet as pq

    with _explained(path):
        if path.suffix == ENDINGS[0]:
            with pq.ParquetFile(path) as file:
                rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                return file.schema_arrow, [Block(path, i, count) for i, count in enumerate(rows)]
        table = _map(path)
        return table.schema, [Block(path, None, table.num_rows)]


class BlockReader:
    """Opens the images of a column. A block is in memory while a thread reads images of it.

    Args:
        blocks: the rows, in order.
        column: name of the column: encoded images, or structs of their "bytes" and "path".
        files: folder of the images that are stored as paths only; None: these are refused.
    """

    def __init__(self, blocks: Sequence[Block], column: str, files: Path | None = None):
        self.blocks, self.column, self.files = blocks, column, files
        self._starts = list(accumulate((block.rows for block in blocks), initial=0))
        self._lock, self._local = threading.Lock(), threading.local()
        self._shared: WeakValueDictionary[int, Any] = WeakValueDictionary()

    @contextmanager
    def open(self, index: int) -> Iterator[BinaryIO]:
        """Open image `index` for reading and seeking.

        Raises:
            RefusedError: if the row holds no image.
            ValueError: if the file is damaged.
        """
        number = bisect_right(self._starts, index) - 1
        cell = self._read(number)[index - self._starts[number]].as_py()
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is not None:
            yield io.BytesIO(data)
        elif path and self.files and Path(path).resolve().is_relative_to(self.files.resolve()):
            with open(path, "rb") as file:
                yield file
        else:
            raise RefusedError(
                "the row holds the path of an image and not the image" if path else "no image in the row"
            )

    def _read(self, number: int) -> pa.ChunkedArray:
        with self._lock:
            values = self._shared.get(number)
            if values is None:
                values = self._shared[number] = self.blocks[number].read(self.column)
            self._local.values = values  # keeps it until this thread goes on to another block
        return values

    def __reduce__(self) -> tuple[type[BlockReader], tuple[Any, ...]]:
        return BlockReader, (self.blocks, self.column, self.files)


def _map(path: Path) -> pa.Table:
    """Return an arrow file, of either format, as a table whose columns stay on disk."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        return pa.ipc.open_file(file).read_all() if is_file else pa.ipc.open_stream(file).read_all()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors of pyarrow in the block into one that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, such as a network disk
            raise
        reason = re.sub(r"\w+(Error|Exception): ", "", in_one_line(error, 160)).rstrip(".")
        raise ValueError(f"{path} is damaged ({reason}): download or write it again") from None
