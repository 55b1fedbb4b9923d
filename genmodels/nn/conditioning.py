"""What a sample is asked to be, as a vector; and what of it is hidden in training, so that it can be left open."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmodels.nn.transformer import init_weights
from genmodels.types import Condition, Noise


class ConditionEmbedding(nn.Module):
    """Condition -> (N, D): the sum of a vector for each known attribute, with its sign, and of the label's.

    What is unknown adds nothing, so that dropping an attribute is setting it to 0, and a model without condition gets
    zeros.

    Args:
        attributes: K, how many attributes there are; may be 0.
        classes: how many labels there are; may be 0.
        width: D.
    """

    def __init__(self, attributes: int, classes: int, width: int):
        super().__init__()
        self.width = width
        self.attributes = nn.Linear(attributes, width, bias=False) if attributes else None
        self.labels = nn.Embedding(classes, width) if classes else None
        init_weights(self, depth=1)  # as small as the embeddings it is added to

    def forward(self, condition: Condition, n: int, device: torch.device) -> Tensor:
        """(N, D), float32.

        Raises:
            ValueError: for a condition that the model was not built for.
        """
        found = torch.zeros(n, self.width, device=device)
        if condition.attributes is not None and condition.attributes.shape[1]:
            wanted = self.attributes.in_features if self.attributes is not None else 0
            if condition.attributes.shape != (n, wanted):
                raise ValueError(
                    f"the condition has attributes of shape {tuple(condition.attributes.shape)}, this model takes "
                    f"({n}, {wanted})"
                )
            assert self.attributes is not None
            found = found + self.attributes(condition.attributes.float()).float()
        if condition.labels is not None:
            if self.labels is None:
                raise ValueError("the condition has labels, this model was built without classes")
            if condition.labels.shape != (n,):
                raise ValueError(f"the condition has labels of shape {tuple(condition.labels.shape)}, not ({n},)")
            if condition.labels.max() >= self.labels.num_embeddings:
                raise ValueError(
                    f"label {condition.labels.max().item()} is not one of the {self.labels.num_embeddings} classes"
                )
            known = (condition.labels >= 0).unsqueeze(1)  # (N, 1)
            found = found + known * self.labels(condition.labels.clamp_min(0)).float()
        return found


def drop_condition(condition: Condition, noise: Noise, everything: float, each: float) -> Condition:
    """`condition` with some of it made unknown, as training for classifier-free guidance needs (arXiv 2207.12598).

    Always draws the same number of numbers from `noise`, whatever the shares are.

    Args:
        condition: of N images.
        noise: N streams.
        everything: share of the images of which nothing is left.
        each: share of the others in which every attribute is left or dropped by the toss of a coin, so that any
            selection of attributes can be asked for.
    """
    chance = noise.uniform(2)  # (N, 2)
    kept = chance[:, 0] >= everything  # (N,)
    attributes, labels = condition.attributes, condition.labels
    if attributes is not None:
        coins = noise.uniform(attributes.shape[1]) < 0.5  # (N, K)
        attributes = attributes * (kept.unsqueeze(1) & (coins | (chance[:, 1:] >= each)))
    if labels is not None:
        labels = torch.where(kept, labels, -1)
    return Condition(attributes, labels)
