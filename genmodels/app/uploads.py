"""Pictures that visitors give: uploads, samples to work on, and regions painted with a brush."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genmodels import sampling
from genmodels.app.controls import flags
from genmodels.data.decode import decode
from genmodels.image_files import image_file

LARGEST_UPLOAD = 20 << 20
"""Largest file that a visitor may send, in bytes."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image to work on.

    Attributes:
        pixels: uint8 (size, size, 3), as the model sees it.
        word: the file, as a command line names it.
        setup: command lines that make this file, or "".
    """

    pixels: np.ndarray
    word: str
    setup: str = ""


def uploaded(path: str | None, size: int) -> Picture:
    """Open an uploaded file: its centre square, resized to `size` pixels, as commands do.

    Raises:
        ValueError: if there is none, it is too large, or it is not an image; names the file without
            its folder.
    """
    if not path:
        raise ValueError("there is no image yet: upload one, or use a sample of the model")
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST_UPLOAD:
            raise ValueError(f"{path}: larger than {LARGEST_UPLOAD >> 20} MB")
        with image_file(file) as opened:
            return Picture(np.array(decode(opened, "centre", size, aligned=False)[0]), file.name)
    except (ValueError, OSError) as error:
        # The folder is the server's.
        raise ValueError(str(error).replace(str(file.parent) + "/", "")) from None


def sampled(name: str, model: Any, seed: int) -> Picture:
    """Return image 0 of a seed as a picture to work on."""
    pixels = sampling.sample(model, 1, seed, progress=False)[0]
    folder = f"seed{seed}"
    words = ["genmodels", "sample", name, *flags({"n": 1, "seed": seed}), "--out", f"{folder}/"]
    return Picture(pixels, f"{folder}/000000.png", shlex.join(words))


def painted(layers: Sequence[np.ndarray], size: int) -> np.ndarray | None:
    """Return which pixels were painted over, bool (size, size), or None if none was.

    Args:
        layers: uint8 (H, W, 4). Their opaque pixels are painted.
        size: side of the model's images. A pixel of them is painted if most of it is.
    """
    region = np.zeros((size, size), bool)
    for layer in layers:
        opaque = Image.fromarray(np.ascontiguousarray(layer[..., 3]))
        region |= np.asarray(opaque.resize((size, size), Image.Resampling.BOX)) > 127
    return region if region.any() else None
