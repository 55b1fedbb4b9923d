"""Joining the packs of the parts of a source into the pack that would have been made at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genmodels.data.columns import rows_at_a_time
from genmodels.data.directory import JOURNAL, is_packed, load_packed, save_columns, save_images
from genmodels.data.packed import LABEL_COLUMNS, SPLITS, Packed
from genmodels.data.packing import LOCK, lock
from genmodels.reading import read_text
from genmodels.usage import say
from genmodels.writing import explained, is_leftover, write_text

_SAME = {
    "count": "number of images",
    "size": "size",
    "crop": "crop",
    "filter": "filter",
    "store": "store",
    "quality": "quality",
    "stamp": "files (names, sizes, modification times and labels)",
}
"""Arguments of the request that must be equal, and what they are called."""


def join(out: Path, parts: Sequence[Path]) -> Path:
    """Join packs that `pack` made with `part`, and return `out`.

    The result is the pack that would have been made at once, byte for byte.

    Args:
        out: new or empty directory.
        parts: directories of all parts, in any order.

    Raises:
        ValueError: if the parts do not belong together, if one is damaged, missing or given twice,
            or if `out` holds something else.
        OSError: if `out` cannot be written.
    """
    packs = _in_order(parts)
    _check_classes(packs)
    request = {name: value for name, value in packs[0].manifest["request"].items() if name not in ("part", "rows")}
    with lock(out), explained(out):
        if is_packed(out) and load_packed(out).manifest.get("request") == request:
            (out / JOURNAL).unlink(missing_ok=True)
            return out
        _begin(out, json.dumps({"join": request}))
        # Each split becomes one slice of the file.
        pieces = [pack.split(name) for name in SPLITS for pack in packs if name in pack.counts()]
        save_images(out, [piece.images for piece in pieces])
        columns = [{name: getattr(piece, name) for name in LABEL_COLUMNS} for piece in pieces]
        save_columns(out, _manifest(packs, request), columns)
        (out / JOURNAL).unlink()
    say(f"joined {len(packs)} parts into {out}")
    return out


def _begin(out: Path, mark: str) -> None:
    """Mark `out` as being written, so that the same call can follow one that was interrupted."""
    journal = out / JOURNAL
    if journal.exists() and read_text(journal) == mark:
        return
    if others := sorted(item.name for item in out.iterdir() if item.name != LOCK and not is_leftover(item.name)):
        raise ValueError(f"{out} is not empty ({others[0]}): choose a new directory for the pack")
    write_text(journal, mark)


def _in_order(paths: Sequence[Path]) -> list[Packed]:
    """Open the parts, check that they are all of one pack, and return them in order."""
    if not paths:
        raise ValueError("no parts: name the directories that `genmodels data pack --part` wrote")
    found: dict[int, tuple[Path, Packed]] = {}
    for path in paths:
        pack = load_packed(path, verify=True)
        request = pack.manifest.get("request") or {}
        part = request.get("part")
        numbers = [*part, (pack.manifest.get("part") or {}).get("left_out")] if isinstance(part, list) else []
        if len(numbers) != 3 or not all(type(number) is int for number in numbers):
            raise ValueError(f"{path} is not a part of a pack: it was packed without --part")
        number, of, _ = numbers
        if found:
            other, first = next(iter(found.values()))
            _check_same(path, request, other, first.manifest["request"])
        if number in found:
            raise ValueError(f"{path} and {found[number][0]} are both part {number}/{of}: leave out one")
        found[number] = path, pack
    if missing := [number for number in range(1, of + 1) if number not in found]:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise ValueError(f"part {missing[0]}/{of}{more} is missing: pack it with --part {missing[0]}/{of}, or name it")
    return [found[number][1] for number in sorted(found)]


def _check_classes(packs: Sequence[Packed]) -> None:
    """Check that no class has lost all its images, as `pack` does for a whole."""
    named, left = set[int](), set[int]()
    for pack in packs:
        named.update(pack.manifest["part"].get("classes", []))
        for _, labels in rows_at_a_time(pack.labels if pack.labels is not None else np.empty(0, np.int32)):
            left.update(np.unique(labels).tolist())
    if lost := sorted(named - left - {-1}):
        name = packs[0].class_names[lost[0]]
        raise ValueError(f"no image of the class {name!r} could be read in any part: add images to it, or remove it")


def _check_same(path: Path, request: dict[str, Any], other: Path, first: dict[str, Any]) -> None:
    if request["part"][1] != first["part"][1]:
        raise ValueError(f"{path} is one of {request['part'][1]} parts, {other} one of {first['part'][1]}")
    for name, what in _SAME.items():
        if request.get(name) != first.get(name):
            values = "" if name == "stamp" else f" ({request.get(name, 'raw')}, {first.get(name, 'raw')})"
            raise ValueError(f"{path} and {other} were packed from or with another {what}{values}: pack one again")


def _manifest(packs: Sequence[Packed], request: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of the whole, from those of the parts."""
    manifests = [pack.manifest for pack in packs]
    left_out = manifests[0]["part"]["left_out"]
    manifest = {
        name: value for name, value in manifests[0].items() if name not in ("format", "part", "count", "checksums")
    }
    manifest["converted"] = dict(sum((Counter(one["converted"]) for one in manifests), Counter()))
    manifest["skipped"] = [
        *manifests[0]["skipped"][:left_out],
        *(pair for one in manifests for pair in one["skipped"][left_out:]),
    ]
    return manifest | {"request": request}
