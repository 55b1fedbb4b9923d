"""Masks for inpainting: where the pixels of an image are known."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def known_rows(known: Tensor, height: int, width: int) -> int:
    """Return the number of known rows, counted from the top.

    Args:
        known: mask, bool (height, width).
        height, width: required shape of the mask.

    Raises:
        ValueError: if the shape differs, or if the known part is not a number of whole rows from
            the top.
    """
    if known.dtype != torch.bool or tuple(known.shape) != (height, width):
        shape = f"{str(known.dtype).removeprefix('torch.')} {tuple(known.shape)}"
        raise ValueError(f"the mask of known pixels must be bool ({height}, {width}), got {shape}")
    rows = int(known.all(1).sum())
    if not bool(known[:rows].all()) or bool(known[rows:].any()):
        raise ValueError("this model generates row by row: the known part must be whole rows from the top")
    return rows


def known_cells(known: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return which cells of a coarser `grid` contain only known pixels, as a mask of that shape."""
    fine = known.float()[None, None]
    return -F.adaptive_max_pool2d(-fine, grid)[0, 0] == 1


def continued(images: Tensor, known: Tensor, size: int) -> Tensor:
    """Fill the unknown pixels of images (N, C, size, size) by reflection at the known part.

    An unknown pixel becomes the pixel at the mirrored position beyond its nearest known pixel, if
    that is known, and a copy of the nearest known pixel otherwise. If nothing is known, the result
    is 0.

    Raises:
        ValueError: if the mask has another size.
    """
    if known.dtype != torch.bool or tuple(known.shape) != (size, size):
        shape = f"{str(known.dtype).removeprefix('torch.')} {tuple(known.shape)}"
        raise ValueError(f"the mask of known pixels must be bool ({size}, {size}), got {shape}")
    if not known.any():
        return torch.zeros_like(images)
    mask = known.cpu().numpy()
    from scipy.ndimage import distance_transform_edt  # slow to import, and only needed here

    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)  # (2, H, W)
    place = np.indices(mask.shape)
    mirrored = 2 * nearest - place + np.sign(place - nearest)  # the nearest pixel itself is repeated
    inside = ((mirrored >= 0) & (mirrored < size)).all(0)
    mirrored = mirrored.clip(0, size - 1)
    rows, columns = np.where(inside & mask[mirrored[0], mirrored[1]], mirrored, nearest)
    return images[:, :, torch.from_numpy(rows), torch.from_numpy(columns)]
