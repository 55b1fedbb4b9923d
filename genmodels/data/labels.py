"""Reading the manifest and the labels of a packed directory, with all types and lengths checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genmodels.array_files import archived_names, read_archived
from genmodels.data.source import LARGEST_TABLE
from genmodels.reading import read_json

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
}
"""Types of all entries of a manifest that are read."""


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
    pairs = all(isinstance(pair, list) and len(pair) == 2 and _are_texts(pair) for pair in manifest.get("skipped", []))
    texts = (
        *manifest["attributes"],
        *manifest.get("classes", []),
        *manifest["checksums"].values(),
        *manifest.get("notes", []),
    )
    optional = (origin.get("crop"), origin.get("filter"))
    if not (pairs and _are_texts(texts) and all(isinstance(text, _OPTIONAL) for text in optional)):
        raise ValueError("a list in it does not hold texts")
    if manifest["size"] < 1 or manifest["count"] < 1:
        raise ValueError("it describes no images")


def read_labels(path: Path, count: int, attributes: int, classes: int) -> dict[str, np.ndarray]:
    """Read attributes, splits and, if there are any, labels and identities.

    Args:
        path: the .npz file.
        count: number of images.
        attributes: number of attributes.
        classes: number of classes. 0: there are no labels.

    Raises:
        ValueError: if a column is absent or has other values or another length.
    """
    limits: dict[str, tuple[Any, tuple[int, ...], int, int]] = {
        "attributes": (np.int8, (count, attributes), -1, 1),
        "splits": (np.uint8, (count,), 0, 2),
        "identities": (np.int32, (count,), -(2**31), 2**31 - 1),
    }
    if classes:
        limits["labels"] = (np.int32, (count,), -1, classes - 1)
    columns = {name: read_archived(path, name) for name in archived_names(path) if name in limits}
    for name in ("attributes", "splits", *(["labels"] if classes else [])):
        if name not in columns:
            raise ValueError(f"{path} has no {name!r}")
    for name, column in columns.items():
        kind, shape, low, high = limits[name]
        fits = column.dtype == kind and column.shape == shape
        if not fits or (column.size and (column.min() < low or column.max() > high)):
            raise ValueError(f"{name!r} of {path} do not fit its {count:,} images")
    return columns


def read_names(path: Path, count: int) -> list[str]:
    """Read the names of the images.

    Raises:
        ValueError: if they are not texts, or not as many as the images.
    """
    return _read_list(path, count, lambda name: isinstance(name, str))


def read_captions(path: Path, count: int) -> list[tuple[str, ...]]:
    """Read the captions of each image.

    Raises:
        ValueError: if they are not lists of texts, or not as many as the images.
    """
    return [tuple(row) for row in _read_list(path, count, lambda row: isinstance(row, list) and _are_texts(row))]


def _read_list(path: Path, count: int, fits: Callable[[Any], bool]) -> list[Any]:
    rows = read_json(path, LARGEST_TABLE)
    if not isinstance(rows, list) or len(rows) != count or not all(map(fits, rows)):
        raise ValueError(f"{path} does not fit its {count:,} images")
    return rows


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
