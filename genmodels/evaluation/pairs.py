"""Measures of pairs of images, and the scores of models that reconstruct images or tell how probable they are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.data.packed import spread_rows
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.results import Score
from genmodels.nn.perceptual import Distance
from genmodels.pixels import to_float
from genmodels.types import Noise

LPIPS = "LPIPS v0.1, AlexNet"
LPIPS_WEIGHTS = "lpips 0.1, alexnet-owt-7be5be79"
"""The linear weights of the package, on torchvision's file of that hash; no others are ever loaded."""


def eight_bit(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> the 8-bit level a file would hold, as float64 in [0, 255]."""
    return images.double().add(1).mul(127.5).round().clamp(0, 255)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, (N,), on 8-bit levels: 10 log10(255^2 / MSE over all its values).

    Equal pairs give infinity. Report the mean of these per-image numbers; the PSNR of the mean error is lower.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        others: the same shape.
    """
    error = (eight_bit(images) - eight_bit(others)).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each pair, (N,), on 8-bit levels: Wang et al. 2004, doi:10.1109/TIP.2003.819861.

    The authors' settings: an 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, population moments, windows
    wholly inside the image; the mean over positions and channels. Equals scikit-image's with gaussian_weights.

    Args:
        images: (N, 3, H, W) in [-1, 1], at least 11 pixels each way.
        others: the same shape.
    """
    channels, height, width = images.shape[1:]
    if min(height, width) < 11:
        raise ValueError(f"SSIM needs images of at least 11 x 11 pixels, got {height} x {width}")
    x = torch.arange(-5, 6, dtype=torch.float64, device=images.device)
    window = torch.softmax(-(x**2) / (2 * 1.5**2), dim=0)  # exp, normalised
    down, across = window.expand(channels, 1, 11)[..., None], window.expand(channels, 1, 11)[..., None, :]

    def average(values: Tensor) -> Tensor:
        # The window is a product, so two passes of 11 taps do the work of 121.
        return F.conv2d(F.conv2d(values, down, groups=channels), across, groups=channels)  # (N, 3, H - 10, W - 10)

    a, b = eight_bit(images), eight_bit(others)
    mean_a, mean_b = average(a), average(b)
    var_a, var_b = average(a * a) - mean_a**2, average(b * b) - mean_b**2
    covariance = average(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean(dim=(1, 2, 3))


@torch.inference_mode()
def pair_scores(
    originals: np.ndarray, rebuilt: np.ndarray, lpips: Distance | None, protocol: Protocol, batch_size: int = 64
) -> dict[str, Score]:
    """PSNR, SSIM and, where `lpips` is given, LPIPS between images and their reconstructions.

    Args:
        originals: uint8 (N, S, S, 3).
        rebuilt: uint8, the same shape.
        lpips: from `load_lpips`.
        protocol: what the images are.
        batch_size: pairs at a time.

    Returns:
        "psnr", "ssim" and "lpips", each a mean over the pairs.
    """
    if originals.shape != rebuilt.shape:
        raise ValueError(f"images {originals.shape} and reconstructions {rebuilt.shape} are no pairs")
    found: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
    for start in range(0, len(originals), batch_size):
        rows = slice(start, start + batch_size)
        images, others = (to_float(torch.from_numpy(np.array(part[rows]))) for part in (originals, rebuilt))
        found["psnr"].append(psnr(images, others))
        found["ssim"].append(ssim(images, others))
        if lpips is not None:
            found["lpips"].append(lpips(images, others))

    def score(name: str, better: Literal["higher", "lower"], how: str, unit: str = "") -> Score:
        value, error = _mean(found[name])
        of = replace(protocol, weights=LPIPS_WEIGHTS) if name == "lpips" else protocol
        return Score(value, better, how, of, unit, error, group="reconstruction")

    scores = {
        "psnr": score("psnr", "higher", "mean of per-image PSNR on 8-bit RGB", "dB"),
        "ssim": score("ssim", "higher", "Gaussian window 11 x 11, sigma 1.5, mean over RGB, 8-bit"),
    }
    return scores if lpips is None else scores | {"lpips": score("lpips", "lower", LPIPS)}


@torch.inference_mode()
def likelihood_score(model: Any, batches: Iterable[Tensor], seed: int, protocol: Protocol) -> Score:
    """Bits per dimension of images, marked as exact, as an upper bound, or as `by` says.

    Args:
        model: in the mode and on the device it shall run on.
        batches: images (N, 3, H, W) in [-1, 1] holding 8-bit values, on that device.
        seed: of the noise the estimate may need.
        protocol: what the images are.
    """
    found: list[Tensor] = []
    position = 0
    for images in batches:
        noise = Noise.for_images(seed, range(position, position + len(images)), images.device)
        found.append(model.bits_per_dim(images, noise))
        position += len(images)
    kind = model.likelihood_kind
    how = "exact" if kind.exact else "an upper bound; the true value is at most this"
    how = kind.estimator or how
    if kind.levels < 256:
        how += f"; of images rounded to {kind.levels} shades of each colour"
    value, error = _mean(found)
    return Score(value, "lower", how, protocol, "bits/dim", error, group="likelihood")


@torch.inference_mode()
def token_score(model: Any, batches: Iterable[Tensor], weights: str, protocol: Protocol) -> Score:
    """Bits per code of what a codec makes of images. Not bits per dimension: many images share their codes.

    Args:
        model: a prior over codes, in the mode and on the device it shall run on.
        batches: images (N, 3, H, W) in [-1, 1].
        weights: what identifies the codec.
        protocol: what the images are.
    """
    value, error = _mean([model.bits_per_token(images) for images in batches])
    how = "exact, of the codes; says nothing of what the codec leaves out"
    of = replace(protocol, alphabet=weights)
    return Score(value, "lower", how, of, "bits/token", error, group="likelihood")


@torch.inference_mode()
def lpips_diversity(images: np.ndarray, lpips: Distance, pairs: int = 500) -> tuple[float, float]:
    """How different images of one set look: the mean LPIPS of disjoint pairs, and its standard error.

    Pairs share no image, so that their distances are independent, and stand far apart in the set, which may be sorted.

    Args:
        images: uint8 (N, S, S, 3), N >= 4.
        lpips: from `load_lpips`.
        pairs: at most this many; N / 2 when there are fewer images.
    """
    count = min(pairs, len(images) // 2)
    if count < 2:
        raise ValueError(f"diversity needs at least two pairs of different images, got {len(images)} images")
    rows = spread_rows(len(images), 2 * count)
    found = []
    for start in range(0, count, 32):
        here = slice(start, min(start + 32, count))
        first, second = (to_float(torch.from_numpy(images[half[here]])) for half in (rows[:count], rows[count:]))
        found.append(lpips(first, second))  # (n,)
    values = torch.cat(found).double()
    return values.mean().item(), values.std().item() / math.sqrt(count)


def _mean(parts: list[Tensor]) -> tuple[float, float | None]:
    """The mean of (N,) values and its standard error, which a single value does not have."""
    values = np.concatenate([part.double().cpu().numpy() for part in parts])
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error
