"""Directions in latent space along which one attribute of the images changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmodels.modes import evaluating
from genmodels.pictures import to_uint8
from genmodels.sampling import require, to_floats
from genmodels.types import Noise

LEAST = 10
"""Smallest number of images with, and of images without, an attribute."""


@torch.inference_mode()
def attribute_directions(
    model: Any, images: np.ndarray, attributes: np.ndarray, names: tuple[str, ...], batch_size: int = 64
) -> Tensor:
    """Compute the difference of the mean latents of images with and without each attribute.

    Args:
        model: model with the ability `latent_directions`, on the device to compute on.
        images: uint8 (N, H, W, 3).
        attributes: attributes of the images, (N, K) in {-1, 0, +1}: no, unknown, yes.
        names: names of the K attributes, for error messages.
        batch_size: number of images encoded at a time.

    Returns:
        Directions (K, D), from the mean without to the mean with the attribute.

    Raises:
        ValueError: if the model has no latent directions, or too few images have, or lack, an
            attribute.
    """
    require(model, "latent_directions")
    for name, column in zip(names, attributes.T, strict=True):
        if min((column > 0).sum(), (column < 0).sum()) < LEAST:
            raise ValueError(
                f"{name}: {(column > 0).sum()} images have it and {(column < 0).sum()} do not; a direction needs at "
                f"least {LEAST} of each"
            )
    with evaluating(model):
        parts = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        latents = torch.cat([model.find_latents(to_floats(model, part), exact=False) for part in parts])  # (N, D)
    present = torch.from_numpy(attributes > 0).to(latents)  # (N, K)
    absent = torch.from_numpy(attributes < 0).to(latents)
    return _means(present, latents) - _means(absent, latents)


@torch.inference_mode()
def traverse(
    model: Any, starts: np.ndarray | None, directions: Tensor, amounts: Tensor, n: int = 4, seed: int = 0
) -> np.ndarray:
    """Change images along each direction.

    Args:
        model: model with the ability `latent_directions`.
        starts: images to change, uint8 (N, H, W, 3), or None to change samples of the model. The
            model reconstructs them first.
        directions: (K, D), as returned by `attribute_directions`.
        amounts: step sizes (A,). 1 is the distance between the mean latents of images with and
            without the attribute.
        n: number of samples if `starts` is None.
        seed: seed of the samples.

    Returns:
        uint8 (N, K, A, H, W, 3).

    Raises:
        ValueError: if the model has no latent directions.
    """
    require(model, "latent_directions")
    with evaluating(model):
        if starts is None:
            device = next(model.parameters()).device
            latents = model.draw_latents(Noise.for_images(seed, range(n), device), model.options())
        else:
            latents = model.find_latents(to_floats(model, starts))
        steps = amounts.to(latents)[None, :, None] * directions[:, None]  # (K, A, D)
        rows = [to_uint8(model.from_latents((each + steps).flatten(0, 1))) for each in latents]  # N x (K A, H, W, 3)
    return np.stack(rows).reshape(len(latents), *steps.shape[:2], *rows[0].shape[1:])


def _means(mask: Tensor, latents: Tensor) -> Tensor:
    """Average the latents (N, D) selected by each column of `mask` (N, K) of 0 and 1, to (K, D)."""
    return mask.T @ latents / mask.sum(0)[:, None]
