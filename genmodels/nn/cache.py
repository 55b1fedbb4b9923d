"""The states of a transformer's blocks after earlier positions, for generation step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genmodels.nn.mixer import State
from genmodels.nn.places import number_sequences


class Cache:
    """One state per block, in memory that is allocated once. `Transformer.make_cache` makes it.

    Args:
        states: of each block, with N rows.
        n: N.
        capacity: S, the number of positions that fit.
        device: of the states.
        forward_only: names of the mixers that cannot be rewound; empty if the cache can be.
    """

    def __init__(
        self, states: Sequence[State], n: int, capacity: int, device: torch.device, forward_only: Sequence[str] = ()
    ):
        self.states = list(states)
        self.capacity = capacity
        self.forward_only = tuple(forward_only)
        # A tensor, so that a compiled step does not depend on its value.
        self._length = torch.zeros((), dtype=torch.int64, device=device)
        # The sequence of each position, see `number_sequences`. Read only once there are several.
        self._sequences = torch.zeros(n, capacity, dtype=torch.int64, device=device)
        self._several = False
        self._positions: Tensor | None = None  # (1 or N, S, A). Kept only if asked for.
        if device.type == "cuda":
            # CUDA graphs of a compiled step may then write to the tensors in place.
            for tensor in (*(tensor for state in self.states for tensor in state), self._length, self._sequences):
                torch._dynamo.mark_static_address(tensor)

    @property
    def length(self) -> int:
        """The number of positions so far."""
        return int(self._length)

    def rewind(self, length: int) -> None:
        """Forget all positions from `length` on.

        Raises:
            ValueError: when there are fewer positions, or a mixer's state cannot be rewound.
        """
        if self.forward_only:
            raise ValueError(
                f"the state of mixer {self.forward_only[0]!r} keeps no earlier positions and cannot be rewound: "
                "make a new cache"
            )
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a cache of {self.length} positions to {length}")
        self._length.fill_(length)
        self._sequences[:, length:] = 0

    def slots(self, new: int) -> Tensor:
        """The slots (T,) of `new` further positions."""
        return self._length + torch.arange(new, device=self._length.device)

    def end(self, new: int) -> int:
        """The end of the slots to read, after `new` further positions have been written.

        A compiled step reads all slots under a mask, so that its shapes never change. Otherwise the
        end is that of the filled slots.

        Raises:
            ValueError: when they do not fit (a compiled step cannot check this; its write fails
                instead).
        """
        if torch.compiler.is_compiling():
            return self.capacity
        end = self.length + new
        if end > self.capacity:
            raise ValueError(f"{end} positions are more than the cache's {self.capacity}: make it with more capacity")
        return end

    def add_sequences(
        self, write: Tensor, end: int, starts: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Record the sequences of the new positions.

        Returns:
            The sequences of the new positions (N, T) and of all positions up to `end` (N, S). None
            while each row is one sequence without padding.
        """
        if starts is None and valid is None and not self._several:
            return None
        self._several = True
        last = self._sequences.index_select(1, (self._length - 1).clamp(min=0)[None])  # (N, 1)
        if valid is None:
            valid = torch.ones(len(last), len(write), dtype=torch.bool, device=write.device)
        new = number_sequences(starts, valid, torch.where(last < 0, ~last, last))  # (N, T)
        self._sequences.index_copy_(1, write, new)
        return new, self._sequences[:, :end]

    def add_positions(self, write: Tensor, end: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Record the new positions (1 or N, T, A). Returns them, and all positions up to `end`."""
        if self._positions is None:
            rows, _, axes = positions.shape
            self._positions = positions.new_zeros(rows, self.capacity, axes)
        self._positions.index_copy_(1, write, positions)
        return positions, self._positions[:, :end]

    def advance(self, new: int) -> None:
        """Count `new` more positions, after all blocks have added them to their states."""
        self._length += new
