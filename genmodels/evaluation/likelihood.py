"""Bits per dimension of held-out images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from genmodels.evaluation.context import Context, Part
from genmodels.evaluation.pairs import mean_and_error
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.results import Score
from genmodels.modes import evaluating
from genmodels.types import Noise


def part(context: Context) -> Part:
    """Compute the bits per dimension. Its name says if the model rounds images to fewer levels."""
    model = context.model
    kind = model.likelihood_kind
    images, protocol = context.held_out(kind.images)
    name = kind.name if kind.levels == 256 else f"{kind.name}-of-{kind.levels}-levels"
    with evaluating(model):
        return Part({name: likelihood_score(model, context.batches(images, "bits/dim"), context.seed, protocol)})


@torch.inference_mode()
def likelihood_score(model: Any, batches: Iterable[Tensor], seed: int, protocol: Protocol) -> Score:
    """Compute the mean bits per dimension, described as the model's `likelihood_kind` says.

    Args:
        model: the model, in the mode and on the device it should run on.
        batches: images (N, 3, H, W) in [-1, 1] with 8-bit values, on that device.
        seed: seed of the noise that the estimate may need.
        protocol: protocol of the images.
    """
    bits: list[Tensor] = []
    position = 0
    for images in batches:
        noise = Noise.for_images(seed, range(position, position + len(images)), images.device)
        bits.append(model.bits_per_dim(images, noise))
        position += len(images)
    kind = model.likelihood_kind
    how = kind.estimator or ("exact" if kind.exact else "an upper bound; the true value is at most this")
    if kind.levels < 256:
        how += f"; of images rounded to {kind.levels} levels per colour channel"
    value, error = mean_and_error(bits)
    return Score(value, "lower", how, protocol, "bits/dim", error, group="likelihood")
