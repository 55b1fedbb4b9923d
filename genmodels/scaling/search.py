"""Search over the noise of a sampler by a verifier (arXiv 2501.09732)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from genmodels.types import Noise


class MixedNoise(Noise):
    """Linear combinations of independent noises, with weights of unit norm for each image.

    Normal numbers are then standard normal. Uniform numbers are mixed as the normal numbers that
    they are quantiles of.

    Args:
        parts: K independent noises of N streams.
        weights: (N, K), rows of unit norm.
    """

    def __init__(self, parts: Sequence[Noise], weights: Tensor):
        super().__init__(parts[0].seeds, parts[0].device)
        self._parts = list(parts)
        self._weights = weights

    def normal(self, *shape: int) -> Tensor:
        drawn = torch.stack([part.normal(*shape) for part in self._parts], dim=1)  # (N, K, *shape)
        weights = self._weights.to(drawn.device, drawn.dtype)
        return (drawn * weights.view(*weights.shape, *([1] * len(shape)))).sum(1)

    def uniform(self, *shape: int) -> Tensor:
        # Double precision: single numbers close to 0 or 1 have no normal quantile in single precision.
        return torch.special.ndtr(self.normal(*shape).double()).clamp(max=1 - 2**-24).float()


def search(
    draw: Callable[[Noise], np.ndarray],
    score: Callable[[np.ndarray], np.ndarray],
    noise: Callable[[int], Noise],
    rounds: int,
    neighbours: int,
    step: float = 0.3,
) -> np.ndarray:
    """Zero-order search: start at a noise and move to the best of its neighbours, several times.

    A neighbour of z is sqrt(1 - s^2) z + s e with new noise e. The pivot stays where no neighbour is
    better. The sampler is evaluated 1 + rounds x neighbours times per image.

    Args:
        draw: samples images uint8 (N, H, W, 3) from noise of N streams.
        score: returns the verifier's scores (N,) of images; the highest is kept.
        noise: returns noise number k, independent of the others.
        rounds: number of moves.
        neighbours: number of neighbours that are compared in each.
        step: s, in (0, 1].

    Returns:
        The best image of each stream, uint8 (N, H, W, 3).
    """
    count = 1 + rounds * neighbours
    first = noise(0)
    weights = torch.zeros(len(first), count)
    weights[:, 0] = 1
    kept = draw(_mixed(noise, weights))
    best = np.array(score(kept))
    for move in range(rounds):
        pivot = weights.clone()
        for neighbour in range(neighbours):
            tried = (1 - step**2) ** 0.5 * pivot
            tried[:, 1 + move * neighbours + neighbour] = step
            images = draw(_mixed(noise, tried))
            scores = np.array(score(images))
            better = scores > best
            kept[better], best[better] = images[better], scores[better]
            weights[torch.from_numpy(better)] = tried[torch.from_numpy(better)]
    return kept


def _mixed(noise: Callable[[int], Noise], weights: Tensor) -> MixedNoise:
    """Return the mixture of the noises that have a weight for any image."""
    used = [k for k in range(weights.shape[1]) if weights[:, k].any()]
    return MixedNoise([noise(k) for k in used], weights[:, used])
