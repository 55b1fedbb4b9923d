"""Any tree of images, as a folder or a zip archive, with optional labels in attributes.csv; the export of packs as one.

attributes.csv has a header; its first column is the file (relative path, or bare name), the others are attributes in
{-1, 0, 1} (an empty cell is 0, unknown), except two names with a meaning: `split` (train, valid, test) and `identity`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from genmodels.data.packed import MANIFEST, SPLITS, Packed
from genmodels.data.source import Files, Source, fingerprint

LABELS = "attributes.csv"
_MEANINGS = {"-1": -1, "0": 0, "1": 1, "+1": 1, "": 0, "-1.0": -1, "0.0": 0, "1.0": 1}


def folder_source(root: Path) -> Source:
    """The files of `root`, a folder or a zip archive, in the order of their paths.

    Raises:
        FileNotFoundError: when it does not exist.
        ValueError: when it is empty, no archive, or attributes.csv does not fit.
    """
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder or .zip of images")
    files = Files(root)
    entries = sorted(files.entries(), key=lambda entry: entry.name)
    texts = {entry.name: files.read_text(entry.name) for entry in entries if entry.name in (LABELS, MANIFEST)}
    entries = [entry for entry in entries if entry.name not in (LABELS, MANIFEST)]
    if not entries:
        raise ValueError(f"{root} holds no images: it is empty")
    names = [entry.name for entry in entries]
    attribute_names, rows = _read_labels(root, texts[LABELS], names) if LABELS in texts else ((), {})
    attributes = np.zeros((len(names), len(attribute_names)), np.int8)  # (N, K)
    splits = np.array([_split_of(name) for name in names], np.uint8)
    identities = np.full(len(names), -1, np.int32)
    for i, name in enumerate(names):
        if name in rows:
            values, split, identity = rows[name]
            attributes[i], identities[i] = values, identity
            splits[i] = splits[i] if split is None else split
    return Source(
        title=f"folder {root.resolve().name} ({len(names):,} files)",
        where=root,
        names=names,
        paths=names,
        attributes=attributes,
        attribute_names=attribute_names,
        splits=splits,
        identities=identities if (identities >= 0).any() else None,
        stamp=fingerprint(entries, *texts.values()),
        origin=_read_origin(texts.get(MANIFEST, "")),
    )


def export(data: Packed, out: Path, kind: Literal["jpeg", "webp"] = "jpeg", quality: int = 92) -> Path:
    """Write a pack as one small .zip of compressed images that `--data folder --root OUT.zip` reads; returns `out`.

    Names, labels, splits and the manifest travel along. Pixels change a little: the compression is lossy.

    Raises:
        ValueError: when `out` exists or does not end in .zip.
    """
    if out.suffix != ".zip":
        raise ValueError(f"{out}: an export is one archive; give a name that ends in .zip")
    if out.exists():
        raise ValueError(f"{out} already exists: choose another name, or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    suffix = {"jpeg": ".jpg", "webp": ".webp"}[kind]
    table = io.StringIO()
    writer = csv.writer(table)
    identity = [] if data.identities is None else ["identity"]
    writer.writerow(["file", "split", *identity, *data.attribute_names])
    draft = out.with_name(out.name + ".tmp")
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        for i, name in enumerate(data.names):
            stored = name if name.lower().endswith(suffix) else name + suffix
            picture = io.BytesIO()
            Image.fromarray(data.images[i]).save(picture, kind.upper(), quality=quality)
            archive.writestr(stored, picture.getvalue())
            who = [] if data.identities is None else [int(data.identities[i])]
            writer.writerow([stored, SPLITS[data.splits[i]], *who, *data.attributes[i].tolist()])
        archive.writestr(LABELS, table.getvalue(), zipfile.ZIP_DEFLATED)
        origin = {**data.manifest, "export": f"{kind}, quality {quality}"}
        archive.writestr(MANIFEST, json.dumps(origin), zipfile.ZIP_DEFLATED)
    draft.replace(out)
    return out


Row = tuple[list[int], int | None, int]
"""Attributes, split code or None, identity or -1."""


def _read_labels(root: Path, text: str, names: list[str]) -> tuple[tuple[str, ...], dict[str, Row]]:
    """Attribute names, and the labels of each file that attributes.csv speaks of."""
    where = f"{root / LABELS}"
    lines = list(csv.reader(io.StringIO(text)))
    if not lines or len(lines[0]) < 2:
        raise ValueError(f"{where}: expected a header line: file, then one name per attribute")
    columns = [name.strip() for name in lines[0][1:]]
    if len(set(columns)) != len(columns):
        raise ValueError(f"{where}: a column name occurs twice in the header")
    # A bare file name is enough where it is the only one.
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    whole, rows = set(names), {}
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) != len(columns) + 1:
            raise ValueError(f"{where}, line {number}: {len(line)} columns, the header has {len(columns) + 1}")
        file = line[0].strip().removeprefix("./")
        owners = [file] if file in whole else by_name.get(file, [])
        if len(owners) > 1:
            raise ValueError(
                f"{where}, line {number}: {file} is the name of {len(owners)} files: give the relative path"
            )
        if owners:
            rows[owners[0]] = _read_row(f"{where}, line {number}", dict(zip(columns, line[1:], strict=True)))
    if not rows:
        raise ValueError(f"{where}: none of its files is in {root}")
    return tuple(name for name in columns if name not in ("split", "identity")), rows


def _read_row(where: str, cells: dict[str, str]) -> Row:
    cells = {name: value.strip() for name, value in cells.items()}
    split, identity = cells.pop("split", ""), cells.pop("identity", "") or "-1"
    if split and split not in SPLITS:
        raise ValueError(f"{where}: split {split!r}, expected {', '.join(SPLITS)}")
    if not identity.removeprefix("-").isdecimal():
        raise ValueError(f"{where}: identity {identity!r} is not an integer")
    for name, value in cells.items():
        if value not in _MEANINGS:
            raise ValueError(f"{where}: {name} is {value!r}, expected -1 (no), 0 (unknown) or 1 (yes)")
    return [_MEANINGS[v] for v in cells.values()], SPLITS.index(split) if split else None, int(identity)


def _split_of(name: str) -> int:
    """Split code by a hash of the file name: 90 % train, 5 % valid, 5 % test, whatever else is in the folder."""
    percent = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") % 100
    return 0 if percent < 90 else 1 if percent < 95 else 2


def _read_origin(text: str) -> dict[str, Any] | None:
    """The manifest of the pack that this folder is an export of, if it is one."""
    try:
        manifest = json.loads(text)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and "checksums" in manifest else None
