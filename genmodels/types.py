"""Data that every part of the package exchanges: noise and batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from genmodels.conditions import Condition, check_condition

_MASK = (1 << 64) - 1


def mix_seed(*parts: int) -> int:
    """Combine integers into one 63-bit seed (the splitmix64 finaliser, applied to each in turn).

    Neighbouring (seed, step, index) triples give unrelated seeds.
    """
    return int(_mixed(*parts))


def mix_seeds(parts: Sequence[int], last: np.ndarray) -> list[int]:
    """Return `mix_seed(*parts, number)` of each number of `last`, computed together."""
    seeds: list[int] = _mixed(*parts, last.astype(np.uint64)).tolist()
    return seeds


def _mixed(*parts: Any) -> Any:
    """Combine integers, of which the last may be an array of uint64."""
    state: Any = 0
    for part in parts:
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


class Noise:
    """One stream of random numbers per image, drawn on the CPU.

    The numbers of an image depend only on its own seed and on earlier draws from its stream: not on
    the batch, the number of processes or the device.

    Args:
        seeds: one 63-bit seed per image.
        device: device of the returned tensors. Numbers are drawn on the CPU and moved there.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.seeds = list(seeds)
        self.device = torch.device(device)
        self._streams: list[torch.Generator] | None = None

    @classmethod
    def for_images(
        cls, seed: int, indices: Iterable[int], device: torch.device | str = "cpu", candidate: int = 0
    ) -> Self:
        """Return the streams of the images with these `indices` under sampling seed `seed`.

        Each image has further streams of its own, for candidates 1, 2, ... of the same image.
        """
        further = (candidate,) if candidate else ()
        return cls([mix_seed(seed, i, *further) for i in indices], device)

    def __len__(self) -> int:
        return len(self.seeds)

    def _generators(self) -> list[torch.Generator]:
        """Create the streams at the first draw: a model that draws nothing pays nothing."""
        if self._streams is None:
            self._streams = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        return self._streams

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, float32 (N, *shape)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators()]).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniform numbers in [0, 1), float32 (N, *shape)."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators()]).to(self.device)


@dataclass(frozen=True)
class Batch:
    """Everything a loss may depend on. It uses no other random numbers and no other clock.

    Attributes:
        images: float (N, 3, H, W) in [-1, 1]. If `latents` are given, they need not be: they may
            then have no rows.
        condition: labels of the images.
        noise: one stream per image, seeded by run seed, step and global index.
        step: optimiser step, from 0.
        progress: fraction of training that is done, in [0, 1], for schedules inside a loss.
        latents: the images encoded by a frozen codec before training, (N, *latent_shape), or None.
        features: features of the images from an extractor, (N, F), for alignment with it, or None.
    """

    images: Tensor
    noise: Noise
    condition: Condition = field(default_factory=Condition)
    step: int = 0
    progress: float = 0.0
    latents: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        check_condition(self.condition)
