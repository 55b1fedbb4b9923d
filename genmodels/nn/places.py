"""Positions of the tokens of a forward pass, and which of them may attend to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from genmodels.nn.rope import Rope

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Places(NamedTuple):
    """Positions, masks and cache slots of the T tokens of one forward pass.

    `Transformer.places` computes them once, and all blocks share them.
    """

    positions: Tensor
    """(T,) along a line, (T, 2) over a grid, or (N, T, 1 or 2) where rows differ."""
    angles: Rope | None = None
    """Angles of the rotary positions; None without rotary positions."""
    mask: Tensor | BlockMask | None = None
    """For attention: bool (T, S) or (N, 1, T, S), True where query t may attend to key s, or as a
    block mask of FlexAttention. It includes causality, sequences, padding and windows. None: all
    keys, or all keys up to t in a causal transformer."""
    starts: Tensor | None = None
    """Bool (N, T), True where a new sequence begins: a recurrent mixer resets its state there.
    None: nowhere."""
    valid: Tensor | None = None
    """Bool (N, T), False at padding: a recurrent mixer leaves its state unchanged there. None: no
    padding."""
    write: Tensor | None = None
    """Slots (T,) of a cache that the tokens are written to; None without a cache."""
    end: int | None = None
    """S: slots of the cache before this one are attended to; None without a cache."""


def number_sequences(starts: Tensor | None, valid: Tensor | None, last: Tensor | int = 0) -> Tensor:
    """The number of the sequence that each position belongs to, int64 (N, T).

    It is `last` plus the number of starts up to the position. Padding has ~number instead, which is
    negative: padding then forms sequences of its own, to which no other position attends.

    Args:
        starts: bool (N, T), True where a new sequence begins; None: nowhere.
        valid: bool (N, T), False at padding; None: no padding. At least one of the two is given.
        last: number of the sequence before the first position, (N, 1) or the same for all rows.
    """
    if starts is None:
        assert valid is not None
        starts = torch.zeros_like(valid)
    number = starts.long().cumsum(1) + last
    return number if valid is None else torch.where(valid, number, ~number)
