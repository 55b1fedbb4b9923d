"""Images/s of packed faces through BatchReader, beside torchvision's CelebA in a DataLoader, in one run.

    python benchmarks/data_loading.py --root PATH_OF_CELEBA [--size 64] [--batch-size 128] [--seconds 10]

Both deliver shuffled, randomly mirrored float batches in [-1, 1] of the same crop and size. Each is warmed up, then
timed three times. Ours reads a pack, which is made once and not timed (that is the decoding which theirs repeats in
every epoch). torchvision's data set insists on files that a subset lacks, so its listing is replaced; its image loading
stays.
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
from genmodels.data.packing import cores


class CelebASubset(CelebA):
    """torchvision's CelebA over the images that are there: __getitem__ is inherited, only the listing is ours."""

    def __init__(self, root: Path, names: list[str], attributes: Tensor, transform: Callable[[Image.Image], Tensor]):
        self.root, self.base_folder = str(root.parent), root.name
        self.filename, self.attr = names, attributes
        self.target_type = ["attr"]
        self.transform, self.target_transform = transform, None


def ours(reader: BatchReader) -> Iterator[int]:
    """Sizes of batches as they are read."""
    step = 0
    while True:
        yield sum(len(batch.images) for batch in reader.read(step, 0.0))
        step += 1


def theirs(loader: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[int]:
    """Sizes of batches as they are read, epoch after epoch."""
    while True:
        for images, _ in loader:
            yield len(images)


def rate(stream: Iterator[int], seconds: float) -> float:
    """Images per second over `seconds` of reading."""
    start, images = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        images += next(stream)
    return images / passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader; ours needs none")
    parser.add_argument("--seconds", type=float, default=10.0, help="per measurement")
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
