"""Directions in latent space along which the images change: of attributes, and principal ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.modes import evaluating
from genmodels.pictures import to_uint8
from genmodels.safety import checking
from genmodels.sampling import require, to_floats
from genmodels.types import Noise

LEAST = 10
"""Smallest number of images with, and of images without, an attribute."""
SIDE = 16
"""Side of the downsampled images whose principal components give directions."""


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
def principal_directions(model: Any, count: int, n: int = 1024, seed: int = 0, **options: Any) -> Tensor:
    """Compute the directions along which the samples of a model vary most (GANSpace, arXiv
    2004.02546).

    They are regressions of the latents on the principal components of the images, which are
    downsampled. A step of 1 changes its component by one standard deviation.

    Args:
        model: model with the ability `latent_directions`, on the device to compute on.
        count: K, number of directions.
        n: number of samples.
        seed: seed of the samples.
        **options: sampling options of the model.

    Returns:
        Directions (K, D), in the order of the variance of their components.

    Raises:
        ValueError: if the model has no latent directions, or K is not below n.
    """
    require(model, "latent_directions")
    if not 1 <= count < n:
        raise ValueError(f"the number of directions must be from 1 to {n - 1}, got {count}")
    settings, latents, images = model.options(**options), [], []
    with evaluating(model):
        for start in range(0, n, 64):
            noise = Noise.for_images(seed, range(start, min(start + 64, n)), model.device)
            latents.append(model.draw_latents(noise, settings).float())
            made = model.from_latents(latents[-1]).float()
            images.append(F.adaptive_avg_pool2d(made, min(made.shape[-1], SIDE)).flatten(1))
    flat, values = torch.cat(images), torch.cat(latents)
    scores, _, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)  # (n, n), ..., (n, P)
    signs = components[:count].gather(1, components[:count].abs().argmax(1, keepdim=True)).sign()  # (K, 1)
    # Scores have the variance 1 / n, and are uncorrelated.
    return signs * (scores[:, :count].T @ (values - values.mean(0))) / n**0.5


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
    with checking(model) as checked:
        if starts is None:
            device = next(model.parameters()).device
            latents = model.draw_latents(Noise.for_images(seed, range(n), device), model.options())
        else:
            latents = model.find_latents(to_floats(model, starts))
        steps = amounts.to(latents)[None, :, None] * directions[:, None]  # (K, A, D)
        paths = ((each + steps).flatten(0, 1) for each in latents)  # N x (K A, D)
        rows = [to_uint8(checked(model.from_latents(path))) for path in paths]  # N x (K A, H, W, 3)
    return np.stack(rows).reshape(len(latents), *steps.shape[:2], *rows[0].shape[1:])


def changed(
    model: Any,
    starts: np.ndarray | None,
    directions: Mapping[str, Tensor],
    amounts: Mapping[str, float],
    n: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Change images along several directions at once.

    Args:
        model: as for `traverse`.
        starts: as for `traverse`.
        directions: (D,) by attribute.
        amounts: how far to go along those of at least one attribute. 1 is as in `traverse`.
        n: as for `traverse`.
        seed: as for `traverse`.

    Returns:
        uint8 (N, 2, H, W, 3): each image before and after.
    """
    together = torch.stack([amount * directions[name] for name, amount in amounts.items()]).sum(0)  # (D,)
    return traverse(model, starts, together[None], torch.tensor([0.0, 1.0]), n, seed)[:, 0]


def _means(mask: Tensor, latents: Tensor) -> Tensor:
    """Average the latents (N, D) selected by each column of `mask` (N, K) of 0 and 1, to (K, D)."""
    return mask.T @ latents / mask.sum(0)[:, None]
