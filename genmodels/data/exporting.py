"""Export of packs as zip archives of images, which `folder_source` reads."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Literal

from PIL import Image

from genmodels.data.directory import MANIFEST
from genmodels.data.folder import CAPTIONS, CLASSES, CONVERSATIONS, LABELS
from genmodels.data.packed import SPLITS, Packed
from genmodels.data.source import name_parts, readable
from genmodels.writing import replacing


def export(data: Packed, out: Path, kind: Literal["jpeg", "webp"] = "jpeg", quality: int = 92) -> Path:
    """Write a pack as a .zip of images for `--data folder --root OUT.zip`, and return `out`.

    Names, attributes, labels, splits, captions and the manifest are included. Names that lead out of the
    archive, are hidden or occur twice are changed. The compression is lossy, so pixels change
    slightly.

    Raises:
        ValueError: if `out` exists or does not end in .zip.
        OSError: if it cannot be written. See `genmodels.writing.replacing`.
    """
    if out.suffix != ".zip":
        raise ValueError(f"{out}: an export is a zip archive; give a name that ends in .zip")
    if out.exists():
        raise ValueError(f"{out} already exists: choose another name, or delete it")
    suffix = {"jpeg": ".jpg", "webp": ".webp"}[kind]
    table, captions, labels, conversations = (io.StringIO() for _ in range(4))
    writer, caption_writer, label_writer = csv.writer(table), csv.writer(captions), csv.writer(labels)
    label_writer.writerow(["file", "label"])
    caption_writer.writerow(["file", "caption"])
    identity = [] if data.identities is None else ["identity"]
    writer.writerow(["file", "split", *identity, *data.attribute_names])
    taken: set[str] = set()
    with replacing(out) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        for i, name in enumerate(data.names):
            stored = _member_name(name, suffix, taken)
            picture = io.BytesIO()
            Image.fromarray(data.images[i]).save(picture, kind.upper(), quality=quality)
            archive.writestr(stored, picture.getvalue())
            who = [] if data.identities is None else [int(data.identities[i])]
            # Unknown is an empty cell: in a column without -1, 0 would be read as no.
            writer.writerow(
                [stored, SPLITS[data.splits[i]], *who, *(value or "" for value in data.attributes[i].tolist())]
            )
            if data.labels is not None and data.labels[i] >= 0:
                label_writer.writerow([stored, data.class_names[data.labels[i]]])
            if data.text is not None:
                caption_writer.writerows([stored, caption] for caption in data.text[i])
            for line in data.conversations[i] if data.conversations is not None else ():
                record = {"id": f"{stored}-{i}", "image": stored, "conversations": json.loads(line)}
                conversations.write(json.dumps(record, ensure_ascii=False) + "\n")
        if data.text is not None and any(data.text):
            archive.writestr(CAPTIONS, captions.getvalue(), zipfile.ZIP_DEFLATED)
        if conversations.tell():
            archive.writestr(CONVERSATIONS, conversations.getvalue(), zipfile.ZIP_DEFLATED)
        if data.labels is not None and (data.labels >= 0).any():
            archive.writestr(CLASSES, labels.getvalue(), zipfile.ZIP_DEFLATED)
        archive.writestr(LABELS, table.getvalue(), zipfile.ZIP_DEFLATED)
        origin = {**data.manifest, "export": f"{kind}, quality {quality}"}
        archive.writestr(MANIFEST, json.dumps(origin), zipfile.ZIP_DEFLATED)
    return out


def _member_name(name: str, suffix: str, taken: set[str]) -> str:
    """Return a name for an image in an archive: relative, not hidden, and not in `taken`, to which
    it is added."""
    parts = [re.sub(r"[\x00-\x1f\x7f:]", "_", part).lstrip(".").strip() for part in name_parts(readable(name))]
    parts = [f"_{part}" if part.startswith("__MACOSX") else part for part in parts if part]
    stem = "/".join(parts).encode(errors="replace").decode() or "image"
    ending = stem[-len(suffix) :] if stem.lower().endswith(suffix) else suffix
    stem = stem.removesuffix(ending)
    stored, number = stem + ending, 2
    while stored.casefold() in taken:  # of names that differ in case, some file systems keep one
        stored, number = f"{stem}-{number}{ending}", number + 1
    taken.add(stored.casefold())
    return stored
