"""A causal transformer that predicts the symbols of a grid in order, whatever they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.conditioning import Embedded
from genmodels.nn.cross_attention import CrossAttentionStack
from genmodels.nn.layers import RMSNorm, SwiGLU
from genmodels.nn.mixer import INIT_STD, init_weights
from genmodels.nn.rope import grid_positions
from genmodels.nn.transformer import Transformer, TransformerConfig


class GridDecoder(nn.Module):
    """p(x) = prod_t prod_s p(x_ts | x_1 ... x_(t-1), x_t1 ... x_t(s-1)) over a grid of positions.

    The T = rows x columns positions are ordered row by row. Each holds S symbols of one alphabet,
    such as three colours or the codes of a residual quantiser. The transformer has one token per
    position. A small network predicts the symbols of a position one after another (as in
    RQ-Transformer, arXiv 2203.01941), so S symbols do not make the sequence S times as long. This
    is an exact factorisation: the probabilities of all grids add up to 1.

    Token t, which predicts position t, is the sum of embeddings of the symbols at position t - 1
    and at the position above t (which is in the past too, and is informative where neighbours are
    similar), of a learned embedding of t, and of the condition.

    Args:
        rows: of the grid.
        columns: of the grid.
        symbols: S.
        vocabulary: V, the size of the alphabet.
        config: of the transformer.
        text: whether conditions have tokens. Every block then attends to them.
    """

    def __init__(
        self, rows: int, columns: int, symbols: int, vocabulary: int, config: TransformerConfig, text: bool = False
    ):
        super().__init__()
        if config.head_dim % 4:
            raise ValueError(
                f"positions on a grid need heads of a multiple of 4 channels, got {config.head_dim}: choose a width "
                f"that is a multiple of {4 * config.heads}"
            )
        width = config.width
        self.columns = columns
        self.length = rows * columns
        self.symbols = symbols
        self.vocabulary = vocabulary
        self.previous = nn.Embedding(symbols * vocabulary, width)
        self.above = nn.Embedding(symbols * vocabulary, width) if rows > 1 else None
        self.start = nn.Parameter(torch.randn(width) * INIT_STD)
        self.places = nn.Parameter(torch.randn(self.length, width) * INIT_STD)
        self.transformer = Transformer(config, causal=True)
        self.inside = SymbolNetwork(symbols, vocabulary, config) if symbols > 1 else None
        self.head = nn.Linear(width, symbols * vocabulary, bias=False)
        init_weights(self, config.depth)
        nn.init.zeros_(self.head.weight)  # initially all symbols are equally likely
        self.cross_attention = CrossAttentionStack(config) if text else None
        self.register_buffer("first", torch.arange(symbols) * vocabulary, persistent=False)
        self.register_buffer("grid", grid_positions(rows, columns), persistent=False)

    first: Tensor
    """First row of each symbol's embeddings, (S,)."""
    grid: Tensor
    """Rows and columns (T, 2)."""

    def forward(self, tokens: Tensor, condition: Embedded) -> Tensor:
        """Logits of every symbol, given those before it.

        Args:
            tokens: (N, T, S), int64 in [0, V).
            condition: of N rows. Its pooled vectors are added to every token.

        Returns:
            Logits (N, T, S, V).
        """
        x = self.embed(tokens, condition, 0, self.length)
        hidden = self.transformer(x, self.grid, after=self._cross_attention(condition))  # (N, T, D)
        return self.logits(hidden, tokens)

    def generate(
        self,
        condition: Embedded,
        uniform: Tensor,
        choose: Callable[[Tensor, Tensor], Tensor],
        prefix: Tensor,
        guidance: float = 1.0,
        null: Embedded | None = None,
    ) -> Tensor:
        """Sample symbols one after another, with a cache of the states of earlier positions.

        Args:
            condition: of N rows.
            uniform: random numbers (N, T, S) in [0, 1), one per symbol.
            choose: logits (N, V) and uniform numbers (N,) -> symbols (N,).
            prefix: symbols of the first P positions, (N, P, S); P may be 0.
            guidance: classifier-free guidance: logits are u + guidance (c - u), with u those under
                the null condition.
            null: the null condition of N rows. None means no guidance, at half the cost.

        Returns:
            Tokens (N, T, S).
        """
        begin = prefix.shape[1]
        tokens = F.pad(prefix, (0, 0, 0, self.length - begin))  # (N, T, S)
        guided = null is not None
        condition = condition if null is None else condition.join(null)
        after = self._cross_attention(condition)
        cache = self.transformer.make_cache(len(condition.pooled), self.length)
        for t in range(begin, self.length):
            fed = t if t > begin else 0  # the first call processes the whole prefix
            both = torch.cat([tokens, tokens]) if guided else tokens
            x = self.embed(both, condition, fed, t + 1)
            hidden = self.transformer(x, self.grid[fed : t + 1], cache, after=after)[:, -1:]  # (N, 1, D), or (2N, 1, D)
            for s in range(self.symbols):
                known = tokens[:, t : t + 1, : s + 1]  # the last of them is not read
                logits = self.logits(hidden, torch.cat([known, known]) if guided else known)[:, 0, s].float()
                if guided:
                    with_condition, without = logits.chunk(2)
                    logits = without + guidance * (with_condition - without)
                tokens[:, t, s] = choose(logits, uniform[:, t, s])
        return tokens

    def _cross_attention(self, condition: Embedded) -> list[Callable[[Tensor], Tensor]] | None:
        """One layer per block that attends to the tokens of the condition; None without text."""
        return None if self.cross_attention is None else self.cross_attention(condition)

    def embed(self, tokens: Tensor, condition: Embedded, first: int, last: int) -> Tensor:
        """The transformer's inputs `first` to `last` - 1, (N, last - first, D)."""
        n = len(tokens)
        x = self._vectors(self.previous, tokens[:, max(first - 1, 0) : last - 1])
        if first == 0:
            x = torch.cat([self.start.expand(n, 1, -1), x], dim=1)
        if self.above is not None:
            up = tokens[:, max(first - self.columns, 0) : max(last - self.columns, 0)]
            x = x + F.pad(self._vectors(self.above, up), (0, 0, last - first - up.shape[1], 0))  # row 0 has none
        return x + self.places[first:last] + condition.pooled.unsqueeze(1)

    def _vectors(self, table: nn.Embedding, tokens: Tensor) -> Tensor:
        return table(tokens + self.first).sum(2)  # (N, T, S) -> (N, T, D)

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits (N, T, S, V) from outputs (N, T, D) and symbols (N, T, S or fewer)."""
        count = tokens.shape[2]
        weight = self.head.weight.unflatten(0, (self.symbols, self.vocabulary))[:count]  # (S, V, D)
        each = hidden.unsqueeze(2) if self.inside is None else self.inside(hidden, tokens)  # (N, T, S, D)
        return torch.einsum("ntsd,svd->ntsv", each, weight)


def resized_places(places: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Interpolate learned embeddings (T, D) of the places of a grid of `old` rows and columns, for a
    grid of `new` rows and columns over the same image."""
    if old[:2] == new[:2]:
        return places
    grid = places.T.unflatten(1, old[:2]).unsqueeze(0)  # (1, D, rows, columns)
    return F.interpolate(grid, new[:2], mode="bilinear", align_corners=False)[0].flatten(1).T  # (T', D)


class HeadMLP(SwiGLU):
    """A SwiGLU of the output network: outside the residual stream, and trained by AdamW."""

    def residual(self) -> Iterable[Tensor]:
        return ()

    def muon(self) -> Iterable[Tensor]:
        return ()


class SymbolNetwork(nn.Module):
    """Output network that predicts the S symbols of a position one after another."""

    def __init__(self, symbols: int, vocabulary: int, config: TransformerConfig):
        super().__init__()
        self.vocabulary = vocabulary
        self.earlier = nn.Embedding((symbols - 1) * vocabulary, config.width)
        self.which = nn.Parameter(torch.randn(symbols, config.width) * INIT_STD)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = HeadMLP(config.width, config.width)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(N, T, D) and symbols (N, T, S) -> (N, T, S, D). Output s depends on symbols before s."""
        count = tokens.shape[2]
        offsets = torch.arange(count - 1, device=tokens.device) * self.vocabulary
        before = F.pad(self.earlier(tokens[..., :-1] + offsets).cumsum(2), (0, 0, 1, 0))  # (N, T, S, D)
        x = hidden.unsqueeze(2) + before + self.which[:count]
        return self.norm(x + self.mlp(self.mlp_norm(x)))
