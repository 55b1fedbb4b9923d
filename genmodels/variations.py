"""Variations of images: by editing, or in the latent space, whichever a model can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from genmodels import sampling
from genmodels.conditions import Condition, condition_of
from genmodels.pictures import to_uint8
from genmodels.safety import checking
from genmodels.types import Noise


def can_vary(model: Any) -> bool:
    """Whether a model makes variations of images."""
    return model.can("edit") or model.can("latent_directions")


def check_varies(model: Any) -> None:
    """Raise ValueError if a model makes no variations of images."""
    model.check_complete()
    if not can_vary(model):
        raise ValueError(f"{model.kind} models do not vary images: they neither edit them nor find latent vectors")


@torch.inference_mode()
def variations(
    model: Any,
    images: np.ndarray,
    n: int = 8,
    strength: float = 0.4,
    seed: int = 0,
    condition: Condition | Mapping[str, Any] | None = None,
    *,
    batch_size: int = 64,
    **options: Any,
) -> np.ndarray:
    """Make `n` variations of each image.

    A model that edits adds noise and removes it again, `n` times. Another one moves the vector z of
    the image towards the vectors e of samples, to sqrt(1 - s^2) z + s e at strength s, which keeps
    the variance of normal vectors.

    Args:
        model: the model, on the device it should run on.
        images: uint8 (N, H, W, 3), of the model's size.
        n: number of variations of each image.
        strength: how much they differ from it, in (0, 1]; at 1 nothing of the image remains.
        seed: seed of the noise; variation i of image j uses stream j n + i.
        condition: N rows; a dict, the same for all images; or None. Only for models that edit.
        batch_size: number of variations computed at a time.
        **options: fields of the model's options.

    Returns:
        uint8 (N, n, H, W, 3).

    Raises:
        ValueError: if the model makes no variations or takes no condition for them, or a number is
            out of range.
    """
    if n < 1 or batch_size < 1 or not 0 < strength <= 1:
        raise ValueError(
            "variations need n and batch_size from 1 and a strength above 0 and at most 1, got "
            f"{n}, {batch_size} and {strength:g}"
        )
    check_varies(model)
    if model.can("edit"):
        repeated = images.repeat(n, 0)  # (N n, H, W, 3)
        rows = condition_of(model, condition, len(images)).repeat(n)
        made = sampling.edit(model, repeated, strength, seed, rows, batch_size=batch_size, **options)
        return made.reshape(len(images), n, *images.shape[1:])
    if not condition_of(model, condition, len(images)).is_empty:
        raise ValueError(f"{model.kind} models vary images without a condition: leave it out")
    settings = model.options(**options)
    parts: list[np.ndarray] = []
    with checking(model) as checked:
        latents = model.find_latents(sampling.to_floats(model, images)).repeat_interleave(n, 0)  # (N n, D)
        for start in range(0, len(latents), batch_size):
            own = latents[start : start + batch_size]
            noise = Noise.for_images(seed, range(start, start + len(own)), model.device)
            others = model.draw_latents(noise, settings).to(own)
            made = model.from_latents((1 - strength**2) ** 0.5 * own + strength * others)
            parts.append(to_uint8(checked(made)))
    return np.concatenate(parts).reshape(len(images), n, *images.shape[1:])
