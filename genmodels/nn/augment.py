"""Differentiable augmentation of the input of a critic (DiffAugment, arXiv 2006.10738).

It keeps the critic from memorising a small training set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.types import Noise

SHIFT = 1 / 8
"""Largest translation, as a fraction of the side."""
HOLE = 1 / 2
"""Side of the square that is erased, as a fraction of the side."""


def augment(images: Tensor, noise: Noise, chance: float) -> Tensor:
    """Apply colour changes, translation and cutout to `images` (N, C, S, S), differentiably.

    Each of the three is applied to each image independently with probability `chance`. A
    probability below 1 keeps the augmentations from leaking into the generated images (ADA, arXiv
    2006.06676).
    """
    u = noise.uniform(3, 4)  # (N, 3 kinds, whether and three amounts)
    happens = (u[:, :, 0] < chance).to(images)  # (N, 3)
    amounts = u[:, :, 1:].to(images)  # (N, 3, 3)
    x = _colours(images, happens[:, 0], amounts[:, 0])
    x = _translation(x, happens[:, 1], amounts[:, 1])
    return _cutout(x, happens[:, 2], amounts[:, 2])


def _colours(x: Tensor, happens: Tensor, amounts: Tensor) -> Tensor:
    """Shift brightness by at most 1/2; scale saturation by 0 to 2 and contrast by 1/2 to 3/2."""
    on, u = happens.view(-1, 1, 1, 1), amounts[:, :, None, None, None].unbind(1)  # (N, 1, 1, 1) each
    x = x + on * (u[0] - 0.5)
    grey = x.mean(1, keepdim=True)  # (N, 1, S, S)
    x = torch.lerp(x, grey + (x - grey) * 2 * u[1], on)
    mean = x.mean((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    return torch.lerp(x, mean + (x - mean) * (u[2] + 0.5), on)


def _translation(x: Tensor, happens: Tensor, amounts: Tensor) -> Tensor:
    """Translate by whole pixels, at most SHIFT of the side; new pixels are 0."""
    n, side = len(x), x.shape[-1]
    most = int(side * SHIFT + 0.5)
    by = ((amounts[:, :2] * (2 * most + 1)).floor() - most) * happens[:, None]  # (N, 2): rows, columns
    places = torch.arange(side, device=x.device)
    rows = (places + by[:, :1].long() + 1).clamp(0, side + 1)  # (N, S), into the padded image
    columns = (places + by[:, 1:].long() + 1).clamp(0, side + 1)
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # (N, S + 2, S + 2, C)
    index = torch.arange(n, device=x.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(x: Tensor, happens: Tensor, amounts: Tensor) -> Tensor:
    """Set a square of side HOLE, centred anywhere, to 0."""
    side = x.shape[-1]
    hole = int(side * HOLE + 0.5)
    first = (amounts[:, :2] * (side + 1 - hole % 2)).floor() - hole // 2  # (N, 2)
    places = torch.arange(side, device=x.device) - first[:, :, None]  # (N, 2, S)
    inside = ((places >= 0) & (places < hole)).to(x)
    hidden = inside[:, 0, :, None] * inside[:, 1, None, :]  # (N, S, S)
    return x * (1 - happens[:, None, None] * hidden)[:, None]
