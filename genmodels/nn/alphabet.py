"""Conversion between images or codes and the tokens of an autoregressive model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor


class Alphabet(ABC):
    """Symbols 0 to `size` - 1 on a grid of T positions with S symbols each: tokens (N, T, S).

    Attributes:
        size: V, number of symbols.
        grid: rows, columns, and symbols at each position.
        unit: name of the bits per symbol.
    """

    size: int
    grid: tuple[int, int, int]
    unit: str

    @abstractmethod
    def tokenize(self, images: Tensor) -> Tensor:
        """Convert images or codes to tokens (N, T, S), int64.

        Raises:
            ValueError: if they do not have the shape that this alphabet was made for.
        """

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Convert tokens (N, T, S) back. The inverse of `tokenize`."""

    def check(self, given: Tensor, name: str, shape: tuple[int, ...], floats: bool) -> None:
        """Raise ValueError unless `given` is (N, *shape) and of the right kind of dtype."""
        if tuple(given.shape[1:]) != shape or given.is_floating_point() != floats:
            raise ValueError(
                f"the context is {self.grid[0] * self.grid[1]} positions, {name} of shape (N, "
                f"{', '.join(map(str, shape))}); got {str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}"
            )


class PixelLevels(Alphabet):
    """Pixels row by row. A position holds red, green and blue, each as one of `levels` levels."""

    unit = "bits_per_dim"

    def __init__(self, size: int, levels: int):
        self.size = levels
        self.grid = (size, size, 3)

    def tokenize(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, H W, 3). 8-bit values are rounded down to the levels."""
        self.check(images, "images", (3, *self.grid[:2]), floats=True)
        values = images.float().add(1).mul(127.5).round().clamp(0, 255)  # 8-bit values
        return (values * self.size / 256).long().permute(0, 2, 3, 1).flatten(1, 2)  # (N, H W, 3)

    def decode(self, tokens: Tensor) -> Tensor:
        """(N, H W, 3) -> (N, 3, H, W) in [-1, 1]: the middle of the 8-bit values of each level."""
        values = (tokens.float() + 0.5) * 256 / self.size - 0.5
        return (values / 127.5 - 1).unflatten(1, self.grid[:2]).permute(0, 3, 1, 2)  # (N, 3, H, W)


class Codes(Alphabet):
    """Codes (rows, columns) or (rows, columns, levels), row by row, coarsest level first."""

    unit = "bits_per_token"

    def __init__(self, shape: tuple[int, ...], size: int):
        self.size = size
        self.shape = shape
        self.grid = (shape[0], shape[1], math.prod(shape[2:]))

    def tokenize(self, images: Tensor) -> Tensor:
        """(N, *shape) -> (N, T, S)."""
        self.check(images, "codes", self.shape, floats=False)
        return images.long().reshape(len(images), -1, self.grid[2])

    def decode(self, tokens: Tensor) -> Tensor:
        """(N, T, S) -> (N, *shape)."""
        return tokens.reshape(-1, *self.shape)
