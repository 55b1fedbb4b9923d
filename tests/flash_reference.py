"""FlashAttention in plain torch, as an explanation: the tiled softmax of version 1 and the loop
order of version 2.

Both compute exact attention and store one tile of the T x S scores at a time. They are slow: use
`genmodels.nn.attention.attend` in models. docs/attention.md derives the update that they share.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flash_attention_1(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, block: int = 64) -> Tensor:
    """FlashAttention's forward pass (arXiv 2205.14135, algorithm 1): keys outside, queries inside.

    A tile of keys and values is loaded once and combined with every tile of queries. The output of
    each row and its two statistics are written to memory after every tile, so the output is always
    normalised.

    Args:
        q: queries (N, H, T, d).
        k: keys (N, H, S, d).
        v: values (N, H, S, d).
        causal: query t attends to keys up to t + S - T.
        block: rows of a tile; on a GPU, its on-chip memory limits them.

    Returns:
        (N, H, T, d).
    """
    out = torch.zeros_like(q)  # (N, H, T, d)
    top = q.new_full((*q.shape[:3], 1), -torch.inf)  # m: the largest score seen by each row, (N, H, T, 1)
    total = q.new_zeros((*q.shape[:3], 1))  # l: the sum of exp(score - m), (N, H, T, 1)
    for keys in tiles(k.shape[2], block):
        for rows in tiles(q.shape[2], block):
            scores = tile_scores(q, k, rows, keys, causal)  # (N, H, B, B)
            if scores is None:
                continue
            old_top, old_total = top[:, :, rows], total[:, :, rows]
            new_top = torch.maximum(old_top, scores.amax(-1, keepdim=True))
            weights = (scores - new_top).exp()
            shrink = (old_top - new_top).exp()  # 0 at the first tile, where the old maximum is -inf
            new_total = shrink * old_total + weights.sum(-1, keepdim=True)
            # Undo the old normalisation, correct for the new maximum, add the tile, normalise.
            summed = shrink * old_total * out[:, :, rows] + weights @ v[:, :, keys]  # (N, H, B, d)
            out[:, :, rows] = summed / new_total
            top[:, :, rows], total[:, :, rows] = new_top, new_total
    return out


def flash_attention_2(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, block: int = 64
) -> tuple[Tensor, Tensor]:
    """FlashAttention-2's forward pass (arXiv 2307.08691, algorithm 1): queries outside, keys
    inside.

    A tile of queries stays on the chip until it is done. Its output is accumulated unnormalised,
    divided once at the end and written once. Tiles of queries are independent, so one long sequence
    can occupy a whole GPU. The backward pass needs one number per row instead of two.

    Args and shapes are those of `flash_attention_1`.

    Returns:
        The output (N, H, T, d), and the logarithm of each row's sum of exponentials (N, H, T).
    """
    outs, logs = [], []
    for rows in tiles(q.shape[2], block):
        summed = torch.zeros_like(q[:, :, rows])  # (N, H, B, d)
        top = summed.new_full((*summed.shape[:3], 1), -torch.inf)
        total = torch.zeros_like(top)
        for keys in tiles(k.shape[2], block):
            scores = tile_scores(q, k, rows, keys, causal)  # (N, H, B, B)
            if scores is None:
                break  # this and all later tiles lie in the future
            new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights = (scores - new_top).exp()
            shrink = (top - new_top).exp()
            total = shrink * total + weights.sum(-1, keepdim=True)
            summed = shrink * summed + weights @ v[:, :, keys]
            top = new_top
        outs.append(summed / total)
        logs.append((top + total.log()).squeeze(-1))
    return torch.cat(outs, dim=2), torch.cat(logs, dim=2)


def tiles(length: int, block: int) -> list[slice]:
    """Slices of `block` that cover 0 to `length`; the last may be shorter."""
    return [slice(start, min(start + block, length)) for start in range(0, length, block)]


def tile_scores(q: Tensor, k: Tensor, rows: slice, keys: slice, causal: bool) -> Tensor | None:
    """One tile of Q K^T / sqrt(d), -inf where a query does not attend; None when the whole tile is
    in the future."""
    scores = q[:, :, rows] @ k[:, :, keys].transpose(-1, -2) * q.shape[-1] ** -0.5  # (N, H, B, B)
    if not causal:
        return scores
    offset = k.shape[2] - q.shape[2]
    if keys.start > rows.stop - 1 + offset:
        return None
    last = torch.arange(rows.start, rows.stop, device=q.device)[:, None] + offset  # (B, 1)
    return scores.masked_fill(torch.arange(keys.start, keys.stop, device=q.device) > last, -torch.inf)
