"""The folder of a report: which folders one may be written into, and how it is written as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genmodels.reading import read_json
from genmodels.writing import is_free, replacing_folder, write_json

RESULTS = "results.json"
"""File of a report that holds its results and lists its other files."""


@contextmanager
def report_folder(out: Path, results: Mapping[str, Any]) -> Iterator[Path]:
    """Write a report as a whole: yield a temporary folder, which becomes `out` at the end.

    Args:
        out: a folder that `check_place` accepts.
        results: JSON values for `RESULTS`, to which the list of files is added.
    """
    with replacing_folder(out) as draft:
        yield draft
        write_json(draft / RESULTS, {**results, "files": sorted(_files(draft))}, indent=2)


def check_place(out: Path, force: bool) -> None:
    """Check that a report can be written into `out`: a new or empty folder or, with `force`, an
    earlier report in which there is nothing else.

    Raises:
        ValueError: if it cannot.
    """
    if is_free(out):
        return
    earlier = _is_report(out)
    if not (earlier and force):
        hint = "replace that report with --force, or " if earlier else ""
        raise ValueError(f"{out} is not an empty folder: {hint}choose another --out")


def _is_report(out: Path) -> bool:
    """Return whether `out` holds a report and no other file."""
    try:
        written = read_json(out / RESULTS)["files"]
        return _files(out) - {RESULTS} == set(written)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _files(folder: Path) -> set[str]:
    """Return the paths of all files in a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
