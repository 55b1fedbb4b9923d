"""Routing of tokens to experts, and how it is kept balanced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.distributed import all_reduce_sum
from genmodels.nn.mixer import INIT_STD, Branch
from genmodels.nn.recompute import is_recomputation

if TYPE_CHECKING:
    from genmodels.nn.experts import ExpertsConfig


TINY = 1e-20
"""Added to sums of gates."""


class Routes(NamedTuple):
    """Which experts process a token, and the weights of their outputs.

    Attributes:
        gates: (N, T, E), float32 or float64. Read only where `chosen` is True.
        chosen: bool (N, T, E).
    """

    gates: Tensor
    chosen: Tensor


class Router(Branch):
    """Tokens (N, T, D) -> `Routes`.

    Everything is computed in float32, also under autocast: half precision changes choices.

    In training, `forward` counts the tokens of every expert, `collect` adds these counts to a buffer,
    which the training loop can restore if the loss was not finite, and `commit` sums them over
    processes. Neither the second call of a recomputed block nor evaluation counts.

    Args:
        width: D.
        config: of the experts.

    Attributes:
        bias: b (E,), added to the scores for the choice only. None without `balance` "bias".
        load: (E,), tokens of each expert in the last training step, divided by their mean.
        dropped: scalar, fraction of the tokens of that step that no expert chose. None where tokens
            choose.
    """

    bias: Tensor | None
    load: Tensor
    dropped: Tensor | None
    counts: Tensor

    def __init__(self, width: int, config: ExpertsConfig):
        super().__init__()
        self.config = config
        count = config.count
        by_experts = config.choice == "experts"
        self.weight = nn.Parameter(torch.zeros(count, width))
        self.register_buffer("bias", torch.zeros(count) if config.balances_by("bias") else None)
        self.register_buffer("load", torch.ones(count))
        self.register_buffer("dropped", torch.zeros(1) if by_experts else None)
        # Tokens of each expert, tokens that no expert chose, and all tokens.
        self.register_buffer("counts", torch.zeros(count + 2), persistent=False)
        self._seen: list[tuple[list[int], Tensor | None, int]] = []

    def residual(self) -> Iterable[Tensor]:
        return ()

    def no_decay(self) -> Iterable[Tensor]:
        return (self.weight,)

    def initialise(self) -> None:
        nn.init.normal_(self.weight, std=INIT_STD)

    def forward(self, x: Tensor) -> Routes:
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            logits = F.linear(x.to(dtype), self.weight.to(dtype))
            scores = logits.sigmoid() if self.config.gate == "sigmoid" else logits.softmax(-1)  # (N, T, E)
            routes = self._by_experts(scores) if self.config.choice == "experts" else self._by_tokens(scores)
            if self.training and torch.is_grad_enabled():
                self._observe(scores, routes.chosen)
        return routes

    def _by_tokens(self, scores: Tensor) -> Routes:
        """Every token chooses the k experts with the highest scores."""
        k = self.config.top_k
        ranked = scores if self.bias is None else scores + self.bias.to(scores.dtype)
        chosen = _among(ranked.detach().topk(k, dim=-1, sorted=False).indices, scores, dim=-1)
        gates = scores * chosen
        if k > 1:
            gates = gates / (gates.sum(-1, keepdim=True) + TINY)
        return Routes(self.config.scale * gates, chosen)

    def _by_experts(self, scores: Tensor) -> Routes:
        """Every expert chooses the T k / E tokens of an image with the highest scores."""
        tokens = scores.shape[1]
        each = max(1, round(tokens * self.config.top_k / self.config.count))
        chosen = _among(scores.detach().topk(each, dim=1, sorted=False).indices, scores, dim=1)
        return Routes(self.config.scale * scores, chosen)

    def _observe(self, scores: Tensor, chosen: Tensor) -> None:
        """Count the tokens of every expert, and keep the auxiliary loss, if there is one."""
        c, loss = self.config, None
        if c.balances_by("loss"):
            fractions = chosen.to(scores.dtype).mean(1) * (c.count / c.top_k)  # f (N, E)
            probabilities = (scores / scores.sum(-1, keepdim=True)).mean(1)  # P (N, E)
            loss = (fractions * probabilities).sum()
        keep = self._keep
        if torch.compiler.is_compiling():
            # Otherwise the recomputed block, which keeps nothing, is compiled without the loss. Not as a decorator,
            # because that imports torch._dynamo, which takes seconds.
            keep = torch.compiler.disable(keep)
        keep(chosen, loss)

    def _keep(self, chosen: Tensor, loss: Tensor | None) -> None:
        if is_recomputation():
            return
        unchosen = 0 if self.dropped is None else int((~chosen.any(-1)).sum())
        counts = [*chosen.sum((0, 1)).tolist(), unchosen, chosen[..., 0].numel()]
        self._seen.append((counts, loss, len(chosen)))  # not in the buffer, which jvp must not change

    def collect(self) -> Tensor | None:
        """Add what `forward` counted to the buffer, and return the auxiliary loss since the last
        call: the mean over its images of

            E sum_e f_e P_e    (arXiv 2101.03961, equation 4, for the tokens of each image)

        with f_e the fraction of choices that fall on expert e, and P_e the mean of its scores,
        divided by their sum. It is 1 where both are uniform. None: there is none.
        """
        seen, self._seen = self._seen, []
        for counts, _, _ in seen:
            self.counts += self.counts.new_tensor(counts)
        losses = [loss for _, loss, _ in seen if loss is not None]
        return torch.stack(losses).sum() / sum(rows for _, _, rows in seen) if losses else None

    def update(self, counts: Tensor) -> None:
        """Update load, bias and dropped fraction from the `counts` of a step, of all processes."""
        self.counts.zero_()
        if counts[-1] == 0:  # the router was not used
            return
        tokens = counts[: self.config.count]
        self.load.copy_(tokens / tokens.mean())
        if self.bias is not None:
            self.bias += self.config.rate * (1 - self.load).sign()
        if self.dropped is not None:
            self.dropped.copy_(counts[-2] / counts[-1])


def _among(indices: Tensor, scores: Tensor, dim: int) -> Tensor:
    """Return where `indices` point along axis `dim` of `scores`: bool, in the shape of `scores`."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(dim, indices, True)


def routers_of(model: nn.Module) -> list[Router]:
    """Return the routers of `model`, in the order of its blocks."""
    return [module for module in model.modules() if isinstance(module, Router)]


@torch.no_grad()
def commit(model: nn.Module) -> None:
    """Update the routers of `model` after an optimiser step. Every process must call this."""
    routers = routers_of(model)
    if not routers:
        return
    for router in routers:
        router.collect()
    counts = torch.cat([router.counts for router in routers])
    all_reduce_sum(counts)
    for router, own in zip(routers, counts.split([len(router.counts) for router in routers]), strict=True):
        router.update(own)


def with_balance(model: nn.Module, loss: Tensor, metrics: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the auxiliary losses of the routers of `model` to its loss, and their statistics to its
    metrics.

    | metric                  | of the last step, before this one                                    |
    |-------------------------|----------------------------------------------------------------------|
    | experts/load_min        | smallest load of an expert in all blocks; 1 is balanced              |
    | experts/load_max        | largest load of an expert in all blocks                              |
    | experts/max_violation   | largest load of a block - 1 (MaxVio), mean over the blocks           |
    | experts/dropped         | fraction of tokens that no expert of a block chose, mean over blocks |
    | experts/balance_loss    | auxiliary loss of a block in this step, mean over the blocks         |

    Statistics are those of the whole batch, over all processes, which are known after a step.

    Args:
        model: the model. Routers that are not trained, as in a frozen text encoder, are left out.
        loss: scalar.
        metrics: scalars by name.
    """
    routers = [router for router in routers_of(model) if router.training]
    losses = {router: term for router in routers if (term := router.collect()) is not None}
    loads = [router.load for router in routers if router.dropped is None]
    dropped = [router.dropped for router in routers if router.dropped is not None]
    if loads:
        most = torch.stack([load.max() for load in loads])
        least = torch.stack([load.min() for load in loads])
        metrics = metrics | {
            "experts/load_min": least.min(),
            "experts/load_max": most.max(),
            "experts/max_violation": (most - 1).mean(),
        }
    if dropped:
        metrics = metrics | {"experts/dropped": torch.cat(dropped).mean()}
    if losses:
        loss = loss + sum(router.config.weight * term for router, term in losses.items())
        metrics = metrics | {"experts/balance_loss": torch.stack([*losses.values()]).mean().detach()}
    return loss, metrics
