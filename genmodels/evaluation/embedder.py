"""A model that embeds images and sentences, as an extractor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.evaluation.extractors import Extractor, resize_bicubic
from genmodels.hashing import weights_hash
from genmodels.modes import evaluating, full_precision
from genmodels.reading import read_json
from genmodels.sampling import require
from genmodels.shipped import locate

TEXTS = 256
"""Number of sentences embedded at a time."""


def embedder(model: Any, name: str | None = None) -> Extractor:
    """Return a model that embeds images and text as an extractor, named after its weights.

    Its features are the embeddings of unit length. Images of another size than the model's are
    resized.

    Args:
        model: a model with the abilities "embed" and "tokenize", on the device it should run on.
        name: first part of the extractor's name; by default the family of the model.

    Raises:
        ValueError: if the model lacks one of the abilities.
    """
    for ability in ("embed", "tokenize"):
        require(model, ability)
    size = model.config.size

    def images(pixels: Tensor) -> Tensor:
        with evaluating(model):
            return F.normalize(model.embed_images(resize_bicubic(pixels, size) * 2 - 1).float(), dim=1)  # (N, D)

    def sentences(texts: Sequence[str]) -> Tensor:
        tokens = model.tokenize(texts).map(lambda tensor: tensor.to(model.device))
        with evaluating(model):
            return F.normalize(model.embed_texts(tokens).float(), dim=1)  # (N, D)

    weights = weights_hash(model)
    resize = f"bicubic as in Pillow, to {size} px"
    return Extractor(
        f"{name or model.family}:{weights[:8]}", images, weights, resize, device=model.device, sentences=sentences
    )


def is_saved_model(folder: Path) -> bool:
    """Return whether `folder` holds a model that genmodels saved, and not one of another library."""
    file = locate(folder) / "config.json"
    header = read_json(file) if file.is_file() else None
    return isinstance(header, dict) and "family" in header


def embed_texts(texts: Sequence[str], extractor: Extractor) -> np.ndarray:
    """Embed sentences: float32 (N, D), of unit length.

    Args:
        texts: N sentences, at least one.
        extractor: one that embeds sentences too.

    Raises:
        ValueError: if a sentence is empty or too long for the model.
    """
    assert extractor.sentences is not None
    with full_precision(extractor.device), torch.inference_mode():
        parts = [extractor.sentences(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
    return torch.cat(parts).cpu().numpy()
