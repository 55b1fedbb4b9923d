"""Bits per dimension that gzip, PNG and lossless WebP need for images rounded to some shades, beside a pixel model's.

    python benchmarks/lossless.py runs/pixels --data celeba --root PATH

The size and the shades are the model's. Files in two ways: every image in a file of its own, headers included, as
images are kept; and all of them in as few files as can be, one below the other, which spreads headers and tables over
all. The model's number is what an arithmetic coder would reach with it (the weights not counted).
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

import genmodels
from genmodels.data import open_data
from genmodels.data.batches import image_batches
from genmodels.evaluation.likelihood import likelihood_score
from genmodels.evaluation.protocol import Protocol

WEBP_SIDE = 16_383
"""No WebP image is longer."""


@dataclass(frozen=True)
class Settings:
    run: Positional[str]
    """Run folder of an autoregressive model over pixels."""
    data: str = "toyfaces"
    """toyfaces, celeba, folder, or the path of a packed directory."""
    root: Path | None = None
    """Where the images of celeba or folder are."""
    split: Literal["train", "valid", "test"] = "valid"


def as_gzip(pixels: np.ndarray) -> bytes:
    return gzip.compress(pixels.tobytes(), 9)


def as_picture(pixels: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **settings)
    return file.getvalue()


def as_png(pixels: np.ndarray) -> bytes:
    return as_picture(pixels, format="PNG", optimize=True)


def as_webp(pixels: np.ndarray) -> bytes:
    return as_picture(pixels, format="WEBP", lossless=True, quality=100, method=6)


def main(settings: Settings) -> None:
    model: Any = genmodels.load(settings.run)
    if not model.can("bits_per_dim"):
        raise SystemExit(f"{settings.run}: a {model.family} has no likelihood")
    size, levels = model.config.size, model.likelihood_kind.levels
    images = open_data(settings.data, settings.root, size).split(settings.split)
    shades = (np.asarray(images.images).astype(np.int32) * levels // 256).astype(np.uint8)  # (N, H, W, 3)
    strips = np.array_split(shades, -(-len(shades) * size // WEBP_SIDE))
    table = Table(title=f"{len(shades):,} images of {images.source}, {size} px, {levels} shades")
    for heading in ("bits/dim", "each in its own file", "in as few files as can be"):
        table.add_column(heading, justify="right")
    table.add_row("no compression", f"{np.log2(levels):.3f}", f"{np.log2(levels):.3f}")
    for name, pack in (("gzip -9", as_gzip), ("PNG, optimised", as_png), ("WebP, lossless", as_webp)):
        alone = sum(len(pack(image)) for image in shades)
        together = sum(len(pack(strip.reshape(-1, size, 3))) for strip in strips)
        table.add_row(name, *(f"{8 * total / shades.size:.3f}" for total in (alone, together)))
    protocol = Protocol(n=len(shades))
    with torch.inference_mode():
        score = likelihood_score(model.eval(), image_batches(images), 0, protocol)
    table.add_row(settings.run, f"{score.value:.3f}", "", end_section=True)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
