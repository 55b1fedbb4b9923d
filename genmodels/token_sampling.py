"""From scores to a choice: temperature, top-k, top-p and min-p, and a draw that uses one uniform number."""

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
    """Probabilities (..., V) of choices with scores (..., V), the unlikely ones left out; float32.

    In this order, each on what the ones before left: scores are divided by the temperature; the k best are kept; of
    these the fewest that hold a probability of p together (nucleus, arXiv 1904.09751); and those at least min_p as
    likely as the best (arXiv 2407.01082). Choices as good as the k-th are kept too.

    Args:
        logits: scores.
        temperature: above 0; 1 leaves the distribution as it is, less makes it sharper.
        top_k: at least 1; None: all.
        top_p: in (0, 1].
        min_p: in [0, 1].

    Raises:
        ValueError: for scores that are not finite.
    """
    logits = logits.float()
    if not logits.isfinite().all():
        raise ValueError("the model's scores are not finite numbers: it is broken, or guidance is too large")
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the difference cannot overflow upwards
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # what the better ones hold together
        beyond = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, places, before >= top_p)
        logits = logits.masked_fill(beyond, -torch.inf)
    probabilities = logits.softmax(-1)
    if min_p > 0:
        unlikely = probabilities < min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(unlikely, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The choice (...) where the cumulated `probabilities` (..., V) exceed `uniform` (...) in [0, 1).

    One number decides, whatever else is drawn: image i's choices depend on its own stream alone.
    """
    cumulated = probabilities.double().cumsum(-1)
    wanted = uniform.double().unsqueeze(-1) * cumulated[..., -1:]  # below the total, so the choice has probability > 0
    return torch.searchsorted(cumulated, wanted, right=True).squeeze(-1)
