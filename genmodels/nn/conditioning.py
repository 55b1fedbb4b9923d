"""Embedding of conditions as vectors and tokens, and condition dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.conditions import Condition, ConditionConfig, Text, TextConfig, check_condition
from genmodels.nn.encoded_text import EncodedText
from genmodels.nn.mixer import INIT_STD, init_weights
from genmodels.types import Noise


@dataclass(frozen=True)
class Embedded:
    """An embedded condition of N samples, the output of `Conditioner`.

    Attributes:
        pooled: one vector per sample, (N, D).
        tokens: vectors of the tokens of a text, (N, L, D); None for a model without text.
        mask: bool (N, L), True where a token is real, at least once per row; None without text.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Embedded:
        """Apply `function` to every tensor. It must treat the first axis, N, of all alike."""
        if self.tokens is None or self.mask is None:
            return Embedded(function(self.pooled))
        return Embedded(function(self.pooled), function(self.tokens), function(self.mask))

    def __getitem__(self, rows: slice) -> Embedded:
        return self.map(lambda tensor: tensor[rows])

    def __add__(self, vectors: Tensor) -> Embedded:
        """Add `vectors` (N, D), such as a time embedding, to the pooled vectors."""
        return replace(self, pooled=self.pooled + vectors)

    def join(self, other: Embedded) -> Embedded:
        """Append the rows of `other`. Tokens are padded to the longer of both lengths."""
        pooled = torch.cat([self.pooled, other.pooled])
        if self.tokens is None or self.mask is None or other.tokens is None or other.mask is None:
            return Embedded(pooled)
        length = max(self.tokens.shape[1], other.tokens.shape[1])
        tokens = [F.pad(x, (0, 0, 0, length - x.shape[1])) for x in (self.tokens, other.tokens)]
        masks = [F.pad(x, (0, length - x.shape[1])) for x in (self.mask, other.mask)]
        return Embedded(pooled, torch.cat(tokens), torch.cat(masks))


class Conditioner(nn.Module):
    """Condition -> Embedded.

    The pooled vector is the sum of the vectors of all known attributes, with their signs, of the
    vector of the label, and of that of the text. An unknown attribute or label adds nothing. A
    hidden or absent text is replaced by the null text of the module that embeds it.

    Args:
        config: the attributes, labels and text to embed; all may be absent.
        width: D.
        project_tokens: project the token vectors of a text encoder to D. Otherwise they keep the
            width of the encoder, as cross-attention with its own projections needs them.
    """

    def __init__(self, config: ConditionConfig, width: int, project_tokens: bool = True):
        super().__init__()
        self.width = width
        self.attributes = nn.Linear(len(config.attributes), width, bias=False) if config.attributes else None
        self.labels = nn.Embedding(config.classes, width) if config.classes else None
        self.text: TextEmbedding | EncodedText | None = None
        if config.text.encoder:
            self.text = EncodedText(config.text, width, width if project_tokens else None)
        elif config.text.vocabulary:
            self.text = TextEmbedding(config.text, width)
        init_weights(self, depth=1)  # as small as the embeddings that the result is added to

    def nothing(self, n: int, device: torch.device) -> Embedded:
        """Embed the null condition of `n` samples: no attribute, no label and no text is given."""
        return self(Condition(), n, device)

    def forward(self, condition: Condition, n: int, device: torch.device) -> Embedded:
        """Embed the condition of `n` samples, in float32. Fields that are None are null.

        Raises:
            ValueError: if the model was not built for a field, or a field has another shape or an
                unknown label or token.
            TypeError: if `condition` is not a Condition.
        """
        check_condition(condition)
        pooled = torch.zeros(n, self.width, device=device)
        if condition.attributes is not None and condition.attributes.shape[1]:
            pooled = pooled + self._embed_attributes(condition.attributes, n)
        if condition.labels is not None:
            pooled = pooled + self._embed_labels(condition.labels, n)
        if self.text is None:
            if condition.text is not None:
                raise ValueError("the condition has text, and this model was built without text")
            return Embedded(pooled)
        vector, tokens, mask = self.text(condition.text or empty_text(n, device), n)  # (N, D), (N, L, D), (N, L)
        return Embedded(pooled + vector, tokens, mask)

    def _embed_attributes(self, attributes: Tensor, n: int) -> Tensor:
        """(N, K) -> (N, D)."""
        expected = (n, 0 if self.attributes is None else self.attributes.in_features)
        if self.attributes is None or attributes.shape != expected:
            raise ValueError(
                f"the condition has attributes of shape {tuple(attributes.shape)}, and this model takes {expected}"
            )
        return self.attributes(attributes.float()).float()

    def _embed_labels(self, labels: Tensor, n: int) -> Tensor:
        """(N,) -> (N, D)."""
        if self.labels is None:
            raise ValueError("the condition has labels, and this model was built without classes")
        if labels.shape != (n,):
            raise ValueError(f"the condition has labels of shape {tuple(labels.shape)}, not ({n},)")
        if labels.is_floating_point():
            raise ValueError(f"the condition has labels of type {labels.dtype}, and labels are integers")
        # A trace (torch.export) cannot branch on a value.
        if not torch.compiler.is_exporting() and labels.max() >= self.labels.num_embeddings:
            raise ValueError(f"label {labels.max().item()} is not one of the {self.labels.num_embeddings} classes")
        known = (labels >= 0).unsqueeze(1)  # (N, 1)
        return known * self.labels(labels.clamp_min(0)).float()


class TextEmbedding(nn.Module):
    """Text -> token vectors, a learned vector of each token plus one of its position, and their
    mean.

    Args:
        config: vocabulary and largest length.
        width: D.
    """

    def __init__(self, config: TextConfig, width: int):
        super().__init__()
        self.ids = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Embedding(config.length, width)
        self.null = nn.Parameter(torch.empty(width).normal_(std=INIT_STD))

    def forward(self, text: Text, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embed N sentences. A row without a real token becomes a learned null token.

        Returns:
            The mean of the real tokens (N, D), vectors (N, L, D) in float32, and a mask (N, L) that
            is True at least once per row.

        Raises:
            ValueError: for a wrong shape or dtype, too many tokens, or an id outside the
                vocabulary.
        """
        self._check(text, n)
        ids = text.ids.where(text.mask, 0)  # padding may hold any id
        length = ids.shape[1]
        vectors = self.ids(ids).float() + self.positions.weight[:length].float()  # (N, L, D)
        hidden = ~text.mask.any(1, keepdim=True)  # (N, 1)
        null = F.pad(hidden, (0, length - 1))  # (N, L), True at the first token of a hidden row
        tokens, mask = torch.where(null.unsqueeze(2), self.null.float(), vectors), text.mask | null
        mean = (tokens * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        return mean, tokens, mask

    def _check(self, text: Text, n: int) -> None:
        ids, mask = text.ids, text.mask
        limit, vocabulary = self.positions.num_embeddings, self.ids.num_embeddings
        if ids.ndim != 2 or len(ids) != n or mask.shape != ids.shape:
            raise ValueError(
                f"the text needs ids and mask of shape ({n}, L), got {tuple(ids.shape)} and {tuple(mask.shape)}"
            )
        if ids.is_floating_point() or mask.dtype != torch.bool:
            raise ValueError(f"the text needs integer ids and a bool mask, got {ids.dtype} and {mask.dtype}")
        if not 1 <= ids.shape[1] <= limit:
            raise ValueError(f"the text has {ids.shape[1]} tokens, and this model takes 1 to {limit}")
        real = ids.where(mask, 0)
        if real.min() < 0 or real.max() >= vocabulary:
            wrong = real.min() if real.min() < 0 else real.max()
            raise ValueError(f"token {wrong.item()} is outside the vocabulary of {vocabulary}")


def empty_text(n: int, device: torch.device) -> Text:
    """Return `n` hidden sentences, of one padding token each."""
    ids = torch.zeros(n, 1, dtype=torch.int64, device=device)
    return Text(ids, torch.zeros_like(ids, dtype=torch.bool))


def drop_condition(condition: Condition, noise: Noise, config: ConditionConfig) -> Condition:
    """Hide a random part of the condition, for classifier-free guidance (arXiv 2207.12598).

    Of `config.drop` of the samples, everything is hidden: attributes become 0, labels -1 and texts
    empty. Of `config.drop_each` of the others, each attribute is hidden with probability 1/2.

    The number of random numbers drawn does not depend on these fractions.

    Args:
        condition: of N samples.
        noise: N streams.
        config: the fractions.
    """
    uniform = noise.uniform(2)  # (N, 2)
    kept = uniform[:, 0] >= config.drop  # (N,)
    if condition.attributes is not None:
        coins = noise.uniform(condition.attributes.shape[1]) < 0.5  # (N, K)
        shown = kept.unsqueeze(1) & (coins | (uniform[:, 1:] >= config.drop_each))
        condition = replace(condition, attributes=condition.attributes * shown)
    if condition.labels is not None:
        condition = replace(condition, labels=torch.where(kept, condition.labels, -1))
    if condition.text is not None:
        mask = condition.text.mask & kept.unsqueeze(1)
        condition = replace(condition, text=replace(condition.text, mask=mask))
    return condition
