"""WebDataset: images, labels and captions in tar archives, which are called shards.

Members whose names agree up to the first dot of the file's name are one sample: an image (.jpg,
.jpeg, .png or .webp) with, optionally, .cls (name or number of its class), .txt (a caption) and
.json (an object with "label", and with "caption" or "text"). Shards are read once to list their
members; images are then read at their offsets. Nothing is unpacked.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from genmodels.data.cells import captions_of, class_of
from genmodels.data.classes import number_classes
from genmodels.data.shards import expand, file_entry, split_of, splits_of
from genmodels.data.source import LARGEST_MEMBER, Files, Source, fingerprint, name_parts, readable
from genmodels.reading import LARGEST_LINE, check_regular, in_one_line

IMAGES = ("jpg", "jpeg", "png", "webp")
"""What the names of images end with."""
LABEL, CAPTION, RECORD = "cls", "txt", "json"
MOST_SHARDS = 1_000_000
"""Largest number of shards."""


@dataclass(frozen=True, eq=False)
class ShardReader:
    """Opens images in shards at their offsets.

    Attributes:
        shards: the archives.
        places: int64 (N, 3): index of the archive, and first byte and number of bytes of the image.
    """

    shards: list[Path]
    places: np.ndarray

    @contextmanager
    def open(self, index: int) -> Iterator[BinaryIO]:
        """Open image `index` for reading and seeking."""
        shard, start, size = self.places[index].tolist()
        if size > LARGEST_MEMBER:
            raise OSError(f"file of {size:,} bytes in a shard; at most {LARGEST_MEMBER:,} are read")
        with open(self.shards[shard], "rb") as file:
            file.seek(start)
            yield io.BytesIO(file.read(size))


def webdataset_source(root: Path) -> Source:
    """Return the images in the shards of `root`, in the order of the shards.

    Args:
        root: a folder of .tar files, one .tar file, or a pattern with braces, such as
            `shards-{0000..0015}.tar`.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if a shard is damaged, its members do not pair up, or no shard has an image.
    """
    shards = _find_shards(root)
    names, places, ignored = list[str](), list[tuple[int, int, int]](), set[str]()
    labels, text, splits = list[str | None](), list[tuple[str, ...]](), list[int | None]()
    left_out = list[tuple[str, str]]()
    for number, (name, path) in enumerate(shards):
        shard = _read_shard(path)
        ignored |= shard.ignored
        left_out += shard.left_out
        for key, (member, start, size) in shard.images.items():
            names.append(f"{name.removesuffix('.tar')}/{member}")
            places.append((number, start, size))
            try:
                labels.append(_label_of(shard, key))
                text.append(_captions_of(shard, key))
            except ValueError as error:
                raise ValueError(f"{path}: {key}: {in_one_line(error, 200)}") from None
        splits += [split_of(name)] * (len(names) - len(splits))
    if not names:
        raise ValueError(f"{root} holds no images: its shards have no member that ends with {', '.join(IMAGES)}")
    notes = [f"members that end with {', '.join(sorted(ignored)[:5])} are not read"] if ignored else []
    class_names, numbers = number_classes(labels, str(root))
    captions = text if any(text) else None
    entries = [file_entry(path, name) for name, path in shards]
    split_codes = splits_of(names, splits, notes)
    return Source(
        title=f"webdataset {readable(root.name)} ({len(names):,} images in {len(shards):,} shards)",
        where=root,
        names=names,
        reader=ShardReader([path for _, path in shards], np.array(places, np.int64)),
        attributes=np.zeros((len(names), 0), np.int8),
        attribute_names=(),
        splits=split_codes,
        identities=None,
        stamp=fingerprint(entries, split_codes, numbers, repr(class_names), repr(captions)),
        text=captions,
        labels=numbers if class_names else None,
        class_names=class_names,
        left_out=left_out,
        notes=notes,
    )


def _find_shards(root: Path) -> list[tuple[str, Path]]:
    """Return relative name and path of each shard, sorted.

    Raises:
        FileNotFoundError: if there is none, or one of the list is missing.
    """
    if root.is_dir():
        names = sorted(entry.name for entry in Files(root).entries() if entry.name.endswith(".tar"))
        if not names:
            raise FileNotFoundError(f"{root} holds no shards: put .tar files into it")
        return [(name, root / name) for name in names]
    expanded = dict.fromkeys(islice(expand(str(root)), MOST_SHARDS))
    paths = [root] if root.exists() else [Path(name) for name in expanded]
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: no such shard; {len(missing):,} of {len(paths):,} are missing")
    top = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    return sorted((path.absolute().relative_to(top).as_posix(), path) for path in paths)


@dataclass
class _Shard:
    """What a shard holds, by the key of each sample.

    Attributes:
        path: the archive.
        images: name, first byte and number of bytes of each image.
        others: contents of the other members, by what their names end with.
        ignored: what the names of members end with that are not read.
        left_out: (name, reason) of members that are not used.
    """

    path: Path
    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    others: dict[str, dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    ignored: set[str] = field(default_factory=set)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def _read_shard(path: Path) -> _Shard:
    """List the samples of a shard.

    Raises:
        ValueError: if it is damaged, or if its members do not pair up.
    """
    shard = _Shard(path)
    check_regular(path)
    with open(path, "rb") as file:
        for member in _members(path):
            parts = name_parts(member.name)
            if ".." in parts:
                shard.left_out.append((member.name, "its name leads out of the archive"))
            if not member.isreg() or not parts or any(part.startswith(".") for part in parts):
                continue
            stem, _, ending = parts[-1].partition(".")
            key, ending = "/".join([*parts[:-1], stem]), ending.lower()
            if ending in IMAGES:
                place = ("/".join(parts), member.offset_data, member.size)
                if (other := shard.images.setdefault(key, place)[0]) != place[0]:
                    raise ValueError(f"{path}: {other} and {place[0]} are images of one sample: remove one")
                shard.images[key] = place
            elif ending in (LABEL, CAPTION, RECORD):
                if member.size > LARGEST_LINE:
                    raise ValueError(f"{path}: {'/'.join(parts)} has {member.size:,} bytes; at most {LARGEST_LINE:,}")
                file.seek(member.offset_data)
                shard.others[ending][key] = file.read(member.size)
            else:
                shard.ignored.add(f".{ending}")
    _check_pairs(shard)
    return shard


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar archive.

    Raises:
        ValueError: if it is not one, is compressed, or is damaged.
    """
    remedy = "it is damaged or was cut short: copy it again"
    try:
        with tarfile.open(path, "r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                if member.offset < end or member.offset_data < member.offset or member.size < 0:
                    raise tarfile.ReadError("a member has an impossible place")
                end = archive.offset
                yield member
                vars(archive)["members"].clear()  # it keeps every member
            archive.fileobj.seek(archive.offset)  # tarfile takes a damaged header for the end
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no mark at its end")
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        with open(path, "rb") as file:
            start = file.read(4)
        if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")):
            remedy = "it is compressed: decompress it, as images are read at their offsets"
        raise ValueError(f"{path} cannot be read ({in_one_line(error, 120)}): {remedy}") from None


def _check_pairs(shard: _Shard) -> None:
    """Check that every label and caption has an image, and every image one if another has one.

    Raises:
        ValueError: if one has none; names it.
    """
    for ending, contents in shard.others.items():
        if alone := next((key for key in contents if key not in shard.images), None):
            raise ValueError(
                f"{shard.path}: {alone}.{ending} has no image ({', '.join(IMAGES)}): add it, or remove both"
            )
        if alone := next((key for key in shard.images if key not in contents), None):
            name = shard.images[alone][0]
            raise ValueError(f"{shard.path}: {name} has no .{ending}, and other images of the shard have one")


def _label_of(shard: _Shard, key: str) -> str | None:
    """Return the name or number of the class of a sample, or None if it is unknown."""
    if LABEL in shard.others:
        return class_of(shard.others[LABEL][key].decode("utf-8-sig"))
    return class_of(_record(shard, key).get("label"))


def _captions_of(shard: _Shard, key: str) -> tuple[str, ...]:
    if CAPTION in shard.others:
        return captions_of(shard.others[CAPTION][key].decode("utf-8-sig").strip())
    record = _record(shard, key)
    return captions_of(record.get("caption", record.get("text")))


def _record(shard: _Shard, key: str) -> dict[str, Any]:
    if RECORD not in shard.others:
        return {}
    try:
        record = json.loads(shard.others[RECORD][key])  # of which "label" and "caption" are checked
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is damaged ({error})") from None
    if not isinstance(record, dict):
        raise ValueError("its .json is not an object")
    return record
