"""A feature extractor that is trained on one's own images, without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.distributed import gather_with_gradients
from genmodels.evaluation.extractors import Network
from genmodels.evaluation.facenet import WIDTHS, FaceNet, on_pixels
from genmodels.evaluation.views import DAMAGES, random_view
from genmodels.hashing import weights_hash
from genmodels.modes import full_precision
from genmodels.saving import Derived
from genmodels.types import Batch, Noise

SMALLEST = 32
"""Smallest side of the images in pixels: the network halves it four times."""


@dataclass(frozen=True)
class ExtractorConfig:
    """Loss of an extractor. Its network is that of the embedded one."""

    size: Derived[int] = 64
    """Side of the images in pixels, from --size."""
    temperature: float = 0.2
    """Temperature of the contrastive loss."""
    damage_weight: float = 8.0
    """Weight of the squared error of the predicted damage."""

    def __post_init__(self) -> None:
        if self.size < SMALLEST:
            raise ValueError(f"size must be at least {SMALLEST} for an extractor, got {self.size}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.damage_weight < 0:
            raise ValueError(f"damage_weight must be at least 0, got {self.damage_weight}")


class LearnedExtractor(Model):
    """Feature extractor trained by self-supervision, for `--extractors own=RUN`.

    It learns two tasks: which of all views show the same image (SimCLR, arXiv 2002.05709), and how
    much of each kind of damage a view suffers from. Batch statistics are those of each process.
    """

    family = "extractor"
    Config = ExtractorConfig
    whole_batch = True
    least_images = 1_000

    def __init__(self, config: ExtractorConfig):
        super().__init__(config)
        self.net = FaceNet()
        self.normalise = nn.BatchNorm1d(sum(WIDTHS), affine=False)
        self.damages = nn.Linear(sum(WIDTHS), len(DAMAGES))
        self.project = nn.Sequential(
            nn.Linear(sum(WIDTHS[-2:]), 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64)
        )

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        with full_precision(batch.images.device), torch.no_grad():
            pairs = [random_view(batch.images, batch.noise) for _ in range(2)]
        views, seen = (torch.cat(part) for part in zip(*pairs, strict=True))  # (2N, 3, S, S), (2N, 7)
        features = self.normalise(self.net.raw(views).float())  # (2N, D)
        damage = F.mse_loss(self.damages(features).float(), seen)
        z = F.normalize(self.project(features[:, -sum(WIDTHS[-2:]) :]).float(), dim=1)  # (2N, 64)
        first, second = z.chunk(2)
        if self.training:
            first, second = gather_with_gradients(first), gather_with_gradients(second)
        z = torch.cat([first, second])
        similar = (z @ z.T / self.config.temperature).fill_diagonal_(-math.inf)
        same = F.cross_entropy(similar, torch.arange(len(z), device=z.device).roll(len(first)))
        loss = same + self.config.damage_weight * damage
        return loss, {"same_image": same.detach(), "damage": damage.detach()}

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Set the statistics of the network's normalisations, and scale its features by their
        spread over random views."""
        norms = [module for module in self.net.modules() if isinstance(module, nn.BatchNorm2d)]
        views, seen = [], 0
        for part in images:
            noise = Noise.for_images(0, range(seen, seen + len(part)), part.device)
            views.append(random_view(part, noise)[0])
            seen += len(part)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        self.net.train()
        for part in views:
            self.net.raw(part)
        self.net.eval()
        self.net.standardise(torch.cat([self.net.raw(part) for part in views]))
        for norm in norms:
            norm.momentum = 0.1
        self.net.train(self.training)


def load_learned(run: str, device: torch.device | str = "cpu") -> tuple[Network, str, str]:
    """Load the extractor in a run folder, or on the Hub.

    Returns:
        A function that maps uint8 (N, 3, H, W) to float (N, D), the hash of the weights, and how it
        resizes images.

    Raises:
        ValueError: if there is no complete extractor.
    """
    model = LearnedExtractor.from_pretrained(run)
    net = model.net.float().eval().requires_grad_(False)
    features, resize = on_pixels(net, model.config.size, device)
    return features, weights_hash(net.state_dict(), names=False), resize
