"""What images are spelled with: the shades of pixels, or a codec's codes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor


class Alphabet(ABC):
    """Symbols 0 to `size` - 1 on a grid of T positions, S at each: tokens (N, T, S).

    Attributes:
        size: V.
        grid: rows, columns, and symbols at each position.
        unit: what the bits of a symbol are called.
    """

    size: int
    grid: tuple[int, int, int]
    unit: str

    @abstractmethod
    def spell(self, images: Tensor) -> Tensor:
        """Images, or codes, -> tokens (N, T, S), int64.

        Raises:
            ValueError: when they are not of the shape that this alphabet was made for.
        """

    @abstractmethod
    def read(self, tokens: Tensor) -> Tensor:
        """The inverse of `spell`."""

    def check(self, given: Tensor, what: str, wanted: tuple[int, ...], floats: bool) -> None:
        """Raises ValueError unless `given` is (N, *wanted), and floating-point or not."""
        if tuple(given.shape[1:]) != wanted or given.is_floating_point() != floats:
            raise ValueError(
                f"the context is {self.grid[0] * self.grid[1]} positions, {what} of shape (N, "
                f"{', '.join(map(str, wanted))}); got {str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}"
            )


class Shades(Alphabet):
    """Pixels of size x size images, row by row; in each red, green and blue, one of `levels` shades."""

    unit = "bits_per_dim"

    def __init__(self, size: int, levels: int):
        self.size = levels
        self.grid = (size, size, 3)

    def spell(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, H W, 3); 8-bit values are rounded down to the shades."""
        self.check(images, "images", (3, *self.grid[:2]), floats=True)
        values = images.float().add(1).mul(127.5).round().clamp(0, 255)  # 8-bit values
        return (values * self.size / 256).long().permute(0, 2, 3, 1).flatten(1, 2)  # (N, H W, 3)

    def read(self, tokens: Tensor) -> Tensor:
        """(N, H W, 3) -> (N, 3, H, W) in [-1, 1]; a shade becomes the middle of the values it stands for."""
        values = (tokens.float() + 0.5) * 256 / self.size - 0.5
        return (values / 127.5 - 1).unflatten(1, self.grid[:2]).permute(0, 3, 1, 2)  # (N, 3, H, W)


class Codes(Alphabet):
    """Codes of a book, (rows, columns) or (rows, columns, levels), row by row; the coarsest level first."""

    unit = "bits_per_token"

    def __init__(self, shape: tuple[int, ...], size: int):
        self.size = size
        self.shape = shape
        self.grid = (shape[0], shape[1], math.prod(shape[2:]))

    def spell(self, images: Tensor) -> Tensor:
        """(N, *shape) -> (N, T, S)."""
        self.check(images, "codes", self.shape, floats=False)
        return images.long().reshape(len(images), -1, self.grid[2])

    def read(self, tokens: Tensor) -> Tensor:
        """(N, T, S) -> (N, *shape)."""
        return tokens.reshape(-1, *self.shape)
