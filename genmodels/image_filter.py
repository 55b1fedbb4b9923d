"""Image filter: an image classifier of transformers, which says what samples are not shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genmodels.modes import full_precision
from genmodels.pictures import to_uint8
from genmodels.prompt_filter import ALLOWED, load_classifier


def image_filter(folder: Path) -> Callable[[Tensor], Tensor]:
    """Return a filter by an image classifier, such as one for unwanted content.

    Its class 0 is what is allowed. Its weights are safetensors, and no code of the folder is
    executed.

    Args:
        folder: a folder with a classifier of transformers (AutoModelForImageClassification) and its
            image processor.

    Returns:
        A function that maps images (N, 3, H, W) in [-1, 1] to which of them are not shown, bool (N,).

    Raises:
        ValueError: if transformers is not installed, or the folder holds no such classifier.
    """
    if not folder.is_dir():
        raise ValueError(f"--image-filter {folder}: no such folder")
    kinds = ("AutoModelForImageClassification", "AutoImageProcessor")
    model, processor = load_classifier(folder, "--image-filter", "an image classifier", *kinds, backend="pil")

    @torch.no_grad()
    def flagged(images: Tensor) -> Tensor:
        pictures = [Image.fromarray(image) for image in to_uint8(images)]
        pixels = processor(pictures, return_tensors="pt").pixel_values.to(images.device)
        with full_precision(images.device):
            classes: Tensor = model.to(images.device)(pixels).logits.argmax(1)
        return classes != ALLOWED

    return flagged
