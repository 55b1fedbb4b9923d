"""The held-out loss of a model, which can be compared between sizes of one family."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genmodels.data.batches import image_batches
from genmodels.data.packed import Packed
from genmodels.evaluation.pairs import mean_and_error
from genmodels.modes import evaluating
from genmodels.types import Noise

IMAGES = 2_048
"""Largest number of validation images."""
TIMES = 4
"""Number of times at which each image is denoised."""
SEED = 0
"""Seed of the noise and of the order of the times, the same for all models."""

Batches = Iterable[tuple[range, Tensor]]
"""Positions of images among all, and the images (n, 3, H, W)."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out loss.

    Attributes:
        metric: what it is, with its unit. Losses of different metrics cannot be compared.
        value: mean over the images.
        error: its standard error.
        images: number of images.
    """

    metric: str
    value: float
    error: float | None
    images: int


def bits_per_token(model: Any, batches: Batches, count: int) -> Iterator[Tensor]:
    """Yield the bits per code of images."""
    for _, images in batches:
        yield model.bits_per_token(images)


def bits_per_dim(model: Any, batches: Batches, count: int) -> Iterator[Tensor]:
    """Yield the bits per dimension of images."""
    for rows, images in batches:
        yield model.bits_per_dim(images, Noise.for_images(SEED, rows, images.device))


def denoising_errors(model: Any, batches: Batches, count: int) -> Iterator[Tensor]:
    """Yield the mean weighted error of each image at `TIMES` times.

    The times are stratified: together, all images have every quantile of the training times once,
    and the times of one image are evenly spaced. Noise and times are the same for all models.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
    for rows, images in batches:
        inputs = model.scaled(model.encode(images)) if model.can("prior") else images
        first = (order[rows.start : rows.stop].double() + 0.5) / (TIMES * count)
        errors = [
            model.trained.denoising_error(
                inputs,
                Noise.for_images(SEED, rows, images.device, candidate=time),
                (first + time / TIMES).float().to(images.device),
            )
            for time in range(TIMES)
        ]
        yield torch.stack(errors).mean(0)


def reconstruction_errors(model: Any, batches: Batches, count: int) -> Iterator[Tensor]:
    """Yield the mean squared error of the reconstruction of images."""
    for _, images in batches:
        yield (model.reconstruct(images) - images).square().mean((1, 2, 3))


Loss = Callable[[Any, Batches, int], Iterator[Tensor]]
LOSSES: tuple[tuple[str, str, Loss], ...] = (
    ("bits_per_token", "bits per token", bits_per_token),
    ("denoising_error", "weighted denoising error", denoising_errors),
    ("bits_per_dim", "bits per dimension", bits_per_dim),
    ("encode", "squared error of reconstruction", reconstruction_errors),
)
"""Ability, metric and function. The first that a model, or its trained part, is able to is its loss."""


@torch.inference_mode()
def held_out_loss(model: Any, data: Packed, batch_size: int = 64, limit: int = IMAGES) -> HeldOut:
    """Compute the held-out loss of a model on the valid split of its data.

    Args:
        model: the model, on the device it should run on.
        data: data with all splits.
        batch_size: number of images computed at a time.
        limit: largest number of images.

    Raises:
        ValueError: if the model has no such loss, as a GAN, whose loss depends on its critic; or
            there are no validation images; or the loss is not finite.
    """
    found = next((row for row in LOSSES if model.can(row[0]) or model.trained.can(row[0])), None)
    if found is None:
        raise ValueError(f"{model.kind} models have no held-out loss that can be compared between sizes")
    _, metric, measure = found
    valid = data.split("valid")
    count = min(limit, len(valid))
    if not count:
        raise ValueError(f"{data.source} has no validation images to compute the held-out loss on")

    def batches() -> Iterator[tuple[range, Tensor]]:
        start = 0
        for images in image_batches(valid, batch_size, count, model.device, spread=True):
            yield range(start, start + len(images)), images
            start += len(images)

    with evaluating(model):
        value, error = mean_and_error(list(measure(model, batches(), count)))
    if not math.isfinite(value):
        raise ValueError(f"its held-out loss ({metric}) is {value}: training has diverged")
    return HeldOut(metric, value, error, count)
