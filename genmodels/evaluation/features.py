"""Features of images under an extractor, computed in batches and cached by content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from genmodels.data import cache_folder
from genmodels.data.packed import Packed
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.protocol import DEFINITIONS
from genmodels.modes import full_precision
from genmodels.usage import say
from genmodels.writing import replacing


def extract(
    images: Images, extractor: Extractor, *, batch_size: int = 64, progress: bool = True, cached: bool = True
) -> np.ndarray:
    """Compute the features of `images`: float32 (N, D), all finite.

    They are cached in $GENMODELS_CACHE/features (by default ~/.cache/genmodels/features) under the
    name and weights of the extractor and the fingerprint of the images. A file there that is
    damaged, or of another version of the metrics' definitions, is computed again. A folder that
    cannot be written is reported and is not an error.

    Args:
        images: images of any size; the extractor resizes them.
        extractor: the extractor. Features of one whose weights are "unknown" are not cached.
        batch_size: number of images computed at a time.
        progress: show a progress bar if standard error is a terminal.
        cached: read features from the cache, and write them there.

    Raises:
        ValueError: if the output of the network is not (N, D) or not finite. The message names the
            extractor and the image.
    """
    place = cache_place(extractor)
    if not cached or place is None:
        return _compute(images, extractor, batch_size, progress)
    file = place / f"{images.fingerprint}.safetensors"
    features = _read(file, images, extractor)
    if features is None:
        features = _compute(images, extractor, batch_size, progress)
        _write(file, features, images, extractor)
    return features


def with_features(data: Packed, extractor: Extractor) -> Packed:
    """Return `data` with centred features of all its images, for a model that is aligned with an
    extractor."""
    features = extract(Images(data.images, data.source), extractor)
    return replace(data, features=features - features.mean(0))


def _compute(images: Images, extractor: Extractor, batch_size: int, progress: bool) -> np.ndarray:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parts: list[np.ndarray] = []
    title = f"{extractor.name} features of {images.name}"
    bar = tqdm(total=len(images), desc=title, unit=" images", disable=None if progress else True, leave=False)
    with bar, full_precision(extractor.device), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            pixels = torch.tensor(images.pixels[start : start + batch_size]).permute(0, 3, 1, 2)  # (N, 3, H, W)
            output = extractor.network(pixels.contiguous().to(extractor.device))
            parts.append(_checked(output, pixels, start, images, extractor))
            bar.update(len(pixels))
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError(f"extractor {extractor.name}: the number of its features differs between batches")
    return np.concatenate(parts)  # (N, D)


def _checked(output: Tensor, pixels: Tensor, start: int, images: Images, extractor: Extractor) -> np.ndarray:
    """Return the features of the batch that begins at image `start`."""
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(pixels):
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"extractor {extractor.name}: expected features of shape ({len(pixels)}, D) for a batch of {len(pixels)} "
            f"images, got {got}"
        )
    features = output.float().cpu().numpy()
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise ValueError(
            f"extractor {extractor.name}: the features of image {start + broken[0]} of {images.name} are not finite; "
            "its weights are damaged, or the network overflows"
        )
    return features


def cache_place(extractor: Extractor) -> Path | None:
    """Return the folder of what is cached for an extractor, or None if its weights are unknown."""
    if extractor.weights == "unknown":
        return None
    resize = hashlib.sha256(extractor.resize.encode()).hexdigest()[:8]
    folder = re.sub(r"[^\w.-]", "_", f"{extractor.name}-{extractor.weights}-{resize}")
    return cache_folder() / "features" / folder


def damaged(file: Path, error: object) -> None:
    """Report that `file` is computed again because it is damaged."""
    say(f"{file} is damaged ({error}): recomputing it")


def outdated(file: Path) -> None:
    """Report that `file` is computed again because it was written under another definition."""
    say(f"recomputing {file}: its definition changed")


def _origin(images: Images, extractor: Extractor, features: np.ndarray) -> dict[str, str]:
    """Return what features depend on and their checksum, as stored with them."""
    return {
        "extractor": extractor.name,
        "weights": extractor.weights,
        "resize": extractor.resize,
        "images": images.fingerprint,
        "count": str(len(images)),
        "definitions": str(DEFINITIONS),
        "shape": str(features.shape),
        "checksum": hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()[:16],
    }


def _read(file: Path, images: Images, extractor: Extractor) -> np.ndarray | None:
    """Return the cached features, or None if there are none that can be used."""
    try:
        with safe_open(file, "numpy") as kept:
            origin, features = dict(kept.metadata() or {}), kept.get_tensor("features")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        damaged(file, error)
        return None
    expected = _origin(images, extractor, features)
    if origin == expected:
        return features
    if origin.keys() != expected.keys() or origin["definitions"] != expected["definitions"]:
        outdated(file)
    else:
        damaged(file, "its content does not match its name")
    return None


def _write(file: Path, features: np.ndarray, images: Images, extractor: Extractor) -> None:
    """Cache features. If they cannot be written, this is said in one line."""
    try:
        with replacing(file) as draft:
            save_file({"features": features}, draft, _origin(images, extractor, features))
    except (OSError, SafetensorError) as error:
        say(f"features are not cached ({error}); GENMODELS_CACHE sets another folder")
