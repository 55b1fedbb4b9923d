"""Folders and zip archives of images, with labels, captions and splits.

Tables have a header, and their first column is the file (relative path or bare name). The other
columns of attributes.csv are attributes in {-1, 0, 1}, where an empty cell means unknown, except for
two special names: `split` (a name of SPLIT_FOLDERS) and `identity`. labels.csv has the column label,
the name of a class. captions.csv has the column caption; a file may have several rows.
conversations.jsonl has conversations about images in LLaVA's format, one JSON object per line. Folders
called train, val and test are splits. Without labels.csv, the folders in them may be classes, as in
torchvision's ImageFolder.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genmodels.data.classes import classes_of_folders, number_classes
from genmodels.data.conversations import read_conversations
from genmodels.data.directory import MANIFEST
from genmodels.data.source import Entry, Files, FilesReader, Source, fingerprint, readable
from genmodels.data.tables import (
    ALLOW,
    SPLIT_FOLDERS,
    VALUES,
    Row,
    check_once,
    common_folder,
    compare_names,
    decide_zeros,
    fold,
    match,
    only_folder,
    read_table,
)
from genmodels.reading import parse_json

LABELS, CAPTIONS, CLASSES = "attributes.csv", "captions.csv", "labels.csv"
CONVERSATIONS = "conversations.jsonl"


UNMATCHED = {LABELS: 0.5, CAPTIONS: 0.0, CLASSES: 0.0, CONVERSATIONS: 0.0}
"""Largest fraction of the rows of each table that may belong to no image. A label or a caption
without its image is usually a mistake, but tables of attributes are often those of a larger set."""


def folder_source(root: Path, allow_unmatched: bool = False) -> Source:
    """Return the images of `root`, a folder or a zip archive, sorted by path.

    Args:
        root: the folder or archive.
        allow_unmatched: accept tables most of whose rows belong to no image.

    Raises:
        FileNotFoundError: if `root` does not exist.
        ValueError: if it is empty or not an archive; if a table is malformed, or most of its rows
            (of the other tables, any) belong to no image; if a caption is empty; if a conversation
            is malformed; or if the folder of a class has no image.
    """
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder or .zip of images")
    files, notes = Files(root), list[str]()
    entries = sorted(files.entries(), key=lambda entry: entry.name)
    top = only_folder([entry.name for entry in entries])
    tables = {name: _find_table(root, entries, name, notes) for name in UNMATCHED}
    manifest = next((entry for entry in entries if entry.name in (MANIFEST, top + MANIFEST)), None)
    entries = [entry for entry in entries if entry not in (*tables.values(), manifest)]
    if not entries:
        raise ValueError(f"{root} holds no images: it is empty")
    names = [entry.name for entry in entries]
    splits, identities = _splits_of(names, top, notes), np.full(len(names), -1, np.int32)
    attributed, captions, labelled, conversed = (
        None if entry is None else _Table(files, entry, names, 1.0 if allow_unmatched else UNMATCHED[name])
        for name, entry in tables.items()
    )
    attribute_names, attributes = _read_attributes(attributed, splits, identities)
    class_names, labels = _read_classes(labelled, names, files.folders, top, root, notes)
    for table in filter(None, (attributed, captions, labelled, conversed)):
        notes += [f"{table.name}: {note}" for note in table.notes]
    text = None if captions is None else _read_captions(captions, len(names))
    conversations = None if conversed is None else _by_image(conversed, len(names))
    origin = None if manifest is None else files.read_bytes(manifest.name).decode(errors="replace")
    return Source(
        title=f"folder {readable(root.resolve().name)} ({len(names):,} files)",
        where=root,
        names=names,
        reader=FilesReader(root, [entry.path for entry in entries]),
        attributes=attributes,
        attribute_names=attribute_names,
        splits=splits,
        identities=identities if (identities >= 0).any() else None,
        stamp=fingerprint(
            *(entries, attributes, repr(attribute_names), splits, identities, repr(text), origin),
            *(() if labels is None else (labels, repr(class_names))),
            *(() if conversations is None else (repr(conversations),)),
        ),
        text=text,
        conversations=conversations,
        labels=labels,
        class_names=class_names,
        left_out=files.left_out,
        origin=_read_origin(origin or ""),
        notes=notes,
    )


def _find_table(root: Path, entries: Sequence[Entry], file: str, notes: list[str]) -> Entry | None:
    """Return the file of this name, in upper or lower case, that is nearest to the root.

    Raises:
        ValueError: if there are several at the same depth.
    """
    tables = [entry for entry in entries if entry.name.rpartition("/")[2].casefold() == file]
    tables.sort(key=lambda entry: entry.name.count("/"))
    if len(tables) > 1:
        first, second = (entry.name for entry in tables[:2])
        if first.count("/") == second.count("/"):
            raise ValueError(f"{root} holds {first} and {second}: merge them into one {file} in {root}")
        notes.append(f"there are {len(tables)} files called {file}: {first} is read")
    return tables[0] if tables else None


class _Table:
    """A file whose rows belong to images.

    Args:
        files: folder or archive that holds it.
        entry: the CSV file, or the file of conversations.
        names: relative paths of all images.
        unmatched: largest fraction of its rows that may belong to no image.

    Raises:
        ValueError: if it is malformed, or more of its rows belong to no image.
    """

    def __init__(self, files: Files, entry: Entry, names: list[str], unmatched: float):
        self.name, self.where, self.notes = entry.name, str(files.where / entry.path), list[str]()
        read = read_conversations if entry.name.casefold().endswith(CONVERSATIONS) else read_table
        self.columns, self.rows = read(files.read_bytes(entry.name), self.where, self.notes)
        if not self.rows:
            raise ValueError(f"{self.where}: it has a header and no rows")
        self.owners = match(self.rows, names, entry.name[: entry.name.rfind("/") + 1], self.where)
        lost = [row.file for row, owner in zip(self.rows, self.owners, strict=True) if owner is None]
        known = set(self.owners)
        others = [name for i, name in enumerate(names) if i not in known]
        if lost or others:
            sentence = compare_names(lost, others, (len(self.rows), len(names)))
            if len(lost) > unmatched * len(self.rows):
                raise ValueError(f"{self.where}: {sentence}; {ALLOW}")
            self.notes.append(sentence)


def _read_attributes(
    table: _Table | None, splits: np.ndarray, identities: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names and values (N, K) of the attributes, and write into `splits` and `identities`
    what attributes.csv says of them."""
    if table is None:
        return (), np.zeros((len(splits), 0), np.int8)
    check_once(table.rows, table.owners, table.where)
    kept = [k for k, name in enumerate(table.columns) if name not in ("split", "identity")]
    split, identity = (table.columns.index(name) if name in table.columns else None for name in ("split", "identity"))
    names = tuple(table.columns[k] for k in kept)
    rows = [_read_values(table, row, kept) for row in table.rows]
    values = decide_zeros(np.array(rows, np.int8).reshape(len(rows), len(names)), names, table.notes)  # (R, K)
    attributes = np.zeros((len(splits), len(names)), np.int8)  # (N, K)
    for r, (row, owner) in enumerate(zip(table.rows, table.owners, strict=True)):
        code = None if split is None else _read_split(table, row, split)
        number = -1 if identity is None else _read_identity(table, row, identity)
        if owner is not None:
            attributes[owner], identities[owner] = values[r], number
            splits[owner] = splits[owner] if code is None else code
    return names, attributes


def _read_classes(
    table: _Table | None, names: list[str], folders: set[str], top: str, root: Path, notes: list[str]
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return the names of the classes and the class of each image (N,), from labels.csv or else
    from folders. Without classes, these are () and None."""
    if table is None:
        of_folders = classes_of_folders(names, folders, top, root, notes)
        return ((), None) if of_folders is None else number_classes(of_folders, str(root))
    if table.columns != ["label"]:
        raise ValueError(f"{table.where}: expected the columns file and label, got file, {', '.join(table.columns)}")
    check_once(table.rows, table.owners, table.where)
    labels: list[str | None] = [None] * len(names)
    for row, owner in zip(table.rows, table.owners, strict=True):
        if owner is not None:
            labels[owner] = row.cells[0].strip() or None
    class_names, numbers = number_classes(labels, table.where)
    if not class_names:
        raise ValueError(f"{table.where}: no image has a label")
    return class_names, numbers


def _read_values(table: _Table, row: Row, columns: list[int]) -> list[int]:
    try:
        return [VALUES[row.cells[k].strip()] for k in columns]
    except KeyError as error:
        name = next(table.columns[k] for k in columns if row.cells[k].strip() == error.args[0])
        message = f"{name} is {error.args[0][:40]!r}, expected -1 (no), 0 (unknown) or 1 (yes)"
        raise ValueError(f"{table.where}, line {row.line}: {message}") from None


def _read_split(table: _Table, row: Row, column: int) -> int | None:
    """Return the code of the split, or None if the cell is empty."""
    split = row.cells[column].strip()
    if split and split.casefold() not in SPLIT_FOLDERS:
        raise ValueError(f"{table.where}, line {row.line}: split {split[:40]!r}, expected {', '.join(SPLIT_FOLDERS)}")
    return SPLIT_FOLDERS[split.casefold()] if split else None


def _read_identity(table: _Table, row: Row, column: int) -> int:
    """Return the number of the person, or -1 if the cell is empty."""
    identity = row.cells[column].strip() or "-1"
    if not identity.removeprefix("-").isdecimal() or len(identity) > 10 or abs(int(identity)) >= 1 << 31:
        message = f"identity {identity[:20]!r} is not an integer of at most 31 bits"
        raise ValueError(f"{table.where}, line {row.line}: {message}")
    return int(identity)


def _read_captions(table: _Table, count: int) -> list[tuple[str, ...]]:
    """Return the captions of each image. A file may have several rows in captions.csv, or none."""
    if table.columns != ["caption"]:
        raise ValueError(f"{table.where}: expected the columns file and caption, got file, {table.columns}")
    for row in table.rows:
        if not row.cells[0].strip():
            raise ValueError(f"{table.where}, line {row.line}: the caption is empty: write one, or remove the row")
    return _by_image(table, count)


def _by_image(table: _Table, count: int) -> list[tuple[str, ...]]:
    """Return the first cells of the rows of each of `count` images."""
    texts: list[tuple[str, ...]] = [()] * count
    for row, owner in zip(table.rows, table.owners, strict=True):
        if owner is not None:
            texts[owner] += (row.cells[0],)
    return texts


def _splits_of(names: Sequence[str], top: str, notes: list[str]) -> np.ndarray:
    """Return the code of the split of each image: by its folder, or by a hash of its name.

    Args:
        names: relative paths of the images.
        top: the folder that holds all other folders, or "".
        notes: receives a line if there are folders for splits.
    """
    folders = [name.removeprefix(top).split("/")[:-1] for name in names]
    of_folder = [SPLIT_FOLDERS.get(path[0].casefold()) if path else None for path in folders]
    hashed = [path for path, split in zip(folders, of_folder, strict=True) if split is None]
    if found := sorted({path[0] for path, split in zip(folders, of_folder, strict=True) if split is not None}):
        rest = f"; {len(hashed):,} files outside of them get a split by a hash of their names" if hashed else ""
        notes.append(f"splits are the folders {', '.join(found)}{rest}")
    if deeper := sorted({part for path in hashed for part in path if part.casefold() in SPLIT_FOLDERS}):
        notes.append(f"folders called {', '.join(deeper)} inside other folders are not splits: move them to the root")
    hashes = hashed_splits([name for name, split in zip(names, of_folder, strict=True) if split is None])
    codes = [hashes[name] if split is None else split for name, split in zip(names, of_folder, strict=True)]
    return np.array(codes, np.uint8)


def hashed_splits(names: Sequence[str]) -> dict[str, int]:
    """Return a split for each file: 90 % train, 5 % valid, 5 % test.

    It is a hash of the file's own name or, if several files have that name, of the path below the
    folder that holds all of these. So it is the same for a folder and for the folder above.
    """
    alike = defaultdict[str, list[str]](list)
    for name in names:
        alike[fold(name).rpartition("/")[2]].append(name)
    splits = {}
    for own, paths in alike.items():
        shared = common_folder(paths) if len(paths) > 1 else ""
        for path in paths:
            key = fold(path.removeprefix(shared)) if len(paths) > 1 else own
            percent = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 100
            splits[path] = 0 if percent < 90 else 1 if percent < 95 else 2
    return splits


def _read_origin(text: str) -> dict[str, Any] | None:
    """Return the manifest of the pack of which this folder is an export, or None."""
    try:
        manifest = parse_json(text)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and "checksums" in manifest else None
