"""Packs of format 1, which hold names and captions as JSON and labels as one archive of arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from genmodels.array_files import archived_names, read_archived
from genmodels.data.manifest import are_texts, check_column, limits
from genmodels.data.source import LARGEST_TABLE
from genmodels.reading import read_json

LABELS, NAMES, TEXT = ALWAYS = ("labels.npz", "names.json", "text.json")
"""Files whose checksums are always verified. A pack may lack the last one."""


def read_columns(path: Path, manifest: dict[str, Any], check: bool) -> dict[str, Any]:
    """Read all columns but the images into memory.

    Raises:
        ValueError: if one is damaged or has other values or another length; names the file.
    """
    count, known = manifest["count"], limits(manifest, manifest["count"])
    archive = path / LABELS
    columns: dict[str, Any] = {name: read_archived(archive, name) for name in archived_names(archive) if name in known}
    for name in ("attributes", "splits", *(["labels"] if "labels" in known else [])):
        if name not in columns:
            raise ValueError(f"{archive} has no {name!r}")
    for name, column in columns.items():
        check_column(archive, name, column, known[name], True)
    columns["names"] = _read_list(path / NAMES, count, lambda name: isinstance(name, str))
    if TEXT in manifest["checksums"]:
        rows = _read_list(path / TEXT, count, lambda row: isinstance(row, list) and are_texts(row))
        columns["text"] = [tuple(row) for row in rows]
    return columns


def _read_list(path: Path, count: int, fits: Callable[[Any], bool]) -> list[Any]:
    rows = read_json(path, LARGEST_TABLE)
    if not isinstance(rows, list) or len(rows) != count or not all(map(fits, rows)):
        raise ValueError(f"{path} does not fit its {count:,} images")
    return rows
