"""Guidance: two denoisers, and the data further along the way from the worse to the better one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import genmodels
from genmodels.diffusion.process import Process
from genmodels.diffusion.solvers import Denoise


@dataclass(frozen=True)
class Guidance:
    """How strongly, and where."""

    strength: float
    """s: the data become worse + s (better - worse), in all channels; 1 is the better denoiser alone."""
    low: float = 0.0
    high: float | None = None
    """sigma / alpha between which it is applied (arXiv 2404.07724). Elsewhere the worse denoiser costs nothing."""
    rescale: float = 0.0
    """Share in which the result gets the better denoiser's spread over an image (arXiv 2305.08891)."""


def guided(better: Denoise, worse: Denoise, how: Guidance, process: Process) -> Denoise:
    """Classifier-free guidance (arXiv 2207.12598) when `worse` knows no condition; autoguidance (arXiv 2406.02507) when
    it is a weaker model.

    Every parameterisation is linear in x_0 at given (x_t, t), so guiding x_0, eps, v or the velocity is the same.
    """

    def denoise(x_t: Tensor, *times: float | Tensor) -> Tensor:
        x0 = better(x_t, *times)
        ratio = process.ratio(times[0])
        if ratio < how.low or (how.high is not None and ratio > how.high):
            return x0
        other = worse(x_t, *times)
        found = other + how.strength * (x0 - other)
        if how.rescale == 0:
            return found
        spread = x0.std((1, 2, 3), keepdim=True) / found.std((1, 2, 3), keepdim=True)
        return found * (how.rescale * spread + 1 - how.rescale)

    return denoise


def load_guide(folder: Path) -> nn.Module:
    """The weaker model in `folder`; of a latent one, its prior. It is read once while its file stays as it is.

    Raises:
        ValueError: when there is none.
    """
    weights = folder / "model.safetensors"
    return _load(folder.resolve(), weights.stat().st_mtime_ns if weights.is_file() else 0)


@lru_cache(maxsize=1)
def _load(folder: Path, changed: int) -> nn.Module:
    with torch.inference_mode(False):  # its weights outlive the call they are first needed in
        found: Any = genmodels.load(folder)
    prior: nn.Module = found.prior if found.can("prior") else found
    return prior.eval().requires_grad_(False)
