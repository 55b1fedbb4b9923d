"""The norms and MLPs of a transformer block, which work on each token alone.

To add a kind of norm or MLP, write a class (derived from `MLP`) and add one entry to `NORMS` or
`MLPS`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.distributed import with_summed_gradient
from genmodels.nn.experts import Experts
from genmodels.nn.mixer import Branch, Layers

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from genmodels.nn.transformer import TransformerConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.group: ProcessGroup | None = None
        """Processes of which each normalises a part of the vectors (heads); None: this one alone."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.group is None else with_summed_gradient(self.weight, self.group)
        return F.rms_norm(x.float(), weight.shape, weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) over the last axis, in float32, without a gain."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class AffineLayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


NORMS: dict[str, type[RMSNorm] | type[LayerNorm] | type[AffineLayerNorm]] = {
    "rms": RMSNorm,
    "layer": LayerNorm,
    "affine": AffineLayerNorm,
}
"""Each kind of norm by its name in `TransformerConfig.norm`."""


def make_norm(config: TransformerConfig) -> nn.Module:
    """The norm before each branch of a transformer."""
    return NORMS[config.norm](config.width, config.norm_eps)


class MLP(Branch):
    """Linear layers with a nonlinearity between them: (..., D) -> (..., D).

    Args:
        width: D.
        hidden: inner width.
        bias: whether the linear layers have biases.
    """

    @abstractmethod
    def __init__(self, width: int, hidden: int, bias: bool = False):
        super().__init__()

    factor: ClassVar[int] = 1
    """Width of the first layer's outputs, as a multiple of `hidden`."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""

    @staticmethod
    @abstractmethod
    def activate(x: Tensor) -> Tensor:
        """The nonlinearity: (..., factor * hidden) -> (..., hidden)."""

    @staticmethod
    @abstractmethod
    def default_hidden(width: int) -> int:
        """The inner width where the config gives none."""


class SwiGLU(MLP):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202). Gate and up are one matrix."""

    factor: ClassVar[int] = 2

    def __init__(self, width: int, hidden: int, bias: bool = False):
        super().__init__(width, hidden, bias)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activate(self.gate_up(x)))

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)  # (..., hidden)
        return F.silu(gate) * up

    def residual(self) -> Iterable[Tensor]:
        return (self.down.weight,)

    def muon(self) -> Iterable[Tensor]:
        return self.gate_up.weight, self.down.weight

    def divisible(self) -> Layers:
        hidden = self.down.in_features
        return Layers({"gate_up": (hidden, hidden)}, ("down",), hidden, "hidden")

    @staticmethod
    def default_hidden(width: int) -> int:
        """8/3 of the width, rounded up to a multiple of 64: as many weights as GELU's."""
        return 64 * math.ceil(width * 8 / 3 / 64)


class GELU(MLP):
    """down(gelu(up(x))), with the tanh approximation of GELU (arXiv 1606.08415)."""

    def __init__(self, width: int, hidden: int, bias: bool = False):
        super().__init__(width, hidden, bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activate(self.up(x)))

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def residual(self) -> Iterable[Tensor]:
        return (self.down.weight,)

    def muon(self) -> Iterable[Tensor]:
        return self.up.weight, self.down.weight

    def divisible(self) -> Layers:
        hidden = self.down.in_features
        return Layers({"up": (hidden,)}, ("down",), hidden, "hidden")

    @staticmethod
    def default_hidden(width: int) -> int:
        """4 times the width."""
        return 4 * width


class ExactGELU(GELU):
    """down(gelu(up(x))), without the approximation."""

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return F.gelu(x)


class QuickGELU(GELU):
    """down(x sigmoid(1.702 x)) of x = up(x): the approximation of GELU that CLIP uses."""

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


MLPS: dict[str, type[MLP]] = {"swiglu": SwiGLU, "gelu": GELU, "exact_gelu": ExactGELU, "quick_gelu": QuickGELU}
"""Each kind of MLP by its name in `TransformerConfig.mlp`."""


def make_mlp(config: TransformerConfig, causal: bool) -> Branch:
    """The MLP of a block, or the experts in its place."""
    kind = MLPS[config.mlp]
    if config.experts.count:
        return Experts(config, kind, causal)
    return kind(config.width, config.inner, config.bias)
