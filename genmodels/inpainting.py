"""Which part of an image is known, where the rest is to be made up."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
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


def known_cells(known: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Where, on a coarser `grid`, every pixel is known: bool (H, W) -> bool of the grid's shape."""
    fine = known.float()[None, None]
    return -F.adaptive_max_pool2d(-fine, grid)[0, 0] == 1


def continued(images: Tensor, known: Tensor, size: int) -> Tensor:
    """Images (N, C, size, size) whose unknown pixels are those mirrored at the nearest known one, where that is known,
    else a copy of it.

    Raises:
        ValueError: for a mask of another size.
    """
    if known.dtype != torch.bool or tuple(known.shape) != (size, size):
        shape = f"{str(known.dtype).removeprefix('torch.')} {tuple(known.shape)}"
        raise ValueError(f"where an image is known must be bool ({size}, {size}), got {shape}")
    if not known.any():
        return torch.zeros_like(images)
    mask = known.cpu().numpy()
    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)  # (2, H, W)
    place = np.indices(mask.shape)
    mirrored = 2 * nearest - place + np.sign(place - nearest)  # the nearest pixel itself is mirrored as well
    inside = ((mirrored >= 0) & (mirrored < size)).all(0)
    mirrored = mirrored.clip(0, size - 1)
    rows, columns = np.where(inside & mask[mirrored[0], mirrored[1]], mirrored, nearest)
    return images[:, :, torch.from_numpy(rows), torch.from_numpy(columns)]
