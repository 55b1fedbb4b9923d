"""What diffusers' AutoencoderKL and AutoencoderTiny have in common as codecs, trained here or not."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_side(family: str, size: int, factor: int) -> int:
    """Return the side of the latents of an image.

    Args:
        family: name of the codec, for messages.
        size: side of the image in pixels.
        factor: how often smaller the latents are.

    Raises:
        ValueError: if `size` is not divisible by `factor`.
    """
    if size % factor:
        raise ValueError(f"{family} downsamples by {factor}, which does not divide {size} px")
    return size // factor


def posterior(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and log variance of q(z | x) of an AutoencoderKL.

    Args:
        network: the AutoencoderKL.
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        Two tensors (N, channels, h, w), float32. Log variances are in [-30, 20].
    """
    found = network.encode(images).latent_dist
    return found.mean.float(), found.logvar.float()


def latents(network: Any, images: Tensor) -> Tensor:
    """Encode images (N, 3, H, W) in [-1, 1] by an AutoencoderTiny: (N, channels, h, w), float32."""
    return network.encode(images).latents.float()


def decoded(network: Any, raw: Tensor) -> Tensor:
    """Decode latents (N, channels, h, w) as `network` encodes them, to images (N, 3, H, W).

    The images are float32 and not clamped.
    """
    return network.decode(raw).sample.float()
