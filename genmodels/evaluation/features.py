"""Features of images under an extractor, in batches, remembered by what they were made from."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from genmodels.data import cache_folder
from genmodels.data.packed import Packed
from genmodels.evaluation.extractors import Extractor, load_extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.protocol import DEFINITIONS
from genmodels.modes import full_precision


def extract(
    images: Images, extractor: Extractor, *, batch_size: int = 64, progress: bool = True, cached: bool = True
) -> np.ndarray:
    """The features of `images`: float32 (N, D), all finite.

    They are kept in $GENMODELS_CACHE/features (or ~/.cache/genmodels/features) under the extractor's name and weights
    and the images' fingerprint. A damaged file there is computed again; a folder that cannot be written is no error.

    Args:
        images: of any size; the extractor resizes them.
        extractor: features of one whose weights are "unknown" are not kept.
        batch_size: images at a time.
        progress: whether to show a bar with images per second, where there is a terminal.
        cached: whether to look for kept features, and to keep these.

    Raises:
        ValueError: when the network's output is not (N, D), or not finite; names the extractor and the image.
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


def with_features(data: Packed, spec: str | None, device: torch.device | str = "cpu") -> Packed:
    """`data` with the features of all its images, less their mean, for a model that is aligned with an extractor.

    Args:
        data: all splits.
        spec: the extractor, as for `load_extractor`; None: none.
        device: where it shall run.

    Raises:
        ValueError: for an extractor that cannot be had.
    """
    if spec is None:
        return data
    found = extract(Images(data.images, data.source), load_extractor(spec, device))
    return replace(data, features=found - found.mean(0))


def _compute(images: Images, extractor: Extractor, batch_size: int, progress: bool) -> np.ndarray:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parts: list[np.ndarray] = []
    title = f"{extractor.name} features of {images.name}"
    bar = tqdm(total=len(images), desc=title, unit=" images", disable=None if progress else True, leave=False)
    with bar, full_precision(extractor.device), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            pixels = torch.tensor(images.pixels[start : start + batch_size]).permute(0, 3, 1, 2)  # (N, 3, H, W)
            found = extractor.network(pixels.contiguous().to(extractor.device))
            parts.append(_checked(found, pixels, start, images, extractor))
            bar.update(len(pixels))
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError(f"extractor {extractor.name}: its features have another length from one batch to the next")
    return np.concatenate(parts)  # (N, D)


def _checked(found: Tensor, pixels: Tensor, start: int, images: Images, extractor: Extractor) -> np.ndarray:
    """The features of one batch, which begins at image `start`."""
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(pixels):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"extractor {extractor.name}: expected features of shape ({len(pixels)}, D) for a batch of {len(pixels)} "
            f"images, got {got}"
        )
    features = found.float().cpu().numpy()
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise ValueError(
            f"extractor {extractor.name}: the features of image {start + broken[0]} of {images.name} are not finite; "
            "its weights are damaged, or the network overflows"
        )
    return features


def cache_place(extractor: Extractor) -> Path | None:
    """The folder where what an extractor says of images is kept; None for one that nobody can identify."""
    if extractor.weights == "unknown":
        return None
    resize = hashlib.sha256(extractor.resize.encode()).hexdigest()[:8]
    folder = re.sub(r"[^\w.-]", "_", f"{extractor.name}-{extractor.weights}-{resize}")
    return cache_folder() / "features" / folder


def _origin(images: Images, extractor: Extractor) -> dict[str, str]:
    """What features depend on, as the file says it."""
    return {
        "extractor": extractor.name,
        "weights": extractor.weights,
        "resize": extractor.resize,
        "images": images.fingerprint,
        "count": str(len(images)),
        "definitions": str(DEFINITIONS),
    }


def _read(file: Path, images: Images, extractor: Extractor) -> np.ndarray | None:
    """The features kept in `file`; None when there are none, or they are damaged, which is said."""
    try:
        with safe_open(file, "numpy") as kept:
            origin, features = dict(kept.metadata() or {}), kept.get_tensor("features")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        say(f"{file} is damaged ({error}): computing the features again")
        return None
    if origin != _origin(images, extractor) | {"shape": str(features.shape), "checksum": _checksum(features)}:
        say(f"{file} does not hold what its name says: computing the features again")
        return None
    return features


def _write(file: Path, features: np.ndarray, images: Images, extractor: Extractor) -> None:
    """Keep features, in one rename so that other processes see all or nothing."""
    draft = file.with_name(f".{uuid.uuid4().hex}.tmp")
    origin = _origin(images, extractor) | {"shape": str(features.shape), "checksum": _checksum(features)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features}, draft, origin)
        os.replace(draft, file)
    except (OSError, SafetensorError) as error:
        say(f"features are not kept, {file.parent} cannot be written ({error}); GENMODELS_CACHE names another folder")
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _checksum(features: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()[:16]


def say(text: str) -> None:
    """One line for people, on standard error."""
    Console(stderr=True).print(" ".join(text.split()), highlight=False, markup=False, soft_wrap=True)
