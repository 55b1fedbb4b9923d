"""Mixture of experts: several MLPs, of which each token is processed by a few.

    y = shared(x) + sum_e g_e expert_e(x)        over the chosen experts e

`nn/router.py` chooses them and computes their gates g. The weights of all experts are stacked into
tensors of three dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.mixer import INIT_STD, Branch
from genmodels.nn.router import Router

if TYPE_CHECKING:
    from genmodels.nn.layers import MLP
    from genmodels.nn.transformer import TransformerConfig


@dataclass(frozen=True)
class ExpertsConfig:
    """Experts in place of the MLP of every block."""

    count: int = 0
    """E, experts of a block. 0: a dense MLP."""
    top_k: int = 2
    """k, experts that process a token; if experts choose, on average."""
    hidden: int | None = None
    """Inner width of an expert. None: that of the dense MLP divided by top_k + shared, rounded up to
    a multiple of 8, so that a token costs as much."""
    shared: int = 0
    """Number of further experts that process every token. They are computed as one MLP."""
    choice: Literal["tokens", "experts"] = "tokens"
    """tokens: each token chooses k experts. experts: each expert chooses T k / E of the T tokens of
    an image (arXiv 2202.09368), which balances by itself, but needs all tokens at once."""
    gate: Literal["softmax", "sigmoid"] = "softmax"
    """Scores of the experts. Those of a token's chosen experts are divided by their sum if k > 1."""
    scale: float = 1.0
    """Factor on the gates."""
    balance: Literal["bias", "loss", "none"] = "bias"
    """How tokens are spread evenly. bias: one per expert, added to its scores for the choice only
    (arXiv 2408.15664). loss: an auxiliary loss (arXiv 2101.03961), for the tokens of each image."""
    rate: float = 1e-3
    """Change of the bias in a training step."""
    weight: float = 0.01
    """Weight of the auxiliary loss of a block."""

    def __post_init__(self) -> None:
        if self.count < 0 or self.count == 1:
            raise ValueError(f"experts: count must be at least 2 (or 0 for a dense MLP), got {self.count}")
        if self.count and not 1 <= self.top_k <= self.count:
            raise ValueError(f"experts: top_k must be 1 to count = {self.count}, got {self.top_k}")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"experts: hidden must be at least 1, got {self.hidden}")
        if self.shared < 0:
            raise ValueError(f"experts: shared must not be negative, got {self.shared}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"experts: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("scale", "rate", "weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"experts: {name} must be above 0, got {getattr(self, name)}")
        defaults = {field.name: field.default for field in fields(ExpertsConfig)}
        for name in self.unused_fields:
            if (value := getattr(self, name)) != defaults[name]:
                why = f"choice {self.choice!r} and balance {self.balance!r}" if self.count else "a dense MLP (count 0)"
                raise ValueError(f"experts: {name} has no effect with {why}, got {value!r}: leave it out")

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """Fields without effect, which are not recorded."""
        if not self.count:
            return tuple(field.name for field in fields(self) if field.name != "count")
        if self.choice == "experts":
            return ("balance", "rate", "weight")
        return {"bias": ("weight",), "loss": ("rate",), "none": ("rate", "weight")}[self.balance]

    def balances_by(self, how: str) -> bool:
        """Whether tokens choose, and are spread evenly in this way."""
        return self.choice == "tokens" and self.balance == how

    def inner(self, dense: int) -> int:
        """Inner width of an expert that replaces an MLP of inner width `dense`."""
        return self.hidden or 8 * math.ceil(dense / (self.top_k + self.shared) / 8)


CHOICES: dict[str, tuple[str, ...]] = {
    "choice": ("tokens", "experts"),
    "gate": ("softmax", "sigmoid"),
    "balance": ("bias", "loss", "none"),
}


class Experts(Branch):
    """Mixture of experts: (N, T, D) -> (N, T, D).

    Args:
        config: of the transformer.
        kind: kind of MLP of each expert.
        causal: whether a token must not depend on later ones.

    Raises:
        ValueError: if experts choose in a causal transformer.
    """

    def __init__(self, config: TransformerConfig, kind: type[MLP], causal: bool):
        super().__init__()
        c, width = config.experts, config.width
        if causal and c.choice == "experts":
            raise ValueError(
                "experts: choice 'experts' compares all tokens of an image, and in a causal transformer none may "
                "depend on later ones: use choice 'tokens'"
            )
        hidden = c.inner(config.inner)
        self.kind = kind
        self.router = Router(width, c)
        self.up = nn.Parameter(torch.zeros(c.count, kind.factor * hidden, width))
        self.down = nn.Parameter(torch.zeros(c.count, width, hidden))
        self.up_bias = nn.Parameter(torch.zeros(c.count, kind.factor * hidden)) if config.bias else None
        self.down_bias = nn.Parameter(torch.zeros(c.count, width)) if config.bias else None
        self.shared = kind(width, c.shared * hidden, config.bias) if c.shared else None

    def residual(self) -> Iterable[Tensor]:
        return (self.down,)

    def muon(self) -> Iterable[Tensor]:
        return self.up, self.down

    def no_decay(self) -> Iterable[Tensor]:
        return [bias for bias in (self.up_bias, self.down_bias) if bias is not None]

    def initialise(self) -> None:
        nn.init.normal_(self.up, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        gates, chosen = (each.flatten(0, 1).T for each in self.router(x))  # (E, N T)
        tokens = x.flatten(0, 1)  # (N T, D)
        # A trace (torch.export) cannot depend on the choices.
        mixed = self._all(tokens, gates * chosen) if torch.compiler.is_exporting() else self._few(tokens, gates, chosen)
        mixed = mixed.view(x.shape)
        return mixed if self.shared is None else mixed + self.shared(x)

    def _few(self, tokens: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """Compute the chosen experts only: tokens are sorted by expert, one run for each."""
        rows = chosen.nonzero()[:, 1]  # (R,), sorted by expert
        runs = tokens.index_select(0, rows).split(chosen.sum(1).tolist())
        # Not self.up[e]: the gradient of a slice has the size of the whole.
        y = torch.cat([self._expert(run, *weights) for run, weights in zip(runs, self._weights(), strict=True)])
        y = y * gates[chosen].unsqueeze(1).to(y.dtype)  # (R, D)
        return y.new_zeros(tokens.shape).index_add(0, rows, y)

    def _all(self, tokens: Tensor, gates: Tensor) -> Tensor:
        """Compute every expert on all tokens, with gates that are 0 where it was not chosen."""
        each = [self._expert(tokens, *weights) for weights in self._weights()]
        return sum(gate.unsqueeze(1).to(y.dtype) * y for gate, y in zip(gates, each, strict=True))

    def _weights(self) -> Iterable[Sequence[Any]]:
        """The weights and biases of one expert after another."""
        stacks = (self.up, self.down, self.up_bias, self.down_bias)
        count = len(self.up)
        return zip(*((None,) * count if stack is None else stack.unbind() for stack in stacks), strict=True)

    def _expert(
        self, x: Tensor, up: Tensor, down: Tensor, up_bias: Tensor | None = None, down_bias: Tensor | None = None
    ) -> Tensor:
        return F.linear(self.kind.activate(F.linear(x, up, up_bias)), down, down_bias)


def active_parameters(model: nn.Module) -> int:
    """Return the number of parameters of `model` that process a token: of E experts, k count."""
    count = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, Experts):
            c = module.router.config
            own = sum(p.numel() for p in module.parameters(recurse=False))
            count -= own * (c.count - c.top_k) // c.count
    return count
