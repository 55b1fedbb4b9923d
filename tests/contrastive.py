"""Contrastive model of images and their attributes, and a script that trains it when launched."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tiny import faces, recipe
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from genmodels.base import Model
from genmodels.conditions import ConditionConfig
from genmodels.training.fit import fit
from genmodels.types import Batch


@dataclass(frozen=True)
class ContrastiveConfig:
    size: int = 8
    width: int = 8
    condition: ConditionConfig = ConditionConfig(attributes=("Male", "Smiling"))


class Contrastive(Model):
    """Model that embeds images and their attributes close to each other (InfoNCE)."""

    family = "contrastive"
    Config = ContrastiveConfig
    whole_batch = True

    def __init__(self, config: ContrastiveConfig):
        super().__init__(config)
        self.image = nn.Linear(3 * config.size**2, config.width)
        self.attributes = nn.Linear(len(config.condition.attributes), config.width)
        self.log_scale = nn.Parameter(torch.tensor(1.0))

    def scores(self, batch: Batch) -> Tensor:
        """Compute the similarity of all images with all rows of attributes, over all processes."""
        pair = (self.image(batch.images.flatten(1)), self.attributes(batch.condition.attributes))
        several = dist.is_initialized() and self.training
        first, second = (
            torch.cat(all_gather(F.normalize(x, dim=1))) if several else F.normalize(x, dim=1) for x in pair
        )
        return self.log_scale.exp() * first @ second.T  # (N, N)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        scores = self.scores(batch)
        target = torch.arange(len(scores))
        loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
        return loss, {"scale": self.log_scale.detach().exp()}

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        best = [self.scores(b).amax(1) == self.scores(b).diagonal() for b in batches]
        return {"recall": torch.cat(best).double().mean().item()}


def contrastive() -> Contrastive:
    torch.manual_seed(0)
    return Contrastive(ContrastiveConfig())


if __name__ == "__main__":
    fit(contrastive(), faces(), recipe(Path(sys.argv[1])))
