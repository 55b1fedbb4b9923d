"""A small CLIP, captioned images for it, and a script that trains it when launched."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import faces, recipe
from torch import Tensor

from genmodels.clip import CLIP, CLIPConfig
from genmodels.conditions import Condition
from genmodels.nn.image_encoder import ConvConfig, ViTConfig
from genmodels.nn.text_encoder import CLIP_BLOCKS, TextEncoderConfig
from genmodels.training.fit import fit
from genmodels.types import Batch, Noise

BLOCKS = replace(CLIP_BLOCKS, width=32, depth=2, heads=2)
CAPTIONS = (
    "a photo of a smiling woman",
    "a man",
    "a young man with glasses",
    "a woman who has blond hair and is not smiling",
    "a bald man with a beard",
    "a photo of a woman",
)


def clip(**settings: Any) -> CLIP:
    """Build a small CLIP of images of 8 px, with the same initial weights at every call."""
    torch.manual_seed(0)
    conv = {} if settings.get("image") == "vit" else {"conv": ConvConfig(2, (8, 16), (1, 1))}
    vit = {"vit": ViTConfig(4, BLOCKS)} if settings.get("image") == "vit" else {}
    defaults: dict[str, Any] = {"size": 8, "width": 16, "text": TextEncoderConfig(BLOCKS), **conv, **vit}
    return CLIP(CLIPConfig(**(defaults | settings)))


def images(n: int, size: int = 8, seed: int = 0) -> Tensor:
    """Make random images (n, 3, size, size) in [-1, 1]."""
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pairs(model: CLIP, n: int = len(CAPTIONS), attributes: Tensor | None = None) -> Batch:
    """Make a batch of images with captions."""
    condition = Condition(attributes, text=model.tokenize(CAPTIONS[:n]))
    return Batch(images(n), Noise.for_images(0, range(n)), condition)


if __name__ == "__main__":
    for loss in ("softmax", "sigmoid"):
        fitted = clip(loss=loss, fitting=("Male", "Smiling"))
        fit(fitted, faces(), recipe(Path(sys.argv[1]) / loss, log_every=1, sample_every=50))
