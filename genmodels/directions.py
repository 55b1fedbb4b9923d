"""Directions in a model's latent space along which one attribute of the images changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmodels.base import evaluating
from genmodels.pictures import to_uint8
from genmodels.sampling import require, to_floats
from genmodels.types import Noise

LEAST = 10
"""Images that must have an attribute, and that must not."""


@torch.inference_mode()
def attribute_directions(
    model: Any, images: np.ndarray, attributes: np.ndarray, names: tuple[str, ...], batch_size: int = 64
) -> Tensor:
    """For each attribute the way from the mean latents of the images without it to those of the images with it, (K, D).

    Args:
        model: one that `HasLatents`, on the device it shall run on.
        images: uint8 (N, H, W, 3).
        attributes: of them, (N, K) in {-1, 0, +1}: no, unknown, yes.
        names: of the K attributes, for messages.
        batch_size: images at a time.

    Raises:
        ValueError: when the model has no such space, or nearly all images are alike in an attribute.
    """
    require(model, "latent_directions")
    for name, column in zip(names, attributes.T, strict=True):
        if min((column > 0).sum(), (column < 0).sum()) < LEAST:
            raise ValueError(
                f"{name}: {(column > 0).sum()} images have it and {(column < 0).sum()} have not; a direction needs at "
                f"least {LEAST} of each"
            )
    with evaluating(model):
        parts = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        latents = torch.cat([model.find_latents(to_floats(model, part), exact=False) for part in parts])  # (N, D)
    with_it = torch.from_numpy(attributes > 0).to(latents)  # (N, K)
    without = torch.from_numpy(attributes < 0).to(latents)
    return _means(with_it, latents) - _means(without, latents)


@torch.inference_mode()
def traverse(
    model: Any, starts: np.ndarray | None, directions: Tensor, amounts: Tensor, n: int = 4, seed: int = 0
) -> np.ndarray:
    """Images changed along each direction, uint8 (N, K, len(amounts), H, W, 3).

    Args:
        model: as above.
        starts: the images to change, uint8 (N, H, W, 3), as the model expresses them; None: its samples.
        directions: (K, D), as `attribute_directions` finds them.
        amounts: how far; 1 is as far as images with the attribute are from those without, on average.
        n: how many samples, where there are no `starts`.
        seed: which.

    Raises:
        ValueError: when the model has no such model.
    """
    require(model, "latent_directions")
    with evaluating(model):
        if starts is None:
            device = next(model.parameters()).device
            latents = model.draw_latents(Noise.for_images(seed, range(n), device), model.options())
        else:
            latents = model.find_latents(to_floats(model, starts))
        ways = amounts.to(latents)[None, :, None] * directions[:, None]  # (K, A, D)
        rows = [to_uint8(model.from_latents((each + ways).flatten(0, 1))) for each in latents]  # N x (K A, H, W, 3)
    return np.stack(rows).reshape(len(latents), *ways.shape[:2], *rows[0].shape[1:])


def _means(chosen: Tensor, latents: Tensor) -> Tensor:
    """(N, K) of 0 and 1, (N, D) -> means of the chosen latents, (K, D)."""
    return chosen.T @ latents / chosen.sum(0)[:, None]
