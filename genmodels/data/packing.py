"""Packing: decode all images of a source once, on all cores, for `load_packed`."""

from __future__ import annotations

import json
import os
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from genmodels.array_files import map_array
from genmodels.data.decode import FILTER, check_crop, decode
from genmodels.data.directory import IMAGES, JOURNAL, PARTIAL, is_packed, load_packed, save_labels
from genmodels.data.packed import LABEL_COLUMNS
from genmodels.data.rows import take_rows
from genmodels.data.source import LARGEST_TABLE, Source
from genmodels.image_files import RefusedError, may_pass
from genmodels.reading import parse_json, read_text
from genmodels.usage import console, say
from genmodels.writing import check_space, create_array, explained, is_leftover, write_text

CHUNK = 128
"""Images per unit of work and per line of the journal."""
LOCK = ".lock"


@dataclass(frozen=True)
class Chunk:
    """Journal entry of images start ... start + CHUNK.

    Attributes:
        start: index of the first image in the source.
        checksum: CRC-32 of the pixels, to detect pixels that did not reach the disk before a crash.
        converted: number of images per kind of conversion.
        skipped: (index, reason) of images that were refused; their pixels are 0.
    """

    start: int
    checksum: int
    converted: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[int, str]] = field(default_factory=list)


def write_pack(source: Source, out: Path, size: int, crop: str, aligned: bool, workers: int | None = None) -> Path:
    """Pack `source` into directory `out`, or complete a partial pack there, and return `out`.

    Pixels are written in chunks with a journal, and the manifest is written last. After an
    interruption, the same call continues where the previous one stopped. If two processes call this
    at the same time, the second one waits for the first.

    Args:
        source: images to pack.
        out: new or empty directory, or a pack of the same source, size and crop.
        size: side of the packed images in pixels.
        crop: name of the crop.
        aligned: whether the images are aligned CelebA images.
        workers: number of threads; None means one per core. (Decoding and resizing release the
            GIL.)

    Raises:
        ValueError: if no image can be read, or if `out` holds something else.
        OSError: if the disk has too little space.
    """
    check_crop(crop, size, aligned)
    header = {"stamp": source.stamp, "count": len(source.names), "size": size, "crop": crop, "filter": FILTER}
    with lock(out), explained(out):
        if is_packed(out):
            if load_packed(out).manifest.get("request") != header:
                raise ValueError(f"{out} already holds another pack: choose another --out, or delete it")
            _tidy(out)
            return out
        images, done = _resume(out, header)
        for note in source.notes:
            say(note)
        with open(out / JOURNAL, "a") as journal:
            journal.write("\n")  # ends a line that was cut off by an interruption
            for chunk in _fill(source, images, crop, aligned, set(done), workers):
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


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _resume(out: Path, header: dict[str, Any]) -> tuple[np.memmap, dict[int, Chunk]]:
    """Return the pixels and chunks of a partial pack in `out`, or new ones."""
    partial, journal, shape = out / PARTIAL, out / JOURNAL, (header["count"], header["size"], header["size"], 3)
    recorded, *lines = (read_text(journal, LARGEST_TABLE) if journal.exists() else "").splitlines() or [""]
    if recorded and recorded != json.dumps(header):
        raise ValueError(f"{out} holds a partial pack of something else or of changed files: delete it and pack again")
    if recorded and not partial.exists() and (out / IMAGES).exists():
        (out / IMAGES).rename(partial)  # interrupted in _finish
    chunks = [chunk for line in lines if (chunk := _read_chunk(line, header["count"])) is not None]
    if chunks and _is_whole(partial, shape):
        images = open_memmap(partial, "r+")  # (N, H, W, 3)
        return images, {c.start: c for c in chunks if _checksum(images, c.start) == c.checksum}
    names = (item.name for item in out.iterdir() if not is_leftover(item.name))
    if others := sorted(name for name in names if name not in (LOCK, PARTIAL, JOURNAL)):
        raise ValueError(f"{out} is not empty ({others[0]}): choose a new directory for the pack")
    # Twice the size: dropping rows or sorting them by split needs a second file.
    check_space(out, 2 * header["count"] * header["size"] ** 2 * 3)
    images = create_array(partial, np.uint8, shape)  # (N, H, W, 3)
    write_text(journal, json.dumps(header))
    return images, {}


def _read_chunk(line: str, count: int) -> Chunk | None:
    """Return the chunk of a line of the journal, or None if the line is damaged or was cut off."""
    try:
        chunk = Chunk(**parse_json(line))
        converted = {str(kind): int(number) for kind, number in chunk.converted.items()}
        skipped = [(int(i), str(reason)) for i, reason in chunk.skipped]
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None
    if type(chunk.start) is not int or chunk.start not in range(0, count, CHUNK):
        return None
    own = range(chunk.start, min(chunk.start + CHUNK, count))
    return replace(chunk, converted=converted, skipped=skipped) if all(i in own for i, _ in skipped) else None


def _is_whole(partial: Path, shape: tuple[int, ...]) -> bool:
    """Return whether the pixels of a partial pack are there. If not, they are decoded again."""
    try:
        images = map_array(partial)
    except ValueError:
        return False
    return images.shape == shape and images.dtype == np.uint8 and not partial.is_symlink()


def _tidy(out: Path) -> None:
    """Remove the files that only a partial pack needs."""
    for name in (PARTIAL, JOURNAL):
        (out / name).unlink(missing_ok=True)


def _checksum(images: np.ndarray, start: int) -> int:
    return zlib.crc32(np.ascontiguousarray(images[start : start + CHUNK]).data)


def _fill(
    source: Source, images: np.ndarray, crop: str, aligned: bool, done: set[int], workers: int | None
) -> Iterator[Chunk]:
    """Decode the remaining chunks into `images` and yield each one when it is complete."""
    size = images.shape[1]
    images = np.asarray(images)

    def work(start: int) -> Chunk:
        converted: Counter[str] = Counter()
        skipped = []
        for i in range(start, min(start + CHUNK, len(images))):
            try:
                with source.reader.open(i) as file:
                    images[i], kinds = decode(file, crop, size, aligned)
                converted.update(kinds)
            except (RefusedError, OSError, MemoryError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
                if may_pass(error):  # a later attempt may succeed
                    what = f"{source.names[i]} cannot be read ({error})"
                    raise ValueError(f"{source.where}: {what}: make it readable or remove it, and pack again") from None
                images[i] = 0
                skipped.append((i, str(error) if isinstance(error, RefusedError) else f"cannot be read: {error}"))
        return Chunk(start, _checksum(images, start), dict(converted), skipped)

    starts = [start for start in range(0, len(images), CHUNK) if start not in done]
    pool = ThreadPoolExecutor(workers or cores())
    # Images with too many pixels are refused; Pillow's warning about them adds nothing.
    with warnings.catch_warnings(), progress_bar("packing") as progress:
        warnings.simplefilter("ignore")
        bar = progress.add_task("", total=len(images), completed=sum(min(CHUNK, len(images) - start) for start in done))
        try:
            for future in as_completed([pool.submit(work, start) for start in starts]):
                progress.advance(bar, min(CHUNK, len(images) - future.result().start))
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finish(source: Source, out: Path, images: np.memmap, header: dict[str, Any], chunks: list[Chunk]) -> None:
    """Complete a pack: drop skipped rows, sort by split, write labels and manifest."""
    skipped = [(source.names[i], reason) for chunk in chunks for i, reason in chunk.skipped]
    kept = np.ones(len(images), bool)
    kept[[i for chunk in chunks for i, _ in chunk.skipped]] = False
    if not kept.any():
        name, reason = skipped[0]
        _tidy(out)
        raise ValueError(f"no usable image in {source.where}: {len(skipped):,} files, none readable; {name}: {reason}")
    if source.labels is not None:
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
    images.flush()
    if np.array_equal(order, np.arange(len(images))):
        (out / PARTIAL).rename(out / IMAGES)
    else:
        ordered = create_array(out / IMAGES, np.uint8, (len(order), *images.shape[1:]))
        for start in range(0, len(order), 1024):
            ordered[start : start + 1024] = images[order[start : start + 1024]]
        ordered.flush()
    manifest = {
        "source": source.title,
        "crop": header["crop"],
        "size": header["size"],
        "filter": FILTER,
        "attributes": list(source.attribute_names),
        "classes": list(source.class_names),
        "converted": dict(sum((Counter(chunk.converted) for chunk in chunks), Counter())),
        "skipped": source.left_out + skipped,
        "notes": source.notes,
        "origin": source.origin,
        "request": header,
    }
    columns = {name: getattr(source, name) for name in LABEL_COLUMNS}
    save_labels(out, manifest, **{name: take_rows(column, order) for name, column in columns.items()})
    _tidy(out)
