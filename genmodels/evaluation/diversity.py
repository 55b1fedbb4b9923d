"""How different the images of one set look."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from genmodels.data.rows import spread_rows
from genmodels.evaluation.context import Context, Part
from genmodels.evaluation.pairs import LPIPS_WEIGHTS
from genmodels.evaluation.results import Score
from genmodels.nn.perceptual import Distance
from genmodels.pictures import to_float


def part(context: Context) -> Part:
    """Compute the LPIPS diversity of the samples, next to that of real images."""
    lpips, absent = context.lpips
    if lpips is None:
        return Part(absent=absent)
    assert context.samples is not None
    value, error = lpips_diversity(np.asarray(context.samples.pixels), lpips)
    real = None if context.floor is None else lpips_diversity(np.asarray(context.floor[0].pixels), lpips)[0]
    how = "mean LPIPS of random pairs; compare with real images, higher is not always better"
    of = replace(context.protocol, weights=LPIPS_WEIGHTS)
    return Part({"diversity-lpips": Score(value, "neither", how, of, error=error, floor=real)})


@torch.inference_mode()
def lpips_diversity(images: np.ndarray, lpips: Distance, pairs: int = 500) -> tuple[float, float]:
    """Compute the mean LPIPS of disjoint pairs of images of one set, and its standard error.

    Pairs share no image, so their distances are independent. The two images of a pair are far apart
    in the set, which may be sorted.

    Args:
        images: uint8 (N, S, S, 3), N >= 4.
        lpips: the distance that `load_lpips` returns.
        pairs: maximum number of pairs; there are N / 2 if the set is smaller.
    """
    count = min(pairs, len(images) // 2)
    if count < 2:
        raise ValueError(f"diversity needs at least two pairs of different images, got {len(images)} images")
    rows = spread_rows(len(images), 2 * count)
    distances = []
    for start in range(0, count, 32):
        here = slice(start, min(start + 32, count))
        first, second = (to_float(images[half[here]]) for half in (rows[:count], rows[count:]))
        distances.append(lpips(first, second))  # (n,)
    values = torch.cat(distances).double()
    return values.mean().item(), values.std().item() / math.sqrt(count)
