"""Sampling and editing in batches, on all processes: uint8 images in, uint8 images out."""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather, parse_flag_from_env, reduce
from torch import Tensor

from genmodels.abilities import ability
from genmodels.base import Model
from genmodels.candidates import BestOf
from genmodels.conditions import Condition, condition_of
from genmodels.modes import evaluating
from genmodels.pictures import to_float, to_uint8
from genmodels.safety import checking
from genmodels.stopping import StoppedError, image_progress, stoppable
from genmodels.types import Noise


def processes() -> PartialState:
    """Return this process's place among all processes of the run, and its device."""
    # On a machine without an accelerator, accelerate needs cpu=True. Otherwise it treats each of
    # several CPU processes as if it were alone.
    only_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=only_cpu)
    if state.num_processes > 1:
        _leave_at_exit()
    return state


@cache
def _leave_at_exit() -> None:
    """Leave the process group at exit. Otherwise its threads may abort the process."""
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


def require(model: Model, name: str) -> None:
    """Raise ValueError if `model` lacks the ability `name`, or is a prior without its codec."""
    model.check_complete()
    if not model.can(name):
        raise ValueError(f"{model.kind} models do not {ability(name).description}")


@torch.inference_mode()
def sample(
    model: Any,
    n: int,
    seed: int = 0,
    condition: Condition | Mapping[str, Any] | None = None,
    *,
    batch_size: int = 64,
    progress: bool = True,
    until: Callable[[], bool] | None = None,
    best: BestOf | None = None,
    **options: Any,
) -> np.ndarray:
    """Sample `n` images on all processes together.

    Image i of a seed is the same for any `n`, `batch_size` and number of processes, up to rounding.
    So are its candidates for `best`. Candidate 0 is the image without `best`.

    Args:
        model: the model, on the device it should run on.
        n: number of images, over all processes.
        seed: seed of the images.
        condition: n rows; a dict such as {"Smiling": 1}, the same for all images; or None.
        batch_size: number of images that one process computes at a time.
        progress: show a progress bar on standard error, or lines if that is not a terminal.
        until: called while the networks are evaluated. Sampling ends when it returns True on any
            process. All processes must give one, or none.
        best: choice of each image among several candidates; None to draw one.
        **options: fields of the model's options.

    Returns:
        uint8 (n, H, W, 3), on every process.

    Raises:
        ValueError: if n or batch_size is less than 1, or the model has no such option.
        StoppedError: on every process, if `until` returned True on any.
    """
    _check_positive(n=n, batch_size=batch_size)
    require(model, "sample")
    state = processes()
    settings, conditions = model.options(**options), condition_of(model, condition, n)
    share = math.ceil(n / state.num_processes)
    rows = range(min(n, share * state.process_index), min(n, share * (state.process_index + 1)))
    size = model.config.size
    mine = np.zeros((share, size, size, 3), np.uint8)  # of one size on every rank, so that it can be gathered
    stopped = False
    with checking(model) as checked, image_progress(n, "sampling", progress and state.is_main_process) as bar:
        try:
            for start in range(0, len(rows), batch_size):
                indices = rows[start : start + batch_size]
                given = conditions[slice(indices.start, indices.stop)].to(model.device)

                def draw(candidate: int, indices: range = indices, given: Condition = given) -> np.ndarray:
                    noise = Noise.for_images(seed, indices, model.device, candidate)
                    with stoppable(model, bar, until):
                        return to_uint8(checked(model.sample(noise, given, settings)))

                mine[start : start + len(indices)] = best.choose(draw) if best else draw(0)
                bar.update(min(len(indices) * state.num_processes, n - bar.n))
        except StoppedError:
            stopped = True
    if stopped if until is None else reduce(torch.tensor(float(stopped), device=state.device), "sum") > 0:
        raise StoppedError
    if state.num_processes == 1:
        return mine
    return gather(torch.from_numpy(mine).to(state.device)).cpu().numpy()[:n]


@torch.inference_mode()
def interpolate(
    model: Any, seeds: Sequence[int], frames: int, image: int = 0, prompts: Sequence[str] = (), **options: Any
) -> np.ndarray:
    """Interpolate between images of several seeds or, for each seed, between prompts: two give one leg,
    and more a closed path, whose last leg returns to the first.

    Args:
        model: the model, on the device it should run on.
        seeds: at least two seeds; with `prompts`, at least one.
        frames: number of images per leg, evenly spaced, both ends included.
        image: which image of each seed: i is image i of `sample`.
        prompts: at least two sentences, or none.
        **options: fields of the model's options.

    Returns:
        uint8 (legs, frames, H, W, 3).

    Raises:
        ValueError: if the model does not interpolate, or was trained without text.
    """
    ends = [condition_of(model, {"prompt": prompt}, 1).to(model.device) for prompt in prompts]
    require(model, "interpolate_prompts" if prompts else "interpolate")
    settings, weights = model.options(**options), torch.linspace(0, 1, frames, device=model.device)
    of = partial(Noise.for_images, indices=[image], device=model.device)
    with checking(model) as checked:
        if prompts:
            legs = [model.interpolate_prompts(of(s), *leg, weights, settings) for s in seeds for leg in _legs(ends)]
        else:
            legs = [model.interpolate(of(first), of(second), weights, settings) for first, second in _legs(seeds)]
        return np.stack([to_uint8(checked(leg)) for leg in legs])


@torch.inference_mode()
def reconstruct(model: Any, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Reconstruct uint8 images (N, H, W, 3).

    Raises:
        ValueError: if the model does not reconstruct images.
    """
    require(model, "reconstruct")
    parts = []
    with evaluating(model), image_progress(len(images), "reconstructing") as bar:
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            parts.append(to_uint8(model.reconstruct(to_floats(model, part))))
            bar.update(len(part))
    return np.concatenate(parts)


@torch.inference_mode()
def inpaint(
    model: Any,
    images: np.ndarray,
    known: np.ndarray,
    n: int = 1,
    seed: int = 0,
    condition: Condition | Mapping[str, Any] | None = None,
    *,
    batch_size: int = 64,
    **options: Any,
) -> np.ndarray:
    """Complete each image in `n` ways.

    Args:
        model: the model, on the device it should run on.
        images: uint8 (N, H, W, 3), of the model's size.
        known: bool (H, W), True where the images are known. Other pixels are not looked at.
        n: number of completions per image.
        seed: seed of the noise; completion i of image j uses stream j n + i.
        condition: N rows; a dict, the same for all images; or None.
        batch_size: number of completions computed at a time.
        **options: fields of the model's options.

    Returns:
        uint8 (N, n, H, W, 3).

    Raises:
        ValueError: if the model does not complete images, or not this region of them.
    """
    _check_positive(n=n, batch_size=batch_size)
    require(model, "inpaint")
    settings, conditions = model.options(**options), condition_of(model, condition, len(images))
    mask = torch.from_numpy(known).to(model.device)
    parts = []
    with checking(model) as checked:
        for j, image in enumerate(images):
            floats = to_floats(model, image[None])[0]  # (3, H, W)
            for start in range(j * n, (j + 1) * n, batch_size):
                streams = range(start, min(start + batch_size, (j + 1) * n))
                noise = Noise.for_images(seed, streams, model.device)
                given = conditions[slice(j, j + 1)].repeat(len(streams)).to(model.device)
                views = floats.expand(len(streams), -1, -1, -1)
                parts.append(to_uint8(checked(model.inpaint(views, mask, noise, given, settings))))
    return np.concatenate(parts).reshape(len(images), n, *images.shape[1:])


@torch.inference_mode()
def morph(model: Any, images: np.ndarray, frames: int, **options: Any) -> np.ndarray:
    """Interpolate between reconstructions of given images. Legs are as in `interpolate`.

    Args:
        model: the model, on the device it should run on.
        images: uint8 (N, H, W, 3), at least two, of the model's size.
        frames: number of images per leg, evenly spaced, both ends included.
        **options: fields of the model's options.

    Returns:
        uint8 (legs, frames, H, W, 3).

    Raises:
        ValueError: if the model does not interpolate between given images.
    """
    require(model, "morph")
    settings, floats = model.options(**options), to_floats(model, images)
    weights = torch.linspace(0, 1, frames, device=floats.device)
    with checking(model) as checked:
        legs = [to_uint8(checked(model.morph(a[None], b[None], weights, settings))) for a, b in _legs(floats)]
    return np.stack(legs)


@torch.inference_mode()
def edit(
    model: Any,
    images: np.ndarray,
    strength: float,
    seed: int = 0,
    condition: Condition | Mapping[str, Any] | None = None,
    *,
    batch_size: int = 64,
    **options: Any,
) -> np.ndarray:
    """Edit images by adding noise and removing it again.

    Args:
        model: the model, on the device it should run on.
        images: uint8 (N, H, W, 3), of the model's size.
        strength: how much changes, in (0, 1]: hardly anything near 0, everything at 1.
        seed: seed of the noise; image i uses stream i.
        condition: N rows; a dict, the same for all images; or None.
        batch_size: number of images computed at a time.
        **options: fields of the model's options.

    Returns:
        uint8 (N, H, W, 3).

    Raises:
        ValueError: if the model does not edit images, or strength is not in (0, 1].
    """
    _check_positive(batch_size=batch_size)
    require(model, "edit")
    settings, conditions = model.options(**options), condition_of(model, condition, len(images))
    floats = to_floats(model, images)
    parts = []
    with checking(model) as checked:
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            noise = Noise.for_images(seed, range(rows.start, rows.stop), floats.device)
            given = conditions[rows].to(floats.device)
            parts.append(to_uint8(checked(model.edit(floats[rows], strength, noise, given, settings))))
    return np.concatenate(parts)


@torch.inference_mode()
def trajectory(
    model: Any, n: int, seed: int = 0, condition: Condition | Mapping[str, Any] | None = None, **options: Any
) -> np.ndarray:
    """Return the steps by which `n` images are sampled.

    Args:
        model: the model, on the device it should run on.
        n: number of images, computed at once.
        seed: seed of the images; the last step equals `sample`.
        condition: n rows; a dict, the same for all images; or None.
        **options: fields of the model's options.

    Returns:
        uint8 (n, 2, evaluations + 1, H, W, 3): x_t at every evaluation of the network, and the
        model's prediction of x_0 there.

    Raises:
        ValueError: if the model does not sample step by step.
    """
    _check_positive(n=n)
    require(model, "trajectory")
    noise, conditions = Noise.for_images(seed, range(n), model.device), condition_of(model, condition, n)
    with checking(model) as checked:
        both = model.trajectory(noise, conditions.to(model.device), model.options(**options))
        rows = [np.stack([to_uint8(checked(step)) for step in steps], axis=1) for steps in both]
    return np.stack(rows, axis=1)  # (n, 2, evaluations + 1, H, W, 3)


def to_floats(model: Model, images: np.ndarray) -> Tensor:
    """Convert uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1] on the model's device."""
    return to_float(images, model.device)


def _legs(stops: Sequence[Any] | Tensor) -> Iterator[tuple[Any, Any]]:
    """Return pairs of successive stops. For three or more, the last pair returns to the first."""
    return pairwise([*stops, stops[0]] if len(stops) > 2 else stops)


def _check_positive(**values: int) -> None:
    if min(values.values()) < 1:
        names, numbers = " and ".join(values), " and ".join(map(str, values.values()))
        raise ValueError(f"{names} must be at least 1, got {numbers}")
