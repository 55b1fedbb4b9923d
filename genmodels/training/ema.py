"""The exponential moving average of the weights, with the power-function profile of EDM2 (arXiv 2312.02696); and, from
snapshots of one such average, averages of other widths after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MAX_SIGMA_REL = 12**-0.5
"""The relative width of a flat average over the whole run (gamma = 0), the widest there is: 0.2887."""


def power_exponent(sigma_rel: float) -> float:
    """gamma of the profile whose standard deviation is `sigma_rel` of the training so far (EDM2, equation 126 solved).

    The average at time t weighs the weights of time tau by tau^gamma; its relative width is
    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^-(1/2). For 0.05, gamma is 16.97; for 0.10, 6.94.

    Raises:
        ValueError: when sigma_rel is not in (0, 0.2887].
    """
    if not 0 < sigma_rel <= MAX_SIGMA_REL:
        raise ValueError(f"the EMA's sigma_rel must be in (0, {MAX_SIGMA_REL:.4f}], got {sigma_rel}")
    precision = sigma_rel**-2
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


def ema_decay(updates: int, sigma_rel: float) -> float:
    """beta of update number `updates` (from 1): ema <- beta ema + (1 - beta) weights (EDM2, equation 127).

    It is 0 at the first update, so the initial weights leave no trace, and grows with the length of the run, so neither
    the number of steps nor the batch size needs to be known. sigma_rel 0 switches averaging off: beta is always 0.
    """
    if sigma_rel == 0:
        return 0.0
    return (1 - 1 / updates) ** (power_exponent(sigma_rel) + 1)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves `ema`, a copy of `model`, towards it: parameters are averaged, buffers are copied.

    A frozen module may be shared by both; averaging it with itself changes nothing.
    """
    pairs = zip(ema.parameters(), model.parameters(), strict=True)
    own = [(average, weight) for average, weight in pairs if average is not weight]
    averages: list[Tensor] = [average for average, _ in own]
    weights: list[Tensor] = [weight for _, weight in own]
    if own:
        torch._foreach_lerp_(averages, weights, 1 - decay)  # as torch.optim.swa_utils does
    for average, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        if average is not buffer:
            average.copy_(buffer)


@torch.no_grad()
def restore_buffers(module: nn.Module, buffers: Sequence[Tensor]) -> None:
    """Gives `module` back the buffers it had, in the order of `module.buffers()`."""
    for buffer, old in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(old)


# ---- averages of other widths, after training (EDM2, section 3.2) ----

SNAPSHOTS = "ema"
"""Where they are, in the run folder."""
LARGEST_MISS = 0.1
"""Of a profile made of snapshots: its squared distance to the one asked for, relative to that one's square."""


def save_snapshot(folder: Path, ema: nn.Module, model: nn.Module, step: int, sigma_rel: float) -> None:
    """Writes what of `ema` is averaged into `folder`, as step_XXXXXXXX.safetensors.

    Args:
        folder: of the snapshots of one run.
        ema: the average after `step` updates, of width `sigma_rel`.
        model: what it is an average of; what both share is left out.
        step, sigma_rel: as said.
    """
    folder.mkdir(exist_ok=True)
    pairs = zip(ema.named_parameters(), model.parameters(), strict=True)
    averaged = {name: average.detach().contiguous() for (name, average), weight in pairs if average is not weight}
    partial = folder / ".partial"
    save_file(averaged, partial, {"step": str(step), "sigma_rel": str(sigma_rel)})
    partial.replace(folder / f"step_{step:08d}.safetensors")


def drop_snapshots(folder: Path, after: int) -> None:
    """Removes snapshots of steps beyond `after`, which a run that continues from there takes again."""
    for file in folder.glob("step_*.safetensors"):
        if int(file.stem.removeprefix("step_")) > after:
            file.unlink()


def average_of(folder: Path, sigma_rel: float, at: float = 1.0) -> tuple[dict[str, Tensor], float]:
    """The average of width `sigma_rel` at a snapshot in `folder`, and how far its profile is from that width's.

    Args:
        folder: of the snapshots of one run.
        sigma_rel: relative to the length of the run until then.
        at: until when, as a share of the steps of the last snapshot: the last one before that.

    Returns:
        Parameters by name, float32; and the miss, 0 to `LARGEST_MISS`.

    Raises:
        ValueError: when there are no snapshots, or none near the width can be made of them; what can is said.
    """
    files = sorted(folder.glob("step_*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no snapshots: train with --ema-snapshots 16")
    steps, widths = zip(*(_read_header(file) for file in files), strict=True)
    count = sum(step <= at * max(steps) for step in steps)
    if not count:
        raise ValueError(f"the first snapshot in {folder} is from {steps[0] / max(steps):.1%} of the run, after {at:g}")
    files, steps, widths = files[:count], steps[:count], widths[:count]
    weights, miss = combination(steps, widths, sigma_rel)
    if miss > LARGEST_MISS:
        near = [f"{w:.2f}" for w in np.arange(1, 29) / 100 if combination(steps, widths, float(w))[1] <= LARGEST_MISS]
        known = f"widths of {near[0]} to {near[-1]} can" if near else "take more snapshots"
        raise ValueError(
            f"no average of width {sigma_rel:g} can be made of the {len(files)} snapshots in {folder}: {known}"
        )
    found: dict[str, Tensor] = {}
    for file, weight in zip(files, weights, strict=True):
        for name, value in load_file(file).items():
            found[name] = found.get(name, 0) + float(weight) * value
    return found, miss


def combination(steps: Sequence[int], widths: Sequence[float], sigma_rel: float) -> tuple[np.ndarray, float]:
    """The weighted sum of averages that is nearest to the average of width `sigma_rel` at the last of `steps`.

    Args:
        steps, widths: of each average, (S,).
        sigma_rel: of the one wanted.

    Returns:
        Weights (S,) that add up to 1; and the squared distance of the profiles, relative to the wanted one's square.
    """
    times = np.asarray(steps, dtype=float) / max(steps)
    gammas = np.array([power_exponent(width) for width in widths])
    wanted = power_exponent(sigma_rel)
    own = _overlap(times[:, None], gammas[:, None], times, gammas)  # (S, S)
    cross = _overlap(times, gammas, np.ones(1), np.array([wanted]))  # (S,)
    weights = np.linalg.lstsq(own, cross, rcond=None)[0]
    weights = weights / weights.sum()
    square = float(_overlap(1.0, wanted, 1.0, wanted))
    return weights, max(0.0, float(weights @ own @ weights - 2 * weights @ cross + square) / square)


def _overlap(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> np.ndarray:
    """Integral of the product of two profiles, each (gamma + 1) tau^gamma / t^(gamma + 1) for 0 <= tau <= t."""
    earlier = np.where(t_a < t_b, (t_a / t_b) ** gamma_b, (t_b / t_a) ** gamma_a) / np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * earlier


def _read_header(file: Path) -> tuple[int, float]:
    try:
        with safe_open(file, framework="pt") as tensors:
            said = tensors.metadata()
        return int(said["step"]), float(said["sigma_rel"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged or no snapshot ({' '.join(str(error).split())})") from None
