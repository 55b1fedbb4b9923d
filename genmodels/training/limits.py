"""Work that is limited in images and in time, so that a --minutes budget is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from accelerate.utils import reduce
from torch import Tensor

from genmodels.data.batches import image_batches
from genmodels.data.packed import Packed
from genmodels.data.rows import spread_rows
from genmodels.sampling import processes

FEWEST = 256
"""Smallest number of images that a model is initialised or calibrated on, if there are as many,
also if they take more time than there is."""
ROUND = 64
"""Number of images after which the time is looked at."""


def most_images(count: int, pixels: int, size: int) -> int:
    """Return the largest number of images to use: `count`, or fewer if they have more than `pixels`
    in all, but at least `FEWEST`.

    Args:
        count: largest number of small images.
        pixels: largest number of pixels.
        size: side of the images.
    """
    return min(count, max(FEWEST, pixels // size**2))


def timed_batches(
    data: Packed, count: int, seconds: float | None, device: torch.device, least: int = FEWEST
) -> Iterator[Tensor]:
    """Yield up to `count` images in batches (n, 3, H, W), evenly spread over the data.

    All ranks must call this; they get the same images.

    Args:
        data: data to read.
        count: largest number of images.
        seconds: time, including that of the caller, after which no more than `least` images are
            read. None: no limit.
        device: device of the images.
        least: number of images that are read in any case.
    """
    count = min(count, len(data))
    if seconds is None:
        yield from image_batches(data, limit=count, device=device, spread=True)
        return
    end, seen, main = time.monotonic() + seconds, 0, processes().is_main_process
    rounds = max(1, len(data) // ROUND)  # row i is in round i % rounds, so that each is spread over the data
    for first in spread_rows(rounds, min(rounds, -(-count // ROUND))).tolist():
        part = data.take(slice(first, None, rounds))
        for batch in image_batches(part, limit=count - seen, device=device):
            yield batch
            seen += len(batch)
        late = main and seen >= least and time.monotonic() > end
        if reduce(torch.tensor(float(late), device=device), "sum") > 0:
            return
