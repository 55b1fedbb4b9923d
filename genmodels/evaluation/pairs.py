"""Reconstruction: PSNR, SSIM and LPIPS of pairs of images, and the distance between the two
sets."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels import sampling
from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.distances import frechet_distance
from genmodels.evaluation.images import Images
from genmodels.evaluation.protocol import Protocol, check_count
from genmodels.evaluation.results import Score
from genmodels.nn.perceptual import Distance
from genmodels.pictures import to_float

LPIPS = "LPIPS v0.1, AlexNet"
LPIPS_WEIGHTS = "lpips 0.1, alexnet-owt-7be5be79"
"""The linear weights of the lpips package and torchvision's file with that hash. No others are
loaded."""
INVERTED = 256
"""Number of images that are reconstructed by a search, which is slow."""
PAIRS = 16
"""Number of reconstructions that are kept for display."""


def part(context: Context) -> Part:
    """Compute PSNR, SSIM, LPIPS, and the Fréchet distance between images and their reconstructions.

    A model without an encoder reconstructs by a search. Its scores have names of their own.
    """
    model = context.model
    searched = model.can("invert")
    by = "-by-inversion" if searched else ""
    originals, protocol = context.held_out(INVERTED if searched else None)
    pixels = sampling.reconstruct(model, np.asarray(originals.pixels), context.batch_size)
    rebuilt = Images(pixels, f"reconstructions of {model.kind}")
    context.pictures |= {"originals": np.asarray(originals.pixels[:PAIRS]), "reconstructions": pixels[:PAIRS]}
    lpips, unavailable = context.lpips
    absent = dict(unavailable)
    pairs = pair_scores(np.asarray(originals.pixels), pixels, lpips, protocol, context.batch_size)
    scores = {name + by: score for name, score in pairs.items()}
    how = "Frechet distance between real images and their reconstructions"
    for extractor in context.extractors:
        name = extractor.measure("rfd" + by)
        with reasons(absent, name):
            check_count(len(originals), originals.name)
            value = frechet_distance(context.features(rebuilt, extractor), context.features(originals, extractor))
            scores[name] = Score(value, "lower", how, extractor.protocol(protocol), group="reconstruction")
    if searched:
        absent[", ".join([*pairs, "rfd"])] = f"there is no encoder: see psnr{by} and the scores next to it"
    return Part(scores, absent)


def eight_bit(images: Tensor) -> Tensor:
    """Round float images in [-1, 1] to the 8-bit levels of a file, as float64 in [0, 255]."""
    return images.double().add(1).mul(127.5).round().clamp(0, 255)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Compute the PSNR of each pair in dB, (N,), on 8-bit levels: 10 log10(255^2 / MSE).

    The MSE is over all values of a pair. Equal pairs give infinity. Report the mean of these
    per-image values: the PSNR of the mean error is lower.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        others: of the same shape.
    """
    error = (eight_bit(images) - eight_bit(others)).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Compute the structural similarity of each pair, (N,), on 8-bit levels
    (doi:10.1109/TIP.2003.819861).

    The settings are those of its authors: an 11 x 11 Gaussian window with sigma 1.5, K1 = 0.01,
    K2 = 0.03, population moments, only windows inside the image, and the mean over positions and
    channels. It equals scikit-image's with gaussian_weights.

    Args:
        images: (N, 3, H, W) in [-1, 1], H and W at least 11.
        others: of the same shape.
    """
    channels, height, width = images.shape[1:]
    if min(height, width) < 11:
        raise ValueError(f"SSIM needs images of at least 11 x 11 pixels, got {height} x {width}")
    x = torch.arange(-5, 6, dtype=torch.float64, device=images.device)
    window = torch.softmax(-(x**2) / (2 * 1.5**2), dim=0)  # exp, normalised
    down, across = window.expand(channels, 1, 11)[..., None], window.expand(channels, 1, 11)[..., None, :]

    def average(values: Tensor) -> Tensor:
        # The window is separable: two passes of 11 taps instead of one of 121.
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
    """Compute PSNR, SSIM and, if the network is given, LPIPS between images and their
    reconstructions.

    Args:
        originals: uint8 (N, S, S, 3).
        rebuilt: uint8, of the same shape.
        lpips: the distance that `load_lpips` returns, or None.
        protocol: protocol of the images.
        batch_size: number of pairs computed at a time.

    Returns:
        "psnr", "ssim" and "lpips", each a mean over the pairs.
    """
    if originals.shape != rebuilt.shape:
        raise ValueError(f"images {originals.shape} and reconstructions {rebuilt.shape} must have the same shape")
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
    for start in range(0, len(originals), batch_size):
        rows = slice(start, start + batch_size)
        images, others = (to_float(np.array(part[rows])) for part in (originals, rebuilt))
        values["psnr"].append(psnr(images, others))
        values["ssim"].append(ssim(images, others))
        if lpips is not None:
            values["lpips"].append(lpips(images, others))

    def score(name: str, better: Literal["higher", "lower"], how: str, unit: str = "") -> Score:
        value, error = mean_and_error(values[name])
        of = replace(protocol, weights=LPIPS_WEIGHTS) if name == "lpips" else protocol
        return Score(value, better, how, of, unit, error, group="reconstruction")

    scores = {
        "psnr": score("psnr", "higher", "mean of per-image PSNR on 8-bit RGB", "dB"),
        "ssim": score("ssim", "higher", "Gaussian window 11 x 11, sigma 1.5, mean over RGB, 8-bit"),
    }
    return scores if lpips is None else scores | {"lpips": score("lpips", "lower", LPIPS)}


def mean_and_error(parts: list[Tensor]) -> tuple[float, float | None]:
    """Return the mean of the values in `parts` and its standard error, which is None for a single
    value."""
    values = np.concatenate([part.double().cpu().numpy() for part in parts])
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error
