"""A block of a transformer: a mixer and an MLP on a residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.attention import Attention
from genmodels.nn.layers import make_mlp, make_norm
from genmodels.nn.mamba import Mamba, Mamba2
from genmodels.nn.mixer import Mixer, State
from genmodels.nn.places import Places

if TYPE_CHECKING:
    from genmodels.nn.transformer import TransformerConfig

MIXERS: dict[str, type[Mixer]] = {"attention": Attention, "mamba": Mamba, "mamba2": Mamba2}
"""Each mixer by its name in `TransformerConfig.mixers` and in its block's weights."""


class Modulation(NamedTuple):
    """adaLN-zero (arXiv 2212.09748) of a branch: x + gate * branch(norm(x) * (1 + scale) + shift).

    Each is (N, 1, D), or (N, T, D) where tokens differ.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor


BlockModulation = tuple[Modulation, Modulation]
"""Modulation of the mixer and of the MLP."""


class Block(nn.Module):
    """A mixer, then an MLP if there is one, each normed, optionally modulated, and added to x.

    Args:
        config: of the transformer.
        kind: name of the mixer in `MIXERS`. Its weights are called `<kind>.*` and those of its norm
            `<kind>_norm.*`.
        causal: whether tokens depend on earlier ones only.
        index: of the block, counted from 0.
    """

    def __init__(self, config: TransformerConfig, kind: str, causal: bool, index: int):
        super().__init__()
        self.dropout = config.dropout
        self.kind = kind
        self.add_module(f"{kind}_norm", make_norm(config))
        self.add_module(kind, MIXERS[kind](config, causal, index))
        self.mlp_norm = make_norm(config) if config.inner else None
        self.mlp = make_mlp(config, causal) if config.inner else None

    @property
    def mixer(self) -> Mixer:
        """The mixer."""
        return cast(Mixer, self._modules[self.kind])

    def forward(
        self, x: Tensor, places: Places, state: State | None = None, modulation: BlockModulation | None = None
    ) -> Tensor:
        first, second = modulation or (None, None)
        mixer, norm = getattr(self, self.kind), getattr(self, f"{self.kind}_norm")
        x = self._add(x, mixer(_modulated(norm(x), first), places, state), first)
        if self.mlp is not None and self.mlp_norm is not None:
            x = self._add(x, self.mlp(_modulated(self.mlp_norm(x), second)), second)
        return x

    def _add(self, x: Tensor, branch: Tensor, modulation: Modulation | None) -> Tensor:
        branch = F.dropout(branch, self.dropout, self.training)
        return x + (branch if modulation is None else modulation.gate * branch)


def _modulated(x: Tensor, modulation: Modulation | None) -> Tensor:
    return x if modulation is None else x * (1 + modulation.scale) + modulation.shift
