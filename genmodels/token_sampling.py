"""Sampling of tokens: temperature, top-k, top-p and min-p, and a draw from one uniform number."""

from __future__ import annotations

import torch
from torch import Tensor


def filtered(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """Convert logits to probabilities without the unlikely tokens; float32 (..., V).

    The filters are applied in the order of the arguments, each to the result of the previous one.
    Tokens as likely as the k-th are also kept.

    Args:
        logits: (..., V).
        temperature: positive divisor of the logits; values below 1 make the distribution sharper.
        top_k: keep the k most likely tokens, at least 1; None keeps all.
        top_p: keep the fewest tokens whose total probability is at least p (nucleus sampling, arXiv
            1904.09751), in (0, 1].
        min_p: keep tokens that are at least min_p times as likely as the most likely one (arXiv
            2407.01082), in [0, 1].

    Raises:
        ValueError: if a logit is not finite.
    """
    logits = logits.float()
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite: its weights are broken, or guidance is too large")
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # cannot overflow
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # total of the more likely tokens
        beyond = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, places, before >= top_p)
        logits = logits.masked_fill(beyond, -torch.inf)
    probabilities = logits.softmax(-1)
    if min_p > 0:
        unlikely = probabilities < min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(unlikely, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the first token whose cumulative probability exceeds `uniform`: int64 (...).

    Each draw uses one uniform number, so the tokens of an image depend only on its own random
    stream.

    Args:
        probabilities: (..., V).
        uniform: (...) in [0, 1).
    """
    cumulated = probabilities.double().cumsum(-1)
    wanted = uniform.double().unsqueeze(-1) * cumulated[..., -1:]  # below the total, so the token has probability > 0
    return torch.searchsorted(cumulated, wanted, right=True).squeeze(-1)
