"""Which tokens attend to each other: one rule, as a dense mask and as a block mask of FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Take = Callable[[Tensor], Tensor]


class Rule(NamedTuple):
    """The rule by which T queries attend to S keys.

    A token attends within its own sequence (document), in a causal transformer to tokens up to
    itself, and with a window to tokens whose positions differ from its own by at most that much on
    each axis.
    """

    write: Tensor
    """Index of each query among the keys, (T,)."""
    end: int
    """S."""
    causal: bool
    """Whether queries attend to keys up to themselves only."""
    sequences: tuple[Tensor, Tensor] | None = None
    """Numbers of the sequences of queries (N, T) and keys (N, S). None: one sequence."""
    positions: tuple[Tensor, Tensor] | None = None
    """Positions of queries (1 or N, T, A) and keys (1 or N, S, A), of the window."""
    window: int = 0
    """Largest difference of positions on each axis."""

    def dense(self) -> Tensor:
        """The mask as bool (T, S), or (N, 1, T, S) where rows differ."""
        mask = self._allowed(lambda x: x[:, None, :, None], lambda x: x[:, None, None, :])
        return mask if self._differs() else mask[0, 0]

    def blocks(self) -> BlockMask:
        """The mask for FlexAttention, which skips blocks of 128 x 128 that are all False."""
        from torch.nn.attention.flex_attention import create_block_mask

        def allowed(n: Tensor, head: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return self._allowed(lambda x: x[n if len(x) > 1 else 0, t], lambda x: x[n if len(x) > 1 else 0, s])

        pairs = [pair for pair in (self.sequences, self.positions) if pair is not None]
        rows = max(len(queries) for queries, _ in pairs) if self._differs() else None
        return create_block_mask(allowed, rows, None, len(self.write), self.end, device=self.write.device)

    def _differs(self) -> bool:
        """Whether rows of the batch may differ."""
        return self.sequences is not None or (self.positions is not None and len(self.positions[0]) > 1)

    def _allowed(self, of_query: Take, of_key: Take) -> Tensor:
        """Whether queries attend to keys, bool.

        Args:
            of_query: takes values of the queries, (1 or N, T, ...), at those of interest.
            of_key: takes values of the keys, (1 or N, S, ...), at those of interest.
        """
        slots = torch.arange(self.end, device=self.write.device)[None]
        allowed = of_key(slots) <= (of_query(self.write[None]) if self.causal else self.end)
        if self.sequences is not None:
            allowed = allowed & (of_query(self.sequences[0]) == of_key(self.sequences[1]))
        if self.positions is not None:
            distance = (of_query(self.positions[0]) - of_key(self.positions[1])).abs()
            allowed = allowed & (distance <= self.window).all(-1)
        return allowed


def on_axes(positions: Tensor) -> Tensor:
    """Positions (T,), (T, A) or (N, T, A) as (1 or N, T, A)."""
    positions = positions[:, None] if positions.ndim == 1 else positions
    return positions if positions.ndim == 3 else positions[None]


def lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """Bool (T, S): query t attends to keys up to t + S - T."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def block_mask(q: Tensor, k: Tensor, causal: bool, mask: Tensor | BlockMask | None) -> BlockMask | None:
    """The block mask that flex needs in place of `causal` or of `mask`."""
    queries, keys = q.shape[2], k.shape[2]
    if mask is None:
        return causal_block_mask(queries, keys, q.device) if causal and queries > 1 else None
    if not isinstance(mask, Tensor):
        return mask
    from torch.nn.attention.flex_attention import create_block_mask

    # NOTE: built again in every layer, at more than the cost of the attention if T is small.
    # `Transformer` gives a block mask instead.
    full = mask if mask.ndim == 4 else mask[None, None]
    rows, heads = full.shape[:2]

    def allowed(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return full[b if rows > 1 else 0, h if heads > 1 else 0, t, s]

    return create_block_mask(
        allowed, rows if rows > 1 else None, heads if heads > 1 else None, queries, keys, device=q.device
    )


@lru_cache(maxsize=16)
def causal_block_mask(queries: int, keys: int, device: torch.device) -> BlockMask:
    """The block mask of `lower_right`. Building one costs more than the attention of a layer."""
    from torch.nn.attention.flex_attention import create_block_mask

    def past(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return s <= t + (keys - queries)

    with torch.inference_mode(False):  # a mask built while sampling must be usable in training
        return create_block_mask(past, None, None, queries, keys, device=device)
