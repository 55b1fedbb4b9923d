"""Selection of rows from the columns of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from genmodels.data.columns import Column


def take_rows(column: Any, rows: slice | np.ndarray) -> Any:
    """Return some rows of a column: an array, a sequence, or None if the column is absent."""
    if column is None:
        return None
    if isinstance(column, Column):
        return column.take(rows)
    if isinstance(column, np.ndarray) or isinstance(rows, slice):
        return column[rows]
    return [column[row] for row in rows]


def spread_rows(length: int, count: int) -> np.ndarray:
    """Return `count` row numbers, evenly spaced in 0 ... length - 1."""
    return np.arange(count) * length // max(1, count)
