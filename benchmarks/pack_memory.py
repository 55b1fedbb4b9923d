"""Measure the memory that opening and reading a pack takes, for a small and a large one.

    python benchmarks/pack_memory.py [--rows 50000 5000000] [--batches 200]

Writes synthetic packs of 8 px images with names, attributes, labels and captions, in a temporary
folder (1.6 GB for 5 million rows), and reads each of them in a process of its own: opens it, splits it, computes
its fingerprint, and reads random batches with captions. Prints how much memory that process has then
more than before it opened the pack:

- own: memory that only this process has. It cannot be taken back, and is what has to stay flat.
- mapped: pages of the files that were read. They are copies of what is on disk, which the system
  keeps while nothing else needs the memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import psutil
from numpy.lib.format import open_memmap

SIZE = 8
CLASSES = 1000


class Made(Sequence[Any]):
    """A column whose rows are made when they are read.

    Args:
        count: number of rows.
        make: makes one.
    """

    def __init__(self, count: int, make: Callable[[int], Any]):
        self.rows = range(count)
        self.make = make

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> Any: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[Any]: ...

    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return [self.make(i) for i in self.rows[row]]
        return self.make(self.rows[row])


def write(folder: Path, count: int) -> None:
    """Write a pack of `count` black images, of which the last tenth is for validation."""
    from genmodels.data.directory import IMAGES, save_labels

    open_memmap(folder / IMAGES, "w+", np.uint8, (count, SIZE, SIZE, 3))  # a sparse file
    rng = np.random.default_rng(0)
    save_labels(
        folder,
        {"source": "synthetic", "size": SIZE, "attributes": ["a", "b"], "classes": [str(i) for i in range(CLASSES)]},
        attributes=rng.integers(-1, 2, (count, 2), np.int8),
        names=Made(count, lambda i: f"folder-{i % CLASSES:03d}/image-{i:08d}.jpg"),
        splits=np.repeat(np.array([0, 1], np.uint8), [count - count // 10, count // 10]),
        labels=rng.integers(0, CLASSES, count, np.int32),
        text=Made(count, lambda i: (f"a photograph of object {i}", "another caption")[: i % 3]),
    )


def memory() -> tuple[float, float]:
    """Return the memory of this process in MB: its own, and mapped from files."""
    info = psutil.Process().memory_info()
    return (info.rss - info.shared) / 1e6, info.shared / 1e6


def read(folder: Path, batches: int) -> dict[str, float]:
    """Open a pack, read random batches and return what it took."""
    import torch

    from genmodels.conditions import Text
    from genmodels.data import load_packed
    from genmodels.data.batches import BatchReader

    def tokenize(captions: Sequence[str]) -> Text:
        return Text(torch.tensor([[len(caption)] for caption in captions]), torch.ones(len(captions), 1) > 0)

    torch.randperm(10)
    before = memory()
    start = time.perf_counter()
    packed = load_packed(folder)
    train = packed.split("train")
    opened = time.perf_counter()
    fingerprint = train.fingerprint
    known = time.perf_counter()
    reader = BatchReader(train, 128, seed=0, tokenize=tokenize)
    for step in range(batches):
        reader.read(step * 31, 0.0)
    ended = time.perf_counter()
    after = memory()
    assert len(fingerprint) == 16
    return {
        "own": after[0] - before[0],
        "mapped": after[1] - before[1],
        "open": opened - start,
        "fingerprint": known - opened,
        "batch": (ended - known) / batches,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 5_000_000])
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.read is not None:
        print(json.dumps(read(settings.read, settings.batches)))
        return
    print(f"{'rows':>10} {'own MB':>8} {'mapped MB':>10} {'open s':>8} {'fingerprint s':>14} {'batch ms':>9}")
    for count in settings.rows:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), count)
            call = [sys.executable, __file__, "--read", folder, "--batches", str(settings.batches)]
            r = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        columns = f"{r['own']:8.1f} {r['mapped']:10.1f} {r['open']:8.2f} {r['fingerprint']:14.2f}"
        print(f"{count:10,} {columns} {r['batch'] * 1e3:9.2f}", flush=True)


if __name__ == "__main__":
    main()
