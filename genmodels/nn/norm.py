"""Normalisation over the last axis, computed in float32 for every dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from genmodels.nn.transformer import TransformerConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps), without a gain."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def make_norm(config: TransformerConfig) -> nn.Module:
    """The norm before each branch of a transformer."""
    return (RMSNorm if config.norm == "rms" else LayerNorm)(config.width, config.norm_eps)
