"""Guidance: move the predicted data away from the prediction of a worse denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import genmodels

if TYPE_CHECKING:
    from genmodels.diffusion.model import Diffusion


@dataclass(frozen=True)
class Guidance:
    """The worse denoiser, and the strength and interval of the guidance.

    With the same model under no condition it is classifier-free guidance (arXiv 2207.12598); with a
    weaker model it is autoguidance (arXiv 2406.02507).
    """

    model: Diffusion
    """Model of the reference prediction."""
    condition: Tensor | None
    """Embedded condition of that model (N, D)."""
    strength: float
    """w in x_0 = reference + w (x_0 - reference); 1: the better denoiser alone."""
    low: float = 0.0
    """Smallest noise-to-data ratio sigma / alpha at which guidance applies (arXiv 2404.07724)."""
    high: float | None = None
    """Largest such ratio; None: no upper limit."""
    rescale: float = 0.0
    """Interpolation towards the standard deviation of the unguided x_0 (arXiv 2305.08891)."""

    def applies(self, ratio: float) -> bool:
        """Whether sigma / alpha = `ratio` lies inside the guidance interval."""
        return ratio >= self.low and (self.high is None or ratio <= self.high)

    def combine(self, x_0: Tensor, reference: Tensor) -> Tensor:
        """Guided data (N, C, H, W) from those of the better denoiser and of the reference.

        Every parameterisation is linear in x_0 at fixed (x_t, t), so guiding x_0, eps, v or the
        velocity is the same.
        """
        guided = reference + self.strength * (x_0 - reference)
        if self.rescale == 0:
            return guided
        std_ratio = x_0.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
        return guided * (self.rescale * std_ratio + 1 - self.rescale)


def load_guide(folder: Path) -> nn.Module:
    """Loads the model in `folder`; of a latent model, its prior. Cached until the weights change.

    Raises:
        ValueError: when the folder holds no model.
    """
    weights = folder / "model.safetensors"
    return _load(folder.resolve(), weights.stat().st_mtime_ns if weights.is_file() else 0)


@lru_cache(maxsize=1)
def _load(folder: Path, modified: int) -> nn.Module:
    with torch.inference_mode(False):  # the cached weights outlive the call that loads them
        model: Any = genmodels.load(folder)
    prior: nn.Module = model.prior if model.can("prior") else model
    return prior.eval().requires_grad_(False)
