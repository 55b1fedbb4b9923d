"""Image filter: an image classifier of transformers, which says what samples are not shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genmodels.modes import full_precision
from genmodels.pictures import to_uint8
from genmodels.prompt_filter import ALLOWED
from genmodels.reading import in_one_line


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
    try:
        import transformers
    except ImportError:
        raise ValueError("an image filter needs transformers: pip install 'genmodels[evaluation]'") from None
    where: Any = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **where)
        kind = transformers.AutoModelForImageClassification
        model, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **where)
    except Exception as error:  # of many types, which mean the same to the caller
        raise ValueError(
            f"--image-filter {folder}: not an image classifier of transformers ({in_one_line(error, 200)})"
        ) from None
    if report["missing_keys"]:
        raise ValueError(f"--image-filter {folder}: its weights lack {sorted(report['missing_keys'])[0]}")
    model.requires_grad_(False).eval()

    @torch.no_grad()
    def flagged(images: Tensor) -> Tensor:
        pictures = [Image.fromarray(image) for image in to_uint8(images)]
        pixels = processor(pictures, return_tensors="pt").pixel_values.to(images.device)
        with full_precision(images.device):
            classes: Tensor = model.to(images.device)(pixels.float()).logits.argmax(1)
        return classes != ALLOWED

    return flagged
