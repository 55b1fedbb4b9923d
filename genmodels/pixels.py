"""Conversion between images as stored (uint8) and images as models see them (float in [-1, 1])."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_float(images: Tensor | np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Convert uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1] on `device`.

    The result uses channels_last memory, so the permutation copies nothing. Bytes are moved to the
    device and converted there.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    return images.to(device).float().sub_(127.5).mul_(1 / 127.5).permute(0, 3, 1, 2)  # (N, 3, H, W)


def to_uint8(images: Tensor) -> np.ndarray:
    """Convert float (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3), rounded and clamped."""
    levels = images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().contiguous().numpy()  # (N, H, W, 3)
