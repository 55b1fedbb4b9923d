"""Which part of an image is known, where the rest is to be made up."""

from __future__ import annotations

import torch
from torch import Tensor


def known_rows(known: Tensor, height: int, width: int) -> int:
    """How many rows from the top are known.

    Args:
        known: bool (height, width).
        height, width: what it must be.

    Raises:
        ValueError: for another shape, or when the known part is not a number of whole rows from the top.
    """
    if known.dtype != torch.bool or tuple(known.shape) != (height, width):
        shape = f"{str(known.dtype).removeprefix('torch.')} {tuple(known.shape)}"
        raise ValueError(f"where an image is known must be bool ({height}, {width}), got {shape}")
    rows = int(known.all(1).sum())
    if not bool(known[:rows].all()) or bool(known[rows:].any()):
        raise ValueError("this model reads from the top, row by row: the known part must be whole rows from the top")
    return rows


def mirrored_below(images: Tensor, rows: int) -> Tensor:
    """Images (N, C, H, W) in which the first `rows` rows, upside down, again and again, stand in for the others."""
    height = images.shape[2]
    place = torch.arange(height, device=images.device) % (2 * rows)
    return images[:, :, torch.where(place < rows, place, 2 * rows - 1 - place)]
