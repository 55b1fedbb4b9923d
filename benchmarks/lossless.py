"""Compare bits per dimension of a pixel model with gzip, PNG and lossless WebP on the same images.

    python benchmarks/lossless.py runs/pixels --data celeba --root PATH

Images have the size of the model and are rounded to its number of intensity levels. Files are
measured in two ways: every image in its own file, including headers; and all images stacked in as
few files as possible, which shares headers and tables. The value of the model is the rate that an
arithmetic coder would reach with it, not counting its weights.
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
"""Largest side of a WebP image."""


@dataclass(frozen=True)
class Settings:
    run: Positional[str]
    """Run folder of an autoregressive model over pixels."""
    data: str = "toyfaces"
    """toyfaces, celeba, folder, or the path of a packed directory."""
    root: Path | None = None
    """Folder with the images of celeba or folder."""
    split: Literal["train", "valid", "test"] = "valid"


def as_gzip(pixels: np.ndarray) -> bytes:
    return gzip.compress(pixels.tobytes(), 9)


def as_image_file(pixels: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **settings)
    return file.getvalue()


def as_png(pixels: np.ndarray) -> bytes:
    return as_image_file(pixels, format="PNG", optimize=True)


def as_webp(pixels: np.ndarray) -> bytes:
    return as_image_file(pixels, format="WEBP", lossless=True, quality=100, method=6)


def main(settings: Settings) -> None:
    model: Any = genmodels.load(settings.run)
    if not model.can("bits_per_dim"):
        raise SystemExit(f"{settings.run}: a {model.family} has no likelihood")
    size, levels = model.config.size, model.likelihood_kind.levels
    images = open_data(settings.data, settings.root, size).split(settings.split)
    rounded = (np.asarray(images.images).astype(np.int32) * levels // 256).astype(np.uint8)  # (N, H, W, 3)
    strips = np.array_split(rounded, -(-len(rounded) * size // WEBP_SIDE))
    table = Table(title=f"{len(rounded):,} images of {images.source}, {size} px, {levels} levels")
    for heading in ("bits/dim", "one file per image", "as few files as possible"):
        table.add_column(heading, justify="right")
    table.add_row("no compression", f"{np.log2(levels):.3f}", f"{np.log2(levels):.3f}")
    for name, pack in (("gzip -9", as_gzip), ("PNG, optimised", as_png), ("WebP, lossless", as_webp)):
        separate = sum(len(pack(image)) for image in rounded)
        together = sum(len(pack(strip.reshape(-1, size, 3))) for strip in strips)
        table.add_row(name, *(f"{8 * total / rounded.size:.3f}" for total in (separate, together)))
    protocol = Protocol(n=len(rounded))
    with torch.inference_mode():
        score = likelihood_score(model.eval(), image_batches(images), 0, protocol)
    table.add_row(settings.run, f"{score.value:.3f}", "", end_section=True)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
