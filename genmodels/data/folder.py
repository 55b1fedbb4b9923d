"""Folders and zip archives of images, with labels and captions; export of packs as such archives.

attributes.csv has a header. Its first column is the file (relative path or bare name). The other
columns are attributes in {-1, 0, 1}, where an empty cell means 0 (unknown), except for two special
names: `split` (train, valid, test) and `identity`. captions.csv has the columns file and caption; a
file may have several rows.
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

LABELS, CAPTIONS = "attributes.csv", "captions.csv"
_MEANINGS = {"-1": -1, "0": 0, "1": 1, "+1": 1, "": 0, "-1.0": -1, "0.0": 0, "1.0": 1}


def folder_source(root: Path) -> Source:
    """Return the images of `root`, a folder or a zip archive, sorted by path.

    Raises:
        FileNotFoundError: if `root` does not exist.
        ValueError: if it is empty or not an archive, or if attributes.csv or captions.csv is
            malformed.
    """
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder or .zip of images")
    files = Files(root)
    entries = sorted(files.entries(), key=lambda entry: entry.name)
    tables = (LABELS, CAPTIONS, MANIFEST)
    texts = {entry.name: files.read_text(entry.name) for entry in entries if entry.name in tables}
    entries = [entry for entry in entries if entry.name not in tables]
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
        text=_read_captions(root, texts[CAPTIONS], names) if CAPTIONS in texts else None,
        origin=_read_origin(texts.get(MANIFEST, "")),
    )


def export(data: Packed, out: Path, kind: Literal["jpeg", "webp"] = "jpeg", quality: int = 92) -> Path:
    """Write a pack as a .zip of images for `--data folder --root OUT.zip`, and return `out`.

    Names, labels, splits, captions and the manifest are included. The compression is lossy, so
    pixels change slightly.

    Raises:
        ValueError: if `out` exists or does not end in .zip.
    """
    if out.suffix != ".zip":
        raise ValueError(f"{out}: an export is a zip archive; give a name that ends in .zip")
    if out.exists():
        raise ValueError(f"{out} already exists: choose another name, or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    suffix = {"jpeg": ".jpg", "webp": ".webp"}[kind]
    table, captions = io.StringIO(), io.StringIO()
    writer, caption_writer = csv.writer(table), csv.writer(captions)
    caption_writer.writerow(["file", "caption"])
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
            if data.text is not None:
                caption_writer.writerows([stored, caption] for caption in data.text[i])
        if data.text is not None and any(data.text):
            archive.writestr(CAPTIONS, captions.getvalue(), zipfile.ZIP_DEFLATED)
        archive.writestr(LABELS, table.getvalue(), zipfile.ZIP_DEFLATED)
        origin = {**data.manifest, "export": f"{kind}, quality {quality}"}
        archive.writestr(MANIFEST, json.dumps(origin), zipfile.ZIP_DEFLATED)
    draft.replace(out)
    return out


Row = tuple[list[int], int | None, int]
"""Attributes, split code or None, identity or -1."""


class _Table:
    """Rows of a CSV file whose first column is an image file. Rows of other files are ignored.

    Args:
        root: folder or archive that holds the CSV file.
        file: name of the CSV file.
        text: its content.
        names: relative paths of all images.

    Raises:
        ValueError: if the header is missing or has a name twice, if a row has another number of
            columns, or if no row belongs to an image.
    """

    def __init__(self, root: Path, file: str, text: str, names: list[str]):
        where = str(root / file)
        lines = list(csv.reader(io.StringIO(text)))
        if not lines or len(lines[0]) < 2:
            raise ValueError(f"{where}: expected a header line with the column names, the first one for the file")
        self.columns = [name.strip() for name in lines[0][1:]]
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"{where}: a column name occurs twice in the header")
        # A bare file name is enough if only one file has it.
        by_name: dict[str, list[str]] = {}
        for name in names:
            by_name.setdefault(name.rsplit("/", 1)[-1], []).append(name)
        known = set(names)
        self.rows: list[tuple[str, str, dict[str, str]]] = []  # (file, where the row is, its cells)
        for number, line in enumerate(lines[1:], start=2):
            if not line:
                continue
            if len(line) != len(self.columns) + 1:
                message = f"{len(line)} columns, the header has {len(self.columns) + 1}"
                raise ValueError(f"{where}, line {number}: {message}")
            image = line[0].strip().removeprefix("./")
            owners = [image] if image in known else by_name.get(image, [])
            if len(owners) > 1:
                message = f"{image} is the name of {len(owners)} files: give the relative path"
                raise ValueError(f"{where}, line {number}: {message}")
            if owners:
                cells = dict(zip(self.columns, line[1:], strict=True))
                self.rows.append((owners[0], f"{where}, line {number}", cells))
        if not self.rows:
            raise ValueError(f"{where}: none of its files is in {root}")


def _read_labels(root: Path, text: str, names: list[str]) -> tuple[tuple[str, ...], dict[str, Row]]:
    """Return the names of the attributes, and the labels of each file that attributes.csv lists."""
    table = _Table(root, LABELS, text, names)
    rows = {file: _read_row(where, cells) for file, where, cells in table.rows}
    return tuple(name for name in table.columns if name not in ("split", "identity")), rows


def _read_captions(root: Path, text: str, names: list[str]) -> list[tuple[str, ...]]:
    """Return the captions of each image. A file may have several rows in captions.csv, or none."""
    table = _Table(root, CAPTIONS, text, names)
    if table.columns != ["caption"]:
        raise ValueError(f"{root / CAPTIONS}: expected the columns file and caption, got file, {table.columns}")
    captions: dict[str, list[str]] = {}
    for file, _, cells in table.rows:
        captions.setdefault(file, []).append(cells["caption"])
    return [tuple(captions.get(name, ())) for name in names]


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
    """Return a split code from a hash of the file name: 90 % train, 5 % valid, 5 % test."""
    percent = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") % 100
    return 0 if percent < 90 else 1 if percent < 95 else 2


def _read_origin(text: str) -> dict[str, Any] | None:
    """Return the manifest of the pack of which this folder is an export, or None."""
    try:
        manifest = json.loads(text)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and "checksums" in manifest else None
