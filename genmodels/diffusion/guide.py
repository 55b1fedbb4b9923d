"""Loading of the model that guides another one (autoguidance, arXiv 2406.02507)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import genmodels
from genmodels.shipped import locate


def load_guide(folder: Path) -> nn.Module:
    """Load the model in `folder`; of a latent model, its prior. Cached until the weights change.

    Raises:
        ValueError: when the folder holds no model.
    """
    folder = locate(folder)
    weights = folder / "model.safetensors"
    return _load(folder.resolve(), weights.stat().st_mtime_ns if weights.is_file() else 0)


@lru_cache(maxsize=1)
def _load(folder: Path, modified: int) -> nn.Module:
    with torch.inference_mode(False):  # the cached weights outlive the call that loads them
        model: Any = genmodels.load(folder)
    prior: nn.Module = model.prior if model.can("prior") else model
    return prior.eval().requires_grad_(False)
