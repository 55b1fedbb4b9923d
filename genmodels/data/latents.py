"""What a frozen codec makes of a data set, computed once and kept: each image as it is, and mirrored."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from genmodels.data.batches import image_batches
from genmodels.data.packed import Packed
from genmodels.data.packing import lock, progress_bar

LATENTS, DONE, PARTIAL = "latents.npy", "latents.json", "latents.partial"
BATCH = 128


@torch.inference_mode()
def with_latents(
    data: Packed,
    encode: Callable[[Tensor], Tensor],
    weights: str,
    cache: Path,
    flip: bool = True,
    device: torch.device | str = "cpu",
) -> Packed:
    """`data` with `latents`: from `cache` when this codec has seen these images before, else computed now.

    The place in the cache is named after the images, the codec's weights and `flip`, so that codes of a codec that has
    changed since, or of other images, are never taken for these. Several processes may ask at once: one computes, the
    others wait.

    Args:
        data: all splits.
        encode: of a frozen codec: images (N, 3, H, W) in [-1, 1] -> latents (N, *latent_shape).
        weights: what identifies that codec and which of its outputs `encode` gives.
        cache: a folder for all such files.
        flip: whether training mirrors images: their latents are kept too, since they are no mirrored latents.
        device: where the codec is.

    Raises:
        OSError: when the cache cannot be written.
    """
    name = hashlib.sha256(f"{data.fingerprint} {weights} {flip}".encode()).hexdigest()[:16]
    place = cache / f"latents-{name}"
    found = _read(place, len(data))  # before any lock, so that a finished cache may be read-only
    if found is not None:
        return replace(data, latents=found)
    with lock(place):
        if (found := _read(place, len(data))) is None:  # nor has another process written it meanwhile
            _write(place, data, encode, flip, torch.device(device))
            found = _read(place, len(data))
    if found is None:
        raise OSError(f"{place}: what was just written cannot be read back; is the disk full?")
    return replace(data, latents=found)


def _write(place: Path, data: Packed, encode: Callable[[Tensor], Tensor], flip: bool, device: torch.device) -> None:
    """Fills `place`; its record is written last, so that what was interrupted is computed again."""
    out: np.memmap | None = None
    with progress_bar("encoding") as progress:
        bar = progress.add_task("", total=len(data))
        start = 0
        for images in image_batches(data, BATCH, device=device):
            views = [images, images.flip(3)] if flip else [images]
            latents = torch.stack([encode(view) for view in views], dim=1)  # (n, 2, *latent_shape)
            if out is None:
                shape, kind = (len(data), *latents.shape[1:]), _kind(latents)
                out = open_memmap(place / PARTIAL, "w+", kind, shape)
            out[start : start + len(images)] = latents.cpu().numpy()
            start += len(images)
            progress.advance(bar, len(images))
    assert out is not None
    out.flush()
    del out
    os.replace(place / PARTIAL, place / LATENTS)
    draft = place / f"{DONE}.tmp"
    draft.write_text(json.dumps({"count": len(data), "sha256": _sha256(place / LATENTS)}) + "\n")
    os.replace(draft, place / DONE)


def _kind(latents: Tensor) -> type[np.generic]:
    """The type that holds latents, or codes, which are whole numbers."""
    return np.float32 if latents.is_floating_point() else np.int32


def _read(place: Path, count: int) -> np.ndarray | None:
    """The latents in `place`; None when there are none, or they are damaged, which is said."""
    try:
        record = json.loads((place / DONE).read_text())
        if record["count"] != count or record["sha256"] != _sha256(place / LATENTS):
            raise ValueError("its checksum is another")
        return np.load(place / LATENTS, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{place / LATENTS} is damaged ({error}): computing it again", file=sys.stderr)
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
