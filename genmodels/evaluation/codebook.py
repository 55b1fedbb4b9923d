"""How much of its codebook a model uses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from genmodels.evaluation.context import Context, Part
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.results import Score
from genmodels.modes import evaluating


def part(context: Context) -> Part:
    """Compute usage and perplexity of the codebook on held-out images."""
    images, protocol = context.held_out()
    with evaluating(context.model):
        return Part(codebook_scores(context.model, context.batches(images, "codes"), protocol))


@torch.inference_mode()
def codebook_scores(model: Any, batches: Iterable[Tensor], protocol: Protocol) -> dict[str, Score]:
    """Count which codes images are encoded as.

    Args:
        model: the model, in the mode and on the device it should run on.
        batches: images (N, 3, H, W) in [-1, 1] on that device.
        protocol: protocol of the images.

    Returns:
        "codebook-usage", the fraction of the K codes that occur, and "codebook-perplexity", exp of
        the entropy of their frequencies: K if all are used equally often, 1 if only one is used (as
            in
        VQ-VAE's experiments, arXiv 1711.00937).

    Raises:
        ValueError: if codes are not integers in [0, K), or there are no images.
    """
    size = model.codebook_size
    counts = torch.zeros(size, dtype=torch.int64)
    for images in batches:
        codes = model.encode(images).flatten().cpu()
        if codes.is_floating_point() or codes.min() < 0 or codes.max() >= size:
            raise ValueError(
                f"encode() returned codes of type {str(codes.dtype).removeprefix('torch.')} from "
                f"{codes.min().item():g} to {codes.max().item():g}; a codebook of {size:,} has whole numbers from 0 to "
                f"{size - 1:,}"
            )
        counts += torch.bincount(codes, minlength=size)
    if not counts.any():
        raise ValueError("there are no images to encode")
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
