"""Compare the reading speed of BatchReader with torchvision's CelebA in a DataLoader, in images/s.

    python benchmarks/data_loading.py --root PATH_OF_CELEBA [--size 64] [--seconds 10]

Both produce shuffled, randomly mirrored float batches in [-1, 1] of the same crop and size. Each is
warmed up and then timed three times. BatchReader reads images that were decoded and packed once,
before timing; torchvision decodes them in every epoch. The file listing of torchvision's data set
is replaced, because it requires files that a subset of CelebA does not have. Its image loading is
unchanged.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CelebA

from genmodels.data import open_data
from genmodels.data.batches import BatchReader
from genmodels.data.threads import cores


class CelebASubset(CelebA):
    """torchvision's CelebA restricted to the given images. __getitem__ is inherited unchanged."""

    def __init__(self, root: Path, names: list[str], attributes: Tensor, transform: Callable[[Image.Image], Tensor]):
        self.root, self.base_folder = str(root.parent), root.name
        self.filename, self.attr = names, attributes
        self.target_type = ["attr"]
        self.transform, self.target_transform = transform, None


def ours(reader: BatchReader) -> Iterator[int]:
    """Read batches forever and yield their sizes."""
    step = 0
    while True:
        yield sum(len(batch.images) for batch in reader.read(step, 0.0))
        step += 1


def theirs(loader: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[int]:
    """Read batches epoch after epoch and yield their sizes."""
    while True:
        for images, _ in loader:
            yield len(images)


def rate(stream: Iterator[int], seconds: float) -> float:
    """Measure images per second while reading for `seconds`."""
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        images += next(stream)
    return images / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the DataLoader")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    arguments = parser.parse_args()

    train = open_data("celeba", arguments.root, arguments.size).split("train")
    reader = BatchReader(train, arguments.batch_size, seed=0)
    steps = [
        transforms.Lambda(lambda image: image.crop((0, 20, 178, 198))),
        transforms.Resize(arguments.size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
    attributes = torch.from_numpy(train.attributes)
    subset = CelebASubset(arguments.root, list(train.names), attributes, transforms.Compose(steps))
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        subset,
        arguments.batch_size,
        shuffle=True,
        num_workers=arguments.workers,
        drop_last=True,
        persistent_workers=arguments.workers > 0,
    )
    streams = {"genmodels": ours(reader), "torchvision": theirs(loader)}
    for stream in streams.values():
        rate(stream, min(3.0, arguments.seconds))
    rates = {name: [rate(stream, arguments.seconds) for _ in range(3)] for name, stream in streams.items()}
    print(f"{train.describe()}; batch {arguments.batch_size}, {cores()} cores, {torch.get_num_threads()} torch threads")
    for name, values in rates.items():
        print(f"{name:12} {statistics.median(values):10,.0f} images/s   ({', '.join(f'{v:,.0f}' for v in values)})")
    ratio = statistics.median(rates["genmodels"]) / statistics.median(rates["torchvision"])
    print(f"ratio        {ratio:10.1f}")


if __name__ == "__main__":
    main()
