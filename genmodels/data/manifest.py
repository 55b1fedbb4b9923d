"""What the manifest of a packed directory may say, and which values its columns may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from genmodels.data.columns import rows_at_a_time
from genmodels.data.encoded import STORES

_OPTIONAL = (str, type(None))
_REQUIRED: dict[str, Any] = {
    "format": int,
    "size": int,
    "count": int,
    "source": str,
    "attributes": list,
    "checksums": dict,
}
"""Types of the entries that every manifest has."""
_KINDS = _REQUIRED | {
    "crop": _OPTIONAL,
    "filter": _OPTIONAL,
    "license": _OPTIONAL,
    "classes": list,
    "origin": (dict, type(None)),
    "skipped": list,
    "notes": list,
    "converted": dict,
    "request": dict,
    "store": str,
    "quality": int,
    "part": dict,
}
"""Types of all entries of a manifest that are read."""

Limit = tuple[Any, tuple[int, ...], int, int]
"""Type and shape of a column of numbers, and its smallest and largest value."""


def check_manifest(manifest: Any) -> None:
    """Check the types of the entries of a manifest.

    Raises:
        ValueError: if it is not a manifest; names the entry but not the file.
    """
    if not isinstance(manifest, dict):
        raise ValueError("it is not a JSON object")
    for name in _REQUIRED:
        if name not in manifest:
            raise ValueError(f"it has no {name!r}")
    for name, value in manifest.items():
        if not isinstance(value, _KINDS.get(name, object)):
            raise ValueError(f"{name!r} is a {type(value).__name__}")
    origin = manifest.get("origin") or {}
    pairs = all(isinstance(pair, list) and len(pair) == 2 and are_texts(pair) for pair in manifest.get("skipped", []))
    texts = (
        *manifest["attributes"],
        *manifest.get("classes", []),
        *manifest["checksums"].values(),
        *manifest.get("notes", []),
    )
    optional = (origin.get("crop"), origin.get("filter"))
    if not (pairs and are_texts(texts) and all(isinstance(text, _OPTIONAL) for text in optional)):
        raise ValueError("a list in it does not hold texts")
    if manifest["size"] < 1 or manifest["count"] < 1:
        raise ValueError("it describes no images")
    if manifest.get("store") not in (None, *STORES[1:]):
        raise ValueError(f"its images are stored as {manifest['store']!r}")


def limits(manifest: dict[str, Any], count: int) -> dict[str, Limit]:
    """Return what the columns of numbers of a pack of `count` images may hold, by name."""
    known: dict[str, Limit] = {
        "attributes": (np.int8, (count, len(manifest["attributes"])), -1, 1),
        "splits": (np.uint8, (count,), 0, 2),
        "identities": (np.int32, (count,), -(2**31), 2**31 - 1),
    }
    if classes := manifest.get("classes"):
        known["labels"] = (np.int32, (count,), -1, len(classes) - 1)
    return known


def check_column(path: Path, name: str, column: np.ndarray, limit: Limit, values: bool) -> None:
    """Check a column of numbers of the file `path`.

    Args:
        path: the file, for the message.
        name: name of the column.
        column: the column.
        limit: what it may hold.
        values: also check its values, a part at a time.

    Raises:
        ValueError: if it has another type or shape or other values.
    """
    kind, shape, low, high = limit
    fits = column.dtype == kind and column.shape == shape
    if fits and values and column.size:
        fits = all(low <= part.min() and part.max() <= high for _, part in rows_at_a_time(column))
    if not fits:
        raise ValueError(f"{name!r} of {path} do not fit its {shape[0]:,} images")


def are_texts(values: Any) -> bool:
    """Return whether all values are strings."""
    return all(isinstance(value, str) for value in values)
