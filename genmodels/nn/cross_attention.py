"""Cross-attention from the tokens of a transformer to the tokens of a condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.conditioning import Embedded
from genmodels.nn.layers import make_norm
from genmodels.nn.mixer import Branch, init_weights
from genmodels.nn.transformer import TransformerConfig


class CrossAttention(Branch):
    """x + attention(norm(x), keys, values). It starts as the identity.

    Args:
        config: of the transformer: width, heads, norm, bias and dropout.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.norm = make_norm(config)
        self.q = nn.Linear(config.width, config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def residual(self) -> Iterable[Tensor]:
        return (self.out.weight,)

    def muon(self) -> Iterable[Tensor]:
        return (self.q.weight, self.out.weight)

    def initialise(self) -> None:
        """Set the output to zero, so that the layer starts as the identity."""
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor) -> Tensor:
        """Attend.

        Args:
            x: tokens of the transformer, (N, T, D).
            keys_values: projected tokens of the condition, (N, L, 2 D).
            mask: bool (N, L), True where x may attend, at least once per row.

        Returns:
            (N, T, D).
        """
        q = self._heads(self.q(self.norm(x)))
        k, v = (self._heads(half) for half in keys_values.chunk(2, dim=-1))
        branch = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])  # (N, H, T, d)
        branch = self.out(branch.transpose(1, 2).flatten(2))  # (N, T, D)
        return x + F.dropout(branch, self.dropout, self.training)

    def _heads(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, H, T, d)."""
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


class CrossAttentionStack(nn.Module):
    """One `CrossAttention` per block of a transformer.

    The keys and values are computed once per condition, so that cached generation computes only
    the queries of each new token.

    Args:
        config: of the transformer.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm = make_norm(config)
        self.keys_values = nn.ModuleList(
            nn.Linear(config.width, 2 * config.width, bias=config.bias) for _ in range(config.depth)
        )
        self.layers = nn.ModuleList(CrossAttention(config) for _ in range(config.depth))
        init_weights(self, config.depth)

    def forward(self, condition: Embedded) -> list[Callable[[Tensor], Tensor]]:
        """Return one function (N, T, D) -> (N, T, D) per block, to be applied after the block.

        Args:
            condition: with tokens and mask.
        """
        tokens = self.norm(condition.tokens)  # (N, L, D)
        return [
            partial(layer, keys_values=project(tokens), mask=condition.mask)
            for layer, project in zip(self.layers, self.keys_values, strict=True)
        ]
