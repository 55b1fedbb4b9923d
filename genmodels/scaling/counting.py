"""What a model costs per image: parameters applied per token, tokens, and training FLOPs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from genmodels.base import Model
from genmodels.evaluation.cost import FEW, OPERATIONS, encoding_operations, training_operations, unknown
from genmodels.types import Batch, Noise

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default)
"""Matrix products, whose last two arguments are the factors."""
CONVENTION = (
    f"FLOPs: forward and backward of all turns, {OPERATIONS}; N: weights of matrix products and convolutions, applied "
    "per token; D: images times tokens per image, the number of positions at which weights are applied most"
)
"""How everything is counted. It is printed with the numbers."""


@dataclass(frozen=True)
class Count:
    """What one image costs.

    Attributes:
        parameters: parameters applied per token. Weights that are applied once per image count by
            that fraction of a token; embeddings that are looked up do not count.
        tokens: tokens per image.
        flops: training FLOPs per image, without those of a frozen codec.
    """

    parameters: float
    tokens: int
    flops: float


def count(model: Any) -> Count:
    """Count what one image costs in training. The codec of a prior is not counted: its latents are
    computed once.

    Args:
        model: a complete model; see `Model.check_complete`.

    Raises:
        ValueError: if it has no matrix products or convolutions, or its loss cannot be counted.
    """
    size = model.config.size
    images = torch.rand(FEW, 3, size, size, device=model.device) * 2 - 1
    batch = Batch(images, Noise.for_images(0, range(FEW), model.device), unknown(model, FEW), progress=0.5)
    flops = training_operations(model)
    if model.can("prior"):
        flops -= encoding_operations(model)
    applied = applications(model, batch)
    if not applied:
        raise ValueError(f"the parameters of {model.kind} cannot be counted: its loss applies no weights by products")
    tokens = max(applied, key=lambda positions: positions * applied[positions])
    parameters = sum(positions * weights for positions, weights in applied.items()) / tokens
    return Count(parameters, tokens, flops)


class Applications(TorchDispatchMode):
    """Counts the positions at which each weight is applied by a matrix product or a convolution.

    Args:
        model: the model whose weights are counted.

    Attributes:
        weights: number of weights by the number of positions in the batch.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.weights: Counter[int] = Counter()
        self._places = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            left, right = args[-2:]
            if self._is_weight(right):
                self.weights[left.shape[-2]] += right.numel()
            elif self._is_weight(left):
                self.weights[right.shape[-1]] += left.numel()
        elif func is aten.convolution.default and self._is_weight(args[1]):
            self.weights[output.numel() // output.shape[1]] += args[1].numel()
        return output

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._places


def applications(model: Model, batch: Batch) -> dict[int, int]:
    """Return the number of weights by the number of positions per image at which the loss applies
    them, over all turns. Weights that are applied to the whole batch count as once per image."""
    with torch.no_grad(), Applications(model.trained) as applied:
        for turn in model.turns:
            model.loss(batch, turn)
    found: Counter[int] = Counter()
    for positions, weights in applied.weights.items():
        found[max(1, positions // FEW)] += weights
    return dict(found)
