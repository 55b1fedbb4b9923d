"""How much of its codebook a model uses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.results import Score


@torch.inference_mode()
def codebook_scores(model: Any, batches: Iterable[Tensor], protocol: Protocol) -> dict[str, Score]:
    """How many codes stand for images at all, and how evenly.

    Args:
        model: in the mode and on the device it shall run on.
        batches: images (N, 3, H, W) in [-1, 1] on that device.
        protocol: what the images are.

    Returns:
        "codebook-usage", the share of the K codes that occurs, and "codebook-perplexity", exp of the entropy of their
        frequencies: K when all are used alike, 1 when a single one is (as in VQ-VAE's experiments, arXiv 1711.00937).

    Raises:
        ValueError: for codes that are not whole numbers in [0, K), or no images.
    """
    size = model.codebook_size
    counts = torch.zeros(size, dtype=torch.int64)
    for images in batches:
        codes = model.encode(images).flatten().cpu()
        if codes.is_floating_point() or codes.min() < 0 or codes.max() >= size:
            raise ValueError(
                f"encode() gave codes of type {str(codes.dtype).removeprefix('torch.')} from {codes.min().item():g} to "
                f"{codes.max().item():g}; a codebook of {size:,} has whole numbers from 0 to {size - 1:,}"
            )
        counts += torch.bincount(codes, minlength=size)
    if not counts.any():
        raise ValueError("no images to take codes of")
    used = (counts > 0).double().mean().item()
    frequencies = counts.double() / counts.sum()
    perplexity = torch.special.entr(frequencies).sum().exp().item()
    total = f"{counts.sum().item():,} codes"

    def score(value: float, how: str) -> Score:
        return Score(value, "higher", how, protocol, group="reconstruction")

    return {
        "codebook-usage": score(used, f"share of the {size:,} codes that occurs among {total}"),
        "codebook-perplexity": score(perplexity, f"exp of the entropy of {total}, at most {size:,}"),
    }
