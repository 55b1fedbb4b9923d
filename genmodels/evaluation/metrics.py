"""Measures of images and models. Every number comes with the protocol it was measured under."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from genmodels import __version__
from genmodels.base import Generator, evaluating
from genmodels.data.batches import image_batches
from genmodels.data.packed import Packed
from genmodels.nn.perceptual import Distance, load_lpips
from genmodels.types import Likelihood, Noise, Reconstructs


@dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        value: the mean over the images.
        error: its standard error; 0 for a single image.
        unit: "dB", "bits/dim" or "" for a plain number.
        better: whether a "higher" or a "lower" value is better.
        how: what exactly was computed.
    """

    value: float
    error: float
    unit: str
    better: Literal["higher", "lower"]
    how: str


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
def reconstruction_scores(model: Reconstructs, batches: Iterable[Tensor], lpips: Distance | None) -> dict[str, Score]:
    """PSNR, SSIM and, where `lpips` is given, LPIPS between images and their reconstructions.

    Args:
        model: in the mode and on the device it shall run on.
        batches: images (N, 3, H, W) in [-1, 1] on that device.
        lpips: from `load_lpips`.
    """
    found: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
    for images in batches:
        rebuilt = model.reconstruct(images)
        found["psnr"].append(psnr(images, rebuilt))
        found["ssim"].append(ssim(images, rebuilt))
        if lpips is not None:
            found["lpips"].append(lpips(images, rebuilt))
    scores = {
        "psnr": _score(found["psnr"], "dB", "higher", "mean of per-image PSNR on 8-bit RGB"),
        "ssim": _score(found["ssim"], "", "higher", "Gaussian window 11 x 11, sigma 1.5, mean over RGB, 8-bit"),
    }
    if lpips is not None:
        scores["lpips"] = _score(found["lpips"], "", "lower", "LPIPS v0.1, AlexNet")
    return scores


@torch.inference_mode()
def likelihood_score(model: Likelihood, batches: Iterable[Tensor], seed: int = 0) -> Score:
    """Bits per dimension of images, marked as exact or as an upper bound.

    Args:
        model: in the mode and on the device it shall run on.
        batches: images (N, 3, H, W) in [-1, 1] holding 8-bit values, on that device.
        seed: of the noise the estimate may need.
    """
    found: list[Tensor] = []
    position = 0
    for images in batches:
        noise = Noise.for_images(seed, range(position, position + len(images)), images.device)
        found.append(model.bits_per_dim(images, noise))
        position += len(images)
    how = "exact" if model.likelihood_is_exact else "an upper bound; the true value is at most this"
    return _score(found, "bits/dim", "lower", how)


@dataclass(frozen=True)
class Evaluation:
    """All scores of one model on one set of images.

    Attributes:
        scores: by name.
        absent: what could not be measured, and why.
        protocol: what the numbers depend on: data, split, crop, size, filter, n, seed, versions, date.
    """

    scores: dict[str, Score]
    absent: dict[str, str]
    protocol: dict[str, Any]

    def to_json(self) -> str:
        """The same as JSON text, each score with its protocol."""
        scores = {name: asdict(score) | {"protocol": self.protocol} for name, score in self.scores.items()}
        return json.dumps({"scores": scores, "absent": self.absent}, indent=2) + "\n"

    def table(self) -> Table:
        """The same for a terminal."""
        caption = ", ".join(f"{name} {value}" for name, value in self.protocol.items() if value is not None)
        table = Table("measure", "value", "+-", "unit", "better", "how", caption=caption, caption_justify="left")
        for name, score in self.scores.items():
            table.add_row(name, f"{score.value:.4f}", f"{score.error:.4f}", score.unit, score.better, score.how)
        return table


def evaluate(
    model: Generator, data: Packed, split: str, *, limit: int = 2000, seed: int = 0, batch_size: int = 64
) -> Evaluation:
    """Score `model` on the first `limit` images of `data` by everything it is capable of.

    Args:
        model: on the device it shall run on.
        data: the images of one split, of the model's size.
        split: the name of that split, for the protocol.
        limit: how many images; all when there are fewer.
        seed: of the noise a likelihood may need.
        batch_size: images at a time.

    Raises:
        ValueError: when the images are not of the model's size.
    """
    if data.size != model.config.size:
        raise ValueError(f"the images of {data.source} have {data.size} px, the model makes {model.config.size} px")
    device = next(model.parameters()).device
    n = min(limit, len(data))

    def batches(what: str) -> Iterator[Tensor]:
        steps = math.ceil(n / batch_size)
        return iter(tqdm(image_batches(data, batch_size, n, device), what, steps, disable=None, leave=False))

    scores: dict[str, Score] = {}
    absent: dict[str, str] = {}
    with evaluating(model):
        if isinstance(model, Reconstructs):
            lpips = None
            try:
                lpips = load_lpips(device=device)
            except ValueError as error:
                absent["lpips"] = str(error)
            scores |= reconstruction_scores(model, batches("reconstructions"), lpips)
        else:
            absent["psnr, ssim, lpips"] = f"{model.family} does not reconstruct images"
        if isinstance(model, Likelihood):
            scores["bits_per_dim"] = likelihood_score(model, batches("bits/dim"), seed)
        else:
            absent["bits_per_dim"] = f"{model.family} has no likelihood"
    protocol = {
        "family": model.family,
        "data": data.source,
        "split": split,
        "n": n,
        "size": data.size,
        "crop": data.crop,
        "filter": data.manifest.get("filter"),
        "seed": seed,
        "data_fingerprint": data.fingerprint,
        "genmodels": __version__,
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    return Evaluation(scores, absent, protocol)


def _score(parts: list[Tensor], unit: str, better: Literal["higher", "lower"], how: str) -> Score:
    values = np.concatenate([part.double().cpu().numpy() for part in parts])
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return Score(float(values.mean()), error, unit, better, how)
