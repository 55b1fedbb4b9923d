"""Cached latents: outputs of a frozen codec for images and mirrored images, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genmodels.array_files import map_array
from genmodels.data.batches import image_batches
from genmodels.data.packed import Packed
from genmodels.data.packing import lock, progress_bar
from genmodels.hashing import file_sha256
from genmodels.reading import read_json
from genmodels.usage import say
from genmodels.writing import create_array, replacing, write_json

LATENTS, DONE = "latents.npy", "latents.json"
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
    """Return `data` with the column `latents`, read from `cache` or else computed and stored there.

    The cache entry is named after the images, the weights of the codec and `flip`, so latents of
    other images or of other weights are never used by mistake. If several processes call this at
    the same time, one computes the latents and the others wait.

    Args:
        data: all splits.
        encode: method of a frozen codec: images (N, 3, H, W) in [-1, 1] -> latents (N,
            *latent_shape).
        weights: identifies the weights of the codec and the output that `encode` returns.
        cache: folder of all cached latents.
        flip: also compute the latents of mirrored images. They differ from mirrored latents.
        device: device of the codec.

    Raises:
        OSError: if the cache cannot be written.
        ValueError: if a latent is not finite.
    """
    place = latents_folder(data, weights, cache, flip)
    latents = _read(place, len(data))  # before locking, so that a complete cache may be read-only
    if latents is not None:
        return replace(data, latents=latents)
    with lock(place):
        if (latents := _read(place, len(data))) is None:  # another process may have written it meanwhile
            _write(place, data, encode, flip, torch.device(device))
            latents = _read(place, len(data))
    if latents is None:
        raise OSError(f"{place}: the latents were written but cannot be read back; is the disk full?")
    return replace(data, latents=latents)


def latents_folder(data: Packed, weights: str, cache: Path, flip: bool = True) -> Path:
    """Return the folder of the cached latents of `with_latents`, whose arguments these are."""
    name = hashlib.sha256(f"{data.fingerprint} {weights} {flip}".encode()).hexdigest()[:16]
    return cache / f"latents-{name}"


def is_cached(data: Packed, weights: str, cache: Path, flip: bool = True) -> bool:
    """Return whether all latents were computed before. They are not read."""
    return (latents_folder(data, weights, cache, flip) / DONE).is_file()


def _write(place: Path, data: Packed, encode: Callable[[Tensor], Tensor], flip: bool, device: torch.device) -> None:
    """Write the latents to `place`. Their record is written last: it marks them as complete."""
    out: np.memmap | None = None
    with progress_bar("encoding") as progress, replacing(place / LATENTS) as draft:
        bar = progress.add_task("", total=len(data))
        start = 0
        for images in image_batches(data, BATCH, device=device):
            views = [images, images.flip(3)] if flip else [images]
            latents = torch.stack([encode(view) for view in views], dim=1)  # (n, 2, *latent_shape)
            if not latents.isfinite().all():
                raise ValueError(
                    f"--codec: the latents of images {start:,} to {start + len(images) - 1:,} are not finite; "
                    "the weights of the codec are damaged, or too large for its precision"
                )
            if out is None:
                shape, kind = (len(data), *latents.shape[1:]), _kind(latents)
                out = create_array(draft, kind, shape)
            out[start : start + len(images)] = latents.cpu().numpy()
            start += len(images)
            progress.advance(bar, len(images))
        assert out is not None
        out.flush()
    write_json(place / DONE, {"count": len(data), "sha256": file_sha256(place / LATENTS)})


def _kind(latents: Tensor) -> type[np.generic]:
    """Return the type in which latents (float) or codes (integer) are stored."""
    return np.float32 if latents.is_floating_point() else np.int32


def _read(place: Path, count: int) -> np.ndarray | None:
    """Return the latents in `place`, or None if they are absent or damaged."""
    try:
        record = read_json(place / DONE)
        if record["count"] != count or record["sha256"] != file_sha256(place / LATENTS):
            raise ValueError("count or checksum does not match its record")
        return map_array(place / LATENTS)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"{place / LATENTS} is damaged ({error}); computing it again")
        return None
