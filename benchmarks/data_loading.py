"""Compare the speed of reading packs with torch's DataLoader over the same image files, in images/s.

    python benchmarks/data_loading.py --root PATH_OF_CELEBA [--sizes 64 256] [--seconds 5]

Everything yields shuffled batches of randomly mirrored float images in [-1, 1]:

- raw, jpeg, webp: `BatchReader` on packs of the images, which were decoded, cropped and resized
  once, before timing;
- DataLoader: worker processes that decode the files with Pillow in every epoch, as in
  torchvision's recipes (ToTensor, Normalize).

The files are CelebA's own, of which 64 px are cropped and resized, and then, for each of --sizes,
crops of CelebA that are resized to that size and stored as JPEG of quality 95, which need neither.
All streams are warmed up and timed in turn, three times.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from genmodels.data import load_packed, pack
from genmodels.data.batches import BatchReader
from genmodels.data.celeba import celeba_source
from genmodels.data.decode import CELEBA_CROPS
from genmodels.data.encoded import STORES
from genmodels.data.threads import cores

CROP = "178"
OTHER = "DataLoader"


class Files(Dataset[Tensor]):
    """Image files, decoded by Pillow.

    Args:
        paths: the files.
        steps: transforms of an image, before it is mirrored and becomes a tensor.
    """

    def __init__(self, paths: Sequence[Path], steps: Sequence[Callable[[Any], Any]]):
        last = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
        self.paths = paths
        self.transform = transforms.Compose([*steps, *last])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            result: Tensor = self.transform(image.convert("RGB"))
        return result


@dataclass(frozen=True)
class Setting:
    """Image files, and how they are read.

    Attributes:
        title: heading of the table.
        data: name of the source of the packs.
        root: its folder.
        size: side of the images that are read.
        files: the files that DataLoader reads.
        steps: what it does with each of them first.
    """

    title: str
    data: str
    root: Path
    size: int
    files: list[Path]
    steps: tuple[Callable[[Any], Any], ...] = ()


def crop(image: Image.Image) -> Image.Image:
    return image.crop(CELEBA_CROPS[CROP])


def settings_of(root: Path, sizes: Sequence[int], count: int, place: Path) -> Iterator[Setting]:
    """Write the files of each size, and yield the settings."""
    source = celeba_source(root)
    files = [source.where / name for name in source.names]
    yield Setting("CelebA, cropped and resized to 64 px", "celeba", root, 64, files, (crop, transforms.Resize(64)))
    for size in sizes:
        folder = place / f"files-{size}"
        folder.mkdir()
        for path in files[:count]:
            with Image.open(path) as image:
                square = crop(image).resize((size, size), Image.Resampling.LANCZOS)
            square.save(folder / path.name, quality=95)
        yield Setting(f"Files of {size} px", "folder", folder, size, sorted(folder.iterdir()))


def ours(reader: BatchReader) -> Iterator[int]:
    """Read batches forever and yield their sizes."""
    step = 0
    while True:
        yield sum(len(batch.images) for batch in reader.read(step, 0.0))
        step += 1


def theirs(loader: DataLoader[Tensor]) -> Iterator[int]:
    """Read batches epoch after epoch and yield their sizes."""
    while True:
        for images in loader:
            yield len(images)


def rate(stream: Iterator[int], seconds: float) -> float:
    """Measure images per second while reading for `seconds`."""
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        images += next(stream)
    return images / elapsed


def measure(setting: Setting, arguments: argparse.Namespace, place: Path) -> None:
    """Read in every way, and print the rates."""
    streams: dict[str, Iterator[int]] = {}
    sizes: dict[str, float] = {}
    for store in STORES:
        out = pack(setting.data, setting.root, place / f"{setting.title}-{store}", setting.size, store=store)
        packed = load_packed(out)
        sizes[store] = sum(path.stat().st_size for path in out.iterdir()) / 1e3 / len(packed)
        streams[store] = ours(BatchReader(packed, arguments.batch_size, seed=0))
    loader = DataLoader(
        Files(setting.files, setting.steps),
        arguments.batch_size,
        shuffle=True,
        num_workers=arguments.workers,
        drop_last=True,
        persistent_workers=arguments.workers > 0,
    )
    sizes[OTHER] = sum(path.stat().st_size for path in setting.files) / 1e3 / len(setting.files)
    streams[OTHER] = theirs(loader)
    for stream in streams.values():
        rate(stream, min(3.0, arguments.seconds))
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(3):
        for name, stream in streams.items():
            rates[name].append(rate(stream, arguments.seconds))
    print(f"\n{setting.title} ({len(setting.files):,} files)")
    for name, values in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(values, rates[OTHER], strict=True))
        each = ", ".join(f"{value:,.0f}" for value in values)
        print(f"{name:10} {sizes[name]:6.1f} kB {statistics.median(values):10,.0f} images/s {ratio:7.2f} x   ({each})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--count", type=int, default=4_000, help="number of files of each size")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the DataLoader")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each measurement")
    arguments = parser.parse_args()
    print(f"batch {arguments.batch_size}, {cores()} cores, {torch.get_num_threads()} torch threads")
    with tempfile.TemporaryDirectory() as folder:
        for setting in settings_of(arguments.root, arguments.sizes, arguments.count, Path(folder)):
            measure(setting, arguments, Path(folder))


if __name__ == "__main__":
    main()
