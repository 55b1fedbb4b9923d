"""Grouped head attention (arXiv 2305.14380): heads that are pulled into groups while they are trained.

Head h of attention adds W_o v to the residual stream, with v = W_v x an average over the tokens x
that match by x'^T W_q^T W_k x. The two matrices W_q^T W_k and W_o W_v, of D x D, are what a head
computes. Two heads are similar where both have a cosine near 1:

    s_ij = (cos(Q_i^T K_i, Q_j^T K_j) + cos(O_i V_i, O_j V_j)) / 2        -1 <= s_ij <= 1

k-means on the similarities divides the H heads into C groups. With c_g the centre of group g, the
constraint, which is added to the loss, pulls heads to the centre of their group, and groups apart:

    1 - mean_h s(h, c_g(h)) + mean_(g < g') s(c_g, c_g')^2

`genmodels.pruning` then keeps one head of each group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.distributed import whole
from genmodels.nn.attention import Attention

FORMED = 0.5
"""Smallest mean similarity of the heads of a group for which it counts as formed. Heads that are not
trained together have about 0, copies of one head have 1."""
ROUNDS = 10
"""Largest number of rounds of k-means."""
TINY = 1e-12
"""Added to squared norms."""


@dataclass(frozen=True)
class HeadGroupsConfig:
    """Groups of heads, of which one head each is kept by `genmodels prune`."""

    count: int = 0
    """C, groups of heads of each block: fewer than heads. 0: heads are not grouped."""
    weight: float = 1.0
    """Weight of the constraint in the loss."""

    def check(self, heads: int, key_heads: int, mixers: Sequence[str]) -> None:
        """Raises ValueError when the attention of a transformer cannot have these groups."""
        if not self.count:
            if self != HeadGroupsConfig():
                raise ValueError("head_groups: weight has no effect without count, the number of groups")
            return
        if not 1 <= self.count < heads:
            raise ValueError(f"head_groups: count must be 1 to heads - 1 = {heads - 1}, got {self.count}")
        if key_heads != heads:
            raise ValueError(
                f"head_groups: kv_heads {key_heads} already shares keys and values between heads: leave one of both out"
            )
        if "attention" not in mixers:
            raise ValueError(f"head_groups: none of the mixers {', '.join(mixers)} has heads to group")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"head_groups: weight must be above 0, got {self.weight}")


class Groups(NamedTuple):
    """The groups of the heads of an attention."""

    similarity: Tensor
    """s (H, H)."""
    member: Tensor
    """(H, C): 1 where a head belongs to a group, otherwise 0. Each group has at least one."""

    def heads(self) -> list[list[int]]:
        """Return the heads of each group."""
        return [column.nonzero()[:, 0].tolist() for column in self.member.T]

    def cohesion(self) -> float:
        """Return the mean similarity of two heads of a group: 1 where they are copies."""
        pairs = (self.member @ self.member.T).fill_diagonal_(0)
        return float((pairs * self.similarity.detach()).sum() / pairs.sum())

    def constraint(self) -> Tensor:
        """Return the term of the loss."""
        count = self.member.shape[1]
        to_sums = self.similarity @ self.member  # (H, C): similarity to the sum of the heads of a group
        between = self.member.T @ to_sums  # (C, C)
        norms = (between.diagonal() + TINY).sqrt()  # (C,): of these sums
        own = (to_sums / norms * self.member).sum(1)  # (H,): s(h, c_g(h))
        if count == 1:
            return 1 - own.mean()
        apart = (between / (norms * norms[:, None])).square().triu(diagonal=1)
        return 1 - own.mean() + apart.sum() / (count * (count - 1) / 2)


def groups_of(attention: Attention) -> Groups:
    """Return the groups of the heads of an attention that has groups."""
    similarity = similarities(attention)
    return Groups(similarity, k_means(similarity.detach(), attention.groups.count))


def similarities(attention: Attention) -> Tensor:
    """Return the similarities (H, H) of the heads of an attention, in float32 or higher. They depend on
    its weights only, so all processes and micro-batches agree."""
    d, qkv, out = attention.head_dim, whole(attention.qkv.weight), whole(attention.out.weight)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    with torch.autocast(qkv.device.type, enabled=False):
        q, k, v = qkv.to(dtype).unflatten(0, (-1, d)).split(attention.heads)  # (H, d, D) each
        o = out.to(dtype).unflatten(1, (-1, d)).movedim(1, 0).mT  # (H, d, D)
        return (_cosines(q, k) + _cosines(o, v)) / 2


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (H, H) of the matrices a_i^T b_i of a and b, (H, d, D), without computing the matrices:
    <a_i^T b_i, a_j^T b_j> = sum of (a_i a_j^T) * (b_i b_j^T)."""
    products = (torch.einsum("idx,jex->ijde", a, a) * torch.einsum("idx,jex->ijde", b, b)).sum((2, 3))
    norms = (products.diagonal() + TINY).sqrt()
    return products / (norms * norms[:, None])


@torch.no_grad()
def k_means(similarity: Tensor, count: int) -> Tensor:
    """Divide H heads into groups by k-means with cosines, from the heads that are least similar.

    Args:
        similarity: (H, H).
        count: C, number of groups.

    Returns:
        (H, C): 1 where a head belongs to a group, otherwise 0. Groups are in the order of their first
        heads, and none is empty.
    """
    first = [int(similarity.sum(1).argmax())]
    while len(first) < count:
        nearest = similarity[:, first].amax(1)
        nearest[first] = torch.inf
        first.append(int(nearest.argmin()))
    labels = similarity[:, first].argmax(1)
    labels[first] = torch.arange(count, device=labels.device)
    for _ in range(ROUNDS):
        member = F.one_hot(labels, count).to(similarity.dtype)
        sums = similarity @ member  # (H, C)
        new = (sums / ((member.T @ sums).diagonal() + TINY).sqrt()).argmax(1)
        if len(new.unique()) < count or torch.equal(new, labels):
            break
        labels = new
    order = sorted(range(count), key=lambda group: int((labels == group).nonzero()[0]))
    return F.one_hot(labels, count).to(similarity.dtype)[:, order]


def grouped(model: nn.Module) -> dict[str, Attention]:
    """Return every attention of `model` whose heads are grouped, by its name."""
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, Attention) and module.groups.count}


def with_groups(model: nn.Module, loss: Tensor, metrics: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the constraints of the head groups of `model` to its loss, and their statistics to its
    metrics.

    | metric           | mean over the blocks of                                         |
    |------------------|-----------------------------------------------------------------|
    | heads/cohesion   | the similarity of two heads of a group; 1 where they are copies |
    | heads/constraint | the constraint, which is weighted and added to the loss         |

    Args:
        model: the model. Attention that is not trained, as in a frozen text encoder, is left out.
        loss: scalar.
        metrics: scalars by name.
    """
    trained = [attention for attention in grouped(model).values() if attention.training]
    if not trained:
        return loss, metrics
    groups = [groups_of(attention) for attention in trained]
    terms = [each.constraint() for each in groups]
    loss = loss + sum(attention.groups.weight * term for attention, term in zip(trained, terms, strict=True))
    statistics = {
        "heads/cohesion": loss.new_tensor([each.cohesion() for each in groups]).mean(),
        "heads/constraint": torch.stack(terms).mean().detach(),
    }
    return loss, metrics | statistics
