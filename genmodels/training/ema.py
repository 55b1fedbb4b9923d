"""Moving average of the weights with the power-function profile of EDM2 (arXiv 2312.02696).

Averages of other widths can be computed after training from snapshots of one such average.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from genmodels.training.shard import own
from genmodels.training.steps import step_name, step_of
from genmodels.weights import read_tensors
from genmodels.writing import replacing

MAX_SIGMA_REL = 12**-0.5
"""Largest possible relative width, 0.2887: a uniform average over the whole run (gamma = 0)."""


@cache
def power_exponent(sigma_rel: float) -> float:
    """Return the exponent gamma of the EMA profile of relative width `sigma_rel`.

    The average at time t gives the weights of time tau a weight proportional to tau^gamma. The
    standard deviation of this profile, relative to t, is
    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^-(1/2) (EDM2, equation 126), which is
    solved for gamma. For example, 0.05 gives 16.97 and 0.10 gives 6.94.

    Raises:
        ValueError: if sigma_rel is not in (0, 0.2887].
    """
    if not 0 < sigma_rel <= MAX_SIGMA_REL:
        raise ValueError(f"sigma_rel of the EMA must be in (0, {MAX_SIGMA_REL:.4f}], got {sigma_rel}")
    precision = sigma_rel**-2
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


def ema_decay(updates: int, sigma_rel: float) -> float:
    """Return beta of the update ema <- beta ema + (1 - beta) weights (EDM2, equation 127).

    At the first update beta is 0, so the average does not depend on the initial weights. It
    approaches 1 as the run gets longer, so the width stays proportional to the length of the run.

    Args:
        updates: number of the update, counted from 1.
        sigma_rel: relative width of the average. 0 disables averaging: beta is then always 0.
    """
    if sigma_rel == 0:
        return 0.0
    return (1 - 1 / updates) ** (power_exponent(sigma_rel) + 1)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Update `ema`, a copy of `model`: average the parameters and copy the buffers.

    Parameters and buffers that both share, such as those of a frozen codec, are left alone. Of
    sharded parameters, each process updates its part.
    """
    pairs = zip(ema.parameters(), model.parameters(), strict=True)
    separate = [(average, weight) for average, weight in pairs if average is not weight and not weight.is_meta]
    averages: list[Tensor] = [own(average) for average, _ in separate]
    weights: list[Tensor] = [own(weight) for _, weight in separate]
    if separate:
        torch._foreach_lerp_(averages, weights, 1 - decay)  # as torch.optim.swa_utils does
    for average, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        if average is not buffer:
            average.copy_(buffer)


@torch.no_grad()
def restore_buffers(module: nn.Module, buffers: Sequence[Tensor]) -> None:
    """Copy `buffers` into the buffers of `module`, in the order of `module.buffers()`."""
    for buffer, old in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(old)


# ---- averages of other widths, after training (EDM2, section 3.2) ----

SNAPSHOTS = "ema"
"""Subfolder of the run folder with the snapshots."""
LARGEST_MISS = 0.1
"""Largest accepted squared L2 error of a profile combined from snapshots, relative to the squared
norm of the requested profile."""


def save_snapshot(folder: Path, ema: nn.Module, model: nn.Module, step: int, sigma_rel: float) -> None:
    """Write the averaged parameters to `folder`, as step_XXXXXXXX.safetensors.

    Args:
        folder: folder with the snapshots of a run; created if it does not exist.
        ema: the average after `step` updates.
        model: the model that is averaged. Parameters that both share are not written.
        step: number of updates so far.
        sigma_rel: relative width of `ema`.
    """
    pairs = zip(ema.named_parameters(), model.parameters(), strict=True)
    averaged = {name: average.detach().contiguous() for (name, average), weight in pairs if average is not weight}
    with replacing(folder / f"{step_name(step)}.safetensors") as draft:
        save_file(averaged, draft, {"step": str(step), "sigma_rel": str(sigma_rel)})


def drop_snapshots(folder: Path, after: int) -> None:
    """Remove the snapshots of steps later than `after`. A resumed run writes them again."""
    for file in _snapshots(folder):
        if int(file.stem.removeprefix("step_")) > after:
            file.unlink()


def _snapshots(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("step_*.safetensors") if step_of(file.stem) is not None)


def average_of(folder: Path, sigma_rel: float, at: float = 1.0) -> tuple[dict[str, Tensor], float]:
    """Combine snapshots into an average of width `sigma_rel` (EDM2, section 3.2).

    Args:
        folder: folder with the snapshots of a run.
        sigma_rel: width of the average, relative to the length of the run up to `at`.
        at: end of the average, as a fraction of the steps of the last snapshot. The average ends at
            the last snapshot up to there.

    Returns:
        The averaged parameters by name, float32, and the relative squared error of the profile,
        0 to `LARGEST_MISS`.

    Raises:
        ValueError: if there are no snapshots, or the snapshots cannot approximate the width. The
            message then lists the widths that they can.
    """
    files = _snapshots(folder)
    if not files:
        raise ValueError(f"{folder} contains no snapshots: train with --ema-snapshots 16")
    steps, widths = zip(*(_read_header(file) for file in files), strict=True)
    count = sum(step <= at * max(steps) for step in steps)
    if not count:
        raise ValueError(
            f"the first snapshot in {folder} was taken at {steps[0] / max(steps):.1%} of the run, "
            f"which is later than the requested {at:.1%}"
        )
    files, steps, widths = files[:count], steps[:count], widths[:count]
    weights, miss = combination(steps, widths, sigma_rel)
    if miss > LARGEST_MISS:
        near = [f"{w:.2f}" for w in np.arange(1, 29) / 100 if combination(steps, widths, float(w))[1] <= LARGEST_MISS]
        advice = f"possible widths are {near[0]} to {near[-1]}" if near else "train with more --ema-snapshots"
        raise ValueError(
            f"no average of width {sigma_rel:g} can be computed from the {len(files)} snapshots in {folder}: {advice}"
        )
    averaged: dict[str, Tensor] = {}
    for file, weight in zip(files, weights, strict=True):
        for name, value in read_tensors(file).items():
            averaged[name] = averaged.get(name, 0) + float(weight) * value
    return averaged, miss


def combination(steps: Sequence[int], widths: Sequence[float], sigma_rel: float) -> tuple[np.ndarray, float]:
    """Fit the average of width `sigma_rel` at the last step by a weighted sum of averages.

    The weights are the least-squares solution of EDM2, section 3.2.

    Args:
        steps, widths: step and relative width of each of the S averages.
        sigma_rel: relative width of the requested average.

    Returns:
        Weights (S,) that sum to 1, and the squared L2 error of the resulting profile, relative to
        the squared norm of the requested profile.
    """
    times = np.asarray(steps, dtype=float) / max(steps)
    gammas = np.array([power_exponent(width) for width in widths])
    gamma = power_exponent(sigma_rel)
    gram = _overlap(times[:, None], gammas[:, None], times, gammas)  # (S, S)
    cross = _overlap(times, gammas, np.ones(1), np.array([gamma]))  # (S,)
    weights = np.linalg.lstsq(gram, cross, rcond=None)[0]
    weights = weights / weights.sum()
    square = float(_overlap(1.0, gamma, 1.0, gamma))
    return weights, max(0.0, float(weights @ gram @ weights - 2 * weights @ cross + square) / square)


def _overlap(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> np.ndarray:
    """Integrate the product of two profiles, (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]."""
    earlier = np.where(t_a < t_b, (t_a / t_b) ** gamma_b, (t_b / t_a) ** gamma_a) / np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * earlier


def _read_header(file: Path) -> tuple[int, float]:
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata()
        return int(metadata["step"]), float(metadata["sigma_rel"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged or not a snapshot ({' '.join(str(error).split())})") from None
