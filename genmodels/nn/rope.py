"""Rotary position embedding (RoPE, arXiv 2104.09864), along a line or over a grid."""

from __future__ import annotations

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of the angles, each (T, d / 2) or (N, 1, T, d / 2), float32."""


def rope(positions: Tensor, head_dim: int, theta: float = 10_000.0) -> Rope:
    """The angles by which pairs of a head's channels are rotated at each position.

    Along a line, pair i of d / 2 is rotated by position * theta^(-2i / d). Over a grid the first
    half of the pairs is rotated by the row and the second half by the column, each with the
    frequencies of a head of d / 2 channels. The dot product of two rotated vectors depends only on
    the difference of their positions.

    Args:
        positions: (T,) along a line, rows and columns (T, 2) over a grid, or (N, T, 1 or 2) where
            the rows of a batch differ; integers or floats.
        head_dim: d.
        theta: base of the wavelengths, which range from 2 pi to about 2 pi theta.

    Raises:
        ValueError: when d cannot be divided into pairs (over a grid, into two halves of pairs).
    """
    axes = 1 if positions.ndim == 1 else positions.shape[-1]
    if not 1 <= positions.ndim <= 3 or not 1 <= axes <= 2:
        raise ValueError(f"positions must be (T,), (T, 2) or (N, T, 1 or 2), got {tuple(positions.shape)}")
    if head_dim % (2 * axes):
        raise ValueError(f"RoPE in {axes}-D needs a head of a multiple of {2 * axes} channels, got {head_dim}")
    share = head_dim // axes
    frequency = 1.0 / theta ** (torch.arange(0, share, 2, device=positions.device).float() / share)  # (d / 2 axes,)
    if positions.ndim == 1:
        positions = positions[:, None]
    angles = (positions.float().unsqueeze(-1) * frequency).flatten(-2)  # (T, d / 2) or (N, T, d / 2)
    if positions.ndim == 3:
        angles = angles.unsqueeze(1)  # (N, 1, T, d / 2): the same for all heads
    return angles.cos(), angles.sin()


def stretched(theta: float, stretch: float, channels: int) -> float:
    """Return the base of the wavelengths for sequences, or sides of a grid, `stretch` times as long:
    theta s^(d / (d - 2)) for d channels that turn along them.

    The slowest pair then turns as far from one end to the other as before, and the fastest as far
    between neighbours.
    """
    return theta * stretch ** (channels / (channels - 2)) if channels > 2 else theta


def rotate(x: Tensor, angles: Rope) -> Tensor:
    """Rotate the pairs (i, i + d / 2) of the channels of x (N, H, T, d), in float32; the dtype of x
    is kept.

    These are the pairs of Llama in transformers. The paper pairs neighbours (2i, 2i + 1), which is
    equivalent up to a permutation of the channels.
    """
    cos, sin = angles
    first, second = x.float().chunk(2, dim=-1)  # (N, H, T, d / 2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def grid_positions(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Rows and columns (height * width, 2) of a grid in reading order."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.cartesian_prod(rows, columns)  # (height * width, 2)
