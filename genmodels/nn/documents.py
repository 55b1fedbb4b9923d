"""Sequences of different lengths (documents), several in one row of a causal transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from genmodels.nn.transformer import Transformer


class Documents(NamedTuple):
    """Where the tokens of N documents are in B rows of R tokens."""

    shape: tuple[int, int]
    """(B, R)."""
    tokens: Tensor
    """Index of each token among the B R tokens of all rows, document by document, (M,)."""
    positions: Tensor
    """Position of each token in its document, (B, R, 1)."""
    starts: Tensor
    """Bool (B, R), True where a document begins."""
    valid: Tensor | None
    """Bool (B, R), False at padding; None: there is none."""


def arrange(mask: Tensor, per_row: int) -> Documents:
    """Arrange documents in rows, longest first and each in the row that is filled least. No document
    is padded; only rows are, at their ends.

    Args:
        mask: bool (N, L), True at the first tokens of each document and False after them.
        per_row: largest number of documents in a row.
    """
    lengths, device = mask.sum(1), mask.device
    sizes = lengths.tolist()
    count = -(-len(sizes) // per_row)
    row, begin, held, filled = [0] * len(sizes), [0] * len(sizes), [0] * count, [0] * count
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        best = min((r for r in range(count) if held[r] < per_row), key=lambda r: filled[r])
        row[i], begin[i] = best, filled[best]
        held[best], filled[best] = held[best] + 1, filled[best] + sizes[i]
    shape = (count, max(filled))
    first = torch.tensor(row, device=device) * shape[1] + torch.tensor(begin, device=device)  # (N,)
    within = torch.arange(mask.shape[1], device=device).expand_as(mask)  # (N, L)
    tokens = (first.unsqueeze(1) + within)[mask]  # (M,)
    positions = within.new_zeros(count * shape[1])
    positions[tokens] = within[mask]
    starts, valid = torch.zeros(2, count * shape[1], dtype=torch.bool, device=device)
    starts[first], valid[tokens] = True, True
    full = sum(sizes) == count * shape[1]
    return Documents(shape, tokens, positions.view(*shape, 1), starts.view(shape), None if full else valid.view(shape))


def packed(transformer: Transformer, x: Tensor, mask: Tensor, per_row: int) -> Tensor:
    """Apply a causal transformer to documents, several in a row. They do not see each other, so that
    the result equals that of separate rows, up to rounding.

    Args:
        transformer: its mixers respect `starts` and `valid`.
        x: token vectors (N, L, D), padded to the longest document.
        mask: bool (N, L), True at the first tokens of each document and False after them.
        per_row: largest number of documents in a row.

    Returns:
        Outputs (N, L, D), 0 at padding.
    """
    places = arrange(mask, per_row)
    rows = x.new_zeros(places.shape[0] * places.shape[1], x.shape[2]).index_put((places.tokens,), x[mask])
    rows = transformer(rows.unflatten(0, places.shape), places.positions, starts=places.starts, valid=places.valid)
    outputs = rows.flatten(0, 1)[places.tokens]  # (M, D)
    return outputs.new_zeros(*mask.shape, outputs.shape[1]).index_put(tuple(mask.nonzero().T), outputs)
