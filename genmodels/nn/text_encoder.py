"""The text encoder of CLIP: a causal transformer over tokens, pooled at the end of the text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from genmodels.conditions import Text
from genmodels.nn.mixer import INIT_STD
from genmodels.nn.transformer import Transformer, TransformerConfig
from genmodels.saving import Derived

CLIP_BLOCKS = TransformerConfig(norm="affine", mlp="quick_gelu", bias=True, rotary=False)
"""The blocks of CLIP (arXiv 2103.00020), apart from their size."""

GROUPS = 4
"""Number of groups of similar length in which the texts of a batch are encoded."""


@dataclass(frozen=True)
class TextEncoderConfig:
    """Architecture of a text encoder. What depends on the tokenizer is filled in from it."""

    transformer: TransformerConfig = replace(CLIP_BLOCKS, width=64, depth=3, heads=4)
    """Blocks of the transformer, which is causal."""
    vocabulary: Derived[int] = 0
    """Number of tokens in the vocabulary."""
    length: Derived[int] = 0
    """Largest number of tokens in a text, the context."""
    end: Derived[int] = 0
    """Id of the token that ends a text, and whose vector represents it."""


class TextEncoder(nn.Module):
    """Text -> one vector per text (N, D).

    Token and position embeddings, a causal transformer and its final norm. A text is represented by
    the vector of its first end token, which has seen all tokens of the text and none of the padding
    behind it.

    Args:
        config: its architecture, with the fields that depend on the tokenizer.
    """

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.config = config
        width = config.transformer.width
        self.tokens = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Embedding(config.length, width)
        self.transformer = Transformer(config.transformer, causal=True)
        nn.init.normal_(self.tokens.weight, std=INIT_STD)
        nn.init.normal_(self.positions.weight, std=INIT_STD / 2)

    def forward(self, text: Text) -> Tensor:
        """Encode N texts.

        Raises:
            ValueError: for a wrong shape or dtype, too many tokens, an id outside the vocabulary,
                or a text without its end token, which has nothing to be represented by.
        """
        ends = self.ends(text)
        order = ends.argsort()
        pooled = []
        # No row needs what comes after its end token: rows of similar length are encoded together.
        for rows in order.chunk(GROUPS):
            last = ends[rows]  # (n,), in ascending order
            states = self.states(text.ids[rows, : int(last[-1]) + 1])  # (n, L, D)
            pooled.append(states[torch.arange(len(rows), device=last.device), last])
        return torch.cat(pooled)[order.argsort()]

    def states(self, ids: Tensor) -> Tensor:
        """The vectors of all tokens: ids (N, L) -> (N, L, D), normalised."""
        return self.transformer(self.tokens(ids) + self.positions.weight[: ids.shape[1]])

    def ends(self, text: Text) -> Tensor:
        """Check texts and return the index of the first end token of each, (N,).

        Raises:
            ValueError: as `forward`.
        """
        ids, c = text.ids, self.config
        if ids.ndim != 2 or not ids.shape[0] or ids.is_floating_point():
            raise ValueError(f"the text needs integer ids of shape (N, L), got {ids.dtype} {tuple(ids.shape)}")
        if not 1 <= ids.shape[1] <= c.length:
            raise ValueError(f"the text has {ids.shape[1]} tokens, and this model takes 1 to {c.length}")
        found = ids == c.end  # (N, L)
        if torch.compiler.is_exporting():  # a trace cannot branch on a value
            return found.int().argmax(1)
        low, high = (int(value) for value in ids.aminmax())
        if low < 0 or high >= c.vocabulary:
            raise ValueError(f"token {low if low < 0 else high} is outside the vocabulary of {c.vocabulary}")
        if not bool(found.any(1).all()):
            row = int((~found.any(1)).nonzero()[0])
            raise ValueError(f"text {row} has no end token ({c.end}), which represents the text: tokenize it again")
        return found.int().argmax(1)
