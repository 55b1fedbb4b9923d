"""Family for tests: a transformer that maps noise and a sentence to an image in one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.base import Generator
from genmodels.conditions import Condition, ConditionConfig, TextConfig
from genmodels.nn.conditioning import Conditioner, drop_condition
from genmodels.nn.cross_attention import CrossAttentionStack
from genmodels.nn.transformer import Transformer, TransformerConfig
from genmodels.types import Batch, Noise


@dataclass(frozen=True)
class TokenFamilyConfig:
    size: int = 8
    grid: int = 2
    condition: ConditionConfig = ConditionConfig(text=TextConfig(vocabulary=4, length=3))
    transformer: TransformerConfig = TransformerConfig(width=32, depth=2, heads=2)


@dataclass(frozen=True)
class TokenFamilyOptions:
    spread: float = 0.02


class TokenFamily(Generator):
    family = "tokens"
    Config = TokenFamilyConfig
    Options = TokenFamilyOptions

    def __init__(self, config: TokenFamilyConfig | None = None):
        c = config or TokenFamilyConfig()
        super().__init__(c)
        self.condition = Conditioner(c.condition, c.transformer.width)
        self.queries = nn.Parameter(torch.randn(c.grid**2, c.transformer.width))
        self.cross_attention = CrossAttentionStack(c.transformer)
        self.transformer = Transformer(c.transformer, causal=False)
        self.head = nn.Linear(c.transformer.width, 3)

    def mean(self, condition: Condition, n: int) -> Tensor:
        embedded = self.condition(condition, n, self.device)
        x = self.queries + embedded.pooled.unsqueeze(1)  # (N, T, D)
        x = self.head(self.transformer(x, after=self.cross_attention(embedded)))  # (N, T, 3)
        x = x.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))
        return F.interpolate(x, size=self.config.size)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        condition = drop_condition(batch.condition, batch.noise, self.config.condition)
        error = (self.mean(condition, len(batch.images)) - batch.images).square().mean()
        return error, {"mse": error.detach()}

    def sample(self, noise: Noise, condition: Condition, options: TokenFamilyOptions) -> Tensor:
        mean = self.mean(condition, len(noise))
        return (mean + options.spread * noise.normal(*mean.shape[1:])).clamp(-1, 1)
