"""The keys and values of earlier positions, kept so that generating a token does not compute them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Slots(NamedTuple):
    """Where one forward pass writes into one block's cache, and what it reads."""

    keys: Tensor
    """(N, G, S, d)."""
    values: Tensor
    """(N, G, S, d)."""
    write: Tensor
    """Slots (T,) of the new positions."""
    end: int
    """Slots before this one are read."""
    mask: Tensor | None
    """Bool (T, end), where `end` is more than the number of filled slots."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v (N, G, T, d); returns all keys and values to attend to, (N, G, end, d)."""
        self.keys.index_copy_(2, self.write, k.to(self.keys.dtype))
        self.values.index_copy_(2, self.write, v.to(self.values.dtype))
        return self.keys[:, :, : self.end].to(k.dtype), self.values[:, :, : self.end].to(v.dtype)


@dataclass
class KVCache:
    """Keys and values of the positions so far, in memory that is allocated once. Make it with `empty_cache`.

    Attributes:
        keys: one (N, G, S, d) per block, S being the capacity.
        values: the same.
        length: how many positions are filled, an int64 scalar on the device of the keys, so that a compiled step does
            not depend on its value. Setting it back forgets what came later.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: Tensor

    @property
    def capacity(self) -> int:
        """S."""
        return self.keys[0].shape[2]

    def extend(self, new: int) -> list[Slots]:
        """Where `new` further positions go, one `Slots` per block. The caller moves `length` when all have written.

        A compiled step reads all of the cache under a mask, so that its shapes never change. Otherwise only what is
        filled is read.

        Raises:
            ValueError: when they do not fit (a compiled step cannot tell; its write then fails).
        """
        write = self.length + torch.arange(new, device=self.length.device)  # (T,)
        end, mask = self.capacity, None
        if torch.compiler.is_compiling():
            mask = torch.arange(end, device=write.device) <= write[:, None]  # (T, S)
        else:
            end = int(self.length) + new
            if end > self.capacity:
                raise ValueError(
                    f"{end} positions are more than the cache's {self.capacity}: make it with more capacity"
                )
        return [Slots(k, v, write, end, mask) for k, v in zip(self.keys, self.values, strict=True)]


def empty_cache(depth: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> KVCache:
    """A cache for `depth` blocks, each with keys and values of `shape` (N, G, S, d)."""
    # Zeros, not uninitialised memory: a mask cannot hide values that are not numbers.
    tensors = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * depth)]
    length = torch.zeros((), dtype=torch.int64, device=device)
    if device.type == "cuda":
        for tensor in (*tensors, length):  # CUDA graphs of a compiled step may then write to them in place
            torch._dynamo.mark_static_address(tensor)
    return KVCache(tensors[::2], tensors[1::2], length)
