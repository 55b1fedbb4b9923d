"""Seeds to images: batched, spread over all processes, as the uint8 pictures that files and metrics want."""

from __future__ import annotations

import atexit
import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather, parse_flag_from_env
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from genmodels.base import Generator, evaluating
from genmodels.pixels import to_float, to_uint8
from genmodels.types import (
    Condition,
    Denoises,
    Edits,
    HasPrior,
    Inpaints,
    Interpolates,
    Morphs,
    Noise,
    Reconstructs,
)


def processes() -> PartialState:
    """This process among all those started together, and its device."""
    # accelerate takes several CPU processes for one unless it is told that there is nothing but the CPU.
    only_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=only_cpu)
    if state.num_processes > 1:
        _part_at_exit()
    return state


@cache
def _part_at_exit() -> None:
    """Leave the process group before the interpreter ends: else its threads may outlive it and abort the process."""
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


@torch.inference_mode()
def sample(
    model: Generator,
    n: int,
    seed: int = 0,
    condition: Condition | None = None,
    *,
    batch_size: int = 64,
    progress: bool = True,
    **options: Any,
) -> np.ndarray:
    """`n` images of `model`, uint8 (n, H, W, 3), made by all processes together and returned on each.

    Image i of a seed is the same whatever `n`, `batch_size` and the number of processes.

    Args:
        model: on the device it shall run on.
        n: how many, over all processes.
        seed: which.
        condition: n rows, or None for unconditional samples.
        batch_size: how many at a time in one process.
        progress: show a bar with images/s and the time left, when standard error is a terminal.
        **options: fields of `model.Options`.

    Raises:
        ValueError: for n < 1, batch_size < 1 or an option the family does not have.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    model.check_whole()
    state = processes()
    device = next(model.parameters()).device
    chosen = model.options(**options)
    share = math.ceil(n / state.num_processes)
    rows = range(min(n, share * state.process_index), min(n, share * (state.process_index + 1)))
    size = model.config.size
    mine = np.zeros((share, size, size, 3), np.uint8)  # equal on every rank, so that it can be gathered
    hidden = None if progress and state.is_main_process else True
    with evaluating(model), tqdm(total=n, desc="sampling", unit=" images", disable=hidden) as bar:
        for start in range(0, len(rows), batch_size):
            indices = rows[start : start + batch_size]
            wanted = (condition or Condition())[slice(indices.start, indices.stop)].to(device)
            images = model.sample(Noise.for_images(seed, indices, device), wanted, chosen)
            mine[start : start + len(indices)] = to_uint8(images)
            bar.update(min(len(indices) * state.num_processes, n - bar.n))
    if state.num_processes == 1:
        return mine
    return gather(torch.from_numpy(mine).to(state.device)).cpu().numpy()[:n]


@torch.inference_mode()
def interpolate(model: Generator, seeds: Sequence[int], frames: int, **options: Any) -> np.ndarray:
    """The way through image 0 of each of `seeds`, uint8 (legs, frames, H, W, 3).

    Two seeds make one leg. Three or more make a closed tour, with a last leg back to the first seed.

    Args:
        model: on the device it shall run on.
        seeds: at least two.
        frames: pictures of a leg, evenly spaced, both ends included.
        **options: fields of `model.Options`.

    Raises:
        ValueError: when the model does not interpolate.
    """
    if not isinstance(model, Interpolates):
        raise ValueError(f"{kind_of(model)} models do not interpolate")
    device = next(model.parameters()).device
    chosen = model.options(**options)
    weights = torch.linspace(0, 1, frames, device=device)
    legs = []
    with evaluating(model):
        for first, second in _tour(seeds):
            start, end = (Noise.for_images(seed, [0], device) for seed in (first, second))
            legs.append(to_uint8(model.interpolate(start, end, weights, chosen)))
    return np.stack(legs)


@torch.inference_mode()
def reconstruct(model: Generator, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """What `model` makes of `images`, uint8 (N, H, W, 3) -> the same.

    Raises:
        ValueError: when the model does not reconstruct.
    """
    if not isinstance(model, Reconstructs):
        raise ValueError(f"{model.family} models do not reconstruct images")
    parts = []
    with evaluating(model), tqdm(total=len(images), desc="reconstructing", unit=" images", disable=None) as bar:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            parts.append(to_uint8(model.reconstruct(to_floats(model, part))))
            bar.update(len(part))
    return np.concatenate(parts)


@torch.inference_mode()
def inpaint(
    model: Generator,
    images: np.ndarray,
    known: np.ndarray,
    n: int = 1,
    seed: int = 0,
    condition: Condition | None = None,
    *,
    batch_size: int = 64,
    **options: Any,
) -> np.ndarray:
    """`n` ways to complete each of `images`, uint8 (N, H, W, 3) -> uint8 (N, n, H, W, 3).

    Args:
        model: on the device it shall run on.
        images: of the model's size.
        known: bool (H, W), where they are known; the rest of them is not looked at.
        n: how many ways.
        seed: which; way i of image j is that of noise stream j n + i.
        condition: N rows, or None.
        batch_size: ways at a time.
        **options: fields of `model.Options`.

    Raises:
        ValueError: when the model does not complete images, or not this part of them.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {n} and {batch_size}")
    model.check_whole()
    if not isinstance(model, Inpaints):
        raise ValueError(f"{kind_of(model)} models do not complete images")
    device = next(model.parameters()).device
    chosen = model.options(**options)
    mask = torch.from_numpy(known).to(device)
    found = []
    with evaluating(model):
        for j, image in enumerate(images):
            floats = to_floats(model, image[None])[0]  # (3, H, W)
            for start in range(j * n, (j + 1) * n, batch_size):
                streams = range(start, min(start + batch_size, (j + 1) * n))
                noise = Noise.for_images(seed, streams, device)
                wanted = condition[slice(j, j + 1)].repeat(len(streams)).to(device) if condition else Condition()
                views = floats.expand(len(streams), -1, -1, -1)
                found.append(to_uint8(model.inpaint(views, mask, noise, wanted, chosen)))
    return np.concatenate(found).reshape(len(images), n, *images.shape[1:])


@torch.inference_mode()
def morph(model: Generator, images: np.ndarray, frames: int, **options: Any) -> np.ndarray:
    """The way through `images`, uint8 (N, H, W, 3), each as the model expresses it: uint8 (legs, frames, H, W, 3).

    Legs are as those of `interpolate`.

    Args:
        model: on the device it shall run on.
        images: at least two, of the model's size.
        frames: pictures of a leg, evenly spaced, both ends included.
        **options: fields of `model.Options`.

    Raises:
        ValueError: when the model cannot go from image to image.
    """
    model.check_whole()
    if not isinstance(model, Morphs):
        raise ValueError(f"{kind_of(model)} models do not interpolate between given images")
    chosen = model.options(**options)
    floats = to_floats(model, images)
    weights = torch.linspace(0, 1, frames, device=floats.device)
    with evaluating(model):
        legs = [to_uint8(model.morph(a[None], b[None], weights, chosen)) for a, b in _tour(floats)]
    return np.stack(legs)


@torch.inference_mode()
def edit(
    model: Generator,
    images: np.ndarray,
    strength: float,
    seed: int = 0,
    condition: Condition | None = None,
    *,
    batch_size: int = 64,
    **options: Any,
) -> np.ndarray:
    """`images`, uint8 (N, H, W, 3), redrawn: hardly near strength 0, wholly at 1.

    Args:
        model: on the device it shall run on.
        images: of the model's size.
        strength: in (0, 1].
        seed: of the noise; image i has that of stream i.
        condition: N rows, or None.
        batch_size: images at a time.
        **options: fields of `model.Options`.

    Raises:
        ValueError: when the model does not edit, or not with this strength.
    """
    model.check_whole()
    if not isinstance(model, Edits):
        raise ValueError(f"{kind_of(model)} models do not edit images")
    chosen = model.options(**options)
    floats = to_floats(model, images)
    found = []
    with evaluating(model):
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            noise = Noise.for_images(seed, range(rows.start, rows.stop), floats.device)
            wanted = (condition or Condition())[rows].to(floats.device)
            found.append(to_uint8(model.edit(floats[rows], strength, noise, wanted, chosen)))
    return np.concatenate(found)


@torch.inference_mode()
def trajectory(
    model: Generator, n: int, seed: int = 0, condition: Condition | None = None, **options: Any
) -> np.ndarray:
    """How `n` images come about, uint8 (n, 2, evaluations + 1, H, W, 3): what each is at every evaluation of the
    network, and what the model expects it to become.

    Args:
        model: on the device it shall run on.
        n: how many, all at once.
        seed: which; they end as those of `sample`.
        condition: n rows, or None.
        **options: fields of `model.Options`.

    Raises:
        ValueError: when the model makes its images in one go.
    """
    model.check_whole()
    if not isinstance(model, Denoises):
        raise ValueError(f"{kind_of(model)} models do not denoise step by step")
    device = next(model.parameters()).device
    noise = Noise.for_images(seed, range(n), device)
    with evaluating(model):
        both = model.trajectory(noise, (condition or Condition()).to(device), model.options(**options))
    rows = [np.stack([to_uint8(step) for step in steps], axis=1) for steps in both]  # 2 x (n, evaluations + 1, H, W, 3)
    return np.stack(rows, axis=1)


def _tour(stops: Sequence[Any] | Tensor) -> Iterator[tuple[Any, Any]]:
    """The legs of the way through `stops`: of two one, of more also the one back to the first."""
    return pairwise([*stops, stops[0]] if len(stops) > 2 else stops)


def to_floats(model: Generator, images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1], where the model is."""
    return to_float(images, next(model.parameters()).device)


def kind_of(model: Generator) -> str:
    """What kind of model it is; of one with a codec inside, the prior's kind."""
    return f"{model.get_prior().family} (over a codec)" if isinstance(model, HasPrior) else model.family


def animation_frames(legs: np.ndarray) -> np.ndarray:
    """The frames of an endless animation from `interpolate`'s legs, without a stop: one leg goes there and back."""
    if len(legs) == 1:
        return np.concatenate([legs[0], legs[0][-2:0:-1]])
    return legs[:, :-1].reshape(-1, *legs.shape[2:])  # a leg's last frame is the next one's first


def in_pairs(above: np.ndarray, below: np.ndarray, columns: int = 16) -> np.ndarray:
    """Two sets of N images as one for a grid of `columns`: rows of `above`, each over its row of `below`.

    The last pair of rows is filled up with white when `columns` does not divide N.
    """
    missing = -len(above) % columns
    white = np.full((missing, *above.shape[1:]), 255, np.uint8)
    rows = [np.concatenate([part, white]).reshape(-1, columns, *above.shape[1:]) for part in (above, below)]
    return np.stack(rows, axis=1).reshape(
        -1, *above.shape[1:]
    )  # (rows, 2, columns, H, W, 3) -> (2 * rows * columns, ...)


def grid(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """One picture of all `images`, uint8 (N, H, W, 3), row by row on white; as square as possible by default."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    tiles = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)  # (N, 3, H, W)
    return Image.fromarray(make_grid(tiles, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0).numpy())


def cut_grid(path: str | Path, size: int) -> np.ndarray:
    """The images of `size` pixels that `save_grid` put together, uint8 (N, size, size, 3), without what filled it up.

    Raises:
        ValueError: when it is a grid of something else, or empty.
        OSError: when it is no picture.
    """
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    step = size + 2  # 2 pixels before, between and after
    if any(side % step != 2 for side in pixels.shape[:2]):
        raise ValueError(f"{path} is no grid of images of {size} px")
    rows, columns = (side // step for side in pixels.shape[:2])
    cells = pixels[2:, 2:].reshape(rows, step, columns, step, 3).swapaxes(1, 2)  # (rows, columns, step, step, 3)
    images = cells.reshape(-1, step, step, 3)[:, :size, :size]
    images = images[(images != 255).any(axis=(1, 2, 3))]  # the last row is filled up with white
    if len(images) == 0:
        raise ValueError(f"{path} is white: it holds no images")
    return images


def save_grid(path: str | Path, images: np.ndarray, columns: int | None = None) -> None:
    """Write `grid(images, columns)` to `path`, in the format of its ending. Missing folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    grid(images, columns).save(path)


def save_animation(path: str | Path, images: np.ndarray, milliseconds: int = 80) -> None:
    """Write `images`, uint8 (N, H, W, 3), as an endless animated GIF with one palette per frame."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (Image.fromarray(image) for image in images)
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def save_images(path: str | Path, images: np.ndarray) -> None:
    """Write uint8 (N, H, W, 3): an array for .npy, a grid for .png, else a folder of 000000.png ..."""
    path = Path(path)
    if path.suffix == ".npy":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, images)
    elif path.suffix == ".png":
        save_grid(path, images)
    else:
        path.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            Image.fromarray(image).save(path / f"{index:06d}.png")
