"""Packing: decode all images of a source once, on all cores, for `load_packed`."""

from __future__ import annotations

import json
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from genmodels.data.decode import FILTER, check_crop, decode
from genmodels.data.directory import JOURNAL, PARTIAL, is_packed, load_packed, save_columns
from genmodels.data.encoded import QUALITY, Store, encode
from genmodels.data.packed import LABEL_COLUMNS
from genmodels.data.partial import Chunk, Partial, PartialFiles, PartialPixels
from genmodels.data.parts import Part, part_of
from genmodels.data.rows import take_rows
from genmodels.data.source import LARGEST_TABLE, Reader, Source
from genmodels.data.workers import completed
from genmodels.image_files import RefusedError, may_pass
from genmodels.reading import parse_json, read_text
from genmodels.usage import console, say
from genmodels.writing import explained, is_leftover, write_text

CHUNK = 128
"""Images per unit of work and per line of the journal."""
LOCK = ".lock"


@dataclass(frozen=True)
class Decoding:
    """How the images of a source are decoded. It is sent to the processes that do it.

    Attributes:
        reader: opens the images.
        count: number of images.
        size, crop, aligned, store, quality: see `write_pack`.
        chunk: number of images that are decoded together.
    """

    reader: Reader
    count: int
    size: int
    crop: str
    aligned: bool
    store: Store
    quality: int
    chunk: int

    def __call__(self, start: int) -> Decoded:
        """Decode images start, start + 1, ..., as many as a chunk has."""
        indices = range(start, min(start + self.chunk, self.count))
        images = np.zeros((len(indices), self.size, self.size, 3), np.uint8)  # (n, S, S, 3)
        converted: Counter[str] = Counter()
        skipped: list[tuple[int, str]] = []
        for i, place in zip(indices, images, strict=True):
            try:
                with self.reader.open(i) as file:
                    place[:], kinds = decode(file, self.crop, self.size, self.aligned)
                converted.update(kinds)
            except (RefusedError, OSError, MemoryError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
                if may_pass(error):  # a later attempt may succeed
                    return Decoded(start, images, unreadable=(i, str(error)))
                skipped.append((i, str(error) if isinstance(error, RefusedError) else f"cannot be read: {error}"))
        if self.store == "raw":
            return Decoded(start, images, dict(converted), skipped)
        left_out = {i for i, _ in skipped}
        files = [
            b"" if i in left_out else encode(pixels, self.store, self.quality)
            for i, pixels in zip(indices, images, strict=True)
        ]
        return Decoded(start, files, dict(converted), skipped)


@dataclass(frozen=True)
class Decoded:
    """Consecutive images: pixels uint8 (n, S, S, 3), or n files. See `Chunk`.

    Attributes:
        unreadable: (index, reason) of an image that could not be read now.
    """

    start: int
    images: np.ndarray | list[bytes]
    converted: dict[str, int] | None = None
    skipped: list[tuple[int, str]] | None = None
    unreadable: tuple[int, str] | None = None


def write_pack(
    source: Source,
    out: Path,
    size: int,
    crop: str,
    aligned: bool,
    workers: int | None = None,
    store: Store = "raw",
    quality: int = QUALITY,
    part: Part | None = None,
) -> Path:
    """Pack `source` into directory `out`, or complete a partial pack there, and return `out`.

    Images are written in chunks with a journal, and the manifest is written last. After an
    interruption, the same call continues where the previous one stopped. If two processes call this
    at the same time, the second one waits for the first.

    Args:
        source: images to pack.
        out: new or empty directory, or a pack of the same source, size and crop.
        size: side of the packed images in pixels.
        crop: name of the crop.
        aligned: whether the images are aligned CelebA images.
        workers: number of processes; None means one thread per core of this process. (Decoding and
            resizing release the GIL.)
        store: store pixels ("raw"), or encode the images again ("jpeg", "webp").
        quality: quality of encoded images, 1 to 100.
        part: pack only this part of the source, for `join`.

    Raises:
        ValueError: if no image can be read, or if `out` holds something else.
        OSError: if the disk has too little space.
    """
    check_crop(crop, size, aligned)
    header = {"stamp": source.stamp, "count": len(source.names), "size": size, "crop": crop, "filter": FILTER}
    if store != "raw":
        header |= {"store": store, "quality": quality}
    if part is not None:
        source = part_of(source, part)
        header |= {"part": [part.number, part.of], "rows": len(source.names)}
    with lock(out), explained(out):
        if is_packed(out):
            if load_packed(out).manifest.get("request") != header:
                raise ValueError(f"{out} already holds another pack: choose another --out, or delete it")
            _tidy(out)
            return out
        images, done = _resume(out, header)
        for note in source.notes:
            say(note)
        decoding = Decoding(source.reader, len(source.names), size, crop, aligned, store, quality, CHUNK)
        with open(out / JOURNAL, "a") as journal:
            journal.write("\n")  # ends a line that was cut off by an interruption
            for chunk in _fill(source, images, decoding, set(done), workers):
                journal.write(json.dumps(asdict(chunk)) + "\n")
                journal.flush()
                done[chunk.start] = chunk
        _finish(source, out, images, header, [done[start] for start in sorted(done)])
    return out


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Lock directory `out` against other processes. It is created if it is absent."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = FileLock(out / LOCK)
        try:
            held.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that is packing {out}")
            held.acquire()
    except (OSError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its file system cannot lock files"
        raise OSError(f"cannot write to {out}: {reason}; choose another --out or GENMODELS_CACHE") from None
    try:
        yield
    finally:
        held.release()


def progress_bar(title: str) -> Progress:
    """Return a progress bar on stderr that shows images per second and the remaining time."""
    return Progress(
        TextColumn(title, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console(stderr=True),
    )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} images/s" if speed else "")


def _resume(out: Path, header: dict[str, Any]) -> tuple[Partial, dict[int, Chunk]]:
    """Return the images and chunks of a partial pack in `out`, or a new one."""
    journal, count = out / JOURNAL, header.get("rows", header["count"])
    images = (PartialFiles if "store" in header else PartialPixels)(out, count, header["size"])
    recorded, *lines = (read_text(journal, LARGEST_TABLE) if journal.exists() else "").splitlines() or [""]
    if recorded and recorded != json.dumps(header):
        raise ValueError(f"{out} holds a partial pack of something else or of changed files: delete it and pack again")
    chunks = [chunk for line in lines if (chunk := _read_chunk(line, count)) is not None]
    if chunks and (intact := images.reopen(chunks, CHUNK)) is not None:
        return images, {chunk.start: chunk for chunk in intact}
    names = (item.name for item in out.iterdir() if not is_leftover(item.name))
    if others := sorted(name for name in names if name not in (LOCK, PARTIAL, JOURNAL)):
        raise ValueError(f"{out} is not empty ({others[0]}): choose a new directory for the pack")
    images.create()
    write_text(journal, json.dumps(header))
    return images, {}


def _read_chunk(line: str, count: int) -> Chunk | None:
    """Return the chunk of a line of the journal, or None if the line is damaged or was cut off."""
    try:
        chunk = Chunk(**parse_json(line))
        converted = {str(kind): int(number) for kind, number in chunk.converted.items()}
        skipped = [(int(i), str(reason)) for i, reason in chunk.skipped]
        numbers = [chunk.start, chunk.place, *chunk.lengths]
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None
    if any(type(number) is not int for number in numbers) or chunk.start not in range(0, count, CHUNK):
        return None
    own = range(chunk.start, min(chunk.start + CHUNK, count))
    return replace(chunk, converted=converted, skipped=skipped) if all(i in own for i, _ in skipped) else None


def _tidy(out: Path) -> None:
    """Remove the files that only a partial pack needs."""
    for name in (PARTIAL, JOURNAL):
        (out / name).unlink(missing_ok=True)


def _fill(source: Source, images: Partial, decoding: Decoding, done: set[int], workers: int | None) -> Iterator[Chunk]:
    """Decode the remaining chunks into `images` and yield each one when it is complete."""
    count = decoding.count
    starts = [start for start in range(0, count, CHUNK) if start not in done]
    # Images with too many pixels are refused; Pillow's warning about them adds nothing.
    with warnings.catch_warnings(), progress_bar("packing") as progress:
        warnings.simplefilter("ignore")
        bar = progress.add_task("", total=count, completed=sum(min(CHUNK, count - start) for start in done))
        for decoded in completed(decoding, starts, workers):
            if decoded.unreadable is not None:
                i, reason = decoded.unreadable
                what = f"{source.names[i]} cannot be read ({reason})"
                raise ValueError(f"{source.where}: {what}: make it readable or remove it, and pack again")
            written = images.write(decoded.start, decoded.images)
            progress.advance(bar, len(decoded.images))
            yield Chunk(decoded.start, converted=decoded.converted or {}, skipped=decoded.skipped or [], **written)


def _finish(source: Source, out: Path, images: Partial, header: dict[str, Any], chunks: list[Chunk]) -> None:
    """Complete a pack: drop skipped rows, sort by split, write columns and manifest."""
    skipped = [(source.names[i], reason) for chunk in chunks for i, reason in chunk.skipped]
    kept = np.ones(images.count, bool)
    kept[[i for chunk in chunks for i, _ in chunk.skipped]] = False
    if not kept.any():
        name, reason = skipped[0]
        _tidy(out)
        raise ValueError(f"no usable image in {source.where}: {len(skipped):,} files, none readable; {name}: {reason}")
    if source.labels is not None and "part" not in header:
        # A source may also name classes of which it has no image, such as a part of a larger data set.
        lost = np.setdiff1d(source.labels, source.labels[kept])
        if len(empty := lost[lost >= 0]):
            _tidy(out)
            name = source.class_names[empty[0]]
            raise ValueError(
                f"{source.where}: no image of the class {name!r} can be read: add images to it, or remove it"
            )
    order = np.flatnonzero(kept)
    order = order[np.argsort(source.splits[order], kind="stable")]  # each split becomes one slice of the file
    images.finish(order)
    manifest: dict[str, Any] = {
        "source": source.title,
        "crop": header["crop"],
        "size": header["size"],
        "filter": FILTER,
        **{name: header[name] for name in ("store", "quality") if name in header},
        "attributes": list(source.attribute_names),
        "classes": list(source.class_names),
        "converted": dict(sum((Counter(chunk.converted) for chunk in chunks), Counter())),
        "skipped": source.left_out + skipped,
        "notes": source.notes,
        "origin": source.origin,
        "request": header,
    }
    if "part" in header:
        classes = [] if source.labels is None else np.unique(source.labels).tolist()
        manifest["part"] = {"left_out": len(source.left_out), "classes": classes}
    save_columns(out, manifest, [{name: take_rows(getattr(source, name), order) for name in LABEL_COLUMNS}])
    _tidy(out)
