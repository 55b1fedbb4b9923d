"""Limits of images and time on the work before, between and after the steps, so that --minutes are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

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
CALIBRATION_PIXELS = 20_000 * 128**2
"""Largest number of pixels of the images that calibrate() uses: 20,000 images of 128 px, 5,000 of
256 px."""


@dataclass(frozen=True)
class Limits:
    """Limits on what `show` does, so that a --minutes budget is kept. Without one, `share` and
    `drawing` do not apply."""

    fewest: int
    """Smallest number of training images that calibrate() uses, also if they take more time. It is
    used until the time per image is known."""
    most: int
    """Largest number of training images that calibrate() uses."""
    share: float
    """Largest fraction of the budget to spend on calibrate()."""
    drawing: float
    """Largest fraction of the budget to spend on a sample grid."""
    alone: float = 0.0
    """Largest fraction of the budget to spend on a grid of one image."""
    seconds: float = math.inf
    """Largest number of seconds to spend on calibrate(), and on a grid."""

    def images(self, size: int) -> int:
        """Return the largest number of images of `size` pixels a side that calibrate() uses."""
        return most_images(self.most, CALIBRATION_PIXELS, size)

    def time(self, share: float, budget: float | None) -> float:
        """Return the seconds that `share` of `budget` allows, at most `seconds`."""
        return min(self.seconds, math.inf if budget is None else share * budget)


ON_THE_WAY = Limits(fewest=64, most=2_048, share=0.01, drawing=0.02)
AT_THE_END = Limits(fewest=FEWEST, most=20_000, share=0.1, drawing=0.05, alone=0.1)
STOPPED = Limits(fewest=64, most=2_048, share=0.01, drawing=0.02, seconds=2.0)
"""For a run that was stopped by a signal and should end soon."""


def most_images(count: int, pixels: int, size: int, least: int = FEWEST) -> int:
    """Return the largest number of images to use: `count`, or fewer if they have more than `pixels`
    in all, but at least `least`.

    Args:
        count: largest number of small images.
        pixels: largest number of pixels.
        size: side of the images.
        least: smallest number of large images.
    """
    return min(count, max(least, pixels // size**2))


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
